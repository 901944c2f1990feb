"""Access control: tokens, sessions, and the check that a request comes from our own pages.

Reading is open on loopback. A change needs a scope: a program sends a token with `Authorization:
Bearer`, a browser has a session from `/login`. The admin token is in a file, all others are in the
database. A session is a signed note. It is valid after a restart, and ends when the admin token is
replaced.
"""

import base64
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from manybeam.addresses import place_of
from manybeam.asgi import is_cross_site
from manybeam.db.tokens import SCOPES, Tokens
from manybeam.errors import InvalidInput, NotAllowed, WriteFailed

TOKEN_FILE = "admin-token"  # noqa: S105 - the name of a file
SESSION_COOKIE = "manybeam-session"
SESSION_S = 12 * 3600


@dataclass(frozen=True)
class Person:
    """The sender of a request, with their scopes.

    Attributes:
        name: name for the audit log.
        scopes: some of `SCOPES`.
        csrf: the token that forms of this session must contain; "" for programs.
    """

    name: str
    scopes: frozenset[str] = frozenset()
    csrf: str = ""


NOBODY = Person("nobody")


class Gatekeeper:
    """Identifies the sender of a request.

    Args:
        token: the admin token.
        clock: seconds since 1970, for the end of sessions.
        tokens: all other tokens; if left out, there are none.
    """

    def __init__(
        self, token: str, clock: Callable[[], float] = time.time, tokens: Tokens | None = None
    ) -> None:
        self._tokens = tokens
        self._hash = hashlib.sha256(token.encode()).digest()
        self._key = hashlib.sha256(b"manybeam session " + token.encode()).digest()
        self._now = clock
        self._ended: dict[str, int] = {}

    def is_token(self, text: str) -> bool:
        """Return whether a text is the token, in a time that does not depend on the result."""
        return hmac.compare_digest(hashlib.sha256(text.encode()).digest(), self._hash)

    def session(self) -> str:
        """Return a new session, for the cookie."""
        note = f"{int(self._now()) + SESSION_S}.{secrets.token_urlsafe(16)}"
        return f"{note}.{self._sign('session', note)}"

    def end(self, request: Request) -> None:
        """End the session of a request, for every browser with its cookie.

        This is stored until the session would end, or until this process ends.
        """
        if not self.who(request).csrf:
            return
        note = request.cookies[SESSION_COOKIE].rpartition(".")[0]
        kept = {one: end for one, end in self._ended.items() if end >= self._now()}
        self._ended = {**kept, note: int(note.partition(".")[0])}

    def who(self, request: Request) -> Person:
        """Return the sender of a request; `NOBODY` without token and session.

        Raises:
            NotAllowed: the token is unknown, expired or revoked.
            DatabaseUnreachable: a token cannot be checked.
        """
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self.is_token(text.strip()):
                return Person("admin-token", frozenset(SCOPES))
            if self._tokens and (found := self._tokens.verify(text.strip())):
                name = found.person or found.instrument or found.name
                return Person(f"{name} ({found.id})", frozenset(found.scopes))
            raise NotAllowed(
                "this token opens nothing", "it may have been replaced", f"see {TOKEN_FILE}"
            )
        note, _, sign = request.cookies.get(SESSION_COOKIE, "").rpartition(".")
        if not hmac.compare_digest(sign.encode(), self._sign("session", note).encode()):
            return NOBODY
        end = note.partition(".")[0]
        if not end.isdigit() or int(end) < self._now() or note in self._ended:
            return NOBODY
        return Person("admin", frozenset(SCOPES), self._sign("form", note))

    def allow(self, request: Request, scope: str, csrf: str = "") -> Person:
        """Return the sender of a request who has a scope.

        Args:
            request: the request.
            scope: the scope.
            csrf: the token in the form; a session needs the right one.

        Raises:
            NotAllowed: the sender lacks the scope, or the request is not from our own pages.
        """
        person = self.who(request)
        if scope not in person.scopes:
            raise NotAllowed(
                f"this needs the scope {scope!r}",
                "reading is open, a change needs its scope",
                "log in at /login, or send Authorization: Bearer with the admin token",
            )
        if person.csrf:
            check_origin(request)
            if not hmac.compare_digest(csrf.encode(), person.csrf.encode()):
                raise NotAllowed(
                    "this form is not one of this session's",
                    "it was made before the last log-in, or by another site",
                    "go back, reload the page and send it again",
                )
        return person

    def _sign(self, kind: str, note: str) -> str:
        made = hmac.new(self._key, f"{kind} {note}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(made).decode().rstrip("=")


def check_origin(request: Request) -> None:
    """Refuse a change requested by a page of another origin.

    Raises:
        NotAllowed: according to the browser, another site or none sent the form.
    """
    origin = request.headers.get("origin") or request.headers.get("referer") or ""
    ours = place_of(request.headers.get("host", ""))
    if ours is None or place_of(origin) != ours:
        raise NotAllowed(
            f"a page of {origin[:100] or 'nowhere'!r} asked for this change",
            "changes are made from the control plane's own pages",
            "open the page here and try again",
        )


def check_asker(request: Request) -> None:
    """Refuse costly work requested by a page of another origin; programs send no origin.

    Raises:
        NotAllowed: according to the browser, another site sent the request.
    """
    if is_cross_site(request.headers):
        raise NotAllowed(
            "another site asks for this file",
            "making it takes all cores for some seconds",
            "open the page of the version here and download it there",
        )


def own_address(text: str) -> str:
    """Return an address of this site; for any other address return `/zoo`.

    Example:
        >>> own_address("/zoo/graphene@3"), own_address("//elsewhere"), own_address("https://a")
        ('/zoo/graphene@3', '/zoo', '/zoo')
    """
    is_ours = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_ours else "/zoo"


def admin_token(home: Path) -> tuple[str, bool]:
    """Return the admin token of a platform, and whether it was made now.

    Raises:
        InvalidInput: the file contains no token, or other users may read it.
        WriteFailed: it cannot be made.
    """
    path = home / TOKEN_FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() and _make(path)
        _check_mode(path)
        token = path.read_text().strip()
    except OSError as error:
        raise WriteFailed(f"cannot keep the admin token in {path}", str(error), "") from error
    if len(token) < 32:
        raise InvalidInput(
            f"{path} holds no token",
            "at least 32 characters",
            "remove the file; then a new one is made",
        )
    return token, is_new


def _make(path: Path) -> bool:
    """Write a new token, whole or not at all; another process may write it first."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(f"mb-{secrets.token_urlsafe(32)}\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _check_mode(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise InvalidInput(
            f"others may read {path}", "mode 0600 is needed", f"chmod 600 {path}, or make a new one"
        )

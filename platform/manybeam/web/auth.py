"""Who may change the zoo: tokens, sessions made from the admin's, and requests from our own pages.

Reading is open on loopback. A change needs a scope, which a program shows with
`Authorization: Bearer`, and a browser with a session that `/login` gave it. The admin token lies in
a file, all others in the database. A session is a signed note: it outlives a restart, and ends when
the admin token is replaced.
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
from urllib.parse import urlsplit

from fastapi import Request

from manybeam.db.tokens import SCOPES, Tokens
from manybeam.errors import InvalidInput, NotAllowed, WriteFailed

TOKEN_FILE = "admin-token"  # noqa: S105 - the name of a file
SESSION_COOKIE = "manybeam-session"
SESSION_S = 12 * 3600


@dataclass(frozen=True)
class Person:
    """Who asks, and what they may do.

    Attributes:
        name: for the audit log.
        scopes: of `SCOPES`.
        csrf: what a form of this person's session has to carry; "" for programs.
    """

    name: str
    scopes: frozenset[str] = frozenset()
    csrf: str = ""


NOBODY = Person("nobody")


class Gatekeeper:
    """Tells who asks.

    Args:
        token: the admin token.
        clock: seconds since 1970, for the end of sessions.
        tokens: all other tokens; none are known if left out.
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
        """Tell whether a text is the token, in a time that does not depend on the answer."""
        return hmac.compare_digest(hashlib.sha256(text.encode()).digest(), self._hash)

    def session(self) -> str:
        """Return a new session, for the cookie."""
        note = f"{int(self._now()) + SESSION_S}.{secrets.token_urlsafe(16)}"
        return f"{note}.{self._sign('session', note)}"

    def end(self, request: Request) -> None:
        """End the session of a request, for whoever else has its cookie too.

        It is remembered until the session's time is over, or this process ends.
        """
        if not self.who(request).csrf:
            return
        note = request.cookies[SESSION_COOKIE].rpartition(".")[0]
        kept = {one: end for one, end in self._ended.items() if end >= self._now()}
        self._ended = {**kept, note: int(note.partition(".")[0])}

    def who(self, request: Request) -> Person:
        """Return who asks; `NOBODY` for one who shows nothing.

        Raises:
            NotAllowed: a token was shown that is not known, expired or was revoked.
            DatabaseUnreachable: nobody can say whether a token is known.
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
        """Return who asks, if they may do this.

        Args:
            request: the request.
            scope: what is needed.
            csrf: what came with the form; a session needs the right one.

        Raises:
            NotAllowed: they may not, or the request was not made by one of our pages.
        """
        person = self.who(request)
        if scope not in person.scopes:
            raise NotAllowed(
                f"this needs the scope {scope!r}",
                "reading is open, changing is not",
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
    """Refuse a change that a page of another origin asks for.

    Raises:
        NotAllowed: the browser says another site, or none, sent the form.
    """
    origin = request.headers.get("origin") or request.headers.get("referer") or ""
    if urlsplit(origin).netloc != request.headers.get("host", ""):
        raise NotAllowed(
            f"a page of {origin[:100] or 'nowhere'!r} asked for this change",
            "changes are made from the control plane's own pages",
            "open the page here and try again",
        )


def check_asker(request: Request) -> None:
    """Refuse costly work that a page of another origin asks for; programs say nothing of it.

    Raises:
        NotAllowed: the browser says that another site asks.
    """
    site = request.headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none"):
        raise NotAllowed(
            "another site asks for this file",
            "making it takes all cores for some seconds",
            "open the version's page here and take it from there",
        )


def own_address(text: str) -> str:
    """Return an address of this site, `/zoo` for any other: nobody is sent elsewhere from here.

    Example:
        >>> own_address("/zoo/graphene@3"), own_address("//elsewhere"), own_address("https://a")
        ('/zoo/graphene@3', '/zoo', '/zoo')
    """
    is_ours = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_ours else "/zoo"


def admin_token(home: Path) -> tuple[str, bool]:
    """Return the admin token of a platform, made if there is none, and whether it was made now.

    Raises:
        InvalidInput: the file is there and holds no token, or others may read it.
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
            f"{path} holds no token", "at least 32 characters", "remove it: a new one is made"
        )
    return token, is_new


def _make(path: Path) -> bool:
    """Write a new token so that its file is whole or not there; another process may win."""
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
            f"others may read {path}", "mode 0600 is wanted", f"chmod 600 {path}, or make a new one"
        )

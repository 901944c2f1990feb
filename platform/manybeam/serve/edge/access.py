"""Who sends a request: tokens, checked in memory from a copy that outlives the database.

A thread reads all valid tokens every few seconds, so no request waits for the database and a
revocation takes effect soon. The copy is also in a file, for a replica that starts while the
database is away.
"""

import asyncio
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manybeam.db.tokens import SEEN_S, Tokens, ValidToken, hash_of
from manybeam.errors import DatabaseUnreachable, ManybeamError, NotAllowed, NotAuthenticated
from manybeam.serve.edge.fair_queue import Share
from manybeam.serve.query import RequestQuery

logger = logging.getLogger(__name__)

READ_S = 2.0  # pause between two readings: a revocation takes effect within twice this time
LEAST_S = 0.25  # the same if requests with unknown tokens ask for a reading
PATIENCE_S = 2.0  # a request with an unknown token waits so long for a reading
STALE_S = 10.0  # age from which the copy is said to be old
AWAY_S = 24 * 3600.0  # without the database, tokens are valid so long after the last reading
MAX_TOKEN = 512  # characters

_HOW = "send Authorization: Bearer TOKEN; manybeam instrument token makes one"


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        name: for logs; the id of a token.
        instrument: the only instrument that it may speak for; "" for any.
        weight: of its instrument.
    """

    name: str = ""
    instrument: str = ""
    weight: float = 1.0

    def share(self, asked: RequestQuery) -> Share:
        """Return with whom a request shares: all of its instrument, or of its token.

        Without tokens, callers are believed whose they are.
        """
        if self.name and not self.instrument:
            return Share(f"token {self.name}")
        return Share(f"instrument {self.instrument or asked.instrument}", self.weight)

    def query(self, asked: RequestQuery) -> RequestQuery:
        """Return the query of this caller; its instrument is filled in.

        Raises:
            NotAllowed: the query is for another instrument.
        """
        if self.instrument and asked.instrument not in ("", self.instrument):
            raise other_instrument(asked.instrument, self.instrument)
        return replace(asked, instrument=self.instrument or asked.instrument)


ANYBODY = Caller()


def other_instrument(asked: str, own: str) -> NotAllowed:
    """Return the error of a caller who speaks for another instrument than its own."""
    return NotAllowed(
        f"this token is not for the instrument {asked[:80]!r}",
        f"it was made for {own!r}",
        "leave `instrument` out, or use that instrument's own token",
    )


@dataclass(frozen=True)
class _Known:
    """A valid token and the time at which it expires, by the clock of this process."""

    token: ValidToken
    due_s: float


class TokenCache:
    """The valid tokens, in memory; safe to use from several threads.

    The time that a token has left is counted by a monotonic clock from when this process first saw
    it. So a jump of the wall clock neither ends a token nor prolongs it.

    Args:
        tokens: returns the tokens of the database, or raises an error if it is away.
        path: of the file of the copy.
        clock: monotonic seconds.
        wall: seconds since 1970, for the age of the file.
    """

    def __init__(
        self,
        tokens: Callable[[], Tokens],
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._tokens, self._path, self._clock, self._wall = tokens, path, clock, wall
        self._known: dict[str, _Known] = {}
        self._read_s = -math.inf  # when the copy was read last, in seconds of the clock
        self._tried_s = self._read_s  # when the last finished reading began
        self._is_of_file = False  # whether the copy is that of an earlier replica
        self._written: list[dict[str, Any]] | None = None
        self._wrote_s = -math.inf
        self._used: set[str] = set()
        self._wake, self._closed, self._is_away = threading.Event(), threading.Event(), False
        self._is_logged = False  # that it is away
        # Two of them: a writer may wait long for others, and readings must not wait for it.
        self._threads = [
            threading.Thread(target=one, name="tokens", daemon=True)
            for one in (self._go_on_reading, self._go_on_noting)
        ]

    def start(self) -> None:
        """Read the tokens, then go on doing so in a thread until `close`."""
        self._load()
        self.read()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads, and record the last uses."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        self.note_used()

    def degraded(self) -> list[str]:
        """Return what limits the checks, in words; nothing while the database answers."""
        age_s = self._clock() - self._read_s
        if age_s > AWAY_S:
            return ["no token can be checked: the database does not answer"]
        return [f"tokens are checked from a copy of {age_s:.0f} s ago"] if age_s > STALE_S else []

    async def caller(self, headers: Mapping[str, str], scope: str) -> Caller:
        """Return the sender of a request that needs a scope.

        Args:
            headers: of the request, with names in lower case.
            scope: what its token must be for.

        Raises:
            NotAuthenticated: no token, or one that is unknown, revoked or expired.
            NotAllowed: the token is for other scopes.
            DatabaseUnreachable: the token is unknown here and cannot be looked up, or the copy is
                too old.
        """
        text = _bearer(headers.get("authorization", ""))
        token = await self._found(hash_of(text))
        if scope not in token.scopes:
            raise NotAllowed(
                f"this token is not for {scope!r}",
                f"it is for {', '.join(token.scopes)}",
                f"make another one: manybeam instrument token --scopes {scope}",
            )
        self._used.add(token.id)
        return Caller(token.id, token.instrument, token.weight)

    async def _found(self, sha256: str) -> ValidToken:
        if sha256 not in self._known:
            await self._wait_for_reading()
        known, is_old = self._known.get(sha256), self._clock() - self._read_s > AWAY_S
        if is_old or (known is None and self._is_away):
            raise DatabaseUnreachable(
                "the token cannot be checked now",
                "the database of the tokens does not answer",
                "send it again soon",
            )
        if known is None:
            raise NotAuthenticated("this token opens nothing", "it is unknown or was revoked", _HOW)
        if known.due_s <= self._clock():
            raise NotAuthenticated("this token has expired", _expiry(known.token), _HOW)
        return known.token

    async def _wait_for_reading(self) -> None:
        """Wait until a reading that began after now has ended, because the token may be new."""
        asked = self._clock()
        self._wake.set()
        end = time.monotonic() + PATIENCE_S
        while self._tried_s < asked and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if self._tried_s < asked:
            self._is_away = True  # it is being asked, and does not answer

    def _go_on_noting(self) -> None:
        while not self._closed.wait(SEEN_S):
            self.note_used()

    def _go_on_reading(self) -> None:
        while not self._closed.is_set():
            begun = time.monotonic()
            self._wake.wait(READ_S)
            # Many unknown tokens at once must not be as many readings.
            time.sleep(max(0.0, begun + LEAST_S - time.monotonic()))
            self._wake.clear()
            self.read()

    def read(self) -> None:
        """Read the valid tokens from the database; without an answer, keep those that are known."""
        begun = self._clock()
        try:
            tokens = self._tokens()
            at, listed = tokens.valid()
            # What a file said of the time left was by the wall clock of this machine.
            self._take(at, listed, begun, {} if self._is_of_file else self._known)
            self._is_of_file = False
            self._write(listed)
        except Exception as error:  # the thread must go on, or nothing is revoked
            if not self._is_logged:
                logger.warning(
                    "tokens are checked from a copy: %s", error, exc_info=_is_strange(error)
                )
            self._is_away = self._is_logged = True
        else:
            self._is_away = self._is_logged = False
        finally:
            self._tried_s = begun

    def _take(
        self,
        at: datetime,
        listed: Sequence[ValidToken],
        begun: float,
        earlier: Mapping[str, _Known],
    ) -> None:
        """Use what was read; the time left of a token that was known goes on as it was."""
        known = {}
        for one in listed:
            was = earlier.get(one.sha256)
            is_same = was is not None and was.token.expires == one.expires
            due_s = was.due_s if was and is_same else _due_s(one, at, begun)
            known[one.sha256] = _Known(one, due_s)
        self._known, self._read_s = known, begun

    def note_used(self) -> None:
        """Record in the database which tokens were shown; without an answer, the next time."""
        if used := tuple(self._used):
            try:
                self._tokens().note_used(used)
                self._used.difference_update(used)
            except Exception as error:  # the thread must go on
                logger.debug("the use of tokens was not recorded", exc_info=_is_strange(error))

    # -- the file -------------------------------------------------------------------------------
    def _load(self) -> None:
        """Take what an earlier replica wrote; a file that cannot be read counts as none.

        So does one from the future: the clock was set back, and nobody knows how old the file is.
        """
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(self._path.read_text())
            read, wall = float(content["read"]), self._wall()
            if read > wall + STALE_S:
                logger.warning("the copy of the tokens is not used: it is from the future")
                return
            listed = [_from_json(one) for one in content["tokens"]]
            at = datetime.fromtimestamp(max(read, wall), UTC)
            self._take(at, listed, self._clock(), {})
            self._read_s = self._clock() - max(wall - read, 0.0)
            self._is_of_file = True

    def _write(self, listed: Sequence[ValidToken]) -> None:
        """Write the copy, if it changed or is older than a minute, for this user's eyes only."""
        content = [_to_json(one) for one in listed]
        if content == self._written and self._clock() - self._wrote_s < SEEN_S:
            return
        self._written, self._wrote_s = content, self._clock()
        draft = self._path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as stream:
                json.dump({"read": self._wall(), "tokens": content}, stream)
            draft.replace(self._path)
        except OSError as error:
            logger.warning("the copy of the tokens was not written: %s", error)
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _bearer(header: str) -> str:
    """Return the token of an Authorization header."""
    scheme, _, text = header.partition(" ")
    if not header:
        raise no_token()
    text = text.strip()
    if scheme.lower() != "bearer" or not text or len(text) > MAX_TOKEN or not text.isascii():
        raise NotAuthenticated("the header Authorization holds no token", "", _HOW)
    return text


def no_token() -> NotAuthenticated:
    """Return the error of a request without a token; the proxy answers it too."""
    return NotAuthenticated("this request needs a token", "it has none", _HOW)


def _is_strange(error: Exception) -> bool:
    """Return whether an error is none of ours, so that the log needs its traceback."""
    return not isinstance(error, ManybeamError)


def _due_s(token: ValidToken, at: datetime, begun: float) -> float:
    if token.expires is None:
        return math.inf
    return begun + (token.expires - at).total_seconds()


def _expiry(token: ValidToken) -> str:
    return f"it was valid until {token.expires:%Y-%m-%d %H:%M} UTC" if token.expires else ""


def _to_json(token: ValidToken) -> dict[str, Any]:
    expires = token.expires.isoformat() if token.expires else None
    return {**asdict(token), "scopes": list(token.scopes), "expires": expires}


def _from_json(content: dict[str, Any]) -> ValidToken:
    expires = datetime.fromisoformat(content["expires"]) if content["expires"] else None
    return ValidToken(**{**content, "scopes": tuple(content["scopes"]), "expires": expires})

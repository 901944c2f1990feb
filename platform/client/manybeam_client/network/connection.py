"""Requests to the service over connections that stay open, none longer than its caller waits."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Mapping

from manybeam_client.errors import Problem
from manybeam_client.network.bounded import BoundedCalls, TimeIsUp, may_be_cut
from manybeam_client.version import USER_AGENT

if TYPE_CHECKING:
    import urllib3

    from manybeam_client.network.place import Place

PIECE = 2**20  # bytes that are read of a reply at once
LEAST_S = 0.001


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class NotReached(Exception):
    """There was no reply.

    Attributes:
        problem: why.
        may_repeat: whether the same request may be sent again at once.
        is_silent: whether the request may have arrived, and nothing was heard.
    """

    def __init__(self, problem: Problem, *, may_repeat: bool, is_silent: bool = False) -> None:
        super().__init__(str(problem))
        self.problem, self.may_repeat, self.is_silent = problem, may_repeat, is_silent


class Connection:
    """Sends requests; safe to use from several threads.

    Args:
        place: where to.
        when_late: is called for an answer that comes too late.
        size: connections that stay open.
    """

    def __init__(self, place: Place, when_late: Callable[[], None], size: int = 8) -> None:
        self.place, self._when_late, self._size = place, when_late, size
        self._calls, self._lock = BoundedCalls(), threading.Lock()
        self._made: Any = None

    def ask(
        self,
        method: str,
        path: str,
        due_s: float,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Return the reply to a request.

        Args:
            method: of HTTP.
            path: with the query.
            due_s: until when to wait, in monotonic seconds.
            body: bytes, or what gives them without a copy.
            headers: besides those of every request.

        Raises:
            NotReached: no reply came in time.
        """
        said = {"User-Agent": USER_AGENT, **self.place.headers(), **(headers or {})}

        def work() -> Reply:
            return self._exchange(method, path, due_s, body, said)

        try:
            found: Reply = self._calls.run(work, due_s, self._note_late)
        except TimeIsUp:
            raise NotReached(_silence(), may_repeat=False, is_silent=True) from None
        return found

    def forget(self) -> None:
        """Close connections that wait for a request: after an outage they lead nowhere."""
        with self._lock:
            made = self._made
        if made is not None:
            made.clear()

    def close(self) -> None:
        """Close all connections that no request uses."""
        self._calls.close()
        self.forget()

    def _note_late(self, reply: Reply) -> None:
        if reply.status == 200:
            self._when_late()

    def _exchange(
        self, method: str, path: str, due_s: float, body: Any, headers: Mapping[str, str]
    ) -> Reply:
        import urllib3

        timeout = urllib3.Timeout(total=max(due_s - time.monotonic(), LEAST_S))
        try:
            response = self._pool().urlopen(
                method,
                self.place.url + path,
                body=body,
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            return Reply(response.status, response.headers, _whole(response, due_s))
        except urllib3.exceptions.HTTPError as error:
            raise not_reached(error, self.place) from error
        except (OSError, ValueError) as error:  # the file of `ca` has gone; a proxy that is no URL
            what = "no connection can be prepared"
            problem = Problem("connection", what, _words(error), is_away=True)
            raise NotReached(problem, may_repeat=False) from error

    def _pool(self) -> urllib3.PoolManager:
        with self._lock:
            if self._made is None:
                self._made = _new_pool(self.place, self._size)
            found: urllib3.PoolManager = self._made
            return found


def _new_pool(place: Place, size: int) -> urllib3.PoolManager:
    from urllib3.util import make_headers, parse_url

    from manybeam_client.network.pools import CutManager, CutProxyManager

    options: dict[str, Any] = {"maxsize": size, "retries": False}
    if place.is_tls:
        options["ssl_context"] = place.context()
    proxy = place.proxy
    if not proxy:
        return CutManager(**options)
    auth = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=auth) if auth else None
    return CutProxyManager(proxy, proxy_headers=headers, **options)


def _whole(response: Any, due_s: float) -> bytes:
    """Return the whole body of a reply; one that trickles in ends with its deadline."""
    length = response.headers.get("content-length", "")
    try:
        if length.isdigit() and int(length) <= PIECE:
            return bytes(response.read())
        parts = []
        for part in iter(lambda: response.read(PIECE), b""):
            parts.append(part)
            if time.monotonic() > due_s:
                raise NotReached(_silence(), may_repeat=False, is_silent=True)
        return b"".join(parts)
    except BaseException:
        response.close()
        raise
    finally:
        may_be_cut(None)  # the next call may have the connection at once
        response.release_conn()


def _silence() -> Problem:
    return Problem(
        "deadline",
        "there was no answer before the deadline",
        hint="raise deadline_ms, send a smaller frame, or run manybeam-check",
    )


def not_reached(error: Exception, place: Place) -> NotReached:
    """Return why there was no reply, from an error of urllib3."""
    from urllib3 import exceptions as of_urllib3

    cause = _words(error)
    if isinstance(error, of_urllib3.SSLError) or "certificate" in cause.lower():
        return NotReached(tls_problem(cause), may_repeat=False)
    if isinstance(error, of_urllib3.ReadTimeoutError):
        return NotReached(_silence(), may_repeat=False, is_silent=True)
    if isinstance(error, of_urllib3.ProxyError):
        hint = "the proxy is named by HTTPS_PROXY or HTTP_PROXY; NO_PROXY lists exceptions"
        what = f"the proxy gives no way to {place.host}"
        return NotReached(Problem("connection", what, cause, hint, is_away=True), may_repeat=True)
    is_made = not isinstance(error, (of_urllib3.NewConnectionError, of_urllib3.ConnectTimeoutError))
    what = "the connection to {} broke" if is_made else "{} cannot be reached"
    problem = Problem(
        "connection",
        what.format(f"{place.host}:{place.port}"),
        cause,
        f"run manybeam-check {place.url}",
        is_away=True,
    )
    return NotReached(problem, may_repeat=True)


def tls_problem(cause: str) -> Problem:
    """Return the problem of a certificate, with what helps against it."""
    text = cause.lower()
    if "expired" in text or "not yet valid" in text:
        hint = "the certificate has expired, or the clock of this computer is wrong"
    elif "doesn't match" in text or "mismatch" in text or "not valid for" in text:
        hint = "the certificate is for another name; use the name that it was made for in the URL"
    elif "wrong_version" in text or "wrong version" in text or "record layer" in text:
        hint = "no TLS is spoken at this port; begin the URL with http://"
    else:
        hint = (
            "if the facility has its own authority, give its certificate: ca='authority.pem' or "
            "MANYBEAM_CA=authority.pem"
        )
    return Problem("tls", "no encrypted connection can be made", cause, hint)


def _words(error: BaseException) -> str:
    """Return the innermost cause of an error in words, without addresses of objects."""
    while True:
        inner = error.__cause__ or error.__context__
        for part in error.args:
            if isinstance(part, BaseException):
                inner = part
        if inner is None:
            break
        error = inner
    return f"{type(error).__name__}: {str(error)[:160]}"

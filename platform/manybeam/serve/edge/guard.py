"""What the head of every request must satisfy: its host, its id, no page of another site.

The id is checked twice: Ray reads it before our application does, and fails if it is no text.
"""

import re
import time
import uuid
from collections.abc import Callable, Mapping

from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from manybeam.addresses import is_loopback, place_of
from manybeam.asgi import is_cross_site
from manybeam.errors import MalformedRequest, ManybeamError, NotAllowed, http_status
from manybeam.serve import wire
from manybeam.serve.edge.admission import GATE, Gate

# With these a caller could steer Ray, which fails if one is no text.
RAY_HEADERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
)

_ID = re.compile(r"[!-~]{1,128}")


def ray_middlewares() -> list[Middleware]:
    """Return what Ray Serve wraps around each of its HTTP servers.

    Those behind HAProxy are in the replicas. Ray's own proxy, which HAProxy falls back to, sends a
    request to another process, where no gate reaches.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        serve.get_replica_context()
    except RayServeException:
        return [Middleware(RayGuard, is_replica=False)]
    return [Middleware(RayGuard, is_replica=True)]


class RayGuard:
    """Refuses a bad request id before Ray reads it, and removes headers that steer Ray.

    Args:
        app: Ray's application.
        is_replica: whether our application is called in this process; then bodies have a gate.
    """

    def __init__(self, app: ASGIApp, *, is_replica: bool) -> None:
        self._app, self._is_replica = app, is_replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._app
        if scope["type"] in ("http", "websocket"):
            scope["headers"] = [
                (name, value)
                for name, value in scope["headers"]
                if name.replace(b"_", b"-") not in RAY_HEADERS
            ]
            try:
                checked_id(HTTPConnection(scope).headers)
            except MalformedRequest as error:
                app = _refusing(refusal(error, uuid.uuid4().hex, is_named=True, path=scope["path"]))
            if self._is_replica and scope["type"] == "http":
                scope[GATE] = gate = Gate(receive)
                receive = gate.receive
        await app(scope, receive, send)


class HeadGuard:
    """Refuses requests to foreign host names, of other sites' pages, and with a bad id.

    Args:
        app: the application that answers.
        is_local: answer only requests that address this machine by a loopback name; this refuses
            web pages that make their own name point here (DNS rebinding).
        names_requests: put X-Request-Id on refusals; Ray Serve does so itself.
        count: called with path, status and seconds of a request that is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_local: bool,
        names_requests: bool,
        count: Callable[[str, int, float], None],
    ) -> None:
        self._app, self._is_local, self._count = app, is_local, count
        self._names_requests = names_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app, begun = self._app, time.monotonic()
        if scope["type"] in ("http", "websocket"):
            headers = HTTPConnection(scope).headers
            try:
                # A page may open a WebSocket to any site, so its origin counts as for a POST.
                self._check(scope.get("method", "POST"), headers)
            except ManybeamError as error:
                name, is_named = _readable_id(headers), self._names_requests
                said = refusal(error, name, is_named=is_named, path=scope["path"])
                app = _refusing(said)
                self._count("refused", http_status(error), time.monotonic() - begun)
        await app(scope, receive, send)

    def _check(self, method: str, headers: Mapping[str, str]) -> None:
        checked_id(headers)
        name = headers.get("host", "")
        host, _ = place_of(name) or ("", None)
        if self._is_local and not is_loopback(host):
            raise NotAllowed(
                f"this service is for its own machine, not for {name[:80]!r}",
                "it requires no token, so other machines must not reach it",
                "use 127.0.0.1, or let it require tokens: manybeam serve up --tokens",
            )
        if method not in ("GET", "HEAD", "OPTIONS") and is_cross_site(headers):
            raise NotAllowed(
                "a web page of another site sent this request",
                f"its origin is {headers.get('origin', 'not told')[:80]!r}",
                "send it from a program",
            )


def checked_id(headers: Mapping[str, str]) -> str:
    """Return the id that the caller gave its request; a new one if there is none.

    Raises:
        MalformedRequest: it is not 1 to 128 visible ASCII characters.
    """
    given = headers.get("x-request-id")
    if given is None:
        return uuid.uuid4().hex
    if not _ID.fullmatch(given):
        raise MalformedRequest(
            f"X-Request-Id is {given[:80]!r}",
            "1 to 128 visible ASCII characters",
            "or leave it out",
        )
    return given


def refusal(error: ManybeamError, request_id: str, *, is_named: bool, path: str = "") -> Response:
    """Return the problem of a request that is refused by its head."""
    headers = {"connection": "close"} | ({"x-request-id": request_id} if is_named else {})
    content, media = wire.refusal(path, error, request_id)
    return JSONResponse(content, http_status(error), headers, media)


def _refusing(response: Response) -> ASGIApp:
    """Return an application that gives this answer, also to who opens a WebSocket."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(response)
        else:
            await response(scope, receive, send)

    return refuse


def _readable_id(headers: Mapping[str, str]) -> str:
    try:
        return checked_id(headers)
    except MalformedRequest:
        return uuid.uuid4().hex

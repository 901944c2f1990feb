"""The application of the control plane: it joins the parts and runs the server.

It is a separate ASGI process, so that the zoo can be browsed while the cluster is down.
"""

import logging
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manybeam import __version__
from manybeam.addresses import is_loopback, place_of, url_of
from manybeam.asgi import HeadAsGet
from manybeam.db.deployment import open_database
from manybeam.db.tokens import SCOPES, Tokens
from manybeam.errors import (
    InvalidInput,
    MalformedRequest,
    ManybeamError,
    NotAllowed,
    PortInUse,
    Unreachable,
    http_status,
    problem,
)
from manybeam.settings import settings
from manybeam.web.api import api_router
from manybeam.web.auth import TOKEN_FILE, Gatekeeper, admin_token
from manybeam.web.events import events_router
from manybeam.web.live.routes import live_router
from manybeam.web.pages.changes import changes_router
from manybeam.web.pages.framesets import FrameSets
from manybeam.web.pages.login import login_router
from manybeam.web.pages.routes import pages_router
from manybeam.web.predict.routes import predict_router
from manybeam.web.problems import PROBLEM, add_problems, request_id
from manybeam.web.refresher import Refresher
from manybeam.web.render import STATIC, Pages
from manybeam.web.state import AppState
from manybeam.web.version_cache import VersionCache

if TYPE_CHECKING:
    import uvicorn

    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

REFRESH_S = 3.0
KEPT_S = 365 * 86400
# Pictures in the vendored style sheet (ticks, arrows) are data: URLs; nothing else is from outside.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "accept-ch": "Sec-CH-Prefers-Color-Scheme",
    "critical-ch": "Sec-CH-Prefers-Color-Scheme",
}


def make_app_state(zoo: "Zoo | None" = None, *, refresh_s: float = REFRESH_S) -> AppState:
    """Return the parts of the control plane.

    Args:
        zoo: the zoo; if left out, the zoo of the settings.
        refresh_s: pause between two refreshes from MLflow, in seconds.
    """
    from manybeam.spec import Library
    from manybeam.zoo.catalogue import Catalogue
    from manybeam.zoo.registry import Zoo

    here, zoo = settings(), zoo or Zoo()
    library = Library(here.zoo)
    catalogue = Catalogue(zoo, library=library)
    version_cache = VersionCache(zoo, here.cache / "listing.json")
    refresher = Refresher(catalogue, version_cache, refresh_s)
    gatekeeper = _gatekeeper(here.home)
    pages = Pages(refresher, gatekeeper)
    frames = FrameSets(here.store_url)
    return AppState(zoo, catalogue, version_cache, refresher, frames, library, gatekeeper, pages)


def _gatekeeper(home: Path) -> Gatekeeper:
    """Return the gatekeeper; it also works while the database is down, because pages do."""
    token = admin_token(home)[0]
    try:
        tokens = Tokens(open_database())
        tokens.register(token, f"{socket.gethostname()}:{(home / TOKEN_FILE).resolve()}", SCOPES)
    except Unreachable as error:
        logger.warning("only the admin token is accepted: %s", error.what)
        return Gatekeeper(token)
    return Gatekeeper(token, tokens=tokens)


def create_app(app_state: AppState | None = None, *, is_local: bool = True) -> FastAPI:
    """Return the application.

    Args:
        app_state: its parts; if left out, they are made from the settings.
        is_local: answer only requests to a loopback name. This refuses a web page whose own name
            points to this machine (DNS rebinding).
    """
    parts = app_state or make_app_state()

    @asynccontextmanager
    async def kept(_: FastAPI) -> AsyncIterator[None]:
        parts.refresher.start()
        yield
        parts.refresher.close()
        parts.refresher.join()
        parts.drawing.close()
        parts.predicting.close()

    app = FastAPI(
        title="Manybeam control plane",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=kept,
    )
    app.state.app_state = parts
    add_problems(app, parts.pages)
    app.include_router(events_router(parts.refresher, uuid.uuid4().hex))
    app.include_router(changes_router(parts))
    app.include_router(api_router(parts))
    app.include_router(login_router(parts))
    app.include_router(live_router(parts))
    app.include_router(predict_router(parts))
    app.include_router(pages_router(parts))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    app.add_middleware(Guard, is_local=is_local)
    app.add_middleware(HeadAsGet)
    return app


class Guard:
    """Adds headers to every answer, and refuses requests to other host names.

    Args:
        app: the application that answers.
        is_local: refuse requests to names that are not loopback names.
    """

    def __init__(self, app: ASGIApp, *, is_local: bool) -> None:
        self._app, self._is_local = app, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        asked_as = request_id(request)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["x-request-id"] = asked_as
                is_kept = message["status"] in (200, 304) and bool(scope["query_string"])
                if is_kept and scope["path"].startswith("/static/"):
                    headers["cache-control"] = f"public, max-age={KEPT_S}, immutable"
            await send(message)

        app = self._app
        name = request.headers.get("host", "")
        place = place_of(name)
        if name and place is None:
            app = _refused(_malformed(name), asked_as)
        elif self._is_local and place and not is_loopback(place[0]):
            app = _refused(_foreign(place[0]), asked_as)
        await app(scope, receive, with_headers)


def _refused(error: ManybeamError, asked_as: str) -> ASGIApp:
    return JSONResponse(problem(error, asked_as), http_status(error), media_type=PROBLEM)


def _malformed(name: str) -> MalformedRequest:
    return MalformedRequest(
        f"the header Host is {name[:80]!r}", "it must be a name or an address, with a port", ""
    )


def _foreign(host: str) -> NotAllowed:
    return NotAllowed(
        f"the host name {host[:80]!r} is not allowed",
        "this server answers only on this machine, by a loopback name",
        "use the address 127.0.0.1, or start the server with --expose",
    )


def run(
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    expose: bool = False,
    refresh_s: float = REFRESH_S,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the control plane until the process is stopped.

    Args:
        host: address to listen on.
        port: port; if 0, any free port.
        expose: allow an address that other machines can reach.
        refresh_s: pause between two refreshes from MLflow, in seconds.
        ready: called with the URL when the server listens.

    Raises:
        NotAllowed: other machines can reach the address, and `expose` is not given.
        PortInUse: another process uses the port.
        InvalidInput: there is no such address.
    """
    if not expose and not is_loopback(host):
        raise NotAllowed(
            f"other machines can reach {host!r}",
            "reading needs no login",
            "use 127.0.0.1, or --expose behind a proxy that authenticates users and uses TLS",
        )
    listening = listen(host, port)
    try:
        app = create_app(make_app_state(refresh_s=refresh_s), is_local=not expose)
        ready(url_of(host, listening.getsockname()[1]))
        make_server(app).run(sockets=[listening])
    finally:
        listening.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; raises PortInUse or InvalidInput."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(128)
    except (OSError, OverflowError) as error:
        bound.close()
        if getattr(error, "errno", None) == 98:
            raise PortInUse(
                f"another process uses port {port} of {host}",
                "the control plane needs a free port",
                f"stop that process, or run manybeam web --port {port + 1}",
            ) from error
        raise InvalidInput(
            f"cannot listen on {host!r}, port {port}", str(error), "give another --host or --port"
        ) from error
    return bound


def make_server(app: FastAPI) -> "uvicorn.Server":
    """Return the server of an application; it stops soon after a request to stop."""
    import uvicorn

    class Server(uvicorn.Server):
        """Ends the event streams first, because a server waits for open connections."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.app_state.refresher.close()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False
    )
    return Server(config)

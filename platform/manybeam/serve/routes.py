"""The URLs of the service, which `edge.handler` answers; each error becomes a problem."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response, Security
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.routing import Match

from manybeam import __version__
from manybeam.asgi import HeadAsGet
from manybeam.errors import NotFound, WrongMethod
from manybeam.serve import wire
from manybeam.serve.edge.access import TokenCache
from manybeam.serve.edge.guard import HeadGuard
from manybeam.serve.edge.handler import ReplicaLimits, RequestHandler
from manybeam.serve.metrics import TEXT, Meter
from manybeam.serve.monitor.routes import LiveRoutes
from manybeam.serve.openapi import (
    ATOMS,
    BINARY,
    CHECKED,
    ENSEMBLES,
    RANKING,
    READY,
    answers,
    as_schema,
    takes_frames,
)
from manybeam.serve.predict import Service
from manybeam.serve.protocol.routes import ModelRoutes
from manybeam.serve.query import PREDICT_NAMES, SELECT_NAMES
from manybeam.serve.sessions.routes import SessionRoutes
from manybeam.serve.stream.routes import StreamRoutes

Ref = Annotated[str, Path(description="A REF such as graphene or graphene@3, or auto.")]
PATHS = (
    "POST /v1/predict/{REF}",
    "POST /v1/select",
    "POST /v1/select/{ID}",
    "GET /v1/instruments/{ID}/session",
    "PUT /v1/instruments/{ID}/session",
    "DELETE /v1/instruments/{ID}/session",
    "GET /v1/instruments/{ID}/live",
    "POST /v1/instruments/{ID}/marks",
    "GET /v1/ensembles",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "POST /v2/repository/index",
    *(
        f"{method} /v2/models/{{MODEL}}{version}{end}"
        for version in ("", "/versions/{VERSION}")
        for method, end in (("GET", ""), ("GET", "/ready"), ("GET", "/config"), ("POST", "/infer"))
    ),
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
)


def api(
    service: Service,
    limits: ReplicaLimits,
    meter: Meter,
    metrics_text: Callable[[], str],
    tokens: TokenCache | None = None,
) -> FastAPI:
    """Return the web application of one replica.

    Args:
        service: answers the requests.
        limits: the limits of the replica.
        meter: counts.
        metrics_text: returns the metrics of all replicas.
        tokens: checks the tokens of all requests but those for health, and ends with the
            application; anybody may ask if left out.
    """
    app = FastAPI(
        title="Manybeam prediction service",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=partial(_closing, service, tokens),
    )
    handler = RequestHandler(service, limits, meter, tokens)
    service.sessions.is_quiet = handler.is_quiet
    app.add_exception_handler(HTTPException, partial(_unrouted, handler))

    # It only describes what `TokenCache` checks.
    bearer = Security(HTTPBearer(auto_error=False, scheme_name="token"))
    needs = [bearer] if tokens else []

    _add_answers(app, handler, needs)
    SessionRoutes(handler, service.sessions, is_open=tokens is None).add_to(app, needs)
    LiveRoutes(handler, service.sessions).add_to(app, needs)
    StreamRoutes(handler, service.sessions, meter).add_to(app)
    ModelRoutes(handler, service).add_to(app, needs)
    _add_listings(app, handler, metrics_text, needs)
    _add_health(app, service, tokens)
    names = {"is_local": limits.is_local, "names_requests": limits.names_requests}
    app.add_middleware(HeadGuard, count=meter.request, **names)
    app.add_middleware(HeadAsGet)
    return app


def _add_answers(app: FastAPI, handler: RequestHandler, needs: list[Any]) -> None:
    of_predict = takes_frames(PREDICT_NAMES, {wire.NPZ: BINARY, **as_schema(ATOMS)})

    @app.post("/v1/predict/{ref:path}", dependencies=needs, **of_predict)
    async def predict(ref: Ref, request: Request) -> Response:
        """Find the atoms in one frame or a stack."""
        work = partial(handler.predict, ref)
        return await handler.answered("predict", request, work, "predict")

    of_select = takes_frames(SELECT_NAMES, as_schema(RANKING))

    @app.post("/v1/select", dependencies=needs, **of_select)
    async def select(request: Request) -> Response:
        """Rank the members that suit a frame."""
        return await handler.answered("select", request, handler.select, "select")


@asynccontextmanager
async def _closing(service: Service, tokens: TokenCache | None, _: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(service.sessions.close)
    if tokens:
        await asyncio.to_thread(tokens.close)
    if service.traffic:
        await asyncio.to_thread(service.traffic.close)


def _add_listings(
    app: FastAPI, handler: RequestHandler, metrics_text: Callable[[], str], needs: list[Any]
) -> None:
    @app.get(
        "/v1/ensembles",
        response_class=Response,
        responses=answers(as_schema(ENSEMBLES), CHECKED),
        dependencies=needs,
    )
    async def ensembles(request: Request) -> Response:
        """List the ensembles in memory."""
        return await handler.answered("ensembles", request, handler.ensembles, "predict")

    @app.get(
        "/metrics",
        response_class=Response,
        responses=answers({"text/plain": {"schema": {"type": "string"}}}, CHECKED),
        dependencies=needs,
    )
    async def metrics(request: Request) -> Response:
        """Return the metrics of all replicas, for Prometheus."""

        async def gathered(_: Request) -> Response:
            return Response(await asyncio.to_thread(metrics_text), media_type=TEXT)

        return await handler.answered("metrics", request, gathered, "predict")


def _add_health(app: FastAPI, service: Service, tokens: TokenCache | None) -> None:
    @app.get("/healthz", responses=answers({}))
    async def healthz() -> dict[str, str]:
        """Return that the process answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/readyz", responses=answers(as_schema(READY)))
    async def readyz() -> dict[str, Any]:
        """Return the loaded ensembles, and what is out of date; it answers after all are loaded."""
        degraded = [*service.degraded(), *(tokens.degraded() if tokens else ())]
        refs = list(service.versions.refs)
        return {"status": "ready", "ensembles": refs, "degraded": degraded}


async def _unrouted(handler: RequestHandler, request: Request, error: Exception) -> Response:
    """Answer an unknown path, or a wrong method."""
    path, there = request.scope["path"][:200], f"there are: {', '.join(PATHS)}"
    is_known = isinstance(error, HTTPException) and error.status_code == 405

    async def refuse(_: Request) -> Response:
        if is_known:
            raise WrongMethod(f"{request.method[:20]} is not for {path!r}", there)
        raise NotFound(f"no path {path!r}", there)

    response = await handler.answered("unknown", request, refuse)
    if is_known:
        response.headers["allow"] = ", ".join(_methods(request))
    return response


def _methods(request: Request) -> list[str]:
    """Return the methods of a path; each of them may be a route of its own."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)

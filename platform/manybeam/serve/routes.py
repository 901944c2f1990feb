"""The URLs of the service: requests become calls of `predict.Service`, errors become problem+json.

The event loop only moves bytes. Reading, predicting and writing run in threads, so a large frame
does not delay a health check.
"""

import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from manybeam import __version__
from manybeam.addresses import is_loopback, place_of
from manybeam.asgi import HeadAsGet
from manybeam.errors import (
    Busy,
    DeadlineExceeded,
    ManybeamError,
    NotAllowed,
    NotFound,
    TooLarge,
    UnreadableFile,
    WorkFailed,
    WrongMethod,
    http_status,
    problem,
)
from manybeam.predictor.deadline import Deadline
from manybeam.serve import wire
from manybeam.serve.metrics import TEXT, Meter
from manybeam.serve.predict import Service
from manybeam.serve.query import PREDICT_NAMES, SELECT_NAMES, RequestQuery, parameters, read_query

logger = logging.getLogger(__name__)

PATHS = (
    "POST /v1/predict/{REF}",
    "POST /v1/select",
    "GET /v1/ensembles",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
)


@dataclass(frozen=True)
class ReplicaLimits:
    """The limits of one replica.

    Args:
        threads: requests answered at the same time; each uses all cores of the replica.
        waiting: largest number of requests in the replica, waiting or being answered; others get
            429.
        max_frame_px: largest number of pixels in one request.
        is_local: answer only requests that address this machine by a loopback name; this refuses
            web pages that make their own name point here (DNS rebinding).
        names_requests: put X-Request-Id on answers; Ray Serve does so itself.
    """

    threads: int = 2
    waiting: int = 32
    max_frame_px: int = 64_000_000
    is_local: bool = True
    names_requests: bool = True


def api(
    service: Service, limits: ReplicaLimits, meter: Meter, metrics_text: Callable[[], str]
) -> FastAPI:
    """Return the web application of one replica.

    Args:
        service: answers the requests.
        limits: the limits of the replica.
        meter: counts.
        metrics_text: returns the metrics of all replicas.
    """
    app = FastAPI(
        title="Manybeam prediction service", version=__version__, docs_url=None, redoc_url=None
    )
    handler = RequestHandler(service, limits, meter)
    app.add_exception_handler(HTTPException, partial(_unrouted, handler))

    @app.post("/v1/predict/{ref:path}", openapi_extra=_described(PREDICT_NAMES, wire.NPZ))
    async def predict(ref: str, request: Request) -> Response:
        """Find the atoms in one frame or a stack."""
        return await handler.answered("predict", request, partial(handler.predict, ref))

    @app.post("/v1/select", openapi_extra=_described(SELECT_NAMES, wire.JSON))
    async def select(request: Request) -> Response:
        """Rank the members that suit a frame."""
        return await handler.answered("select", request, handler.select)

    @app.get("/v1/ensembles")
    async def ensembles(request: Request) -> Response:
        """List the ensembles in memory."""
        return await handler.answered("ensembles", request, handler.ensembles)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Return the metrics of all replicas, for Prometheus."""

        async def gathered(_: Request) -> Response:
            return Response(await asyncio.to_thread(metrics_text), media_type=TEXT)

        return await handler.answered("metrics", request, gathered)

    _add_health(app, service)
    app.add_middleware(HeadAsGet)
    return app


def _described(names: Sequence[str], answer: str) -> dict[str, Any]:
    """Return the description of a path that takes a frame, for `/openapi.json`."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    forms = dict.fromkeys((answer, wire.JSON), binary) | {wire.JSON: {"schema": {"type": "object"}}}
    return {
        "parameters": parameters(names),
        "requestBody": {
            "required": True,
            "description": "One frame (y, x) or a stack (n, y, x): .npy, or raw values in C order "
            "with the headers X-Dtype and X-Shape.",
            "content": {wire.NPY: binary, wire.RAW: binary},
        },
        "responses": {
            "200": {"description": "the answer", "content": forms},
            "4XX": {
                "description": "what is wrong, why, and what to do",
                "content": {wire.PROBLEM: {"schema": {"type": "object"}}},
            },
        },
    }


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Return that the process answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Return the loaded ensembles; a replica takes requests after all are loaded."""
        return {"status": "ready", "ensembles": list(service.versions.refs)}


Work = Callable[[Request], Awaitable[Response]]


class RequestHandler:
    """Answers the requests of one replica in threads; every error becomes a problem."""

    def __init__(self, service: Service, limits: ReplicaLimits, meter: Meter) -> None:
        self.service, self.limits, self.meter = service, limits, meter
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="answer")
        self._inside = 0
        self._mean_s = 1.0

    async def answered(self, path: str, request: Request, work: Work) -> Response:
        """Return the answer of one request, or the problem."""
        begun = request.state.begun = time.monotonic()
        request_id = request.headers.get("x-request-id", "")[:128] or uuid.uuid4().hex
        try:
            self._check_host(request)
            response = await work(request)
        except ManybeamError as error:
            response = self.problem(error, request_id)
        except Exception:
            # No error may end the replica; it is logged, and counted below.
            logger.exception("request failed", extra={"path": path, "request_id": request_id})
            fault = WorkFailed("the service failed", "internal error", "report this request id")
            response = self.problem(fault, request_id)
        if self.limits.names_requests:
            response.headers["x-request-id"] = request_id
        self.meter.request(path, response.status_code, time.monotonic() - begun)
        return response

    async def predict(self, ref: str, request: Request) -> Response:
        """Answer one prediction."""
        query = read_query(request.query_params.multi_items(), PREDICT_NAMES)
        form = wire.answer_form(request.headers.get("accept", ""), query.want)
        body = await self._body(request)
        headers = dict(request.headers)
        return await self._on_thread(
            partial(self._predict, ref, body, headers, query, form), query, request
        )

    async def select(self, request: Request) -> Response:
        """Answer one selection; always JSON."""
        query = read_query(request.query_params.multi_items(), SELECT_NAMES)
        body = await self._body(request)
        headers = dict(request.headers)
        return await self._on_thread(partial(self._select, body, headers, query), query, request)

    async def ensembles(self, request: Request) -> Response:
        """List the ensembles in memory."""
        read_query(request.query_params.multi_items(), ())
        return _json({"ensembles": self.service.listing()})

    def problem(self, error: ManybeamError, request_id: str) -> Response:
        """Return an error as problem+json."""
        headers = {"retry-after": str(self._wait_s())} if isinstance(error, Busy) else {}
        return _json(problem(error, request_id), http_status(error), wire.PROBLEM, headers)

    def _predict(
        self,
        ref: str,
        body: bytes,
        headers: dict[str, str],
        query: RequestQuery,
        form: str,
        deadline: Deadline,
    ) -> Response:
        with deadline.stage("read"):
            frames = wire.read_frames(wire.read_body(body, headers), self.limits.max_frame_px)
        answer = self.service.predict(ref, frames, query, deadline)
        with deadline.stage("write"):
            write = wire.write_json if form == wire.JSON else wire.write_npz
            timings = {name: round(value * 1000, 2) for name, value in deadline.seconds.items()}
            content = write(answer.arrays, {**answer.meta, "timings_ms": timings})
        self._count(answer.meta, deadline, is_drifted=bool(answer.is_drifted))
        return Response(content, media_type=form)

    def _select(
        self, body: bytes, headers: dict[str, str], query: RequestQuery, deadline: Deadline
    ) -> Response:
        with deadline.stage("read"):
            frames = wire.read_frames(wire.read_body(body, headers), self.limits.max_frame_px)
        content, is_drifted = self.service.select(frames, query, deadline)
        timings = {name: round(value * 1000, 2) for name, value in deadline.seconds.items()}
        content["meta"]["timings_ms"] = timings
        self._count({**content["meta"], "frames": 0}, deadline, is_drifted=is_drifted)
        return _json(content)

    def _count(self, meta: dict[str, Any], deadline: Deadline, *, is_drifted: bool) -> None:
        self.meter.stages(deadline.seconds)
        self.meter.held(len(self.service.listing()))
        self.meter.answer(
            meta["ensemble"],
            frames=meta["frames"],
            members=len(meta["members"]),
            is_degraded=bool(meta["degraded"]),
            is_drifted=is_drifted,
        )

    async def _body(self, request: Request) -> bytes:
        """Return the body; a body that is too large is refused before it is read."""
        limit = wire.body_limit(self.limits.max_frame_px)
        announced = request.headers.get("content-length", "")
        wire.check_length(int(announced) if announced.isdecimal() else 0, limit)
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                wire.check_length(len(body), limit)
        except ClientDisconnect as error:
            raise UnreadableFile(
                "the caller disconnected before the body was complete", "", ""
            ) from error
        return bytes(body)

    async def _on_thread(
        self, work: Callable[[Deadline], Response], query: RequestQuery, request: Request
    ) -> Response:
        """Return the result of `work`; its place is free again when the thread has ended."""
        if self._inside >= self.limits.waiting:
            raise Busy(
                f"{self._inside} requests are waiting already",
                f"at most {self.limits.waiting} at once",
                f"send it again in {self._wait_s()} s",
            )
        due = None
        if query.deadline_ms is not None:
            due = request.state.begun + query.deadline_ms / 1000
        deadline = Deadline(due)
        self._enter()
        future = self._pool.submit(self._run, work, deadline)
        future.add_done_callback(partial(_then, asyncio.get_running_loop(), self._leave))
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(_seen)
        left_s = None if due is None else max(due - time.monotonic(), 0)
        done, _ = await asyncio.wait({answer}, timeout=left_s)
        if done:
            return answer.result()
        future.cancel()
        raise DeadlineExceeded(
            f"no answer within {query.deadline_ms} ms",
            "deadline_ms counts from the arrival of the request",
            "raise deadline_ms, want less, or send a smaller frame",
        )

    def _run(self, work: Callable[[Deadline], Response], deadline: Deadline) -> Response:
        begun = time.monotonic()
        try:
            return work(deadline)
        except MemoryError as error:
            raise TooLarge("not enough memory for this request", "", "send fewer frames") from error
        finally:
            self._mean_s += 0.1 * (time.monotonic() - begun - self._mean_s)

    def _enter(self) -> None:
        self._inside += 1
        self.meter.waiting(self._inside)

    def _leave(self) -> None:
        self._inside -= 1
        self.meter.waiting(self._inside)

    def _wait_s(self) -> int:
        """Return the time for Retry-After, in whole seconds, because clients read no fraction."""
        return min(max(math.ceil(self._inside * self._mean_s / self.limits.threads), 1), 60)

    def _check_host(self, request: Request) -> None:
        name = request.headers.get("host", "")
        host, _ = place_of(name) or ("", None)
        if self.limits.is_local and not is_loopback(host):
            raise NotAllowed(
                f"this service is for its own machine, not for {name[:80]!r}",
                "it has no log-in yet, so other machines must not reach it",
                "use 127.0.0.1, or expose it behind a proxy that checks the user",
            )


def _then(loop: asyncio.AbstractEventLoop, done: Callable[[], None], _: "Future[Response]") -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(done)


def _seen(answer: "asyncio.Future[Response]") -> None:
    """Read the result of a late answer; otherwise asyncio warns about it."""
    if not answer.cancelled():
        answer.exception()


async def _unrouted(handler: RequestHandler, request: Request, error: Exception) -> Response:
    """Answer an unknown path, or a wrong method."""
    path, there = request.scope["path"][:200], f"there are: {', '.join(PATHS)}"
    is_known = isinstance(error, HTTPException) and error.status_code == 405

    async def refuse(_: Request) -> Response:
        if is_known:
            raise WrongMethod(f"{request.method[:20]} is not for {path!r}", there)
        raise NotFound(f"no path {path!r}", there)

    response = await handler.answered("unknown", request, refuse)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


def _json(
    content: dict[str, Any],
    status: int = 200,
    media: str = wire.JSON,
    headers: dict[str, str] | None = None,
) -> Response:
    text = json.dumps(content, allow_nan=False)
    return Response(text, status, headers, media)

"""The URLs of the Open Inference Protocol v2: `/v2`.

An ensemble is a model, and `auto` is one too. Answers come from `predict.Service`, as those of
`/v1/predict` do, with the same places, deadlines and tokens.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Request, Response

from manybeam.errors import NotOffered
from manybeam.predictor.answer import AUTO
from manybeam.serve import wire
from manybeam.serve.edge.handler import Asked, RequestHandler
from manybeam.serve.openapi import CHECKED, OF_MODELS, as_schema, protocol_answers, takes_tensors
from manybeam.serve.predict import Service
from manybeam.serve.protocol.answer import write_answer
from manybeam.serve.protocol.description import SERVER, config, index, metadata, ref_of
from manybeam.serve.protocol.request import JSON_LENGTH, read_request
from manybeam.serve.query import PROTOCOL_NAMES

T = TypeVar("T")
Model = Annotated[str, Path(description="An ensemble such as graphene, or auto.")]
Version = Annotated[str, Path(description="Number of a version.")]
SHORT_JSON = 5  # digits of a length that the event loop itself reads, in about a millisecond
MOST_QUESTION = 2**16  # bytes of a body that says nothing
NOT_OFFERED = (
    "systemsharedmemory",
    "cudasharedmemory",
    "trace",
    "logging",
    "repository/models",
)
_FACTS = as_schema({"type": "object", "additionalProperties": True})
_ROWS = as_schema({"type": "array", "items": {"type": "object", "additionalProperties": True}})


class ModelRoutes:
    """Answers requests of the protocol.

    Args:
        handler: answers the requests of the replica.
        service: has the models.
    """

    def __init__(self, handler: RequestHandler, service: Service) -> None:
        self._handler, self._service = handler, service
        # One each: lists of JSON take much memory, and networks much time to load.
        self._reading, self._looking = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("json", "models")
        )

    def add_to(self, app: FastAPI, needs: Any) -> None:
        """Add the URLs to an application.

        Args:
            app: the application.
            needs: what its description says of tokens.
        """
        self._add_server(app, needs)
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            self._add_models(app, path, needs)
        for start in NOT_OFFERED:
            for path in (f"/v2/{start}", f"/v2/{start}/{{rest:path}}"):
                app.add_api_route(
                    path, self._not_offered, methods=["GET", "POST"], include_in_schema=False
                )

    def _add_server(self, app: FastAPI, needs: Any) -> None:
        open_: dict[str, Any] = {"response_class": Response, "responses": protocol_answers(_FACTS)}

        @app.get("/v2", **open_)
        async def server(request: Request) -> Response:
            """Return name, version and extensions of the service."""
            return await self._handler.answered("protocol", request, _said(SERVER))

        @app.get("/v2/health/live", **open_)
        async def live(request: Request) -> Response:
            """Return that the process answers."""
            return await self._handler.answered("protocol", request, _said({"live": True}))

        @app.get("/v2/health/ready", **open_)
        async def ready(request: Request) -> Response:
            """Return that the service answers; it does so after its ensembles are loaded."""
            return await self._handler.answered("protocol", request, _said({"ready": True}))

        told: dict[str, Any] = {
            "responses": protocol_answers(_ROWS, (*CHECKED, 413, 429)),
            "dependencies": needs,
        }

        @app.post("/v2/repository/index", response_class=Response, **told)
        async def repository(request: Request) -> Response:
            """List the models in memory."""

            async def listed(request: Request) -> Response:
                await self._handler.small_body(request, MOST_QUESTION)
                return _json(index(self._service.listing()))

            return await self._handler.answered("protocol", request, listed, "predict")

    def _add_models(self, app: FastAPI, path: str, needs: Any) -> None:
        told: dict[str, Any] = {
            "response_class": Response,
            "responses": protocol_answers(_FACTS, OF_MODELS),
            "dependencies": needs,
        }
        has_version = "{version}" in path
        for end, describe, summary in (
            ("", self._metadata, "Describe a model: its inputs, outputs and versions in memory."),
            ("/ready", _is_ready, "Return that a model answers; its version is loaded."),
            ("/config", config, "Return the configuration of a model, as Triton writes it."),
        ):
            endpoint = self._described(describe, has_version=has_version)
            app.add_api_route(path + end, endpoint, methods=["GET"], description=summary, **told)
        app.add_api_route(
            f"{path}/infer",
            _versioned(self._infer) if has_version else _unversioned(self._infer),
            methods=["POST"],
            description="Find the atoms in one frame or a batch.",
            dependencies=needs,
            **takes_tensors(PROTOCOL_NAMES, JSON_LENGTH),
        )

    def _described(self, describe: Callable[[str], dict[str, Any]], *, has_version: bool) -> Any:
        """Return what answers about a model that is there."""

        async def answer(model: str, request: Request, version: str) -> Response:
            async def described(_: Request) -> Response:
                await _in_thread(self._looking, self._check_there, ref_of(model, version))
                return _json(describe(model))

            return await self._handler.answered("protocol", request, described, "predict")

        return _versioned(answer) if has_version else _unversioned(answer)

    def _check_there(self, ref: str) -> None:
        """Raise an error if no version answers for a reference; it is loaded, as for a frame."""
        if ref == AUTO:
            self._service.versions.serving()
        else:
            self._service.versions.get(ref)

    def _metadata(self, model: str) -> dict[str, Any]:
        return metadata(model, self._service.listing())

    async def _infer(self, model: str, request: Request, version: str) -> Response:
        async def ask(body: bytearray) -> Asked:
            headers = dict(request.headers)
            read = partial(_asked, model, body, headers)
            is_short = len(headers.get(JSON_LENGTH.lower(), str(len(body)))) <= SHORT_JSON
            return read() if is_short else await _in_thread(self._reading, read)

        async def inferred(request: Request) -> Response:
            return await self._handler.predict_asked(ref_of(model, version), request, ask)

        return await self._handler.answered("infer", request, inferred, "predict")

    async def _not_offered(self, request: Request) -> Response:
        async def refuse(_: Request) -> Response:
            raise NotOffered(
                f"{request.scope['path'][:80]!r} is not offered",
                f"of the extensions there are {', '.join(SERVER['extensions'])}",
                "send tensors in the body; versions are loaded at their first use",
            )

        return await self._handler.answered("protocol", request, refuse)


async def _in_thread(pool: ThreadPoolExecutor, call: Callable[..., T], *parts: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, call, *parts)


def _asked(model: str, body: bytearray, headers: Mapping[str, str]) -> Asked:
    asked = read_request(body, headers)
    return Asked(asked.query(), asked.want, asked.frames, partial(write_answer, asked, model))


def _is_ready(model: str) -> dict[str, Any]:
    return {"name": model, "ready": True}


def _versioned(answer: Callable[..., Awaitable[Response]]) -> Any:
    async def endpoint(model: Model, version: Version, request: Request) -> Response:
        return await answer(model, request, version=version)

    return endpoint


def _unversioned(answer: Callable[..., Awaitable[Response]]) -> Any:
    async def endpoint(model: Model, request: Request) -> Response:
        return await answer(model, request, version="")

    return endpoint


def _said(content: Mapping[str, Any]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return _json(content)

    return answer


def _json(content: Any) -> Response:
    return Response(json.dumps(content, allow_nan=False), media_type=wire.JSON)

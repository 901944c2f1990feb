"""The URLs behind live pages: `/v1/instruments/{id}/live`, and `/v1/instruments/{id}/marks`."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response

from manybeam.errors import Busy, InvalidInput, MalformedRequest, Unreachable
from manybeam.serve.edge.access import Caller, other_instrument
from manybeam.serve.edge.handler import RequestHandler
from manybeam.serve.monitor.report import MonitorPort
from manybeam.serve.openapi import (
    LIVE,
    LIVE_NAMES,
    MARK,
    MARKED,
    OF_SESSIONS,
    answers,
    as_schema,
)
from manybeam.serve.query import is_label
from manybeam.serve.sessions.answering import SessionAnswers
from manybeam.serve.sessions.refresher import no_session

PATH, MARKS_PATH = "/v1/instruments/{instrument}/live", "/v1/instruments/{instrument}/marks"
Instrument = Annotated[str, Path(description="Id of the instrument, such as STEM-1.")]
THREADS = 32  # requests that wait for a frame
LONGEST_S = 5.0  # that a request may wait; a process that ends waits for it
MAX_BODY = 4096  # bytes
_EXAMPLE = 'send {"frame_id": "scan-0142"}'


class LiveRoutes:
    """Answers what live pages ask.

    Args:
        handler: answers the requests of the replica.
        sessions: the sessions.
    """

    def __init__(self, handler: RequestHandler, sessions: SessionAnswers) -> None:
        self._handler, self._sessions = handler, sessions
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="live")
        self._places = threading.BoundedSemaphore(THREADS)

    def add_to(self, app: FastAPI, needs: Any) -> None:
        """Add the URLs to an application.

        Args:
            app: the application.
            needs: what its documents say of tokens.
        """
        told: dict[str, Any] = {"response_class": Response, "dependencies": needs}
        of_live = answers(as_schema(LIVE), OF_SESSIONS)
        body = {"content": as_schema(MARK), "required": True}

        @app.get(PATH, responses=of_live, openapi_extra={"parameters": LIVE_NAMES}, **told)
        async def live(instrument: Instrument, request: Request) -> Response:
            """Return the newest frame of an instrument, when there is a newer one."""
            return await self._answered("live", request, instrument, self._live)

        @app.post(
            MARKS_PATH,
            responses=answers(as_schema(MARKED), OF_SESSIONS),
            openapi_extra={"requestBody": body},
            **told,
        )
        async def mark(instrument: Instrument, request: Request) -> Response:
            """Keep a frame that was shown, for adaptation."""
            return await self._answered("mark", request, instrument, self._mark)

    async def _answered(self, path: str, request: Request, instrument: str, work: Any) -> Response:
        async def checked(request: Request) -> Response:
            caller: Caller = request.state.caller
            if caller.instrument not in ("", instrument):
                raise other_instrument(instrument, caller.instrument)
            if not is_label(instrument):
                raise InvalidInput(f"{instrument[:80]!r} cannot be the id of an instrument")
            live = self._sessions.refresher.of(instrument)
            if live is None:
                raise no_session(instrument)
            return self._handler.as_json(await work(live.stored.id, request, caller))

        return await self._handler.answered(path, request, checked, "predict")

    async def _live(self, session_id: int, request: Request, _: Caller) -> dict[str, Any]:
        after, wait_s = _read(request)
        return await self._done(partial(self._monitor().live, session_id, after, wait_s))

    async def _mark(self, session_id: int, request: Request, caller: Caller) -> dict[str, Any]:
        frame_id = _frame_id(await self._handler.small_body(request, MAX_BODY))
        return await self._done(partial(self._monitor().keep, session_id, frame_id, caller.name))

    async def _done(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a call in a thread; those that wait are bounded."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{THREADS} live pages wait for this process", "", "ask again in a second")
        work = self._threads.submit(call)
        work.add_done_callback(lambda _: self._places.release())  # also if it never began
        return await asyncio.wrap_future(work)

    def _monitor(self) -> MonitorPort:
        if self._sessions.reporter is None:
            raise Unreachable("this service has no monitor", "", "manybeam serve up starts one")
        return self._sessions.reporter.monitor


def _read(request: Request) -> tuple[int, float]:
    """Return the number after which, and how long, a request waits."""
    pairs = dict(request.query_params.multi_items())
    after, wait_s = pairs.pop("after", "0"), pairs.pop("wait_s", "0")
    is_after = after.isascii() and after.isdigit() and len(after) < 18
    try:
        is_wait = 0 <= float(wait_s) <= LONGEST_S
    except ValueError:
        is_wait = False
    if pairs or not (is_after and is_wait):
        raise InvalidInput(
            f"the query {str(request.query_params)[:80]!r}",
            f"after: number of a frame; wait_s: 0 to {LONGEST_S:g}",
            "?after=0&wait_s=5",
        )
    return int(after), float(wait_s)


def _frame_id(body: bytes) -> str:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:  # the second, if it is nested too deep
        raise MalformedRequest("the body is no JSON", str(error), _EXAMPLE) from error
    if not isinstance(content, dict) or [*content] != ["frame_id"]:
        raise InvalidInput("the body is not one name of a frame", "", _EXAMPLE)
    name = content["frame_id"]
    if not isinstance(name, str) or not name or len(name) > 200:
        raise InvalidInput(f"frame_id: {str(name)[:80]!r} is no name of a frame", "", _EXAMPLE)
    return name

"""The URLs of sessions: `/v1/instruments/{id}/session`, and `/v1/select/{id}`."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response

from manybeam.errors import Busy, DatabaseUnreachable, InvalidInput
from manybeam.serve.edge.access import Caller, other_instrument
from manybeam.serve.edge.handler import RequestHandler
from manybeam.serve.openapi import (
    OF_SESSIONS,
    RANKING,
    SESSION,
    answers,
    as_schema,
    takes_frames,
)
from manybeam.serve.query import SELECT_FOR_NAMES, is_label
from manybeam.serve.sessions.answering import SessionAnswers
from manybeam.serve.sessions.content import session_content, stored_content
from manybeam.serve.sessions.refresher import LiveSession, no_session
from manybeam.serve.sessions.settings import MAX_BODY, SessionSettings, read_settings

PATH = "/v1/instruments/{instrument}/session"
Instrument = Annotated[str, Path(description="Id of the instrument, such as STEM-1.")]
FRAMES, MOST_FRAMES, EVENTS = 50, 1000, 50
THREADS = 4  # which wait for the database; those of answers do not
PLACES = 32  # requests that wait for them or are under way; further ones are refused
WAIT_S = 20.0  # for an answer; a pinned version may have to be loaded for it


class SessionRoutes:
    """Answers requests about sessions.

    Args:
        handler: answers the requests of the replica.
        sessions: the sessions.
        is_open: whether anybody may ask, so that a new instrument needs no token first.
    """

    def __init__(self, handler: RequestHandler, sessions: SessionAnswers, *, is_open: bool) -> None:
        self._handler, self._sessions, self._is_open = handler, sessions, is_open
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="session")
        self._places = threading.BoundedSemaphore(PLACES)

    def add_to(self, app: FastAPI, needs: Any) -> None:
        """Add the URLs to an application.

        Args:
            app: the application.
            needs: what its documents say of tokens.
        """
        settings = SessionSettings.model_json_schema()
        body = {"content": {"application/json": {"schema": settings}}}
        told: dict[str, Any] = {
            "response_class": Response,
            "responses": answers(as_schema(SESSION), OF_SESSIONS),
            "dependencies": needs,
        }

        @app.get(PATH, **told)
        async def look(instrument: Instrument, request: Request) -> Response:
            """Return the session of an instrument, with its last frames."""
            return await self._answered(request, instrument, self._get)

        @app.put(PATH, openapi_extra={"requestBody": body}, **told)
        async def put(instrument: Instrument, request: Request) -> Response:
            """Start a session, or change the one that goes on."""
            return await self._answered(request, instrument, self._put)

        @app.delete(PATH, **told)
        async def end(instrument: Instrument, request: Request) -> Response:
            """End the session of an instrument; its history stays in the database."""
            return await self._answered(request, instrument, self._end)

        of_select = takes_frames(SELECT_FOR_NAMES, as_schema(RANKING))

        @app.post("/v1/select/{instrument}", dependencies=needs, **of_select)
        async def select_for(instrument: Instrument, request: Request) -> Response:
            """Rank the members that suit a frame, and let them answer the instrument's session."""
            work = partial(self._handler.select_for, instrument)
            return await self._handler.answered("select", request, work, "select")

    async def _answered(self, request: Request, instrument: str, work: Any) -> Response:
        async def placed(request: Request) -> Response:
            caller: Caller = request.state.caller
            if caller.instrument not in ("", instrument):
                raise other_instrument(instrument, caller.instrument)
            if not is_label(instrument):
                raise InvalidInput(f"{instrument[:80]!r} cannot be the id of an instrument")
            body = await self._handler.small_body(request, MAX_BODY)
            call = partial(work, instrument, body, request, caller)
            content = await self._done(call)
            if request.method != "GET":
                await asyncio.sleep(self._sessions.refresher.settle_s)
            return self._handler.as_json(content)

        return await self._handler.answered("session", request, placed, "predict")

    async def _done(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a call in a thread; those that wait and their time are bounded."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{PLACES} requests about sessions wait", "", "send it again in a second")
        work = self._threads.submit(call)
        work.add_done_callback(lambda _: self._places.release())  # also if it never began
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), WAIT_S)
        except TimeoutError:
            raise DatabaseUnreachable(
                f"there was no answer about the session within {WAIT_S:g} s",
                "a change may be made all the same",
                "look at the session, then send the request again",
            ) from None

    def _get(self, instrument: str, _: bytes, request: Request, __: Caller) -> dict[str, Any]:
        count, live = _frames(request), self._live(instrument)
        history = self._sessions.refresher.history(live, count, EVENTS)
        return session_content(live, *history, self._sessions.watch_now(live))

    def _put(self, instrument: str, body: bytes, _: Request, caller: Caller) -> dict[str, Any]:
        live = self._sessions.put(
            instrument, read_settings(body), is_new_welcome=self._is_open, who=caller.name
        )
        return session_content(live, (), ())

    def _end(self, instrument: str, _: bytes, __: Request, caller: Caller) -> dict[str, Any]:
        return stored_content(self._sessions.refresher.end(instrument, who=caller.name))

    def _live(self, instrument: str) -> LiveSession:
        live = self._sessions.refresher.of(instrument)
        if live is None:
            raise no_session(instrument)
        return live


def _frames(request: Request) -> int:
    """Return how many frames of the history are asked for."""
    pairs = request.query_params.multi_items()
    if not pairs:
        return FRAMES
    ((name, text), *others) = pairs
    if name != "frames" or others or not (text.isascii() and text.isdigit() and len(text) < 5):
        raise InvalidInput(
            f"the query {str(request.query_params)[:80]!r}",
            f"frames: how many of the last frames, up to {MOST_FRAMES}",
            "?frames=100",
        )
    return min(int(text), MOST_FRAMES)

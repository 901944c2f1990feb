"""The URL of streams: `WS /v1/stream/{ID}`. What is refused before a stream begins is HTTP."""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastapi import FastAPI, Request, Response, WebSocket

from manybeam.errors import (
    Busy,
    InvalidInput,
    ManybeamError,
    NotFound,
    UpgradeRequired,
    http_status,
)
from manybeam.serve.edge.access import Caller, other_instrument
from manybeam.serve.edge.guard import checked_id
from manybeam.serve.edge.handler import RequestHandler
from manybeam.serve.edge.proxied import proxied_request
from manybeam.serve.metrics import Meter
from manybeam.serve.monitor.report import WatchState
from manybeam.serve.query import FRAME_NAMES, is_label, read_query
from manybeam.serve.sessions.answering import SessionAnswers
from manybeam.serve.sessions.refresher import LiveSession, no_session
from manybeam.serve.stream.stream import (
    FrameStream,
    StreamRequest,
    taken_over,
)

logger = logging.getLogger(__name__)

PATH = "/v1/stream/{instrument}"
STREAMS = 256  # of one replica
NUMBER_S = 2.0  # for the database to number a new stream; without it, streams are not told apart
ORDERS = ("all", "newest")


class StreamRoutes:
    """The streams of one replica.

    Args:
        handler: answers frames.
        sessions: the sessions.
        meter: counts.
    """

    def __init__(self, handler: RequestHandler, sessions: SessionAnswers, meter: Meter) -> None:
        self._handler, self._sessions, self._meter = handler, sessions, meter
        self._streams: dict[str, FrameStream] = {}
        self._last_number = 0
        self._numbering = ThreadPoolExecutor(2, thread_name_prefix="streams")

    def add_to(self, app: FastAPI) -> None:
        """Add the URL to an application."""

        @app.websocket(PATH)
        async def stream(socket: WebSocket, instrument: str) -> None:
            await self._opened(socket, instrument)

        @app.websocket("/{path:path}")
        async def nothing(socket: WebSocket) -> None:
            path = socket.scope["path"][:200]
            await self._refuse(socket, NotFound(f"no stream {path!r}", f"there is: {PATH}"), 0.0)

        @app.get(PATH, include_in_schema=False)
        async def no_stream(request: Request) -> Response:
            async def refuse(_: Request) -> Response:
                raise UpgradeRequired(
                    "this path is a WebSocket",
                    "the request asks for no upgrade, or a proxy in between took it away",
                    "open it as ws:// or wss://; or POST frames to /v1/predict/auto",
                )

            response = await self._handler.answered("stream", request, refuse)
            response.headers["upgrade"] = "websocket"
            return response

    def session(self, instrument: str) -> LiveSession | None:
        """Return the session of an instrument; None if it has none."""
        return self._sessions.refresher.of(instrument)

    def watch_state(self, session_id: int) -> WatchState | None:
        """Return what the drift watch said of a session last; None if that is not known here."""
        reporter = self._sessions.reporter
        return reporter.state(session_id) if reporter else None

    async def largest(self, live: LiveSession, number: int) -> int:
        """Return the largest number of the streams of a session, this one among them.

        Without the database it is this one; what is written too late does no harm, because the
        number is known before.
        """
        take = self._sessions.refresher.take_stream
        asking = asyncio.wrap_future(self._numbering.submit(take, live, number))
        try:
            return await asyncio.wait_for(asking, NUMBER_S)
        except (TimeoutError, ManybeamError) as error:
            instrument = live.stored.instrument
            logger.info("other replicas do not know of a stream of %s: %r", instrument, error)
            return number

    async def _opened(self, socket: WebSocket, instrument: str) -> None:
        """Serve a stream, or refuse it by an HTTP answer."""
        begun_s = time.monotonic()
        try:
            request = await self._checked(socket, instrument)
            number = await self._new_number(instrument)
        except ManybeamError as error:
            await self._refuse(socket, error, time.monotonic() - begun_s)
            return
        stream = FrameStream(socket, request, number, self, self._handler, self._meter)
        self._take(instrument, stream)
        self._meter.streams(len(self._streams))
        try:
            await stream.run()
        finally:
            if self._streams.get(instrument) is stream:
                del self._streams[instrument]
            self._meter.streams(len(self._streams))

    async def _refuse(self, socket: WebSocket, error: ManybeamError, seconds: float) -> None:
        """Answer by HTTP, because there is no stream."""
        self._meter.request("open-stream", http_status(error), seconds)
        request_id = checked_id(socket.headers)
        response = self._handler.problem(error, request_id)
        if self._handler.limits.names_requests:
            response.headers["x-request-id"] = request_id
        await socket.send_denial_response(response)

    async def _new_number(self, instrument: str) -> int:
        """Return the number of a new stream: the time, so that it needs no database.

        Raises:
            NotFound: the instrument has no session.
            Busy: too many streams are open here.
        """
        live = self.session(instrument)
        if live is None:
            raise no_session(instrument)
        number = max(time.time_ns() // 1_000_000, self._last_number + 1)
        while (largest := await self.largest(live, number)) > number:
            number = largest + 1  # the clock of another host is ahead
        if len(self._streams) >= STREAMS and instrument not in self._streams:
            raise Busy(f"{STREAMS} streams are open here", "that is the limit", "open it later")
        self._last_number = max(number, self._last_number)
        return number

    def _take(self, instrument: str, stream: FrameStream) -> None:
        """Let the newest stream of an instrument be its only one; that may be another one."""
        other = self._streams.get(instrument)
        if other is not None and other.number > stream.number:
            stream.end(taken_over(instrument))
            return
        if other is not None:
            other.end(taken_over(instrument))
        self._streams[instrument] = stream

    async def _checked(self, socket: WebSocket, instrument: str) -> StreamRequest:
        """Return what a client asks for.

        Raises:
            ManybeamError: it gets no stream.
        """
        ask = partial(self._caller, socket.headers, instrument)
        await ask()
        if not is_label(instrument):
            raise InvalidInput(f"{instrument[:80]!r} cannot be the id of an instrument")
        pairs = dict(socket.query_params.multi_items())
        order = pairs.pop("order", "")
        if order not in ("", *ORDERS):
            raise InvalidInput(f"order={order[:40]!r}", f"allowed: {', '.join(ORDERS)}", "")
        read_query(list(pairs.items()), FRAME_NAMES)
        marking_of = proxied_request(socket.scope).marking_of
        return StreamRequest(instrument, pairs, order, ask, marking_of)

    async def _caller(self, headers: Mapping[str, str], instrument: str) -> Caller:
        caller = await self._handler.caller(headers, "predict")
        if caller.instrument not in ("", instrument):
            raise other_instrument(instrument, caller.instrument)
        return caller

"""The URL of streams: `WS /v1/stream/{ID}`. What is refused before a stream begins is HTTP."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastapi import FastAPI, Request, Response, WebSocket

from manybeam.errors import (
    Busy,
    InvalidInput,
    ManybeamError,
    UpgradeRequired,
    http_status,
)
from manybeam.serve.edge.access import Caller, other_instrument
from manybeam.serve.edge.guard import checked_id
from manybeam.serve.edge.handler import RequestHandler
from manybeam.serve.edge.proxied import proxied_request
from manybeam.serve.metrics import Meter
from manybeam.serve.query import PREDICT_NAMES, is_label, read_query
from manybeam.serve.sessions.answering import SessionAnswers
from manybeam.serve.sessions.refresher import LiveSession, no_session
from manybeam.serve.stream.stream import (
    FrameStream,
    StreamNumber,
    StreamRequest,
    taken_over,
)

logger = logging.getLogger(__name__)

PATH = "/v1/stream/{instrument}"
STREAMS = 256  # of one replica
NUMBER_S = 2.0  # for the database to number a new stream; without it, streams are not told apart
ORDERS = ("all", "newest")
_OF_FRAMES = ("instrument", "frame_id")  # of the path and of each head


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
        self._numbering = ThreadPoolExecutor(2, thread_name_prefix="streams")

    def add_to(self, app: FastAPI) -> None:
        """Add the URL to an application."""

        @app.websocket(PATH)
        async def stream(socket: WebSocket, instrument: str) -> None:
            await self._opened(socket, instrument)

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

    async def new_number(self, instrument: str) -> StreamNumber:
        """Return the number of a new stream, which ends the older ones.

        Without the database it is that of the stream before, and both go on.

        Raises:
            NotFound: the instrument has no session.
        """
        live = self.session(instrument)
        if live is None:
            raise no_session(instrument)
        number = self._sessions.refresher.number_stream
        asking = asyncio.wrap_future(self._numbering.submit(number, live))
        try:
            stored = await asyncio.wait_for(asking, NUMBER_S)
        except (TimeoutError, ManybeamError) as error:
            logger.info("a stream of %s has no number of its own: %r", instrument, error)
            stored = live.stored
        return StreamNumber(stored.id, stored.stream)

    async def _opened(self, socket: WebSocket, instrument: str) -> None:
        """Serve a stream, or refuse it by an HTTP answer."""
        try:
            request = await self._checked(socket, instrument)
            number = await self.new_number(instrument)
        except ManybeamError as error:
            self._meter.request("open-stream", http_status(error), 0.0)
            response = self._handler.problem(error, checked_id(socket.headers))
            await socket.send_denial_response(response)
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

    def _take(self, instrument: str, stream: FrameStream) -> None:
        """Let the newest stream of an instrument be its only one; that may be another one."""
        other = self._streams.get(instrument)
        if other is not None and other.number.number > stream.number.number:
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
        names = [name for name in PREDICT_NAMES if name not in _OF_FRAMES]
        read_query(list(pairs.items()), names)
        if self.session(instrument) is None:
            raise no_session(instrument)
        if len(self._streams) >= STREAMS and instrument not in self._streams:
            raise Busy(f"{STREAMS} streams are open here", "that is the limit", "open it later")
        marking_of = proxied_request(socket.scope).marking_of
        return StreamRequest(instrument, pairs, order, ask, marking_of)

    async def _caller(self, headers: Mapping[str, str], instrument: str) -> Caller:
        caller = await self._handler.caller(headers, "predict")
        if caller.instrument not in ("", instrument):
            raise other_instrument(instrument, caller.instrument)
        return caller

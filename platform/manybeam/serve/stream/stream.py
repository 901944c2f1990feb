"""One stream: the frames of an instrument in, their answers out in order, until one side ends it.

Three tasks share the connection. One always reads, so a client that has gone is noticed at once.
One sends the answers in the order of the frames. One looks after the session, and sends beats.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from manybeam import __version__
from manybeam.errors import (
    Busy,
    CallerGone,
    Conflict,
    MalformedRequest,
    ManybeamError,
    NoCapacity,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    TooSlow,
    WorkFailed,
    problem,
)
from manybeam.serve.edge.access import Caller
from manybeam.serve.edge.handler import RequestHandler
from manybeam.serve.metrics import Meter
from manybeam.serve.monitor.report import WatchState
from manybeam.serve.sessions.refresher import LiveSession, no_session
from manybeam.serve.stream import messages
from manybeam.serve.stream.events import StreamEvents
from manybeam.serve.stream.frame import StreamedFrame

logger = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks at the session
SEND_S = 30.0  # for one message; who takes longer does not read
CLOSE_S = 2.0  # for the last message, which tells why the stream ends
UNSENT = 4 * messages.IN_FLIGHT  # answers that may wait for a client that does not read

_CODES: Mapping[type[ManybeamError], int] = {
    MalformedRequest: messages.MALFORMED,
    NotAuthenticated: messages.REFUSED,
    NotAllowed: messages.REFUSED,
    NotFound: messages.NO_SESSION,
    TooSlow: messages.TOO_SLOW,
    Conflict: messages.TAKEN_OVER,
}


@dataclass(frozen=True)
class StreamRequest:
    """What a client asked for when it opened a stream.

    Attributes:
        instrument: whose frames they are.
        query: of all frames.
        order: `all` or `newest`; "" for that of the session.
        caller: returns who sends them; raises what `TokenCache.caller` does.
        marking_of: marks the work for a frame by a name.
    """

    instrument: str
    query: Mapping[str, str]
    order: str
    caller: Callable[[], Awaitable[Caller]]
    marking_of: Callable[[str], AbstractContextManager[None]]


class StreamSessions(Protocol):
    """What a stream asks of the sessions (`stream.routes.StreamRoutes`)."""

    def session(self, instrument: str) -> LiveSession | None:
        """Return the session of an instrument; None if it has none."""

    def watch_state(self, session_id: int) -> WatchState | None:
        """Return what the drift watch said of a session last; None if that is not known."""

    async def largest(self, live: LiveSession, number: int) -> int:
        """Return the largest number of the streams of a session, this one among them."""


@dataclass(frozen=True, eq=False)
class _Unsent:
    """A frame whose answer was not sent yet."""

    frame: StreamedFrame
    answer: "asyncio.Task[Response]"


class FrameStream:
    """One stream of an instrument.

    Args:
        socket: the connection, not accepted yet.
        request: what its client asked for.
        number: of the stream; newer ones of the instrument have larger ones.
        sessions: the sessions of the replica.
        handler: answers frames.
        meter: counts.
    """

    def __init__(
        self,
        socket: WebSocket,
        request: StreamRequest,
        number: int,
        sessions: StreamSessions,
        handler: RequestHandler,
        meter: Meter,
    ) -> None:
        self._socket, self._request, self.number = socket, request, number
        self._sessions, self._handler, self._meter = sessions, handler, meter
        self._answers: set[asyncio.Task[Response]] = set()  # under way
        self._unsent: asyncio.Queue[_Unsent] = asyncio.Queue()
        self._unanswered = 0  # frames of which the answer was not sent, or not all of it
        self._session_id = 0
        self._events, self._sending = StreamEvents(), asyncio.Lock()
        self._told_s = time.monotonic()  # when the client was sent something last
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, why: ManybeamError) -> None:
        """End the stream from outside; its client is told why."""
        if not self._end.done():
            self._end.set_exception(why)

    async def run(self) -> None:
        """Serve the stream until one side ends it."""
        live = self._sessions.session(self._request.instrument)
        self._session_id = live.stored.id if live else 0
        await self._socket.accept()
        why: BaseException = NoCapacity("this process of the service ends", "", "open it again")
        tasks = [asyncio.ensure_future(one) for one in (self._read(), self._send(), self._look())]
        try:
            ended, _ = await asyncio.wait({*tasks, self._end}, return_when=asyncio.FIRST_COMPLETED)
            why = next(filter(None, (one.exception() for one in ended)))
        finally:
            await _end_all([*tasks, self._end, *self._answers])
            await self._close(why)

    # -- the three tasks --------------------------------------------------------------------------
    async def _read(self) -> None:
        frame: StreamedFrame | None = None
        while True:
            message = await self._received(frame)
            text = message.get("text")
            if text is None and not message["bytes"]:
                continue
            if text is None:
                if frame is None:
                    raise MalformedRequest("a part of a body without a head", "", _ORDER)
                frame.add(message["bytes"])
            elif frame is None:
                frame = await self._begun(text)
            else:
                raise MalformedRequest(
                    f"a head before the body of frame {frame.frame_id!r} was complete", "", _ORDER
                )
            if frame is not None and frame.is_whole:
                frame = None

    async def _send(self) -> None:
        await self._tell(messages.welcome(__version__, self._session_id))
        while True:
            unsent = await self._unsent.get()
            response = await unsent.answer
            if response.status_code == 200:  # else nobody knows when it was answered
                await self._tell_events(unsent.frame)
            body = memoryview(response.body)
            headers, frame_id = response.headers, unsent.frame.frame_id
            head = messages.answer_head(frame_id, response.status_code, headers, len(body))
            await self._tell(head, body)
            self._unanswered -= 1
            del unsent, response, body  # else a silent stream would keep its last answer

    async def _tell_events(self, frame: StreamedFrame) -> None:
        """Tell what changed with a frame."""
        for event in self._events.after(frame.meta) if frame.meta else ():
            self._meter.stream_event(event["kind"])
            await self._tell(event)
        await self._tell_drift()

    async def _tell_drift(self) -> None:
        """Tell what the drift watch found."""
        for event in self._events.watched(self._sessions.watch_state(self._session_id)):
            self._meter.stream_event(event["kind"])
            await self._tell(event)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            live = self._sessions.session(self._request.instrument)
            if live is None:
                raise no_session(self._request.instrument)
            largest = live.stored.stream
            if live.stored.id != self._session_id:  # it ended, and another one began
                self._session_id = live.stored.id
                largest = await self._sessions.largest(live, self.number)
            if largest > self.number:
                raise taken_over(self._request.instrument)
            await self._request.caller()
            if not self._sending.locked():
                await self._tell_drift()
            # A large answer that is being sent says enough, and its end may be far.
            if not self._sending.locked() and time.monotonic() > self._told_s + messages.BEAT_S:
                await self._tell(messages.beat())

    # -- reading ----------------------------------------------------------------------------------
    async def _received(self, frame: StreamedFrame | None) -> Mapping[str, Any]:
        """Return the next message; a frame of which parts are missing must go on."""
        due_s = None if frame is None else frame.part_due_s - time.monotonic()
        try:
            async with asyncio.timeout(due_s):
                message = await self._socket.receive()
        except TimeoutError as error:
            assert frame is not None  # noqa: S101 - nothing else is late
            raise frame.is_late() from error
        if message["type"] == "websocket.disconnect":
            raise CallerGone("the client closed the stream")
        return message

    async def _begun(self, text: str) -> StreamedFrame | None:
        """Let a frame be answered, of which the head came; None if it was a beat."""
        head = messages.read_head(text)
        if head is None:
            return None
        if self._unsent.qsize() >= UNSENT:
            raise TooSlow(
                f"{UNSENT} answers wait to be read", "", f"send {messages.IN_FLIGHT} frames at most"
            )
        asked = self._request
        own = {"instrument": asked.instrument, "frame_id": head.frame_id}
        query = {**asked.query, **head.query, **own}
        name = f"{self._session_id}/{asked.instrument}/{head.frame_id}"
        mark = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        caller = await asked.caller()
        frame = StreamedFrame(head, query, caller, lambda: asked.marking_of(mark))
        is_above = self._unanswered >= messages.IN_FLIGHT
        self._unanswered += 1
        answer = asyncio.ensure_future(
            self._above(frame) if is_above else self._handler.stream_frame(frame, asked.order)
        )
        self._answers.add(answer)
        answer.add_done_callback(lambda _: self._answered(frame, answer))
        self._unsent.put_nowait(_Unsent(frame, answer))
        return frame

    def _answered(self, frame: StreamedFrame, answer: "asyncio.Task[Response]") -> None:
        frame.forget()
        self._answers.discard(answer)

    async def _above(self, frame: StreamedFrame) -> Response:
        """Return the answer to a frame that a client sent although too many have none yet."""
        most = messages.IN_FLIGHT
        refusal = Busy(f"{most} frames of the stream have no answer yet", "that is the limit", "")
        return self._handler.problem(refusal, frame.request_id)

    # -- sending ----------------------------------------------------------------------------------
    async def _tell(self, head: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
        """Send a message and its parts; beats and events do not come between them."""
        async with self._sending:
            try:
                async with asyncio.timeout(SEND_S) as timer:
                    await self._socket.send_text(messages.as_text(head))
                    for part in messages.parts(body):
                        timer.reschedule(asyncio.get_running_loop().time() + SEND_S)
                        await self._socket.send_bytes(part)
            except TimeoutError as error:
                raise TooSlow(
                    f"the client took nothing for {SEND_S:g} s", "", "read the answers"
                ) from error
            except (WebSocketDisconnect, OSError, RuntimeError) as error:
                raise CallerGone("the client closed the stream") from error
            self._told_s = time.monotonic()

    async def _close(self, why: BaseException) -> None:
        """Tell the client why the stream ends, and end it."""
        if isinstance(why, CallerGone):
            return
        if not isinstance(why, ManybeamError):
            logger.error("a stream failed", exc_info=why)
            why = WorkFailed("the stream failed", "internal error", "open it again")
        code = next(
            (code for kind, code in _CODES.items() if isinstance(why, kind)), messages.RESTARTING
        )
        told = problem(why, "")
        with suppress(TimeoutError, WebSocketDisconnect, OSError, RuntimeError):  # it has gone
            async with asyncio.timeout(CLOSE_S):
                await self._socket.send_text(messages.as_text(messages.closing(code, told)))
                await self._socket.close(code, messages.reason(str(why)))


_ORDER = "send a head, then all parts of its body, then the next head"


def taken_over(instrument: str) -> Conflict:
    """Return the error of a stream in whose place another one came."""
    return Conflict(
        f"another client opened a stream for {instrument!r}",
        "there is one for each instrument, and the newest one counts",
        "give each program an instrument of its own: manybeam instrument add",
    )


async def _end_all(futures: Sequence["asyncio.Future[Any]"]) -> None:
    """Cancel what goes on, and wait until it has ended; its errors are of no interest."""
    for one in futures:
        one.cancel()
    await asyncio.gather(*futures, return_exceptions=True)

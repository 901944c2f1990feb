"""Answers requests and the frames of streams: places, bodies, turns, threads, problems.

The event loop only moves bytes. Reading, predicting and writing run in threads, so a large frame
does not delay a health check. A request is checked in this order: its head (`guard`), its token
(`access`), its query; then it takes a place (`fair_queue`), and only then its body is read
(`admission`). Then it waits for its turn.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from manybeam.errors import (
    Busy,
    CallerGone,
    DatabaseUnreachable,
    DeadlineExceeded,
    ManybeamError,
    NotAuthenticated,
    TooLarge,
    WorkFailed,
    http_status,
)
from manybeam.predictor.answer import AUTO
from manybeam.predictor.deadline import Deadline
from manybeam.serve import wire
from manybeam.serve.edge.access import ANYBODY, READ_S, Caller, TokenCache, other_instrument
from manybeam.serve.edge.admission import (
    Incoming,
    IncomingRequest,
    ReadRequest,
    announced_length,
    drain,
    has_body,
    read_body,
)
from manybeam.serve.edge.fair_queue import FairQueue, Place
from manybeam.serve.edge.files import FileBodies
from manybeam.serve.edge.guard import checked_id
from manybeam.serve.edge.proxied import proxied_request
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service, WireAnswer
from manybeam.serve.query import (
    MAX_DEADLINE_MS,
    PREDICT_NAMES,
    PROTOCOL_NAMES,
    SELECT_FOR_NAMES,
    SELECT_NAMES,
    RequestQuery,
    read_query,
)
from manybeam.serve.sessions.refresher import no_session
from manybeam.serve.stream.frame import StreamedFrame

logger = logging.getLogger(__name__)

LATE = (408, 499, 504)  # the caller has waited long enough, or is gone


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


Work = Callable[[Request], Awaitable[Response]]
Selecting = Callable[[wire.Frames, RequestQuery, Deadline], tuple[dict[str, Any], bool]]
FrameWork = Callable[[wire.Frames, RequestQuery, Deadline], Response]
Writer = Callable[[WireAnswer, Mapping[str, Any]], Response]


class RequestHandler:
    """Answers the requests of one replica in threads; every error becomes a problem."""

    def __init__(
        self, service: Service, limits: ReplicaLimits, meter: Meter, tokens: TokenCache | None
    ) -> None:
        self.service, self.limits, self.meter, self._tokens = service, limits, meter, tokens
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="answer")
        self._files = FileBodies(limits.max_frame_px, meter)
        body_limit = wire.body_limit(limits.max_frame_px)
        self._queue = FairQueue(limits.waiting, limits.threads, body_limit, meter.waiting)

    async def answered(
        self, path: str, request: Request, work: Work, scope: str | None = None
    ) -> Response:
        """Return the answer of one request, or the problem.

        Args:
            path: its name in the metrics.
            request: the request.
            work: makes the answer.
            scope: what the caller's token must be for; None if everybody may ask.
        """
        waited_s = proxied_request(request.scope).waited_s
        begun_s = request.state.begun_s = time.monotonic() - waited_s
        request.state.is_read = not has_body(request)
        request_id = checked_id(request.headers)
        request.state.caller = ANYBODY

        async def named() -> Response:
            if scope is not None:
                request.state.caller = await self.caller(request.headers, scope)
            return await work(request)

        response = await self._outcome(
            path, request_id, named(), lambda: request.state.caller.name, request.scope["path"]
        )
        if response.status_code >= 400 and not request.state.is_read:
            if response.status_code not in LATE:
                await drain(request, self._queue.byte_limit)
            response.headers["connection"] = "close"
        if self.limits.names_requests:
            response.headers["x-request-id"] = request_id
        self.meter.request(path, response.status_code, time.monotonic() - begun_s)
        return response

    async def _outcome(
        self,
        path: str,
        request_id: str,
        work: Awaitable[Response],
        caller: Callable[[], str],
        url: str = "",
    ) -> Response:
        """Return the answer that work gives, or the problem in the form of the URL."""
        try:
            return await work
        except ManybeamError as error:
            return self.problem(error, request_id, url)
        except Exception:
            # No error may end the replica; it is logged, and its 500 is counted.
            facts = {"path": path, "request_id": request_id, "caller": caller()}
            logger.exception("request failed", extra=facts)
            fault = WorkFailed("the service failed", "internal error", "report this request id")
            return self.problem(fault, request_id, url)

    async def predict(self, ref: str, request: Request) -> Response:
        """Answer one prediction."""
        query = self._query(request, PREDICT_NAMES)
        form = wire.answer_form(request.headers.get("accept", ""), query.want)
        stream = self.service.newest_stream(ref, query)
        work = partial(self._predict, ref, partial(_written, form), _unheard)
        return await self._placed(IncomingRequest(request), query, work, stream)

    async def stream_frame(self, frame: StreamedFrame, order: str) -> Response:
        """Return the answer to a frame of a stream, or the problem; as `predict` does.

        Args:
            frame: the frame, whose body may still be on its way.
            order: as in the settings of a session; "" for that of the session.
        """

        async def work() -> Response:
            query = frame.caller.query(read_query(list(frame.query.items()), PREDICT_NAMES))
            if self.service.sessions.refresher.of(query.instrument) is None:
                raise no_session(query.instrument)

            def hear(meta: Mapping[str, Any]) -> None:
                if "session" not in meta and not query.members:  # it ended meanwhile
                    raise no_session(query.instrument)
                frame.hear(meta)

            form = wire.answer_form(frame.headers.get("accept", ""), query.want)
            newest = self.service.newest_stream(AUTO, query, order)
            answer = partial(self._predict, AUTO, partial(_written, form), hear)
            return await self._placed(frame, query, answer, newest)

        response = await self._outcome(
            "stream", frame.request_id, work(), lambda: frame.caller.name
        )
        self.meter.request("stream", response.status_code, time.monotonic() - frame.begun_s)
        return response

    async def predict_asked(
        self, ref: str, request: Request, ask: Callable[[bytearray], Awaitable["Asked"]]
    ) -> Response:
        """Answer one prediction of which the body says more than the frames.

        It has a place while the body is read. When it is known what it asks, it takes that of its
        instrument, as if its query had said so.
        """
        caller: Caller = request.state.caller
        pairs = request.query_params.multi_items()
        place = self._queue.take(caller.share(caller.query(read_query(pairs, PROTOCOL_NAMES))))
        try:
            body = await read_body(request, self._queue, place)
            request.state.is_read = True
            asked = await ask(body)
        finally:
            self._queue.leave(place)
        query = caller.query(read_query([*pairs, *asked.pairs], PROTOCOL_NAMES))
        query = replace(query, want=asked.want)
        work = partial(self._predict, ref, asked.write, _unheard)
        stream = self.service.newest_stream(ref, query)
        frames = partial(asked.frames, self.limits.max_frame_px)
        return await self._placed(ReadRequest(request, body), query, work, stream, frames)

    async def select(self, request: Request) -> Response:
        """Answer one selection; always JSON."""
        work = partial(self._selected, self.service.select)
        query = self._query(request, SELECT_NAMES)
        return await self._placed(IncomingRequest(request), query, work)

    async def select_for(self, instrument: str, request: Request) -> Response:
        """Answer one selection, which switches the session of an instrument; always JSON."""
        query = self._query(request, SELECT_FOR_NAMES)
        if query.instrument not in ("", instrument):
            raise other_instrument(instrument, query.instrument)
        work = partial(self.service.select_for, instrument)
        return await self._placed(IncomingRequest(request), query, partial(self._selected, work))

    async def ensembles(self, request: Request) -> Response:
        """List the ensembles in memory."""
        read_query(request.query_params.multi_items(), ())
        return _json({"ensembles": self.service.listing()})

    def problem(self, error: ManybeamError, request_id: str, path: str = "") -> Response:
        """Return an error as problem+json, or as the protocol of its URL has it."""
        headers = {}
        if isinstance(error, Busy):
            headers["retry-after"] = str(error.retry_s)
            self.meter.refused(error.reason)
        if isinstance(error, DatabaseUnreachable):
            headers["retry-after"] = f"{READ_S:.0f}"  # by then it was asked again
        if isinstance(error, NotAuthenticated):
            headers["www-authenticate"] = "Bearer"
        content, media = wire.refusal(path, error, request_id)
        return _json(content, http_status(error), media, headers)

    async def small_body(self, request: Request, limit: int) -> bytes:
        """Return the body of a request that has a place only while it is read."""
        wire.check_length(announced_length(request) or 0, limit)
        place = self._queue.take(request.state.caller.share(RequestQuery()))
        try:
            body = await read_body(request, self._queue, place)
        finally:
            self._queue.leave(place)
        request.state.is_read = True
        wire.check_length(len(body), limit)
        return bytes(body)

    def is_quiet(self) -> bool:
        """Return whether no request is here; any thread may ask."""
        return self._queue.inside == 0

    def as_json(self, content: dict[str, Any]) -> Response:
        """Return JSON data as an answer."""
        return _json(content)

    async def caller(self, headers: Mapping[str, str], scope: str) -> Caller:
        """Return who sends a request with these headers.

        Raises:
            NotAuthenticated: nobody who is known.
            NotAllowed: the token is for other scopes.
            DatabaseUnreachable: the token cannot be checked now.
        """
        if self._tokens is None:
            return ANYBODY
        return await self._tokens.caller(headers, scope)

    def _query(self, request: Request, names: Sequence[str]) -> RequestQuery:
        caller: Caller = request.state.caller
        query = caller.query(read_query(request.query_params.multi_items(), names))
        wire.file_name(request.headers, query.filename)  # a bad one is told before the body is sent
        return query

    def _predict(
        self,
        ref: str,
        write: Writer,
        hear: Callable[[Mapping[str, Any]], None],
        frames: wire.Frames,
        query: RequestQuery,
        deadline: Deadline,
    ) -> Response:
        answer = self.service.predict(ref, frames, query, deadline)
        with deadline.stage("write"):
            timings = {name: round(value * 1000, 2) for name, value in deadline.seconds.items()}
            response = write(answer, {**answer.meta, "timings_ms": timings})
        self._count(answer.meta, deadline, is_drifted=bool(answer.is_drifted))
        hear(answer.meta)
        return response

    def _selected(
        self, select: Selecting, frames: wire.Frames, query: RequestQuery, deadline: Deadline
    ) -> Response:
        content, is_drifted = select(frames, query, deadline)
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

    async def _placed(
        self,
        incoming: Incoming,
        query: RequestQuery,
        work: FrameWork,
        stream: str = "",
        frames: Callable[[], wire.Frames] | None = None,
    ) -> Response:
        """Return the result of `work` in a thread, for a request that gets a place.

        `frames` makes them of the body in the thread, if its headers do not say how.

        The place is free again when the request ends, and the bytes of its body when the thread
        ends, which may go on after the deadline or without a caller.
        """
        due_s = incoming.begun_s + _within_ms(query) / 1000
        deadline = Deadline(due_s, begun_s=incoming.begun_s)
        place = self._queue.take(incoming.caller.share(query), stream)
        try:
            body = await incoming.read(self._queue, place, due_s)
            head, marking = dict(incoming.headers), incoming.marking
            arrived = Arrived(body, head, query, deadline, time.monotonic(), marking, frames)
            answer = self._in_turn(place, partial(self._run, work, arrived))
            return await _answer(answer, incoming, query, due_s)
        finally:
            deadline.is_cancelled = True  # work that goes on ends before its next network or tile
            self._queue.leave(place)

    def _in_turn(self, place: Place, call: Callable[[], Response]) -> "asyncio.Future[Response]":
        """Return the coming result of a call that a thread makes when it is the place's turn."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Response] = loop.create_future()
        answer.add_done_callback(_seen)

        def ended(done: Future[Response]) -> None:
            self._queue.ended(place)
            if answer.done():
                return
            if error := done.exception():
                answer.set_exception(error)
            else:
                answer.set_result(done.result())

        def start() -> None:
            self._pool.submit(call).add_done_callback(partial(_then, loop, ended))

        place.refused = answer.set_exception
        self._queue.line_up(place, start)
        return answer

    def _run(self, work: FrameWork, arrived: "Arrived") -> Response:
        deadline = arrived.deadline
        deadline.seconds["wait"] = time.monotonic() - arrived.at_s
        try:
            with arrived.marking():
                with deadline.stage("read"):
                    frames = arrived.frames() if arrived.frames else self._frames(arrived)
                return work(frames, arrived.query, deadline)
        except MemoryError as error:
            raise TooLarge("not enough memory for this request", "", "send fewer frames") from error

    def _frames(self, arrived: "Arrived") -> wire.Frames:
        if name := wire.file_name(arrived.headers, arrived.query.filename):
            return self._files.frames(name, arrived.body, arrived.deadline)
        array = wire.read_body(arrived.body, arrived.headers)
        return wire.read_frames(array, self.limits.max_frame_px)


@dataclass(frozen=True)
class Asked:
    """What a body asks that says more than the frames.

    Attributes:
        pairs: name and value of its query, besides that of the URL.
        want: what the answer must hold.
        frames: returns its frames, in a thread; takes the largest number of pixels.
        write: makes the response of an answer and its facts.
    """

    pairs: list[tuple[str, str]]
    want: tuple[str, ...]
    frames: Callable[[int], wire.Frames]
    write: Callable[[WireAnswer, Mapping[str, Any]], Response]


@dataclass(frozen=True)
class Arrived:
    """A request whose body was read at `at_s`, in monotonic seconds; `marking` marks its work.

    `frames` returns its frames, if its headers do not say what the body is.
    """

    body: bytearray
    headers: dict[str, str]
    query: RequestQuery
    deadline: Deadline
    at_s: float
    marking: Callable[[], AbstractContextManager[None]]
    frames: Callable[[], wire.Frames] | None = None


def _written(form: str, answer: WireAnswer, meta: Mapping[str, Any]) -> Response:
    """Return an answer as npz or JSON."""
    write = wire.write_json if form == wire.JSON else wire.write_npz
    return Response(write(answer.arrays, meta), media_type=form)


async def _answer(
    answer: "asyncio.Future[Response]", incoming: Incoming, query: RequestQuery, due_s: float
) -> Response:
    """Return the result of work in a thread, unless the deadline passes or the caller leaves."""
    left_s = max(due_s - time.monotonic(), 0)
    leaving = asyncio.ensure_future(incoming.gone())
    first: set[asyncio.Future[Any]] = {answer, leaving}
    try:
        await asyncio.wait(first, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if leaving.done():
            raise CallerGone("the caller disconnected before its answer")
    finally:
        leaving.cancel()
    raise DeadlineExceeded(
        f"no answer within {_within_ms(query)} ms",
        "deadline_ms counts from the arrival of the request",
        "raise deadline_ms, want less, or send a smaller frame",
    )


def _unheard(_: Mapping[str, Any]) -> None:
    """Hear the facts of an answer about which nobody wants to know more than it says."""


def _within_ms(query: RequestQuery) -> int:
    """Return how long an answer may take, so that no request keeps a thread for ever."""
    return query.deadline_ms or MAX_DEADLINE_MS


def _then(
    loop: asyncio.AbstractEventLoop,
    ended: Callable[["Future[Response]"], None],
    done: "Future[Response]",
) -> None:
    """Go on in the loop, because the work has ended in a thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(ended, done)


def _seen(answer: "asyncio.Future[Response]") -> None:
    """Read the result of a late answer; otherwise asyncio warns about it."""
    if not answer.cancelled():
        answer.exception()


def _json(
    content: dict[str, Any],
    status: int = 200,
    media: str = wire.JSON,
    headers: dict[str, str] | None = None,
) -> Response:
    text = json.dumps(content, allow_nan=False)
    return Response(text, status, headers, media)

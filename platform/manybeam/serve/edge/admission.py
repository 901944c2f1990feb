"""Admission: the body of a request is read only after it has a place.

A sender that is too slow is cut, and one that goes away gives its place back.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from manybeam.errors import Busy, CallerGone, DeadlineExceeded, MalformedRequest, TooSlow
from manybeam.serve import wire
from manybeam.serve.edge.fair_queue import FairQueue, Place
from manybeam.serve.edge.proxied import proxied_request

if TYPE_CHECKING:
    from manybeam.serve.edge.access import Caller

GRACE_S = 5.0  # before the least rate counts, and the longest pause
LEAST_RATE = 64 * 2**10  # bytes per second, on average
LONGEST_S = 120.0  # for a whole body
DRAIN_S = 1.0  # for the rest of a body that nobody reads
FREE_BODY = 64 * 2**10  # bytes that pass a closed gate
GATE = "manybeam.gate"  # of a request, in its ASGI scope


class Gate:
    """Holds the rest of a body back until it is read.

    Ray Serve receives a whole body into memory as fast as it comes, also while its application
    looks at the token or has no place.

    Args:
        receive: receives a part of the request, of the server.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive, self._free = receive, FREE_BODY
        self._loop, self._opened = asyncio.get_running_loop(), asyncio.Event()

    async def receive(self) -> Message:
        """Receive the next part, when the gate is open or little has come."""
        if self._free <= 0:
            await self._opened.wait()
        message = await self._receive()
        self._free -= len(message.get("body", b""))
        return message

    def open(self) -> None:
        """Let everything pass; the application may run in another loop than the server."""
        if asyncio.get_running_loop() is self._loop:
            self._opened.set()
        else:
            self._loop.call_soon_threadsafe(self._opened.set)


class Incoming(Protocol):
    """What sends a frame: a request (`IncomingRequest`), or a stream (`stream.frame`)."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the frame, with names in lower case."""

    @property
    def caller(self) -> "Caller":
        """Who sends it."""

    @property
    def begun_s(self) -> float:
        """When it arrived, in monotonic seconds."""

    @property
    def marking(self) -> Callable[[], AbstractContextManager[None]]:
        """Marks the work for it, as long as it goes on."""

    async def read(self, queue: FairQueue, place: Place, due_s: float) -> bytearray:
        """Return the body; raises what `read_body` does."""

    async def gone(self) -> None:
        """Return when its sender, whose body was read, has gone."""


class IncomingRequest:
    """A request that `RequestHandler.answered` answers, as what sends a frame.

    Args:
        request: the request.
    """

    def __init__(self, request: Request) -> None:
        self._request, self.headers = request, request.headers
        self.caller: Caller = request.state.caller
        self.begun_s: float = request.state.begun_s
        self.marking = proxied_request(request.scope).marking

    async def read(self, queue: FairQueue, place: Place, due_s: float) -> bytearray:
        """Return the body, as `read_body` does."""
        body = await read_body(self._request, queue, place, due_s)
        self._request.state.is_read = True
        return body

    async def gone(self) -> None:
        """Return when the sender has closed the connection."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


class ReadRequest(IncomingRequest):
    """A request whose body was read before it was known what it asks.

    Args:
        request: the request.
        body: its body.
    """

    def __init__(self, request: Request, body: bytearray) -> None:
        super().__init__(request)
        self._body = body

    async def read(
        self,
        queue: FairQueue,
        place: Place,
        due_s: float,  # noqa: ARG002 - as `Incoming` has it; the body is here
    ) -> bytearray:
        """Return the body, for which the place has bytes again."""
        queue.hold(place, len(self._body))
        return self._body


async def read_body(
    request: Request, queue: FairQueue, place: Place, due_s: float | None = None
) -> bytearray:
    """Return the body of a request that has a place.

    Args:
        request: the request.
        queue: gives the bytes.
        place: its place.
        due_s: deadline of the answer in monotonic seconds; None for no deadline.

    Raises:
        TooLarge: it is above the limit; told before it is read if a header says so.
        Busy: there are too many bytes in the replica, or another request has got the place.
        MalformedRequest: it has not the length that its header says.
        TooSlow: its sender is too slow.
        DeadlineExceeded: the deadline came first.
        CallerGone: its sender went away.
    """
    announced = announced_length(request)
    limit = queue.byte_limit
    wire.check_length(announced or 0, limit)
    queue.hold(place, announced or 0)
    _open_gate(request)
    clock, body = asyncio.get_running_loop().time, bytearray()
    begun = clock()
    late = math.inf if due_s is None else begun + due_s - time.monotonic()
    try:
        async with asyncio.timeout_at(min(begun + GRACE_S, late)) as timer:
            place.refused = partial(_interrupt, timer)
            async for chunk in request.stream():
                body += chunk
                wire.check_length(len(body), limit)
                queue.hold(place, len(body))
                _check_announced(len(body), announced, is_whole=False)
                least = begun + GRACE_S + len(body) / LEAST_RATE
                timer.reschedule(min(clock() + GRACE_S, least, begun + LONGEST_S, late))
    except TimeoutError as error:
        place.check()
        # Not by the clock: uvloop rounds its timers to milliseconds, so they may come early.
        is_due = timer.when() == late
        raise late_body(len(body), announced, clock() - begun, is_due=is_due) from error
    except ClientDisconnect as error:
        raise CallerGone("the caller disconnected before the body was complete") from error
    finally:
        place.refused = lambda _: None  # the timer has ended; `place.check` tells it from now on
    _check_announced(len(body), announced, is_whole=True)
    return body


def announced_length(request: Request) -> int | None:
    """Return the length of the body that a header says; None if none does.

    Raises:
        MalformedRequest: it is no number.
    """
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise MalformedRequest(f"Content-Length is {text[:40]!r}", "a number of bytes", "")
    return int(text)


def has_body(request: Request) -> bool:
    """Return whether the head of a request says that a body follows."""
    length = request.headers.get("content-length", "0")
    return length != "0" or "transfer-encoding" in request.headers


async def drain(request: Request, byte_limit: int) -> None:
    """Read and forget the rest of a body that was refused, for a moment.

    If a server closes a connection while its client is sending, the client sees an error of the
    network in place of the answer. A client that waits for `100 Continue` sends nothing.
    """
    is_waiting = request.headers.get("expect", "").lower() == "100-continue"
    with suppress(MalformedRequest, TimeoutError):
        announced = announced_length(request)
        if is_waiting or (announced or 0) > byte_limit:
            return
        _open_gate(request)
        async with asyncio.timeout(DRAIN_S):
            while (await request.receive()).get("more_body"):
                pass


def _interrupt(timer: asyncio.Timeout, _: Busy) -> None:
    """End the reading of a body at once; one that ends already has expired."""
    if not timer.expired():
        timer.reschedule(0.0)


def _open_gate(request: Request) -> None:
    gate: Gate | None = request.scope.get(GATE)
    if gate:
        gate.open()


def _check_announced(byte_count: int, announced: int | None, *, is_whole: bool) -> None:
    if announced is None or byte_count == announced or (byte_count < announced and not is_whole):
        return
    raise MalformedRequest(
        f"the body has {byte_count} bytes{'' if is_whole else ' or more'}",
        f"its Content-Length says {announced}",
        "the body was cut short, or its header is wrong",
    )


def late_body(
    byte_count: int, announced: int | None, seconds: float, *, is_due: bool
) -> TooSlow | DeadlineExceeded:
    """Return the error of a body of which only a part came in time.

    Args:
        byte_count: bytes that came.
        announced: bytes that were announced; None if none were.
        seconds: since the first.
        is_due: whether the deadline of the answer passed, not the time for the body.
    """
    got = f"{byte_count} of {'an unknown number of' if announced is None else announced} bytes"
    if is_due:
        return DeadlineExceeded(
            f"{got} arrived before the deadline",
            "deadline_ms counts from the arrival of the request",
            "raise deadline_ms, or send a smaller frame",
        )
    return TooSlow(
        f"{got} arrived in {seconds:.0f} s",
        f"no pause of {GRACE_S:.0f} s, then at least {LEAST_RATE // 1024} KiB/s on average, and "
        f"the whole body in {LONGEST_S:.0f} s",
        "send it again, whole; or its Content-Length is larger than the body",
    )

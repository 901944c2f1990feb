"""The places and threads of one replica, shared fairly between its callers.

A request has a place from before its body is read until its answer. Threads are given by start-time
fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): the virtual time of a caller grows by the
seconds of its work over its weight, and the caller with the least is next. So who sends more than a
share only waits longer. The work of a request is known only afterwards: the mean of its caller is
charged first, and corrected by the measured seconds.

If no place is free, a caller below its share gets that of a request that has not begun, of the
caller most above its own. Large bodies share their bytes in the same way.

Nothing here waits; all calls are made in the thread of one event loop.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from manybeam.errors import Busy

SMALL_BODY = 8 * 2**20  # bytes; smaller bodies are bounded by the places
LARGE_BODIES = 2  # the budget of the others, in bodies of the largest size
SLOW_S = 1.0  # a body that takes longer may have to go if its caller sends many of them
SLOW_SHARE = 0.25  # of the places, for the slow bodies of one caller
NEWS = 0.1  # weight of a measurement in a mean
FIRST_S = 1.0  # mean before the first measurement
LONGEST_WAIT_S = 60  # that Retry-After says


@dataclass(frozen=True)
class Share:
    """Whose requests share, and their part.

    Attributes:
        key: of the caller; requests with one key share its part.
        weight: the part, in proportion to the weights of the others; > 0.
    """

    key: str = ""
    weight: float = 1.0


@dataclass(eq=False)
class _Flow:
    """The requests of one caller, in order of their arrival.

    Attributes:
        inside: those with a place.
        waiting: those that wait for a thread.
        running: work in threads, also of requests that have left.
    """

    weight: float
    virtual_s: float
    mean_s: float
    inside: dict["Place", None] = field(default_factory=dict)
    waiting: dict["Place", None] = field(default_factory=dict)
    running: int = 0

    @property
    def is_idle(self) -> bool:
        return not (self.inside or self.running)


@dataclass(eq=False)
class Place:
    """The place of one request.

    Attributes:
        number: grows with the arrival.
        stream: of the caller's frames of which only the newest is wanted; "" for no such stream.
        taken_s: when it was taken.
        byte_count: bytes of the large body that it holds.
        refusal: why another request has got the place; None if none has.
        refused: called when another request gets the place.
        start: begins the work; None while the body is being read.
        begun_s: when the work began; None before.
        charged_s: by what the virtual time of its caller grew then.
    """

    flow: _Flow
    number: int
    taken_s: float
    stream: str = ""
    byte_count: int = 0
    refusal: Busy | None = None
    refused: Callable[[Busy], None] = lambda _: None
    start: Callable[[], None] | None = None
    begun_s: float | None = None
    charged_s: float = 0.0

    def check(self) -> None:
        """Raise Busy if another request has got the place."""
        if self.refusal:
            raise self.refusal


Size = Callable[[Place], int]


class FairQueue:
    """The places of one replica, the bytes of large bodies, and who is next.

    Args:
        count: requests in the replica at the same time, from before their body to their answer.
        threads: requests answered at the same time.
        byte_limit: largest body.
        changed: called with the number of places taken, when it changes.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        count: int,
        threads: int,
        byte_limit: int,
        changed: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.byte_limit = byte_limit
        self._count, self._threads, self._changed, self._clock = count, threads, changed, clock
        self._flows: dict[str, _Flow] = {}
        self._virtual_s, self._mean_s = 0.0, FIRST_S
        self._inside = self._running = self._bytes = self._arrived = 0

    def take(self, share: Share, stream: str = "") -> Place:
        """Return a place.

        Args:
            share: whose request it is.
            stream: it may have the place of an older request of this stream of the same caller.

        Raises:
            Busy: there is none, and the caller has its share.
        """
        flow = self._flow(share)
        if self._inside >= self._count:
            self._clear_a_place(flow, stream)
        if self._inside >= self._count:
            refusal = self._busy("full", flow, f"{self._inside} requests are here already")
            self._tidy()
            raise refusal
        self._arrived += 1
        place = Place(flow, self._arrived, self._clock(), stream)
        flow.inside[place] = None
        self._move(1)
        return place

    def hold(self, place: Place, byte_count: int) -> None:
        """Hold the bytes of a body of this size; small bodies are free.

        Raises:
            Busy: there are too many bytes here, or another request has got the place.
        """
        place.check()
        more = byte_count - place.byte_count if byte_count > SMALL_BODY else 0
        if more <= 0:
            return
        most = LARGE_BODIES * self.byte_limit
        lack = self._bytes + more - most
        if lack > 0:
            for one in self._above(place.flow, more, lack, _bytes):
                self._refuse(one, "displaced")
        if self._bytes + more > most:
            raise self._busy("large", place.flow, f"{self._bytes} bytes of large bodies are here")
        self._bytes += more
        place.byte_count += more

    def line_up(self, place: Place, start: Callable[[], None]) -> None:
        """Let a request wait for a thread, because its body was read.

        Of a stream only the newest request goes on to wait; that may be another one.

        Args:
            place: its place.
            start: begins its work, now or later; `ended` must be called after the work.

        Raises:
            Busy: another request has got the place.
        """
        place.check()
        flow = place.flow
        if not flow.waiting:  # what was not used before is lost, so nobody saves for a flood
            flow.virtual_s = max(flow.virtual_s, self._virtual_s)
        place.start = start
        flow.waiting[place] = None
        if place.stream:
            same = sorted(_of_stream(flow, place.stream), key=lambda one: one.number)
            for one in same[:-1]:
                self._refuse(one, "newer")
        self._dispatch()
        place.check()

    def leave(self, place: Place) -> None:
        """Give a place back, because its request has ended; work that has begun goes on."""
        self._leave(place)
        self._tidy()

    def ended(self, place: Place) -> None:
        """Give the thread back and charge its caller, because the work of a request has ended."""
        flow = place.flow
        seconds = self._clock() - (place.begun_s or 0.0)
        self._mean_s = _renewed(self._mean_s, seconds)
        flow.mean_s = _renewed(flow.mean_s, seconds)
        flow.virtual_s += seconds / flow.weight - place.charged_s
        # Virtual time goes on also while only new callers are answered, so that old ones are next.
        busy = sum(one.weight for one in self._flows.values() if one.waiting or one.running)
        self._virtual_s += seconds / busy
        flow.running -= 1
        self._running -= 1
        self._release(place)
        self._tidy()
        self._dispatch()

    @property
    def inside(self) -> int:
        """Number of places taken."""
        return self._inside

    def wait_s(self, share: Share) -> int:
        """Return in how many whole seconds the next request of a caller would be answered."""
        wait_s = self._wait_s(self._flow(share))
        self._tidy()
        return wait_s

    # -- whose turn it is -----------------------------------------------------------------------
    def _dispatch(self) -> None:
        while self._running < self._threads:
            flows = [one for one in self._flows.values() if one.waiting]
            if not flows:
                return
            flow = min(flows, key=lambda one: (one.virtual_s, next(iter(one.waiting)).number))
            place = next(iter(flow.waiting))
            del flow.waiting[place]
            self._virtual_s = max(self._virtual_s, flow.virtual_s)
            place.begun_s, place.charged_s = self._clock(), flow.mean_s / flow.weight
            flow.virtual_s += place.charged_s
            flow.running += 1
            self._running += 1
            assert place.start is not None  # noqa: S101 - it waited
            place.start()

    # -- who has to go --------------------------------------------------------------------------
    def _clear_a_place(self, flow: _Flow, stream: str) -> None:
        """Refuse one request for the sake of a new one, if there is a reason."""
        if stream and (older := _of_stream(flow, stream)):
            self._refuse(older[0], "newer")
        elif slow := self._slow():
            self._refuse(slow, "slow")
        else:
            for one in self._above(flow, 1, 1, lambda _: 1):
                self._refuse(one, "displaced")

    def _slow(self) -> Place | None:
        """Return the slowest body of a caller with too many of them."""
        before_s = self._clock() - SLOW_S
        for flow in self._flows.values():
            slow = [one for one in flow.inside if one.start is None and one.taken_s < before_s]
            if len(slow) > SLOW_SHARE * self._count:
                return slow[0]
        return None

    def _above(self, flow: _Flow, more: int, lack: int, size: Size) -> list[Place]:
        """Return the requests that must go so that `lack` is free; none if `flow` has its share."""
        gone: list[Place] = []
        while sum(map(size, gone)) < lack:
            found = self._most_above(flow, more, size, gone)
            if found is None:
                return []
            gone.append(found)
        return gone

    def _most_above(self, flow: _Flow, more: int, size: Size, gone: list[Place]) -> Place | None:
        """Return the youngest request that has not begun, of the caller most above its share."""
        own = sum(map(size, flow.inside))
        found: list[tuple[float, Place]] = []
        for other in self._flows.values():
            left = [one for one in other.inside if size(one) and one not in gone]
            still = [one for one in left if one.begun_s is None]
            load = sum(map(size, left)) / other.weight
            is_below = (own + more) / flow.weight < load or (own == 0 and len(left) > 1)
            if other is not flow and still and is_below:
                found.append((load, still[-1]))
        return max(found, key=lambda one: one[0])[1] if found else None

    def _refuse(self, place: Place, reason: str) -> None:
        place.refusal = self._busy(reason, place.flow, "its place went to another request")
        self._leave(place)
        place.refused(place.refusal)

    def _busy(self, reason: str, flow: _Flow, what: str) -> Busy:
        wait_s = self._wait_s(flow)
        why = _WHY[reason].format(count=self._count, most=LARGE_BODIES * self.byte_limit)
        return Busy(what, why, f"send it again in {wait_s} s", reason=reason, retry_s=wait_s)

    def _leave(self, place: Place) -> None:
        flow = place.flow
        if place in flow.inside:
            del flow.inside[place]
            flow.waiting.pop(place, None)
            if place.begun_s is None:
                self._release(place)
            self._move(-1)

    # -- counts -----------------------------------------------------------------------------------
    def _flow(self, share: Share) -> _Flow:
        flow = self._flows.get(share.key)
        if flow is None:
            flow = self._flows[share.key] = _Flow(share.weight, self._virtual_s, self._mean_s)
        flow.weight = share.weight
        return flow

    def _tidy(self) -> None:
        """Forget callers that are neither here nor in debt."""
        idle = [key for key, one in self._flows.items() if one.is_idle]
        is_empty = len(idle) == len(self._flows)
        for key in idle:
            if is_empty or self._flows[key].virtual_s <= self._virtual_s:
                del self._flows[key]

    def _wait_s(self, flow: _Flow) -> int:
        others = sum(one.weight for one in self._flows.values() if one.inside and one is not flow)
        work_s = flow.mean_s * (len(flow.waiting) + flow.running + 1) / self._threads
        return min(max(math.ceil(work_s * (flow.weight + others) / flow.weight), 1), LONGEST_WAIT_S)

    def _release(self, place: Place) -> None:
        self._bytes -= place.byte_count
        place.byte_count = 0

    def _move(self, by: int) -> None:
        self._inside += by
        self._changed(self._inside)


_WHY = {
    "full": "at most {count} at once",
    "large": "at most {most} at once",
    "displaced": "all places are taken, and instruments share them by their weights",
    "newer": "a newer frame took its place",
    "slow": "all places are taken, and its caller sends too many slow bodies",
}
REASONS = tuple(_WHY)


def _of_stream(flow: _Flow, stream: str) -> list[Place]:
    """Return the requests of a stream that wait for a thread."""
    return [one for one in flow.waiting if one.stream == stream]


def _bytes(place: Place) -> int:
    return place.byte_count


def _renewed(mean: float, value: float) -> float:
    return mean + NEWS * (value - mean)

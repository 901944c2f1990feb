"""Pace: how long an answer will take, learned from the answers before it.

Each (version, class of frame size, number of answers at work) has its own times of a network and of
all that is no network. So an answer of any number of members is predicted, also one that was never
given. High quantiles of the last answers are used: one that is late costs more than a member.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

LAST = 20  # answers that count
CAUTION = 0.9  # quantile of their times for the choice of members
EVEN = 0.5  # the same for a refusal: an answer that may well be in time is tried
FRESH_S = 10.0  # after which a pace that forbids every answer is measured anew
KEPT = 256
LEAST_PX = 128 * 128  # below it most of the time is not the pixels' (20 ms for 2 x 2, 69 for this)
NETWORKS = "predict"  # the stage of `Deadline.seconds` in which networks run


@dataclass(frozen=True)
class Work:
    """What an answer is for.

    Args:
        ref: the version.
        pixels: of the frame, at the pixel size of the networks.
        is_full: whether the frame is analysed too.
    """

    ref: str
    pixels: float
    is_full: bool = False

    @property
    def weight(self) -> float:
        """Pixels to which its time is proportional."""
        return max(self.pixels, LEAST_PX)

    @property
    def size(self) -> int:
        """Class of the frame size; each is 41 % larger than the one before."""
        return round(2 * math.log2(self.weight))


@dataclass
class _Times:
    """Seconds per pixel of the last answers."""

    network: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))  # of one member
    rest: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    learned_s: float = -math.inf


class Pace:
    """The times of answers; safe to use from several threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock, self._running = clock, threading.Lock(), 0
        self._times: OrderedDict[tuple[str, bool, int, int], _Times] = OrderedDict()

    @contextmanager
    def timing(self, work: Work, count: int, seconds: Mapping[str, float]) -> Iterator[None]:
        """Learn from the answer of some members that is given in this block.

        Args:
            work: what it is for.
            count: number of its members.
            seconds: time of its stages; the block adds to them.
        """
        before, begun = seconds.get(NETWORKS, 0.0), self._clock()
        with self._lock:
            self._running += 1
            key = self._key(work, self._running)
        is_whole = False
        try:
            yield
            is_whole = True
        finally:
            networks, took = seconds.get(NETWORKS, 0.0) - before, self._clock() - begun
            with self._lock:
                self._running -= 1
                if is_whole:
                    rest = (took - networks) / work.weight
                    self._learn(key, networks / count / work.weight, rest)
                elif took > _or_zero(self._times.get(key), work, count):
                    # It was ended because it was late; what is known of it is too short.
                    self._learn(key, took / count / work.weight)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count one more answer at work in this block; nothing is learned from it."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def _learn(
        self, key: tuple[str, bool, int, int], network: float, rest: float | None = None
    ) -> None:
        times = self._times.setdefault(key, _Times())
        self._times.move_to_end(key)
        if len(self._times) > KEPT:
            self._times.popitem(last=False)
        times.network.append(network)
        times.rest.append(0.0 if rest is None else rest)
        times.learned_s = self._clock()

    def seconds(self, work: Work, count: int) -> float | None:
        """Return the time that an answer of some members will take; None if nothing is known."""
        times = self._known(work)
        return None if times is None else _seconds(times, work, count)

    def members_within(self, work: Work, most: int, left_s: float) -> int:
        """Return how many members can answer in a time, at most `most`; 0 if not even one.

        All, if nothing is known. One, if it would be in time every second time, or if what is
        known is old and has to be measured anew.
        """
        times = self._known(work)
        if times is None:
            return most
        fitting = [count for count in range(1, most + 1) if _seconds(times, work, count) <= left_s]
        if fitting:
            return fitting[-1]
        is_old = self._clock() - times.learned_s > FRESH_S
        return int(is_old or _seconds(times, work, 1, EVEN) <= left_s)

    def _known(self, work: Work) -> _Times | None:
        """Return the times of such work with one more answer running, else of the most alike."""
        with self._lock:
            key = self._key(work, self._running + 1)
            if key in self._times:
                return self._times[key]
            alike = [one for one in self._times if one[:2] == key[:2]]
            nearest = min(
                alike, key=lambda one: (abs(one[2] - key[2]), abs(one[3] - key[3])), default=None
            )
            return None if nearest is None else self._times[nearest]

    def _key(self, work: Work, running: int) -> tuple[str, bool, int, int]:
        return work.ref, work.is_full, work.size, running


def _or_zero(times: _Times | None, work: Work, count: int) -> float:
    return 0.0 if times is None else _seconds(times, work, count)


def _seconds(times: _Times, work: Work, count: int, share: float = CAUTION) -> float:
    network, rest = (np.quantile(one, share) for one in (times.network, times.rest))
    return float((count * network + rest) * work.weight)

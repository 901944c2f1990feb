"""A cache of what the zoo said: old values are read again, or kept while it does not answer.

If it never answered this process, the value is what this machine read last, if there is any.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from manybeam.errors import DatabaseUnreachable, NotFound, Unreachable

logger = logging.getLogger(__name__)

V = TypeVar("V")
KEPT = 256


class TTLCache(Generic[V]):
    """Values with a time to live; if the source does not answer, the old value is used.

    One caller at a time asks the source; the others use the value in the cache.

    Args:
        ask: gives the value of a key; may raise Unreachable.
        fresh_s: time to live.
        clock: monotonic seconds.
        capacity: number of values; the most recently used ones are kept.
        read_last: gives the value as this machine read it last; may raise Unreachable.
    """

    def __init__(
        self,
        ask: Callable[[str], V],
        fresh_s: float,
        clock: Callable[[], float],
        capacity: int = KEPT,
        read_last: Callable[[str], V] | None = None,
    ) -> None:
        self._ask, self._fresh_s, self._clock, self._capacity = ask, fresh_s, clock, capacity
        self._read_last = read_last
        self._known: OrderedDict[str, tuple[V, float]] = OrderedDict()
        self._asking, self._lock = threading.Lock(), threading.Lock()
        self._is_logged = False  # that the source is away

    def get(self, key: str) -> tuple[V, tuple[str, ...]]:
        """Return the value of a key, and a note if it is older than it should be.

        Raises:
            Unreachable: the source does not answer and never gave this value to this machine.
        """
        known = self._known.get(key)
        if known is not None and self._clock() - known[1] < self._fresh_s:
            return known[0], ()
        if not self._asking.acquire(blocking=known is None):
            return (known[0], ()) if known else self.get(key)
        try:
            known = self._known.get(key)  # another caller may have asked while this one waited
            if known is not None and self._clock() - known[1] < self._fresh_s:
                return known[0], ()
            return self._renew(key, known)
        finally:
            self._asking.release()

    def _renew(self, key: str, known: tuple[V, float] | None) -> tuple[V, tuple[str, ...]]:
        now = self._clock()
        try:
            value = self._ask(key)
        except NotFound:  # it is gone, and must not answer while the source is away later
            with self._lock:
                self._known.pop(key, None)
            raise
        except Unreachable as error:
            if not self._is_logged:
                logger.warning("zoo did not answer", extra={"ref": key, "why": error.what})
            self._is_logged = True
            if known is None:
                return self._of_this_machine(key, error)
            age_s = now - known[1]
            return known[0], (f"{_who(error)} does not answer; {key} is of {age_s:.0f} s ago",)
        self._is_logged = False
        with self._lock:
            self._known[key] = (value, now)
            self._known.move_to_end(key)
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return value, ()

    def _of_this_machine(self, key: str, error: Unreachable) -> tuple[V, tuple[str, ...]]:
        """Return what this machine read last; raises the error if there is nothing."""
        if self._read_last is None:
            raise error
        try:
            value = self._read_last(key)
        except Unreachable:
            raise error from None
        return value, (f"{_who(error)} does not answer; {key} is what this machine read last",)


def _who(error: Unreachable) -> str:
    return "the database" if isinstance(error, DatabaseUnreachable) else "the zoo"

"""Sums of comparisons in the memory of a replica, until they are written to the database."""

import logging
import threading
from collections.abc import Callable

from manybeam.db.serving.comparison import Sums
from manybeam.db.serving.rollouts import Rollouts, added, keyed
from manybeam.errors import ManybeamError, NotFound

logger = logging.getLogger(__name__)

WRITE_S = 5.0


class Tally:
    """Adds up; a thread writes what was added every few seconds, and the rest at the end.

    While the database is away, sums are kept.

    Args:
        rollouts: returns those of the database, or raises an error if it is away.
    """

    def __init__(self, rollouts: Callable[[], Rollouts]) -> None:
        self._rollouts = rollouts
        self._sums: dict[int, dict[str, Sums]] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._go_on_writing, name="tally", daemon=True)

    def start(self) -> None:
        """Go on writing until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and write what is left."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        self.write()

    def add(self, rollout_id: int, instrument: str, sums: Sums) -> None:
        """Add to the sums of one instrument; "" for callers without one."""
        with self._lock:
            self._add(rollout_id, instrument, sums)

    def write(self) -> None:
        """Write what was added; without an answer, the next time."""
        with self._lock:
            taken, self._sums = self._sums, {}
        for rollout_id, more in taken.items():
            try:
                self._rollouts().add(rollout_id, more)
            except NotFound as error:
                logger.warning("comparisons are dropped: %s", error)
            except Exception as error:  # the thread must go on
                is_strange = not isinstance(error, ManybeamError)
                logger.warning("comparisons are not written: %s", error, exc_info=is_strange)
                self._put_back(rollout_id, more)

    def _put_back(self, rollout_id: int, earlier: dict[str, Sums]) -> None:
        with self._lock:
            later, self._sums[rollout_id] = self._sums.get(rollout_id, {}), earlier
            for instrument, sums in later.items():
                self._add(rollout_id, instrument, sums)

    def _add(self, rollout_id: int, instrument: str, sums: Sums) -> None:
        own = self._sums.setdefault(rollout_id, {})
        key = keyed(own, instrument)
        own[key] = added(own.get(key, {}), sums)

    def _go_on_writing(self) -> None:
        while not self._closed.wait(WRITE_S):
            self.write()

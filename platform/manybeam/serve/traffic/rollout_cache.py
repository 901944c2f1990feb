"""The rollouts that run, in the memory of a replica, so that no request waits for the database."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

from manybeam.db.serving.rollouts import Rollout, Rollouts, Watched
from manybeam.errors import InvalidSetting, ManybeamError

logger = logging.getLogger(__name__)

READ_S = 2.0  # pause between two readings: a rollback takes effect within 5 s
STALE_S = 10.0  # age from which the copy is said to be old


class RolloutCache:
    """Reads the rollouts every few seconds; while the database is away, those that are known go on.

    Args:
        rollouts: returns those of the database, or raises an error if it is away.
        follow: called after each reading with what was read, and with what was read before.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        rollouts: Callable[[], Rollouts],
        follow: Callable[[Watched, Watched], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rollouts, self._follow, self._clock = rollouts, follow, clock
        self._known, self._running = Watched(), dict[str, Rollout]()
        self._read_s, self._begun_s = -math.inf, clock()
        self._is_logged = False  # that the database is away
        self._closed, self._reading = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._go_on_reading, name="rollouts", daemon=True)

    def start(self) -> None:
        """Read in a thread until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def running(self) -> Mapping[str, Rollout]:
        """The rollouts that run, by the name of their ensemble."""
        return self._running

    def degraded(self) -> list[str]:
        """Return that the copy is old, in words; nothing while the database answers."""
        age_s = self._clock() - max(self._read_s, self._begun_s)
        if age_s <= STALE_S:
            return []
        if self._read_s == -math.inf:
            return ["shadow and canary are not known: the database does not answer"]
        if not self._running:
            return [f"shadow and canary are known as of {age_s:.0f} s ago"]
        return [f"{one.words} goes on from a copy of {age_s:.0f} s ago" for one in self.all()]

    def all(self) -> list[Rollout]:
        """Return the rollouts that run."""
        return list(self._running.values())

    def read(self) -> None:
        """Read the rollouts from the database; without an answer, keep those that are known."""
        with self._reading:  # else an earlier one could end last
            self._read(self._clock())

    def _read(self, begun: float) -> None:
        try:
            found = self._rollouts().watched()
        except InvalidSetting as error:  # no database, so nobody can start a rollout
            self._log("read", error)
            found = Watched()
        except Exception as error:  # noqa: BLE001 - the thread must go on, or nothing is rolled back
            self._log("read", error)
            return
        self._read_s = begun
        self._running = {one.ensemble: one for one in found.running}
        try:
            self._follow(found, self._known)
        except Exception as error:  # noqa: BLE001 - as above; the next reading follows again
            self._log("followed", error)
            return
        self._known, self._is_logged = found, False

    def _log(self, what: str, error: Exception) -> None:
        if not self._is_logged:
            is_strange = not isinstance(error, ManybeamError)
            logger.warning("rollouts are not %s: %s", what, error, exc_info=is_strange)
        self._is_logged = True

    def _go_on_reading(self) -> None:
        while True:
            self.read()
            if self._closed.wait(READ_S):
                return

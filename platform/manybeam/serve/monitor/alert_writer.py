"""Writes alerts into the database, in a thread of its own: no frame waits for it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from manybeam.errors import Conflict, InvalidInput, ManybeamError

if TYPE_CHECKING:
    from manybeam.db.serving.alerts import Alerts

logger = logging.getLogger(__name__)

WAITING = 1000  # alerts in memory
AGAIN_S = 5.0  # before an alert is tried again
LONGEST_S = 3600.0  # for which the database may be away


class AlertWriter:
    """Keeps alerts until the database has them; safe to use from several threads.

    Args:
        alerts: returns the alerts of the database, or raises an error if it is away.
        notify: is called after one was written; without it they are kept only, and not sent.
    """

    def __init__(
        self, alerts: "Callable[[], Alerts]", notify: Callable[[], None] | None = None
    ) -> None:
        self._alerts, self._notify = alerts, notify
        self._waiting: deque[tuple[float, dict[str, Any]]] = deque()
        self._room, self._is_closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._go_on, name="alerts", daemon=True)
        self._thread.start()

    def add(self, **alert: Any) -> None:
        """Write an alert soon; `alert` is what `Alerts.add` takes, but for `is_sent`."""
        with self._room:
            if len(self._waiting) >= WAITING:
                logger.error("an alert was lost, because %d wait: %s", WAITING, alert["text"])
                return
            self._waiting.append((time.monotonic(), alert))
            self._room.notify_all()

    def settled(self, timeout_s: float) -> bool:
        """Wait until all alerts are written; return whether they are."""
        with self._room:
            return self._room.wait_for(lambda: not self._waiting, timeout_s)

    def close(self) -> None:
        """End; alerts that wait are tried once more."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()
        self._thread.join(AGAIN_S)

    def _go_on(self) -> None:
        while True:
            with self._room:
                self._room.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                since_s, alert = self._waiting[0]
            is_done = self._written(since_s, alert)
            with self._room:
                if is_done:
                    self._waiting.popleft()
                    self._room.notify_all()
                else:
                    self._room.wait_for(lambda: self._is_closed, AGAIN_S)

    def _written(self, since_s: float, alert: dict[str, Any]) -> bool:
        """Write an alert; return whether it needs no further try."""
        try:
            self._alerts().add(**alert, is_sent=self._notify is not None)
        except Exception as error:  # noqa: BLE001 - the thread must go on for other alerts
            # A database that is away, full or old comes back. Another fault is of this alert, and
            # those after it must not wait.
            is_own = isinstance(error, (InvalidInput, Conflict)) or not isinstance(
                error, ManybeamError
            )
            is_late = self._is_closed or time.monotonic() > since_s + LONGEST_S
            if not (is_own or is_late):
                logger.warning("an alert waits: %s", error)
                return False
            logger.error("an alert was lost: %s: %s", alert["text"], error)
            return True
        if self._notify is not None:
            self._notify()
        return True

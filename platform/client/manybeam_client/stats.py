"""Counts of what became of the frames of a session."""

from __future__ import annotations

import threading

NAMES = (
    "sent",
    "answered",
    "late",
    "dropped",
    "offline",
    "retried",
    "spooled",
    "not_spooled",
    "reconnections",
)


class Stats:
    """Counts since the session began; safe to use from several threads.

    Attributes:
        sent: frames that were sent at least once.
        answered: frames with an answer.
        late: answers that came after their deadline, so that nobody read them.
        dropped: frames of a stream that were replaced by a newer one.
        offline: frames that were not sent because the service was away.
        retried: requests that were sent again.
        spooled: frames written to the spool.
        not_spooled: frames for which the spool had no room.
        reconnections: how often the service, or the connection of a stream, came back.
    """

    sent: int
    answered: int
    late: int
    dropped: int
    offline: int
    retried: int
    spooled: int
    not_spooled: int
    reconnections: int

    def __init__(self) -> None:
        self._lock = threading.Lock()
        for name in NAMES:
            setattr(self, name, 0)

    def count(self, name: str) -> None:
        """Count one more."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def as_dict(self) -> dict[str, int]:
        """Return all counts."""
        with self._lock:
            return {name: getattr(self, name) for name in NAMES}

    def __repr__(self) -> str:
        """Return all counts as text."""
        return "Stats({})".format(", ".join("{}={}".format(*one) for one in self.as_dict().items()))

"""Whether the service is away, and the thread that asks until it is back.

While it is away no frame waits for it: a scan goes on at its own pace.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from datetime import datetime, timezone
from typing import Callable

from manybeam_client.errors import Problem

logger = logging.getLogger("manybeam_client")

FIRST_S, LONGEST_S = 0.25, 1.0  # between two questions
PATIENCE_S = 5.0  # for one; the next ones are asked beside it
DOUBT_S = 1.0  # for the question whether the service is away at all
MOST_AT_ONCE = 6
SOON_S = 5.0  # an outage that follows the last one sooner has to wait, and is not announced
LONGEST_HOLD_S = 2.0


class Outage:
    """Knows whether the service is away; safe to use from several threads.

    Args:
        ask: returns why the service is away, or None if it answers; takes so many seconds at most.
        when_begun: is called when it went away.
        when_back: is called when it is back.
    """

    def __init__(
        self,
        ask: Callable[[float], Problem | None],
        when_begun: Callable[[], None],
        when_back: Callable[[], None],
    ) -> None:
        self._ask, self._when_begun, self._when_back = ask, when_begun, when_back
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._back = threading.Event()
        self._back.set()
        self._cause: Problem | None = None
        self._begun = datetime.now(timezone.utc)
        self._frames = self._asking = self._doubtful = self._soon_again = 0
        self._is_in_doubt = False
        self._heard_s = self._ended_s = -math.inf

    @property
    def is_open(self) -> bool:
        """Whether the service is away."""
        return not self._back.is_set()

    def wait_until_back(self, timeout_s: float) -> bool:
        """Wait for the service; return whether it is there."""
        return self._back.wait(timeout_s)

    def offline(self, frame_count: int = 1) -> Problem:
        """Return the problem of a frame that is not sent, and count it.

        Args:
            frame_count: 0 if it is counted already.
        """
        with self._lock:
            self._frames += frame_count
            cause, begun = self._cause, self._begun
        why = f"{cause.kind}: {cause.what}; {cause.why}" if cause else ""
        return Problem(
            "offline",
            f"the service is away since {begun:%H:%M:%S} UTC",
            why.rstrip("; "),
            cause.hint if cause else "",
            is_away=True,
        )

    def note_reply(self) -> None:
        """Take note of any reply of the service, also of one that came too late."""
        self._heard_s = time.monotonic()

    def doubt(self, cause: Problem, frame_count: int = 1) -> bool:
        """Ask beside whether the service is away, because frames have no reply.

        A service that is only slow, or refuses only frames, is not away.

        Args:
            cause: why there is no reply.
            frame_count: frames that have none because of it.

        Returns:
            whether it counts as away already.
        """
        with self._lock:
            if self.is_open:
                self._frames += frame_count
                return True
            self._doubtful += frame_count
            if self._is_in_doubt or self._ended.is_set():
                return False
            self._is_in_doubt = True
        threading.Thread(
            target=self._settle, args=(cause,), name="manybeam-outage", daemon=True
        ).start()
        return False

    def _settle(self, cause: Problem) -> None:
        """Ask once; begin an outage if nothing at all is heard."""
        asked_s, is_away = time.monotonic(), False
        try:
            is_away = self._ask(DOUBT_S) is not None and self._heard_s < asked_s
        finally:
            with self._lock:
                frame_count, self._doubtful, self._is_in_doubt = self._doubtful, 0, False
        if is_away:
            self.begin(cause, frame_count)

    def begin(self, cause: Problem, frame_count: int = 1) -> None:
        """Take the service as away from now on, and ask until it is back.

        Args:
            cause: why.
            frame_count: frames that have no answer because of it, so far.
        """
        with self._lock:
            if self._ended.is_set():
                return
            if self.is_open:
                self._frames += frame_count
                return
            if not self._may_begin():
                return
            self._cause, self._begun = cause, datetime.now(timezone.utc)
            self._frames = frame_count
            self._back.clear()
        logger.log(self._level, "the service went away: %s", cause)
        self._when_begun()
        threading.Thread(target=self._watch, name="manybeam-outage", daemon=True).start()

    def _may_begin(self) -> bool:
        """Return whether the last outage is long enough ago; each that is not has to wait longer.

        What goes away and comes back all the time would fill the log, and reset every connection.
        """
        since_s = time.monotonic() - self._ended_s
        if since_s >= SOON_S:
            self._soon_again = 0
            return True
        if since_s < min(FIRST_S * 2**self._soon_again, LONGEST_HOLD_S):
            return False
        self._soon_again += 1
        return True

    @property
    def _level(self) -> int:
        return logging.DEBUG if self._soon_again else logging.WARNING

    def close(self) -> None:
        """Ask no longer."""
        with self._lock:
            self._ended.set()
        self._back.set()

    def _watch(self) -> None:
        pause_s = FIRST_S
        while self.is_open and not self._ended.is_set():
            if self._asking < MOST_AT_ONCE:
                threading.Thread(target=self._look, name="manybeam-outage", daemon=True).start()
            self._back.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause_s = min(pause_s * 1.5, LONGEST_S)

    def _look(self) -> None:
        """Ask once; a question into a dead network does not delay the next one."""
        with self._lock:
            self._asking += 1
        try:
            cause = self._ask(PATIENCE_S)
        finally:
            with self._lock:
                self._asking -= 1
        if cause is None:
            self._end()

    def _end(self) -> None:
        with self._lock:
            if not self.is_open or self._ended.is_set():
                return
            begun, frames, back = self._begun, self._frames, datetime.now(timezone.utc)
            self._frames, self._ended_s = 0, time.monotonic()
            self._back.set()
        logger.log(
            self._level,
            "the service is back: away from %s to %s UTC (%.1f s), %d frames not answered",
            begun.strftime("%Y-%m-%d %H:%M:%S"),
            back.strftime("%H:%M:%S"),
            (back - begun).total_seconds(),
            frames,
            extra={"began": begun.isoformat(), "ended": back.isoformat(), "frames": frames},
        )
        self._when_back()


def jitter_s(attempt: int, first_s: float = 0.05, longest_s: float = 1.0) -> float:
    """Return how long to wait before an attempt: full jitter, so that clients do not march.

    Source:
        Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return random.uniform(0, min(longest_s, first_s * 2**attempt))  # noqa: S311 - no secret


def left_s(due_s: float) -> float:
    """Return the seconds until a moment of the monotonic clock; 0 after it."""
    return max(due_s - time.monotonic(), 0.0)

"""The shadow: the new version answers frames again, below the live traffic.

One thread does it, in the time that live requests leave. It stops before each network and tile
while a request is answered, and for a moment after it, because the next one is often near. Threads
of lower priority would not do: one that holds Python's lock and gets no core delays everybody.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from manybeam.db.serving.rollouts import Rollout
from manybeam.errors import DeadlineExceeded, ManybeamError
from manybeam.predictor.answer import Answer, Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.loaded import LoadedVersion, OneVersion
from manybeam.serve.traffic.comparison import Sums, agreement, answered, took

logger = logging.getLogger(__name__)

QUEUE = 4  # frames that wait
MOST_PX = 4_200_000  # of a frame: larger ones would wait too long in memory
QUIET_S = 0.02  # without a request, before the shadow goes on
LOOK_S = 0.5  # pause between two looks at whether the replica ends
PATIENCE_S = 20.0  # that a frame waits in all
TIMED_EVERY = 10  # frames; of these the base answers again, for the comparison of times


class LiveWork:
    """Counts the live requests that are answered now."""

    def __init__(self) -> None:
        self._count, self._last_s, self.begun = 0, 0.0, 0
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request for the block."""
        with self._changed:
            self._count += 1
            self.begun += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._last_s = time.monotonic()
                self._changed.notify_all()

    def wait(self) -> None:
        """Wait until there is no request, and was none for a moment; or for half a second."""
        end_s = time.monotonic() + LOOK_S
        with self._changed:
            while (left_s := end_s - time.monotonic()) > 0:
                quiet_s = self._last_s + QUIET_S - time.monotonic()
                if not self._count and quiet_s <= 0:
                    return
                self._changed.wait(left_s if self._count else min(left_s, quiet_s))

    @property
    def is_quiet(self) -> bool:
        """Whether there is no request, and was none for a moment."""
        return not self._count and time.monotonic() >= self._last_s + QUIET_S


@dataclass(frozen=True)
class ShadowFrame:
    """A frame that the base has answered.

    Attributes:
        rollout: the shadow.
        instrument: that sent it; "" if it named none.
        answer: that of the base, without maps.
        question: the caller's.
        base, new: both versions.
    """

    rollout: Rollout
    instrument: str
    answer: Answer
    question: Question
    base: LoadedVersion
    new: LoadedVersion


class Shadow:
    """Answers frames by the new version, and compares the answers.

    Args:
        live: the live requests.
        tell: called with the rollout, the instrument and what a frame adds to the comparison.
    """

    def __init__(self, live: LiveWork, tell: Callable[[Rollout, str, Sums], None]) -> None:
        self._live, self._tell = live, tell
        self._frames: queue.Queue[ShadowFrame | None] = queue.Queue(QUEUE)
        self._is_closed, self._count = False, 0
        self._thread = threading.Thread(target=self._go_on, name="shadow", daemon=True)

    def start(self) -> None:
        """Go on answering until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread before its next network; frames that wait are skipped."""
        self._is_closed = True
        if self._thread.is_alive():
            self._frames.put(None)
            self._thread.join()

    def offer(self, frame: ShadowFrame) -> None:
        """Take a frame, or count it as skipped; it never waits."""
        try:
            if frame.answer.frame.pixels_yx.size <= MOST_PX:
                self._frames.put_nowait(frame)
                return
        except queue.Full:
            pass
        self._tell(frame.rollout, frame.instrument, {"skipped": 1})

    def _go_on(self) -> None:
        while (frame := self._frames.get()) is not None:
            self._compare(frame)

    def _compare(self, frame: ShadowFrame) -> None:
        """Compare one frame; what goes wrong is counted."""
        try:
            sums = self._compared(frame)
        except DeadlineExceeded:
            sums = {"skipped": 1}
        except Exception as error:  # the shadow of one frame must not end those of others
            is_strange = not isinstance(error, ManybeamError)
            logger.warning("%s failed: %s", frame.rollout.words, error, exc_info=is_strange)
            sums = {"failed": 1, "fault": str(error)[:300]}
        self._tell(frame.rollout, frame.instrument, sums)

    def _compared(self, frame: ShadowFrame) -> Sums:
        deadline = _Below(self._live, time.monotonic() + PATIENCE_S, lambda: self._is_closed)
        answer, new_s = self._timed(frame, frame.new, deadline)
        sums = {
            "base": answered(frame.answer),
            "new": answered(answer),
            "between": agreement(frame.answer, answer),
        }
        self._count += 1
        if new_s is not None and self._count % TIMED_EVERY == 2:  # the first one warms up
            _, base_s = self._timed(frame, frame.base, deadline)
            if base_s is not None:
                sums["base"] |= took(base_s)
                sums["new"] |= took(new_s)
        return sums

    def _timed(
        self, frame: ShadowFrame, version: LoadedVersion, deadline: "_Below"
    ) -> tuple[Answer, float | None]:
        """Return the answer of one version, and its time if no live request came meanwhile."""
        own = frame.question
        question = replace(own, ref=version.ref, is_selecting=own.is_auto or own.is_selecting)
        deadline.check()
        before, begun_s = self._live.begun, time.monotonic()
        answer = Predictor(OneVersion(version)).answer(frame.answer.frame, question, deadline)
        seconds = time.monotonic() - begun_s
        return answer.lean(has_maps=False), seconds if self._live.begun == before else None


class _Below(Deadline):
    """The deadline of work that waits before each network and tile while others are answered."""

    def __init__(self, live: LiveWork, due_s: float, is_closed: Callable[[], bool]) -> None:
        super().__init__(due_s)
        self._live, self._is_closed = live, is_closed

    def check(self, what: str = "the answer was ready") -> None:
        """Wait until nobody else is answered; raises DeadlineExceeded if that does not come."""
        while True:
            self.is_cancelled = self._is_closed()
            super().check(what)
            if self._live.is_quiet:
                return
            self._live.wait()

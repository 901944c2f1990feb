"""The shadow: the new version answers frames again, below the live traffic.

One thread does it, in the time that live requests leave. Before each network, tile and stage it
waits while a request is answered, and while the next one will probably come too soon. Threads of
lower priority would not do: one that holds Python's lock and gets no core delays everybody.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from manybeam.db.serving.comparison import Sums
from manybeam.db.serving.rollouts import Rollout
from manybeam.errors import CallerGone, DeadlineExceeded, ManybeamError
from manybeam.predictor.answer import Answer, Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.loaded import LoadedVersion, OneVersion
from manybeam.serve.traffic.comparison import agreement, answered, took

logger = logging.getLogger(__name__)

QUEUE = 4  # frames that wait
MOST_PX = 4_200_000  # of a frame: larger ones would wait too long in memory
QUIET_S = 0.02  # without a request, before the shadow goes on
LOOK_S = 0.01  # pause between two looks at whether there is time
MOST_APART_S = 10.0  # requests further apart are not those of a stream
PATIENCE_S = 20.0  # that a frame waits in all
TIMED_EVERY = 10  # frames; of these the base answers again, for the comparison of times


class LiveWork:
    """Counts the live requests that are answered now, and knows about when the next one comes.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._count, self.begun = clock, 0, 0
        self._begun_s = self._ended_s = -math.inf  # of the last request
        self._apart_s = 0.0  # how far requests lie apart, on average
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request for the block."""
        with self._lock:
            now_s = self._clock()
            if self.begun:
                apart_s = min(now_s - self._begun_s, MOST_APART_S)
                self._apart_s += (apart_s - self._apart_s) / min(self.begun, 5)
            self._begun_s, self._count, self.begun = now_s, self._count + 1, self.begun + 1
        try:
            yield
        finally:
            with self._lock:
                self._count, self._ended_s = self._count - 1, self._clock()

    def leaves(self, need_s: float) -> bool:
        """Return whether there is no request now, and probably none for so long.

        Instruments send at a steady rate. If a request stays away for much longer than usual, the
        rate says no more when the next one comes.
        """
        with self._lock:
            now_s = self._clock()
            if self._count or now_s < self._ended_s + QUIET_S:
                return False
            since_s = now_s - self._begun_s
            return since_s > 1.5 * self._apart_s or since_s + need_s < 0.9 * self._apart_s


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
        self._frames: queue.Queue[tuple[ShadowFrame, float] | None] = queue.Queue(QUEUE)
        self._is_closed, self._count, self._steps = False, 0, Steps()
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
                self._frames.put_nowait((frame, time.monotonic() + PATIENCE_S))
                return
        except queue.Full:
            pass
        self._tell(frame.rollout, frame.instrument, {"skipped": 1})

    def _go_on(self) -> None:
        while (waiting := self._frames.get()) is not None:
            self._compare(*waiting)

    def _compare(self, frame: ShadowFrame, end_s: float) -> None:
        """Compare one frame; what goes wrong is counted."""
        deadline = _Below(self._live, self._steps, end_s, lambda: self._is_closed)
        try:
            sums = self._compared(frame, deadline)
        except (DeadlineExceeded, CallerGone):
            sums = {"skipped": 1}
        except Exception as error:  # the shadow of one frame must not end those of others
            is_strange = not isinstance(error, ManybeamError)
            logger.warning("%s failed: %s", frame.rollout.words, error, exc_info=is_strange)
            sums = {"failed": 1, "fault": str(error)[:300]}
        self._tell(frame.rollout, frame.instrument, sums)

    def _compared(self, frame: ShadowFrame, deadline: "_Below") -> Sums:
        answer, new_s = self._timed(frame, frame.new, deadline)
        sums = {
            "base": answered(frame.answer),
            "new": answered(answer),
            "between": agreement(frame.answer, answer),
        }
        self._count += 1
        if new_s is not None and self._count % TIMED_EVERY == 2:  # the first one warms up
            try:
                _, base_s = self._timed(frame, frame.base, deadline)
            except Exception:  # noqa: BLE001 - too late or broken: it says nothing about the new one
                return sums
            if base_s is not None:
                sums["base"] |= took(base_s)
                sums["new"] |= took(new_s)
        return sums

    def _timed(
        self, frame: ShadowFrame, version: LoadedVersion, deadline: "_Below"
    ) -> tuple[Answer, float | None]:
        """Return the answer of one version, and its time if no live request came meanwhile."""
        own = frame.question
        # Of a session only the members that suit the summary of the frame answer, of both versions.
        is_selecting = own.is_auto or own.is_selecting or own.is_quick
        question = replace(own, ref=version.ref, is_selecting=is_selecting)
        deadline.check()
        before, begun_s = self._live.begun, time.monotonic() - deadline.waited_s
        answer = Predictor(OneVersion(version)).answer(frame.answer.frame, question, deadline)
        seconds = time.monotonic() - deadline.waited_s - begun_s
        return answer.lean(has_maps=False), seconds if self._live.begun == before else None


class Steps:
    """How long the steps of a shadow take, from one check to the next."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._begun_s = math.nan

    def begin(self) -> None:
        """Begin a step."""
        self._begun_s = time.monotonic()

    def end(self) -> None:
        """End the step; a long one is forgotten slowly."""
        took_s = time.monotonic() - self._begun_s
        if not math.isnan(took_s):
            self.longest_s = max(took_s, 0.97 * self.longest_s)
        self._begun_s = math.nan


class _Below(Deadline):
    """The deadline of work that waits before each of its steps until live requests leave time."""

    def __init__(
        self, live: LiveWork, steps: Steps, due_s: float, is_closed: Callable[[], bool]
    ) -> None:
        super().__init__(due_s)
        self._live, self._steps, self._is_closed = live, steps, is_closed
        self.waited_s = 0.0

    def check(self, what: str = "the answer was ready") -> None:
        """Wait until there is time; raises DeadlineExceeded if that does not come."""
        self._steps.end()
        begun_s, before_s = time.monotonic(), self.waited_s
        while True:
            self.is_cancelled = self._is_closed()
            super().check(what)
            if self._live.leaves(self._steps.longest_s):
                self._steps.begin()
                return
            time.sleep(LOOK_S)
            self.waited_s = time.monotonic() - begun_s + before_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; it begins when there is time."""
        self.check(name)
        with super().stage(name):
            yield
        self._steps.end()

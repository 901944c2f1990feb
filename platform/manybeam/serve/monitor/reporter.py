"""Reports answered frames of sessions to the monitor, beside the requests.

No request waits for it: reports wait in a short queue, and if the monitor is slow the oldest are
left out and counted.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.frame import Frame
from manybeam.db.serving.sessions import AnsweredFrame
from manybeam.errors import InvalidFrame, ManybeamError
from manybeam.predictor.answer import Answer
from manybeam.predictor.stream.drift import frame_crops
from manybeam.serve.monitor.report import FrameReport, MonitorPort, WatchState
from manybeam.serve.sessions.settings import SessionSettings

logger = logging.getLogger(__name__)

WAITING = 16  # frames, each in memory
AT_ONCE = 8  # reports of one call
STATES = 1000  # sessions whose state is remembered
DOUBTFUL_F1 = 0.8  # a frame with a lower predicted F1 is doubtful
IDLE_S = 1.0  # without frames, before the monitor is asked what somebody looks at
REST_S = 5.0  # before the monitor is called again after it failed


@dataclass(frozen=True, eq=False)
class _Answered:
    """A frame that waits to be reported; not the maps of its answer, which are large."""

    instrument: str
    frame: Frame
    atoms: NDArray[np.float32]
    recorded: AnsweredFrame
    is_doubtful: bool
    keep_doubtful: int


class FrameReporter:
    """Reports the frames of one replica; safe to use from several threads.

    Args:
        monitor: is told.
        left_out: is told how many frames were left out.
    """

    def __init__(
        self, monitor: MonitorPort, left_out: Callable[[int], None] = lambda _: None
    ) -> None:
        self.monitor, self._left_out = monitor, left_out
        self._waiting: deque[_Answered] = deque()
        self._states: OrderedDict[int, WatchState] = OrderedDict()
        self._watched: frozenset[int] = frozenset()
        self._room = threading.Condition()
        self._is_closed = self._is_away = self._is_busy = self._has_reported = False
        self._thread = threading.Thread(target=self._go_on, name="reporter", daemon=True)
        self._thread.start()

    def report(
        self, instrument: str, settings: SessionSettings, answer: Answer, recorded: AnsweredFrame
    ) -> None:
        """Report an answered frame soon.

        Args:
            instrument: its id.
            settings: of its session.
            answer: the answer.
            recorded: what the history keeps of it.
        """
        facts = _is_doubtful(answer), settings.keep_doubtful
        waiting = _Answered(instrument, answer.frame, answer.atoms, recorded, *facts)
        with self._room:
            is_full = len(self._waiting) >= WAITING
            if is_full:
                self._waiting.popleft()
            self._waiting.append(waiting)
            self._room.notify_all()
        if is_full:
            self._left_out(1)

    def state(self, session_id: int) -> WatchState | None:
        """Return what the monitor said of a session last; None if that is not known here."""
        return self._states.get(session_id)

    def settled(self, timeout_s: float) -> bool:
        """Wait until all frames were reported; return whether they were."""
        with self._room:
            return self._room.wait_for(lambda: not (self._waiting or self._is_busy), timeout_s)

    def close(self) -> None:
        """End; what was not reported is left out."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()
        self._thread.join()

    def _go_on(self) -> None:
        while True:
            with self._room:
                self._is_busy = False
                self._room.notify_all()
                # Now and then it only asks which sessions somebody looks at.
                pause_s = IDLE_S if self._has_reported else None
                self._room.wait_for(lambda: self._waiting or self._is_closed, pause_s)
                if self._is_closed:
                    return
                taken = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                self._is_busy = True
            self._tell(taken)

    def _tell(self, taken: list[_Answered]) -> None:
        try:
            seen = self.monitor.see(self._reports(taken))
        except ManybeamError as error:
            self._fail(len(taken), str(error))
        except Exception:  # the thread must go on; the frames are answered
            logger.exception("frames were not reported to the monitor")
            self._fail(len(taken), "internal error")
        else:
            self._is_away, self._has_reported = False, True
            self._watched = seen.watched
            for session_id, state in seen.states.items():
                self._states[session_id] = state
                self._states.move_to_end(session_id)
            while len(self._states) > STATES:
                self._states.popitem(last=False)

    def _reports(self, taken: list[_Answered]) -> list[FrameReport]:
        made = []
        for one in taken:
            try:
                made.append(self._reported(one))
            except Exception:  # an odd frame must not take the others with it
                logger.exception("a frame of %s was not reported", one.instrument)
                self._left_out(1)
        return made

    def _fail(self, count: int, why: str) -> None:
        if count:
            self._left_out(count)
        if not self._is_away:  # once, until it is back
            logger.warning("sessions are not watched: %s", why)
        self._is_away, until_s = True, time.monotonic() + REST_S
        with self._room:
            self._room.wait_for(lambda: self._is_closed, until_s - time.monotonic())

    def _reported(self, one: _Answered) -> FrameReport:
        recorded, frame = one.recorded, one.frame
        state = self._states.get(recorded.session_id)
        is_doubtful = one.is_doubtful or (state is not None and state.is_drifted)
        most_kept = one.keep_doubtful if is_doubtful else 0
        is_seen = recorded.session_id in self._watched
        rows, columns = frame.pixels_yx.shape
        spreads_k = _spreads_px(one.atoms)
        return FrameReport(
            one.instrument,
            recorded.session_id,
            recorded.frame_id,
            recorded.at,
            recorded.ref,
            recorded.members,
            {**recorded.values, "spread_px": _median(spreads_k)},
            (rows, columns),
            frame.pixel_size_pm,
            _crops(frame.pixels_yx),
            np.column_stack([one.atoms[:, [0, 1, 3]], spreads_k]) if is_seen else None,
            frame.pixels_yx if is_seen or most_kept else None,
            most_kept,
        )


def _is_doubtful(answer: Answer) -> bool:
    known = answer.predicted_f1
    return bool(answer.is_drifted) or (known is not None and known.f1 < DOUBTFUL_F1)


def _crops(pixels_yx: NDArray[np.float32]) -> NDArray[np.float32] | None:
    try:
        return frame_crops(pixels_yx)
    except InvalidFrame:
        return None


def _spreads_px(atoms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the spread of the position of each atom; NaN where fewer than two members saw it."""
    return np.hypot(atoms[:, 4], atoms[:, 5])


def _median(spreads_k: NDArray[np.float32]) -> float | None:
    known_k = spreads_k[np.isfinite(spreads_k)]
    return float(np.median(known_k)) if len(known_k) else None

"""The monitor of a session: has the condition moved since its members were chosen?

It costs no network, as it looks at summaries of frames only. A false alarm costs one selection.
Axis letters: s number of a summary.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

REFERENCE = 6  # frames after a choice that say what the condition is
LAST = 3  # frames that are compared with them; a single odd frame is no change
# Mean of the last frames from the mean of the reference, per scatter of one frame. Within a
# condition that wanders as sessions do, 1 in 100 is above (decision 0039).
MOVED = 1.8
LEAST_SCATTER = 0.3  # frames may be alike by chance
GAIN = 0.05  # predicted F1 that other members would gain


class ConditionMonitor:
    """Says when members should be chosen anew; for one choice of members.

    Args:
        apart: returns the distance of two summaries.
    """

    def __init__(self, apart: Callable[[np.ndarray, np.ndarray], float]) -> None:
        self._apart, self._reference = apart, list[np.ndarray]()
        self._last: deque[tuple[np.ndarray, float, bool]] = deque(maxlen=LAST)
        self._was_drifted: bool | None = None

    def see(self, summary_s: np.ndarray, gain: float, *, is_drifted: bool) -> str:
        """Take a frame; return why members should be chosen anew, or nothing.

        Args:
            summary_s: summary of the frame.
            gain: predicted F1 of the best members minus that of those that answer.
            is_drifted: whether the frame is out of distribution.
        """
        if self._was_drifted is None:
            self._was_drifted = is_drifted
        self._last.append((summary_s, gain, is_drifted))
        if len(self._reference) < REFERENCE:
            self._reference.append(summary_s)
        if len(self._last) < LAST:
            return ""
        gain = float(np.mean([one[1] for one in self._last]))
        if gain >= GAIN:
            return f"other members would gain {gain:.2f} of predicted F1 on the last {LAST} frames"
        if all(one[2] != self._was_drifted for one in self._last):
            now = "in distribution again" if self._was_drifted else "out of distribution"
            return f"the last {LAST} frames are {now}"
        return self._moved() if len(self._reference) == REFERENCE else ""

    def _moved(self) -> str:
        middle_s = np.mean(self._reference, axis=0)
        scatter = np.median([self._apart(one, middle_s) for one in self._reference])
        now_s = np.mean([one[0] for one in self._last], axis=0)
        moved = self._apart(now_s, middle_s) / max(float(scatter), LEAST_SCATTER)
        if moved < MOVED:
            return ""
        return f"the frames moved: {moved:.1f} times the scatter of one frame (limit {MOVED:g})"

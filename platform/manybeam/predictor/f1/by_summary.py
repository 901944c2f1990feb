"""F1, calibration and distance of answers from the summary of a frame alone.

No network runs, so this takes milliseconds where frame analysis takes several times as long as the
networks. It is less sure, and its intervals are wider, because it does not know what the members
found on this frame. A stream is watched by it, and members are dropped by it under a deadline.
Axis letters: n frame of the set, s number of a summary, q answerer, m member.
"""

from collections.abc import Sequence

import numpy as np

from manybeam.learn.analysis.calibration_set import CalibrationSet
from manybeam.predictor.f1.index import F1Index, View, alike, poor_f1
from manybeam.predictor.f1.predicted import PredictedF1, Weights

KEPT = 4096  # answerers whose fits stay in memory; sessions ask about many sub-ensembles
FAR = 2.0  # distance from which nothing is known of a frame
NEAR = 1.0  # distance up to which intervals are as measured


class SummaryPredictor:
    """Predicts from the summary of a frame; safe to use from several threads.

    Args:
        table: the calibration set.

    Attributes:
        poor_f1: the predicted F1 below which no answer is of use, as that of `performance`.
    """

    def __init__(self, table: CalibrationSet) -> None:
        self.table, self._view = table, View(table.summary_ns, KEPT)
        left_out_nm = self._view.kernels.fit(table.f1_nm).fitted_nq
        frame_n = np.repeat(np.arange(len(table)), len(table.members))
        self._index = F1Index(left_out_nm.clip(0, 1).reshape(-1, 1), table.f1_nm.ravel(), frame_n)
        best_n = self._index.fitted.reshape(len(table), -1).max(axis=1)
        self.poor_f1 = poor_f1(best_n, table.f1_nm)

    def predict_f1(self, summary_s: np.ndarray, answerers: Sequence[Weights]) -> list[PredictedF1]:
        """Return the predicted F1 of each answerer on a frame of such a summary.

        Beyond the usual distance from the set the intervals grow; at twice of it they cover what
        the answerer scored on nine of ten frames of the set.

        Args:
            summary_s: summary of the frame, `frame_analysis.summary_of`.
            answerers: members and sub-ensembles, each as member -> share.
        """
        raw_q = self._view.regress(summary_s[None], answerers, self.table.f1_of_each)
        found_q5 = self._index.predict_f1(raw_q.clip(0, 1)[:, None])
        known = float(np.clip((FAR - self.distance(summary_s)) / (FAR - NEAR), 0, 1))
        if known < 1:
            low, high = np.quantile(self.table.f1_nm, [0.05, 0.95])
            found_q5[:, 1::2] -= (1 - known) * (found_q5[:, 1::2] - low).clip(0)
            found_q5[:, 2::2] += (1 - known) * (high - found_q5[:, 2::2]).clip(0)
        return [
            PredictedF1(f1, low, high, {}, (chosen_low, chosen_high))
            for f1, low, high, chosen_low, chosen_high in found_q5.tolist()
        ]

    def distance(self, summary_s: np.ndarray) -> float:
        """Return the distance to the nearest frame of the set; 1 is usual within the set."""
        return self._view.distance(summary_s[None])

    def apart(self, one_s: np.ndarray, other_s: np.ndarray) -> float:
        """Return the distance of two frames, in the units of `distance`."""
        return self._view.apart(one_s[None], other_s[None])

    def alike(self, summary_s: np.ndarray, weights: Weights, count: int) -> np.ndarray:
        """Return the frames of the set on which an answerer is as often right as here.

        As `PerformancePredictor.alike`, from the summary alone.
        """
        rows = [(self._view, summary_s[None])]
        return alike(rows, self.nearest(summary_s, 3 * count), self.table.found(weights), count)

    def nearest(self, summary_s: np.ndarray, count: int) -> np.ndarray:
        """Return the frames of the set most like this one, nearest first."""
        return self._view.nearest(summary_s[None])[:count]

    def fewer(self, summary_s: np.ndarray, weights: Weights, count: int) -> Weights:
        """Return `count` of some members; the ones whose loss costs least predicted F1 are dropped.

        Members are dropped one after the other. The others keep their shares among each other.
        """
        left = weights
        while len(left) > max(count, 1):
            tried = [_without(left, member) for member in left]
            f1_q = [one.f1 for one in self.predict_f1(summary_s, tried)]
            left = tried[int(np.argmax(f1_q))]
        return left


def _without(weights: Weights, member: int) -> Weights:
    left = {one: share for one, share in weights.items() if one != member}
    total = sum(left.values())
    return {one: share / total for one, share in left.items()}

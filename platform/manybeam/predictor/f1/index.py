"""F1 learned from frames with known truth: their distances, and predictions with intervals.

Axis letters: n frame or example, s number of a row, q answerer, i part of a sum, b bin.

Source: Barlow et al., Statistical Inference under Order Restrictions (1972), isotonic regression;
Lei et al., JASA 113, 1094 (2018), conformal intervals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import isotonic_regression, nnls

from manybeam.learn.analysis.regress import (
    WIDTHS,
    Kernels,
    Regression,
    Scatter,
    square_distances,
)
from manybeam.predictor.f1.predicted import Weights

TAIL = 0.05  # on either side of a 90 % interval
BINS = 12  # largest number of bins of predictions, each with its own errors
LEAST_BIN = 40  # errors; the tails of fewer cannot be estimated
FOLDS = 5  # errors are those of a fit without the frame
USUAL = 0.95  # share of the frames of the set that have another within distance 1
HAIR = 1e-6  # F1; too small to be printed
POOR_F1 = 0.6  # an answer with a lower F1 is of no use
WRONGLY_POOR = 0.02  # share of the frames that a member fits, but that are called poor
CLOSE = 0.002  # F1 by which answers do not differ; an interval of a chosen one reaches farther


@dataclass(frozen=True, eq=False)
class _Fit:
    """The kernel regression of one answerer's F1."""

    middle: float
    width: float
    weight_n: np.ndarray


class View:
    """Frames as rows of numbers, with the distances between them; safe for several threads.

    Args:
        raw_ns: the rows.
        kept: answerers whose fits stay in memory, 5 KB each for 600 frames.
    """

    def __init__(self, raw_ns: np.ndarray, kept: int = 256) -> None:
        self.raw_ns, self._scatter, self._kept = raw_ns, Scatter(raw_ns), kept
        self.known_ns = self._scatter.measured(raw_ns)
        self._fits: dict[tuple[tuple[int, float], ...], _Fit] = {}

    @cached_property
    def kernels(self) -> Kernels:
        """The rows, prepared for regression."""
        return Kernels(self.known_ns)

    def regress(
        self,
        row_1s: np.ndarray,
        answerers: Sequence[Weights],
        f1_of: Callable[[Sequence[Weights]], np.ndarray],
    ) -> np.ndarray:
        """Return the F1 of each answerer on a new row by kernel regression, (q,).

        Fits are kept, because every frame asks about the same answerers.

        Args:
            row_1s: the row.
            answerers: members and sub-ensembles, each as member -> share.
            f1_of: returns the F1 of answerers on the rows of the view, (n, q); the same each time.
        """
        fits = self._fitted(answerers, f1_of)
        square_n = square_distances(self.seen(row_1s), self.known_ns)[0]
        kernel_wn = {width: np.exp(-square_n / (2 * width**2)) for width in WIDTHS}
        return np.array([one.middle + kernel_wn[one.width] @ one.weight_n for one in fits])

    def _fitted(
        self, answerers: Sequence[Weights], f1_of: Callable[[Sequence[Weights]], np.ndarray]
    ) -> list[_Fit]:
        keys = [tuple(sorted(weights.items())) for weights in answerers]
        fits = self._fits  # never changed but replaced whole, so threads do not disturb each other
        missing = {key: one for key, one in zip(keys, answerers, strict=True) if key not in fits}
        if missing:
            fit = self.kernels.fit(f1_of(list(missing.values())))
            new = {
                key: _Fit(float(fit.middle_q[q]), float(fit.width_q[q]), fit.weight_nq[:, q].copy())
                for q, key in enumerate(missing)
            }
            kept = (
                fits if len(fits) < self._kept else {key: fits[key] for key in keys if key in fits}
            )
            fits = self._fits = {**kept, **new}
        return [fits[key] for key in keys]

    def fit_first(self, value_nq: np.ndarray) -> Regression:
        """Return a fit to the first rows; rows without a value get the mean."""
        missing = len(self.raw_ns) - len(value_nq)
        rest_nq = np.repeat(value_nq.mean(axis=0, keepdims=True), missing, axis=0)
        return self.kernels.fit(np.vstack([value_nq, rest_nq]))

    @cached_property
    def usual(self) -> float:
        """Distance within which most rows have another row."""
        square_nn = square_distances(self.known_ns, self.known_ns)
        np.fill_diagonal(square_nn, np.inf)
        return max(float(np.quantile(np.sqrt(square_nn.min(axis=1)), USUAL)), 1e-9)

    def seen(self, row_1s: np.ndarray) -> np.ndarray:
        """Return a new row in units of the scatter of the known rows."""
        return self._scatter.measured(row_1s)

    def nearest(self, row_1s: np.ndarray) -> np.ndarray:
        """Return all rows, the nearest first."""
        return np.argsort(square_distances(self.seen(row_1s), self.known_ns)[0], kind="stable")

    def distance(self, row_1s: np.ndarray) -> float:
        """Return the distance to the nearest row; 1 is usual."""
        square_1n = square_distances(self.seen(row_1s), self.known_ns)
        return float(np.sqrt(square_1n.min())) / self.usual

    def apart(self, one_1s: np.ndarray, other_1s: np.ndarray) -> float:
        """Return the distance of two new rows, in the same units."""
        square_11 = square_distances(self.seen(one_1s), self.seen(other_1s))
        return float(np.sqrt(square_11[0, 0])) / self.usual


def alike(
    rows: Sequence[tuple[View, np.ndarray]],
    near_n: np.ndarray,
    found: tuple[np.ndarray, np.ndarray],
    count: int,
) -> np.ndarray:
    """Return the frames on which an answerer is as often right as on a new one, nearest first.

    Args:
        rows: the views, each with the new frame as a row (1, s) of it.
        near_n: the frames to choose among.
        found: numbers of true and of false atoms that the answerer finds on each frame.
        count: number of frames.
    """
    hits_n, false_n = found
    true_n1 = ((hits_n + 1) / (hits_n + false_n + 1))[:, None]  # 1 where nothing is found
    expected_n, here = np.zeros(len(hits_n)), 0.0
    for view, row_1s in rows:
        fitted = view.fit_first(true_n1)
        expected_n += fitted.fitted_nq[: len(hits_n), 0]
        here += float(fitted.predict(view.seen(row_1s))[0, 0])
    order = np.argsort(np.abs(expected_n[near_n] - here), kind="stable")
    return np.asarray(near_n[order][:count])


class F1Index:
    """F1 as a monotone function of a sum of parts with weights >= 0.

    Args:
        part_ni: parts of examples; NaN, a part that does not apply, counts as 0.
        f1_n: their F1.
        frame_n: the frame of each example; errors are those of a fit without that frame.
    """

    def __init__(self, part_ni: np.ndarray, f1_n: np.ndarray, frame_n: np.ndarray) -> None:
        part_ni = np.nan_to_num(part_ni)
        free_n2 = np.ones((len(part_ni), 2)) * (1, -1)  # a constant of either sign
        self.weight_i = nnls(np.hstack([part_ni, free_n2]), f1_n)[0][:-2]
        total_n = part_ni @ self.weight_i
        self._total_n, self._f1_n = _monotone(total_n, f1_n)
        self.fitted = np.interp(total_n, self._total_n, self._f1_n)
        left_out_n = np.empty(len(f1_n))
        for fold in range(FOLDS):
            out_n = frame_n % FOLDS == fold
            rest = _monotone(total_n[~out_n], f1_n[~out_n]) if not out_n.all() else (total_n, f1_n)
            left_out_n[out_n] = np.interp(total_n[out_n], *rest)
        self._middle_b, self._error_b2 = _errors(left_out_n, f1_n - left_out_n)
        chosen_k = _highest(total_n, frame_n)
        error_k = (f1_n - left_out_n)[chosen_k]
        reach_2k = _reach(self._ends(left_out_n[chosen_k]))
        # Of n errors and the one asked about, the k-th is exceeded by chance 1 - k / (n + 1).
        share = min((1 - TAIL) * (1 + 1 / len(chosen_k)), 1.0)
        self._stretch_2 = np.quantile([-error_k, error_k] / reach_2k, share, axis=1).clip(0)

    def predict_f1(self, part_qi: np.ndarray) -> np.ndarray:
        """Return F1, its 90 % interval, and the interval of a chosen answerer, (q, 5)."""
        total_q = np.nan_to_num(part_qi) @ self.weight_i
        f1_q = np.interp(total_q, self._total_n, self._f1_n)
        ends_2q = self._ends(f1_q)
        down_q, up_q = self._stretch_2[:, None] * _reach(ends_2q)
        errors_4q = np.array([*ends_2q, -down_q, up_q])
        low_q, high_q, chosen_low_q, chosen_high_q = np.clip(f1_q + errors_4q, 0, 1)
        # Isotonic regression is flat in places; a little of the sum keeps the order there.
        f1_q = (1 - HAIR) * f1_q + HAIR * total_q / (1 + total_q)
        lows = [np.minimum(one, f1_q) for one in (low_q, chosen_low_q)]
        highs = [np.maximum(one, f1_q) for one in (high_q, chosen_high_q)]
        return np.column_stack([f1_q, lows[0], highs[0], lows[1], highs[1]])

    def _ends(self, f1_q: np.ndarray) -> np.ndarray:
        """Return both ends of the 90 % interval of errors, (2, q)."""
        return np.array([np.interp(f1_q, self._middle_b, end_b) for end_b in self._error_b2.T])


def poor_f1(best_n: np.ndarray, f1_nm: np.ndarray) -> float:
    """Return the F1 below which a frame is called poor if no predicted F1 is above it.

    At most 2 % of the frames that a member fits are called so.

    Args:
        best_n: the highest predicted F1 of each frame.
        f1_nm: the F1 of each member on it.
    """
    fits_n = f1_nm.max(axis=1) >= POOR_F1
    if not fits_n.any():
        return POOR_F1
    return float(min(np.quantile(best_n[fits_n], WRONGLY_POOR), POOR_F1))


def _reach(ends_2q: np.ndarray) -> np.ndarray:
    """Return how far an interval reaches down and up, (2, q); at least `CLOSE`."""
    return np.asarray(np.maximum(ends_2q * [[-1], [1]], 0) + CLOSE)


def _monotone(total_n: np.ndarray, f1_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums in order, and the F1 of each by isotonic regression."""
    order = np.argsort(total_n, kind="stable")
    return total_n[order], isotonic_regression(f1_n[order]).x


def _highest(total_n: np.ndarray, frame_n: np.ndarray) -> np.ndarray:
    """Return the example of each frame that has the highest sum."""
    order = np.lexsort((total_n, frame_n))
    return np.asarray(order[np.append(np.diff(frame_n[order]) > 0, True)])


def _errors(fitted_n: np.ndarray, error_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the median prediction of each bin and both conformal ends of its errors."""
    count = int(np.clip(len(fitted_n) // LEAST_BIN, 1, BINS))
    bins = np.array_split(np.argsort(fitted_n, kind="stable"), count)
    middle_b = np.array([np.median(fitted_n[one]) for one in bins])
    ends = []
    for one in bins:
        # A new error is below the k-th of n known ones with probability k / (n + 1).
        share = max(TAIL * (len(one) + 1) - 1, 0.0) / max(len(one) - 1, 1)
        ends.append(np.quantile(error_n[one], [share, 1 - share]))
    return middle_b, np.array(ends)

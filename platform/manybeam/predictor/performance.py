"""Performance prediction: the F1 of a member or a sub-ensemble on a frame, with its interval.

It is learned from a calibration set only. Two kernel regressions estimate what each member scores
on frames like this one: `simulated` uses the summaries of the frame and the label-free scores of
all members, `resembled` uses the scores only. Isotonic regression turns a weighted sum of both,
of `forward` and of `lattice`, into the predicted F1; its interval is conformal. If the frame is
unlike every frame of the set, the prediction uses the label-free scores only and its interval is
wider.
Axis letters: n frame of the set, m member, f score, q answerer (a member or a sub-ensemble),
i part of the index.

Source: Robert et al., Stat. Comput. 27 (2017) survey regressions on reference tables; Barlow et
al., Statistical Inference under Order Restrictions (1972), isotonic regression; Lei et al., JASA
113, 1094 (2018), conformal intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import isotonic_regression, nnls

from manybeam.errors import InvalidInput
from manybeam.learn.analysis.calibration_set import CalibrationSet
from manybeam.learn.analysis.fitness import SCORES
from manybeam.learn.analysis.frame_analysis import FrameAnalysis
from manybeam.learn.analysis.regress import Kernels, Regression, Scatter, square_distances

Weights = Mapping[int, float]  # index of a member -> its share in an answer

TAIL = 0.05  # on either side of a 90 % interval
BINS = 12  # largest number of bins of predictions, each with its own errors
LEAST_BIN = 40  # errors; the tails of fewer cannot be estimated
FOLDS = 5  # errors are those of a fit without the frame
USUAL = 0.95  # share of the frames of the set that have another within distance 1
POOR_F1 = 0.6  # an answer with a lower F1 is of no use
WRONGLY_POOR = 0.02  # share of the frames that a member fits, but that are called poor
PARTS = ("simulated", "resembled", *SCORES)
INDEX = [PARTS.index(name) for name in ("simulated", "resembled", "forward", "lattice")]
HAIR = 1e-6  # F1; too small to be printed
CLOSE = 0.002  # F1 by which answers do not differ; an interval of a chosen one reaches farther
PREFERENCE_MARGIN = 0.02  # F1 by which a member that nobody preferred is taken to be worse


@dataclass(frozen=True)
class PredictedF1:
    """The predicted F1 of one answerer.

    Attributes:
        f1: expected F1, 0 to 1.
        low: lower end of the 90 % interval.
        high: upper end of the 90 % interval.
        parts: the values it was predicted from, by name: those of `SCORES` that apply,
            `simulated`, `resembled`.
        if_chosen: the 90 % interval if this answerer was chosen because its prediction is the
            highest. It usually reaches lower, because the highest of several predictions is more
            often too high.
    """

    f1: float
    low: float
    high: float
    parts: Mapping[str, float]
    if_chosen: tuple[float, float] = (0.0, 1.0)

    @property
    def chosen(self) -> "PredictedF1":
        """The same for an answerer that was chosen for its prediction."""
        return replace(self, low=self.if_chosen[0], high=self.if_chosen[1])


@dataclass(frozen=True, eq=False)
class PreferredMembers:
    """The members that a person preferred for one frame.

    Attributes:
        summary_s: summary of the frame.
        score_mf: label-free scores of every member of the set.
        members: the preferred members.
    """

    summary_s: np.ndarray
    score_mf: np.ndarray
    members: tuple[int, ...]


class PerformancePredictor:
    """Predicts F1 from a calibration set; safe to use from several threads.

    Args:
        table: the calibration set.
        preferences: frames for which people chose members.
    """

    def __init__(self, table: CalibrationSet, preferences: Sequence[PreferredMembers] = ()) -> None:
        self.table = table
        scores_nf = table.score_nmf.reshape(len(table), -1)
        self._f1_nm = table.f1_nm
        self._views = (_View(np.hstack([table.summary_ns, scores_nf])), _View(scores_nf))
        self._frames = _View(table.summary_ns)
        if preferences:
            self._learn_preferences(preferences)

    def predict_f1(self, seen: FrameAnalysis, answerers: Sequence[Weights]) -> list[PredictedF1]:
        """Return the predicted F1 of each answerer on a frame.

        Args:
            seen: analysis of the frame with the members of the set.
            answerers: members and sub-ensembles, each as member -> share.

        Raises:
            InvalidInput: the analysis is of other members than those of the set.
        """
        distance = self.distance(seen)
        row = self._row(seen)
        part_qi = np.column_stack([*self._by_views(row, answerers), self._own(seen, answerers)])
        near, far = self._near.predict_f1(part_qi[:, INDEX]), self._far.predict_f1(part_qi[:, 2:])
        share = float(np.clip(2 - distance, 0, 1))
        mixed_q5 = share * near + (1 - share) * far
        if share < 1:  # the interval covers both
            mixed_q5[:, 1::2] = np.minimum(near[:, 1::2], far[:, 1::2])
            mixed_q5[:, 2::2] = np.maximum(near[:, 2::2], far[:, 2::2])
        return [
            PredictedF1(f1, low, high, _named(part_i), (chosen_low, chosen_high))
            for (f1, low, high, chosen_low, chosen_high), part_i in zip(
                mixed_q5.tolist(), part_qi, strict=True
            )
        ]

    def distance(self, seen: FrameAnalysis) -> float:
        """Return the distance to the nearest frame of the set; 1 is usual within the set."""
        return self._frames.distance(seen.summary_cs.mean(axis=0, keepdims=True))

    @cached_property
    def poor_f1(self) -> float:
        """If every predicted F1 of a frame is below this, it is called out of distribution.

        At most 2 % of the frames of the set that a member fits are called so.
        """
        best_n = self._near.fitted.reshape(len(self.table), -1).max(axis=1)
        fits_n = self.table.f1_nm.max(axis=1) >= POOR_F1
        return (
            float(min(np.quantile(best_n[fits_n], WRONGLY_POOR), POOR_F1))
            if any(fits_n)
            else POOR_F1
        )

    def nearest(self, seen: FrameAnalysis, count: int) -> np.ndarray:
        """Return the frames of the set most like this one, nearest first."""
        near_n = self._views[0].nearest(self._row(seen).whole)
        return np.asarray(near_n[near_n < len(self.table)][:count])

    def alike(self, seen: FrameAnalysis, weights: Weights, count: int) -> np.ndarray:
        """Return the frames of the set on which an answerer is as often right as here.

        Among the frames most like this one (three times as many), these are the ones whose
        expected share of true atoms among the found atoms is nearest to that of this frame. The
        nearest is first.
        """
        hits_n, false_n = self.table.found(weights)
        true_n1 = ((hits_n + 1) / (hits_n + false_n + 1))[:, None]  # 1 where nothing is found
        row = self._row(seen)
        expected_n, here = np.zeros(len(self.table)), 0.0
        for view, seen_1s in zip(self._views, row.of_views, strict=True):
            fitted = view.fit_first(true_n1)
            expected_n += fitted.fitted_nq[: len(self.table), 0]
            here += float(fitted.predict(view.seen(seen_1s))[0, 0])
        near_n = self.nearest(seen, 3 * count)
        order = np.argsort(np.abs(expected_n[near_n] - here), kind="stable")
        return np.asarray(near_n[order][:count])

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part of the index; they need not sum to 1."""
        return {PARTS[i]: float(w) for i, w in zip(INDEX, self._near.weight_i, strict=True)}

    def _row(self, seen: FrameAnalysis) -> "_Row":
        """Return a frame as a row, with the members in the order of the set."""
        here, known = seen.prediction.members, self.table.members
        if set(here) != set(known):
            raise InvalidInput(
                f"members {', '.join(map(str, here))} of an ensemble that was calibrated with "
                f"members {', '.join(map(str, known))}",
                "predicted F1 was learned with exactly those members",
                "manybeam calibrate REF again",
            )
        order = [here.index(member) for member in known]
        return _Row(seen.summary_cs.mean(axis=0), seen.score_mf[order])

    def _by_views(self, row: "_Row", answerers: Sequence[Weights]) -> list[np.ndarray]:
        """Return the F1 of each answerer by each view."""
        known_nq = np.stack([self._known(one) for one in answerers], axis=1)
        return [
            np.clip(view.kernels.fit(known_nq).predict(view.seen(seen_1s))[0], 0, 1)
            for view, seen_1s in zip(self._views, row.of_views, strict=True)
        ]

    def _known(self, weights: Weights) -> np.ndarray:
        """Return the F1 of an answerer on each frame; of a preference, the mean of its members."""
        places = [self.table.members.index(member) for member in weights]
        if len(places) == 1:
            return np.asarray(self._f1_nm[:, places[0]])
        preferred = self._f1_nm[len(self.table) :, places].mean(axis=1)
        return np.concatenate([self.table.f1(weights), preferred])

    def _own(self, seen: FrameAnalysis, answerers: Sequence[Weights]) -> np.ndarray:
        """Return the label-free scores of each answerer, (q, f)."""
        members, rows = seen.prediction.members, []
        for weights in answerers:
            if len(weights) == 1:
                rows.append(seen.score_mf[members.index(next(iter(weights)))])
                continue
            total = sum(weights.values())
            rows.append(seen.score_of({one: share / total for one, share in weights.items()}))
        return np.stack(rows)

    @cached_property
    def _near(self) -> "_Index":
        count = len(self.table)
        left_out = [view.kernels.fit(self._f1_nm).fitted_nq[:count] for view in self._views]
        views = [np.clip(one, 0, 1)[..., None] for one in left_out]
        part_ni = np.concatenate([*views, self.table.score_nmf], axis=2).reshape(-1, len(PARTS))
        return _Index(part_ni[:, INDEX], self._f1_nm[:count].ravel(), self._frame_n)

    @cached_property
    def _far(self) -> "_Index":
        score_nf = self.table.score_nmf.reshape(-1, len(SCORES))
        return _Index(score_nf, self._f1_nm[: len(self.table)].ravel(), self._frame_n)

    @property
    def _frame_n(self) -> np.ndarray:
        """The frame of the set for each example of an index."""
        return np.repeat(np.arange(len(self.table)), len(self.table.members))

    def _learn_preferences(self, preferences: Sequence[PreferredMembers]) -> None:
        """Add the frames of preferences: on them the preferred members are the best."""
        rows = [_Row(one.summary_s, one.score_mf) for one in preferences]
        alone = [{member: 1.0} for member in self.table.members]
        f1_pm = np.stack([np.mean(self._by_views(row, alone), axis=0) for row in rows])
        best_p1 = f1_pm.max(axis=1, keepdims=True)
        is_preferred = np.stack([np.isin(self.table.members, one.members) for one in preferences])
        taught_pm = np.where(
            is_preferred, best_p1, np.minimum(f1_pm, best_p1 - PREFERENCE_MARGIN).clip(0)
        )
        self._views = (
            _View(np.vstack([self._views[0].raw_ns, *(row.of_views[0] for row in rows)])),
            _View(np.vstack([self._views[1].raw_ns, *(row.of_views[1] for row in rows)])),
        )
        self._f1_nm = np.vstack([self._f1_nm, taught_pm])


@dataclass(frozen=True, eq=False)
class _Row:
    """A frame in the two views."""

    summary_s: np.ndarray
    score_mf: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """Summaries and scores, one row."""
        return self.of_views[0]

    @property
    def of_views(self) -> tuple[np.ndarray, np.ndarray]:
        scores_1f = self.score_mf.reshape(1, -1)
        return np.hstack([self.summary_s[None], scores_1f]), scores_1f


class _View:
    """Frames as rows of numbers, with the distances between them."""

    def __init__(self, raw_ns: np.ndarray) -> None:
        self.raw_ns, self._scatter = raw_ns, Scatter(raw_ns)
        self.known_ns = self._scatter.measured(raw_ns)

    @cached_property
    def kernels(self) -> Kernels:
        """The rows, prepared for regression."""
        return Kernels(self.known_ns)

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


class _Index:
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


def _reach(ends_2q: np.ndarray) -> np.ndarray:
    """Return how far an interval reaches down and up, (2, q); at least `CLOSE`."""
    return np.asarray(np.maximum(ends_2q * [[-1], [1]], 0) + CLOSE)


def _named(part_i: np.ndarray) -> dict[str, float]:
    return {
        name: float(value) for name, value in zip(PARTS, part_i, strict=True) if np.isfinite(value)
    }


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

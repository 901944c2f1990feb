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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manybeam.errors import InvalidInput
from manybeam.learn.analysis.calibration_set import CalibrationSet
from manybeam.learn.analysis.fitness import SCORES
from manybeam.learn.analysis.frame_analysis import FrameAnalysis
from manybeam.predictor.f1.by_summary import SummaryPredictor
from manybeam.predictor.f1.index import F1Index, View, alike, poor_f1
from manybeam.predictor.f1.predicted import PredictedF1, Weights

PARTS = ("simulated", "resembled", *SCORES)
INDEX = [PARTS.index(name) for name in ("simulated", "resembled", "forward", "lattice")]
PREFERENCE_MARGIN = 0.02  # F1 by which a member that nobody preferred is taken to be worse


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
        self._views = (View(np.hstack([table.summary_ns, scores_nf])), View(scores_nf))
        self._frames = View(table.summary_ns)
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
        return poor_f1(best_n, self.table.f1_nm)

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
        near_n = self.nearest(seen, 3 * count)
        rows = list(zip(self._views, self._row(seen).of_views, strict=True))
        return alike(rows, near_n, self.table.found(weights), count)

    @cached_property
    def by_summary(self) -> SummaryPredictor:
        """The same from the summary of a frame alone."""
        return SummaryPredictor(self.table)

    def prepare(self) -> None:
        """Learn everything now that the first frame would else wait for."""
        views = (*self._views, self._frames)
        _ = (self._near, self._far, self.poor_f1, self.by_summary)
        _ = tuple((view.kernels, view.usual) for view in views)

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
        return [
            np.clip(view.regress(seen_1s, answerers, self._known_of), 0, 1)
            for view, seen_1s in zip(self._views, row.of_views, strict=True)
        ]

    def _known_of(self, answerers: Sequence[Weights]) -> np.ndarray:
        """Return the F1 of answerers on each frame, (n, q)."""
        return np.stack([self._known(one) for one in answerers], axis=1)

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
    def _near(self) -> "F1Index":
        count = len(self.table)
        left_out = [view.kernels.fit(self._f1_nm).fitted_nq[:count] for view in self._views]
        views = [np.clip(one, 0, 1)[..., None] for one in left_out]
        part_ni = np.concatenate([*views, self.table.score_nmf], axis=2).reshape(-1, len(PARTS))
        return F1Index(part_ni[:, INDEX], self._f1_nm[:count].ravel(), self._frame_n)

    @cached_property
    def _far(self) -> "F1Index":
        score_nf = self.table.score_nmf.reshape(-1, len(SCORES))
        return F1Index(score_nf, self._f1_nm[: len(self.table)].ravel(), self._frame_n)

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
            View(np.vstack([self._views[0].raw_ns, *(row.of_views[0] for row in rows)])),
            View(np.vstack([self._views[1].raw_ns, *(row.of_views[1] for row in rows)])),
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


def _named(part_i: np.ndarray) -> dict[str, float]:
    return {
        name: float(value) for name, value in zip(PARTS, part_i, strict=True) if np.isfinite(value)
    }

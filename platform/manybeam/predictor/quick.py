"""Quick answers: only the networks that answer run, and the rest is said by the frame's summary.

Frame analysis runs every network twice and compares what they found. That is more work than the
answer itself, so an answer that has little time, or one of many frames of one session, goes without
it. Without a calibration set nothing is known but the networks' own probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manybeam.data.io.frame import Frame
from manybeam.errors import InvalidFrame
from manybeam.learn.analysis.frame_analysis import summary_of
from manybeam.predictor.condition_distance import structure_of
from manybeam.predictor.f1.by_summary import SummaryPredictor
from manybeam.predictor.f1.predicted import PredictedF1, Weights
from manybeam.predictor.selection import (
    ASKED,
    WEIGHTED,
    WORTH_A_SPREAD,
    Answerer,
    Selection,
    drift_reasons,
    sub_ensembles,
)
from manybeam.predictor.transferred_calibration import (
    NEIGHBOURS,
    frames_needed,
    transfer_calibration,
)
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.zoo.matrix import Matrix


@dataclass(frozen=True, eq=False)
class SummarisedFrame:
    """The summary of a frame beside the calibration set of one version.

    Attributes:
        known: what the version's calibration set says of a summary.
        summary_s: summary of the frame.
        structure: of the sample, as stated or as calibrated.
    """

    known: SummaryPredictor
    summary_s: np.ndarray
    structure: str

    @classmethod
    def of(cls, version: LoadedVersion, frame: Frame) -> "SummarisedFrame | None":
        """Return the summary of a frame; None if the version or the frame allows none."""
        known = version.performance
        if known is None:
            return None
        try:
            summary_s = summary_of(version.ensemble, frame.pixels_yx, frame.pixel_size_pm)
        except InvalidFrame:  # too small
            return None
        structure = structure_of(frame.condition, (), known.table.structure)
        return cls(known.by_summary, summary_s, structure)

    @cached_property
    def distance(self) -> float:
        """Distance of the frame from the calibration set, 1 is usual."""
        return self.known.distance(self.summary_s)

    @cached_property
    def ranked(self) -> list[tuple[int, PredictedF1]]:
        """Each member with its predicted F1, best first."""
        members = self.known.table.members
        alone = self.known.predict_f1(self.summary_s, [{member: 1.0} for member in members])
        return sorted(zip(members, alone, strict=True), key=lambda one: (-one[1].f1, one[0]))

    @cached_property
    def best(self) -> tuple[Weights, PredictedF1]:
        """The member or sub-ensemble of equal shares with the highest predicted F1."""
        first, known = self.ranked[0]
        tried = sub_ensembles([(member, one.f1) for member, one in self.ranked])
        tried.pop(WEIGHTED, None)  # with shares of its own on each frame, no fit could be reused
        together = self.known.predict_f1(self.summary_s, list(tried.values())) if tried else []
        weights, best = max(
            zip(tried.values(), together, strict=True),
            key=lambda one: one[1].f1,
            default=({first: 1.0}, known),
        )
        if best.f1 >= known.f1 - WORTH_A_SPREAD:
            return weights, best.chosen
        return {first: 1.0}, known.chosen

    @property
    def warned(self) -> list[str]:
        """Why the frame is out of distribution; nothing if it is not."""
        return drift_reasons(
            self.distance,
            self.ranked[0][1].f1,
            self.known.poor_f1,
            self.structure,
            self.known.table.structure,
        )

    @property
    def rank_key(self) -> tuple[bool, float]:
        """The sort key of versions for `auto`, greatest first: fits, predicted F1."""
        return not self.warned, self.best[1].f1

    def predicted(self, weights: Weights) -> PredictedF1:
        """Return the predicted F1 of one answerer."""
        (known,) = self.known.predict_f1(self.summary_s, [weights])
        return known

    def selection(self, weights: Weights, false_atoms: float, why: str) -> Selection:
        """Return what is known of an answer of these members.

        Args:
            weights: the members that answer.
            false_atoms: bound on the share of false atoms, 0 for none.
            why: why these members answer.
        """
        known, members = self.predicted(weights), list(weights)
        count = frames_needed(false_atoms) if false_atoms else NEIGHBOURS
        transferred = transfer_calibration(
            self.known.table,
            self.known.alike(self.summary_s, weights, count),
            weights,
            distance=self.distance,
            false_atoms=false_atoms,
            nearest_n=self.known.nearest(self.summary_s, NEIGHBOURS // 2),
        )
        warned = self.warned
        rests_on = f"its summary among {len(self.known.table)} simulated frames"
        reasons = [
            why or f"members {_names(members)} answer",
            f"predicted F1 {known.f1:.2f} ({known.low:.2f} to {known.high:.2f}) by its summary",
            *warned,
            f"{'out of distribution' if warned else 'verdict ok'} by {rests_on}",
        ]
        return Selection(
            verdict="out-of-distribution" if warned else "ok",
            candidates=(),
            chosen=tuple(sorted(members, key=lambda member: -weights[member])),
            reasons=tuple(reasons),
            answerers=(Answerer(ASKED, weights, known.f1, known.low, known.high),),
            is_calibrated=True,
            distance=self.distance,
            transferred=transferred,
            summary=tuple(self.summary_s.tolist()),
            asked=weights,
            rests_on=rests_on,
        )


def fewer(
    version: LoadedVersion, summarised: SummarisedFrame | None, weights: Weights, count: int
) -> Weights:
    """Return `count` of some members; those that cost least F1 are dropped.

    Without a summary, the members with the highest measured F1 stay.
    """
    if summarised is not None:
        return summarised.known.fewer(summarised.summary_s, weights, count)
    best = sorted(weights, key=lambda member: -_measured(version.matrix, member))[:count]
    total = sum(weights[member] for member in best)
    return {member: weights[member] / total for member in weights if member in best}


def dropped_words(
    summarised: SummarisedFrame | None,
    all_of: Weights,
    kept: Weights,
    seconds: float | None,
    left_s: float,
) -> str:
    """Return that members were left out, why, and what it costs."""
    gone = [member for member in all_of if member not in kept]
    took = (
        "" if seconds is None else f"all {len(all_of)} would take about {1000 * seconds:.0f} ms, "
    )
    words = f"without members {_names(gone)}: {took}{max(1000 * left_s, 0):.0f} ms were left"
    if summarised is None:
        return words
    with_all, now = summarised.known.predict_f1(summarised.summary_s, [all_of, kept])
    return f"{words}; predicted F1 {now.f1:.2f} instead of {with_all.f1:.2f}"


def _measured(matrix: Matrix, member: int) -> float:
    """Return a member's mean F1 over the conditions it was measured on."""
    known = [matrix.value(member, name, "f1") for name in matrix.conditions]
    return float(np.mean([one for one in known if one is not None] or [0.0]))


def _names(members: Sequence[int]) -> str:
    return ", ".join(f"{member:02d}" for member in members)

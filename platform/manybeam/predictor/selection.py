"""Selection: which members of an ensemble suit this frame, how well they will do, and why.

One ranking for the command line, the service, the pages and the demo. Where the ensemble has been
rehearsed (`manybeam rehearse`), what it promises is learnt from its reference table
(`predictor.performance`): calibrated, for every member, for sub-ensembles and for the whole. Where
it has not, the members x conditions matrix and the label-free scores are weighed by rule of thumb
(`predictor.uncalibrated`), and the answer says so. The nearness of conditions lives in
`predictor.condition_distance`, the words in `predictor.reasons`.
Axis letters: m member, y row, x column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from manybeam.errors import InvalidInput
from manybeam.learn.analysis.fitness import LATTICES
from manybeam.learn.analysis.frame_analysis import FrameAnalysis, analyse, check_size
from manybeam.learn.nets.ensemble import Ensemble, Prediction
from manybeam.predictor.condition_distance import Near, comparable, nearest_conditions, structure_of
from manybeam.predictor.performance import PerformancePredictor, PredictedF1, Weights
from manybeam.predictor.reasons import Outlook, candidate_reason, selection_reason
from manybeam.predictor.transferred_calibration import (
    NEIGHBOURS,
    TransferredCalibration,
    frames_needed,
    transfer_calibration,
)
from manybeam.predictor.uncalibrated import POOR_F1, matrix_estimate, rule_of_thumb, within_noise
from manybeam.spec import Condition, Library, Policy
from manybeam.spec.facility import facility_library
from manybeam.zoo.matrix import Matrix
from manybeam.zoo.records import Record

# A frame is out of distribution when it lies more than this many times as far from every frame of
# the reference table as those lie apart; without a table, from every measured condition.
FAR_FROM_TABLE = 2.0
FAR = 2.5
SUBSETS = (2, 3, 5)  # sizes of sub-ensembles that are tried, of the best members
SHARPNESS = 0.02  # a member's share falls e-fold for each of this that it promises less
# Several members tell their spread, and cost little: they are chosen over a single one that
# promises no more than this beyond them.
WORTH_A_SPREAD = 0.002

Verdict = Literal["ok", "out-of-distribution"]


@dataclass(frozen=True)
class Candidate:
    """One member's prospects on a frame.

    Attributes:
        member: index of the member.
        predicted_f1: expected F1, 0 to 1.
        low: lower end of the 90 % interval.
        high: upper end of the 90 % interval.
        components: every score that is known, by name: `matrix` (absent where nothing was
            measured), `forward`, `lattice`, `agreement`, `consistency`, `confidence`, `distance`;
            `rehearsed` and `resembled` with a reference table, `fitness` without.
        why: the reason in words.
    """

    member: int
    predicted_f1: float
    low: float
    high: float
    components: Mapping[str, float]
    why: str


@dataclass(frozen=True)
class Answerer:
    """A member or sub-ensemble that could answer, with what it promises.

    Attributes:
        name: `best`, `best 3`, `weighted`, `all`.
        weights: member -> share of the answer.
        predicted_f1: expected F1, 0 to 1.
        low: lower end of the 90 % interval.
        high: upper end of the 90 % interval.
    """

    name: str
    weights: Weights
    predicted_f1: float
    low: float
    high: float


@dataclass(frozen=True)
class Selection:
    """The members ranked for one frame.

    Attributes:
        verdict: `ok`, or `out-of-distribution`; the latter is a flag and never blocks an answer.
        candidates: every member, best first.
        chosen: the members that should answer, the best first.
        why: the reason in words.
        nearest: the nearest measured conditions with their distance, nearest first.
        answerers: single members and sub-ensembles that were compared, the chosen one first;
            empty without a reference table.
        is_calibrated: whether the promises come from a reference table.
        distance: of the frame from that table, 1 being usual; NaN without one.
        carried: calibration of the chosen answer; None without a table.
        summary: what the frame looks like, as `learn.analysis.summaries` has it.
    """

    verdict: Verdict
    candidates: tuple[Candidate, ...]
    chosen: tuple[int, ...]
    why: str
    nearest: tuple[tuple[str, float], ...] = ()
    answerers: tuple[Answerer, ...] = ()
    is_calibrated: bool = False
    distance: float = float("nan")
    transferred: TransferredCalibration | None = None
    summary: tuple[float, ...] = field(default=(), repr=False)

    def answer(self, prediction: Prediction, weights: Weights | None = None) -> Prediction:
        """Return what those chosen say, calibrated where the ensemble was rehearsed.

        Args:
            prediction: what all members said, or at least those chosen, with their maps.
            weights: who answers instead of those chosen.
        """
        weights = weights or self.weights
        share = np.array(list(weights.values()))
        part = prediction.subset(list(weights), (share / share.sum()).tolist())
        if self.transferred is None:
            return part
        return replace(part, atoms=self.transferred.apply(part.atoms))

    def promised(self, members: Sequence[int]) -> tuple[float, float, float] | None:
        """Return the F1 an answer of these members promises, and its interval; None if unknown.

        Sub-ensembles are known where the ensemble was rehearsed; by rule of thumb those chosen
        promise what the best of them does.
        """
        for one in self.answerers:
            if set(one.weights) == set(members):
                return one.predicted_f1, one.low, one.high
        is_thumb = not self.answerers and set(members) == set(self.chosen)
        for candidate in self.candidates:
            if is_thumb or tuple(members) == (candidate.member,):
                return candidate.predicted_f1, candidate.low, candidate.high
        return None

    @property
    def standing(self) -> tuple[bool, bool, float]:
        """Which of several ensembles answers a frame, the greatest: fits, calibrated, promise."""
        promise = self.promised(self.chosen) or (0.0,)
        return self.verdict == "ok", self.is_calibrated, promise[0]

    @property
    def weights(self) -> Weights:
        """Share of each chosen member in the answer."""
        if self.answerers:
            return self.answerers[0].weights
        return dict.fromkeys(self.chosen, 1 / len(self.chosen))


def select(
    record: Record,
    matrix: Matrix,
    ensemble: Ensemble,
    frame_yx: np.ndarray,
    pixel_size_pm: float | None,
    condition: Condition | None = None,
    *,
    known: PerformancePredictor | None = None,
    answering: Weights | None = None,
    false_atoms: float = 0.0,
    library: Library | None = None,
) -> Selection:
    """Return the members of an ensemble ranked for one frame.

    Args:
        record: the ensemble's record; its members' policies enter the reason.
        matrix: its members x conditions scores; may be empty.
        ensemble: the members.
        frame_yx: the frame; of a large one the middle is looked at.
        pixel_size_pm: edge of a pixel, or None.
        condition: what is known of how the frame was recorded; unknown fields do not count.
        known: what the ensemble's reference table teaches, `predictor.learned.forecaster`.
        answering: who will answer, if that is settled already: its answer is calibrated then.
        false_atoms: bound on the share of false atoms that is asked for, 0 for none.
        library: conditions and policies by id; the facility's (`MANYBEAM_ZOO`) if left out.

    Raises:
        InvalidInput: a bound is asked for and the ensemble was never rehearsed.
        InvalidFrame: too small to tell what it looks like.
    """
    if false_atoms and known is None:
        raise InvalidInput(
            f"no bound on false atoms can be promised for {record.ref}",
            "it was not rehearsed with these members, so nobody knows how often they are wrong",
            f"manybeam rehearse {record.ref}",
        )
    check_size(frame_yx)
    library = library or facility_library()
    policies = _policies(record, library)
    measured = comparable(matrix, library)
    near = nearest_conditions(frame_yx, pixel_size_pm, condition, measured)
    if not measured:  # but where is not known here: then everywhere alike
        near = Near(np.inf, dict.fromkeys(matrix.conditions, 1 / max(len(matrix.conditions), 1)))
    trained = [policy for _, policy in policies.values() if policy is not None]
    # By the lattice of the table, or its scores are not those that the table's rows have.
    rehearsed = known.table.structure if known else ""
    structure = structure_of(condition, [*measured, *trained], rehearsed)
    seen = analyse(ensemble, frame_yx, pixel_size_pm, LATTICES.get(structure))
    words = _Words(policies, near, _told(condition, pixel_size_pm), structure)
    if known is None:
        return _unrehearsed(seen, matrix, words)
    return _rehearsed(seen, matrix, known, words, answering, false_atoms)


@dataclass(frozen=True)
class _Words:
    """What the reasons are made of."""

    policies: Mapping[int, tuple[str, Policy | None]]
    near: Near
    told: Mapping[str, float]
    structure: str

    def candidates(self, ranked: Sequence[Outlook]) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                member=one.member,
                predicted_f1=one.predicted_f1,
                low=one.low,
                high=one.high,
                components=one.components,
                why=candidate_reason(one, self.policies, self.told),
            )
            for one in ranked
        )


def _unrehearsed(seen: FrameAnalysis, matrix: Matrix, words: _Words) -> Selection:
    """Return the ranking by rule of thumb."""
    ranked = rule_of_thumb(seen, matrix, words.near)
    chosen = within_noise(ranked)
    # Where there is nothing to compare with, far is not known to be far.
    is_far = bool(np.isfinite(words.near.distance)) and words.near.distance > FAR
    place = f"out of distribution past {FAR:g}"
    said = selection_reason(ranked, chosen, words.policies, words.near, words.told)
    notes = ["not calibrated: manybeam rehearse it"]
    notes += [f"no member promises F1 {POOR_F1:.2f}"] if ranked[0].predicted_f1 < POOR_F1 else []
    notes += [place] if is_far else []
    return Selection(
        verdict="out-of-distribution" if is_far or ranked[0].predicted_f1 < POOR_F1 else "ok",
        candidates=words.candidates(ranked),
        chosen=chosen,
        why="; ".join([*said, *notes]),
        nearest=words.near.ranked,
        summary=tuple(seen.summary_cs.mean(axis=0).tolist()),
    )


def _rehearsed(
    seen: FrameAnalysis,
    matrix: Matrix,
    known: PerformancePredictor,
    words: _Words,
    answering: Weights | None,
    false_atoms: float,
) -> Selection:
    """Return the ranking that the reference table teaches."""
    members = seen.prediction.members
    promised = known.forecast(seen, [{member: 1.0} for member in members])
    ranked = sorted(
        (
            _outlook(member, one, matrix, words.near)
            for member, one in zip(members, promised, strict=True)
        ),
        key=lambda one: (-one.predicted_f1, one.member),
    )
    answerers = _answerers(seen, known, ranked)
    distance, best = known.distance(seen), answerers[0]
    calibrated = answering or best.weights
    count = frames_needed(false_atoms) if false_atoms else NEIGHBOURS
    transferred = transfer_calibration(
        known.table,
        known.alike(seen, calibrated, count),
        calibrated,
        distance=distance,
        false_atoms=false_atoms,
        nearest_n=known.nearest(seen, NEIGHBOURS // 2),
    )
    chosen = tuple(sorted(best.weights, key=lambda member: -best.weights[member]))
    said = selection_reason(ranked, chosen, words.policies, words.near, words.told)
    if len(chosen) > 1:
        said.append(f"together they should reach {best.predicted_f1:.2f}")
    warned = _warnings(distance, best, known, words.structure)
    return Selection(
        verdict="out-of-distribution" if warned else "ok",
        candidates=words.candidates(ranked),
        chosen=chosen,
        why="; ".join([*said, *warned]),
        nearest=words.near.ranked,
        answerers=answerers,
        is_calibrated=True,
        distance=distance,
        transferred=transferred,
        summary=tuple(seen.summary_cs.mean(axis=0).tolist()),
    )


def _warnings(distance: float, best: Answerer, known: PerformancePredictor, told: str) -> list[str]:
    """Return why a frame is called out of distribution; nothing if it is not."""
    said, rehearsed = [], known.table.structure
    if rehearsed and told != rehearsed:
        said.append(f"the frame is said to be of {told}, rehearsed were frames of {rehearsed}")
    if distance > FAR_FROM_TABLE:
        said.append(
            f"the frame is {distance:.1f} times as far from every rehearsed one as those lie "
            f"apart (out of distribution past {FAR_FROM_TABLE:g})"
        )
    if best.predicted_f1 < known.poor_f1:
        said.append(f"none fits: no answer promises F1 {known.poor_f1:.2f}")
    return said


def _outlook(member: int, one: PredictedF1, matrix: Matrix, near: Near) -> Outlook:
    parts = dict(one.parts)
    if np.isfinite(near.distance):
        parts["distance"] = near.distance
    measured = matrix_estimate(member, matrix, near)
    if measured is not None:
        parts["matrix"] = measured[0]
    return Outlook(member, one.f1, one.low, one.high, parts, one.parts["forward"] ** 2)


def _answerers(
    seen: FrameAnalysis, known: PerformancePredictor, ranked: Sequence[Outlook]
) -> tuple[Answerer, ...]:
    """Return the answers that could be given, the one to give first."""
    best = ranked[0]
    single = Answerer("best", {best.member: 1.0}, best.predicted_f1, best.low, best.high)
    tried = _sub_ensembles(ranked)
    promised = known.forecast(seen, list(tried.values())) if tried else []
    several = [
        Answerer(name, weights, one.f1, one.low, one.high)
        for (name, weights), one in zip(tried.items(), promised, strict=True)
    ]
    several.sort(key=lambda one: -one.predicted_f1)
    if several and several[0].predicted_f1 >= single.predicted_f1 - WORTH_A_SPREAD:
        return several[0], single, *several[1:]
    return single, *several


def _sub_ensembles(ranked: Sequence[Outlook]) -> dict[str, Weights]:
    """Return the sub-ensembles that are tried: of the best, weighted by promise, and all."""
    order = [one.member for one in ranked]
    tried: dict[str, Weights] = {
        f"best {size}": dict.fromkeys(order[:size], 1 / size)
        for size in SUBSETS
        if size < len(order)
    }
    if len(order) > 1:
        behind = np.array([one.predicted_f1 - ranked[0].predicted_f1 for one in ranked])
        share = np.exp(behind / SHARPNESS)
        share[share < 0.01] = 0.0
        share /= share.sum()
        kept = {m: float(w) for m, w in zip(order, share, strict=True) if w > 0}
        tried |= {"weighted": kept} if len(kept) > 1 else {}
        tried["all"] = dict.fromkeys(order, 1 / len(order))
    return tried


def _policies(record: Record, library: Library) -> dict[int, tuple[str, Policy | None]]:
    """Return each member's policy: its id, and its ranges where the library still has them."""
    return {
        member.index: (member.policy, library.policies.get(member.policy))
        for member in record.members
    }


def _told(condition: Condition | None, pixel_size_pm: float | None) -> dict[str, float]:
    """Return every number known of how the frame was recorded, by dotted path."""
    known = {} if condition is None else condition.quantities()
    told = {path: float(value) for path, value in known if isinstance(value, (int, float))}
    return told | ({} if pixel_size_pm is None else {"scan.pixel_size_pm": pixel_size_pm})

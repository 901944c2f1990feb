"""Selection: which members of an ensemble suit a frame, with their predicted F1 and the reasons.

If the version was calibrated (`manybeam calibrate`), predicted F1 comes from its calibration set
(`predictor.performance`): for every member, for sub-ensembles and for all together. If not, it
comes from the members x conditions matrix and the label-free scores by a rule of thumb
(`predictor.uncalibrated`), and the reasons say so.
Axis letters: m member, y row, x column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from manybeam.data.io.frame import Frame
from manybeam.errors import InvalidInput
from manybeam.learn.analysis.fitness import LATTICES
from manybeam.learn.analysis.frame_analysis import FrameAnalysis, analyse, check_size
from manybeam.learn.nets.prediction import Prediction
from manybeam.predictor.condition_distance import (
    Near,
    comparable,
    nearest_conditions,
    structure_of,
)
from manybeam.predictor.f1.predicted import PredictedF1, Weights
from manybeam.predictor.performance import PerformancePredictor
from manybeam.predictor.reasons import Outlook, answer_reason, candidate_reason, selection_reasons
from manybeam.predictor.transferred_calibration import (
    NEIGHBOURS,
    TransferredCalibration,
    frames_needed,
    transfer_calibration,
)
from manybeam.predictor.uncalibrated import (
    POOR_F1,
    matrix_estimate,
    rule_of_thumb,
    within_noise,
)
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.spec import Condition, Library, Policy
from manybeam.spec.facility import facility_library
from manybeam.zoo.matrix import Matrix

# A frame is out of distribution if it is farther than the first limit from every frame of the
# calibration set; 1 is the usual distance between those frames. Without a set, if it is farther
# than the second limit from every measured condition.
FAR_FROM_TABLE = 2.0
FAR = 2.5
# The unit of that distance is the scatter within the measured conditions. With fewer of them it is
# too small, and a frame of any other condition would be called far.
FEWEST_CONDITIONS = 3
SUBSETS = (2, 3, 5)  # sizes of the sub-ensembles of the best members
SHARPNESS = 0.02  # a member's share falls e-fold for this much less predicted F1
# Several members give a spread, so they are chosen over a single one unless its predicted F1 is
# higher by more than this.
WORTH_A_SPREAD = 0.002
WEIGHTED = "weighted"  # name of the answerer with shares by predicted F1
ALL = "all"  # name of the answerer of all members
ASKED = "asked"  # name of the answerer of members that the caller named

Verdict = Literal["ok", "out-of-distribution", "unknown"]
_BY_TRUST = ("out-of-distribution", "unknown", "ok")


@dataclass(frozen=True)
class Candidate:
    """The predicted F1 of one member on a frame, with the reason.

    Attributes:
        member: index of the member.
        predicted_f1: expected F1, 0 to 1.
        low: lower end of the 90 % interval; of the best member, that of a chosen answer.
        high: upper end of the same interval.
        components: the known scores, by name: `matrix` (if measured), `forward`, `lattice`,
            `agreement`, `consistency`, `confidence`, `distance`; `simulated` and `resembled` with
            a calibration set, `fitness` without.
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
    """A member or sub-ensemble that could answer, with its predicted F1.

    Attributes:
        name: `best`, `best 3`, `weighted`, `all`; `asked` for members that the caller named.
        weights: member -> share of the answer.
        predicted_f1: expected F1, 0 to 1.
        low: lower end of the 90 % interval; that of a chosen answer, except for members that the
            caller named.
        high: upper end of the same interval.
    """

    name: str
    weights: Weights
    predicted_f1: float
    low: float
    high: float


@dataclass(frozen=True)
class Selection:
    """The members ranked for one frame, and the members that answer.

    Attributes:
        verdict: `ok`, `out-of-distribution`, or `unknown` if too few conditions were measured to
            say; no verdict blocks an answer.
        candidates: every member, best first.
        chosen: the members that suit the frame, best first.
        reasons: the reasons, a short sentence each.
        nearest: measured conditions with their distance, nearest first.
        answerers: the members and sub-ensembles that were compared, the chosen one first; empty
            without a calibration set.
        is_calibrated: whether predicted F1 comes from a calibration set.
        distance: of the frame from that set, 1 is usual; NaN without a set.
        transferred: calibration of the answer; None without a set.
        summary: summary of the frame, see `learn.analysis.summaries`.
        asked: the members that the caller named; None if the chosen members answer.
        rests_on: what the verdict rests on, in words.
    """

    verdict: Verdict
    candidates: tuple[Candidate, ...]
    chosen: tuple[int, ...]
    reasons: tuple[str, ...]
    nearest: tuple[tuple[str, float], ...] = ()
    answerers: tuple[Answerer, ...] = ()
    is_calibrated: bool = False
    distance: float = float("nan")
    transferred: TransferredCalibration | None = None
    summary: tuple[float, ...] = field(default=(), repr=False)
    asked: Weights | None = None
    rests_on: str = ""

    @property
    def is_drifted(self) -> bool | None:
        """Whether the frame is out of distribution; None if that is unknown."""
        return None if self.verdict == "unknown" else self.verdict != "ok"

    @property
    def why(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons)

    @property
    def weights(self) -> Weights:
        """Share of each member in the answer."""
        if self.asked is not None:
            return self.asked
        if self.answerers:
            return self.answerers[0].weights
        return dict.fromkeys(self.chosen, 1 / len(self.chosen))

    @property
    def drift_score(self) -> float | None:
        """Distance of the frame from known frames; 1 is usual, None unknown."""
        if self.is_calibrated:
            return self.distance
        return self.candidates[0].components.get("distance") if self.candidates else None

    def answer(self, prediction: Prediction) -> Prediction:
        """Return the answer of these members, calibrated if the version was calibrated.

        Args:
            prediction: the answer of all members, with their maps.
        """
        part = part_of(prediction, self.weights)
        if self.transferred is None:
            return part
        return replace(part, atoms=self.transferred.apply(part.atoms))

    def predicted(self, members: Sequence[int]) -> PredictedF1 | None:
        """Return the predicted F1 of an answer of these members; None if it is unknown.

        Without a calibration set, the chosen members together are taken to be as good as the best
        of them, and others as good as their mean.
        """
        # Several answerers can have these members; the one with the shares that answer counts.
        for one in sorted(self.answerers, key=lambda one: one.weights != self.weights):
            if set(one.weights) == set(members):
                return PredictedF1(one.predicted_f1, one.low, one.high, {})
        mine = [one for one in self.candidates if one.member in set(members)]
        if len(mine) < len(set(members)) or (self.answerers and len(mine) > 1):
            return None
        if set(members) == set(self.chosen):
            mine = mine[:1]
        rows = [(one.predicted_f1, one.low, one.high) for one in mine]
        f1, low, high = np.mean(rows, axis=0).tolist()
        return PredictedF1(f1, low, high, {})

    @property
    def rank_key(self) -> tuple[int, bool, float]:
        """The sort key for `auto`, greatest first: fits, is calibrated, F1."""
        known = self.predicted(list(self.weights))
        return _BY_TRUST.index(self.verdict), self.is_calibrated, known.f1 if known else 0.0


def part_of(prediction: Prediction, weights: Weights) -> Prediction:
    """Return the answer of these members; of all with equal weights, the prediction itself."""
    share = np.array(list(weights.values()))
    if set(weights) == set(prediction.members) and np.ptp(share) == 0:
        return prediction
    return prediction.subset(list(weights), (share / share.sum()).tolist())


def select(
    version: LoadedVersion,
    frame: Frame,
    *,
    prediction: Prediction | None = None,
    asked: Weights | None = None,
    false_atoms: float = 0.0,
    library: Library | None = None,
    check: Callable[[], None] = lambda: None,
) -> Selection:
    """Return the members of a version ranked for one frame.

    Args:
        version: the members, their scores and their performance predictor.
        frame: the frame; of a large one the middle is analysed.
        prediction: the answer of all members, if it is known.
        asked: the members that will answer, if the caller named them.
        false_atoms: bound on the share of false atoms, 0 for none.
        library: conditions and policies by id; the facility's (`MANYBEAM_ZOO`) if left out.
        check: called before each network and tile; what it raises ends the work.

    Raises:
        InvalidInput: a bound for a version that was never calibrated.
        InvalidFrame: the frame is too small for frame analysis.
    """
    check_bound(version, false_atoms)
    check_size(frame.pixels_yx)
    library = library or facility_library()
    policies = _policies(version, library)
    matrix, known = version.matrix, version.performance
    measured = comparable(matrix, library)
    near = nearest_conditions(frame.pixels_yx, frame.pixel_size_pm, frame.condition, measured)
    if not measured:  # no condition can be compared: all have the same weight
        near = Near(np.inf, dict.fromkeys(matrix.conditions, 1 / max(len(matrix.conditions), 1)))
    trained = [policy for _, policy in policies.values() if policy is not None]
    # With another lattice, the scores could not be compared with those of the calibration set.
    structure = structure_of(
        frame.condition, [*measured, *trained], known.table.structure if known else ""
    )
    seen = analyse(
        version.ensemble,
        frame.pixels_yx,
        frame.pixel_size_pm,
        LATTICES.get(structure),
        prediction=prediction,
        check=check,
    )
    words = _Words(policies, near, _stated(frame), structure)
    if known is None:
        return _by_rule(seen, matrix, words, asked)
    return _calibrated(seen, matrix, known, words, asked, false_atoms)


def check_bound(version: LoadedVersion, false_atoms: float) -> None:
    """Refuse a bound on false atoms from a version that was never calibrated."""
    if false_atoms and version.performance is None:
        raise InvalidInput(
            f"{version.ref} cannot keep a bound on false atoms",
            "it was not calibrated with these members, so their error rate is unknown",
            f"manybeam calibrate {version.ref}",
        )


@dataclass(frozen=True)
class _Words:
    """The facts that the reasons are made of."""

    policies: Mapping[int, tuple[str, Policy | None]]
    near: Near
    stated: Mapping[str, float]
    structure: str

    def candidates(self, ranked: Sequence[Outlook]) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                member=one.member,
                predicted_f1=one.predicted_f1,
                low=one.low,
                high=one.high,
                components=one.components,
                why="; ".join(candidate_reason(one, self.policies, self.stated)),
            )
            for one in ranked
        )

    def selection(self, ranked: Sequence[Outlook], chosen: tuple[int, ...]) -> list[str]:
        return selection_reasons(ranked, chosen, self.policies, self.near, self.stated)


def _by_rule(
    seen: FrameAnalysis, matrix: Matrix, words: _Words, asked: Weights | None
) -> Selection:
    """Return the ranking by rule of thumb."""
    ranked = rule_of_thumb(seen, matrix, words.near)
    chosen = within_noise(ranked)
    verdict, notes = _rule_verdict(words.near, ranked[0].predicted_f1)
    selection = Selection(
        verdict=verdict,
        candidates=words.candidates(ranked),
        chosen=chosen,
        reasons=(),
        nearest=words.near.ranked,
        summary=tuple(seen.summary_cs.mean(axis=0).tolist()),
        asked=asked,
        rests_on=f"{_conditions(len(words.near.ranked))} and the members' own scores",
    )
    notes.insert(0, "not calibrated: run manybeam calibrate for this ensemble")
    return _with_reasons(selection, ranked, words, notes)


def _rule_verdict(near: Near, predicted_f1: float) -> tuple[Verdict, list[str]]:
    """Return the verdict about a frame without a calibration set, and what is said about it.

    A frame near a measured condition fits, however few there are. A frame far from all of them is
    out of distribution only if there are enough to know how far conditions lie apart.
    """
    if predicted_f1 < POOR_F1:
        return "out-of-distribution", [
            f"out of distribution: no member has a predicted F1 of {POOR_F1:.2f} or more"
        ]
    if near.distance <= FAR:
        return "ok", []
    count = len(near.ranked)
    if count < FEWEST_CONDITIONS:
        seen = f"only {_conditions(count)}" if count else "no measured condition"
        return "unknown", [
            f"drift is unknown: {seen} can be compared with the frame, {FEWEST_CONDITIONS} are "
            "needed; manybeam evaluate measures more"
        ]
    return "out-of-distribution", [
        f"out of distribution: the distance is above {FAR:g} to each of {count} measured "
        f"conditions; the predicted F1 rests on the members' own scores"
    ]


def _conditions(count: int) -> str:
    return f"{count} measured condition{'' if count == 1 else 's'}"


def _calibrated(
    seen: FrameAnalysis,
    matrix: Matrix,
    known: PerformancePredictor,
    words: _Words,
    asked: Weights | None,
    false_atoms: float,
) -> Selection:
    """Return the ranking by the calibration set."""
    members = seen.prediction.members
    predicted = known.predict_f1(seen, [{member: 1.0} for member in members])
    best, *others = sorted(
        zip(members, predicted, strict=True), key=lambda one: (-one[1].f1, one[0])
    )
    ranked = [
        _outlook(member, one, matrix, words.near)
        for member, one in [(best[0], best[1].chosen), *others]
    ]
    answerers = _answerers(seen, known, ranked, asked)
    distance, first = known.distance(seen), answerers[0]
    weights = asked or first.weights
    count = frames_needed(false_atoms) if false_atoms else NEIGHBOURS
    transferred = transfer_calibration(
        known.table,
        known.alike(seen, weights, count),
        weights,
        distance=distance,
        false_atoms=false_atoms,
        nearest_n=known.nearest(seen, NEIGHBOURS // 2),
    )
    warned = drift_reasons(
        distance, first.predicted_f1, known.poor_f1, words.structure, known.table.structure
    )
    selection = Selection(
        rests_on=f"a calibration set of {len(known.table)} simulated frames",
        verdict="out-of-distribution" if warned else "ok",
        candidates=words.candidates(ranked),
        chosen=tuple(sorted(first.weights, key=lambda member: -first.weights[member])),
        reasons=(),
        nearest=words.near.ranked,
        answerers=answerers,
        is_calibrated=True,
        distance=distance,
        transferred=transferred,
        summary=tuple(seen.summary_cs.mean(axis=0).tolist()),
        asked=asked,
    )
    return _with_reasons(selection, ranked, words, warned)


def _with_reasons(
    selection: Selection, ranked: Sequence[Outlook], words: _Words, notes: Sequence[str]
) -> Selection:
    """Return the selection with the reasons of its answer."""
    own = words.selection(ranked, selection.chosen)
    if selection.asked is not None:
        known, asked = selection.predicted(list(selection.asked)), list(selection.asked)
        chosen = selection.predicted(selection.chosen)
        better = (selection.chosen, chosen) if chosen is not None else None
        own = answer_reason(asked, words.policies, words.near, known, better)
    elif selection.is_calibrated and len(selection.chosen) > 1:
        together = selection.answerers[0]
        f1, low, high = together.predicted_f1, together.low, together.high
        own.insert(2, f"predicted F1 of them together: {f1:.2f} ({low:.2f} to {high:.2f})")
    place = "out of distribution" if selection.is_drifted else f"verdict {selection.verdict}"
    return replace(selection, reasons=(*own, *notes, f"{place} by {selection.rests_on}"))


def drift_reasons(
    distance: float, best_f1: float, poor_f1: float, structure: str, calibrated: str
) -> list[str]:
    """Return why a frame is out of distribution; nothing if it is not.

    Args:
        distance: of the frame from the calibration set, 1 is usual.
        best_f1: the highest predicted F1 of an answer.
        poor_f1: the F1 below which no answer is of use.
        structure: of the sample of the frame.
        calibrated: structure of the calibration set; "" if unknown.
    """
    said = []
    if calibrated and structure != calibrated:
        said.append(
            f"out of distribution: the frame shows {structure}, the calibration set {calibrated}"
        )
    if distance > FAR_FROM_TABLE:
        said.append(
            f"out of distribution: the frame is {distance:.1f} times as far from the calibration "
            f"set as its frames lie apart (limit {FAR_FROM_TABLE:g})"
        )
    if best_f1 < poor_f1:
        said.append(f"out of distribution: no answer has a predicted F1 of {poor_f1:.2f} or more")
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
    seen: FrameAnalysis,
    known: PerformancePredictor,
    ranked: Sequence[Outlook],
    asked: Weights | None,
) -> tuple[Answerer, ...]:
    """Return the possible answerers, the chosen one first."""
    best = ranked[0]
    single = Answerer("best", {best.member: 1.0}, best.predicted_f1, best.low, best.high)
    tried = sub_ensembles([(one.member, one.predicted_f1) for one in ranked])
    if asked and len(asked) > 1 and asked not in tried.values():
        tried[ASKED] = asked
    predicted = known.predict_f1(seen, list(tried.values())) if tried else []
    several = []
    for (name, weights), one in zip(tried.items(), predicted, strict=True):
        # Others are made of the best; if nothing was asked for, all may be chosen too.
        is_named = name == ASKED or (name == ALL and asked is not None)
        known_of = one if is_named else one.chosen
        several.append(Answerer(name, weights, one.f1, known_of.low, known_of.high))
    several.sort(key=lambda one: (one.name == ASKED, -one.predicted_f1))
    if (
        several
        and several[0].name != ASKED
        and several[0].predicted_f1 >= single.predicted_f1 - WORTH_A_SPREAD
    ):
        return several[0], single, *several[1:]
    return single, *several


def sub_ensembles(ranked: Sequence[tuple[int, float]]) -> dict[str, Weights]:
    """Return the sub-ensembles to compare: the best, weighted by predicted F1, and all.

    Args:
        ranked: members with their predicted F1, best first.
    """
    order = [member for member, _ in ranked]
    tried: dict[str, Weights] = {
        f"best {size}": dict.fromkeys(order[:size], 1 / size)
        for size in SUBSETS
        if size < len(order)
    }
    if len(order) > 1:
        behind = np.array([f1 - ranked[0][1] for _, f1 in ranked])
        share = np.exp(behind / SHARPNESS)
        share[share < 0.01] = 0.0
        share /= share.sum()
        kept = {m: float(w) for m, w in zip(order, share, strict=True) if w > 0}
        tried |= {WEIGHTED: kept} if len(kept) > 1 else {}
        tried[ALL] = dict.fromkeys(order, 1 / len(order))
    return tried


def _policies(version: LoadedVersion, library: Library) -> dict[int, tuple[str, Policy | None]]:
    """Return each member's policy: its id, and its ranges if the library has them."""
    return {
        member.index: (member.policy, library.policies.get(member.policy))
        for member in version.ensemble.members
    }


def _stated(frame: Frame) -> dict[str, float]:
    """Return the known numbers of the frame's condition, by dotted path."""
    known: Sequence[tuple[str, object]] = ()
    if isinstance(frame.condition, Condition):
        known = tuple(frame.condition.quantities())
    stated = {path: float(value) for path, value in known if isinstance(value, (int, float))}
    size_pm = frame.pixel_size_pm
    return stated | ({} if size_pm is None else {"scan.pixel_size_pm": size_pm})

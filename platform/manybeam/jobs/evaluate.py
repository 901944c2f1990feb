"""Measuring members on conditions: every member, all together, those selected, and a detector.

A block of test frames (`jobs.test_sets`) is one task for all members, because the atoms of the
ensemble need the answers of all members. The classical detector is a separate task on each
condition, because it is tuned on all frames.

The members that selection chooses for each frame are measured if the version was calibrated.
Such a selection rests on the calibration set and the frame only, never on scores of test frames or
on people's preferences, so a version may be measured again. Without calibration it would rest on
these very scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache, partial
from itertools import chain
from math import isnan, nan
from typing import TYPE_CHECKING, Literal

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from manybeam.cluster import joining as cluster
from manybeam.data.io.frame import Frame
from manybeam.errors import InvalidFrame
from manybeam.jobs.test_sets import (
    FrameBlock,
    LabelledFrame,
    Targets,
    labelled_frames,
    plan_blocks,
    test_set_of,
)
from manybeam.learn.analysis.frame_analysis import check_size
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.engine import compile_ahead
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.member import Member
from manybeam.learn.scoring import classical
from manybeam.learn.scoring.kinds import confusion, f1_of_kinds, recall_of
from manybeam.learn.scoring.scores import (
    MatchedFrame,
    Scores,
    auroc,
    beliefs,
    false_fill,
    match_frame,
    reliability,
    spread_auroc,
    summarise,
)
from manybeam.predictor.answer import AUTO, Question
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.loaded import LoadedVersion, OneVersion
from manybeam.spec.files import Library
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED, Bin, Score, TestSet

if TYPE_CHECKING:
    from manybeam.predictor.performance import PerformancePredictor

Array = NDArray[np.floating]
Counts = NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass
class Evaluation:
    """The atoms found on frames of one condition and their scores, by member.

    Members are indices, or ENSEMBLE, SELECTED or CLASSICAL.

    Attributes:
        matched: the comparison of each frame with its truth.
        found: the atoms found on each frame.
        kinds: of members that report elements, the elements and the confusion over all frames.
        targets: dopants, edges and vacancies of each frame, if all frames are of a known lattice.
        detector: parameters of the classical detector for even frames, and for odd frames.
    """

    matched: dict[int, list[MatchedFrame]] = field(default_factory=dict)
    found: dict[int, list[Array]] = field(default_factory=dict)
    kinds: dict[int, tuple[tuple[int, ...], Counts]] = field(default_factory=dict)
    targets: dict[int, list[Targets | None]] = field(default_factory=dict)
    detector: tuple[classical.Blob, ...] = ()

    def add(
        self,
        member: int,
        atoms: Array,
        frame: LabelledFrame,
        radius_pm: float | None,
        elements: tuple[int, ...] = (),
    ) -> None:
        """Compare the atoms that one member found on one frame with the truth."""
        shape = (frame.frame_yx.shape[0], frame.frame_yx.shape[1])
        matched = match_frame(atoms, frame.truth, frame.pixel_size_pm, shape, radius_pm)
        self.matched.setdefault(member, []).append(matched)
        self.found.setdefault(member, []).append(atoms)
        self.targets.setdefault(member, []).append(frame.targets)
        if elements:
            self._count(member, elements, confusion([matched], [atoms], [frame.truth], elements))

    def extend(self, other: "Evaluation") -> None:
        """Add the results of later frames."""
        self.detector = self.detector or other.detector
        for member in other.matched:
            self.matched.setdefault(member, []).extend(other.matched[member])
            self.found.setdefault(member, []).extend(other.found[member])
            self.targets.setdefault(member, []).extend(other.targets[member])
        for member, (elements, table) in other.kinds.items():
            self._count(member, elements, table)

    def values(self, member: int) -> dict[str, float]:
        """Return the scores of one member by name, without those that are NaN.

        F1 of each element is named by its symbol, as `f1_mo`. A known lattice adds
        `recall_dopant`, `recall_edge` and `false_fill`, the share of vacancies that are filled.
        The ensemble has `spread_auroc` and `doubt_auroc`: how well the spread of an atom's
        position, and 1 - its probability, separate wrong atoms from right ones.
        """
        scores = summarise(self.matched[member], self.found[member]).values()
        elements, table = self.kinds.get(member, ((), np.zeros((1, 1), np.int64)))
        each = zip(elements, f1_of_kinds(table), strict=True)
        scores |= self._target_scores(member) | self._doubt_scores(member)
        return {**scores, **{f"f1_{chemical_symbols[z].lower()}": float(f1) for z, f1 in each}}

    def reliability(self, member: int) -> tuple[Bin, ...]:
        """Return the share of right atoms of the ensemble, by their probability.

        It is empty for members: their curves would make score reports 50 % larger.
        """
        if member != ENSEMBLE:
            return ()
        return reliability(*beliefs(self.matched[member], self.found[member])).bins

    def _target_scores(self, member: int) -> dict[str, float]:
        matched = self.matched[member]
        known = [one for one in self.targets[member] if one is not None]
        if len(known) < len(matched):
            return {}
        frames = zip(self.found[member], matched, known, strict=True)
        sites = np.array([len(one.vacancies) for one in known])
        filled = [false_fill(a, s.vacancies, j.radius_pm / s.pixel_size_pm) for a, j, s in frames]
        values = {
            "recall_dopant": recall_of(matched, [one.is_dopant for one in known]),
            "recall_edge": recall_of(matched, [one.is_edge for one in known]),
            "false_fill": float(np.nan_to_num(filled) @ sites / sites.sum()) if any(sites) else nan,
        }
        return {name: value for name, value in values.items() if not isnan(value)}

    def _doubt_scores(self, member: int) -> dict[str, float]:
        if member != ENSEMBLE:
            return {}
        frames = list(zip(self.found[member], self.matched[member], strict=True))
        atoms = np.concatenate([np.reshape(a, (-1, 7))[j.found_counts] for a, j in frames])
        is_wrong = np.concatenate([~j.is_true[j.found_counts] for _, j in frames])
        spread_px = np.hypot(atoms[:, 4], atoms[:, 5])
        values = {"doubt_auroc": auroc(1 - atoms[:, 3], is_wrong)}
        if np.isfinite(spread_px).any():  # one member has no spread
            values["spread_auroc"] = spread_auroc(spread_px, is_wrong)
        return {name: value for name, value in values.items() if not isnan(value)}

    def _count(self, member: int, elements: tuple[int, ...], table: Counts) -> None:
        before = self.kinds.get(member, (elements, np.zeros_like(table)))[1]
        self.kinds[member] = (elements, before + table)


def is_score_name(name: str) -> bool:
    """Return whether a measurement may give a score of this name."""
    own = {*(one.name for one in fields(Scores)), "frames", "found", "atoms", "false_fill"}
    return name in own or name.startswith(("f1_", "recall_")) or name.endswith("_auroc")


def evaluate(
    members: Sequence[Member],
    measure: Measure,
    library: Library,
    *,
    performance: "PerformancePredictor | None" = None,
    seed: int = 0,
    progress: Progress | None = None,
    executor: Literal["ray", "local"] = "ray",
) -> list[Score]:
    """Return a score for each member, the ensemble and the classical detector on each condition.

    Args:
        members: the ensemble; one member is enough.
        measure: conditions to simulate, labelled FrameSets to read, and how to match.
        library: where conditions are looked up.
        performance: predicts F1 of these members; with it, those selected for each frame have a
            score too.
        seed: seed of the test frames; equal seeds give every ensemble the same frames.
        progress: called with (tasks done, all tasks).
        executor: "ray" divides the work over the cluster; "local" does it in this process.

    Raises:
        UnknownCondition: a pattern matches no condition.
        UnknownFrameSet: there is no FrameSet at a URL.
        InvalidInput: no conditions and no frames are given, or a FrameSet has no truth.
        MissingPixelSize: a frame has no pixel size, so distances have no unit.
    """
    tasks = _plan_tasks(plan_blocks(measure, library, seed))
    parts: dict[int, Evaluation] = {}
    measured = _Measured(tuple(members), performance, library)
    for done, (place, part) in enumerate(_results(tasks, measured, measure, executor), 1):
        parts[place] = part
        if progress:
            progress(done, len(tasks))
    whole = [parts[place] for place in range(len(tasks))]
    return _summarise(tasks, whole, measure.match_radius_pm)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is measured, as it is sent to the workers."""

    members: tuple[Member, ...]
    performance: "PerformancePredictor | None"
    library: Library

    def predictor(self) -> Predictor:
        performance = self.performance if len(self.members) > 1 else None
        ensemble = Ensemble(self.members, graphs=Graphs.here())
        version = LoadedVersion(ensemble, performance=performance)
        return Predictor(OneVersion(version), self.library)


@dataclass(frozen=True)
class _Task:
    """One task: the members on one block, or the detector on all frames of one condition."""

    blocks: tuple[FrameBlock, ...]
    is_classical: bool

    @property
    def condition(self) -> tuple[str, str]:
        return self.blocks[0].name, self.blocks[0].digest


def _plan_tasks(blocks: Sequence[FrameBlock]) -> list[_Task]:
    """Return the tasks; the longest ones, those of the detector, come first."""
    conditions: dict[tuple[str, str], list[FrameBlock]] = {}
    for block in blocks:
        conditions.setdefault((block.name, block.digest), []).append(block)
    by_hand = [_Task(tuple(whole), is_classical=True) for whole in conditions.values()]
    return by_hand + [_Task((block,), is_classical=False) for block in blocks]


def _results(
    tasks: Sequence[_Task], measured: _Measured, measure: Measure, executor: str
) -> Iterator[tuple[int, Evaluation]]:
    radius_pm = measure.match_radius_pm
    if executor == "local":
        predictor = measured.predictor()
        for place, task in enumerate(tasks):
            yield place, _evaluate(task, lambda: predictor, radius_pm)
        return
    cluster.connect()
    compile_ahead(measured.members)
    shared = cluster.share(measured)
    yield from cluster.each([partial(_evaluate_on_worker, one, shared, radius_pm) for one in tasks])


def _evaluate_on_worker(task: _Task, shared: cluster.Shared, radius_pm: float | None) -> Evaluation:
    return _evaluate(task, partial(_predictor, shared), radius_pm)


def _evaluate(
    task: _Task, predictor: Callable[[], Predictor], radius_pm: float | None
) -> Evaluation:
    if task.is_classical:
        return evaluate_detector(task.blocks, radius_pm)
    return evaluate_block(task.blocks[0], predictor(), radius_pm)


@lru_cache(maxsize=1)
def _predictor(shared: cluster.Shared) -> Predictor:
    """Return the predictor; each worker builds it once."""
    measured: _Measured = shared.value()
    return measured.predictor()


def evaluate_block(block: FrameBlock, predictor: Predictor, radius_pm: float | None) -> Evaluation:
    """Return the results of the members, alone, together and selected, on the frames of a block."""
    found, version = Evaluation(), predictor.versions.get(AUTO)
    elements = {one.index: one.recipe.tiles.elements for one in version.ensemble.members}
    # Members that number their kinds differently have no common answer about them.
    common = next(iter(elements.values())) if len(set(elements.values())) == 1 else ()
    for frame in labelled_frames(block):
        answer = predictor.answer(
            Frame(frame.frame_yx, frame.pixel_size_pm), _question(frame, version)
        )
        whole = answer.whole
        for member, atoms in zip(whole.members, whole.member_atoms, strict=True):
            found.add(member, atoms, frame, radius_pm, elements[member])
        found.add(ENSEMBLE, whole.atoms, frame, radius_pm, common)
        if answer.selection is not None:
            found.add(SELECTED, answer.atoms, frame, radius_pm, common)
    return found


def _question(frame: LabelledFrame, version: LoadedVersion) -> Question:
    """Return a question without selection if it cannot choose members for this frame."""
    is_selecting = version.performance is not None and _may_select(frame)
    return Question(is_raw=not is_selecting, is_size_trusted=True)


def _may_select(frame: LabelledFrame) -> bool:
    """Return whether members can be selected for a frame."""
    try:
        check_size(frame.frame_yx)
    except InvalidFrame:
        return False
    return frame.pixel_size_pm is not None


def evaluate_detector(blocks: Sequence[FrameBlock], radius_pm: float | None) -> Evaluation:
    """Return the results of the classical detector on all frames of one condition.

    It is tuned on the odd frames for the even ones, and on the even frames for the odd ones. So
    it is tuned to the condition, but never to the frame on which it is measured.
    """
    frames = list(chain.from_iterable(labelled_frames(block) for block in blocks))
    blobs = tuple(_tuned(frames[1 - half :: 2], radius_pm) for half in (0, 1))
    found = Evaluation(detector=blobs)
    for place, frame in enumerate(frames):
        atoms = classical.detect(frame.frame_yx, frame.pixel_size_pm, blobs[place % 2])
        found.add(CLASSICAL, atoms, frame, radius_pm)
    return found


def _tuned(frames: Sequence[LabelledFrame], radius_pm: float | None) -> classical.Blob:
    sized = [frame for frame in frames if frame.pixel_size_pm is not None]
    if not sized:
        return classical.Blob()
    blob, _ = classical.tune(
        [frame.frame_yx for frame in sized],
        [frame.truth for frame in sized],
        [frame.pixel_size_pm or 0.0 for frame in sized],
        radius_pm,
    )
    return blob


def _summarise(
    tasks: Sequence[_Task], parts: Sequence[Evaluation], radius_pm: float | None
) -> list[Score]:
    """Return the scores of each condition over all of its tasks."""
    together: dict[tuple[str, str], Evaluation] = {}
    test_sets: dict[tuple[str, str], TestSet] = {}
    for task, part in zip(tasks, parts, strict=True):
        together.setdefault(task.condition, Evaluation()).extend(part)
        if task.is_classical:  # it holds all blocks of its condition
            test_sets[task.condition] = test_set_of(task.blocks, radius_pm)
    return [
        Score(
            member,
            name,
            digest,
            whole.values(member),
            counts=tuple(frame.counts for frame in whole.matched[member]),
            reliability=whole.reliability(member),
            test_set=test_sets[name, digest],
            detector=tuple(map(asdict, whole.detector)) if member == CLASSICAL else (),
        )
        for (name, digest), whole in together.items()
        for member in sorted(whole.matched)
        # On some frames nothing could be selected: a score of the others would compare with none.
        if len(whole.matched[member]) == len(whole.matched[CLASSICAL])
    ]

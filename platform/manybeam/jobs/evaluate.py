"""Measuring members on conditions: every member, the ensemble and a classical detector.

A block of test frames (`jobs.test_sets`) is one piece of work for all members, because the
ensemble's atoms need all their answers. The classical detector is a piece of its own on each
condition, because it is tuned on all frames.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from itertools import chain
from math import isnan, nan
from typing import Literal

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from manybeam.cluster import joining as cluster
from manybeam.data.io.frame import Frame
from manybeam.jobs.test_sets import (
    Block,
    Labelled,
    Sought,
    labelled_frames,
    plan_blocks,
    test_set_of,
)
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.scoring import classical
from manybeam.learn.scoring.kinds import confusion, f1_of_kinds, recall_of
from manybeam.learn.scoring.scores import (
    Judged,
    auroc,
    beliefs,
    false_fill,
    judge,
    reliability,
    spread_auroc,
    summarise,
)
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.question import Question
from manybeam.spec.files import Library
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Bin, Score, TestSet

Array = NDArray[np.floating]
Counts = NDArray[np.int64]
Told = Callable[[int, int], None]


@dataclass
class Judgements:
    """What was found on frames of one condition, by member (or ENSEMBLE, CLASSICAL).

    Attributes:
        judged: frames against their truth.
        found: their atoms.
        kinds: for those that tell elements apart, the elements and the confusion over all frames.
        sought: what was to be found on each frame, where all are of a known lattice.
        detector: what the classical detector was tuned to for even frames, and for odd ones.
    """

    judged: dict[int, list[Judged]] = field(default_factory=dict)
    found: dict[int, list[Array]] = field(default_factory=dict)
    kinds: dict[int, tuple[tuple[int, ...], Counts]] = field(default_factory=dict)
    sought: dict[int, list[Sought | None]] = field(default_factory=dict)
    detector: tuple[classical.Blob, ...] = ()

    def add(
        self,
        member: int,
        atoms: Array,
        frame: Labelled,
        radius_pm: float | None,
        elements: tuple[int, ...] = (),
    ) -> None:
        """Compare what one of them found on one frame with the truth."""
        shape = (frame.frame_yx.shape[0], frame.frame_yx.shape[1])
        verdict = judge(atoms, frame.truth, frame.pixel_size_pm, shape, radius_pm)
        self.judged.setdefault(member, []).append(verdict)
        self.found.setdefault(member, []).append(atoms)
        self.sought.setdefault(member, []).append(frame.sought)
        if elements:
            self._count(member, elements, confusion([verdict], [atoms], [frame.truth], elements))

    def extend(self, other: "Judgements") -> None:
        """Take over those of later frames."""
        self.detector = self.detector or other.detector
        for member in other.judged:
            self.judged.setdefault(member, []).extend(other.judged[member])
            self.found.setdefault(member, []).extend(other.found[member])
            self.sought.setdefault(member, []).extend(other.sought[member])
        for member, (elements, table) in other.kinds.items():
            self._count(member, elements, table)

    def values(self, member: int) -> dict[str, float]:
        """Return the scores of one of them by name; those that are NaN are left out.

        F1 of each element is called `f1_mo`, by its symbol. On a known lattice there are
        `recall_dopant`, `recall_edge` and `false_fill`, the share of vacancies filled. The
        ensemble has `spread_auroc` and `doubt_auroc`: how well the spread of an atom's position,
        and 1 - its probability, tell wrong atoms from right ones.
        """
        scores = summarise(self.judged[member], self.found[member]).values()
        elements, table = self.kinds.get(member, ((), np.zeros((1, 1), np.int64)))
        each = zip(elements, f1_of_kinds(table), strict=True)
        scores |= self._found_of_sought(member) | self._found_by_doubt(member)
        return {**scores, **{f"f1_{chemical_symbols[z].lower()}": float(f1) for z, f1 in each}}

    def reliability(self, member: int) -> tuple[Bin, ...]:
        """Return how often the ensemble's atoms were right, by their probability.

        Empty for anyone else: a curve for every member would make sheets half as large again.
        """
        if member != ENSEMBLE:
            return ()
        return reliability(*beliefs(self.judged[member], self.found[member])).bins

    def _found_of_sought(self, member: int) -> dict[str, float]:
        judged = self.judged[member]
        known = [one for one in self.sought[member] if one is not None]
        if len(known) < len(judged):
            return {}
        frames = zip(self.found[member], judged, known, strict=True)
        sites = np.array([len(one.vacancies) for one in known])
        filled = [false_fill(a, s.vacancies, j.radius_pm / s.pixel_size_pm) for a, j, s in frames]
        values = {
            "recall_dopant": recall_of(judged, [one.is_dopant for one in known]),
            "recall_edge": recall_of(judged, [one.is_edge for one in known]),
            "false_fill": float(np.nan_to_num(filled) @ sites / sites.sum()) if any(sites) else nan,
        }
        return {name: value for name, value in values.items() if not isnan(value)}

    def _found_by_doubt(self, member: int) -> dict[str, float]:
        if member != ENSEMBLE:
            return {}
        frames = list(zip(self.found[member], self.judged[member], strict=True))
        atoms = np.concatenate([np.reshape(a, (-1, 7))[j.found_counts] for a, j in frames])
        is_wrong = np.concatenate([~j.is_true[j.found_counts] for _, j in frames])
        spread_px = np.hypot(atoms[:, 4], atoms[:, 5])
        values = {"doubt_auroc": auroc(1 - atoms[:, 3], is_wrong)}
        if np.isfinite(spread_px).any():  # one member has no spread to tell by
            values["spread_auroc"] = spread_auroc(spread_px, is_wrong)
        return {name: value for name, value in values.items() if not isnan(value)}

    def _count(self, member: int, elements: tuple[int, ...], table: Counts) -> None:
        before = self.kinds.get(member, (elements, np.zeros_like(table)))[1]
        self.kinds[member] = (elements, before + table)


def evaluate(
    members: Sequence[Member],
    measure: Measure,
    library: Library,
    *,
    seed: int = 0,
    progress: Told | None = None,
    executor: Literal["ray", "local"] = "ray",
) -> list[Score]:
    """Return a score for each member, the ensemble and the classical detector on each condition.

    Args:
        members: the ensemble; one is enough.
        measure: conditions to simulate, labelled FrameSets to read, and how to match.
        library: where conditions are looked up.
        seed: of the test frames; equal seeds give every ensemble the same ones.
        progress: called with (pieces of work done, all of them).
        executor: "ray" shares the work over the cluster; "local" does it here.

    Raises:
        UnknownCondition: a pattern matches no condition.
        UnknownFrameSet: a URL holds no FrameSet.
        InvalidInput: there is nothing to measure on, or a FrameSet has no truth.
        MissingPixelSize: a frame has no pixel size, so distances have no unit.
    """
    pieces = _pieces(plan_blocks(measure, library, seed))
    judgements: dict[int, Judgements] = {}
    for done, (place, judged) in enumerate(_results(pieces, members, measure, executor), 1):
        judgements[place] = judged
        if progress:
            progress(done, len(pieces))
    whole = [judgements[place] for place in range(len(pieces))]
    return _summarise(pieces, whole, measure.match_radius_pm)


@dataclass(frozen=True)
class _Piece:
    """A piece of work: the members on one block, or the detector on all of one condition."""

    blocks: tuple[Block, ...]
    is_classical: bool

    @property
    def condition(self) -> tuple[str, str]:
        return self.blocks[0].name, self.blocks[0].digest


def _pieces(blocks: Sequence[Block]) -> list[_Piece]:
    """Return the pieces of work, the longest ones first: those of the detector."""
    conditions: dict[tuple[str, str], list[Block]] = {}
    for block in blocks:
        conditions.setdefault((block.name, block.digest), []).append(block)
    by_hand = [_Piece(tuple(whole), is_classical=True) for whole in conditions.values()]
    return by_hand + [_Piece((block,), is_classical=False) for block in blocks]


def _results(
    pieces: Sequence[_Piece], members: Sequence[Member], measure: Measure, executor: str
) -> Iterator[tuple[int, Judgements]]:
    radius_pm = measure.match_radius_pm
    if executor == "local":
        ensemble = Ensemble(members)
        for place, piece in enumerate(pieces):
            yield place, _judge(piece, lambda: ensemble, radius_pm)
        return
    cluster.connect()
    shared = cluster.share(tuple(members))
    yield from cluster.each([partial(_judge_there, one, shared, radius_pm) for one in pieces])


def _judge_there(piece: _Piece, shared: cluster.Shared, radius_pm: float | None) -> Judgements:
    return _judge(piece, partial(_ensemble, shared), radius_pm)


def _judge(piece: _Piece, ensemble: Callable[[], Ensemble], radius_pm: float | None) -> Judgements:
    if piece.is_classical:
        return judge_detector(piece.blocks, radius_pm)
    return judge_block(piece.blocks[0], ensemble(), radius_pm)


@lru_cache(maxsize=1)
def _ensemble(shared: cluster.Shared) -> Ensemble:
    """Return the ensemble, built once in each worker."""
    return Ensemble(shared.value())


def judge_block(block: Block, ensemble: Ensemble, radius_pm: float | None) -> Judgements:
    """Return what members and ensemble found on a block's frames."""
    judgements, predictor = Judgements(), Predictor.of_ensemble(ensemble)
    elements = {one.index: one.recipe.tiles.elements for one in ensemble.members}
    for frame in labelled_frames(block):
        answer = predictor.answer(
            Frame(frame.frame_yx, frame.pixel_size_pm), Question(is_raw=True)
        ).prediction
        for member, atoms in zip(answer.members, answer.member_atoms, strict=True):
            judgements.add(member, atoms, frame, radius_pm, elements[member])
        # Members that number their kinds differently have no common answer about them.
        common = elements[answer.members[0]] if len(set(elements.values())) == 1 else ()
        judgements.add(ENSEMBLE, answer.atoms, frame, radius_pm, common)
    return judgements


def judge_detector(blocks: Sequence[Block], radius_pm: float | None) -> Judgements:
    """Return what the classical detector found on all frames of one condition.

    It is tuned on the even frames for the odd ones and the other way round: so it knows the
    condition as well as any specialist, but never the frame it is judged on.
    """
    frames = list(chain.from_iterable(labelled_frames(block) for block in blocks))
    blobs = tuple(_tuned(frames[1 - half :: 2], radius_pm) for half in (0, 1))
    judgements = Judgements(detector=blobs)
    for place, frame in enumerate(frames):
        atoms = classical.detect(frame.frame_yx, frame.pixel_size_pm, blobs[place % 2])
        judgements.add(CLASSICAL, atoms, frame, radius_pm)
    return judgements


def _tuned(frames: Sequence[Labelled], radius_pm: float | None) -> classical.Blob:
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
    pieces: Sequence[_Piece], judgements: Sequence[Judgements], radius_pm: float | None
) -> list[Score]:
    """Return the scores of each condition over all of its pieces."""
    together: dict[tuple[str, str], Judgements] = {}
    test_sets: dict[tuple[str, str], TestSet] = {}
    for piece, part in zip(pieces, judgements, strict=True):
        together.setdefault(piece.condition, Judgements()).extend(part)
        if piece.is_classical:  # it holds all blocks of its condition
            test_sets[piece.condition] = test_set_of(piece.blocks, radius_pm)
    return [
        Score(
            member,
            name,
            digest,
            whole.values(member),
            counts=tuple(frame.counts for frame in whole.judged[member]),
            reliability=whole.reliability(member),
            test_set=test_sets[name, digest],
            detector=tuple(map(asdict, whole.detector)) if member == CLASSICAL else (),
        )
        for (name, digest), whole in together.items()
        for member in sorted(whole.judged)
    ]

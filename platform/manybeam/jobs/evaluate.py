"""Measuring members on conditions: every member, the ensemble and a classical detector.

Test frames are simulated in blocks of fixed size, each from a seed of its own that no training
uses: the same condition gives the same frames to every ensemble, however the work is shared out.
A block is one piece of work for all members, because the ensemble's atoms need all their answers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from manybeam.data.frames import FrameSet
from manybeam.errors import InvalidInput
from manybeam.jobs import cluster
from manybeam.jobs.run import seed_of
from manybeam.learn import classical
from manybeam.learn.ensemble import Ensemble
from manybeam.learn.kinds import confusion, f1_of_kinds
from manybeam.learn.member import Member
from manybeam.learn.scores import Judged, judge, summarise
from manybeam.spec.files import Library
from manybeam.spec.imaging import Condition
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Score

BLOCK = 8  # frames in one piece of work; part of what decides the test frames, so it stays

Array = NDArray[np.floating]
Counts = NDArray[np.int64]
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """Some test frames of one condition, before they are simulated or read.

    Attributes:
        name: what the condition is called in the matrix.
        digest: of the condition's numbers.
        source: a condition to simulate under, or the URL of a labelled FrameSet.
        start, stop: which of its frames.
        seed: of the whole measurement; the block makes its own from it.
    """

    name: str
    digest: str
    source: Condition | str
    start: int
    stop: int
    seed: int


@dataclass(frozen=True)
class Labelled:
    """One test frame and the truth on it."""

    frame_yx: Array
    truth: Array
    pixel_size_pm: float | None


@dataclass
class Judgements:
    """What was found on frames of one condition, by member (or ENSEMBLE, CLASSICAL).

    Attributes:
        judged: frames against their truth.
        found: their atoms.
        kinds: for those that tell elements apart, the elements and the confusion over all frames.
    """

    judged: dict[int, list[Judged]] = field(default_factory=dict)
    found: dict[int, list[Array]] = field(default_factory=dict)
    kinds: dict[int, tuple[tuple[int, ...], Counts]] = field(default_factory=dict)

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
        if elements:
            self._count(member, elements, confusion([verdict], [atoms], [frame.truth], elements))

    def extend(self, other: "Judgements") -> None:
        """Take over those of later frames."""
        for member in other.judged:
            self.judged.setdefault(member, []).extend(other.judged[member])
            self.found.setdefault(member, []).extend(other.found[member])
        for member, (elements, table) in other.kinds.items():
            self._count(member, elements, table)

    def values(self, member: int) -> dict[str, float]:
        """Return the scores of one of them by name; F1 of each element as `f1_Mo`."""
        scores = summarise(self.judged[member], self.found[member]).values()
        elements, table = self.kinds.get(member, ((), np.zeros((1, 1), np.int64)))
        each = zip(elements, f1_of_kinds(table), strict=True)
        return {**scores, **{f"f1_{chemical_symbols[z]}": float(f1) for z, f1 in each}}

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
    blocks = plan_blocks(measure, library, seed)
    judgements: dict[int, Judgements] = {}
    for done, (place, judged) in enumerate(_results(blocks, members, measure, executor), 1):
        judgements[place] = judged
        if progress:
            progress(done, len(blocks))
    return _summarise(blocks, [judgements[place] for place in range(len(blocks))])


def plan_blocks(measure: Measure, library: Library, seed: int) -> list[Block]:
    """Return the pieces of work of a measurement, those of one condition side by side."""
    blocks: list[Block] = []
    for condition in library.matching(measure.conditions):
        for start in range(0, measure.frames_per_condition, BLOCK):
            stop = min(start + BLOCK, measure.frames_per_condition)
            blocks.append(Block(condition.id, condition.digest, condition, start, stop, seed))
    simulated = {block.name for block in blocks}
    for url in measure.frames:
        blocks += _blocks_of_frameset(url, simulated)
    if not blocks:
        raise InvalidInput(
            "nothing to measure on",
            "measure.conditions or measure.frames must name something",
            "name conditions, such as 'graphene-*', or a labelled FrameSet",
        )
    return sorted(blocks, key=lambda block: block.name)


def _blocks_of_frameset(url: str, simulated: set[str]) -> list[Block]:
    frameset = FrameSet.open(url)
    if not frameset.has_truth or not len(frameset):
        raise InvalidInput(
            f"{url} cannot be measured on",
            "it holds no frames" if not len(frameset) else "nobody has marked the atoms on it",
            "import the frames with --truth",
        )
    # Simulated and recorded frames of one condition are two things to be good at.
    name = frameset.condition.id
    if name in simulated or frameset.condition.model_dump().get("origin") == "simulated":
        name = f"{name}-frames"
    return [
        Block(name, frameset.condition.digest, frameset.url, start, stop, 0)
        for start in range(0, len(frameset), BLOCK)
        for stop in [min(start + BLOCK, len(frameset))]
    ]


def _results(
    blocks: Sequence[Block], members: Sequence[Member], measure: Measure, executor: str
) -> Iterator[tuple[int, Judgements]]:
    radius_pm = measure.match_radius_pm
    if executor == "local":
        ensemble = Ensemble(members)
        for place, block in enumerate(blocks):
            yield place, judge_block(block, ensemble, radius_pm)
        return
    cluster.connect()
    shared = cluster.share(tuple(members))
    work = [partial(_judge_there, block, shared, radius_pm) for block in blocks]
    yield from cluster.each(work)


def _judge_there(block: Block, shared: cluster.Shared, radius_pm: float | None) -> Judgements:
    return judge_block(block, _ensemble(shared), radius_pm)


@lru_cache(maxsize=1)
def _ensemble(shared: cluster.Shared) -> Ensemble:
    """Return the ensemble, built once in each worker."""
    return Ensemble(shared.value())


def judge_block(block: Block, ensemble: Ensemble, radius_pm: float | None) -> Judgements:
    """Return what members, ensemble and classical detector found on a block's frames."""
    frames = list(labelled_frames(block))
    judgements = Judgements()
    elements = {one.index: one.recipe.tiles.elements for one in ensemble.members}
    for frame, by_hand in zip(frames, _classical(frames, radius_pm), strict=True):
        answer = ensemble.predict(frame.frame_yx, frame.pixel_size_pm)
        for member, atoms in zip(answer.members, answer.member_atoms, strict=True):
            judgements.add(member, atoms, frame, radius_pm, elements[member])
        # Members that number their kinds differently have no common answer about them.
        common = elements[answer.members[0]] if len(set(elements.values())) == 1 else ()
        judgements.add(ENSEMBLE, answer.atoms, frame, radius_pm, common)
        judgements.add(CLASSICAL, by_hand, frame, radius_pm)
    return judgements


def labelled_frames(block: Block) -> Iterator[Labelled]:
    """Yield the frames of a block with their truth."""
    if isinstance(block.source, str):
        frameset = FrameSet.open(block.source)
        for i in range(block.start, block.stop):
            yield Labelled(frameset.frame(i), frameset.truth(i), frameset.pixel_size_pm(i))
        return
    from manybeam.data.simulate import simulate

    # A block is drawn whole and cut, so that asking for more frames keeps those before.
    seed = seed_of("test", block.seed, block.digest, block.start)
    drawn = simulate(block.source, BLOCK, seed=seed)
    for i in range(block.stop - block.start):
        yield Labelled(drawn.frames_nyx[i], drawn.truth[i], float(drawn.pixel_size_pm[i]))


def _classical(frames: Sequence[Labelled], radius_pm: float | None) -> list[Array]:
    """Return the detector's atoms on each frame, tuned on the *other* half of the frames.

    So it knows the condition as well as any specialist, but never the frame it is judged on.
    """
    halves = (frames[0::2], frames[1::2])
    blobs = [_tuned(halves[1 - half], radius_pm) for half in (0, 1)]
    return [
        classical.detect(frame.frame_yx, frame.pixel_size_pm, blobs[place % 2])
        for place, frame in enumerate(frames)
    ]


def _tuned(frames: Sequence[Labelled], radius_pm: float | None) -> classical.Blob | None:
    sized = [frame for frame in frames if frame.pixel_size_pm is not None]
    if not sized:
        return None
    blob, _ = classical.tune(
        [frame.frame_yx for frame in sized],
        [frame.truth for frame in sized],
        [frame.pixel_size_pm or 0.0 for frame in sized],
        radius_pm,
    )
    return blob


def _summarise(blocks: Sequence[Block], judgements: Sequence[Judgements]) -> list[Score]:
    """Return the scores of each condition over all of its blocks."""
    together: dict[tuple[str, str], Judgements] = {}
    for block, part in zip(blocks, judgements, strict=True):
        together.setdefault((block.name, block.digest), Judgements()).extend(part)
    return [
        Score(member, name, digest, whole.values(member))
        for (name, digest), whole in together.items()
        for member in sorted(whole.judged)
    ]

"""Test frames: which ones members are measured on, and how they are made or read again.

They are simulated in blocks of fixed size, each from a seed of its own that no training uses: the
same condition gives the same frames to every ensemble, however the work is shared out, and to who
wants to look at one of them later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import SIMULATOR, simulate
from manybeam.errors import InvalidInput
from manybeam.jobs.run import seed_of
from manybeam.learn.analysis.fitness import LATTICES
from manybeam.learn.scoring.kinds import is_dopant, is_edge, vacancies
from manybeam.spec.files import Library
from manybeam.spec.imaging import Condition
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import FrameSetUse, TestSet

HOSTS = {"graphene": (6,), "mos2": (42, 16)}  # elements of the perfect lattice
BLOCK = 8  # frames in one piece of work; part of what decides the test frames, so it stays

Array = NDArray[np.floating]
Flag = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Some test frames of one condition, before they are simulated or read.

    Attributes:
        name: what the condition is called in the matrix.
        digest: of the condition's numbers, and the version of the simulator where it makes the
            frames: scores on frames of another simulator are not of the same frames.
        source: a condition to simulate under, or a labelled FrameSet as it was when planned.
        start, stop: which of its frames.
        seed: of the whole measurement; the block makes its own from it.
    """

    name: str
    digest: str
    source: Condition | FrameSetUse
    start: int
    stop: int
    seed: int


@dataclass(frozen=True)
class Sought:
    """What people look for in a frame of a known lattice.

    Attributes:
        is_dopant, is_edge: for each true atom, whether it is one.
        vacancies: where single atoms are missing, (sites, 2) y, x.
        pixel_size_pm: of the frame.
    """

    is_dopant: Flag
    is_edge: Flag
    vacancies: Array
    pixel_size_pm: float


@dataclass(frozen=True)
class Labelled:
    """One test frame, the truth on it, and the name of the structure it is of."""

    frame_yx: Array
    truth: Array
    pixel_size_pm: float | None
    structure: str | None = None

    @cached_property
    def sought(self) -> Sought | None:
        """What people look for; None where no lattice is known, or no length."""
        lattice, size_pm = LATTICES.get(self.structure or ""), self.pixel_size_pm
        if lattice is None or size_pm is None:
            return None
        where = (self.truth, size_pm, lattice, (self.frame_yx.shape[0], self.frame_yx.shape[1]))
        dopants = is_dopant(self.truth, HOSTS[self.structure or ""])
        return Sought(dopants, is_edge(*where), vacancies(*where), size_pm)


def plan_blocks(measure: Measure, library: Library, seed: int) -> list[Block]:
    """Return the blocks of frames of a measurement, those of one condition side by side."""
    blocks: list[Block] = []
    for condition in library.matching(measure.conditions):
        for start in range(0, measure.frames_per_condition, BLOCK):
            stop = min(start + BLOCK, measure.frames_per_condition)
            digest = f"{condition.digest}-{SIMULATOR}"
            blocks.append(Block(condition.id, digest, condition, start, stop, seed))
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
    use = FrameSetUse(frameset.url, frameset.digest)
    return [
        Block(name, frameset.condition.digest, use, start, stop, 0)
        for start in range(0, len(frameset), BLOCK)
        for stop in [min(start + BLOCK, len(frameset))]
    ]


def test_set_of(blocks: Sequence[Block], match_radius_pm: float | None) -> TestSet:
    """Return what is kept of the frames of one condition's blocks, to have them again."""
    sources = dict.fromkeys(one.source for one in blocks if isinstance(one.source, FrameSetUse))
    seeds = {one.seed for one in blocks if isinstance(one.source, Condition)}
    return TestSet(seeds.pop() if seeds else None, tuple(sources), match_radius_pm)


def labelled_frames(block: Block) -> Iterator[Labelled]:
    """Yield the frames of a block with their truth."""
    if isinstance(block.source, FrameSetUse):
        frameset = FrameSet.open(block.source.url, block.source.digest)
        structure = frameset.condition.sample.structure
        for i in range(block.start, block.stop):
            size_pm = frameset.pixel_size_pm(i)
            yield Labelled(frameset.frame(i), frameset.truth(i), size_pm, structure)
        return
    # A block is drawn whole and cut, so that asking for more frames keeps those before. Every
    # simulator gets the same seeds, so that two of them can be compared frame by frame.
    seed = seed_of("test", block.seed, block.source.digest, block.start)
    drawn = simulate(block.source, BLOCK, seed=seed)
    structure = block.source.sample.structure
    for i in range(block.stop - block.start):
        size_pm = float(drawn.pixel_size_pm[i])
        yield Labelled(drawn.frames_nyx[i], drawn.truth[i], size_pm, structure)

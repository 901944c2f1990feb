"""Test frames: the frames on which members are measured, and how they are made or read again.

They are simulated in blocks of fixed size. Each block has its own seed, which no training uses.
So every ensemble gets the same frames of a condition, however the work is divided, and a frame can
be made again later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from manybeam.data.frames import FrameSet
from manybeam.data.simulation import SIMULATOR
from manybeam.data.simulation.simulate import simulate
from manybeam.errors import InvalidInput, MissingPixelSize
from manybeam.jobs.run import seed_of
from manybeam.learn.analysis.fitness import LATTICES
from manybeam.learn.scoring.kinds import is_dopant, is_edge, vacancies
from manybeam.spec.files import Library
from manybeam.spec.imaging import Condition
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import FrameSetUse, TestSet

HOSTS = {"graphene": (6,), "mos2": (42, 16)}  # elements of the perfect lattice
BLOCK = 8  # frames in one task; it must not change, because it decides the test frames

Array = NDArray[np.floating]
Flag = NDArray[np.bool_]


@dataclass(frozen=True)
class FrameBlock:
    """Some test frames of one condition, before they are simulated or read.

    Attributes:
        name: name of the condition in the matrix.
        digest: digest of the numbers of the condition. For simulated frames it contains the
            version of the simulator, because another simulator makes other frames.
        source: a condition to simulate, or a labelled FrameSet as it was when planned.
        start, stop: range of its frames.
        seed: seed of the whole measurement; the seed of the block is derived from it.
    """

    name: str
    digest: str
    source: Condition | FrameSetUse
    start: int
    stop: int
    seed: int


@dataclass(frozen=True)
class Targets:
    """Dopants, edges and vacancies in a frame of a known lattice.

    Attributes:
        is_dopant, is_edge: for each true atom, whether it is one.
        vacancies: positions of missing single atoms, (sites, 2) y, x.
        pixel_size_pm: pixel size of the frame.
    """

    is_dopant: Flag
    is_edge: Flag
    vacancies: Array
    pixel_size_pm: float


@dataclass(frozen=True)
class LabelledFrame:
    """One test frame, its truth, and the name of its structure."""

    frame_yx: Array
    truth: Array
    pixel_size_pm: float | None
    structure: str | None = None

    @cached_property
    def targets(self) -> Targets | None:
        """Dopants, edges and vacancies; None if the lattice or the pixel size is unknown."""
        lattice, size_pm = LATTICES.get(self.structure or ""), self.pixel_size_pm
        if lattice is None or size_pm is None:
            return None
        where = (self.truth, size_pm, lattice, (self.frame_yx.shape[0], self.frame_yx.shape[1]))
        dopants = is_dopant(self.truth, HOSTS[self.structure or ""])
        return Targets(dopants, is_edge(*where), vacancies(*where), size_pm)


def plan_blocks(measure: Measure, library: Library, seed: int) -> list[FrameBlock]:
    """Return the blocks of frames of a measurement, sorted by condition."""
    blocks: list[FrameBlock] = []
    for condition in library.matching(measure.conditions):
        for start in range(0, measure.frames_per_condition, BLOCK):
            stop = min(start + BLOCK, measure.frames_per_condition)
            digest = f"{condition.digest}-{SIMULATOR}"
            blocks.append(FrameBlock(condition.id, digest, condition, start, stop, seed))
    simulated = {block.name for block in blocks}
    for url in measure.frames:
        blocks += _blocks_of_frameset(url, simulated)
    if not blocks:
        raise InvalidInput(
            "no conditions and no frames to measure on",
            "measure.conditions or measure.frames is needed",
            "give ids of conditions, such as 'graphene-*', or the URL of a labelled FrameSet",
        )
    return sorted(blocks, key=lambda block: block.name)


def check_labelled(url: str, what: str) -> FrameSet:
    """Return a FrameSet; one without frames, marked atoms or pixel sizes is refused.

    Args:
        url: of the FrameSet.
        what: what its frames are needed for: members cannot be `trained` on it.

    Raises:
        UnknownFrameSet: there is none at the URL.
        InvalidInput: it has no frames, or no marked atoms.
        MissingPixelSize: a frame has no pixel size, so distances have no unit.
    """
    frameset = FrameSet.open(url)
    if not frameset.has_truth or not len(frameset):
        raise InvalidInput(
            f"members cannot be {what} on {url}",
            "it holds no frames" if not len(frameset) else "its frames have no marked atoms",
            "import labelled frames: manybeam data import with --truth",
        )
    missing = sum(frameset.pixel_size_pm(i) is None for i in range(len(frameset)))
    if missing:
        raise MissingPixelSize(
            f"members cannot be {what} on {url}: {missing} of {len(frameset)} frames have no "
            "pixel size",
            "distances between atoms would have no unit",
            "import the frames again with --pixel-size-pm",
        )
    return frameset


def _blocks_of_frameset(url: str, simulated: set[str]) -> list[FrameBlock]:
    frameset = check_labelled(url, "measured")
    # Scores on simulated and on recorded frames of one condition are kept apart.
    name = frameset.condition.id
    if name in simulated or frameset.condition.model_dump().get("origin") == "simulated":
        name = f"{name}-frames"
    use = FrameSetUse(frameset.url, frameset.digest)
    return [
        FrameBlock(name, frameset.condition.digest, use, start, stop, 0)
        for start in range(0, len(frameset), BLOCK)
        for stop in [min(start + BLOCK, len(frameset))]
    ]


def test_set_of(blocks: Sequence[FrameBlock], match_radius_pm: float | None) -> TestSet:
    """Return the record from which the frames of one condition can be made again."""
    sources = dict.fromkeys(one.source for one in blocks if isinstance(one.source, FrameSetUse))
    seeds = {one.seed for one in blocks if isinstance(one.source, Condition)}
    return TestSet(seeds.pop() if seeds else None, tuple(sources), match_radius_pm)


def labelled_frames(block: FrameBlock) -> Iterator[LabelledFrame]:
    """Yield the frames of a block with their truth."""
    if isinstance(block.source, FrameSetUse):
        frameset = FrameSet.open(block.source.url, block.source.digest)
        structure = frameset.condition.sample.structure
        for i in range(block.start, block.stop):
            size_pm = frameset.pixel_size_pm(i)
            yield LabelledFrame(frameset.frame(i), frameset.truth(i), size_pm, structure)
        return
    # A block is simulated as a whole and then cut, so that a measurement with more frames contains
    # the frames of a shorter one. The seed does not depend on the version of the simulator, so
    # that two simulators can be compared frame by frame.
    seed = seed_of("test", block.seed, block.source.digest, block.start)
    drawn = simulate(block.source, BLOCK, seed=seed)
    structure = block.source.sample.structure
    for i in range(block.stop - block.start):
        size_pm = float(drawn.pixel_size_pm[i])
        yield LabelledFrame(drawn.frames_nyx[i], drawn.truth[i], size_pm, structure)

"""One test frame of a score, made again, with what was found on it: the errors behind the number.

Frames are never kept: those that were simulated are simulated again from the same seed, those of
a FrameSet are read. The counts recorded with the score tell whether it is the same frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manybeam.data.frames import FrameSet
from manybeam.data.simulate import SIMULATOR
from manybeam.errors import NotFound, TooLarge
from manybeam.jobs.blocks import BLOCK, Array, Block, Labelled, labelled_frames
from manybeam.learn.scores import Judged, judge
from manybeam.spec.imaging import Condition
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Score

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo

SEED = 0  # of the test frames, unless a job of kind evaluate said otherwise
MOST_PX = 2048 * 2048  # of a frame: larger ones take minutes


@dataclass(frozen=True, eq=False)
class Example:
    """One frame, what was found on it, and how right that is.

    Attributes:
        frame: with its truth.
        found: (atoms, >= 4) y, x, class, probability.
        judged: the one against the other.
        is_recorded: whether the counts are those recorded with the score for this frame; None if
            none were recorded. False: the score was taken on frames of another seed, with
            another match radius, or by another version of this program.
    """

    frame: Labelled
    found: Array
    judged: Judged
    is_recorded: bool | None
    is_simulated: bool


def make_example(
    zoo: "Zoo",
    version_ref: str,
    score: Score,
    number: int,
    conditions: Mapping[str, Condition],
    frame_urls: Sequence[str] = (),
) -> Example:
    """Return one test frame of a score with what was found on it now.

    Args:
        zoo: where the members are; their weights are checked as always.
        version_ref: the version, as `graphene@3`.
        score: of the ensemble or a member of it on one condition.
        number: of the frame, from 0.
        conditions: the library's, by id.
        frame_urls: FrameSets that may have been measured on, in order.

    Raises:
        NotFound: the frame cannot be made again; says why.
        TooLarge: a frame of more than four million pixels.
        Corrupt: weights that are not those registered.
    """
    if score.member == CLASSICAL:
        raise NotFound(
            "the classical detector has no example frames",
            "it is tuned on the other frames of the condition, which takes long",
            "look at the ensemble's or a member's",
        )
    block = _block(score, number, conditions, frame_urls)
    *_, frame = labelled_frames(block)
    if frame.frame_yx.size > MOST_PX:
        raise TooLarge(f"a frame of {frame.frame_yx.shape} px", f"at most {MOST_PX} px", "")
    found = _answer(zoo, version_ref, score.member, frame)
    verdict, is_recorded = _judged(score, number, frame, found)
    return Example(frame, found, verdict, is_recorded, not isinstance(block.source, str))


def _block(
    score: Score, number: int, conditions: Mapping[str, Condition], frame_urls: Sequence[str]
) -> Block:
    name, digest = score.condition, score.condition_digest
    known = conditions.get(name)
    if known is not None and digest == f"{known.digest}-{SIMULATOR}":
        start = number - number % BLOCK
        return Block(name, digest, known, start, number + 1, SEED)
    # Of recorded frames there is the digest of their numbers alone.
    if "-" in digest:
        raise NotFound(
            f"the frames of {name} cannot be made again",
            "the simulator has changed since"
            if known is not None and digest.startswith(known.digest)
            else "the numbers of this condition changed, or this library does not describe it",
            "manybeam evaluate measures on frames of the numbers as they are",
        )
    return _block_of_frames(score, number, frame_urls)


def _block_of_frames(score: Score, number: int, frame_urls: Sequence[str]) -> Block:
    """Return the block of one frame of FrameSets that were measured on one after the other."""
    first = 0
    for url in frame_urls:
        frames = FrameSet.open(url)
        if frames.condition.digest != score.condition_digest or not frames.has_truth:
            continue
        if number < first + len(frames):
            at = number - first
            return Block(score.condition, score.condition_digest, url, at, at + 1, SEED)
        first += len(frames)
    raise NotFound(
        f"{score.condition} was measured on recorded frames that are not known here",
        "they lie outside the store, are gone, or the version's job does not name them",
        "",
    )


def _answer(zoo: "Zoo", version_ref: str, member: int, frame: Labelled) -> Array:
    if member == ENSEMBLE:
        return zoo.ensemble(version_ref).predict(frame.frame_yx, frame.pixel_size_pm).atoms
    alone = zoo.ensemble(f"{version_ref}/{member:02d}")
    return alone.predict(frame.frame_yx, frame.pixel_size_pm).member_atoms[0]


def _judged(score: Score, number: int, frame: Labelled, found: Array) -> tuple[Judged, bool | None]:
    """Judge as the score did: it does not tell whether its match radius was given or measured."""
    recorded = score.counts[number] if number < len(score.counts) else None
    shape = (frame.frame_yx.shape[0], frame.frame_yx.shape[1])
    verdict = judge(found, frame.truth, frame.pixel_size_pm, shape)
    radius_pm = score.values.get("radius_pm")
    if recorded not in (None, verdict.counts) and radius_pm and frame.pixel_size_pm:
        other = judge(found, frame.truth, frame.pixel_size_pm, shape, radius_pm)
        if other.counts == recorded:
            verdict = other
    return verdict, None if recorded is None else verdict.counts == recorded

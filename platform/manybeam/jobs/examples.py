"""One test frame of a score, made again, with what was found on it: the errors behind the number.

Frames are never kept: those that were simulated are simulated again from the seed that was kept
with the score, those of a FrameSet are read as they were then. A score of before these were kept
gets a frame that may be one of its own, and is told so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from manybeam.data.frames import FrameSet
from manybeam.data.io.frame import Frame
from manybeam.data.simulation.simulate import SIMULATOR
from manybeam.errors import NotFound, TooLarge
from manybeam.jobs.test_sets import BLOCK, Array, Block, Labelled, labelled_frames
from manybeam.learn.scoring.classical import Blob, detect
from manybeam.learn.scoring.scores import Judged, judge
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.question import Question
from manybeam.spec.imaging import Condition
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, FrameSetUse, Score

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Prediction
    from manybeam.zoo.registry import Zoo

USUAL_SEED = 0  # of test frames, where the score does not say which
MOST_PX = 2048 * 2048  # of a frame: larger ones take minutes


@dataclass(frozen=True, eq=False)
class Example:
    """One frame, what was found on it, and how right that is.

    Attributes:
        frame: with its truth.
        found: (atoms, >= 4) y, x, class, probability.
        judged: the one against the other.
        is_measured: whether it is the very frame that was measured: the score kept its seed, or
            the digest of its FrameSet. False: the score's frames are unknown, and this is one of
            the usual seed, or of a FrameSet that may have been measured on.
        is_recorded: whether the counts are those recorded with the score for this frame; None if
            none were recorded. False, of a frame that was measured: another version of this
            program, or other hardware, found something else on it now.
        is_simulated: made again from its seed; else read from a FrameSet.
    """

    frame: Labelled
    found: Array
    judged: Judged
    is_measured: bool
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
        score: of the ensemble, a member of it or the classical detector on one condition.
        number: of the frame, from 0.
        conditions: the library's, by id.
        frame_urls: FrameSets that may be read; those that may have been measured on, in order,
            where the score does not name its own.

    Raises:
        NotFound: the frame cannot be made again; says why.
        TooLarge: a frame of more than four million pixels.
        Corrupt: weights that are not those registered.
    """
    if score.member == CLASSICAL and not score.detector:
        raise NotFound(
            "nobody knows what the classical detector was tuned to",
            "the score was taken before that was kept",
            f"manybeam evaluate {version_ref} measures again, and keeps it",
        )
    block = _block(score, number, conditions, frame_urls)
    *_, frame = labelled_frames(block)
    if frame.frame_yx.size > MOST_PX:
        raise TooLarge(f"a frame of {frame.frame_yx.shape} px", f"at most {MOST_PX} px", "")
    found = _answer(zoo, version_ref, score, number, frame)
    verdict, is_recorded = _judged(score, number, frame, found)
    is_simulated = isinstance(block.source, Condition)
    return Example(frame, found, verdict, score.test_set is not None, is_recorded, is_simulated)


def _block(
    score: Score, number: int, conditions: Mapping[str, Condition], frame_urls: Sequence[str]
) -> Block:
    name, digest = score.condition, score.condition_digest
    if score.test_set is not None and score.test_set.seed is None:
        readable = takewhile(lambda use: use.url in frame_urls, score.test_set.frame_sets)
        return _block_of_sets(score, number, readable)
    known = conditions.get(name)
    if known is not None and digest == f"{known.digest}-{SIMULATOR}":
        start = number - number % BLOCK
        seed = score.test_set.seed if score.test_set is not None else None
        return Block(name, digest, known, start, number + 1, USUAL_SEED if seed is None else seed)
    # Of recorded frames there is the digest of their numbers alone.
    if "-" in digest:
        raise NotFound(
            f"the frames of {name} cannot be made again",
            "the simulator has changed since"
            if known is not None and digest.startswith(known.digest)
            else "the numbers of this condition changed, or this library does not describe it",
            "manybeam evaluate measures on frames of the numbers as they are",
        )
    return _block_of_sets(score, number, _likely(score, frame_urls))


def _likely(score: Score, frame_urls: Sequence[str]) -> Iterable[FrameSetUse]:
    """Yield the FrameSets of the score's condition: it does not say which it was measured on."""
    for url in frame_urls:
        frames = FrameSet.open(url)
        if frames.condition.digest == score.condition_digest and frames.has_truth:
            yield FrameSetUse(frames.url, frames.digest)


def _block_of_sets(score: Score, number: int, sets: Iterable[FrameSetUse]) -> Block:
    """Return the block of one frame of FrameSets that were measured on one after the other."""
    first = 0
    for use in sets:
        count = len(FrameSet.open(use.url, use.digest))
        if number < first + count:
            at = number - first
            return Block(score.condition, score.condition_digest, use, at, at + 1, USUAL_SEED)
        first += count
    raise NotFound(
        f"{score.condition} was measured on recorded frames that are not known here",
        "they lie outside the store, are gone, or neither the score nor the job names them",
        "",
    )


def _answer(zoo: "Zoo", version_ref: str, score: Score, number: int, frame: Labelled) -> Array:
    if score.member == CLASSICAL:
        blob = Blob(**score.detector[number % len(score.detector)])
        return detect(frame.frame_yx, frame.pixel_size_pm, blob)
    if score.member == ENSEMBLE:
        return _raw(zoo, version_ref, frame).atoms
    return _raw(zoo, f"{version_ref}/{score.member:02d}", frame).member_atoms[0]


def _raw(zoo: "Zoo", ref: str, frame: Labelled) -> "Prediction":
    """Return what members say as they are measured: not calibrated."""
    asked = Question(ref, is_raw=True)
    known = Frame(frame.frame_yx, frame.pixel_size_pm)
    return Predictor.of_zoo(zoo).answer(known, asked).prediction


def _judged(score: Score, number: int, frame: Labelled, found: Array) -> tuple[Judged, bool | None]:
    """Judge as the score did; an old one does not tell whether its match radius was given."""
    recorded = score.counts[number] if number < len(score.counts) else None
    shape = (frame.frame_yx.shape[0], frame.frame_yx.shape[1])
    given_pm = score.test_set.match_radius_pm if score.test_set is not None else None
    verdict = judge(found, frame.truth, frame.pixel_size_pm, shape, given_pm)
    radius_pm = score.values.get("radius_pm") if score.test_set is None else None
    if recorded not in (None, verdict.counts) and radius_pm and frame.pixel_size_pm:
        other = judge(found, frame.truth, frame.pixel_size_pm, shape, radius_pm)
        if other.counts == recorded:
            verdict = other
    return verdict, None if recorded is None else verdict.counts == recorded

"""One test frame of a score, made again, with the atoms found on it and their errors.

Test frames are not stored. Simulated frames are simulated again, from the seed in the score.
Frames of a FrameSet are read as they were at the measurement. An old score has no seed: its
example is a frame that may differ from those measured, and is marked so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from manybeam.data.frames import FrameSet
from manybeam.data.io.frame import Frame
from manybeam.data.simulation import SIMULATOR
from manybeam.errors import NotFound, TooLarge
from manybeam.jobs.test_sets import BLOCK, Array, FrameBlock, LabelledFrame, labelled_frames
from manybeam.learn.scoring.classical import Blob, detect
from manybeam.learn.scoring.scores import MatchedFrame, match_frame
from manybeam.predictor.answer import Question
from manybeam.predictor.predictor import Predictor
from manybeam.spec.imaging import Condition
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED, FrameSetUse, Score

if TYPE_CHECKING:
    from manybeam.learn.nets.prediction import Prediction
    from manybeam.zoo.registry import Zoo

USUAL_SEED = 0  # of test frames, if the score has no seed
MOST_PX = 2048 * 2048  # of a frame: larger frames take minutes


@dataclass(frozen=True, eq=False)
class Example:
    """One frame, the atoms found on it, and their comparison with the truth.

    Attributes:
        frame: the frame with its truth.
        found: (atoms, >= 4) y, x, class, probability.
        matched: the comparison of the found atoms with the truth.
        is_measured: whether this is the frame that was measured. True: the score has its seed,
            or the digest of its FrameSet. False: the frames of the score are unknown, and this
            frame has the usual seed, or is of a FrameSet that may have been measured.
        is_recorded: whether the counts are those recorded with the score for this frame; None if
            none were recorded. If it is False for a measured frame, another version of this
            program, or other hardware, finds other atoms now.
        is_simulated: simulated again from its seed; else read from a FrameSet.
    """

    frame: LabelledFrame
    found: Array
    matched: MatchedFrame
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
    """Return one test frame of a score with the atoms found on it now.

    Args:
        zoo: the zoo of the members; their weights are checked.
        version_ref: the version, as `graphene@3`.
        score: score of the ensemble, a member, the selected members or the classical detector on
            one condition.
        number: number of the frame, from 0.
        conditions: conditions of the library, by id.
        frame_urls: FrameSets that may be read. If the score does not name its FrameSets, these
            are tried in order.

    Raises:
        NotFound: the frame cannot be made again; the error says why.
        TooLarge: the frame has more than four million pixels.
        Corrupt: weights are not those registered.
    """
    if score.member == CLASSICAL and not score.detector:
        raise NotFound(
            "the parameters of the classical detector are unknown",
            "an older version measured this score and did not record them",
            f"manybeam evaluate {version_ref} measures again and records them",
        )
    block = _block(score, number, conditions, frame_urls)
    *_, frame = labelled_frames(block)
    if frame.frame_yx.size > MOST_PX:
        raise TooLarge(
            f"the frame has {frame.frame_yx.shape} px",
            f"examples show frames of at most {MOST_PX} px",
            "choose a condition with smaller frames",
        )
    found = _answer(zoo, version_ref, score, number, frame)
    matched, is_recorded = _matched(score, number, frame, found)
    is_simulated = isinstance(block.source, Condition)
    return Example(frame, found, matched, score.test_set is not None, is_recorded, is_simulated)


def _block(
    score: Score, number: int, conditions: Mapping[str, Condition], frame_urls: Sequence[str]
) -> FrameBlock:
    name, digest = score.condition, score.condition_digest
    if score.test_set is not None and score.test_set.seed is None:
        readable = takewhile(lambda use: use.url in frame_urls, score.test_set.frame_sets)
        return _block_of_sets(score, number, readable)
    known = conditions.get(name)
    if known is not None and digest == f"{known.digest}-{SIMULATOR}":
        start = number - number % BLOCK
        seed = score.test_set.seed if score.test_set is not None else None
        seed = USUAL_SEED if seed is None else seed
        return FrameBlock(name, digest, known, start, number + 1, seed)
    # For recorded frames, the digest holds only the numbers of the condition.
    if "-" in digest:
        raise NotFound(
            f"the frames of {name} cannot be simulated again",
            "the simulator has changed since the measurement"
            if known is not None and digest.startswith(known.digest)
            else "the numbers of this condition changed, or it is not in this library",
            "manybeam evaluate measures on new frames with the present numbers",
        )
    return _block_of_sets(score, number, _likely(score, frame_urls))


def _likely(score: Score, frame_urls: Sequence[str]) -> Iterable[FrameSetUse]:
    """Yield the FrameSets of the condition; the score does not name those it was measured on."""
    for url in frame_urls:
        frames = FrameSet.open(url)
        if frames.condition.digest == score.condition_digest and frames.has_truth:
            yield FrameSetUse(frames.url, frames.digest)


def _block_of_sets(score: Score, number: int, sets: Iterable[FrameSetUse]) -> FrameBlock:
    """Return the block of one frame; the FrameSets are in the order of their measurement."""
    first = 0
    for use in sets:
        count = len(FrameSet.open(use.url, use.digest))
        if number < first + count:
            at = number - first
            digest = score.condition_digest
            return FrameBlock(score.condition, digest, use, at, at + 1, USUAL_SEED)
        first += count
    raise NotFound(
        f"the recorded frames that {score.condition} was measured on are not found",
        "they are outside the store, deleted, or named neither by the score nor by the job",
        "put the FrameSet back into the store, or measure again with manybeam evaluate",
    )


def _answer(zoo: "Zoo", version_ref: str, score: Score, number: int, frame: LabelledFrame) -> Array:
    if score.member == CLASSICAL:
        blob = Blob(**score.detector[number % len(score.detector)])
        return detect(frame.frame_yx, frame.pixel_size_pm, blob)
    if score.member == SELECTED:
        asked = Question(version_ref, is_selecting=True, is_size_trusted=True)
        return _answered(zoo, asked, frame).atoms
    if score.member == ENSEMBLE:
        return _raw(zoo, version_ref, frame).atoms
    return _raw(zoo, f"{version_ref}/{score.member:02d}", frame).member_atoms[0]


def _raw(zoo: "Zoo", ref: str, frame: LabelledFrame) -> "Prediction":
    """Return the answer of members without calibration, as it is measured."""
    return _answered(zoo, Question(ref, is_raw=True), frame)


def _answered(zoo: "Zoo", asked: Question, frame: LabelledFrame) -> "Prediction":
    known = Frame(frame.frame_yx, frame.pixel_size_pm)
    return Predictor.of_zoo(zoo).answer(known, asked).prediction


def _matched(
    score: Score, number: int, frame: LabelledFrame, found: Array
) -> tuple[MatchedFrame, bool | None]:
    """Compare as the score did; an old score does not say whether its match radius was given."""
    recorded = score.counts[number] if number < len(score.counts) else None
    shape = (frame.frame_yx.shape[0], frame.frame_yx.shape[1])
    given_pm = score.test_set.match_radius_pm if score.test_set is not None else None
    matched = match_frame(found, frame.truth, frame.pixel_size_pm, shape, given_pm)
    radius_pm = score.values.get("radius_pm") if score.test_set is None else None
    if recorded not in (None, matched.counts) and radius_pm and frame.pixel_size_pm:
        other = match_frame(found, frame.truth, frame.pixel_size_pm, shape, radius_pm)
        if other.counts == recorded:
            matched = other
    return matched, None if recorded is None else matched.counts == recorded

"""Frames of known conditions for drift detection, and advice after an alarm.

Drift is not a failure: members may be as good as before on frames unlike all measured ones. So the
advice is based on the predicted F1 on the drifted frames, and nothing is blocked.
Axis letters: n frame, s number of a summary, y row, x column.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from manybeam.data.io.frame import Frame
from manybeam.data.simulation.simulate import simulate
from manybeam.data.simulation.typical import filled, typical
from manybeam.errors import InvalidInput
from manybeam.learn.analysis.condition_inference import DRAWS, Inferred, draw, infer
from manybeam.predictor.answer import Question
from manybeam.predictor.condition_distance import (
    DIFFERENCE_STEPS,
    RATIO_STEPS,
    comparable,
    structure_of,
)
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.reasons import WORDS
from manybeam.predictor.selection import Selection
from manybeam.predictor.stream.drift import frame_features
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.spec import Condition, Library, Policy, Range
from manybeam.zoo.matrix import ENSEMBLE, Matrix

Action = Literal["go on", "switch members", "adapt", "ask"]
Progress = Callable[[int, int], None]

KNOWN_F1 = 0.9  # lowest measured F1 of a condition that the members know
FINE_F1 = 0.8  # lowest predicted F1 with which members go on
# Share of a unit of distance by which a session may wander without an alarm: 0.9 nm of defocus,
# 23 % of the dose. Alarms for half a nanometre would be ignored by users. Simulated known frames
# wander a third further, because their few places seldom reach the ends.
WANDER = 0.3
WATCHED_WANDER = 0.4
WANDERING = frozenset({"dose_e_per_a2", *DIFFERENCE_STEPS})
SIGNED = frozenset({"optics.defocus_nm", "scan.drift_pm_per_row"})
LEAST = {"detector.gamma": 0.2}  # lower limits; 0 for others
BLOCK = 10  # consecutive frames simulated at one place
LEAST_FRAMES = 60  # for each condition
ALL_FRAMES = 400  # over all conditions, if they are few
RANKED_FRAMES = 3  # frames since the change on which members are ranked
SEED = 71_003  # not a seed of training or held-out frames
INFERRED_FRAMES = 4


@dataclass(frozen=True)
class KnownFrames:
    """In-control frames for a drift watch.

    Attributes:
        features_ns: features of each frame, see `predictor.stream.drift.frame_features`.
        condition_n: index in `conditions` of each frame.
        conditions: ids of the conditions, all measured with an F1 of at least 0.9.
    """

    features_ns: np.ndarray
    condition_n: np.ndarray
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """What to do about drifted frames.

    Attributes:
        action: `go on`, `switch members`, `adapt` or `ask`.
        members: the members to use; the serving ones unless the action is `switch members`.
        predicted_f1: mean predicted F1 of `members`, 0 to 1.
        command: the command to run, or "".
        why: the reason in words.
        inferred: the condition inferred from the frames, if it was needed.
    """

    action: Action
    members: tuple[int, ...]
    predicted_f1: float
    command: str
    why: str
    inferred: Inferred | None = None


def known_frames(
    matrix: Matrix,
    library: Library,
    shape: tuple[int, int],
    *,
    has_pixel_size: bool = True,
    count: int = ALL_FRAMES,
    seed: int = SEED,
    progress: Progress | None = None,
) -> KnownFrames:
    """Return simulated frames of the conditions that an ensemble knows: measured, with a good F1.

    Each condition wanders as a harmless session does, and a third further.

    Args:
        matrix: the ensemble's scores.
        library: conditions by id.
        shape: rows and columns of the watched frames; larger ones are simulated as crops.
        has_pixel_size: whether the watched frames have a pixel size.
        count: frames over all conditions; each condition has at least 60.
        seed: same seed, same frames.
        progress: called with (frames done, frames).

    Raises:
        InvalidInput: no condition that can be simulated was measured with an F1 of 0.9.
    """
    found = [one for one in comparable(matrix, library) if _f1(matrix, one.id) >= KNOWN_F1]
    if not found:
        raise InvalidInput(
            "the ensemble has no known condition to compare the frames with",
            f"it needs one that can be simulated, with a measured F1 of {KNOWN_F1:g} or more",
            "run manybeam evaluate, or take the first frames as known with --first 100",
        )
    each = max(LEAST_FRAMES, count // len(found)) // BLOCK * BLOCK
    rows: list[np.ndarray] = []
    for rank, condition in enumerate(found):
        for made in _session(condition, each, shape, seed + rank, has_pixel_size=has_pixel_size):
            rows.append(made)
            if progress:
                progress(len(rows), each * len(found))
    names = tuple(one.id for one in found)
    return KnownFrames(np.stack(rows), np.repeat(np.arange(len(found)), each), names)


def wandering(condition: Condition, share: float = WANDER) -> Policy:
    """Return a policy around a condition: each quantity wanders by a share of a unit."""
    numbers = condition.model_dump(mode="json", exclude={"origin"})
    for path, value in typical(condition).items():
        if path not in WANDERING or isinstance(value, Range):
            continue
        group, _, name = path.rpartition(".")
        (numbers[group] if group else numbers)[name] = list(_around(path, value, share))
    return Policy.model_validate(numbers)


def propose(
    predictor: Predictor,
    ref: str,
    frames: Sequence[Frame],
    *,
    serving: Sequence[int] = (),
    policy: Policy | None = None,
    library: Library,
    frames_url: str = "FRAMES",
    seed: int = 0,
    draws: int = DRAWS,
) -> Advice:
    """Return what to do about frames recorded since a stream drifted.

    Switch members, if the predicted F1 of the best members is good and its lower end is above the
    predicted F1 of the serving ones. Go on, if the serving members have a good predicted F1 near a
    measured condition, or a good lower end anywhere. Else adapt, if a policy covers these frames.
    Else ask a person.

    Args:
        predictor: answers the frames.
        ref: the version that serves.
        frames: frames since the change, all of one shape and pixel size.
        serving: indices of the members that answer now; all if left out.
        policy: the policy in which the condition is inferred; the broadest of the structure if
            left out.
        library: conditions and policies by id.
        frames_url: the FrameSet of these frames, for the command.
        seed: of the draws.
        draws: simulated frames from which the condition is inferred.

    Raises:
        InvalidInput: no frames.
    """
    if not len(frames):
        raise InvalidInput("no frames since the change", "at least one is needed", "")
    version = predictor.versions.get(ref)
    chosen = np.unique(np.linspace(0, len(frames) - 1, RANKED_FRAMES).round().astype(int))
    # A stream at another magnification is a common drift, and not a mistake to refuse.
    question = Question(ref, tuple(serving), is_size_trusted=True)
    answers = predictor.answers([frames[place] for place in chosen], question)
    asked = [one.selection for one in answers if one.selection is not None]
    now = tuple(serving) or version.ensemble.indices
    outlook = _outlook(asked, now)
    if outlook.is_worth_switching:
        return _switch(outlook, version)
    if outlook.is_fine:
        return Advice("go on", now, outlook.f1, "", outlook.words("they may go on"))
    known = version.performance
    structure = structure_of(
        frames[-1].condition,
        comparable(version.matrix, library),
        known.table.structure if known else "",
    )
    policy = policy or _broadest(structure, library)
    if policy is None:
        words = outlook.words("there is no policy to adapt them in")
        return Advice("ask", now, outlook.f1, "", words)
    last = frames[-INFERRED_FRAMES:]
    frames_nyx = np.stack([one.pixels_yx for one in last])
    inferred = infer(frames_nyx, last[-1].pixel_size_pm, policy, seed=seed, draws=draws)
    nearest = library.conditions.get(asked[-1].nearest[0][0]) if asked[-1].nearest else None
    if inferred.distance > 1:
        why = f"{policy.id!r} makes no frames like these (distance {inferred.distance:.1f} > 1)"
        return Advice("ask", now, outlook.f1, "", outlook.words(why), inferred)
    command = f"manybeam iterate {frames_url} -e {version.ref} --policy {policy.id}"
    why = f"{policy.id!r} makes frames like these (distance {inferred.distance:.1f})"
    why += _moved(inferred, nearest)
    return Advice("adapt", now, outlook.f1, command, outlook.words(why), inferred)


@dataclass(frozen=True)
class _Outlook:
    """Predicted F1 of members on the drifted frames, as means over these.

    Attributes:
        now: the serving members.
        f1: their mean predicted F1.
        surely: its mean lower end.
        best: the members that selection chose on most of the frames.
        best_f1: their mean predicted F1.
        best_low: its mean lower end.
        is_far: most of the frames are out of distribution.
    """

    now: tuple[int, ...]
    f1: float
    surely: float
    best: tuple[int, ...]
    best_f1: float
    best_low: float
    is_far: bool

    @property
    def is_worth_switching(self) -> bool:
        return self.best_f1 >= FINE_F1 and self.best_low > self.f1

    @property
    def is_fine(self) -> bool:
        return self.f1 >= FINE_F1 and (not self.is_far or self.surely >= FINE_F1)

    def words(self, more: str) -> str:
        place = "out of distribution" if self.is_far else "not known to be out of distribution"
        return f"predicted F1 of the serving members {self.f1:.2f}, on frames {place}; {more}"


def _outlook(asked: Sequence[Selection], now: tuple[int, ...]) -> _Outlook:
    votes = [member for selection in asked for member in selection.chosen]
    best = tuple(sorted({one for one in votes if votes.count(one) > len(asked) / 2}))
    best = best or tuple(sorted(asked[-1].chosen))
    f1, surely = np.mean([_expected(selection, now) for selection in asked], axis=0)
    best_f1, best_low = np.mean([_expected(selection, best) for selection in asked], axis=0)
    far = sum(bool(selection.is_drifted) for selection in asked)
    numbers = (float(f1), float(surely), best, float(best_f1), float(best_low))
    return _Outlook(now, *numbers, far > len(asked) / 2)


def _expected(selection: Selection, members: Sequence[int]) -> tuple[float, float]:
    """Return the predicted F1 of these members, and its lower end.

    For a sub-ensemble that selection did not compare, it is the mean over its members.
    """
    known = selection.predicted(members)
    if known is not None:
        return known.f1, known.low
    asked = [one for one in selection.candidates if one.member in members]
    f1, low = np.mean([(one.predicted_f1, one.low) for one in asked], axis=0)
    return float(f1), float(low)


def _switch(outlook: _Outlook, version: LoadedVersion) -> Advice:
    policies = {one.index: one.policy for one in version.ensemble.members}
    named = ", ".join(f"{one:02d} ({policies.get(one, 'unknown')})" for one in outlook.best)
    why = f"that of {named} is {outlook.best_f1:.2f}, at least {outlook.best_low:.2f}"
    return Advice("switch members", outlook.best, outlook.best_f1, "", outlook.words(why))


def _f1(matrix: Matrix, condition: str) -> float:
    """Return F1 of the ensemble on a condition; if not measured, that of its best member."""
    whole = matrix.value(ENSEMBLE, condition)
    if whole is not None:
        return whole
    return max((matrix.value(one, condition) or 0.0 for one in matrix.members), default=0.0)


def _session(
    condition: Condition,
    count: int,
    shape: tuple[int, int],
    seed: int,
    *,
    has_pixel_size: bool,
) -> Iterator[np.ndarray]:
    """Yield features of frames of a session that wanders, block by block."""
    rng = np.random.default_rng(seed)
    policy, crop = wandering(condition, WATCHED_WANDER), (min(shape[0], 128), min(shape[1], 128))
    for _ in range(count // BLOCK):
        made = simulate(draw(policy, rng), BLOCK, seed=int(rng.integers(2**31)), shape=crop)
        for frame, size in zip(made.frames_nyx, made.pixel_size_pm, strict=True):
            yield frame_features(frame, float(size) if has_pixel_size else None)


def _around(path: str, value: float, share: float) -> tuple[float, float]:
    if path in RATIO_STEPS:
        ratio = RATIO_STEPS[path] ** share
        return value / ratio, value * ratio
    step = share * DIFFERENCE_STEPS[path]
    low = value - step if path in SIGNED else max(value - step, LEAST.get(path, 0.0))
    return low, value + step


def _broadest(structure: str, library: Library) -> Policy | None:
    """Return the policy of a structure with most ranges; the first of equals."""

    def ranges(policy: Policy) -> int:
        return sum(isinstance(value, Range) for _, value in policy.quantities())

    fitting = [one for one in library.policies.values() if one.sample.structure == structure]
    return min(fitting, key=lambda one: (-ranges(one), one.id), default=None)


def _moved(inferred: Inferred, nearest: Condition | None) -> str:
    """Return which inferred quantities differ from those of the nearest condition."""
    if nearest is None:
        return ""
    there = dict(filled(nearest).quantities())
    said = []
    for path, one in inferred.posterior.items():
        value = there.get(path)
        if path not in WORDS or not one.is_determined or not isinstance(value, (int, float)):
            continue
        value = abs(value) if one.is_magnitude else value
        if not one.low <= value <= one.high:
            word, unit = WORDS[path]
            said.append(f"{word} {one.median:.2g} {unit} ({one.low:.2g} to {one.high:.2g})")
    return f"; unlike {nearest.id!r}: {', '.join(said)}" if said else ""

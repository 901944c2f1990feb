"""Which of two versions is better where, and whether the test frames are enough to say so.

Two versions measured on the same frames are compared frame by frame: what makes a frame hard, it
makes hard for both, so the difference is known far better than either score.

Axis letters: d draw of the bootstrap, n frame, 3 the counts (true positives, false positives, false
negatives).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.learn.scoring.scores import f1_of
from manybeam.zoo.matrix import ENSEMBLE, Matrix, Score, less_is_better

NOT_MEASURED = "not measured"
NUMBERS_CHANGED = "numbers changed"
OTHER_FRAMES = "other frames"
UNKNOWN_FRAMES = "frames unknown"
NO_COUNTS = "no counts by frame"
TOO_FEW = "too few frames"

DRAWS = 2000
SEED = 20_210  # any number will do; a fixed one gives the same answer twice
FEWEST_DRAWS = 20  # of which a share can be told
LEVEL = 0.05  # 1 - coverage of the interval
FEWEST_FRAMES = 6  # below, 2,000 draws do not reach the tail that so few frames ask for

Array = NDArray[Any]
Indexed = Mapping[tuple[int, str], Score]


@dataclass(frozen=True)
class Difference:
    """What one condition says about two versions.

    Attributes:
        condition: id of the condition.
        condition_digest: of its numbers, as the newer version was measured under them; those of
            the older one where the newer was not measured.
        old, new: the score of each; None if it was not measured.
        difference: new - old; None if one is missing, or was measured under other numbers.
        low, high: 95 % interval of the difference; None where there is no test.
        is_significant: whether that interval leaves out 0; None where there is no test.
        frame_count: frames both were measured on; the fewer of both where frames differ; 0 where
            there is no test.
        reason: why there is no test, or what is wrong with it; "" if nothing is. `not measured`,
            `numbers changed`, `no counts by frame` and `too few frames` have no test. What begins
            with `other frames`, and may go on to say which, has one that is not paired, so its
            interval is wider. With `frames unknown` the frames were taken for the same because
            each has as many true atoms: one score was taken before its frames were kept.
        p_value: two-sided, of no difference; None where there is no test.
        p_adjusted: the same after Benjamini-Hochberg over all that were tested together.
        key: name of the score.
        member: row compared.
    """

    condition: str
    condition_digest: str
    old: float | None
    new: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    is_significant: bool | None = None
    frame_count: int = 0
    reason: str = ""
    p_value: float | None = None
    p_adjusted: float | None = None
    key: str = "f1"
    member: int = ENSEMBLE

    @property
    def is_better(self) -> bool | None:
        """Whether the newer is significantly better; None if neither is, or there is no test."""
        if not self.is_significant or not self.difference:
            return None
        return (self.difference < 0) == less_is_better(self.key)

    @property
    def holds_together(self) -> bool | None:
        """Whether it stays significant after Benjamini-Hochberg; None where there is no test."""
        if self.p_adjusted is None:
            return None
        return bool(self.is_significant and self.p_adjusted < LEVEL)

    @property
    def words(self) -> str:
        """The verdict for a person: `better`, `worse`, `no clear difference`, or why none."""
        if self.is_significant is None:
            return self.reason
        word = {None: "no clear difference", True: "better", False: "worse"}[self.is_better]
        notes = [self.reason] if self.reason else []
        if self.is_significant and self.holds_together is False:
            notes.append("taken alone")
        return f"{word} ({', '.join(notes)})" if notes else word


def compare(
    old: Matrix,
    new: Matrix,
    *,
    key: str = "f1",
    member: int = ENSEMBLE,
    new_member: int | None = None,
) -> list[Difference]:
    """Return the difference on every condition either was measured on, in order of id.

    F1, precision and recall are tested by a bootstrap over frames: 2,000 times as many frames as
    there are, drawn with replacement, the same for both; counts are pooled before the score is
    taken, as in the score itself. The percentiles are those that give an interval of few frames
    the width Student's t has. Of other scores only values are kept, so they have no test.

    Frames are the same if the condition's numbers are, they were simulated from the same seed or
    read from the same FrameSets, there are as many of them, and each has as many true atoms in
    both. Where a score does not say which its frames were, the true atoms alone decide.

    Args:
        old: what is compared with.
        new: what is compared.
        key: name of the score.
        member: row of both: `ENSEMBLE`, `CLASSICAL` or the index of a member.
        new_member: row of `new`, if it is another one.

    Source:
        Hesterberg, The American Statistician 69, 371 (2015), for the percentiles; Benjamini and
        Hochberg, J. R. Stat. Soc. B 57, 289 (1995), for `p_adjusted`.
    """
    rows = (member, member if new_member is None else new_member)
    return adjusted(_compared((old, new), (_newest(old, key), _newest(new, key)), key, rows))


def compare_members(old: Matrix, new: Matrix, *, key: str = "f1") -> list[Difference]:
    """Return the differences of every row that both have, tested together: members, then others.

    Members are matched by index.
    """
    indexed = (_newest(old, key), _newest(new, key))
    both = [row for row in new.scored if row in old.scored]
    return adjusted(one for row in both for one in _compared((old, new), indexed, key, (row, row)))


def adjusted(differences: Iterable[Difference]) -> list[Difference]:
    """Return the differences with `p_adjusted` over all of them that were tested.

    Of twelve conditions without any difference, one in two comparisons would call one of them
    significant; Benjamini-Hochberg bounds the share of false ones among those called so.
    """
    from scipy.stats import false_discovery_control

    found = list(differences)
    tested = [place for place, one in enumerate(found) if one.p_value is not None]
    if tested:
        p = false_discovery_control([found[place].p_value for place in tested])
        for place, value in zip(tested, p, strict=True):
            found[place] = dataclasses.replace(found[place], p_adjusted=float(value))
    return found


@dataclass(frozen=True)
class Tally:
    """How many conditions came out how."""

    better: int
    worse: int
    unclear: int
    untested: int
    unmeasured: int

    @property
    def words(self) -> str:
        """One line for a person."""
        parts = [f"{self.better} better", f"{self.worse} worse"]
        parts.append(f"{self.unclear} without a clear difference")
        parts += [f"{self.untested} without a test"] if self.untested else []
        return ", ".join([*parts, f"{self.unmeasured} not measured"])


def tally(differences: Sequence[Difference]) -> Tally:
    """Return how many are significantly better, worse, neither, untested and not measured."""
    tested = [one for one in differences if one.is_significant is not None]
    unmeasured = sum(one.reason == NOT_MEASURED for one in differences)
    return Tally(
        better=sum(one.is_better is True for one in tested),
        worse=sum(one.is_better is False for one in tested),
        unclear=sum(one.is_better is None for one in tested),
        untested=len(differences) - len(tested) - unmeasured,
        unmeasured=unmeasured,
    )


def _newest(matrix: Matrix, key: str) -> Indexed:
    """Return the last score of each row and condition under its present numbers."""
    return {
        (row.member, row.condition): row
        for row in matrix.rows
        if key in row.values and row.condition_digest == matrix.condition_digest(row.condition)
    }


def _compared(
    matrices: tuple[Matrix, Matrix], indexed: tuple[Indexed, Indexed], key: str, rows: Sequence[int]
) -> list[Difference]:
    conditions = sorted({*matrices[0].conditions, *matrices[1].conditions})
    olds, news = (
        [scores.get((row, c)) for c in conditions]
        for scores, row in zip(indexed, rows, strict=True)
    )
    found = zip(conditions, olds, news, strict=True)
    return [_difference(condition, old, new, key, rows[1]) for condition, old, new in found]


def _difference(
    condition: str, old: Score | None, new: Score | None, key: str, row: int
) -> Difference:
    """Return what can be said of one condition."""
    was, now = (None if one is None else float(one.values[key]) for one in (old, new))
    said = next((one.condition_digest for one in (new, old) if one is not None), "")
    plain = Difference(condition, said, was, now, None, key=key, member=row)
    if old is None or new is None:
        return dataclasses.replace(plain, reason=NOT_MEASURED)
    if old.condition_digest != new.condition_digest:
        return dataclasses.replace(plain, reason=NUMBERS_CHANGED)
    plain = dataclasses.replace(plain, difference=new.values[key] - old.values[key])
    if not (old.counts and new.counts) or key not in _SCORES:
        return dataclasses.replace(plain, reason=NO_COUNTS)
    return _tested(plain, old, new)


def _tested(plain: Difference, old: Score, new: Score) -> Difference:
    """Return the difference with its interval and the chance of it without any."""
    old_n3, new_n3 = np.array(old.counts), np.array(new.counts)
    count = min(len(old_n3), len(new_n3))
    if count < FEWEST_FRAMES:
        return dataclasses.replace(plain, reason=TOO_FEW)
    score, reason = _SCORES[plain.key], differing_frames(old, new)
    is_paired = not reason.startswith(OTHER_FRAMES)
    old_d = score(_weights(len(old_n3), SEED) @ old_n3)
    new_d = score(_weights(len(new_n3), SEED + (not is_paired)) @ new_n3)
    low, high, p = _interval(new_d - old_d, count)
    return dataclasses.replace(
        plain,
        low=low,
        high=high,
        is_significant=low > 0 or high < 0,
        frame_count=count,
        reason=reason,
        p_value=p,
    )


def differing_frames(old: Score, new: Score) -> str:
    """Return why two scores on one condition are not known to be of the same frames; "" if so.

    It begins with `other frames` if they are of others, and is `frames unknown` if one of them
    does not say which, and nothing speaks against it.
    """
    if old.test_set and new.test_set and old.test_set.frames != new.test_set.frames:
        if None in (old.test_set.seed, new.test_set.seed):
            return f"{OTHER_FRAMES}: of other FrameSets"
        return f"{OTHER_FRAMES}: seed {old.test_set.seed} against {new.test_set.seed}"
    # Found and missed ones: what was to be found in each frame.
    old_n, new_n = ([frame[0] + frame[2] for frame in one.counts] for one in (old, new))
    if old.counts and new.counts and old_n != new_n:
        return OTHER_FRAMES
    return "" if old.test_set and new.test_set else UNKNOWN_FRAMES


def _interval(difference_d: Array, frame_count: int) -> tuple[float, float, float]:
    """Return low, high and two-sided p of a difference from its bootstrap draws.

    The bootstrap of n frames is too narrow by sqrt((n - 1) / n) and has the tails of the normal
    distribution: both are put right through the level.
    """
    from scipy.stats import norm, t

    widen = np.sqrt(frame_count / (frame_count - 1))
    tail = norm.sf(widen * t.isf(LEVEL / 2, frame_count - 1))
    low, high = np.quantile(difference_d, [tail, 1 - tail])
    p = 2 * t.sf(norm.isf(_share_beyond(difference_d)) / widen, frame_count - 1)
    return float(low), float(high), float(p)


def _share_beyond(difference_d: Array) -> float:
    """Return the share of draws on the other side of 0; where too few are, that of a normal law.

    So many draws end at 1 in 2,000, which would be no proof among thirty conditions.
    """
    from scipy.stats import norm

    beyond = min((difference_d <= 0).sum(), (difference_d >= 0).sum())
    if beyond >= FEWEST_DRAWS:
        return float(min(beyond / len(difference_d), 0.5))
    spread = difference_d.std()
    return float(norm.sf(abs(difference_d.mean()) / spread)) if spread else 0.0


@lru_cache(maxsize=16)
def _weights(frame_count: int, seed: int) -> NDArray[np.int64]:
    """Return how often each frame is drawn, (d, n)."""
    rng = np.random.default_rng((seed, frame_count))
    drawn = rng.integers(frame_count, size=(DRAWS, frame_count))
    drawn += frame_count * np.arange(DRAWS)[:, None]
    counted = np.bincount(drawn.ravel(), minlength=DRAWS * frame_count)
    return counted.reshape(DRAWS, frame_count)


def _share_of(wrong: int) -> Callable[[Array], Array]:
    """Return the score that is the true positives over themselves and one kind of error.

    As in `learn.scoring.scores`: of nothing it is 1 if there was no error at all, else 0.
    """

    def share(counts_d3: Array) -> Array:
        hits, errors = counts_d3[:, 0], counts_d3[:, wrong]
        none = np.where(counts_d3[:, 1] + counts_d3[:, 2], 0.0, 1.0)
        return np.where(hits + errors, hits / np.maximum(hits + errors, 1), none)

    return share


_SCORES: dict[str, Callable[[Array], Array]] = {
    "f1": f1_of,
    "precision": _share_of(1),
    "recall": _share_of(2),
}

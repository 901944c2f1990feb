"""The comparison of two versions on each condition, with a significance test.

Two versions measured on the same frames are compared frame by frame. A difficult frame is
difficult for both, so the difference is known much better than either score.

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
from manybeam.zoo.matrix import ENSEMBLE, SELECTED, Matrix, Score, less_is_better

NOT_MEASURED = "not measured"
NUMBERS_CHANGED = "numbers changed"
OTHER_FRAMES = "other frames"
UNKNOWN_FRAMES = "frames unknown"
NO_COUNTS = "no counts by frame"
TOO_FEW = "too few frames"

DRAWS = 2000
SEED = 20_210  # any number is possible; a fixed one makes the result reproducible
FEWEST_DRAWS = 20  # smallest number of draws from which a share can be estimated
LEVEL = 0.05  # 1 - coverage of the interval
FEWEST_FRAMES = 6  # with fewer frames, 2,000 draws do not reach the necessary percentile

Array = NDArray[Any]
Indexed = Mapping[tuple[int, str], Score]


@dataclass(frozen=True)
class Difference:
    """The difference of two versions on one condition.

    Attributes:
        condition: id of the condition.
        condition_digest: digest of the numbers of the condition in the score of the newer
            version, or of the older version if the newer was not measured.
        old, new: the score of each; None if it was not measured.
        difference: new - old; None if one is missing, or if the numbers of the condition differ.
        low, high: 95 % interval of the difference; None if there is no test.
        is_significant: whether that interval does not contain 0; None if there is no test.
        frame_count: frames of both measurements; the smaller number if the frames differ; 0 if
            there is no test.
        reason: why there is no test, or a limitation of the test; "" if there is none. For
            `not measured`, `numbers changed`, `no counts by frame` and `too few frames` there is
            no test. A reason that begins with `other frames` has an unpaired test, with a wider
            interval. For `frames unknown`, one score is old and does not name its frames; the
            frames are assumed to be the same, because each has as many true atoms in both.
        p_value: two-sided p value of no difference; None if there is no test.
        p_adjusted: the same after Benjamini-Hochberg over all conditions tested together.
        key: name of the score.
        member: compared row.
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
        """Whether the newer version is significantly better; None without a clear difference."""
        if not self.is_significant or not self.difference:
            return None
        return (self.difference < 0) == less_is_better(self.key)

    @property
    def holds_together(self) -> bool | None:
        """Whether it is significant after Benjamini-Hochberg too; None if there is no test."""
        if self.p_adjusted is None:
            return None
        return bool(self.is_significant and self.p_adjusted < LEVEL)

    @property
    def words(self) -> str:
        """The result for a person: `better`, `worse`, `no clear difference`, or the reason."""
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
    """Return the difference on every condition that was measured for either, in order of id.

    F1, precision and recall are tested by a bootstrap over frames. Each of 2,000 draws takes the
    same number of frames with replacement, and the same frames for both versions. Counts are
    added before the score is computed, as in the score itself. The percentiles are chosen so that
    the interval of few frames has the width of Student's t. For other scores only values are
    stored, so they have no test.

    Frames are the same if the numbers of the condition are equal, the seed or the FrameSets are
    equal, and the frames have the same number and the same numbers of true atoms. If a score does
    not name its frames, only the numbers of true atoms are compared.

    Args:
        old: matrix of the first version.
        new: matrix of the second version.
        key: name of the score.
        member: row of both: `ENSEMBLE`, `CLASSICAL` or the index of a member.
        new_member: row of `new`, if it differs.

    Source:
        Hesterberg, The American Statistician 69, 371 (2015), for the percentiles; Benjamini and
        Hochberg, J. R. Stat. Soc. B 57, 289 (1995), for `p_adjusted`.
    """
    rows = (member, member if new_member is None else new_member)
    return adjusted(_compared((old, new), (_newest(old, key), _newest(new, key)), key, rows))


def compare_members(old: Matrix, new: Matrix, *, key: str = "f1") -> list[Difference]:
    """Return the differences of all rows that both have: members, then others.

    Members are matched by index. All are tested together, but the selected members alone, so
    that it changes nothing for the others whether selection was measured.
    """
    indexed = (_newest(old, key), _newest(new, key))

    def tested(rows: Iterable[int]) -> list[Difference]:
        pairs = ((row, row) for row in rows)
        return adjusted(one for pair in pairs for one in _compared((old, new), indexed, key, pair))

    both = [row for row in new.scored if row in old.scored]
    chosen = [row for row in both if row == SELECTED]
    return tested(row for row in both if row != SELECTED) + tested(chosen)


def adjusted(differences: Iterable[Difference]) -> list[Difference]:
    """Return the differences with `p_adjusted` over all of them that were tested.

    Without a correction, every second comparison of equal versions on twelve conditions would
    find a significant condition. Benjamini-Hochberg limits the share of such false results.
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
    """Numbers of conditions by result."""

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
    """Return the numbers of better, worse, unclear, untested and unmeasured conditions."""
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
    """Return the last score of each row and condition with its present numbers."""
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
    """Return the difference on one condition."""
    was, now = (None if one is None else float(one.values[key]) for one in (old, new))
    digest = next((one.condition_digest for one in (new, old) if one is not None), "")
    plain = Difference(condition, digest, was, now, None, key=key, member=row)
    if old is None or new is None:
        return dataclasses.replace(plain, reason=NOT_MEASURED)
    if old.condition_digest != new.condition_digest:
        return dataclasses.replace(plain, reason=NUMBERS_CHANGED)
    plain = dataclasses.replace(plain, difference=new.values[key] - old.values[key])
    if not (old.counts and new.counts) or key not in _SCORES:
        return dataclasses.replace(plain, reason=NO_COUNTS)
    return _tested(plain, old, new)


def _tested(plain: Difference, old: Score, new: Score) -> Difference:
    """Return the difference with its interval and p value."""
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
    """Return "" if two scores on one condition are of the same frames, else the reason.

    The reason begins with `other frames` if the frames differ. It is `frames unknown` if one score
    does not name its frames and the counts do not differ.
    """
    if old.test_set and new.test_set and old.test_set.frames != new.test_set.frames:
        if None in (old.test_set.seed, new.test_set.seed):
            return f"{OTHER_FRAMES}: other FrameSets"
        return f"{OTHER_FRAMES}: seed {old.test_set.seed} and seed {new.test_set.seed}"
    # Found and missed atoms together: the number of true atoms in each frame.
    old_n, new_n = ([frame[0] + frame[2] for frame in one.counts] for one in (old, new))
    if old.counts and new.counts and old_n != new_n:
        return OTHER_FRAMES
    return "" if old.test_set and new.test_set else UNKNOWN_FRAMES


def _interval(difference_d: Array, frame_count: int) -> tuple[float, float, float]:
    """Return low, high and two-sided p of a difference from its bootstrap draws.

    The bootstrap of n frames is too narrow by sqrt((n - 1) / n) and has the tails of the normal
    distribution. Both are corrected by the choice of the percentile.
    """
    from scipy.stats import norm, t

    widen = np.sqrt(frame_count / (frame_count - 1))
    tail = norm.sf(widen * t.isf(LEVEL / 2, frame_count - 1))
    low, high = np.quantile(difference_d, [tail, 1 - tail])
    p = 2 * t.sf(norm.isf(_share_beyond(difference_d)) / widen, frame_count - 1)
    return float(low), float(high), float(p)


def _share_beyond(difference_d: Array) -> float:
    """Return the share of draws beyond 0; if there are too few, estimate it by a normal law.

    The smallest share of 2,000 draws is 1 in 2,000, which is not enough for thirty conditions.
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
    """Return the score "true positives / (true positives + one kind of error)".

    As in `learn.scoring.scores`, 0 / 0 is 1 if there is no error of any kind, else 0.
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

"""Members x conditions: what was measured, what was not, and who is best where.

Axis letters: m member (or the ensemble, or the classical detector), c condition.
A pair that was not measured is None, or NaN in an array: never 0, which would be a bad score.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ENSEMBLE = -1
CLASSICAL = -2
# Of one bin of probabilities: their mean, the share that was so, and how many there were.
Bin = tuple[float, float, int]
BIN_COUNT = 10  # bins of equal width that a curve of reliability has
_NAMED = {ENSEMBLE: "ensemble", CLASSICAL: "classical"}

# Names of scores where less is better; of any other, more is.
_LESS_IS_BETTER = (
    "rmse",
    "mae",
    "ece",
    "brier",
    "aurc",
    "error",
    "loss",
    "false",
    "missed",
    "wall",
)


def member_label(member: int) -> str:
    """Return how a row is called wherever people see it.

    Example:
        >>> member_label(7), member_label(ENSEMBLE)
        ('07', 'ensemble')
    """
    return _NAMED.get(member) or f"{member:02d}"


def less_is_better(key: str) -> bool:
    """Tell whether a score called `key` is better when it is smaller."""
    return key.startswith(_LESS_IS_BETTER)


def calibration_error(bins: Iterable[Bin]) -> float | None:
    """Return the mean gap between what was claimed and what was so (ECE); None without a claim.

    Example:
        >>> calibration_error([(0.75, 0.5, 1), (0.0, 0.0, 0), (1.0, 1.0, 3)])
        0.0625
    """
    known = list(bins)
    total = sum(count for _, _, count in known)
    return sum(abs(p - so) * count for p, so, count in known) / total if total else None


@dataclass(frozen=True)
class FrameSetUse:
    """A FrameSet trained or measured on: where it lay, and the digest of all it held."""

    url: str
    digest: str


@dataclass(frozen=True)
class TestSet:
    """Which test frames a score was measured on, so that they can be had again, and how.

    Args:
        seed: that the test frames were simulated from; None if they are recorded ones.
        frame_sets: FrameSets that were measured on one after the other, each as it was then.
        match_radius_pm: the match radius that was given, in pm; None if it was measured on each
            frame, as 0.35 of the neighbour distance.
    """

    seed: int | None = None
    frame_sets: tuple[FrameSetUse, ...] = ()
    match_radius_pm: float | None = None

    @property
    def frames(self) -> tuple[int | str, ...]:
        """What tells its frames from others of the condition: a seed, or digests of FrameSets."""
        return (self.seed,) if self.seed is not None else tuple(x.digest for x in self.frame_sets)


@dataclass(frozen=True)
class Score:
    """What one member was worth on one condition.

    A value that is NaN or infinite is no measurement and is left out, so that it reads back as
    None (an RMSE has no value where no atom was matched).

    Args:
        member: index of the member; `ENSEMBLE` (-1) or `CLASSICAL` (-2) for those two.
        condition: id of the condition.
        condition_digest: digest of the condition's numbers, at most 36 characters: scores of
            two versions of a condition are never mixed.
        values: name of a score -> value: f1, f1_low, f1_high, precision, rmse_pm, frames...
        counts: for each test frame, in order, (true positives, false positives, false
            negatives); empty if only the values are known.
        taken: when it was measured, in UTC; None if that is unknown.
        scorer: version of the scorer that measured it; "" if that is unknown.
        reliability: for each tenth of the probability of an atom, from low to high, their mean,
            the share that were true and how many there were, over all test frames, (0, 0, 0)
            where there were none; empty if it was not kept.
        trial: the test frames; None if they are unknown, as of scores of before they were kept.
        detector: of the classical detector what `learn.scoring.classical.Blob` was tuned to, on
            even frames and on odd ones; empty of anyone else, or if it was not kept.
    """

    member: int
    condition: str
    condition_digest: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    counts: tuple[tuple[int, int, int], ...] = ()
    taken: datetime | None = None
    scorer: str = ""
    reliability: tuple[Bin, ...] = ()
    test_set: TestSet | None = None
    detector: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self) -> None:
        finite = {key: float(v) for key, v in self.values.items() if math.isfinite(v)}
        object.__setattr__(self, "values", finite)


class Matrix:
    """The scores of one ensemble's members on every condition they were measured on.

    Args:
        rows: scores in the order they were taken. A later one replaces an earlier one value by
            value; where a condition's digest changed, only scores of its last digest count.
        members: members that exist, measured or not; those found in `rows` are added.
    """

    def __init__(self, rows: Iterable[Score] = (), members: Iterable[int] = ()) -> None:
        self.rows = tuple(rows)
        self.members: tuple[int, ...] = tuple(
            sorted({*members, *(row.member for row in self.rows if row.member >= 0)})
        )

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Ids of the conditions measured on, in alphabetical order."""
        return tuple(sorted(self._digests))

    @cached_property
    def scored(self) -> tuple[int, ...]:
        """Every row to show: the members, then ensemble and classical where they were measured."""
        seen = {row.member for row in self.rows}
        return self.members + tuple(row for row in (ENSEMBLE, CLASSICAL) if row in seen)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of the scores recorded, in alphabetical order."""
        return tuple(sorted({key for values in self._cells.values() for key in values}))

    def __len__(self) -> int:
        """Return the number of (member, condition) pairs that were measured."""
        return len(self._cells)

    def value(self, member: int, condition: str, key: str = "f1") -> float | None:
        """Return one score, or None if it was not measured."""
        return self._cells.get((member, condition), {}).get(key)

    def values(self, member: int, condition: str) -> dict[str, float]:
        """Return all scores of one pair by name; empty if it was not measured."""
        return dict(self._cells.get((member, condition), {}))

    def score(self, member: int, condition: str) -> Score | None:
        """Return the newest whole score of one pair, or None if it was not measured."""
        return self._newest.get((member, condition))

    @cached_property
    def superseded(self) -> tuple[tuple[str, str], ...]:
        """Conditions, each with its digest, measured under numbers they no longer have."""
        seen = dict.fromkeys((row.condition, row.condition_digest) for row in self.rows)
        return tuple(sorted(pair for pair in seen if pair[1] != self._digests[pair[0]]))

    @cached_property
    def frame_sets(self) -> tuple[FrameSetUse, ...]:
        """FrameSets that any score was measured on, in the order they were."""
        test_sets = [row.test_set for row in self.rows if row.test_set is not None]
        return tuple(dict.fromkeys(use for test_set in test_sets for use in test_set.frame_sets))

    def at(self, condition: str, digest: str) -> "Matrix":
        """Return what was measured on a condition while its numbers had that digest."""
        there = [r for r in self.rows if (r.condition, r.condition_digest) == (condition, digest)]
        return Matrix(there, self.members)

    def condition_digest(self, condition: str) -> str:
        """Return the digest of the condition the scores were taken on; "" if none were."""
        return self._digests.get(condition, "")

    def reliability(self, condition: str | None = None) -> tuple[Bin, ...]:
        """Return how the ensemble's probabilities compare with facts, bin by bin.

        Args:
            condition: one to look at; all that were measured, pooled atom by atom, if left out.

        Returns:
            Mean probability, share of true atoms and count of each bin; empty if not measured.
        """
        among = self.conditions if condition is None else (condition,)
        known = [score.reliability for c in among if (score := self.score(ENSEMBLE, c))]
        return tuple(map(_pooled, zip(*filter(None, known), strict=True)))

    def best(self, condition: str, key: str = "f1") -> int | None:
        """Return the best member on a condition; None if no member was measured there.

        Members only: the ensemble and the classical detector do not compete. Of equals the
        lowest index is named.
        """
        sign = 1.0 if less_is_better(key) else -1.0
        measured = [
            (sign * v, m) for m in self.members if (v := self.value(m, condition, key)) is not None
        ]
        return min(measured)[1] if measured else None

    def mean(self, member: int, key: str = "f1") -> float | None:
        """Return the mean over the conditions one row was measured on; None if on none."""
        seen = [v for c in self.conditions if (v := self.value(member, c, key)) is not None]
        return math.fsum(seen) / len(seen) if seen else None

    def array_mc(self, key: str = "f1") -> np.ndarray:
        """Return one score of the members as float64 (m, c); NaN where it was not measured."""
        found = [[self.value(m, c, key) for c in self.conditions] for m in self.members]
        return np.array(found, dtype=np.float64).reshape(len(self.members), len(self.conditions))

    def to_table(self, key: str = "f1") -> list[dict[str, str | float | None]]:
        """Return one record a row: its label under "member", then one score by condition."""
        return [
            {"member": member_label(m), **{c: self.value(m, c, key) for c in self.conditions}}
            for m in self.scored
        ]

    def to_pandas(self, key: str = "f1") -> "pd.DataFrame":
        """Return `to_table` as a frame indexed by member; NaN where it was not measured."""
        import pandas as pd

        table = pd.DataFrame(self.to_table(key), columns=["member", *self.conditions])
        return table.set_index("member").astype(float)

    def plot(self, key: str = "f1") -> "Figure":
        """Return it as a picture with its numbers, the best member of each condition outlined."""
        from manybeam.zoo.reports.plots import matrix_figure

        return matrix_figure(self, key)

    def _repr_html_(self) -> str:
        from manybeam.zoo.reports.notebook import matrix_html

        return matrix_html(self)

    def with_rows(self, rows: Iterable[Score]) -> "Matrix":
        """Return this matrix with later scores added."""
        return Matrix((*self.rows, *rows), self.members)

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {row.condition: row.condition_digest for row in self.rows}

    @cached_property
    def _newest(self) -> dict[tuple[int, str], Score]:
        return {
            (row.member, row.condition): row
            for row in self.rows
            if row.condition_digest == self._digests[row.condition]
        }

    @cached_property
    def _cells(self) -> dict[tuple[int, str], dict[str, float]]:
        cells: dict[tuple[int, str], dict[str, float]] = {}
        for row in self.rows:
            if row.condition_digest == self._digests[row.condition]:
                cells.setdefault((row.member, row.condition), {}).update(row.values)
        return cells


def _pooled(bins: tuple[Bin, ...]) -> Bin:
    """Return one bin of several conditions, each atom counting the same."""
    total = sum(count for _, _, count in bins)
    if not total:
        return 0.0, 0.0, 0
    claimed, so = (math.fsum(one[i] * one[2] for one in bins) / total for i in (0, 1))
    return claimed, so, total

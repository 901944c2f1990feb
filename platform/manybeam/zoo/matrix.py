"""The matrix of scores: members x conditions.

Axis letters: m member (or the ensemble, the selected members, or the classical detector),
c condition.
A pair that was not measured is None, or NaN in an array. It is never 0, which is a bad score.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from manybeam.data.representation import Drawable, renderer
from manybeam.zoo.ranking import compare_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ENSEMBLE = -1
CLASSICAL = -2
SELECTED = -3
# One bin of a reliability curve: mean probability, share of right atoms, number of atoms.
Bin = tuple[float, float, int]
# Scores of an ensemble in the catalogue beside those of all its members together: F1 of the
# members that selection chose for each frame, and F1 of the best member of each condition.
SELECTED_F1, BEST_F1 = "selected_f1", "best_member_f1"
BIN_COUNT = 10  # bins of a reliability curve; they have equal widths
_NAMED = {ENSEMBLE: "ensemble", CLASSICAL: "classical", SELECTED: "selected"}

# Beginnings of the names of scores for which less is better; for all others, more is better.
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
    """Return the name of a row for people.

    Example:
        >>> member_label(7), member_label(ENSEMBLE)
        ('07', 'ensemble')
    """
    return _NAMED.get(member) or f"{member:02d}"


def less_is_better(key: str) -> bool:
    """Return whether smaller values of a score are better."""
    return key.startswith(_LESS_IS_BETTER)


def is_simulated(condition_digest: str) -> bool:
    """Return whether scores with this digest are of simulated frames.

    Their digest holds the version of the simulator, because another one makes other frames.

    Example:
        >>> is_simulated("0a1b2c-3"), is_simulated("0a1b2c")
        (True, False)
    """
    return "-" in condition_digest


def calibration_error(bins: Iterable[Bin]) -> float | None:
    """Return the mean gap between probability and share of right atoms (ECE); None if empty.

    Example:
        >>> calibration_error([(0.75, 0.5, 1), (0.0, 0.0, 0), (1.0, 1.0, 3)])
        0.0625
    """
    known = list(bins)
    total = sum(count for _, _, count in known)
    return sum(abs(p - share) * count for p, share, count in known) / total if total else None


@dataclass(frozen=True)
class FrameSetUse:
    """A FrameSet used for training or measurement: its URL and the digest of its content."""

    url: str
    digest: str


@dataclass(frozen=True)
class TestSet:
    """The test frames of a score, so that they can be made or read again.

    Args:
        seed: seed of simulated test frames; None if they are recorded frames.
        frame_sets: FrameSets in the order of the measurement, each as it was then.
        match_radius_pm: the given match radius, in pm; None if it was 0.35 of the neighbour
            distance of each frame.
    """

    seed: int | None = None
    frame_sets: tuple[FrameSetUse, ...] = ()
    match_radius_pm: float | None = None

    @property
    def frames(self) -> tuple[int | str, ...]:
        """What identifies the frames: a seed, or digests of FrameSets."""
        return (self.seed,) if self.seed is not None else tuple(x.digest for x in self.frame_sets)


@dataclass(frozen=True)
class Score:
    """The scores of one member on one condition.

    A value that is NaN or infinite is removed, so that it is read back as None. For example, an
    RMSE has no value if no atom was matched.

    Args:
        member: index of the member, or `ENSEMBLE` (-1: all members together), `CLASSICAL` (-2), or
            `SELECTED` (-3: the members that selection chose for each frame).
        condition: id of the condition.
        condition_digest: digest of the numbers of the condition, at most 36 characters. Scores
            with different numbers are never mixed.
        values: name of a score -> value: f1, f1_low, f1_high, precision, rmse_pm, frames...
        counts: for each test frame, in order, (true positives, false positives, false
            negatives); empty if only the values are known.
        taken: time of the measurement, in UTC; None if it is unknown.
        scorer: version of Manybeam that measured it; "" if it is unknown.
        reliability: for each tenth of the probability, from low to high: the mean probability,
            the share of right atoms and the number of atoms over all test frames; (0, 0, 0) for
            an empty bin; empty if it was not recorded.
        test_set: the test frames; None if they are unknown, as in old scores.
        detector: parameters of the classical detector (`learn.scoring.classical.Blob`) for even
            frames and for odd frames; empty for other rows, or if they were not recorded.
        calibration: of all members and the selected ones: digest of the calibration set that the
            version had then; "" if it had none, for other rows, and in old scores.
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
    calibration: str = ""

    def __post_init__(self) -> None:
        finite = {key: float(v) for key, v in self.values.items() if math.isfinite(v)}
        object.__setattr__(self, "values", finite)


class Matrix(
    Drawable,
    html="manybeam.zoo.reports.notebook:matrix_html",
    figure="manybeam.zoo.reports.plots:matrix_figure",
):
    """The scores of the members of one ensemble on all measured conditions.

    Args:
        rows: scores in the order of measurement. A later value replaces an earlier value of the
            same name. If the digest of a condition changed, only scores of its last digest count.
        members: all members, measured or not; members in `rows` are added.
    """

    def __init__(self, rows: Iterable[Score] = (), members: Iterable[int] = ()) -> None:
        self._compared: dict[str, tuple[str, ...]] = {}  # score -> conditions; slow to compute
        self.rows = tuple(rows)
        self.members: tuple[int, ...] = tuple(
            sorted({*members, *(row.member for row in self.rows if row.member >= 0)})
        )

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Ids of the measured conditions, in alphabetical order."""
        return tuple(sorted(self._digests))

    @cached_property
    def scored(self) -> tuple[int, ...]:
        """All rows: the members, then `ENSEMBLE`, `SELECTED` and `CLASSICAL` if measured."""
        seen = {row.member for row in self.rows}
        return self.members + tuple(row for row in (ENSEMBLE, SELECTED, CLASSICAL) if row in seen)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of the recorded scores, in alphabetical order."""
        return tuple(sorted({key for values in self._cells.values() for key in values}))

    def __len__(self) -> int:
        """Return the number of measured (member, condition) pairs."""
        return len(self._cells)

    def value(self, member: int, condition: str, key: str = "f1") -> float | None:
        """Return one score, or None if it was not measured."""
        return self._cells.get((member, condition), {}).get(key)

    def values(self, member: int, condition: str) -> dict[str, float]:
        """Return all scores of one pair by name; empty if it was not measured."""
        return dict(self._cells.get((member, condition), {}))

    def score(self, member: int, condition: str) -> Score | None:
        """Return the newest complete score of one pair, or None if it was not measured."""
        return self._newest.get((member, condition))

    @cached_property
    def superseded(self) -> tuple[tuple[str, str], ...]:
        """Conditions with an old digest: they were measured before their numbers changed."""
        seen = dict.fromkeys((row.condition, row.condition_digest) for row in self.rows)
        return tuple(sorted(pair for pair in seen if pair[1] != self._digests[pair[0]]))

    @cached_property
    def frame_sets(self) -> tuple[FrameSetUse, ...]:
        """FrameSets of all scores, in the order of measurement."""
        test_sets = [row.test_set for row in self.rows if row.test_set is not None]
        return tuple(dict.fromkeys(use for test_set in test_sets for use in test_set.frame_sets))

    def at(self, condition: str, digest: str) -> "Matrix":
        """Return the scores on a condition with a certain digest."""
        there = [r for r in self.rows if (r.condition, r.condition_digest) == (condition, digest)]
        return Matrix(there, self.members)

    def condition_digest(self, condition: str) -> str:
        """Return the digest of a condition in its scores; "" if it was not measured."""
        return self._digests.get(condition, "")

    def reliability(self, condition: str | None = None) -> tuple[Bin, ...]:
        """Return the reliability of the probabilities of the ensemble, bin by bin.

        Args:
            condition: one condition; if left out, the atoms of all measured conditions together.

        Returns:
            Mean probability, share of right atoms and count of each bin; empty if not measured.
        """
        among = self.conditions if condition is None else (condition,)
        known = [score.reliability for c in among if (score := self.score(ENSEMBLE, c))]
        return tuple(map(_pooled, zip(*filter(None, known), strict=True)))

    def best(self, condition: str, key: str = "f1") -> int | None:
        """Return the best member on a condition; None if no member was measured on it.

        Only single members are considered. Among equal members, it is the
        one with the lowest index.
        """
        sign = 1.0 if less_is_better(key) else -1.0
        measured = [
            (sign * v, m) for m in self.members if (v := self.value(m, condition, key)) is not None
        ]
        return min(measured)[1] if measured else None

    def compared_on(self, key: str = "f1") -> tuple[str, ...]:
        """Return the conditions on which the rows are compared: all compared rows were measured.

        Rows that were measured on few conditions do not take part; see `zoo.ranking`. Selection
        does not either: it is often measured later, and must not change the means of the others.
        """
        if key in self._compared:
            return self._compared[key]
        rows = [row for row in self.scored if row != SELECTED]
        cells = [[self.value(row, c, key) for c in self.conditions] for row in rows]
        cells_rc = np.array(cells, dtype=np.float64).reshape(len(rows), len(self.conditions))
        common_c = compare_rows(cells_rc).common_c
        found = tuple(c for c, is_in in zip(self.conditions, common_c, strict=True) if is_in)
        self._compared[key] = found
        return found

    def mean(
        self, member: int, key: str = "f1", among: Sequence[str] | None = None
    ) -> float | None:
        """Return the mean of one row over some conditions; None if it was not measured on them.

        The conditions are those of `compared_on` if left out.
        """
        names = self.compared_on(key) if among is None else among
        seen = [self.value(member, condition, key) for condition in names]
        known = [value for value in seen if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(seen) else None

    def mean_of_best(self, key: str = "f1", among: Sequence[str] | None = None) -> float | None:
        """Return the mean of the best member of each condition; conditions as `mean`.

        Nobody knows that member before the measurement: it is what a perfect choice of one member
        for each condition would reach. None if no member was measured on one of them.
        """
        names = self.compared_on(key) if among is None else among
        best = [(self.best(condition, key), condition) for condition in names]
        known = [self.value(m, condition, key) for m, condition in best if m is not None]
        values = [value for value in known if value is not None]
        return math.fsum(values) / len(values) if values and len(values) == len(best) else None

    def array_mc(self, key: str = "f1") -> np.ndarray:
        """Return one score of the members as float64 (m, c); NaN if it was not measured."""
        found = [[self.value(m, c, key) for c in self.conditions] for m in self.members]
        return np.array(found, dtype=np.float64).reshape(len(self.members), len(self.conditions))

    def to_table(self, key: str = "f1") -> list[dict[str, str | float | None]]:
        """Return one record for each row: its label under "member", and its score by condition."""
        return [
            {"member": member_label(m), **{c: self.value(m, c, key) for c in self.conditions}}
            for m in self.scored
        ]

    def to_pandas(self, key: str = "f1") -> "pd.DataFrame":
        """Return `to_table` as a pandas table indexed by member; NaN if it was not measured."""
        import pandas as pd

        table = pd.DataFrame(self.to_table(key), columns=["member", *self.conditions])
        return table.set_index("member").astype(float)

    def plot(self, key: str = "f1") -> "Figure":
        """Return a picture with the numbers; the best member of each condition is outlined."""
        figure: Figure = renderer(type(self), "figure")(self, key)
        return figure

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
    """Return one bin over several conditions; every atom has the same weight."""
    total = sum(count for _, _, count in bins)
    if not total:
        return 0.0, 0.0, 0
    probability, share = (math.fsum(one[i] * one[2] for one in bins) / total for i in (0, 1))
    return probability, share, total

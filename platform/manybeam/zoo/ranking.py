"""A fair ranking of rows that were not all measured on the same conditions.

A mean over whatever was measured puts a row that was measured on two easy conditions above a row
that was measured on all. So rows are compared only on conditions that all of them were measured
on; rows that were not measured there come later.

Axis letters: r row (a version or a member), c condition, p pattern (which conditions a row was
measured on), k candidate for the common conditions, g group.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

_PATTERNS = 16  # the commonest patterns; with their intersections, 136 candidates
_GROUPS = 8  # further rows are in one last group, with the mean of each over its own conditions


@dataclass(frozen=True, eq=False)
class Ranking:
    """Rows in groups; those of one group were measured on common conditions.

    Attributes:
        value_r: mean over the common conditions of the row's group; NaN if it was not measured.
        group_r: number of the group, 0 for the rows that can be compared on most conditions.
        is_measured_rc: which scores were measured.
        is_used_rc: which of them are in the value.
    """

    value_r: ndarray
    group_r: ndarray
    is_measured_rc: ndarray
    is_used_rc: ndarray

    @property
    def measured_r(self) -> ndarray:
        """The number of conditions that each row was measured on."""
        return np.asarray(self.is_measured_rc.sum(axis=1))

    @property
    def common_c(self) -> ndarray:
        """The conditions on which the rows of the first group are compared."""
        first = self.is_used_rc[self.group_r == 0]
        return np.asarray(first.any(axis=0))

    def order(self, *, is_less_better: bool, is_best_first: bool = True) -> ndarray:
        """Return the rows in order: by group, by value, and by number of measured conditions.

        Rows that were not measured are last, also if the worst is first.
        """
        sign = 1.0 if is_less_better == is_best_first else -1.0
        missing_r = np.isnan(self.value_r)
        keys = (-self.measured_r, sign * self.value_r, self.group_r, missing_r)
        return np.asarray(np.lexsort(keys))


def compare_rows(cells_rc: ndarray) -> Ranking:
    """Return rows in groups, each with the mean over the common conditions of its group.

    Args:
        cells_rc: one score of each row on each condition; NaN if it was not measured.
    """
    is_measured_rc = ~np.isnan(cells_rc)
    if not cells_rc.size:
        none_r = np.zeros(len(cells_rc))
        return Ranking(none_r + np.nan, none_r, is_measured_rc, is_measured_rc)
    first_p, pattern_r = _patterns(is_measured_rc)
    patterns_pc, row_count_p = is_measured_rc[first_p], np.bincount(pattern_r)
    group_p, used_pc = _groups(patterns_pc, row_count_p)
    is_used_rc = used_pc[pattern_r]
    count_r = is_used_rc.sum(axis=1)
    total_r = np.where(is_used_rc, cells_rc, 0.0).sum(axis=1)
    value_r = np.full(len(cells_rc), np.nan)
    np.divide(total_r, count_r, out=value_r, where=count_r > 0)
    return Ranking(value_r, group_p[pattern_r], is_measured_rc, is_used_rc)


def common_conditions(is_measured_pc: ndarray, row_count_p: ndarray) -> ndarray:
    """Return the conditions to compare on: many, and many rows were measured on all of them.

    The number of conditions counts twice: a ranking on few conditions says little, also if many
    rows take part in it.

    Args:
        is_measured_pc: patterns of measured conditions.
        row_count_p: number of rows with each pattern.
    """
    usual = np.argsort(-row_count_p, kind="stable")[:_PATTERNS]
    some_pc = is_measured_pc[usual]
    both_kc = (some_pc[:, None] & some_pc[None]).reshape(-1, some_pc.shape[1])
    candidates_kc = np.unique(both_kc, axis=0)
    size_k = candidates_kc.sum(axis=1)
    shared_kp = candidates_kc.astype(np.float32) @ is_measured_pc.T.astype(np.float32)
    rows_k = (shared_kp == size_k[:, None]) @ row_count_p
    best = np.lexsort((size_k, rows_k * size_k.astype(np.int64) ** 2))[-1]
    return np.asarray(candidates_kc[best])


def _patterns(is_measured_rc: ndarray) -> tuple[ndarray, ndarray]:
    """Return a row of each pattern, and the number of the pattern of each row.

    `np.unique` would take half a second for 10,000 rows of 200 conditions.
    """
    packed = np.ascontiguousarray(np.packbits(is_measured_rc, axis=1))
    keys = packed.view(f"V{packed.shape[1]}").reshape(-1).tolist()
    numbers: dict[bytes, int] = {}
    pattern_r = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)
    return np.unique(pattern_r, return_index=True)[1], pattern_r


def _groups(patterns_pc: ndarray, row_count_p: ndarray) -> tuple[ndarray, ndarray]:
    """Return the group of each pattern, and the conditions that are used for it."""
    group_p = np.full(len(patterns_pc), _GROUPS)
    used_pc = patterns_pc.copy()
    left_p = patterns_pc.any(axis=1)
    for group in range(_GROUPS):
        if not left_p.any():
            break
        common_c = common_conditions(patterns_pc[left_p], row_count_p[left_p])
        is_in_p = left_p & ~(common_c & ~patterns_pc).any(axis=1)
        group_p[is_in_p], used_pc[is_in_p] = group, common_c
        left_p &= ~is_in_p
    return group_p, used_pc

"""zoo.ranking: rows are compared on conditions that all of them were measured on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from manybeam.zoo.ranking import compare_rows

NO = math.nan
EASY = [1.0, 1.0, NO, NO, NO, NO, NO, NO]  # measured on two easy conditions
ALL = [0.98, 0.97, 0.96, 0.95, 0.9, 0.9, 0.9, 0.9]
NONE = [NO] * 8
SIX = [0.99, 0.99, 0.99, 0.99, 0.99, 0.5, NO, NO]


@pytest.mark.parametrize(
    ("rows", "order", "coverage", "compared"),
    [
        pytest.param([EASY, ALL], [1, 0], [2, 8], 8, id="two easy conditions are no match for all"),
        pytest.param([EASY, EASY, EASY, ALL], [3, 0, 1, 2], [2, 2, 2, 8], 8, id="nor are many"),
        pytest.param([NONE, EASY], [1, 0], [0, 2], 2, id="what was not measured is last"),
        pytest.param([SIX, ALL], [1, 0], [6, 8], 6, id="on six conditions both can be compared"),
        pytest.param([ALL, ALL], [0, 1], [8, 8], 8, id="equal rows keep their order"),
        pytest.param([NONE, NONE], [0, 1], [0, 0], 0, id="nothing was measured"),
        pytest.param([[1.0, NO], [NO, 0.5]], [0, 1], [1, 1], 1, id="nothing in common"),
    ],
)
def test_rows_are_compared_where_all_of_them_were_measured(
    rows: list[list[float]], order: list[int], coverage: list[int], compared: int
) -> None:
    found = compare_rows(np.array(rows))
    assert found.order(is_less_better=False).tolist() == order
    assert found.measured_r.tolist() == coverage
    assert found.common_c.sum() == compared


def test_a_value_is_of_the_common_conditions_only() -> None:
    found = compare_rows(np.array([SIX, ALL]))
    np.testing.assert_allclose(found.value_r, [np.mean(SIX[:6]), np.mean(ALL[:6])])


def test_the_smaller_error_is_first_and_the_worst_first_if_asked() -> None:
    errors = compare_rows(np.array([[9.0, 9.0], [3.0, 3.0], [NO, 1.0], [NO, NO]]))
    assert errors.order(is_less_better=True).tolist() == [1, 0, 2, 3]
    assert errors.order(is_less_better=True, is_best_first=False).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_no_rows_and_no_conditions_are_allowed(shape: tuple[int, int]) -> None:
    found = compare_rows(np.full(shape, NO))
    assert len(found.order(is_less_better=False)) == shape[0]
    assert not found.common_c.any()


@given(
    cells_rc=arrays.arrays(float, (9, 5), elements=st.sampled_from([NO, NO, 0.5, 0.7, 1.0])),
    row=st.integers(0, 8),
    fewer=st.sets(st.integers(0, 4)),
)
def test_measuring_less_never_helps(cells_rc: np.ndarray, row: int, fewer: set[int]) -> None:
    """A copy of a row with fewer of its scores comes after the row."""
    copy_c = cells_rc[row].copy()
    copy_c[list(fewer)] = NO
    found = compare_rows(np.vstack([copy_c, cells_rc]))
    places = found.order(is_less_better=False).tolist()
    same = np.array_equal(copy_c, cells_rc[row], equal_nan=True)
    assert same or places.index(row + 1) < places.index(0)


@given(cells_rc=arrays.arrays(float, (7, 4), elements=st.sampled_from([NO, 0.1, 0.4, 0.9])))
def test_rows_of_one_group_have_the_same_conditions(cells_rc: np.ndarray) -> None:
    found = compare_rows(cells_rc)
    for group in set(found.group_r.tolist()):
        used_rc = found.is_used_rc[found.group_r == group]
        assert group == 8 or (used_rc == used_rc[0]).all()
    assert not (found.is_used_rc & ~found.is_measured_rc).any()

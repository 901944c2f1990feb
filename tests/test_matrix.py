"""zoo.matrix: what was measured is told as it is, and what was not is never a number."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Matrix, Score, less_is_better

ROWS = (
    Score(0, "nominal", "aa", {"f1": 0.9, "rmse_pm": 12.0}),
    Score(1, "nominal", "aa", {"f1": 0.8, "rmse_pm": 9.0}),
    Score(1, "lowdose", "bb", {"f1": 0.4}),
    Score(ENSEMBLE, "nominal", "aa", {"f1": 0.95}),
    Score(CLASSICAL, "nominal", "aa", {"f1": 0.97}),
)


@pytest.fixture
def matrix() -> Matrix:
    return Matrix(ROWS, members=(0, 1, 2))


def test_a_measured_pair_has_its_value(matrix: Matrix) -> None:
    assert matrix.value(1, "lowdose", "f1") == 0.4


@pytest.mark.parametrize(
    ("member", "condition", "key"),
    [
        pytest.param(0, "lowdose", "f1", id="a pair nobody measured"),
        pytest.param(2, "nominal", "f1", id="a member nobody measured"),
        pytest.param(0, "nominal", "ece", id="a score nobody took"),
        pytest.param(0, "no-such", "f1", id="a condition nobody measured on"),
    ],
)
def test_what_was_not_measured_is_none(
    matrix: Matrix, member: int, condition: str, key: str
) -> None:
    assert matrix.value(member, condition, key) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_no_measurement(bad: float) -> None:
    assert (
        Matrix([Score(0, "nominal", "aa", {"rmse_pm": bad})]).value(0, "nominal", "rmse_pm") is None
    )


def test_a_score_of_zero_is_a_measurement() -> None:
    assert Matrix([Score(0, "nominal", "aa", {"f1": 0.0})]).value(0, "nominal") == 0.0


def test_members_never_measured_still_have_a_row(matrix: Matrix) -> None:
    assert matrix.members == (0, 1, 2)
    assert [row["member"] for row in matrix.to_table()] == [
        "00", "01", "02", "ensemble", "classical",
    ]  # fmt: skip


def test_the_best_is_a_member_even_where_the_ensemble_is_better(matrix: Matrix) -> None:
    assert matrix.best("nominal") == 0


def test_of_errors_the_smallest_is_best(matrix: Matrix) -> None:
    assert matrix.best("nominal", "rmse_pm") == 1


def test_nobody_is_best_where_nobody_was_measured(matrix: Matrix) -> None:
    assert matrix.best("nominal", "ece") is None
    assert Matrix().best("nominal") is None


@pytest.mark.parametrize(
    ("key", "expected"), [("f1", False), ("recall", False), ("rmse_pm", True), ("ece", True)]
)
def test_a_score_knows_which_way_is_better(key: str, *, expected: bool) -> None:
    assert less_is_better(key) is expected


def test_a_later_score_replaces_the_earlier_one_value_by_value(matrix: Matrix) -> None:
    later = matrix.with_rows([Score(0, "nominal", "aa", {"f1": 0.7})])
    assert later.values(0, "nominal") == {"f1": 0.7, "rmse_pm": 12.0}


def test_scores_on_an_older_version_of_a_condition_do_not_count(matrix: Matrix) -> None:
    later = matrix.with_rows([Score(0, "nominal", "a2", {"f1": 0.7})])
    assert later.value(1, "nominal") is None
    assert later.condition_digest("nominal") == "a2"


def test_a_mean_is_over_what_was_measured_only(matrix: Matrix) -> None:
    assert matrix.mean(1) == pytest.approx(0.6)
    assert matrix.mean(2) is None


def test_a_mean_of_a_row_that_was_measured_on_fewer_conditions_is_not_given() -> None:
    rows = [Score(0, c, "d", {"f1": 0.9}) for c in "abcd"] + [Score(1, "a", "d", {"f1": 1.0})]
    matrix = Matrix(rows)
    assert matrix.compared_on() == ("a", "b", "c", "d")
    assert (matrix.mean(0), matrix.mean(1)) == (pytest.approx(0.9), None)


def test_the_array_has_nan_where_nothing_was_measured(matrix: Matrix) -> None:
    array_mc = matrix.array_mc()
    assert matrix.conditions == ("lowdose", "nominal")
    np.testing.assert_array_equal(array_mc, [[np.nan, 0.9], [0.4, 0.8], [np.nan, np.nan]])


def test_an_empty_matrix_has_an_empty_array() -> None:
    assert Matrix().array_mc().shape == (0, 0)
    assert Matrix(members=(0,)).array_mc().shape == (1, 0)


def test_the_table_of_pandas_says_the_same(matrix: Matrix) -> None:
    table = matrix.to_pandas()
    assert table.loc["01", "lowdose"] == 0.4
    assert table.loc["classical"].isna().tolist() == [True, False]


@given(st.permutations(ROWS))
def test_the_order_of_unrelated_scores_does_not_matter(rows: list[Score]) -> None:
    assert Matrix(rows).to_table() == Matrix(ROWS).to_table()

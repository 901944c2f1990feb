"""zoo.score_reports: scores count in the order in which they were recorded."""

from datetime import UTC, datetime, timedelta

import pytest

from manybeam.errors import Corrupt
from manybeam.zoo.matrix import SELECTED, Score
from manybeam.zoo.score_reports import in_order, read_report, write_report

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def taken(days: float | None, f1: float) -> Score:
    when = None if days is None else NOW + timedelta(days=days)
    return Score(0, "nominal", "d", {"f1": f1}, taken=when)


@pytest.mark.parametrize(
    ("reports", "order"),
    [
        pytest.param(
            [(2, [taken(0, 0.2)]), (1, [taken(1, 0.1)])], [0.1, 0.2], id="numbers before clocks"
        ),
        pytest.param(
            [(0, [taken(5, 0.2)]), (0, [taken(0, 0.1)])], [0.1, 0.2], id="old reports by date"
        ),
        pytest.param(
            [(1, [taken(0, 0.3)]), (0, [taken(9, 0.1)])], [0.1, 0.3], id="old reports first"
        ),
        pytest.param(
            [(1, [taken(9, 0.1), taken(0, 0.2)])], [0.1, 0.2], id="a report keeps its order"
        ),
        pytest.param(
            [(1, [taken(2, 0.2)]), (1, [taken(1, 0.1)])], [0.1, 0.2], id="at the same time by date"
        ),
        pytest.param([(0, [taken(None, 0.1)]), (1, [])], [0.1], id="no date and no scores"),
    ],
)
def test_reports_are_in_the_order_of_their_numbers(
    reports: list[tuple[int, list[Score]]], order: list[float]
) -> None:
    assert [row.values["f1"] for row in in_order(reports)] == order


def test_the_calibration_set_of_a_selection_is_kept() -> None:
    score = Score(SELECTED, "nominal", "d", {"f1": 0.9}, calibration="0a" * 32)
    report = write_report([score, taken(0, 0.5)])
    assert [one.calibration for one in read_report(report)] == ["0a" * 32, ""]
    with pytest.raises(Corrupt, match="digest of the calibration set"):
        read_report(report.replace(b"0a" * 32, b"<b>"))

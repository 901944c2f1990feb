"""Reliability: how far an ensemble's probabilities can be believed, from frames to page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manybeam.errors import Corrupt
from manybeam.jobs.evaluate import evaluate
from manybeam.learn.scoring.scores import reliability
from manybeam.spec import Library
from manybeam.spec.job import Measure
from manybeam.zoo.exchange import export, import_
from manybeam.zoo.matrix import ENSEMBLE, Bin, Matrix, Score, calibration_error
from manybeam.zoo.reports.plots import drawn, png, reliability_figure
from manybeam.zoo.score_reports import read_report, write_report

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
LOWDOSE = "graphene-60kv-lowdose"


def curve(*filled: Bin) -> tuple[Bin, ...]:
    """Return ten bins, of which the last ones hold something."""
    return ((0.0, 0.0, 0),) * (10 - len(filled)) + filled


SURE = curve((0.85, 0.5, 10), (0.95, 0.9, 30))
UNSURE = curve((0.85, 1.0, 30), (0.0, 0.0, 0))
ROWS = (
    Score(ENSEMBLE, "sure", "d", {"f1": 0.9}, reliability=SURE),
    Score(ENSEMBLE, "unsure", "d", {"f1": 0.9}, reliability=UNSURE),
    Score(ENSEMBLE, "old", "d", {"f1": 0.9}),
    Score(0, "sure", "d", {"f1": 0.9}),
)


def test_bins_are_a_tenth_wide_and_empty_ones_hold_nothing() -> None:
    found = reliability(np.array([0.94, 0.96, 0.55]), np.array([True, False, True])).bins
    assert found == curve((0.55, 1.0, 1), *[(0.0, 0.0, 0)] * 3, (0.95, 0.5, 2))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers())
def test_conditions_pooled_are_one_curve_over_all_atoms(
    atoms: list[tuple[float, bool]], cut: int
) -> None:
    def bins(part: list[tuple[float, bool]]) -> Any:
        return reliability(np.array([p for p, _ in part]), np.array([so for _, so in part]))

    at = cut % len(atoms)
    parts = [part for part in (atoms[:at], atoms[at:]) if part]
    rows = [Score(ENSEMBLE, f"c{i}", reliability=bins(part).bins) for i, part in enumerate(parts)]
    pooled, whole = Matrix(rows).reliability(), bins(atoms)
    assert [count for *_, count in pooled] == whole.count.tolist()
    assert calibration_error(pooled) == pytest.approx(whole.ece, abs=1e-5)


def test_a_condition_measured_before_curves_were_kept_enters_no_pool() -> None:
    matrix = Matrix(ROWS)
    assert matrix.reliability("old") == ()
    assert matrix.reliability()[8] == (0.85, 0.875, 40)
    assert matrix.reliability()[9] == SURE[9]


def test_nothing_claimed_has_no_error() -> None:
    assert calibration_error(curve()) is None
    assert calibration_error(()) is None


# -- as it is kept ------------------------------------------------------------------------------
def test_a_sheet_gives_the_curve_back_and_an_older_one_has_none() -> None:
    sheet = json.loads(write_report(ROWS))
    assert read_report(json.dumps(sheet).encode())[0].reliability == SURE
    for row in sheet["rows"]:
        row.pop("reliability", None)
    assert [row.reliability for row in read_report(json.dumps(sheet).encode())] == [()] * 4


@pytest.mark.parametrize(
    "bins",
    [
        pytest.param([[0.5, 0.5, 1]], id="one bin"),
        pytest.param([[1.5, 0.5, 1]] * 10, id="more than certain"),
        pytest.param([[0.5, float("nan"), 1]] * 10, id="no number"),
        pytest.param([[0.5, 0.5, -1]] * 10, id="fewer than none"),
        pytest.param([[0.5, 0.5]] * 10, id="no count"),
    ],
)
def test_a_curve_that_cannot_be_is_told(bins: Any) -> None:
    sheet = json.loads(write_report(ROWS[:1]))
    sheet["rows"][0]["reliability"] = bins
    with pytest.raises(Corrupt, match="score report cannot be read"):
        read_report(json.dumps(sheet).encode())


@pytest.mark.slow
def test_the_curve_travels_with_an_exported_ensemble(
    zoo: Any, name: str, tiny_members: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    sent = zoo.register(name, tiny_members(1), job={"kind": "train"}, scores=ROWS)
    path = export(zoo, sent.ref, tmp_path / "out", form="safetensors")
    got = import_(zoo, path, f"{name}-guest")
    assert zoo.matrix(got.ref).reliability("sure") == SURE


@pytest.mark.slow
def test_measuring_keeps_the_curve_of_the_ensemble_and_agrees_with_its_error(
    tiny_members: Callable[[int], list[Any]],
) -> None:
    measure = Measure(conditions=(LOWDOSE,), frames_per_condition=4)
    rows = evaluate(tiny_members(2), measure, LIBRARY, executor="local")
    assert {row.member for row in rows if row.reliability} == {ENSEMBLE}
    matrix = Matrix(rows)
    error = calibration_error(matrix.reliability(LOWDOSE))
    assert error == pytest.approx(matrix.value(ENSEMBLE, LOWDOSE, "ece"), abs=1e-5)
    found = matrix.value(ENSEMBLE, LOWDOSE, "found")
    assert sum(count for *_, count in matrix.reliability()) == found


# -- as it is shown -----------------------------------------------------------------------------
def test_the_picture_shows_each_filled_bin_and_the_line_of_honesty() -> None:
    figure = reliability_figure(Matrix(ROWS), "sure")
    png(figure)
    honest, drawn = figure.axes[0].lines
    assert np.array_equal(honest.get_xdata(), honest.get_ydata())
    assert np.column_stack([drawn.get_xdata(), drawn.get_ydata()]).tolist() == [
        [0.85, 0.5],
        [0.95, 0.9],
    ]
    # The patches of a histogram are bars; matplotlib's types know patches only.
    heights = [bar.get_height() for bar in figure.axes[1].patches]  # type: ignore[attr-defined]
    assert heights == [0] * 8 + [10, 30]
    assert figure.axes[0].get_title(loc="left") == "sure: ECE 0.125, 40 atoms found"


def test_a_picture_of_nothing_says_so() -> None:
    figure = reliability_figure(Matrix(ROWS), "old")
    assert figure.texts[0].get_text() == "reliability was not measured"
    assert drawn(figure, "svg").startswith(b"<?xml")

"""zoo.plots: a picture shows every number it stands for, and what has none."""

from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from manybeam.zoo.compare import Difference, compare
from manybeam.zoo.matrix import ENSEMBLE, Matrix, Score
from manybeam.zoo.reports.plots import (
    BETTER,
    UNCLEAR,
    WORSE,
    difference_figure,
    ink_on,
    matrix_figure,
    png,
)

ROWS = (
    Score(0, "dirty", "d", {"f1": 0.5, "rmse_pm": 20.0}),
    Score(1, "dirty", "d", {"f1": 0.625, "rmse_pm": 10.0}),
    Score(1, "nominal", "n", {"f1": 0.98, "rmse_pm": 8.0}),
    Score(ENSEMBLE, "nominal", "n", {"f1": 0.99, "f1_low": 0.98, "f1_high": 1.0}),
)


def texts(figure: Figure) -> list[str]:
    """Every word a reader sees within the axes, once the picture is drawn."""
    png(figure)
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def outlined(figure: Figure) -> set[tuple[int, int]]:
    """Rows and columns that a box is drawn around."""
    boxes = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and not p.get_hatch()]
    return {(round(b.get_y() + b.get_height() / 2), round(b.get_x() + 0.46)) for b in boxes}


def test_a_matrix_shows_each_number_that_was_measured_and_no_other() -> None:
    assert sorted(texts(matrix_figure(Matrix(ROWS)))) == ["0.50", "0.62", "0.98", "0.99"]


@pytest.mark.parametrize(
    ("key", "expected"), [("f1", {(1, 0), (1, 1)}), ("rmse_pm", {(1, 0), (1, 1)})]
)
def test_the_best_member_of_each_condition_is_outlined(
    key: str, expected: set[tuple[int, int]]
) -> None:
    assert outlined(matrix_figure(Matrix(ROWS), key)) == expected


def test_what_was_not_measured_is_hatched_and_said() -> None:
    figure = matrix_figure(Matrix(ROWS))
    assert any(patch.get_hatch() for patch in figure.axes[0].patches)
    assert "hatched: not measured" in figure.axes[0].get_title(loc="left")


def test_where_all_was_measured_no_hatch_is_explained() -> None:
    figure = matrix_figure(Matrix(ROWS[:2]))
    assert "hatched" not in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("matrix", "key"),
    [
        pytest.param(Matrix(), "f1", id="an empty matrix"),
        pytest.param(Matrix(members=(0, 1)), "f1", id="members nobody measured"),
        pytest.param(Matrix(ROWS), "beauty", id="a score nobody took"),
    ],
)
def test_nothing_to_show_is_said(matrix: Matrix, key: str) -> None:
    words = [text.get_text() for text in matrix_figure(matrix, key).texts]
    assert "not" in words[0] or "nothing" in words[0]


def test_a_matrix_of_many_members_is_drawn_without_numbers_in_a_bounded_size() -> None:
    rows = [Score(m, f"c{c}", "x", {"f1": m / 400}) for m in range(400) for c in range(30)]
    figure = matrix_figure(Matrix(rows))
    assert texts(figure) == []
    assert max(figure.get_size_inches()) < 30
    assert len(figure.axes[0].get_yticks()) <= 60


@pytest.mark.parametrize("share", np.linspace(0, 1, 11))
def test_text_can_be_read_on_every_colour(share: float) -> None:
    def luminance(colour: Any) -> float:
        c = np.array(colour[:3])
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    ground = colormaps["viridis"](share)
    ink = [int(ink_on(ground)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    low, high = sorted((luminance(ground), luminance(ink)))
    assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG's AA


def differences() -> list[Difference]:
    def one(condition: str, **more: Any) -> Difference:
        return Difference(condition, "d", 0.8, 0.8, more.pop("difference", 0.0), **more)

    tested: dict[str, Any] = {"frame_count": 24, "p_value": 0.001, "p_adjusted": 0.001}
    return [
        one("better", difference=0.1, low=0.05, high=0.15, is_significant=True, **tested),
        one("worse", difference=-0.1, low=-0.2, high=-0.05, is_significant=True, **tested),
        one("same", low=-0.01, high=0.01, is_significant=False, **tested),
        Difference("blind", "d", 0.8, None, None, reason="not measured"),
    ]


def test_a_difference_is_told_by_colour_mark_and_words() -> None:
    figure = difference_figure(differences(), ("a@1", "a@2"))
    png(figure)
    marks = [(line.get_marker(), line.get_markeredgecolor()) for line in figure.axes[0].lines]
    assert [m for m in marks if m[0] != "None"] == [(">", BETTER), ("<", WORSE), ("o", UNCLEAR)]
    labels = [t.get_text() for t in figure.axes[0].child_axes[0].get_yticklabels()]
    assert labels[0] == "+0.100  better"
    assert labels[3] == "not measured"


def test_differences_of_nothing_are_said_to_be_none() -> None:
    figure = difference_figure(compare(Matrix(), Matrix()), ("a", "b"))
    assert "neither version was measured" in figure.texts[0].get_text()


def test_a_figure_leaves_no_state_behind() -> None:
    import matplotlib.pyplot as plt

    matrix_figure(Matrix(ROWS))
    assert plt.get_fignums() == []

"""The demo's report: its page, its pictures, and the comparison it rests on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from manybeam.cli.demo.comparison import (
    answer_each,
    condition_row,
    score_row,
    truth_words,
    verdict_words,
    ways_to_answer,
)
from manybeam.cli.demo.pictures import answer_panel, frame_panel, strip_figure, truth_panel
from manybeam.cli.demo.report import GridRow, Report
from manybeam.data.simulation.simulate import simulate
from manybeam.jobs.test_sets import LabelledFrame
from manybeam.spec import Library

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
GRID = np.stack(np.meshgrid(np.arange(12, 60, 12.0), np.arange(12, 60, 12.0)), -1).reshape(-1, 2)
TRUTH = np.column_stack([GRID, np.full(len(GRID), 6.0)])
FRAME = np.random.default_rng(0).random((64, 64))
KNOWN = LabelledFrame(FRAME, TRUTH, 16.0)


def _atoms(position_n2: np.ndarray) -> np.ndarray:
    rest_n2 = np.tile([0.0, 0.9], (len(position_n2), 1))
    return np.hstack([position_n2, rest_n2])


def test_a_page_holds_its_parts_in_order(tmp_path: Path) -> None:
    report = Report("Title", "One sentence.")
    report.panels([frame_panel(KNOWN, "The frame"), truth_panel(KNOWN)], name="shown")
    report.section("What to do next")
    report.text("After `activate`:")
    report.steps([("manybeam web", "Look.")])
    report.picture(Figure(figsize=(1, 1)), "A & B")
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    words = ("One sentence.", "The frame", "16 atoms", "<h2>What", "manybeam web", "A &amp; B")
    places = [page.find(word) for word in words]
    assert places == sorted(places)
    assert places[0] > 0
    assert "<code>activate</code>" in page
    assert page.count("data:image/png;base64,") == 3
    assert (tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG")


def test_a_grid_has_a_coloured_cell_for_each_number_and_outlines_the_best(tmp_path: Path) -> None:
    report = Report("Title", "Lead")
    rows = [GridRow("A good day", "", [0.5, 1.0], best=[1]), GridRow("Mean", "", [0.5, 1.0])]
    report.grid("F1 on each day", [("00", "good days"), ("all", "")], rows, apart=1)
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('style="background:#') == 4
    assert page.count('class="best apart"') == 1


def test_what_a_page_shows_is_text_and_never_markup(tmp_path: Path) -> None:
    report = Report("<i>", "<i>")
    report.text("<i>")
    report.points(["<i>"])
    report.table("rows", [{"<i>": "<i>"}])
    report.grid("<i>", [("<i>", "<i>")], [GridRow("<i>", "<i>", [0.5])], apart=1)
    report.steps([("<i>", "<i>")])
    report.write(tmp_path / "report.html")
    assert "<i>" not in (tmp_path / "report.html").read_text()


def test_a_row_of_scores_counts_what_was_found() -> None:
    frame = LabelledFrame(FRAME, TRUTH, 16.0)
    whole = score_row("all", [_atoms(GRID)], [frame])
    half = score_row("half", [_atoms(GRID[::2])], [frame])
    assert (whole["answer"], whole["f1"]) == ("all", 1.0)
    assert (half["precision"], half["recall"]) == (1.0, 0.5)


def test_a_panel_of_an_answer_tells_the_f1_of_its_frame() -> None:
    half, nothing = _atoms(GRID[::2]), np.empty((0, 4))
    assert answer_panel(KNOWN, "all members", half).value == "F1 0.67"
    assert answer_panel(KNOWN, "nothing", nothing).value == "F1 0.00"
    assert truth_panel(KNOWN).value == "16 atoms"


def test_a_strip_has_one_picture_for_each_panel_with_its_title_and_number() -> None:
    shown = [frame_panel(KNOWN, "the frame"), answer_panel(KNOWN, "all members", _atoms(GRID))]
    titles = [axis.get_title() for axis in strip_figure(shown).axes]
    assert titles == ["the frame", "all members\nF1 1.00"]


@pytest.mark.parametrize(
    ("predicted", "f1", "told"),
    [
        pytest.param((0.85, 0.77, 0.93), 0.87, "inside the interval", id="inside"),
        pytest.param((0.48, 0.3, 0.66), 0.83, "better than predicted", id="above"),
        pytest.param((0.95, 0.9, 1.0), 0.7, "worse than predicted", id="below"),
        pytest.param((0.95, 0.9, 0.9996), 1.0, "inside the interval", id="as its numbers read"),
    ],
)
def test_the_truth_is_told_beside_what_was_predicted(
    predicted: tuple[float, float, float], f1: float, told: str
) -> None:
    assert told in truth_words(predicted, f1)
    assert f"{f1:.2f}" in truth_words(predicted, f1)


def test_a_verdict_stands_beside_its_numbers_and_its_own_reasons_only() -> None:
    reasons = ["like 16k", "out of distribution: no answer has a predicted F1 of 0.50 or more"]
    words = verdict_words("out-of-distribution", reasons, (0.48, 0.3, 0.66))
    assert words.startswith("out of distribution, predicted F1 0.48 (90 % interval 0.30 to 0.66)")
    assert words.endswith("; no answer has a predicted F1 of 0.50 or more")
    assert "like 16k" not in words


def test_frames_are_answered_by_all_members_and_by_those_selected(rehearsed_zoo: Any) -> None:
    condition = LIBRARY.condition("graphene-60kv-dirty")
    made = simulate(condition, 2, seed=3)
    frames = [
        LabelledFrame(frame, truth, 16.0)
        for frame, truth in zip(made.frames_nyx, made.truth, strict=True)
    ]
    answers = list(answer_each(rehearsed_zoo, "graphene@2", LIBRARY, frames))
    row, ways = condition_row(condition, answers, is_unseen=True), ways_to_answer(answers)
    assert answers[0].everyone.members == (0, 1, 2)
    assert answers[0].selected.members == tuple(sorted(answers[0].selection.chosen))
    assert (row["frames"], row["is_unseen"]) == (2, True)
    assert row["low"] <= row["predicted_f1"] <= row["high"]
    assert (list(row["members"]), max(row["members"].values())) == (["00", "01", "02"], row["best"])
    assert row["warned"] == sum(one.selection.verdict != "ok" for one in answers)
    by_name = {way["answer"]: way["f1"] for way in ways}
    assert (row["everyone"], row["selected"]) == (
        by_name["all members"],
        by_name["selected members"],
    )
    assert max(by_name[name] for name in by_name if name.startswith("best member")) == row["best"]

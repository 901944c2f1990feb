"""The demo's report: its page, its pictures, and the comparison it rests on."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from manybeam.cli.demo.comparison import answer_each, condition_row, score_row, ways_to_answer
from manybeam.cli.demo.report import Report
from manybeam.cli.terminal.figures import Shown, conditions_figure, doubt_figure, truth_figure
from manybeam.data.simulation.simulate import simulate
from manybeam.jobs.test_sets import LabelledFrame
from manybeam.learn.scoring.scores import match_frame
from manybeam.spec import Library

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
GRID = np.stack(np.meshgrid(np.arange(12, 60, 12.0), np.arange(12, 60, 12.0)), -1).reshape(-1, 2)
TRUTH = np.column_stack([GRID, np.full(len(GRID), 6.0)])
FRAME = np.random.default_rng(0).random((64, 64))
WAYS = {"everyone": "all members", "selected": "selected members", "best": "best single member"}


def _atoms(position_n2: np.ndarray) -> np.ndarray:
    rest_n2 = np.tile([0.0, 0.9], (len(position_n2), 1))
    return np.hstack([position_n2, rest_n2])


def _shown(name: str, atoms: np.ndarray) -> Shown:
    return Shown(name, atoms, match_frame(atoms, TRUTH, 16.0, (64, 64)))


def test_a_page_begins_with_its_lead_and_ends_with_what_to_do_next(tmp_path: Path) -> None:
    report = Report("Title", "One sentence.")
    report.figures([("0.83", "F1 of the selected members")])
    report.next_steps("What to do next", "After `activate`:", [("manybeam web", "Look.")])
    report.section("Details")
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    words = ("One sentence.", "0.83", "<h2>Details", "numbers behind it", "<pre>manybeam web")
    assert [page.find(word) for word in words] == sorted(page.find(word) for word in words)
    assert "<code>activate</code>" in page


def test_a_named_picture_is_written_beside_the_page(tmp_path: Path) -> None:
    report = Report("Title", "Lead")
    report.picture(Figure(figsize=(1, 1)), "A & B", name="shown")
    report.picture(Figure(figsize=(1, 1)), "Small", width=300)
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert (tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 2
    assert "A &amp; B" in page


def test_what_a_page_shows_is_text_and_never_markup(tmp_path: Path) -> None:
    report = Report("<i>", "<i>")
    report.text("<i>")
    report.points(["<i>"])
    report.table("rows", [{"<i>": "<i>"}])
    report.write(tmp_path / "report.html")
    assert "<i>" not in (tmp_path / "report.html").read_text()


def test_a_row_of_scores_counts_what_was_found() -> None:
    frame = LabelledFrame(FRAME, TRUTH, 16.0)
    whole = score_row("all", [_atoms(GRID)], [frame])
    half = score_row("half", [_atoms(GRID[::2])], [frame])
    assert (whole["answer"], whole["f1"]) == ("all", 1.0)
    assert (half["precision"], half["recall"]) == (1.0, 0.5)


def test_the_picture_of_doubt_has_a_column_for_the_truth_and_one_for_each_answer() -> None:
    answers = [_shown("all members: F1 0.67", _atoms(GRID[::2])), _shown("selected", _atoms(GRID))]
    figure = doubt_figure(FRAME, TRUTH, 16.0, answers)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[:3] == ["the frame", "all members: F1 0.67", "selected"]
    assert titles[3] == "the truth: 16 atoms"


def test_an_answer_without_atoms_is_drawn_too() -> None:
    nothing = _shown("nothing", np.empty((0, 4)))
    assert len(truth_figure(FRAME, TRUTH, [nothing]).axes) == 1
    assert doubt_figure(FRAME, TRUTH, None, [nothing]).axes


def test_each_condition_has_a_line_and_the_unseen_one_says_so() -> None:
    row = {"title": "Good days", "everyone": 0.9, "selected": 0.95, "best": 0.96}
    rows = [
        {**row, "condition": "nominal", "is_unseen": False},
        {**row, "condition": "mix-c", "is_unseen": True, "everyone": 0.3},
    ]
    (axis,) = conditions_figure(rows, WAYS).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["nominal\nGood days", "mix-c (the unseen frames)\nGood days"]
    assert axis.get_xlim()[0] < 0.3


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
    by_name = {way["answer"]: way["f1"] for way in ways}
    assert (row["everyone"], row["selected"]) == (
        by_name["all members"],
        by_name["selected members"],
    )
    assert max(by_name[name] for name in by_name if name.startswith("best member")) == row["best"]

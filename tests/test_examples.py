"""Example frames: what a score was made of can be made again, and its errors be seen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import simulate_into
from manybeam.errors import Corrupt, NotFound, TooLarge, UnknownFrameSet
from manybeam.jobs import examples
from manybeam.jobs.evaluate import evaluate
from manybeam.jobs.examples import make_example
from manybeam.learn.scoring.scores import match_frame
from manybeam.spec import Library
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Matrix, Score, TestSet
from manybeam.zoo.reports.error_overlay import (
    FALSE,
    MARKS,
    MISSED,
    RIGHT,
    ErrorOverlay,
    errors_figure,
)
from manybeam.zoo.reports.plots import png
from manybeam.zoo.score_reports import read_report, write_report

pytestmark = pytest.mark.slow

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
LOWDOSE, RECORDED = "graphene-60kv-lowdose", "graphene-60kv-dirty-frames"


# -- what is made again -------------------------------------------------------------------------
@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameSet:
    """Three labelled frames in a store."""
    condition = LIBRARY.conditions["graphene-60kv-dirty"]
    return simulate_into(str(tmp_path_factory.mktemp("store") / "lab"), condition, 3, seed=5)


@pytest.fixture(scope="module")
def matrix(tiny_zoo: Any, frames: FrameSet) -> Matrix:
    """Ten simulated frames and three recorded ones, of an ensemble of three."""
    measure = Measure(conditions=(LOWDOSE,), frames=(frames.url,), frames_per_condition=10)
    return Matrix(evaluate(tiny_zoo.members("graphene@2"), measure, LIBRARY, executor="local"))


def scored(matrix: Matrix, member: int, condition: str) -> Score:
    found = matrix.score(member, condition)
    assert found is not None
    return found


@pytest.mark.parametrize("member", [ENSEMBLE, 0, 2, CLASSICAL])
@pytest.mark.parametrize(("condition", "number"), [(LOWDOSE, 0), (LOWDOSE, 9), (RECORDED, 2)])
def test_an_example_is_the_very_frame_that_was_scored(
    tiny_zoo: Any, frames: FrameSet, matrix: Matrix, member: int, condition: str, number: int
) -> None:
    score = scored(matrix, member, condition)
    again = (score, number, LIBRARY.conditions, [frames.url])
    made = make_example(tiny_zoo, "graphene@2", *again)
    assert made.matched.counts == score.counts[number]
    assert sum(made.matched.counts) > 0
    assert (made.is_measured, made.is_recorded) == (True, True)
    assert made.is_simulated is (condition == LOWDOSE)


def test_frames_of_a_job_with_a_seed_are_those_of_that_seed(tiny_zoo: Any) -> None:
    measure = Measure(conditions=(LOWDOSE,), frames_per_condition=2)
    rows = evaluate(tiny_zoo.members("graphene@2"), measure, LIBRARY, seed=7, executor="local")
    score = kept(scored(Matrix(rows), 0, LOWDOSE))
    assert score.test_set == TestSet(seed=7)
    made = make_example(tiny_zoo, "graphene@2", score, 1, LIBRARY.conditions)
    usual = make_example(
        tiny_zoo, "graphene@2", replace(score, test_set=None), 1, LIBRARY.conditions
    )
    assert made.matched.counts == score.counts[1]
    assert (made.is_measured, usual.is_measured) == (True, False)
    assert not np.array_equal(made.frame.frame_yx, usual.frame.frame_yx)


def kept(score: Score) -> Score:
    """Return a score as a sheet gives it back."""
    return read_report(write_report([score]))[0]


def test_a_sheet_of_before_reads_and_its_frames_are_unknown(tiny_zoo: Any, matrix: Matrix) -> None:
    sheet = json.loads(write_report([scored(matrix, ENSEMBLE, LOWDOSE)]))
    assert sheet["rows"][0].pop("trial") == {"seed": 0}
    (old,) = read_report(json.dumps(sheet).encode())
    assert old.test_set is None
    made = make_example(tiny_zoo, "graphene@2", old, 0, LIBRARY.conditions)
    assert (made.is_measured, made.is_recorded) == (False, True)


def test_frames_appended_later_leave_those_that_were_measured(
    tiny_zoo: Any, tmp_path: Path
) -> None:
    condition = LIBRARY.conditions["graphene-60kv-dirty"]
    first = simulate_into(str(tmp_path / "first"), condition, 1, seed=5)
    last = simulate_into(str(tmp_path / "last"), condition, 2, seed=6)
    measure = Measure(frames=(first.url, last.url))
    rows = evaluate(tiny_zoo.members("graphene@2"), measure, LIBRARY, executor="local")
    score = kept(scored(Matrix(rows), ENSEMBLE, RECORDED))
    before = last.frame(0)
    first.append(last.frames(), [last.truth(0), last.truth(1)], last.pixel_size_pm(0))
    again = (score, 1, LIBRARY.conditions, [first.url, last.url])
    made = make_example(tiny_zoo, "graphene@2", *again)
    assert (made.is_measured, made.is_recorded) == (True, True)
    assert np.array_equal(made.frame.frame_yx, before)


def test_a_frame_set_that_was_replaced_is_not_taken_for_the_one_measured(
    tiny_zoo: Any, tmp_path: Path
) -> None:
    url, condition = str(tmp_path / "lab"), LIBRARY.conditions["graphene-60kv-dirty"]
    frames = simulate_into(url, condition, 1, seed=5)
    rows = evaluate(
        tiny_zoo.members("graphene@2"), Measure(frames=(url,)), LIBRARY, executor="local"
    )
    simulate_into(url, condition, 1, seed=6, overwrite=True)
    score = scored(Matrix(rows), ENSEMBLE, RECORDED)
    with pytest.raises(UnknownFrameSet, match="it was replaced"):
        make_example(tiny_zoo, "graphene@2", score, 0, {}, [frames.url])


@pytest.mark.parametrize(
    "test_set",
    [
        {"seed": -1},
        {"seed": True},
        {"seed": 2**64},
        {},
        {"seed": 0, "frame_sets": [{"url": "a", "digest": "1" * 32}]},
        {"frame_sets": [{"url": "a\n", "digest": "1" * 32}]},
        {"frame_sets": [{"url": "a", "digest": "../1"}]},
        {"frame_sets": [{"url": 1, "digest": "1"}]},
        {"seed": 0, "match_radius_pm": float("nan")},
        {"seed": 0, "match_radius_pm": -1},
        [],
    ],
)
def test_test_frames_that_cannot_be_are_refused(test_set: Any) -> None:
    sheet = json.loads(write_report([Score(0, "dim", "d", {"f1": 0.5})]))
    sheet["rows"][0]["trial"] = test_set
    with pytest.raises(Corrupt, match="score report cannot be read"):
        read_report(json.dumps(sheet).encode())


@pytest.mark.parametrize(
    "change", [{"sigma_pm": 1e9}, {"ratio": 1.0}, {"threshold": float("nan")}, {"more": 1.0}]
)
def test_a_detector_tuned_to_what_cannot_be_is_refused(matrix: Matrix, change: Any) -> None:
    sheet = json.loads(write_report([scored(matrix, CLASSICAL, LOWDOSE)]))
    sheet["rows"][0]["detector"][1] |= change
    with pytest.raises(Corrupt, match="detector"):
        read_report(json.dumps(sheet).encode())


def test_a_match_radius_that_was_given_is_found_again(tiny_zoo: Any) -> None:
    measure = Measure(conditions=(LOWDOSE,), frames_per_condition=1, match_radius_pm=12)
    rows = evaluate(tiny_zoo.members("graphene@2"), measure, LIBRARY, executor="local")
    made = make_example(
        tiny_zoo, "graphene@2", scored(Matrix(rows), ENSEMBLE, LOWDOSE), 0, LIBRARY.conditions
    )
    assert made.is_recorded
    assert made.matched.radius_pm == pytest.approx(12)


@pytest.mark.parametrize(("counts", "is_recorded"), [(((1, 1, 1),), False), ((), None)])
def test_a_frame_that_was_not_scored_is_told_from_one_that_was(
    tiny_zoo: Any, matrix: Matrix, counts: Any, *, is_recorded: bool | None
) -> None:
    score = replace(scored(matrix, ENSEMBLE, LOWDOSE), counts=counts)
    made = make_example(tiny_zoo, "graphene@2", score, 0, LIBRARY.conditions)
    assert made.is_recorded is is_recorded


CHANGED = {LOWDOSE: LIBRARY.conditions["graphene-60kv-nominal"]}


@pytest.mark.parametrize(
    ("condition", "change", "conditions", "told"),
    [
        pytest.param(LOWDOSE, {}, CHANGED, "numbers of this condition changed", id="numbers"),
        pytest.param(LOWDOSE, {}, {}, "not in this library", id="no such condition"),
        pytest.param(
            LOWDOSE,
            {"condition_digest": f"{LIBRARY.conditions[LOWDOSE].digest}-0"},
            LIBRARY.conditions,
            "simulator has changed",
            id="another simulator",
        ),
        pytest.param(RECORDED, {}, LIBRARY.conditions, "are not found", id="no FrameSet"),
        pytest.param(
            LOWDOSE,
            {"member": CLASSICAL},
            LIBRARY.conditions,
            "parameters of the classical detector are unknown",
            id="classical, from before",
        ),
        pytest.param(
            RECORDED, {"test_set": None}, LIBRARY.conditions, "are not found", id="from before"
        ),
    ],
)
def test_what_cannot_be_made_again_says_why(
    tiny_zoo: Any, matrix: Matrix, condition: str, change: Any, conditions: Any, told: str
) -> None:
    score = replace(scored(matrix, ENSEMBLE, condition), **change)
    with pytest.raises(NotFound, match=told):
        make_example(tiny_zoo, "graphene@2", score, 0, conditions)


def test_frames_of_another_set_are_not_taken_for_those_measured(
    tiny_zoo: Any, matrix: Matrix, tmp_path: Path
) -> None:
    other = simulate_into(str(tmp_path / "other"), LIBRARY.conditions[LOWDOSE], 3, seed=1)
    with pytest.raises(NotFound, match="are not found"):
        make_example(tiny_zoo, "graphene@2", scored(matrix, ENSEMBLE, RECORDED), 0, {}, [other.url])


def test_a_frame_too_large_to_be_answered_soon_is_refused(
    tiny_zoo: Any, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "MOST_PX", 1000)
    with pytest.raises(TooLarge, match="1000 px"):
        make_example(
            tiny_zoo, "graphene@2", scored(matrix, ENSEMBLE, LOWDOSE), 0, LIBRARY.conditions
        )


# -- what is seen -------------------------------------------------------------------------------
TRUTH = np.array([[20.0, 20.0], [20.0, 40.0], [40.0, 20.0], [1.0, 1.0]])
FOUND = np.array([[20.5, 20.0, 0, 0.9], [20.0, 41.0, 0, 0.8], [50.0, 50.0, 0, 0.7], [1, 62, 0, 1]])
FRAME = np.random.default_rng(0).random((64, 64), np.float32)
MATCHED = match_frame(FOUND, TRUTH, 20.0, (64, 64))


def test_each_atom_is_right_false_missed_or_beside() -> None:
    seen = ErrorOverlay.of(FOUND, TRUTH, MATCHED)
    assert seen.right.tolist() == [[20.5, 20.0], [20.0, 41.0]]
    assert seen.false.tolist() == [[50.0, 50.0]]
    assert seen.missed.tolist() == [[40.0, 20.0]]
    assert seen.at_edge.tolist() == [[1.0, 62.0], [1.0, 1.0]]


@pytest.mark.parametrize("seed", range(5))
def test_there_are_as_many_of_each_as_were_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = rng.random((60, 4)) * 128, rng.random((50, 3)) * 128
    matched = match_frame(found, truth, 20.0, (128, 128))
    seen = ErrorOverlay.of(found, truth, matched)
    assert (len(seen.right), len(seen.false), len(seen.missed)) == matched.counts
    drawn = sum(len(one) for one in (seen.right, seen.false, seen.missed, seen.at_edge))
    assert drawn == len(found) + len(truth) - len(matched.match), "a pair is drawn once"


def test_kinds_of_atoms_differ_in_shape_and_colour_and_are_explained_with_their_counts() -> None:
    figure = errors_figure(FRAME, FOUND, TRUTH, MATCHED, 20.0)
    png(figure)
    drawn = figure.axes[0].collections
    # Offsets are arrays; matplotlib's types allow what has no length.
    assert [len(one.get_offsets()) for one in drawn] == [2, 1, 1, 2]  # type: ignore[arg-type]
    assert len({MARKS[colour] for colour in (RIGHT, FALSE, MISSED)}) == 3
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["2 right", "1 missed", "1 false", "2 at the edge, not counted"]
    (bar,) = figure.axes[0].texts
    assert bar.get_text() == "2 Å"


@pytest.mark.parametrize(
    ("shape", "pixel_size_pm"),
    [
        pytest.param((64, 64), None, id="no pixel size"),
        pytest.param((40, 400), 20.0, id="wide"),
        pytest.param((2000, 30), 20.0, id="tall"),
    ],
)
def test_a_picture_of_any_frame_has_a_bounded_size(
    shape: tuple[int, int], pixel_size_pm: float | None
) -> None:
    matched = match_frame(FOUND, TRUTH, pixel_size_pm, shape)
    figure = errors_figure(np.zeros(shape), FOUND, TRUTH, matched, pixel_size_pm)
    assert png(figure)
    assert max(figure.get_size_inches()) < 21
    assert bool(figure.axes[0].texts) is (pixel_size_pm is not None)


def test_a_frame_where_nothing_is_and_nothing_was_found_can_be_drawn() -> None:
    nothing = np.zeros((0, 4))
    figure = errors_figure(
        FRAME, nothing, nothing, match_frame(nothing, nothing, 20.0, (64, 64)), 20.0
    )
    assert figure.legends[0].get_texts()[0].get_text() == "0 right"

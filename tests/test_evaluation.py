"""What members found on the frames of one condition, and the scores made of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.jobs.evaluate import Evaluation, evaluate
from manybeam.jobs.kinds import not_selected
from manybeam.jobs.test_sets import LabelledFrame
from manybeam.learn.nets.member import Member
from manybeam.predictor.performance import PerformancePredictor
from manybeam.spec import Library
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import ENSEMBLE, SELECTED, Score
from manybeam.zoo.registry import Zoo

TRUTH = np.array([[20.0, 20.0, 42], [20.0, 40.0, 16], [40.0, 20.0, 16]])
FRAME = LabelledFrame(np.zeros((64, 64), np.float32), TRUTH, 16.0)


def found(classes: tuple[int, int, int]) -> np.ndarray:
    return np.column_stack([TRUTH[:, :2], classes, [0.9, 0.9, 0.9]])


def test_kinds_told_apart_have_a_score_each() -> None:
    evaluation = Evaluation()
    evaluation.add(0, found((1, 2, 1)), FRAME, None, (42, 16))
    values = evaluation.values(0)
    assert values["f1"] == 1.0
    assert values["f1_mo"] == pytest.approx(2 / 3)
    assert values["f1_s"] == pytest.approx(2 / 3)


def test_kinds_are_counted_over_all_blocks() -> None:
    first, second = Evaluation(), Evaluation()
    first.add(0, found((1, 2, 2)), FRAME, None, (42, 16))
    second.add(0, found((2, 2, 2)), FRAME, None, (42, 16))
    first.extend(second)
    assert first.values(0)["f1_mo"] == pytest.approx(2 / 3)


def test_a_network_of_one_kind_has_no_such_scores() -> None:
    evaluation = Evaluation()
    evaluation.add(0, found((0, 0, 0)), FRAME, None)
    of_f1 = {name for name in evaluation.values(0) if name.startswith("f1_")}
    assert of_f1 == {"f1_low", "f1_high"}


@pytest.mark.slow
def test_the_zoo_keeps_the_score_of_an_element(
    tmp_path: Path, tiny_members: Callable[[int], list[Member]]
) -> None:
    evaluation = Evaluation()
    evaluation.add(0, found((1, 2, 2)), FRAME, None, (42, 16))
    zoo = Zoo(f"sqlite:///{tmp_path}/zoo.db", (tmp_path / "w").as_uri(), tmp_path / "cache")
    scores = [Score(0, "sheet", "digest", evaluation.values(0))]
    record = zoo.register("mos2", tiny_members(1), job={}, scores=scores)
    assert zoo.matrix(record.ref).value(0, "sheet", "f1_mo") == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_with_predicted_f1_the_members_selected_for_each_frame_are_measured_too(
    rehearsed: Any,
) -> None:
    library = Library(Path(__file__).parents[1] / "zoo")
    measure = Measure(conditions=("graphene-60kv-dirty",), frames_per_condition=2)
    known = PerformancePredictor(rehearsed.table)

    def measured(**more: Any) -> list[Score]:
        return evaluate(rehearsed.members, measure, library, executor="local", **more)

    rows = measured(performance=known)
    (selected,) = (row for row in rows if row.member == SELECTED)
    assert [row for row in rows if row is not selected] == measured()
    assert len(selected.counts) == 2
    alone = evaluate(rehearsed.members[:1], measure, library, executor="local", performance=known)
    assert SELECTED not in {row.member for row in alone}


def test_conditions_without_a_score_of_selected_members_are_named_with_the_reason() -> None:
    rows = [Score(row, name, "d-1") for row in (ENSEMBLE, SELECTED) for name in ("large", "small")]
    assert not_selected("a@1", rows, is_usable=True) == ""
    told = not_selected("a@1", rows[:-1], is_usable=True)
    assert told.startswith("the selected members are not measured on small: some frames are under")
    assert "manybeam calibrate a@1" in not_selected("a@1", rows[:2], is_usable=False)


def sheet() -> np.ndarray:
    """Return graphene at 20 pm a pixel, one atom a silicon one and one missing."""
    bond = 142.0 / 20.0
    rows = np.sqrt(3) * bond * np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])
    sites = (np.argwhere(np.ones((41, 41))) - 20.0) @ rows
    sites = np.concatenate([sites, sites + np.array([0.0, bond])]) + 64.3
    sites = sites[((sites >= 0) & (sites < 128)).all(axis=1)]
    truth = np.column_stack([sites, np.full(len(sites), 6.0)])
    nearest = np.argsort(np.hypot(*(sites - 40).T))
    truth[nearest[0], 2] = 14
    return truth


def lacking(truth: np.ndarray, place: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the sheet without the atom nearest to (place, place), and that atom."""
    gone = np.argmin(np.hypot(*(truth[:, :2] - place).T))
    return np.delete(truth, gone, axis=0), truth[gone : gone + 1]


@pytest.mark.parametrize(("is_filled", "share"), [(True, 0.5), (False, 0.0)])
def test_vacancies_dopants_and_edges_are_counted_over_all_frames(
    *, is_filled: bool, share: float
) -> None:
    truth, missing = lacking(sheet(), 90)
    frame = LabelledFrame(np.zeros((128, 128), np.float32), truth, 20.0, "graphene")
    silicon = truth[:, 2] == 14
    evaluation = Evaluation()
    evaluation.add(0, np.concatenate([truth, missing] if is_filled else [truth]), frame, None)
    evaluation.add(0, truth[~silicon], frame, None)
    values = evaluation.values(0)
    assert (values["false_fill"], values["recall_dopant"]) == (share, 0.5)
    assert values["recall_edge"] == 1.0


@pytest.mark.parametrize(
    ("structure", "pixel_size_pm"),
    [(None, 20.0), ("heavy_atoms", 20.0), ("graphene", None)],
    ids=["unknown", "no lattice", "no length"],
)
def test_where_no_lattice_is_known_there_are_no_such_scores(
    structure: str | None, pixel_size_pm: float | None
) -> None:
    frame = LabelledFrame(np.zeros((128, 128), np.float32), sheet(), pixel_size_pm, structure)
    evaluation = Evaluation()
    evaluation.add(0, sheet(), frame, None)
    assert not {"false_fill", "recall_dopant", "recall_edge"} & evaluation.values(0).keys()


def test_a_frame_without_dopants_or_vacancies_has_no_score_of_them() -> None:
    whole = sheet()
    whole[:, 2] = 6
    evaluation = Evaluation()
    evaluation.add(0, whole, LabelledFrame(np.zeros((128, 128)), whole, 20.0, "graphene"), None)
    assert not {"false_fill", "recall_dopant"} & evaluation.values(0).keys()


def ensemble_atoms(spread_px: tuple[float, ...], probability: tuple[float, ...]) -> np.ndarray:
    """Return three true atoms and a false one, as an ensemble tells them."""
    place = np.concatenate([TRUTH[:, :2], [[50.0, 50.0]]])
    return np.column_stack([place, np.zeros(4), probability, spread_px, np.zeros(4), np.ones(4)])


def test_what_spread_and_doubt_tell_of_wrong_atoms_is_scored_for_the_ensemble() -> None:
    evaluation = Evaluation()
    atoms = ensemble_atoms((0.1, 0.4, 0.2, 0.3), (0.9, 0.8, 0.7, 0.6))
    for member in (ENSEMBLE, 0):
        evaluation.add(member, atoms, FRAME, None)
    values = evaluation.values(ENSEMBLE)
    assert values["spread_auroc"] == pytest.approx(2 / 3)
    assert values["doubt_auroc"] == 1.0
    assert not {"spread_auroc", "doubt_auroc"} & evaluation.values(0).keys()


def test_without_a_wrong_atom_or_a_spread_there_is_nothing_to_tell() -> None:
    alone, right = Evaluation(), Evaluation()
    alone.add(ENSEMBLE, ensemble_atoms((np.nan,) * 4, (0.9, 0.8, 0.7, 0.6)), FRAME, None)
    right.add(ENSEMBLE, ensemble_atoms((0.1,) * 4, (0.9,) * 4)[:3], FRAME, None)
    assert "spread_auroc" not in alone.values(ENSEMBLE)
    assert alone.values(ENSEMBLE)["doubt_auroc"] == 1.0
    assert not {"spread_auroc", "doubt_auroc"} & right.values(ENSEMBLE).keys()

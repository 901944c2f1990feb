"""learn.kinds: scores of kinds of atom, dopants, edges and vacancies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manybeam.errors import InvalidInput
from manybeam.learn.analysis.fitness import Lattice
from manybeam.learn.scoring.kinds import (
    confusion,
    f1_of_kinds,
    is_dopant,
    is_edge,
    recall_of,
    vacancies,
)
from manybeam.learn.scoring.scores import MatchedFrame, false_fill, match_frame

Array = NDArray[np.floating]
SHAPE = (240, 240)
SIZE_PM = 10.0
BOND_PX = 14.2
GRAPHENE = Lattice(bond_pm=142.0, bond_count=3)
C, SI, N = 6, 14, 7


def honeycomb(angle: float = 0.0) -> Array:
    """Return a sheet of carbon that fills the frame: (atoms, 3) y, x, atomic number."""
    steps = np.argwhere(np.ones((41, 41))) - 20.0
    rows = np.sqrt(3) * BOND_PX * np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])
    sites = np.concatenate([steps @ rows, steps @ rows + [0.0, BOND_PX]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sites = sites @ turn.T + 119.3
    inside = ((sites >= 0) & (sites < SHAPE)).all(axis=1)
    return np.column_stack([sites[inside], np.full(inside.sum(), C)])


def without(sheet: Array, *places: tuple[float, float]) -> tuple[Array, Array]:
    """Return the sheet without the atoms nearest to these places, and those atoms."""
    gone = [int(np.argmin(np.hypot(*(sheet[:, :2] - place).T))) for place in places]
    return np.delete(sheet, gone, axis=0), sheet[gone]


def one_frame(found: Array, truth: Array) -> list[MatchedFrame]:
    return [match_frame(found, truth, SIZE_PM, SHAPE, 50.0)]


def rows(*atoms: tuple[float, float, float]) -> Array:
    return np.array(atoms, float).reshape(-1, 3)


@pytest.mark.parametrize(
    ("found", "truth", "table"),
    [
        pytest.param(rows((50, 50, 1)), rows((50, 50, C)), [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        pytest.param(rows((50, 50, 2)), rows((50, 50, C)), [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        pytest.param(rows(), rows((50, 50, SI)), [[0, 0, 0], [0, 0, 1], [0, 0, 0]]),
        pytest.param(rows((50, 50, 2)), rows(), [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),
        pytest.param(rows((50, 50, 1)), rows((50, 50, N)), [[0, 0, 0], [0, 0, 0], [1, 0, 0]]),
        pytest.param(rows(), rows((50, 50, N)), [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        pytest.param(rows((5, 50, 1)), rows((5, 50, SI)), [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
    ids=["right", "wrong kind", "missed", "invented", "not taught", "not taught, left", "border"],
)
def test_each_true_kind_is_counted_under_what_it_was_found_as(
    found: Array, truth: Array, table: list[list[int]]
) -> None:
    assert confusion(one_frame(found, truth), [found], [truth], (C, SI)).tolist() == table


def test_an_atom_of_the_wrong_kind_is_a_miss_and_a_false_alarm() -> None:
    table = np.array([[8, 2, 0], [1, 3, 1], [0, 1, 0]])
    carbon, silicon = f1_of_kinds(table)
    assert carbon == pytest.approx(2 * 8 / (2 * 8 + 1 + 2))
    assert silicon == pytest.approx(2 * 3 / (2 * 3 + 3 + 2))


def test_frames_are_counted_together() -> None:
    found, truth = rows((50, 50, 1)), rows((50, 50, C), (90, 90, SI))
    frames = one_frame(found, truth) * 2
    assert confusion(frames, [found] * 2, [truth] * 2, (C, SI))[:2].tolist() == [
        [2, 0, 0],
        [0, 0, 2],
    ]


@pytest.mark.parametrize("kind", [0, 3])
def test_a_class_without_an_element_is_refused(kind: int) -> None:
    found, truth = rows((50, 50, kind)), rows((50, 50, C))
    with pytest.raises(InvalidInput, match=f"class {kind} of a found atom, and 2 elements"):
        confusion(one_frame(found, truth), [found], [truth], (C, SI))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_atoms_and_a_turn_change_no_count(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = np.column_stack([random.uniform(0, 240, (60, 2)), random.choice([C, SI, N], 60)])
    found = np.column_stack([truth[:50, :2] + random.normal(0, 2, (50, 2)), np.ones(50)])
    found[:, 2] += random.random(50) < 0.4
    turned = [np.column_stack([239 - one[:, 1], one[:, 0], one[:, 2]]) for one in (found, truth)]
    mixed = [random.permutation(one) for one in turned]
    expected = confusion(one_frame(found, truth), [found], [truth], (C, SI))
    answer = confusion(one_frame(*mixed), [mixed[0]], [mixed[1]], (C, SI))
    assert np.array_equal(answer, expected)


def test_the_recall_of_dopants_is_theirs_alone() -> None:
    host, removed = without(honeycomb(), (80, 80), (150, 100), (100, 170))
    removed[:, 2] = SI, N, SI
    truth, found = np.concatenate([host, removed]), np.concatenate([host, removed[[0, 2]]])
    frames = one_frame(found, truth)
    assert recall_of(frames, [is_dopant(truth, (C,))]) == pytest.approx(2 / 3)
    assert recall_of(frames, [is_dopant(truth, (C, N))]) == 1.0
    assert np.isnan(recall_of(frames, [is_dopant(truth, (C, N, SI))]))


@settings(max_examples=20)
@given(angle=st.floats(0, np.pi))
def test_single_vacancies_are_where_the_atoms_were(angle: float) -> None:
    sheet, gone = without(honeycomb(angle), (80, 80), (150, 100), (100, 170))
    sites = vacancies(sheet, SIZE_PM, GRAPHENE, SHAPE)
    assert len(sites) == 3
    assert sites[np.argsort(sites[:, 0])] == pytest.approx(gone[np.argsort(gone[:, 0]), :2])


def test_a_whole_sheet_has_neither_vacancies_nor_edges() -> None:
    sheet = honeycomb(0.3)
    assert len(vacancies(sheet, SIZE_PM, GRAPHENE, SHAPE)) == 0
    assert not is_edge(sheet, SIZE_PM, GRAPHENE, SHAPE).any()


def test_a_hole_has_edges_and_no_vacancies() -> None:
    sheet = honeycomb(0.3)
    holed = sheet[np.hypot(*(sheet[:, :2] - 120).T) > 40]
    edge = is_edge(holed, SIZE_PM, GRAPHENE, SHAPE)
    assert len(vacancies(holed, SIZE_PM, GRAPHENE, SHAPE)) == 0
    assert edge.sum() >= 10
    assert (np.hypot(*(holed[edge, :2] - 120).T) < 40 + 2 * BOND_PX).all()


def test_atoms_that_shake_still_show_their_vacancy() -> None:
    sheet, gone = without(honeycomb(0.2), (120, 120))
    sheet[:, :2] += np.random.default_rng(0).normal(0, 0.03 * BOND_PX, (len(sheet), 2))
    sites = vacancies(sheet, SIZE_PM, GRAPHENE, SHAPE)
    assert sites == pytest.approx(gone[:, :2], abs=0.1 * BOND_PX)


def test_an_answer_that_fills_vacancies_is_told_from_one_that_does_not() -> None:
    whole = honeycomb(0.1)
    sheet, _ = without(whole, (80, 80), (150, 150))
    sites = vacancies(sheet, SIZE_PM, GRAPHENE, SHAPE)
    assert false_fill(whole, sites, 0.35 * BOND_PX) == 1.0
    assert false_fill(sheet, sites, 0.35 * BOND_PX) == 0.0


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_atom_has_no_vacancy(count: int) -> None:
    few = honeycomb()[200 : 200 + count]
    assert vacancies(few, SIZE_PM, GRAPHENE, SHAPE).shape == (0, 2)
    assert is_edge(few, SIZE_PM, GRAPHENE, SHAPE).sum() == count

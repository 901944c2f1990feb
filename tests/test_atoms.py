"""learn.atoms: atoms of one map, and of many members together."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manybeam.errors import InvalidInput, MemberCountError
from manybeam.learn.nets.atoms import centroids, cluster_atoms, find_atoms, local_maxima, strongest
from manybeam.learn.scoring.scores import match

Array = NDArray[np.floating]
SEEDS = st.integers(0, 2**32 - 1)


def discs(position_n2: Array, shape: tuple[int, int], radius_px: float = 2.6) -> Array:
    """Return what a good network says: soft-edged discs, flat on top."""
    y, x = np.indices(shape)
    map_yx = np.zeros(shape)
    for cy, cx in position_n2:
        edge = (radius_px - np.hypot(y - cy, x - cx)) * 2.5
        map_yx = np.maximum(map_yx, 1 / (1 + np.exp(-np.clip(edge, -50, 50))))
    return map_yx


def grid(seed: int, shape: tuple[int, int] = (60, 70)) -> Array:
    """Return positions nine pixels apart, each moved at random by up to a pixel and a half."""
    corner_n2 = 6 + 9 * np.argwhere(np.ones(((shape[0] - 3) // 9, (shape[1] - 3) // 9)))
    return np.asarray(corner_n2 + np.random.default_rng(seed).uniform(-1.5, 1.5, corner_n2.shape))


def atoms_of(position_n2: Array, probability: Array | float) -> Array:
    count = len(position_n2)
    return np.column_stack([position_n2, np.zeros(count), np.broadcast_to(probability, count)])


def members_of(seed: int, count: int = 4) -> list[Array]:
    """Return what members say of one truth: each misses some atoms and shifts the others."""
    rng = np.random.default_rng(seed)
    truth_n2 = grid(seed)
    said = [
        atoms_of(truth_n2 + rng.normal(0, 0.4, truth_n2.shape), rng.uniform(0.5, 1, len(truth_n2)))
        for _ in range(count)
    ]
    return [rows[rng.random(len(rows)) < 0.8] for rows in said]


def test_every_disc_is_found_once_and_to_a_twentieth_of_a_pixel() -> None:
    truth_n2 = grid(1)
    found = find_atoms(discs(truth_n2, (60, 70)), 0.5, 3.9)
    pairs = match(found, truth_n2, 1.0)
    assert len(found) == len(truth_n2) == len(pairs)
    assert np.sqrt(np.mean(pairs.distance_px**2)) < 0.05


def test_positions_do_not_lean_to_one_side() -> None:
    truth_n2 = grid(2, (200, 200))
    found = find_atoms(discs(truth_n2, (200, 200)), 0.5, 3.9)
    pairs = match(found, truth_n2, 1.0)
    lean = (found[pairs.found_index, :2] - truth_n2[pairs.truth_index]).mean(axis=0)
    assert np.abs(lean).max() < 0.01


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1), id="one pixel"),
        pytest.param((1, 40), id="one row"),
        pytest.param((40, 1), id="one column"),
        pytest.param((33, 7), id="odd sides"),
    ],
)
def test_any_shape_of_map_has_finite_atoms_inside_it(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    found = find_atoms(rng.random(shape), 0.5, 2.0)
    assert np.isfinite(found).all()
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] <= np.array(shape) - 1).all()


def test_a_map_without_atoms_has_none() -> None:
    assert find_atoms(np.zeros((20, 20)), 0.5, 3.0).shape == (0, 4)
    assert find_atoms(np.full((20, 20), 0.4), 0.5, 3.0).shape == (0, 4)


@pytest.mark.parametrize("shape", [(64, 64), (130, 200), (97, 311)])
@pytest.mark.parametrize("level", [1.0, 0.97, 0.6])
def test_a_map_that_is_sure_everywhere_has_one_atom_not_thousands(
    shape: tuple[int, int], level: float
) -> None:
    assert len(find_atoms(np.full(shape, level), 0.5, 3.0)) == 1


@pytest.mark.parametrize("level", [0.6, 0.97, 0.9999])
def test_a_map_that_is_flat_but_for_the_last_bit_has_one_atom(level: float) -> None:
    last_bit = np.random.default_rng(0).integers(-1, 2, (97, 311)) * np.spacing(np.float32(level))
    assert len(find_atoms(np.float32(level) + last_bit, 0.5, 3.0)) == 1


def test_atoms_that_touch_are_found_in_a_map_that_is_all_but_sure() -> None:
    position_n2 = np.argwhere(np.ones((9, 9))) * 6.0 + 8
    distance = np.hypot(*(np.indices((66, 66))[:, None, ...] - position_n2.T[..., None, None])).min(
        axis=0
    )
    sure = 1 - 5e-6 * np.minimum(distance, 3.0) ** 2
    assert len(find_atoms(sure.astype(np.float32), 0.5, 4.0)) == len(position_n2)


def test_an_atom_cut_by_the_edge_is_found_at_the_edge() -> None:
    found = find_atoms(discs(np.array([[0.0, 10.0]]), (20, 20)), 0.5, 3.9)
    assert found[0, :2] == pytest.approx([0.6, 10.0], abs=0.7)


def test_atoms_come_with_the_most_probable_first() -> None:
    map_yx = discs(grid(4), (60, 70)) * np.linspace(0.6, 1, 70)
    assert (np.diff(find_atoms(map_yx, 0.5, 3.9)[:, 3]) <= 0).all()


@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_rotated_map_has_the_rotated_atoms(seed: int) -> None:
    map_yx = discs(grid(seed), (60, 70))
    found, turned = find_atoms(map_yx, 0.5, 3.9), find_atoms(np.rot90(map_yx), 0.5, 3.9)
    back = np.column_stack([turned[:, 1], 69 - turned[:, 0]])
    pairs = match(back, found, 0.01)
    assert len(pairs) == len(found) == len(turned)


def test_a_flat_top_is_one_maximum_at_its_middle() -> None:
    map_yx = np.zeros((9, 9))
    map_yx[3:6, 2:7] = 1
    assert local_maxima(map_yx, 0.5).tolist() == [[4.0, 4.0]]


def test_the_centroid_of_a_lone_pixel_is_that_pixel() -> None:
    map_yx = np.zeros((9, 9))
    map_yx[4, 6] = 0.7
    assert centroids(map_yx, np.array([[4.4, 5.6]]), 2.0).round(6).tolist() == [[4.0, 6.0]]


@settings(max_examples=25)
@given(seed=SEEDS)
def test_the_strongest_are_those_kept_by_going_down_from_the_top(seed: int) -> None:
    rng = np.random.default_rng(seed)
    position_n2, strength = rng.uniform(0, 30, (120, 2)), rng.random(120)
    kept: list[int] = []
    for index in np.argsort(-strength):
        if all(np.hypot(*(position_n2[index] - position_n2[other])) >= 4 for other in kept):
            kept.append(int(index))
    assert sorted(strongest(position_n2, strength, 4.0).tolist()) == sorted(kept)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 12])
def test_any_number_of_members_gives_atoms(count: int) -> None:
    truth_n2 = grid(5)
    atoms = cluster_atoms([atoms_of(truth_n2, 0.9)] * count, 2.0)
    assert atoms.shape == (len(truth_n2), 7)
    assert (atoms[:, 6] == 1).all()


def test_the_spread_is_the_deviation_with_the_divisor_of_a_sample() -> None:
    one, two = atoms_of(np.array([[5.0, 5.0]]), 0.9), atoms_of(np.array([[5.0, 7.0]]), 0.7)
    y, x, _, probability, spread_y, spread_x, votes = cluster_atoms([one, two], 3.0)[0].tolist()
    assert (y, x, spread_y, votes) == (5.0, 6.0, 0.0, 1.0)
    assert (probability, spread_x) == pytest.approx((0.8, np.sqrt(2)))


def test_a_single_vote_has_no_spread() -> None:
    atoms = cluster_atoms([atoms_of(np.array([[5.0, 5.0]]), 0.9)], 3.0)
    assert np.isnan(atoms[0, 4:6]).all()


def test_a_member_that_missed_an_atom_counts_with_its_map() -> None:
    saw, missed = atoms_of(np.array([[5.0, 5.0]]), 0.9), np.zeros((0, 4))
    without = cluster_atoms([saw, missed], 3.0)
    with_map = cluster_atoms([saw, missed], 3.0, sample_member=lambda _, at: np.full(len(at), 0.3))
    assert without[0, [3, 6]].tolist() == pytest.approx([0.45, 0.5])
    assert with_map[0, [3, 6]].tolist() == pytest.approx([0.6, 0.5])


def test_members_that_gave_no_list_count_as_blind() -> None:
    atoms = cluster_atoms([atoms_of(np.array([[5.0, 5.0]]), 0.8)], 3.0, member_count=4)
    assert atoms[0, [3, 6]].tolist() == pytest.approx([0.2, 0.25])


def test_a_cluster_holds_one_atom_of_each_member() -> None:
    two_near = atoms_of(np.array([[5.0, 5.0], [5.0, 7.5]]), np.array([0.9, 0.8]))
    one = atoms_of(np.array([[5.0, 5.2]]), 0.7)
    atoms = cluster_atoms([two_near, one], 3.0)
    assert atoms[:, 6].tolist() == [1.0, 0.5]
    assert atoms[:, 1].tolist() == pytest.approx([5.1, 7.5])


def test_the_class_is_the_one_believed_most() -> None:
    rows = [np.array([[5.0, 5.0, kind, p]]) for kind, p in ((6, 0.6), (14, 0.9), (6, 0.7))]
    assert cluster_atoms(rows, 2.0)[0, 2] == 6


@settings(max_examples=15)
@given(seed=SEEDS, order=st.permutations(range(4)))
def test_the_order_of_members_does_not_matter(seed: int, order: list[int]) -> None:
    said = members_of(seed)
    first = cluster_atoms(said, 2.0)
    again = cluster_atoms([said[member] for member in order], 2.0)
    assert np.allclose(first, again, rtol=0, atol=1e-5, equal_nan=True)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_each_atom_of_each_member_votes_exactly_once(seed: int) -> None:
    said = members_of(seed)
    votes = cluster_atoms(said, 2.0)[:, 6].sum() * len(said)
    assert round(float(votes)) == sum(len(rows) for rows in said)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_clusters_recover_the_truth_better_than_a_member(seed: int) -> None:
    truth_n2, said = grid(seed), members_of(seed, 8)
    atoms = cluster_atoms(said, 2.0)
    alone, together = match(said[0], truth_n2, 3.0), match(atoms, truth_n2, 3.0)
    assert len(together) > len(alone)
    assert together.distance_px.mean() < alone.distance_px.mean()


def test_no_atoms_from_any_member_make_no_clusters() -> None:
    assert cluster_atoms([np.zeros((0, 4))] * 3, 2.0).shape == (0, 7)


@pytest.mark.parametrize(
    ("lists", "count"),
    [
        pytest.param([], None, id="nobody"),
        pytest.param([np.zeros((0, 4))] * 2, 1, id="more lists than members"),
    ],
)
def test_impossible_member_counts_are_refused(lists: list[Array], count: int | None) -> None:
    with pytest.raises(MemberCountError, match="at least one member"):
        cluster_atoms(lists, 2.0, count)


def test_a_wide_radius_still_ends_and_keeps_members_apart() -> None:
    said = members_of(6)
    atoms = cluster_atoms(said, 100.0)
    assert atoms[:, 6].max() <= 1
    assert all(one[3] >= other[3] for one, other in pairwise(atoms))


def test_weights_move_place_class_and_belief_of_an_atom() -> None:
    one, two = np.array([[5.0, 5.0, 1, 0.9]]), np.array([[5.0, 7.0, 2, 0.6]])
    y, x, kind, probability, _, spread_x, votes = cluster_atoms([one, two], 3.0, weights=[1, 3])[0]
    assert (y, x, kind, votes) == (5.0, 6.5, 2.0, 1.0)
    assert probability == pytest.approx(0.675)
    assert spread_x == pytest.approx(np.sqrt((0.25 * 1.5**2 + 0.75 * 0.5**2) / (1 - 0.625)))


def test_a_heavy_member_that_missed_an_atom_doubts_it_more() -> None:
    saw, missed = np.array([[5.0, 5.0, 0, 0.8]]), np.zeros((0, 4))
    atoms = cluster_atoms([saw, missed], 3.0, None, lambda _, at: np.full(len(at), 0.4), [1, 3])
    assert atoms[0, 3] == pytest.approx(0.5)
    assert np.isnan(atoms[0, 4])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, np.inf], [1.0, -1.0]])
def test_weights_of_members_are_above_nothing(weights: list[float]) -> None:
    with pytest.raises(InvalidInput, match="above 0"):
        cluster_atoms([np.zeros((0, 4))] * 2, 3.0, weights=weights)

"""Calibration carried over: from frames alike to a chosen answer, and no promise beyond them.

Tables are made by hand: what members believe of atoms is drawn, and whether they are right too.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from scipy.special import expit, logit

from manybeam.learn.analysis.calibration_set import CalibrationSet
from manybeam.learn.analysis.fitness import SCORES
from manybeam.predictor.transferred_calibration import (
    FAR,
    TransferredCalibration,
    transfer_calibration,
)

FRAMES, ATOMS = 96, 40  # atoms of each frame
BOUND = 0.05


def table_of(
    belief_km: np.ndarray, is_true_k: np.ndarray, error_pm: float = 10.0
) -> CalibrationSet:
    """Return a table of equally large frames with these beliefs."""
    count, members = len(belief_km) // ATOMS, belief_km.shape[1]
    frame_k = np.repeat(np.arange(count), ATOMS)
    return CalibrationSet(
        members=tuple(range(members)),
        source_n=np.array(["by-hand"] * count),
        summary_ns=np.zeros((count, 3)),
        score_nmf=np.zeros((count, members, len(SCORES))),
        count_nm3=np.ones((count, members, 3), int),
        truth_n=np.bincount(frame_k[is_true_k], minlength=count),
        frame_k=frame_k,
        belief_km=belief_km,
        is_true_k=is_true_k,
        counts_k=np.ones(len(frame_k), bool),
        error_k=np.where(is_true_k, error_pm, np.nan),
    )


def too_sure(frames: int, seed: int, temperature: float = 2.0) -> CalibrationSet:
    """Return a table of one member whose log-odds are `temperature` times what they should be.

    As networks are, it is sure of most of its atoms.
    """
    rng = np.random.default_rng(seed)
    belief_k = expit(np.abs(rng.normal(4, 1.5, frames * ATOMS)))
    is_true_k = rng.random(len(belief_k)) < expit(logit(belief_k) / temperature)
    return table_of(belief_k[:, None], is_true_k)


def learnt(
    table: CalibrationSet, distance: float = 0.5, false_atoms: float = 0.0
) -> TransferredCalibration:
    everything_n = np.arange(len(table))
    return transfer_calibration(
        table, everything_n, {0: 1.0}, distance=distance, false_atoms=false_atoms
    )


def atoms_of(probability_k: np.ndarray) -> np.ndarray:
    place_k = np.arange(len(probability_k))
    return np.column_stack([place_k, place_k, place_k * 0, probability_k]).astype(np.float32)


def test_an_answer_that_is_too_sure_is_taken_down_to_what_is_true() -> None:
    one, fresh = learnt(too_sure(FRAMES, seed=1)), too_sure(400, seed=2)
    assert one.temperature == pytest.approx(2.0, rel=0.15)
    assert abs(one.shift) < 0.2
    told_k = one.apply(atoms_of(fresh.belief_km[:, 0]))[:, 3]
    for low, high in ((0.5, 0.7), (0.7, 0.85), (0.85, 0.99)):
        inside_k = (told_k >= low) & (told_k < high)
        assert fresh.is_true_k[inside_k].mean() == pytest.approx(told_k[inside_k].mean(), abs=0.05)


def test_the_share_of_each_member_counts_in_what_is_calibrated() -> None:
    """One member is right as often as it says, the other sure of everything."""
    honest = too_sure(400, seed=3, temperature=1.0)
    both_km = np.column_stack([honest.belief_km[:, 0], np.full(len(honest.belief_km), 0.999)])
    table = table_of(both_km, honest.is_true_k)
    places_n = np.arange(400)
    alone = transfer_calibration(table, places_n, {0: 1.0}, distance=0.5)
    together = transfer_calibration(table, places_n, {0: 0.5, 1: 0.5}, distance=0.5)
    assert alone.temperature == pytest.approx(1.0, rel=0.1)
    assert alone.shift == pytest.approx(0.0, abs=0.25)
    told_k = together.apply(atoms_of(table.belief({0: 0.5, 1: 0.5})))[:, 3]
    assert told_k.mean() == pytest.approx(table.is_true_k.mean(), abs=0.02)


def shares(false_atoms: float, tables: int = 20) -> list[float]:
    """Return the share of false atoms that each threshold, if there is one, leaves on others."""
    fresh = too_sure(400, seed=1000)
    found = []
    for seed in range(tables):
        threshold = learnt(too_sure(FRAMES, seed), false_atoms=false_atoms).threshold
        if threshold is None:
            continue
        kept_k = fresh.belief_km[:, 0] >= threshold
        false_n = np.bincount(fresh.frame_k[kept_k & ~fresh.is_true_k], minlength=400)
        kept_n = np.bincount(fresh.frame_k[kept_k], minlength=400)
        found.append(float(np.mean(false_n / np.maximum(kept_n, 1))))
    return found


def test_the_bound_holds_on_fresh_frames_drawn_alike_as_often_as_promised() -> None:
    found = np.array(shares(0.1))
    assert len(found) >= 15
    assert np.mean(found <= 0.1) >= 0.9


def test_the_bound_is_not_bought_by_giving_nothing() -> None:
    table = too_sure(FRAMES, seed=5)
    one = learnt(table, false_atoms=0.1)
    kept = one.apply(atoms_of(table.belief_km[:, 0]))
    assert 0.1 < len(kept) / len(table.belief_km) < 0.9
    assert one.kept == pytest.approx(len(kept) / len(table.belief_km), abs=0.01)
    assert one.notes == (f"at most 0.1 false atoms leaves {100 * one.kept:.0f} % of the atoms",)


def test_no_bound_is_promised_on_a_frame_far_from_all_that_were_rehearsed() -> None:
    table = too_sure(FRAMES, seed=5)
    near, far = (learnt(table, FAR + step, 0.1) for step in (-0.01, 0.01))
    assert near.threshold is not None
    assert far.threshold is None
    assert "1.5 times as far" in far.notes[0]


def test_no_bound_is_promised_where_no_threshold_keeps_it() -> None:
    sure_km = np.full((FRAMES * ATOMS, 1), 0.9999)
    one = learnt(table_of(sure_km, np.arange(len(sure_km)) % 2 > 0), false_atoms=BOUND)
    assert one.threshold is None
    assert "no threshold keeps it" in one.notes[0]
    assert len(one.apply(atoms_of(np.array([0.6, 0.9])))) == 2


def test_too_few_frames_promise_no_bound_however_right_their_atoms() -> None:
    sure = np.full((10 * ATOMS, 1), 0.99)
    assert learnt(table_of(sure, np.ones(len(sure), bool)), false_atoms=BOUND).threshold is None


@pytest.mark.parametrize("false_atoms", [0.0, BOUND])
def test_nothing_is_learnt_from_a_handful_of_atoms(false_atoms: float) -> None:
    table = too_sure(2, seed=1)
    one = learnt(table, false_atoms=false_atoms)
    assert (one.temperature, one.shift, one.threshold) == (1.0, 0.0, None)
    assert np.isnan(one.position_pm)
    assert "hold only 80 atoms" in one.notes[0]


def test_only_the_frames_alike_are_learnt_from() -> None:
    right, wrong = too_sure(FRAMES, seed=1, temperature=1.0), too_sure(FRAMES, seed=2)
    both = CalibrationSet.joined([right, wrong])
    first = transfer_calibration(both, np.arange(FRAMES), {0: 1.0}, distance=0.5)
    last = transfer_calibration(both, np.arange(FRAMES, 2 * FRAMES), {0: 1.0}, distance=0.5)
    assert first.temperature == pytest.approx(1.0, rel=0.1)
    assert last.temperature == pytest.approx(2.0, rel=0.15)
    assert (first.frame_count, first.atom_count) == (FRAMES, FRAMES * ATOMS)


def test_positions_are_judged_by_the_true_atoms_of_the_frames_most_like_it() -> None:
    right = np.full((FRAMES * ATOMS, 1), 0.9)
    is_true_k = np.arange(len(right)) % 10 > 0
    sharp, blurred = (table_of(right, is_true_k, error_pm) for error_pm in (7.0, 30.0))
    both, all_n = CalibrationSet.joined([sharp, blurred]), np.arange(2 * FRAMES)
    one = transfer_calibration(both, all_n, {0: 1.0}, distance=0.5, nearest_n=np.arange(FRAMES))
    assert one.position_pm == pytest.approx(7.0)
    assert transfer_calibration(both, all_n, {0: 1.0}, distance=0.5).position_pm == pytest.approx(
        30.0
    )


def test_where_no_atom_is_true_no_position_is_promised() -> None:
    false = table_of(np.full((FRAMES * ATOMS, 1), 0.9), np.zeros(FRAMES * ATOMS, bool))
    one = learnt(false)
    assert np.isnan(one.position_pm)
    assert one.apply(atoms_of(np.array([0.99])))[0, 3] < 0.05


@bounded(max_examples=100)
@given(
    raw=st.lists(st.floats(0, 1, width=32), max_size=20),
    temperature=st.floats(0.05, 20),
    shift=st.floats(-8, 8),
    threshold=st.none() | st.floats(0.5, 0.999),
)
def test_calibrating_leaves_order_places_and_bounds_of_probabilities(
    raw: list[float], temperature: float, shift: float, threshold: float | None
) -> None:
    atoms = atoms_of(np.sort(np.array(raw, np.float32))[::-1])
    kept = TransferredCalibration(temperature, shift, threshold=threshold).apply(atoms)
    assert (np.diff(kept[:, 3]) <= 0).all()
    assert ((kept[:, 3] >= 0) & (kept[:, 3] <= 1)).all()
    np.testing.assert_array_equal(kept[:, :3], atoms[: len(kept), :3])
    assert len(kept) == (atoms[:, 3] >= (threshold or 0)).sum()


def test_the_atoms_given_are_left_as_they_were() -> None:
    atoms = atoms_of(np.array([0.9, 0.6]))
    TransferredCalibration(2.0, -1.0).apply(atoms)
    np.testing.assert_array_equal(atoms, atoms_of(np.array([0.9, 0.6])))

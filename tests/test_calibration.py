"""learn.calibrate: probabilities that mean what they say, and a bound on false atoms that holds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit

from manybeam.data.simulation.simulate import simulate
from manybeam.data.tiles import Tiles
from manybeam.errors import InvalidInput
from manybeam.learn.adaptation.pseudo_labels import simulated_tiles
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.scoring.calibration import Calibration, bound, calibrate, false_share, fit
from manybeam.learn.scoring.scores import (
    MatchedFrame,
    match_frame,
    reliability,
    score_frames,
    summarise,
)
from manybeam.learn.training.member import train_member
from manybeam.spec import Condition
from manybeam.spec.files import load_condition, load_policy
from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec, Training

ZOO = Path(__file__).parents[1] / "zoo"
Array = NDArray[np.floating]
Drawn = tuple[list[Array], list[NDArray[np.bool_]]]
SHAPE = (200, 200)
DRAWN = Condition.model_validate({"id": "drawn", "dose_e_per_a2": 60})
PLACES = 20.0 * np.argwhere(np.ones((8, 8))) + 30  # far from the edges and from each other


def draw(seed: int, frames: int, temperature: float = 1.0, shift: float = 0.0) -> Drawn:
    """Return claimed probabilities of 64 atoms a frame, and facts that follow others."""
    random = np.random.default_rng(seed)
    claimed = random.uniform(0.5, 0.999, (frames, len(PLACES)))
    so = random.random(claimed.shape) < expit(logit(claimed) / temperature + shift)
    return list(claimed), list(so)


def draw_dirty(seed: int, frames: int) -> Drawn:
    """Return frames of which some are dirty: there, false atoms come many at once."""
    random = np.random.default_rng(seed)
    dirt = random.choice([0.2, 6.0], size=(frames, 1), p=[0.7, 0.3])
    claimed = random.uniform(0.5, 0.999, (frames, len(PLACES)))
    so = random.random(claimed.shape) > dirt * (1 - claimed) / 4
    return list(claimed), list(so)


def matched(drawn: Drawn) -> tuple[list[MatchedFrame], list[Array]]:
    found = [np.column_stack([PLACES, np.zeros(len(PLACES)), claimed]) for claimed in drawn[0]]
    truth = [PLACES[so] for so in drawn[1]]
    frames = zip(found, truth, strict=True)
    return [match_frame(atoms, true, 10.0, SHAPE, 50.0) for atoms, true in frames], found


def calibrated(drawn: Drawn, **limits: float) -> Calibration:
    return calibrate(*matched(drawn), DRAWN, **limits)


@pytest.mark.parametrize(
    ("temperature", "shift"),
    [(1.0, 0.0), (3.0, 0.0), (0.5, 0.0), (1.0, -2.0), (2.0, -1.0)],
    ids=["honest", "too sure", "too timid", "dirt", "both"],
)
def test_the_temperature_and_shift_that_made_the_facts_are_found(
    temperature: float, shift: float
) -> None:
    claimed, so = (np.concatenate(part) for part in draw(0, 600, temperature, shift))
    assert fit(claimed, so) == pytest.approx((temperature, shift), rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    ("temperature", "shift"), [(3.0, 0.0), (0.4, 0.0), (1.0, -2.0)], ids=["sure", "timid", "dirt"]
)
def test_calibration_lowers_the_error_on_frames_it_never_saw(
    temperature: float, shift: float
) -> None:
    fitted = calibrated(draw(1, 100, temperature, shift))
    claimed, so = (np.concatenate(part) for part in draw(2, 100, temperature, shift))
    assert reliability(claimed, so).ece > 0.05
    assert reliability(fitted.probability(claimed), so).ece < 0.03


def test_frames_without_a_false_atom_make_nobody_certain() -> None:
    claimed, so = draw(3, 10)
    fitted = calibrated((claimed, [np.ones_like(one) for one in so]))
    assert 0.99 < fitted.probability(np.array([0.9]))[0] < 0.9999


@settings(max_examples=30)
@given(
    raw=st.lists(st.floats(0, 1), min_size=2),
    temperature=st.floats(0.2, 20),
    shift=st.floats(-8, 8),
)
def test_calibration_never_changes_the_order(
    raw: list[float], temperature: float, shift: float
) -> None:
    fitted = Calibration("drawn", "d", temperature=temperature, shift=shift)
    answer = fitted.probability(np.sort(raw))
    assert (np.diff(answer) >= 0).all()
    assert ((answer > 0) & (answer < 1)).all()


def test_too_few_atoms_leave_probabilities_as_they_are_and_it_is_said() -> None:
    fitted = calibrated(draw(4, 1, temperature=5.0))
    raw = np.array([0.5, 0.7, 0.99])
    assert fitted.probability(raw) == pytest.approx(raw)
    assert "64 atoms, 100 are needed" in fitted.notes[0]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_atoms_changes_no_fit(seed: int) -> None:
    claimed, so = (np.concatenate(part) for part in draw(5, 20, 2.0))
    order = np.random.default_rng(seed).permutation(len(claimed))
    assert fit(claimed[order], so[order]) == pytest.approx(fit(claimed, so), rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_the_bound_holds_as_often_as_it_promises() -> None:
    """120 calibrations of 80 frames; what each comes to is measured on 3,000 further frames."""
    further = draw_dirty(10**6, 3000)
    assert false_share(*further, 0.5).mean() > 0.1  # unbounded, twice what is allowed
    broken, thresholds = 0, []
    for seed in range(120):
        threshold = bound(*draw_dirty(seed, 80), 0.05, 0.9)
        thresholds.append(threshold or 1.0)
        broken += false_share(*further, thresholds[-1]).mean() > 0.05
    assert broken <= 12 + 3 * np.sqrt(120 * 0.1 * 0.9)
    assert 0.5 < np.median(thresholds) < 0.95  # and it is no empty promise


def test_clean_frames_keep_every_atom() -> None:
    claimed, so = draw(6, 80)
    fitted = calibrated((claimed, [np.ones_like(one) for one in so]))
    assert fitted.threshold == pytest.approx(0.5)
    assert fitted.kept == 1.0


def test_a_tighter_bound_keeps_fewer_atoms() -> None:
    loose, tight = (calibrated(draw_dirty(7, 300), false_atoms=share) for share in (0.1, 0.03))
    assert loose.threshold is not None
    assert tight.threshold is not None
    assert loose.threshold < tight.threshold
    assert loose.kept > tight.kept


@pytest.mark.parametrize(("frames", "is_bound"), [(47, False), (48, True)])
def test_a_bound_of_a_twentieth_needs_48_frames(frames: int, *, is_bound: bool) -> None:
    claimed, so = draw(8, frames)
    fitted = calibrated((claimed, [np.ones_like(one) for one in so]))
    assert (fitted.threshold is not None) == is_bound
    assert is_bound or "47 frames are too few" in fitted.notes[0]


def test_atoms_wrong_at_every_probability_have_no_bound() -> None:
    claimed, so = draw(9, 100)
    claimed = [np.full_like(one, 0.9999) for one in claimed]
    fitted = calibrated((claimed, so))
    assert fitted.threshold is None
    assert "even at probability 0.999" in fitted.notes[0]
    with pytest.raises(
        InvalidInput, match=r"no threshold keeps the share of false atoms below 0\.05"
    ):
        fitted.apply(np.ones((3, 7), np.float32), DRAWN.digest, bounded=True)


def test_atoms_get_their_probability_and_only_that() -> None:
    atoms = np.column_stack([PLACES[:3], np.zeros(3), [0.9, 0.7, 0.5]]).astype(np.float32)
    fitted = Calibration("drawn", "d", temperature=2.0, shift=-0.5, threshold=0.6)
    answer = fitted.apply(atoms, "d")
    assert answer[:, 3] == pytest.approx(expit(logit([0.9, 0.7, 0.5]) / 2 - 0.5), abs=1e-6)
    assert np.array_equal(answer[:, :3], atoms[:, :3])
    assert np.array_equal(fitted.apply(atoms, "d", bounded=True), answer[:2])


@pytest.mark.parametrize("bounded", [True, False])
def test_a_calibration_is_for_one_condition_whatever_its_name(*, bounded: bool) -> None:
    fitted = calibrated(draw(1, 100))
    assert (fitted.condition, fitted.digest) == (DRAWN.id, DRAWN.digest)
    other = Condition.model_validate({"id": "drawn", "dose_e_per_a2": 80})
    with pytest.raises(InvalidInput, match="the calibration of drawn is not valid"):
        fitted.apply(np.ones((3, 7), np.float32), other.digest, bounded=bounded)


def test_applied_to_the_frames_it_was_fitted_on_the_score_says_so() -> None:
    frames, found = matched(drawn := draw(11, 60, temperature=3.0))
    fitted = calibrate(frames, found, DRAWN)
    mended = [fitted.apply(atoms.astype(np.float32), DRAWN.digest) for atoms in found]
    truth = [PLACES[so] for so in drawn[1]]
    many = ([10.0] * 60, 50.0, [SHAPE] * 60)
    assert score_frames(mended, truth, *many).ece < 0.3 * score_frames(found, truth, *many).ece


@pytest.mark.parametrize(
    "limits",
    [{"false_atoms": 0.0}, {"false_atoms": 1.5}, {"confidence": 1.0}, {"false_atoms": np.nan}],
    ids=str,
)
def test_shares_that_are_none_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="is out of bounds"):
        calibrated(draw(12, 3), **limits)


def test_a_calibration_is_frozen_and_needs_frames() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Calibration("drawn", "d").shift = 1.0  # type: ignore[misc]
    with pytest.raises(InvalidInput, match="at least one frame"):
        calibrate([], [], DRAWN)


@pytest.fixture(scope="module")
def ensemble(one_thread: None) -> Ensemble:
    """Two small networks, trained on simulated frames for seconds: eager, and often wrong."""
    spec = TileSpec(tile_px=64)
    known = load_policy(ZOO / "policies" / "graphene-general.yaml")
    tiles = Tiles(*simulated_tiles(known, spec, count=48, seed=0), ("simulated",), "0" * 32)
    plans = (MemberPlan(seed=0, policy=known.id), MemberPlan(seed=1, policy=known.id))
    recipe = Recipe(
        id="small",
        network=Network(filters=6, levels=2),
        training=Training(steps=50, batch=8, learning_rate=1e-2, precision="float32"),
        tiles=spec,
        members=plans,
    )
    return Ensemble([train_member(recipe, plan, plan.seed, tiles) for plan in plans])


@pytest.mark.slow
def test_on_simulated_frames_never_seen_it_calibrates_and_bounds(ensemble: Ensemble) -> None:
    drift = load_condition(ZOO / "conditions" / "graphene-60kv-mix-a.yaml")
    made = simulate(drift, 160, seed=3, shape=(96, 96))
    sizes = [float(size) for size in made.pixel_size_pm]
    pairs = zip(made.frames_nyx, sizes, strict=True)
    found = [ensemble.predict(frame, size).atoms for frame, size in pairs]

    def against_truth(atoms: list[Array], start: int) -> list[MatchedFrame]:
        rows = zip(atoms, made.truth[start:], sizes[start:], strict=False)
        return [match_frame(*row, (96, 96)) for row in rows]

    first = against_truth(found[:80], 0)
    fitted = calibrate(first, found[:80], drift, false_atoms=0.1)
    raw, mended = found[80:], [fitted.apply(atoms, drift.digest) for atoms in found[80:]]
    kept = [fitted.apply(atoms, drift.digest, bounded=True) for atoms in raw]
    before, after = (summarise(against_truth(atoms, 80), atoms) for atoms in (raw, mended))
    unbounded = [1 - _precision(one) for one in against_truth(raw, 80)]
    shares = [1 - _precision(one) for one in against_truth(kept, 80)]
    assert before.ece > 0.05
    assert after.ece < 0.5 * before.ece
    assert np.mean(shares) <= 0.1 < np.mean(unbounded)


def _precision(frame: MatchedFrame) -> float:
    hits, false, _ = frame.counts
    return hits / (hits + false) if hits + false else 1.0

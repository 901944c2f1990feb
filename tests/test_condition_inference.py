"""Inference of an imaging condition from frames alone."""

import numpy as np
import pytest

from manybeam.data.simulation.simulate import simulate
from manybeam.errors import InvalidFrame, InvalidInput
from manybeam.learn.analysis.condition_inference import as_stated, draw, fixed_pixel_size, infer
from manybeam.learn.analysis.regress import fit, standardised
from manybeam.learn.analysis.summaries import summaries
from manybeam.spec import Condition, Policy, Range

pytestmark = pytest.mark.slow

GRAPHENE = {"structure": "graphene"}
WIDE = Policy.model_validate(
    {
        "id": "wide",
        "sample": GRAPHENE,
        "optics": {"defocus_nm": [-6, 6]},
        "scan": {"pixel_size_pm": [14, 18], "row_jitter_pm": [2, 20]},
        "state": {"contamination": [0.03, 1.5], "background": [0.1, 1]},
        "dose_e_per_a2": [1e4, 2e6],
    }
)


def frames_at(dose: float, contamination: float = 0.1, defocus: float = 0.0) -> np.ndarray:
    condition = Condition.model_validate(
        {
            "id": "true",
            "sample": GRAPHENE,
            "optics": {"defocus_nm": defocus},
            "scan": {"pixel_size_pm": 16, "row_jitter_pm": 5},
            "state": {"contamination": contamination, "background": 0.3},
            "dose_e_per_a2": dose,
        }
    )
    return simulate(condition, 2, seed=11, shape=(128, 128)).frames_nyx


@pytest.mark.parametrize("dose", [2e4, 1e6])
def test_the_dose_of_frames_is_found_within_a_factor_of_three(dose):
    found = infer(frames_at(dose), 16.0, WIDE, seed=0, draws=128)
    told = found.posterior["dose_e_per_a2"]
    assert told.low < dose < told.high
    assert dose / 3 < told.median < dose * 3
    assert told.width < 0.6
    assert found.policy.dose_e_per_a2 == Range(low=told.low, high=told.high)


def test_dirty_frames_are_told_from_clean_ones():
    clean, dirty = (
        infer(frames_at(1e6, dirt), 16.0, WIDE, seed=0, draws=96).posterior["state.contamination"]
        for dirt in (0.05, 1.4)
    )
    assert clean.high < dirty.low


def test_of_defocus_the_magnitude_is_told_and_both_signs_stay_possible():
    sharp, blurred = (
        infer(frames_at(1e6, defocus=defocus), 16.0, WIDE, seed=0, draws=128)
        for defocus in (0.5, -5.5)
    )
    told = blurred.posterior["optics.defocus_nm"]
    assert told.is_magnitude
    assert told.median > sharp.posterior["optics.defocus_nm"].median + 1.5
    assert blurred.policy.optics.defocus_nm == Range(low=-told.high, high=told.high)


def test_what_frames_cannot_tell_stays_as_wide_as_the_prior():
    optics = WIDE.optics.model_copy(update={"beam_current_pa": Range(low=10, high=100)})
    blind = WIDE.model_copy(update={"optics": optics})  # the simulator makes nothing of a current
    told = infer(frames_at(1e5), 16.0, blind, seed=0, draws=128).posterior["optics.beam_current_pa"]
    assert told.width > 0.85
    assert not told.is_determined


def test_nine_of_ten_intervals_hold_the_truth():
    rng, inside = np.random.default_rng(5), []
    for index in range(8):
        true = draw(WIDE, rng)
        frames = simulate(true, 1, seed=500 + index, shape=(96, 96)).frames_nyx
        found = infer(frames, None, WIDE, seed=index, draws=96)
        numbers = dict(true.quantities())
        for path, told in found.posterior.items():
            value = abs(numbers[path]) if told.is_magnitude else numbers[path]
            inside.append(told.low <= value <= told.high)
    # 48 intervals of 90 %: 43 are expected, below 36 or all of them has a chance under 1 %.
    assert 36 <= sum(inside) < len(inside)


def test_an_unknown_pixel_size_is_told_by_the_lattice():
    told = infer(frames_at(1e6), None, WIDE, seed=0, draws=64).posterior["scan.pixel_size_pm"]
    assert told.low < 16 < told.high
    assert told.high - told.low < 2.0


def test_the_condition_holds_the_medians_and_says_it_is_inferred():
    found = infer(frames_at(1e5), 16.0, WIDE, seed=0, draws=64)
    condition = found.condition
    assert condition.origin == "inferred"
    assert condition.dose_e_per_a2 == found.posterior["dose_e_per_a2"].median
    assert condition.scan.pixel_size_pm == 16.0
    assert simulate(condition, 1, seed=0, shape=(32, 32)).frames_nyx.shape == (1, 32, 32)


def test_the_answer_stays_inside_the_policy_and_at_the_known_pixel_size():
    found = infer(frames_at(1e5), 16.0, WIDE, seed=0, draws=64).policy
    assert found.scan.pixel_size_pm == 16.0
    assert WIDE.scan.row_jitter_pm.low <= found.scan.row_jitter_pm.low
    assert found.scan.row_jitter_pm.high <= WIDE.scan.row_jitter_pm.high


def test_the_same_seed_infers_the_same_condition():
    one, two = (infer(frames_at(1e5), 16.0, WIDE, seed=4, draws=48) for _ in range(2))
    assert one == two


def test_a_policy_that_cannot_make_such_frames_is_far_away():
    clean = WIDE.model_copy(update={"state": WIDE.state.model_copy(update={"contamination": 0.0})})
    near, far = (
        infer(frames_at(1e6, 1.4), 16.0, policy, seed=0, draws=64).distance
        for policy in (WIDE, clean)
    )
    assert near < far


def test_a_policy_without_ranges_has_nothing_to_infer():
    known = draw(fixed_pixel_size(WIDE, 16.0), np.random.default_rng(0))
    found = infer(frames_at(1e5), 16.0, known, seed=0, draws=24)
    assert found.posterior == {}
    assert found.policy.state == known.state


def test_gain_and_offset_of_the_detector_do_not_matter():
    frames = frames_at(1e5)
    plain, scaled = summaries(frames, 16.0), summaries(3.0 * frames + 50, 16.0)
    np.testing.assert_allclose(scaled, plain, atol=2e-3)


def test_an_error_is_that_of_a_fit_that_never_saw_the_example():
    rng = np.random.default_rng(3)
    known = rng.normal(size=(40, 3))
    value = known[:, :1] + 0.3 * rng.normal(size=(40, 1))
    whole = fit(known, value)
    width, error = float(whole.width_q[0]), float(whole.error_nq[7, 0])
    others = np.arange(40) != 7
    centred = value[:, 0] - value[:, 0].mean()
    square = ((known[:, None] - known[None]) ** 2).mean(axis=2)
    kernel = np.exp(-square / (2 * width**2))
    misses = []
    for ridge in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        weight = np.linalg.solve(
            kernel[np.ix_(others, others)] + ridge * np.eye(39), centred[others]
        )
        misses.append(abs(centred[7] - kernel[7, others] @ weight - error))
    assert min(misses) < 1e-9


def test_summaries_that_never_vary_and_missing_ones_count_for_nothing():
    known = np.array([[1.0, np.nan, 5.0], [2.0, np.nan, 5.0], [4.0, np.nan, 5.0]])
    seen, ours = standardised(np.array([[np.nan, 1.0, 5.0]]), known)
    assert ours.shape == (3, 2)
    assert np.array_equal(seen, [[0.0, 0.0]])


def test_a_draw_has_a_number_for_every_range_and_inside_it():
    drawn = dict(draw(WIDE, np.random.default_rng(0)).quantities())
    for path, value in WIDE.quantities():
        if isinstance(value, Range):
            assert value.low <= drawn[path] <= value.high


def test_fixing_the_pixel_size_leaves_all_else():
    fixed = fixed_pixel_size(WIDE, 24.0)
    assert fixed.scan.pixel_size_pm == 24.0
    assert fixed.state == WIDE.state


@pytest.mark.parametrize(
    ("frames", "error", "match"),
    [
        (np.empty((0, 64, 64)), InvalidInput, "no frames"),
        (np.ones((1, 40, 200)), InvalidFrame, "at least 48 px"),
        (np.ones((64, 64)), InvalidFrame, "too small to infer"),
    ],
    ids=["none", "small", "two axes"],
)
def test_frames_that_tell_nothing_are_refused(frames, error, match):
    with pytest.raises(error, match=match):
        infer(frames, 16.0, WIDE, seed=0)


@pytest.mark.parametrize("side", range(48, 129, 4))
def test_frames_of_every_promised_side_are_summed_up(side):
    frames = np.random.default_rng(side).poisson(9.0, (2, side, side)).astype(np.float32)
    found = summaries(frames, 16.0)
    assert found.shape == (2, summaries(frames_at(1e5), 16.0).shape[1])
    assert np.isfinite(found).mean() > 0.8


def test_a_small_frame_tells_its_condition():
    found = infer(frames_at(1e5)[:, :48, :48], 16.0, WIDE, seed=0, draws=64)
    told = found.posterior["dose_e_per_a2"]
    assert np.isfinite([told.low, told.median, told.high, found.distance]).all()


def test_what_is_stated_is_fixed_inside_the_policy_and_told_outside():
    known = {"optics.defocus_nm": 2.0, "state.background": 5.0, "optics.beam_kv": 60.0}
    fixed, notes = as_stated(WIDE, known)
    assert fixed.optics.defocus_nm == 2.0
    assert fixed.state.background == WIDE.state.background
    assert fixed.optics.beam_kv == 60.0  # which the policy leaves open
    assert [note.split()[0] for note in notes] == sorted(known)
    assert "5 is stated, which is outside 0.1 to 1" in notes[2]

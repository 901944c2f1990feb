"""learn.classical: difference of Gaussians and its tuning, on frames of known truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manybeam.errors import InvalidInput, MissingPixelSize
from manybeam.learn.scoring.classical import Blob, detect, tune
from manybeam.learn.scoring.scores import match, score_frames

Array = NDArray[np.floating]
SHAPE = (120, 140)


def scene(
    seed: int, pixel_size_pm: float = 16.0, noise: float = 0.1, support: float = 0.0
) -> tuple[Array, Array]:
    """Return a frame of Gaussian atoms 250 pm apart, on a support of uneven brightness."""
    rng = np.random.default_rng(seed)
    step = 250 / pixel_size_pm
    rows, columns = (np.arange(step * 0.7, side - step * 0.6, step) for side in SHAPE)
    truth = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    truth = truth[rng.random(len(truth)) < 0.8]
    truth = truth + rng.uniform(-1.5, 1.5, truth.shape)
    y, x = np.indices(SHAPE)
    frame = noise * rng.normal(size=SHAPE) + support * np.sin(y / 30) * np.cos(x / 25)
    for cy, cx in truth:
        frame += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * (45 / pixel_size_pm) ** 2))
    return frame, truth


def f1_of(found: Array, truth: Array, pixel_size_pm: float = 16.0) -> float:
    return score_frames([found], [truth], [pixel_size_pm], 80.0, [SHAPE]).f1


@pytest.mark.parametrize("pixel_size_pm", [10.0, 16.0, 24.0])
def test_atoms_of_a_clean_frame_are_found_at_any_pixel_size(pixel_size_pm: float) -> None:
    frame, truth = scene(1, pixel_size_pm)
    found = detect(frame, pixel_size_pm)
    pairs = match(found, truth, 3.0)
    assert f1_of(found, truth, pixel_size_pm) > 0.97
    assert np.sqrt(np.mean(pairs.distance_px**2)) < 0.35


def test_atoms_carry_a_rank_between_a_half_and_one() -> None:
    found = detect(scene(2)[0], 16.0)
    assert found.dtype == np.float32
    assert (found[:, 2] == 0).all()
    assert ((found[:, 3] >= 0.5) & (found[:, 3] < 1)).all()
    assert (np.diff(found[:, 3]) <= 0).all()


@settings(max_examples=10)
@given(gain=st.floats(0.01, 1e4), offset=st.floats(-100, 100))
def test_gain_and_offset_of_the_detector_do_not_matter(gain: float, offset: float) -> None:
    frame, _ = scene(3)
    plain, scaled = detect(frame, 16.0), detect(frame * gain + offset * gain, 16.0)
    assert len(match(plain, scaled, 0.01)) == len(plain) == len(scaled)


def test_a_turned_frame_has_the_turned_atoms() -> None:
    frame, _ = scene(4)
    still, turned = detect(frame, 16.0), detect(np.rot90(frame), 16.0)
    back = np.column_stack([turned[:, 1], SHAPE[1] - 1 - turned[:, 0]])
    assert len(match(back, still, 0.01)) == len(still) == len(turned)


def test_a_window_evens_out_an_uneven_support() -> None:
    frame, truth = scene(5, noise=0.05, support=8.0)
    blob = Blob(threshold=1.5)
    local = Blob(threshold=1.5, local_pm=300.0)
    assert f1_of(detect(frame, 16.0, local), truth) >= f1_of(detect(frame, 16.0, blob), truth)


def test_tuning_beats_the_defaults_on_frames_it_has_not_seen() -> None:
    frames, truths = zip(*[scene(seed, noise=0.6) for seed in range(3)], strict=True)
    blob, f1 = tune(frames, truths, [16.0] * 3, 80.0)
    unseen, truth = scene(99, noise=0.6)
    assert f1 > 0.9
    assert f1_of(detect(unseen, 16.0, blob), truth) > f1_of(detect(unseen, 16.0), truth)


def test_the_f1_of_the_tuning_is_that_of_the_scores() -> None:
    frames, truths = zip(*[scene(seed, noise=0.8) for seed in range(2)], strict=True)
    blob, f1 = tune(frames, truths, [16.0] * 2, 80.0, sigmas_pm=(35, 50), locals_pm=(0,))
    found = [detect(frame, 16.0, blob) for frame in frames]
    exact = score_frames(found, truths, [16.0] * 2, 80.0, [SHAPE] * 2).f1
    assert f1 == pytest.approx(exact, abs=0.01)


def test_a_frame_without_contrast_holds_no_atoms() -> None:
    assert detect(np.full((40, 40), 7.0), 16.0).shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (7, 5)])
def test_small_frames_are_answered(shape: tuple[int, int]) -> None:
    found = detect(np.random.default_rng(0).normal(size=shape), 16.0)
    assert (found[:, :2] <= np.array(shape) - 1).all()


def test_the_pixel_size_is_needed() -> None:
    with pytest.raises(MissingPixelSize, match="--pixel-size-pm"):
        detect(np.ones((5, 5)), None)


@pytest.mark.parametrize("truths", [[], [np.zeros((0, 2))] * 2], ids=["none", "too many"])
def test_tuning_needs_a_truth_for_each_frame(truths: list[Array]) -> None:
    with pytest.raises(InvalidInput, match="one of each per frame"):
        tune([np.ones((5, 5))], truths, [16.0])
    with pytest.raises(InvalidInput, match="at least one frame"):
        tune([], [], [])

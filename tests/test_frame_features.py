"""Fingerprints: numbers that tell the condition of a frame and nothing of its atoms."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from manybeam.errors import InvalidFrame
from manybeam.learn.analysis.frame_features import (
    distances,
    feature_names,
    frame_features,
    stack_features,
)


def speckle(seed: int, width_px: float = 2.0, shape: tuple[int, int] = (128, 128)) -> np.ndarray:
    """Return blurred noise: frames of one width are frames of one condition."""
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), width_px)


def test_every_number_of_a_fingerprint_has_a_name():
    assert frame_features(speckle(0), 16.0).shape == (len(feature_names()),)
    assert len(set(feature_names())) == len(feature_names())


@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (1e-4, 7.0), (1e5, -1e6)])
def test_gain_and_offset_of_the_detector_cancel(gain, offset):
    plain = frame_features(speckle(1), 16.0)
    np.testing.assert_allclose(frame_features(gain * speckle(1) + offset, 16.0), plain, atol=1e-6)


def test_frames_of_one_condition_are_nearer_than_frames_of_two():
    same = stack_features(np.stack([speckle(seed, 2.0) for seed in range(6)]), 16.0)
    other = stack_features(np.stack([speckle(seed, 2.6) for seed in range(6)]), 16.0)
    scale = np.std(same, axis=0) + 0.02
    assert distances(same[0], same[1:], scale).max() < distances(same[0], other, scale).min() / 2


def test_the_size_of_the_frame_matters_little_beside_its_condition():
    small, large = (frame_features(speckle(3, 2.0, (side, side)), 16.0) for side in (128, 300))
    sharper = frame_features(speckle(3, 1.6), 16.0)
    scale = np.ones(len(small))
    assert distances(small, large[None], scale)[0] < distances(small, sharper[None], scale)[0] / 2


def test_a_frame_whose_rows_are_smeared_is_told_by_its_anisotropy():
    rows = gaussian_filter(speckle(4, 1.0), (0.0, 2.0))
    features = dict(zip(feature_names(), frame_features(rows, 16.0), strict=True))
    assert features["row correlation"] > features["column correlation"] + 0.05


def test_rings_past_the_limit_of_coarse_pixels_are_missing_and_do_not_count():
    coarse = frame_features(speckle(5), 60.0)
    assert np.isnan(coarse[23])
    assert np.isfinite(
        distances(coarse, frame_features(speckle(5), 16.0)[None], np.ones(len(coarse)))
    )


def test_a_constant_frame_has_a_finite_fingerprint():
    known = np.nan_to_num(frame_features(np.full((64, 64), 3.0), 16.0))
    assert np.isfinite(known).all()


@pytest.mark.parametrize("shape", [(15, 128), (128,), (2, 64, 64)])
def test_what_has_no_spectrum_is_refused(shape):
    with pytest.raises(InvalidFrame, match="too small for frame features"):
        frame_features(np.zeros(shape), 16.0)

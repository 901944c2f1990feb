"""Frame features: about forty numbers that depend on the condition a frame was recorded under.

Two frames of one condition have similar features, whatever atoms they show. From the file of a
frame only the pixel size is needed. Axis letters: n frame, f feature, y row, x column.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import fft

from manybeam.errors import InvalidFrame

FEATURES = 1  # raised whenever the features of a frame change; kept ones are then made anew
# Edges of the rings of the radial power spectrum, in cycles per nanometre: 1 nm is the largest
# structure that counts, 20 per nm lies past the resolution of any probe.
RING_EDGES_PER_NM = np.geomspace(0.9, 20.0, 25)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Used if the pixel size is unknown; such frames can only be compared with each other.
TYPICAL_PIXEL_PM = 16.0


def frame_features(frame_yx: np.ndarray, pixel_size_pm: float | None) -> np.ndarray:
    """Return the features of one frame.

    They are the log radial power spectrum in rings of physical frequency, the ratio of the power
    along rows and along columns (scan distortions and afterglow change it), quantiles of the
    standardised frame, and the correlation of neighbouring pixels. Gain and offset of the detector
    have no effect.

    Args:
        frame_yx: the frame, finite, at least 16 px a side.
        pixel_size_pm: edge of a pixel, in pm; if None, a typical one is used, and the features can
            only be compared with others made so.

    Returns:
        float64 vector of `feature_names()`; rings past the limits of the frame hold NaN.

    Raises:
        InvalidFrame: the frame is too small to have a spectrum.
    """
    if frame_yx.ndim != 2 or min(frame_yx.shape) < 16:
        raise InvalidFrame(
            f"a frame of shape {frame_yx.shape} is too small for frame features",
            "at least 16 x 16 px",
            "give a larger frame",
        )
    flat_yx = _standardised(frame_yx)
    power_yx, qy_per_nm, qx_per_nm = _spectrum(flat_yx, pixel_size_pm or TYPICAL_PIXEL_PM)
    radial = _ring_means(power_yx, np.hypot(qy_per_nm, qx_per_nm))
    return np.concatenate(
        [
            radial,
            _anisotropy(power_yx, qy_per_nm, qx_per_nm),
            np.quantile(flat_yx, QUANTILES),
            _neighbour_correlations(flat_yx),
            [math.log(pixel_size_pm or TYPICAL_PIXEL_PM)],
        ]
    )


def stack_features(
    frames_nyx: np.ndarray, pixel_size_pm: float | Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """Return the features of several frames, (n, f); one pixel size, or one for each frame."""
    sizes: list[float | None] = (
        [None] * len(frames_nyx)
        if pixel_size_pm is None
        else [float(size) for size in np.broadcast_to(pixel_size_pm, len(frames_nyx))]
    )
    rows = [frame_features(frame, size) for frame, size in zip(frames_nyx, sizes, strict=True)]
    return np.stack(rows) if rows else np.empty((0, len(feature_names())))


def feature_names() -> tuple[str, ...]:
    """Return the names of the features, in order."""
    rings = [f"power at {q:.2g}/nm" for q in _ring_centres()]
    sides = [f"row/column power at {band}" for band in ("0.9-4/nm", "4-9/nm", "9-20/nm")]
    quantiles = [f"quantile {q:g}" for q in QUANTILES]
    return (*rings, *sides, *quantiles, "row correlation", "column correlation", "log pixel size")


def distances(one_f: np.ndarray, many_nf: np.ndarray, scale_f: np.ndarray) -> np.ndarray:
    """Return the distance of each of many features from one, in units of `scale_f`.

    It is the root mean square over the features that both sides have. If `scale_f` is the scatter
    of frames of one condition, such frames have a distance of 1. Each feature counts at most 10 of
    its scales, so that no single one decides.
    """
    steps_nf = np.minimum(np.abs(many_nf - one_f) / scale_f, 10.0)
    known_nf = np.isfinite(steps_nf)
    squares_n = np.where(known_nf, steps_nf, 0.0) ** 2
    return np.asarray(np.sqrt(squares_n.sum(axis=1) / np.maximum(known_nf.sum(axis=1), 1)))


def _standardised(frame_yx: np.ndarray) -> np.ndarray:
    centred_yx = frame_yx.astype(np.float64) - np.mean(frame_yx, dtype=np.float64)
    return np.asarray(centred_yx / max(float(centred_yx.std()), 1e-12))


def _spectrum(
    flat_yx: np.ndarray, pixel_size_pm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the power per squared frequency (so that the frame's size cancels), qy and qx."""
    rows, columns = flat_yx.shape
    window_yx = np.hanning(rows + 2)[1:-1, None] * np.hanning(columns + 2)[None, 1:-1]
    amplitude_yx = fft.rfft2(flat_yx * window_yx)
    power_yx = np.abs(amplitude_yx) ** 2 * (pixel_size_pm * 1e-3) ** 2 / np.sum(window_yx**2)
    qy = fft.fftfreq(rows)[:, None] / (pixel_size_pm * 1e-3)
    qx = fft.rfftfreq(columns)[None, :] / (pixel_size_pm * 1e-3)
    return power_yx, qy, qx


def _ring_centres() -> np.ndarray:
    return np.asarray(np.sqrt(RING_EDGES_PER_NM[1:] * RING_EDGES_PER_NM[:-1]))


def _ring_means(power_yx: np.ndarray, q_yx: np.ndarray) -> np.ndarray:
    """Return the log mean power of each ring; NaN for rings the frame does not reach."""
    ring_count = len(RING_EDGES_PER_NM) - 1
    ring_yx = np.digitize(q_yx, RING_EDGES_PER_NM) - 1
    inside_yx = (ring_yx >= 0) & (ring_yx < ring_count)
    total = np.bincount(ring_yx[inside_yx], power_yx[inside_yx], ring_count)
    count = np.bincount(ring_yx[inside_yx], minlength=ring_count)
    means = np.where(count >= 4, total / np.maximum(count, 1), np.nan)
    return np.log(means + 1e-9)


def _anisotropy(power_yx: np.ndarray, qy: np.ndarray, qx: np.ndarray) -> list[float]:
    """Return the log ratio of power along rows to power along columns in three bands."""
    q_yx, is_along_x = np.hypot(qy, qx), np.abs(qx) > np.abs(qy)
    ratios = []
    for low, high in ((0.9, 4.0), (4.0, 9.0), (9.0, 20.0)):
        band_yx = (q_yx >= low) & (q_yx < high)
        along_x, along_y = power_yx[band_yx & is_along_x], power_yx[band_yx & ~is_along_x]
        enough = min(len(along_x), len(along_y)) >= 8
        ratios.append(
            math.log((along_x.mean() + 1e-9) / (along_y.mean() + 1e-9)) if enough else math.nan
        )
    return ratios


def _neighbour_correlations(flat_yx: np.ndarray) -> list[float]:
    along_x = float(np.mean(flat_yx[:, 1:] * flat_yx[:, :-1]))
    along_y = float(np.mean(flat_yx[1:] * flat_yx[:-1]))
    return [along_x, along_y]

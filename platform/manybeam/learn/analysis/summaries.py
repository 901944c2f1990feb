"""Summaries: numbers of a frame from which its dose, blur, dirt and detector are inferred.

Frame features show whether two frames are alike. A summary also holds numbers that change in a
known way with one quantity: how noise grows with brightness (dose, gamma), how neighbours along a
row and along a column agree (afterglow, jitter), how much lies below the lattice (dirt).
Axis letters: n frame, s number of a summary, y row, x column, k ring of the spectrum.

Source: semi-automatic summary statistics after Fearnhead and Prangle, J. R. Stat. Soc. B 74, 419
(2012); the photon transfer curve after Janesick, Photon Transfer, SPIE (2007).
"""

from collections.abc import Iterator

import numpy as np
from scipy import fft

from manybeam.learn.analysis.frame_features import stack_features

LAGS_PX = (1, 2, 3, 4)
DIRT_PX = (6, 12, 24)  # widths over which brightness without atoms is measured
RING_EDGES = np.geomspace(0.03, 0.5, 17)  # cycles per pixel
BANDS = ((3, 8), (8, 14), (14, 22), (22, 34))  # periods per 128 px, between neighbouring rows
AT_ONCE = 32  # frames, so that their spectra stay in the caches
TINY = 1e-9


def summaries(frames_nyx: np.ndarray, pixel_size_pm: float | np.ndarray | None) -> np.ndarray:
    """Return (n, s): the features of each frame, then numbers of its noise and its texture.

    Args:
        frames_nyx: frames of one shape, at least 48 px a side.
        pixel_size_pm: one, or one for each frame; None if unknown. Summaries with and without a
            pixel size cannot be compared.

    Returns:
        float64; NaN where a frame is too coarse for a ring of the features, or too small for a
        ring of the spectrum.
    """
    features = stack_features(frames_nyx, pixel_size_pm)
    parts = [frames_nyx[i : i + AT_ONCE] for i in range(0, len(frames_nyx), AT_ONCE)]
    textures = [np.stack(list(_texture(part)), axis=1) for part in parts]
    return np.hstack([features, np.concatenate(textures).astype(np.float64)])


def _texture(frames_nyx: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the numbers one after the other, each for all frames, (n,)."""
    frames = np.asarray(frames_nyx, np.float64)
    level = frames.mean(axis=(1, 2), keepdims=True)
    flat = ((frames - level) / np.maximum(_deviation(frames), TINY)).astype(np.float32)
    filtered = _Filter(flat)
    smooth, low = filtered.smooth(1.5), filtered.smooth(8)
    yield from _neighbours(flat)
    yield from _noise(flat, smooth)
    yield from _shape(flat)
    yield from _shape(smooth)
    yield from _dirt(filtered, smooth, low)
    yield _log(np.std(np.diff(flat.mean(axis=2)), axis=1))
    yield from _coherence(smooth)
    yield from _coherence(smooth.swapaxes(1, 2))
    yield from _rings(flat - low)


class _Filter:
    """Gaussian filters of frames that share one transform; frames are mirrored at two edges."""

    def __init__(self, flat: np.ndarray) -> None:
        self.shape = flat.shape[1:]
        self.spectrum = fft.dctn(flat, axes=(1, 2))
        self.square = sum(
            np.square(np.arange(n, dtype=np.float32) / (2 * n)).reshape(form)
            for n, form in zip(self.shape, ((-1, 1), (1, -1)), strict=True)
        )

    def smooth(self, sigma_px: float) -> np.ndarray:
        response = np.exp(-2 * np.pi**2 * sigma_px**2 * self.square)
        return np.asarray(fft.idctn(self.spectrum * response, axes=(1, 2)))


def _deviation(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.std(axis=(1, 2), keepdims=True))


def _mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(axis=(1, 2)))


def _log(value_n: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(value_n, 0) + TINY))


def _neighbours(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the correlation along rows and along columns."""
    for lag in LAGS_PX:
        yield _mean(flat[:, :, lag:] * flat[:, :, :-lag])
        yield _mean(flat[:, lag:] * flat[:, :-lag])


def _noise(flat: np.ndarray, smooth: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the power of the noise, and its shares in dark and bright parts (photon transfer)."""
    along_x = np.diff(flat, 2, axis=2)
    yield _log(_mean(along_x**2))
    yield _log(_mean(np.diff(flat, 2, axis=1) ** 2))
    # Immerkaer's mask: second differences of second differences see noise, not structure.
    power = (np.diff(along_x, 2, axis=1) / 6) ** 2
    yield _log(_mean(power))
    under = smooth[:, 1:-1, 1:-1].reshape(len(flat), -1)
    order = np.argsort(under, axis=1)
    sorted_power = np.take_along_axis(power.reshape(len(flat), -1), order, axis=1)
    shares = np.stack([_log(part.mean(axis=1)) for part in np.array_split(sorted_power, 5, axis=1)])
    yield from shares - shares.mean(axis=0)


def _shape(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield skewness, log kurtosis and log deviation."""
    deviation = np.maximum(_deviation(values), TINY)
    standard = (values - values.mean(axis=(1, 2), keepdims=True)) / deviation
    square = standard * standard
    yield _mean(square * standard)
    yield _log(_mean(square * square))
    yield _log(deviation[:, 0, 0])


def _dirt(filtered: _Filter, smooth: np.ndarray, low: np.ndarray) -> Iterator[np.ndarray]:
    """Yield how brightness varies over nanometres, and whether contrast varies with it."""
    for width in DIRT_PX:
        yield _log(_deviation(filtered.smooth(width))[:, 0, 0])
    band = (smooth - filtered.smooth(5)) ** 2
    contrast = np.sqrt(np.maximum(_Filter(band).smooth(8), 0))
    apart = np.maximum(_deviation(low) * _deviation(contrast), TINY)[:, 0, 0]
    middle = contrast.mean(axis=(1, 2), keepdims=True)
    yield _mean(low * (contrast - middle)) / apart
    yield _log((_deviation(contrast) / np.maximum(middle, TINY))[:, 0, 0])
    yield from np.quantile(contrast[:, ::4, ::4], [0.1, 0.5, 0.9], axis=(1, 2))
    median = np.median(low[:, ::4, ::4], axis=(1, 2))
    yield low.max(axis=(1, 2)) - median
    yield median - low.min(axis=(1, 2))


def _coherence(smooth: np.ndarray) -> Iterator[np.ndarray]:
    """Yield how alike neighbouring rows are, in bands of spatial frequency."""
    spectrum = fft.rfft(smooth, axis=2)
    shared = np.abs(np.mean(spectrum[:, 1:] * np.conj(spectrum[:, :-1]), axis=1))
    alike = shared / (np.mean(np.abs(spectrum) ** 2, axis=1) + TINY)
    scale = smooth.shape[2] / 128
    for first, last in BANDS:
        yield alike[:, int(first * scale) : max(int(last * scale), 1)].mean(axis=1)


def _rings(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the height of the peaks in each ring of the spectrum, and the level of the ring."""
    rows, columns = flat.shape[1:]
    window = (np.hanning(rows)[:, None] * np.hanning(columns)[None]).astype(np.float32)
    power = np.abs(fft.rfft2(flat * window)) ** 2 / np.sum(window**2)
    radius = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)[None])
    ring = np.digitize(radius, RING_EDGES) - 1
    for index in range(len(RING_EDGES) - 1):
        inside = np.sort(power[:, ring == index], axis=1)
        if not inside.shape[1]:  # no frequency of a small frame lies in it
            yield from np.full((2, len(flat)), np.nan)
            continue
        level = _log(inside[:, inside.shape[1] // 2])
        yield _log(inside[:, -4:].mean(axis=1)) - level
        yield level

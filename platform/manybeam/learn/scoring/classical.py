"""The classical detector: difference of Gaussians and maxima. All networks are compared with it.

Axis letters: n atom, 2 the pair (y, x).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from manybeam.errors import InvalidInput, MissingPixelSize
from manybeam.learn.nets.atoms import Found, first_come, local_maxima, sample, strongest
from manybeam.learn.scoring.scores import BORDER_PM, away_from_edges, match_radius_px

Array = NDArray[np.floating]

FLAT = 0.1  # least local deviation, as a share of the frame's
FAINT = 1e-3  # lower maxima, as a share of the filtered frame's deviation, are rounding errors


@dataclass(frozen=True)
class Blob:
    """Parameters of the detector; the defaults suit a lattice such as graphene.

    Attributes:
        sigma_pm: width of the narrow Gaussian, in pm.
        ratio: width of the wide Gaussian divided by that of the narrow one; > 1.
        threshold: least height of a maximum, in standard deviations of the filtered frame.
        min_distance_pm: least distance of two atoms, in pm.
        local_pm: width of the Gaussian window of local standardisation, in pm; 0 for none. It
            removes the effect of a support whose thickness varies.
    """

    sigma_pm: float = 35.0
    ratio: float = 1.6
    threshold: float = 0.6
    min_distance_pm: float = 90.0
    local_pm: float = 0.0


def detect(frame_yx: Array, pixel_size_pm: float | None, blob: Blob | None = None) -> Found:
    """Return the atoms of one frame: y, x, class 0, probability.

    The "probability" grows with the height of the maximum and is 0.5 at the threshold. It gives an
    order and is not calibrated. Positions are refined by a parabola along each axis.

    Args:
        frame_yx: one frame, any real dtype and scale of brightness.
        pixel_size_pm: edge of a pixel, in pm.
        blob: parameters; the defaults if left out.

    Returns:
        float32 (atoms, 4), the most probable first.

    Raises:
        MissingPixelSize: the pixel size is unknown.
    """
    blob = blob or Blob()
    if pixel_size_pm is None:
        raise MissingPixelSize(
            "the classical detector needs the pixel size",
            "its widths are in picometres",
            "pass --pixel-size-pm",
        )
    frame_yx = _standardised(frame_yx, blob.local_pm / pixel_size_pm)
    position_n2, height_n = _candidates(frame_yx, pixel_size_pm, blob)
    is_high = height_n >= blob.threshold
    position_n2, height_n = position_n2[is_high], height_n[is_high]
    probability = height_n / (height_n + blob.threshold)
    return np.column_stack([position_n2, np.zeros(len(height_n)), probability]).astype(np.float32)


def tune(
    frames: Sequence[Array],
    truths: Sequence[Array],
    pixel_sizes: Sequence[float],
    radius_pm: float | None = None,
    *,
    sigmas_pm: Sequence[float] = (25, 35, 45, 60, 75, 95),
    ratios: Sequence[float] = (1.5, 2.5, 4.0),
    distances_per_sigma: Sequence[float] = (1.5, 2.2, 3.2),
    locals_pm: Sequence[float] = (0, 400, 800),
) -> tuple[Blob, float]:
    """Return the parameters with the best micro F1 on labelled frames, and about that F1.

    Widths, ratio and window are searched on a grid, then the least distance; each with the best
    threshold. From the highest down, each found atom takes the nearest true atom that is free. This
    gives the F1 of all thresholds at once, within a percent of `learn.scoring.scores`. The F1 is
    optimistic, because the parameters were chosen on the same frames.

    Args:
        frames: labelled frames.
        truths: (atoms, >= 2) y, x of each.
        pixel_sizes: of each, in pm.
        radius_pm: match radius, in pm; see `learn.scoring.scores.match_frame`.
        sigmas_pm: widths tried, in pm.
        ratios: ratios tried.
        distances_per_sigma: least distances tried, per width.
        locals_pm: windows of local standardisation tried, in pm; 0 is none.

    Raises:
        InvalidInput: no frame, or lists of different lengths.
    """
    if not frames or not len(frames) == len(truths) == len(pixel_sizes):
        raise InvalidInput(
            f"{len(frames)} frames, {len(truths)} truths and {len(pixel_sizes)} pixel sizes",
            "tuning needs one of each per frame, and at least one frame",
        )
    tried: list[tuple[float, Blob]] = []
    for local_pm in locals_pm:
        labelled = [
            _Labelled(_standardised(frame, local_pm / size), _pairs(truth), size, radius_pm)
            for frame, truth, size in zip(frames, truths, pixel_sizes, strict=True)
        ]
        for sigma_pm, ratio in product(sigmas_pm, ratios):
            blob = Blob(sigma_pm, ratio, 0.0, distances_per_sigma[0] * sigma_pm, local_pm)
            tried.append(_best_threshold(labelled, blob))
        best = max(tried, key=lambda pair: pair[0])[1]
        if best.local_pm == local_pm:
            for distance in distances_per_sigma[1:]:
                blob = replace(best, min_distance_pm=distance * best.sigma_pm)
                tried.append(_best_threshold(labelled, blob))
    f1, best = max(tried, key=lambda pair: pair[0])
    return best, f1


def heights(
    frame_yx: Array, truth: Array, pixel_size_pm: float, radius_pm: float | None, blob: Blob
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the height of each candidate of a labelled frame, and whether it is an atom.

    Candidates of any height count, except those at the border; see `tune` for the matching.
    """
    frame_yx = _standardised(frame_yx, blob.local_pm / pixel_size_pm)
    height_n, hit_n, false_n = _hits(
        _Labelled(frame_yx, _pairs(truth), pixel_size_pm, radius_pm), blob
    )
    counts_n = hit_n + false_n > 0
    return height_n[counts_n], hit_n[counts_n] > 0


@dataclass(frozen=True, eq=False)
class _Labelled:
    """One standardised frame with its truth."""

    frame_yx: Array
    truth_n2: Array
    pixel_size_pm: float
    radius_pm: float | None


def _pairs(truth: Array) -> Array:
    truth = np.asarray(truth, float)
    return truth.reshape(len(truth), -1)[:, :2] if truth.size else np.zeros((0, 2))


def _standardised(frame_yx: Array, local_px: float) -> Array:
    """Return the frame in deviations from its mean, or from the local mean in local deviations."""
    frame_yx = np.asarray(frame_yx, np.float32)
    frame_yx = frame_yx - frame_yx.mean(dtype=np.float64).astype(np.float32)
    deviation = float(frame_yx.std(dtype=np.float64))
    if deviation == 0:
        return frame_yx
    frame_yx = frame_yx / np.float32(deviation)
    if not local_px:
        return frame_yx
    frame_yx = frame_yx - gaussian_filter(frame_yx, local_px)
    variance_yx = gaussian_filter(frame_yx**2, local_px)
    return np.asarray(frame_yx / np.sqrt(np.maximum(variance_yx, FLAT**2)), np.float32)


def _candidates(frame_yx: Array, pixel_size_pm: float, blob: Blob) -> tuple[Array, Array]:
    """Return positions and heights of the maxima, highest first, one for each atom.

    Heights are in standard deviations of the filtered frame, so its gain and offset have no effect.
    Stronger maxima remove weaker ones near them, so a threshold may be applied afterwards.
    """
    sigma_px = blob.sigma_pm / pixel_size_pm
    band_yx = gaussian_filter(frame_yx, sigma_px) - gaussian_filter(frame_yx, sigma_px * blob.ratio)
    deviation = float(band_yx.std(dtype=np.float64))
    position_n2 = local_maxima(band_yx, FAINT * deviation)
    if not deviation or not len(position_n2):
        return np.zeros((0, 2)), np.zeros(0)
    height_n = sample(band_yx, position_n2)
    kept = strongest(position_n2, height_n, blob.min_distance_pm / pixel_size_pm)
    kept = kept[np.argsort(-height_n[kept], kind="stable")]
    return _refine(band_yx, position_n2[kept]), height_n[kept] / deviation


def _refine(band_yx: Array, position_n2: Array) -> Array:
    """Return maxima moved to the top of a parabola through three pixels along each axis."""
    pixel_n2 = np.rint(position_n2)
    centre = sample(band_yx, pixel_n2)
    shift_n2 = np.zeros(position_n2.shape)
    for axis, step in enumerate(([1, 0], [0, 1])):
        before, after = sample(band_yx, pixel_n2 - step), sample(band_yx, pixel_n2 + step)
        bend = before - 2 * centre + after
        curved = bend < 0
        shift_n2[curved, axis] = 0.5 * (before - after)[curved] / bend[curved]
    last = np.array(band_yx.shape) - 1
    return np.asarray(np.clip(pixel_n2 + np.clip(shift_n2, -0.5, 0.5), 0, last))


def _best_threshold(labelled: Sequence[_Labelled], blob: Blob) -> tuple[float, Blob]:
    """Return the best F1 over all thresholds, and the blob with that threshold."""
    candidates = [_hits(each, blob) for each in labelled]
    height, hit, false = (np.concatenate(column) for column in zip(*candidates, strict=True))
    truth_count = sum(int(_counts(each.truth_n2, each).sum()) for each in labelled)
    if not len(height):
        return 0.0, replace(blob, threshold=1.0)
    order = np.argsort(-height, kind="stable")
    hits, found = np.cumsum(hit[order]), np.cumsum(hit[order] + false[order])
    f1 = 2 * hits / np.maximum(found + truth_count, 1)
    best = int(f1.argmax())
    lower = height[order][min(best + 1, len(order) - 1)]
    return float(f1[best]), replace(blob, threshold=float((height[order][best] + lower) / 2))


def _hits(labelled: _Labelled, blob: Blob) -> tuple[Array, Array, Array]:
    """Return the height of each candidate, whether it is a hit, and whether a false alarm."""
    truth_n2, size = labelled.truth_n2, labelled.pixel_size_pm
    position_n2, height_n = _candidates(labelled.frame_yx, size, blob)
    hit, false = np.zeros(len(height_n)), _counts(position_n2, labelled)
    if len(height_n) and len(truth_n2):
        near = cKDTree(position_n2).sparse_distance_matrix(
            cKDTree(truth_n2),
            match_radius_px(truth_n2, size, labelled.radius_pm),
            output_type="ndarray",
        )
        near = near[np.lexsort((near["v"], near["i"]))]  # candidates come highest first
        pairs = near[first_come(near["i"], near["j"])]
        hit[pairs["i"]] = _counts(truth_n2, labelled)[pairs["j"]]
        false[pairs["i"]] = 0
    return height_n, hit, false


def _counts(position_n2: Array, labelled: _Labelled) -> Array:
    """Return 1 for positions that count, 0 for those at the border."""
    rows, columns = labelled.frame_yx.shape
    border_px = BORDER_PM / labelled.pixel_size_pm
    return away_from_edges(position_n2, (rows, columns), border_px).astype(float)

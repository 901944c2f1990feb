"""In-control frames: their centre and scatter, and the limits of streams of them.

Axis letters: n in-control frame, m resampled stream, t frame of a stream, s number of a summary,
g known condition, w length of a window.

Source: see `predictor.stream.drift`; covariance after Ledoit and Wolf, J. Multivar. Anal. 88, 365
(2004); two parts of variance after Searle, Casella, McCulloch, Variance Components, Wiley (1992);
resampling by blocks after Kuensch, Ann. Stat. 17, 1217 (1989).
"""

import math
from dataclasses import dataclass

import numpy as np

from manybeam.errors import InvalidInput

LEAST_KNOWN = 40  # in-control frames; fewer give no reliable scatter and threshold
WINDOW = 10  # longest window, in frames: the goal for detection
BLOCK = 10  # neighbouring frames that are held out and resampled together
FOLDS = 5
CLIP = 8.0  # largest shift of a feature, in scatters
LEAST_SCATTER = 0.02  # for features that do not vary in control, such as a known pixel size
LEAST_LIMIT = 1.0  # of frames that are all alike, as those of a detector that hangs
HELD_IN = 0.9  # quantile of the in-control distances that limits the distance of a frame
# One false alarm in 1,000 frames is allowed; the threshold is set for half of that. It is raised by
# MARGIN over the root of the number of blocks, because few blocks contain few harmless changes.
# MARGIN was chosen on seven drawn conditions of graphene, none of them a named one.
FALSE_ALARM_RATE = 0.5e-3
MARGIN = 3.0
STREAMS, STREAM_FRAMES = 120, 500  # resampled to set the threshold
SEED = 20_151


@dataclass(frozen=True)
class InControl:
    """Centre and scatter of the frames of the known conditions.

    There are two parts of variance: each frame scatters by itself, and neighbouring frames share a
    shift because a session wanders. A mean over more frames reduces the first part only.

    Attributes:
        middle_gs: median of each feature; NaN if a condition's frames lack it.
        scatter_gs: standard deviation, from the median deviation.
        whiten_ss: transforms to independent directions, with variance one from frame to frame.
        wander_s: variance of the shared shift, in each of these directions.
    """

    middle_gs: np.ndarray
    scatter_gs: np.ndarray
    whiten_ss: np.ndarray
    wander_s: np.ndarray

    def residuals(self, new_ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shifts from the nearest condition, in scatters and whitened, (t, s)."""
        shift_gts = np.stack(
            [
                _standardised(new_ts, middle_s, scatter_s)
                for middle_s, scatter_s in zip(self.middle_gs, self.scatter_gs, strict=True)
            ]
        )
        far_gts = shift_gts @ self.whiten_ss
        near_t = self.lengths(far_gts).argmin(axis=0)
        rank_t = np.arange(len(new_ts))
        return shift_gts[near_t, rank_t], far_gts[near_t, rank_t]

    def lengths(self, far_ts: np.ndarray) -> np.ndarray:
        """Return the distance of single frames, over all directions."""
        return np.asarray(np.sqrt((far_ts**2 / (1 + self.wander_s)).sum(axis=-1)))

    def windows(self, far_ts: np.ndarray, most: float) -> np.ndarray:
        """Return the squared distance of each window's mean, (t, w); NaN if frames are too few.

        The distance of a frame is limited to `most`, because one odd frame is not drift.
        """
        length_t = np.maximum(self.lengths(far_ts), 1e-12)
        far_ts = far_ts * np.minimum(most / length_t, 1.0)[:, None]
        sum_ts = np.concatenate([np.zeros_like(far_ts[:1]), far_ts.cumsum(axis=0)])
        found_tw = np.full((len(far_ts), WINDOW), np.nan)
        for length in range(1, min(WINDOW, len(far_ts)) + 1):
            parts_ts = sum_ts[length:] - sum_ts[:-length]
            variance_s = length * (1 + length * self.wander_s)
            found_tw[length - 1 :, length - 1] = (parts_ts**2 / variance_s).sum(axis=1)
        return found_tw


@dataclass(frozen=True)
class ControlLimits:
    """The limits of in-control streams.

    Attributes:
        middle_w: mean over in-control streams of a window's squared distance.
        scatter_w: its standard deviation.
        most: limit of the distance of a frame.
        threshold: excess that raises an alarm, in these standard deviations.
    """

    middle_w: np.ndarray
    scatter_w: np.ndarray
    most: float
    threshold: float


def check_known(known_ns: np.ndarray, group_n: np.ndarray) -> None:
    """Refuse in-control frames that are too few, of a wrong shape, or without a number."""
    counts = np.unique(group_n, return_counts=True)[1] if len(group_n) else np.zeros(1, int)
    if known_ns.ndim != 2 or len(group_n) != len(known_ns) or counts.min() < LEAST_KNOWN:
        raise InvalidInput(
            f"{int(counts.min())} in-control frames of a condition are too few"
            if known_ns.ndim == 2 and len(group_n) == len(known_ns)
            else f"in-control features of shape {known_ns.shape} for {len(group_n)} frames",
            f"(frames, features), at least {LEAST_KNOWN} frames of each condition",
            "give more frames without drift",
        )
    if not np.isfinite(known_ns).any(axis=1).all():
        raise InvalidInput("an in-control frame has no number", "", "leave it out")


def fit(known_ns: np.ndarray, group_n: np.ndarray) -> InControl:
    """Return centre and scatter; correlations are pooled over the conditions."""
    from sklearn.covariance import ledoit_wolf

    parts = [known_ns[group_n == group] for group in np.unique(group_n)]
    placed = [_place(part) for part in parts]
    shifts_ns = np.concatenate(
        [_standardised(part, *place) for part, place in zip(parts, placed, strict=True)]
    )
    block_n = _blocks(group_n)
    mean_ns = np.stack([shifts_ns[block_n == block].mean(axis=0) for block in np.unique(block_n)])
    rest_ns = shifts_ns - mean_ns[np.unique(block_n, return_inverse=True)[1]]
    within_ss = ledoit_wolf(rest_ns, assume_centered=True)[0] * BLOCK / (BLOCK - 1)
    value_s, vector_ss = np.linalg.eigh(within_ss)
    whiten_ss = vector_ss / np.sqrt(np.maximum(value_s, 1e-6))
    # The mean of a block still contains a tenth of the variance of its single frames.
    shared_ss = ledoit_wolf(mean_ns @ whiten_ss, assume_centered=True)[0]
    value_s, vector_ss = np.linalg.eigh(shared_ss)
    wander_s = np.maximum(value_s - 1 / BLOCK, 0.0)
    middle_gs, scatter_gs = (np.stack(one) for one in zip(*placed, strict=True))
    return InControl(middle_gs, scatter_gs, whiten_ss @ vector_ss, wander_s)


def _place(part_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return median and scatter of each feature; NaN if no frame has it."""
    has_s = np.isfinite(part_ns).any(axis=0)
    middle_s, scatter_s = np.full((2, part_ns.shape[1]), np.nan)
    middle_s[has_s] = np.nanmedian(part_ns[:, has_s], axis=0)
    away_ns = np.abs(part_ns[:, has_s] - middle_s[has_s])
    scatter_s[has_s] = 1.4826 * np.nanmedian(away_ns, axis=0)
    return middle_s, np.where(scatter_s < 1e-3, LEAST_SCATTER, scatter_s)


def _standardised(new_ts: np.ndarray, middle_s: np.ndarray, scatter_s: np.ndarray) -> np.ndarray:
    return np.asarray(np.nan_to_num(np.clip((new_ts - middle_s) / scatter_s, -CLIP, CLIP)))


def calibrate(known_ns: np.ndarray, group_n: np.ndarray) -> ControlLimits:
    """Return the limits, from streams resampled from held-out in-control frames."""
    block_n, rng = _blocks(group_n), np.random.default_rng(SEED)
    parts = []
    for fold in range(FOLDS):
        held_n = block_n % FOLDS == fold
        if held_n.any():
            rest = fit(known_ns[~held_n], group_n[~held_n])
            parts.append((rest, rest.residuals(known_ns[held_n])[1], block_n[held_n]))
    length_n = np.concatenate([rest.lengths(far_ns) for rest, far_ns, _ in parts])
    most = max(float(np.quantile(length_n, HELD_IN)), LEAST_LIMIT)
    # Each stream is of one fold, and is compared with the frames of the other folds.
    windows_mtw = np.stack(
        [
            rest.windows(far_ns[_stream(places, rng)], most)[WINDOW - 1 :]
            for rest, far_ns, places in parts
            for _ in range(STREAMS // len(parts))
        ]
    )
    middle_w = windows_mtw.mean(axis=(0, 1))
    # Few long windows are independent, so none may have a smaller scatter than a shorter one.
    scatter_w = np.maximum.accumulate(windows_mtw.std(axis=(0, 1))) + 1e-9
    highest_m = ((windows_mtw - middle_w) / scatter_w).max(axis=(1, 2))
    # The share of streams without an alarm, if alarms are random with this rate.
    quiet = math.exp(-FALSE_ALARM_RATE * windows_mtw.shape[1])
    margin = 1 + MARGIN / math.sqrt(len(np.unique(block_n)))
    threshold = margin * float(np.quantile(highest_m, quiet))
    return ControlLimits(middle_w, scatter_w, most, max(threshold, LEAST_LIMIT))


def _blocks(group_n: np.ndarray) -> np.ndarray:
    """Return the block number of each frame; no block contains two conditions."""
    found_n, first = np.empty(len(group_n), int), 0
    for group in np.unique(group_n):
        mine = np.flatnonzero(group_n == group)
        count = len(mine) // BLOCK
        found_n[mine] = first + np.minimum(np.arange(len(mine)) // BLOCK, max(count - 1, 0))
        first += max(count, 1)
    return found_n


def _stream(block_n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the frames of a resampled stream, block after block."""
    chosen = rng.choice(np.unique(block_n), size=STREAM_FRAMES // BLOCK)
    return np.concatenate([np.flatnonzero(block_n == block) for block in chosen])[:STREAM_FRAMES]

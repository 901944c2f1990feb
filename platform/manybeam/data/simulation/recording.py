"""How an image becomes a recorded frame: scan, background, electrons, detector, electronics.

Axis letters: b frame of a batch, y row, x column.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from manybeam.data.simulation.optics import collected
from manybeam.data.simulation.structures import PEAK_PER_A2, Structure, smooth_noise

DIRT_PM = 350.0  # over which contamination is smooth
FLYBACK_SHARE = 0.08  # of a row, over which the distortion at its start decays
SLOW_STEP = 0.05  # of the random walk of rows, in deviations of their white jitter
SIGMAS = 4.0  # of jitter that fit into the margin
SETTLING = 1.5  # least decay length per size, so that the beam never runs backwards in a row

Draw = Mapping[str, float]


def record(
    image_byx: Tensor,
    q: Mapping[str, Tensor],
    draws: Sequence[Draw],
    shape: tuple[int, int],
    margin_px: int,
    atom_a2: float,
    streams: Sequence[Generator],
) -> Tensor:
    """Return recorded frames, (b, y, x) float32.

    Args:
        image_byx: scattered share of the beam on the canvas.
        q: quantities of each frame, (b,) each.
        draws: the same as plain numbers, one mapping for each frame.
        shape: rows and columns of a frame.
        margin_px: rows and columns of the canvas before the frame.
        atom_a2: scattering power of one carbon atom, in A^2.
        streams: one generator for each frame.
    """
    noise = _noise_maker(streams, shape)
    scanned = _scan(image_byx, q, shape, margin_px, streams).clamp_min(0)
    scanned = scanned + atom_a2 * PEAK_PER_A2 * _background(q, draws, shape, streams)
    if q["row_gain"].any():
        rows = torch.stack([_normal(rng, (shape[0], 1)) for rng in streams])
        scanned = scanned * (1 + _wide(q["row_gain"]) * rows).clamp_min(0)
    # At most all electrons are scattered: a thick crystal or a wide support saturates.
    arriving = -torch.expm1(-scanned * _wide(collected(q)))
    sent = _wide(q["dose_e_per_a2"]) * (_wide(q["pixel_size_pm"]) / 100) ** 2
    counts = noise(arriving * sent, _wide(q["readout_e"]))
    counts = _electronics(_afterglow(counts, q["afterglow_px"]), q)
    return (counts * _wide(q["gain"]) + _wide(q["offset"])).to(torch.float32)


def true_places(structure: Structure, draw: Draw, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return (y, x, atomic number) of the atoms in the frame, at their positions in the frame.

    Drift and fly-back move these positions. Row jitter is noise and does not enter the truth. The
    sample is at its nominal position at the middle of the scan.
    """
    y_px, x_px = (structure.position_n2 / draw["pixel_size_pm"]).T
    drift_px = draw["drift_pm_per_row"] / draw["pixel_size_pm"]
    drift_y = drift_px * math.cos(draw["drift_angle"])
    drift_x = drift_px * math.sin(draw["drift_angle"])
    middle = (shape[0] - 1) / 2
    seen_y = (y_px + drift_y * middle) / (1 + drift_y)
    seen_x = _before_flyback(x_px - drift_x * (seen_y - middle), draw, shape[1])
    inside = (
        (seen_y > -0.5) & (seen_y < shape[0] - 0.5) & (seen_x > -0.5) & (seen_x < shape[1] - 0.5)
    ) & structure.is_in_truth_n
    seen = np.stack([seen_y, seen_x, structure.number_n], axis=1)
    return np.asarray(seen[inside], np.float32)


def reach_pm(most: Draw, shape: tuple[int, int]) -> float:
    """Return how far the beam may go beyond the edges of the frame: drift, jitter, fly-back.

    Args:
        most: the largest magnitude of each quantity, and the least pixel size.
        shape: rows and columns of a frame.
    """
    drift = most["drift_pm_per_row"] * shape[0] / 2
    jitter = most["row_jitter_pm"] * (SIGMAS + SLOW_STEP * 2 * math.sqrt(shape[0]))
    flyback_px = most["flyback_pm"] / most["pixel_size_pm"]
    length = max(FLYBACK_SHARE * shape[1], SETTLING * flyback_px)
    return drift + jitter + most["flyback_pm"] * math.exp(-(shape[1] - 1) / length)


def _before_flyback(x_px: NDArray[np.floating], draw: Draw, columns: int) -> NDArray[np.floating]:
    """Return the columns at which the beam is at `x_px`, by the method of Newton.

    The distorted column is convex and rising, so the steps converge from the right.
    """
    flyback_px = draw["flyback_pm"] / draw["pixel_size_pm"]
    length = max(FLYBACK_SHARE * columns, SETTLING * flyback_px)
    column = x_px.copy()
    for _ in range(6):
        shift = flyback_px * np.exp(-np.clip(column, 0, None) / length)
        column = column - (column + shift - x_px) / (1 - shift / length * (column > 0))
    return np.asarray(column)


def _scan(
    image_byx: Tensor,
    q: Mapping[str, Tensor],
    shape: tuple[int, int],
    margin_px: int,
    streams: Sequence[Generator],
) -> Tensor:
    """Return the image at the true positions of the beam: jitter, fly-back and drift."""
    jitter = _wide(q["row_jitter_pm"] / q["pixel_size_pm"])
    drift_px = q["drift_pm_per_row"] / q["pixel_size_pm"]
    drift_y, drift_x = (
        _wide(drift_px * torch.cos(q["drift_angle"])),
        _wide(drift_px * torch.sin(q["drift_angle"])),
    )
    flyback = _wide(q["flyback_pm"] / q["pixel_size_pm"])
    row = torch.arange(shape[0], dtype=torch.float32)[None, :, None]
    late = row - (shape[0] - 1) / 2
    column = torch.arange(shape[1], dtype=torch.float32)[None, None, :]
    white_x, white_y, slow = _row_noise(streams, shape[0])
    decay = torch.exp(-column / (SETTLING * flyback).clamp_min(FLYBACK_SHARE * shape[1]))
    x = column + (white_x + slow) * jitter + flyback * decay + drift_x * late
    y = row + 0.3 * white_y * jitter + drift_y * late + 0 * column
    rows, columns = image_byx.shape[1:]
    at_x, at_y = ((x + margin_px) / (columns - 1) * 2 - 1, (y + margin_px) / (rows - 1) * 2 - 1)
    sampled = torch.nn.functional.grid_sample(
        image_byx[:, None],
        torch.stack([at_x, at_y], dim=-1),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=True,
    )
    return torch.as_tensor(sampled)[:, 0]


def _row_noise(streams: Sequence[Generator], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return white noise of each row in x and y, and a slow random walk, (b, rows, 1) each."""
    white = torch.stack([_normal(rng, (3, rows, 1)) for rng in streams])
    slow = white[:, 2].cumsum(1) * SLOW_STEP
    return white[:, 0], white[:, 1], slow - slow.mean(1, keepdim=True)


def _background(
    q: Mapping[str, Tensor],
    draws: Sequence[Draw],
    shape: tuple[int, int],
    streams: Sequence[Generator],
) -> Tensor:
    """Return uniform background and smooth contamination, in peaks of one atom."""
    dirt = np.zeros((len(draws), *shape), np.float32)
    for field, draw, rng in zip(dirt, draws, streams, strict=True):
        if draw["contamination"]:
            smooth = smooth_noise(shape, DIRT_PM / draw["pixel_size_pm"], rng)
            field[:] = np.clip(smooth + 1.5, 0, None)
    return _wide(q["background"]) + _wide(q["contamination"]) * torch.from_numpy(dirt)


def _noise_maker(
    streams: Sequence[Generator], shape: tuple[int, int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that counts electrons, and adds readout noise, frame by frame.

    Its random streams are drawn here, before anything else draws from the generator of a frame.
    """
    seeds = [int(rng.integers(2**62)) for rng in streams]

    def noise(expected_byx: Tensor, readout_b11: Tensor) -> Tensor:
        counted = torch.empty_like(expected_byx)
        for b, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            readout = torch.randn(shape, generator=generator) * readout_b11[b]
            counted[b] = torch.poisson(expected_byx[b], generator=generator) + readout
        return counted

    return noise


def _afterglow(counts_byx: Tensor, length_b: Tensor) -> Tensor:
    """Return counts with the tail of a scintillator: causal, exponential, along each row.

    The beam waits beside the row before it starts. The sample there is like the first pixels of the
    row, so the scintillator already glows. Otherwise every row would begin dark.
    """
    if not length_b.any():
        return counts_byx
    tailed = counts_byx.clone()
    for b in torch.nonzero(length_b).ravel().tolist():
        keep = math.exp(-1 / float(length_b[b]))
        counts_yx = counts_byx[b].numpy()
        share_x = keep ** np.arange(max(counts_yx.shape[1] - 1, 1))
        before_y = counts_yx[:, -len(share_x) :] @ (share_x / share_x.sum())
        start_y = (keep * before_y).astype(counts_yx.dtype)
        tailed[b] = torch.from_numpy(_decaying(counts_yx, keep, start_y))
    return tailed


def _decaying(
    counts_yx: NDArray[np.float32], keep: float, start_y: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return each row after the recursion out = (1 - keep) in + keep (out before).

    It is `scipy.signal.lfilter`, whose package takes a second to import. Columns are contiguous, so
    that one step over all rows is one pass over memory.
    """
    column_xy = counts_yx.T.astype(np.float64, order="C")
    tail_y = start_y.astype(np.float64)
    for column_y in column_xy:
        column_y *= 1 - keep
        column_y += tail_y
        np.multiply(column_y, keep, out=tail_y)
    return column_xy.T


def _electronics(counts_byx: Tensor, q: Mapping[str, Tensor]) -> Tensor:
    """Return counts after saturation and gamma, over the range of each frame."""
    gamma, range_share = _wide(q["gamma"]), _wide(q["saturation"])
    if bool((gamma == 1).all()) and bool((range_share == 1).all()):
        return counts_byx
    low, high = counts_byx.amin((1, 2), keepdim=True), counts_byx.amax((1, 2), keepdim=True)
    span = (high - low).clamp_min(1e-9)
    return ((counts_byx - low) / span / range_share).clamp(0, 1) ** gamma * span + low


def _normal(rng: Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _wide(value_b: Tensor) -> Tensor:
    return value_b.float()[:, None, None]

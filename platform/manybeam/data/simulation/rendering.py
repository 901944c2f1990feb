"""From atoms to an image: the object summed in Fourier space, seen through the probe.

An atom may lie between pixels. It is spread over a finer grid as a Gaussian, which is divided out
again after the transform. A large canvas is made in tiles, so that memory does not grow with the
atoms, and with the canvas only by the image.
Axis letters: b frame of a batch, k atom, y row, x column of the canvas.

Source: fast Gaussian gridding after Greengard and Lee, SIAM Review 46, 443 (2004).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

from manybeam.data.simulation.optics import atom_blur, transfer
from manybeam.data.simulation.scenes import Ground, Scene
from manybeam.data.simulation.structures import CARBON_A2, EXPONENT, Structure

FINER = 1.5  # of the grid that atoms are spread over; the error of SPREAD points a side is 1e-5
SPREAD = 8
CHUNK = 20_000  # atoms spread at once

Array = NDArray[np.floating]
Quantities = Mapping[str, Tensor]
Patch = tuple[range, range]


@dataclass(frozen=True)
class Tiling:
    """How large canvases are divided.

    Attributes:
        whole_px: side of the largest square that is made in one piece.
        core_px: longest side of the part of a tile that goes into the image.
        reach_px: radius of the probe, in tiles and on canvases of more than twice that size.
    """

    whole_px: int = 1400
    core_px: int = 1536
    reach_px: int = 512


def image(
    scenes: Sequence[Scene],
    grounds: Sequence[Ground],
    q: Quantities,
    angle: Tensor,
    tiling: Tiling | None = None,
) -> Tensor:
    """Return the share of the beam that is scattered, times the area of a pixel, (b, y, x).

    Args:
        scenes: the sample in each frame.
        grounds: canvas and pixel of each; all of one canvas.
        q: quantities of each frame, (b,) each, by name and in their units.
        angle: azimuths of astigmatism, coma and trefoil, (b, 3), in radians.
        tiling: how large canvases are made.
    """
    tiling = tiling or Tiling()
    canvas = grounds[0].canvas
    pairs = list(zip(scenes, grounds, strict=True))
    if canvas[0] * canvas[1] > tiling.whole_px**2:
        made = [
            _in_tiles(*pair, _only(q, b), angle[b : b + 1], tiling) for b, pair in enumerate(pairs)
        ]
        return torch.stack(made)
    everywhere = (range(canvas[0]), range(canvas[1]))
    spectrum = [_object(*pair, _only(q, b), everywhere) for b, pair in enumerate(pairs)]
    probe = _probe(q, angle, canvas, tiling)
    return torch.as_tensor(torch.fft.irfft2(torch.stack(spectrum) * probe, s=canvas))


def structure_factor(place_k2: Array, power_k: Array, canvas: tuple[int, int]) -> Tensor:
    """Return sum_k power_k exp(-2 pi i f r_k), (y, x // 2 + 1).

    Each atom is spread as a Gaussian over a finer grid. Its width balances the two errors of the
    grid: what it cuts off and what it folds back.

    Args:
        place_k2: (y, x) of each atom on the canvas, in pixels; it wraps around.
        power_k: signal of each.
        canvas: rows and columns.
    """
    rows, columns = (scipy.fft.next_fast_len(int(FINER * side), real=True) for side in canvas)
    finer = np.array([rows, columns]) / canvas
    variance = SPREAD * finer / (2 * math.pi * (finer - 0.5))
    grid = np.zeros(rows * columns)
    for low in range(0, len(power_k), CHUNK):
        fine_k2 = place_k2[low : low + CHUNK] * finer
        weight_ky, row_ky = _spread(fine_k2[:, 0], variance[0], rows)
        weight_kx, column_kx = _spread(fine_k2[:, 1], variance[1], columns)
        weight = (weight_ky * power_k[low : low + CHUNK, None])[:, :, None] * weight_kx[:, None]
        index = row_ky[:, :, None] * columns + column_kx[:, None]
        grid += np.bincount(index.ravel(), weight.ravel(), rows * columns)
    fine = torch.fft.rfft2(torch.from_numpy(grid.astype(np.float32)).view(rows, columns))
    half, width = (canvas[0] + 1) // 2, canvas[1] // 2 + 1
    kept = torch.cat([fine[:half, :width], fine[rows - (canvas[0] - half) :, :width]])
    lost_y = _carried(torch.fft.fftfreq(canvas[0]) * canvas[0] / rows, variance[0])
    lost_x = _carried(torch.fft.rfftfreq(canvas[1]) * canvas[1] / columns, variance[1])
    return kept / (lost_y[:, None] * lost_x)


def _only(q: Quantities, b: int) -> Quantities:
    return {name: value[b : b + 1] for name, value in q.items()}


def _spread(place_k: Array, variance: float, side: int) -> tuple[Array, NDArray[np.int_]]:
    """Return the weights of a Gaussian on the points near each place, and the points."""
    nearest = np.rint(place_k).astype(int)
    point = nearest[:, None] + np.arange(-SPREAD, SPREAD + 1)
    weight = np.exp(-((point - place_k[:, None]) ** 2) / (2 * variance))
    return weight / math.sqrt(2 * math.pi * variance), point % side


def _carried(frequency: Tensor, variance: float) -> Tensor:
    return torch.exp(-2 * math.pi**2 * variance * frequency**2)


def _object(one: Scene, ground: Ground, q: Quantities, patch: Patch) -> Tensor:
    """Return the spectrum of the sample in a patch of a canvas that repeats beyond its edges.

    Only atoms of the truth move or lie out of focus; loose atoms and the support stay sharp.
    """
    sides = len(patch[0]), len(patch[1])
    spectrum = structure_factor(*_near(one.atoms, ground, patch), sides)
    if q["atom_width_pm"].any():
        spectrum = spectrum * atom_blur(q, sides)[0]
    if one.loose is not None:
        spectrum = spectrum + structure_factor(*_near(one.loose, ground, patch), sides)
    if one.support_yx is not None:
        part_yx = one.support_yx.take(patch[0], 0, mode="wrap").take(patch[1], 1, mode="wrap")
        spectrum = spectrum + torch.fft.rfft2(torch.from_numpy(part_yx))
    return spectrum


def _near(atoms: Structure, ground: Ground, patch: Patch) -> tuple[Array, Array]:
    """Return places in a patch and powers of the atoms in it."""
    place_k2 = (atoms.position_n2 / ground.pixel_size_pm + ground.margin_px) % ground.canvas
    power_k = np.asarray(CARBON_A2 * (atoms.number_n / 6) ** EXPONENT * atoms.signal_n)
    low, high = np.array([(part.start, part.stop) for part in patch]).T
    copies = [
        place_k2 + np.array(ground.canvas) * (i, j) - low
        for i in _repeats(patch[0], ground.canvas[0])
        for j in _repeats(patch[1], ground.canvas[1])
    ]
    inside = [((one >= 0) & (one < high - low)).all(axis=1) for one in copies]
    places = [one[kept] for one, kept in zip(copies, inside, strict=True)]
    return np.concatenate(places), np.concatenate([power_k[kept] for kept in inside])


def _repeats(part: range, side: int) -> range:
    """Return the shifts of the canvas, in sides, that fill a part."""
    return range(math.floor(part.start / side), math.ceil(part.stop / side))


def _probe(q: Quantities, angle: Tensor, canvas: tuple[int, int], tiling: Tiling) -> Tensor:
    if min(canvas) <= 2 * tiling.reach_px:
        return transfer(q, angle, canvas)
    return torch.as_tensor(torch.fft.rfft2(_widened(_kernel(q, angle, tiling), canvas)))


def _kernel(q: Quantities, angle: Tensor, tiling: Tiling) -> Tensor:
    """Return the probe in space, (b, y, x), on a small canvas; its centre is at the origin."""
    sides = (2 * tiling.reach_px, 2 * tiling.reach_px)
    return torch.as_tensor(torch.fft.irfft2(transfer(q, angle, sides), s=sides))


def _widened(kernel_byx: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return a probe on a larger canvas."""
    side = kernel_byx.shape[-1]
    wide = torch.zeros((len(kernel_byx), *canvas))
    wide[:, :side, :side] = torch.roll(kernel_byx, (side // 2, side // 2), (1, 2))
    return torch.roll(wide, (-(side // 2), -(side // 2)), (1, 2))


def _in_tiles(one: Scene, ground: Ground, q: Quantities, angle: Tensor, tiling: Tiling) -> Tensor:
    """Return the image of one frame; each tile uses everything within reach of its core."""
    made, kernel = torch.zeros(ground.canvas), _kernel(q, angle, tiling)
    reach = tiling.reach_px
    for rows in _cores(ground.canvas[0], tiling.core_px):
        for columns in _cores(ground.canvas[1], tiling.core_px):
            patch = _around(rows, reach), _around(columns, reach)
            sides = len(patch[0]), len(patch[1])
            spectrum = _object(one, ground, q, patch) * torch.fft.rfft2(_widened(kernel, sides))[0]
            seen = torch.fft.irfft2(spectrum, s=sides)[reach:, reach:]
            core = seen[: len(rows), : len(columns)]
            made[rows.start : rows.stop, columns.start : columns.stop] = core
    return made


def _cores(side: int, core_px: int) -> Iterator[range]:
    """Yield equal parts of a side of the canvas, none longer than `core_px`."""
    count = math.ceil(side / core_px)
    edges = [i * side // count for i in range(count + 1)]
    yield from itertools.starmap(range, itertools.pairwise(edges))


def _around(core: range, reach: int) -> range:
    side = scipy.fft.next_fast_len(len(core) + 2 * reach, real=True)
    return range(core.start - reach, core.start - reach + side)

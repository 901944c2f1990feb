"""The pixel size of a frame, inferred from the power spectrum of a crystal with a known lattice.

Axis letters: y row, x column, r radius, t angle, s spot of the reciprocal lattice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates, maximum_filter

from manybeam.errors import MissingPixelSize
from manybeam.spec.imaging import Sample

TILE_PX, LARGE_TILE_PX = 256, 512  # spectra of tiles are averaged, which reduces noise
SMALLEST_PM, LARGEST_PM = 3.0, 80.0  # pixel sizes searched
LEAST_PERIODS = 3.0  # of the longest spacing, in a tile
HIGHEST = 0.46  # cycles per pixel; beyond lie the corners and the aliases
STEP = 0.008  # of the sizes searched, relative
ANGLE_COUNT = 360  # over half a turn
REACH = 0.12  # largest distance of a spot from the undistorted lattice, per frequency
CLEAR = 1.8  # least height of a spot above its ring, natural logarithm
LEAST_CONTRAST = 8.0
STRAIN = 0.012  # relative error of the spacing of a real sheet: strain, temperature, tilt
QUARTER_TO_MEDIAN = 2.41  # of speckle, whose power is distributed exponentially


@dataclass(frozen=True)
class Cell:
    """The two-dimensional cell of a crystal seen along the beam.

    Attributes:
        name: of the crystal.
        a_pm: first edge.
        b_pm: second edge.
        angle_deg: angle between the edges.
        shells: number of families of reflections that are strong enough.
    """

    name: str
    a_pm: float
    b_pm: float
    angle_deg: float
    shells: int = 2

    def spots(self) -> list[tuple[float, float]]:
        """Return (spacing in pm, direction in radians) of each reflection of one half-plane.

        Example:
            >>> sorted(round(spacing) for spacing, _ in CELLS["graphene"].spots())
            [123, 123, 123, 213, 213, 213]
        """
        gamma = math.radians(self.angle_deg)
        edges = np.array(
            [[self.a_pm, 0], [self.b_pm * math.cos(gamma), self.b_pm * math.sin(gamma)]]
        )
        reciprocal = np.linalg.inv(edges).T
        orders = [(h, k) for h in range(4) for k in range(-3, 4) if h > 0 or k > 0]
        found = [(1 / np.hypot(*g), math.atan2(g[1], g[0])) for g in np.array(orders) @ reciprocal]
        spacings = sorted({round(spacing, 3) for spacing, _ in found}, reverse=True)
        return [spot for spot in found if round(spot[0], 3) in spacings[: self.shells]]


CELLS: Mapping[str, Cell] = {
    "graphene": Cell("graphene", 246.0, 246.0, 120.0),
    "mos2": Cell("MoS2", 316.0, 316.0, 120.0),
}
SEEN_ALONG = (0, 0, 1)  # the direction of their crystals along which these cells are seen
LATTICES = frozenset({"lsmo", "grain_boundary", "crystal"})  # structures with other spots


@dataclass(frozen=True)
class InferredPixelSize:
    """A pixel size inferred from a lattice.

    Attributes:
        pixel_size_pm: edge of a pixel.
        error_pm: its standard error, with those of strain, scan and drift.
        contrast: height of the spots above the rest of the search; at least 8.
        spot_count: number of spots that were measured.
        lattice: name of the crystal.
    """

    pixel_size_pm: float
    error_pm: float
    contrast: float
    spot_count: int
    lattice: str

    def __str__(self) -> str:
        return (
            f"{self.pixel_size_pm:.3g} +- {self.error_pm:.2g} pm a pixel, inferred from "
            f"{self.spot_count} spots of the {self.lattice} lattice"
        )


def cell_of(sample: Sample) -> Cell | None:
    """Return the cell that the structure or the material of a sample names.

    None if it names none or two, or if the lattice looks different along its zone axis. A
    perovskite has no cell here: its columns differ, so that the spots of {110} are the strong ones.
    Taken for {100}, they would give a size that is sqrt 2 too large.
    """
    u, v, w = sample.zone_axis or SEEN_ALONG
    if sample.structure in LATTICES or not (u == v == 0 and w != 0):
        return None
    material = sample.material.lower()
    named = {key for key in CELLS if key == sample.structure or key in material}
    return CELLS[named.pop()] if len(named) == 1 else None


def infer_pixel_size(frame_yx: np.ndarray, cell: Cell | None) -> InferredPixelSize:
    """Return the pixel size at which the spots of a lattice fall on those of the power spectrum.

    Size and direction are searched together with all reflections, so that a second order is not
    taken for a first. Each spot is then located between the points of the spectrum, and a map with
    size, rotation and stretch is fitted to all of them.

    Args:
        frame_yx: one frame, at least 32 px a side; below about seven periods of the longest
            spacing (in the frame, or in 512 px) orders can be confused.
        cell: the lattice of the crystal, or None if it is unknown.

    Raises:
        MissingPixelSize: no lattice is known, or none shows in the frame.
    """
    if cell is None or min(frame_yx.shape) < 32:
        raise _missing("no lattice is known for its crystal")
    power_yx = _flat_log_power(np.asarray(frame_yx, np.float64))
    size_pm, angle, contrast = _search(power_yx, cell)
    if contrast < LEAST_CONTRAST:
        raise _missing(f"no {cell.name} lattice shows in its power spectrum")
    expected_s2, found_s2, error_s = _placed(power_yx, cell, size_pm, angle)
    if len(found_s2) < 3:
        raise _missing(f"the spots of {cell.name} in its power spectrum are too faint")
    change, error = _fit(expected_s2, found_s2, error_s)
    size_pm *= math.exp(change)
    return InferredPixelSize(size_pm, size_pm * error, contrast, len(found_s2), cell.name)


def _missing(what: str) -> MissingPixelSize:
    return MissingPixelSize(
        f"the pixel size is unknown and cannot be inferred: {what}",
        "positions and distances of atoms are in picometres",
        "pass --pixel-size-pm, or a condition whose sample is a known crystal",
    )


def _flat_log_power(frame_yx: np.ndarray) -> np.ndarray:
    """Return the log power over the level of its ring, zero frequency in the middle.

    Tiles are padded to twice their side, so that spots can be placed between frequencies.
    """
    side = min(*frame_yx.shape)
    side = min(side, max(TILE_PX, min(side // 2, LARGE_TILE_PX))) // 2 * 2
    tops, lefts = (_starts(n, side) for n in frame_yx.shape)
    tiles = [frame_yx[top : top + side, left : left + side] for top in tops for left in lefts]
    seen_yx = fft.fftshift(np.mean([_power(tile) for tile in tiles], axis=0))
    index = np.arange(2 * side) - side
    ring_yx = np.hypot(index[:, None], index[None]).astype(int) // 2
    order = np.argsort(ring_yx, axis=None, kind="stable")
    edges = np.searchsorted(ring_yx.ravel()[order], np.arange(ring_yx.max() + 2))
    values = seen_yx.ravel()[order]
    # The lower quartile: at low frequency the spots themselves fill half of a ring.
    quarters = np.array([np.quantile(values[a:b], 0.25) for a, b in pairwise(edges)])
    level_yx = QUARTER_TO_MEDIAN * quarters[ring_yx] + 1e-300
    # log(1 + p): the deep valleys of a speckled spectrum carry no information.
    return np.asarray(np.log1p(seen_yx / level_yx))


def _starts(length: int, side: int) -> np.ndarray:
    """Return the starts of tiles that overlap by half."""
    return np.unique(np.linspace(0, length - side, max(1, 2 * length // side - 1)).astype(int))


def _power(tile_yx: np.ndarray) -> np.ndarray:
    """Return the power of one tile without its mean slope."""
    side = tile_yx.shape[0]
    window, ramp = np.hanning(side + 2)[1:-1], np.linspace(-1, 1, side)
    slope_y, slope_x = (tile_yx.mean(axis) @ ramp / (ramp @ ramp) for axis in (1, 0))
    level_yx = tile_yx - tile_yx.mean() - slope_y * ramp[:, None] - slope_x * ramp[None]
    spectrum = fft.fft2(level_yx * window[:, None] * window[None], (2 * side, 2 * side))
    return np.asarray(np.abs(spectrum) ** 2)


def _search(power_yx: np.ndarray, cell: Cell) -> tuple[float, float, float]:
    """Return size (pm) and direction where the spots are brightest together, and how clearly."""
    spots = cell.spots()
    longest = max(spacing for spacing, _ in spots)
    low = max(SMALLEST_PM, LEAST_PERIODS * longest / (power_yx.shape[0] // 2))
    high = max(min(LARGEST_PM, HIGHEST * longest), low * 1.1)
    sizes_r = np.exp(np.arange(math.log(low), math.log(high), STEP))
    angles_t = np.arange(ANGLE_COUNT) * math.pi / ANGLE_COUNT
    total_rt, weight_r = np.zeros((len(sizes_r), ANGLE_COUNT)), np.zeros(len(sizes_r))
    broad_yx = maximum_filter(power_yx, 3)
    for spacing, direction in spots:
        seen_r = sizes_r / spacing <= HIGHEST
        # The first order counts most, so that it is not taken for a second one.
        weight = spacing / longest
        heights_rt = _at(broad_yx, sizes_r[seen_r] / spacing, angles_t + direction)
        total_rt[seen_r] += weight * heights_rt
        weight_r += seen_r * weight**2
    height_rt = total_rt / np.sqrt(weight_r)[:, None]
    height_rt = height_rt - np.median(height_rt, axis=1, keepdims=True)
    r, t = np.unravel_index(np.argmax(height_rt), height_rt.shape)
    scatter = 1.4826 * float(np.median(np.abs(height_rt))) or 1.0
    return float(sizes_r[r]), float(angles_t[t]), float(height_rt[r, t] / scatter)


def _at(power_yx: np.ndarray, frequency_r: np.ndarray, angle_t: np.ndarray) -> np.ndarray:
    """Return the log power at frequencies (cycles per pixel) and angles, (r, t)."""
    side = power_yx.shape[0]
    y_rt = frequency_r[:, None] * np.sin(angle_t)[None] * side + side // 2
    x_rt = frequency_r[:, None] * np.cos(angle_t)[None] * side + side // 2
    return np.asarray(map_coordinates(power_yx, [y_rt, x_rt], order=1, mode="nearest"))


def _placed(
    power_yx: np.ndarray, cell: Cell, size_pm: float, angle: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return expected and found positions of spots, (s, 2) in points, and their errors, (s,)."""
    side, expected, found, error = power_yx.shape[0], [], [], []
    for spacing, direction in cell.spots():
        radius, turn = size_pm / spacing * side, angle + direction
        place_2 = np.array([radius * math.sin(turn), radius * math.cos(turn)])
        peak = _peak(power_yx, place_2) if radius / side <= HIGHEST else None
        if peak is not None:
            expected.append(place_2)
            found.append(peak[0])
            error.append(0.7 * math.exp(-peak[1] / 2) + 0.05)
    return np.array(expected), np.array(found), np.array(error)


def _peak(power_yx: np.ndarray, place_2: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return position from the middle and height of the nearest peak; None if it is not clear."""
    reach = max(3, round(REACH * float(np.hypot(*place_2))))
    corner = np.rint(place_2 + power_yx.shape[0] // 2).astype(int) - reach
    near_yx = power_yx[corner[0] :, corner[1] :][: 2 * reach + 1, : 2 * reach + 1]
    y, x = np.unravel_index(np.argmax(near_yx), near_yx.shape)
    is_inside = 0 < y < near_yx.shape[0] - 1 and 0 < x < near_yx.shape[1] - 1
    if near_yx[y, x] < CLEAR or not is_inside:
        return None
    part = (_summit(near_yx[y - 1 : y + 2, x]), _summit(near_yx[y, x - 1 : x + 2]))
    place = corner + np.array([y, x]) + np.array(part) - power_yx.shape[0] // 2
    return place, float(near_yx[y, x])


def _summit(three: np.ndarray) -> float:
    """Return the position of the peak of a parabola through three points, from the middle one."""
    curve = three[0] - 2 * three[1] + three[2]
    return float(0.5 * (three[0] - three[2]) / curve) if curve < 0 else 0.0


def _fit(expected_s2: np.ndarray, found_s2: np.ndarray, error_s: np.ndarray) -> tuple[float, float]:
    """Return the relative change of the pixel size, and its standard error.

    The linear map from the expected spots to the found ones is a rotation, a size, and a stretch by
    scan, drift or strain. The size is the root of its determinant, which a shear does not change.
    Half of the stretch counts as an error, because it is unknown which of the two axes is right.
    """
    root_s = 1 / error_s[:, None]
    normal = np.linalg.inv((expected_s2 * root_s).T @ (expected_s2 * root_s))
    map_22 = normal @ (expected_s2 * root_s).T @ (found_s2 * root_s)
    misfit = float(np.sum(((found_s2 - expected_s2 @ map_22) * root_s) ** 2))
    misfit /= max(2 * len(error_s) - 4, 1)
    large, small = np.linalg.svd(map_22, compute_uv=False)
    stretch = math.log(large / small) / 2
    placing = 0.25 * float(np.trace(normal)) * max(misfit, 1.0)
    return math.log(large * small) / 2, math.sqrt(placing + stretch**2 + STRAIN**2)

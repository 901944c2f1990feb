"""Columns of atoms in one frame: a crystal over the frame, its atoms, and grain boundaries.

One row of truth is one column. Its class is the heaviest element in it: Mo or V, S for the one or
two of a sulphur column, La if a column of La and Sr has any La, Mn for the column that it shares
with oxygen. Its signal is the sum over its atoms, so that a lost sulphur atom halves it and a
column grows in proportion to the thickness. Channelling and beam spread are not part of it.
Axis letters: n column of the frame, c column of the plane cell.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from manybeam.data.simulation.crystals import Columns, Shares
from manybeam.data.simulation.structures import EXPONENT, MARGIN_PM, RIPPLE_PM, Structure

FAINTEST = 0.1  # least signal in the truth, as a share of the strongest kind of column
CROWDED = 0.7  # least distance of columns at a boundary, as a share of that in a grain
Array = NDArray[np.floating]


def grown(columns: Columns, strain: float, side_pm: tuple[float, float], rng: Generator) -> "Grown":
    """Return a crystal over frame and margin, with random rotation, shift and strain.

    Args:
        columns: view of the crystal along the beam.
        strain: standard deviation of the strain of the lattice.
        side_pm: height and width of the frame, in pm.
        rng: of this frame.
    """
    angle, origin = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5, 2) @ columns.plane_pm
    stretch = (1 + rng.normal(0, strain)) * (1 + rng.normal(0, strain, 2))
    return laid(columns, angle, origin + np.array(side_pm) / 2, side_pm, stretch)


def grown_boundary(
    columns: Columns, draw: Mapping[str, float], side_pm: tuple[float, float], rng: Generator
) -> "Grown":
    """Return two grains that meet near the middle of the frame, rotated by `tilt_deg`.

    The boundary is symmetric: it halves the angle between the grains. If columns of both grains
    are nearer than 0.7 of their distance in a grain, one of them is left out.

    Args:
        columns: the crystal of both grains.
        draw: `tilt_deg` and `strain` of this frame.
        side_pm: height and width of the frame, in pm.
        rng: of this frame.
    """
    middle = np.array(side_pm) * (0.5 + rng.uniform(-0.2, 0.2, 2))
    angle, half = rng.uniform(0, 2 * math.pi), math.radians(draw["tilt_deg"]) / 2
    stretch = (1 + rng.normal(0, draw["strain"])) * np.ones(2)
    normal = np.array([math.cos(angle), math.sin(angle)])
    left = laid(columns, angle - half, middle, side_pm, stretch)
    shift = rng.uniform(-0.5, 0.5, 2) @ columns.plane_pm
    right = laid(columns, angle + half, middle + shift, side_pm, stretch)
    left = _kept(left, (left[0] - middle) @ normal < 0)
    right = _kept(right, (right[0] - middle) @ normal >= 0)
    if not len(left[0]) or not len(right[0]):
        return left if len(left[0]) else right
    far_n, _ = cKDTree(left[0]).query(right[0])
    right = _kept(right, far_n > CROWDED * _nearest(columns))
    return np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])


def laid(
    columns: Columns,
    angle: float,
    origin_pm: Array,
    side_pm: tuple[float, float],
    stretch: Array | float = 1.0,
) -> "Grown":
    """Return the positions (y, x) of all columns over frame and margin, and the kind of each.

    Args:
        columns: view of the crystal along the beam.
        angle: of the rotation, in radians.
        origin_pm: (y, x) of the corner of one cell.
        side_pm: height and width of the frame, in pm.
        stretch: factor of y and x.
    """
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    plane = columns.plane_pm @ turn * stretch
    within = columns.place_c2 @ turn * stretch
    low = np.full(2, -MARGIN_PM)
    high = np.array(side_pm) + MARGIN_PM
    corners = np.array([low, high, [low[0], high[1]], [high[0], low[1]]]) - origin_pm
    index = corners @ np.linalg.inv(plane)
    first = np.floor(index.min(axis=0)).astype(int) - 1
    last = np.ceil(index.max(axis=0)).astype(int) + 2
    i, j = np.mgrid[first[0] : last[0], first[1] : last[1]]
    cells = np.stack([i.ravel(), j.ravel()], axis=1) @ plane + origin_pm
    place_n2 = (cells[:, None] + within).reshape(-1, 2)
    kind_n = np.tile(np.arange(len(within)), len(cells))
    return _kept((place_n2, kind_n), ((place_n2 > low) & (place_n2 < high)).all(axis=1))


def occupied(
    grown_n: "Grown", columns: Columns, shares: Sequence[Shares], repeats: int, rng: Generator
) -> Structure:
    """Return columns with their atoms drawn: heaviest element, signal, membership in the truth.

    The atom of a site is drawn anew for each site of each column in each period. So mixed columns
    scatter about their mean, less in thicker crystals. Kinds of columns with a tenth of the
    strongest signal or less, such as pure oxygen beside La, are in the frame but not in the truth.
    A column without atoms is left out.

    Args:
        grown_n: positions, and the kind of each.
        columns: view of the crystal along the beam.
        shares: of each site of the crystal.
        repeats: cells along the beam.
        rng: of this frame.
    """
    place_n2, kind_n = grown_n
    power_n, number_n = np.zeros(len(kind_n)), np.zeros(len(kind_n))
    for kind, sites in enumerate(columns.sites):
        mine_n = np.flatnonzero(kind_n == kind)
        for site in sites:
            for number, count_n in _drawn(shares[site], repeats, len(mine_n), rng):
                power_n[mine_n] += count_n * number**EXPONENT
                there_n = np.where(count_n > 0, number, 0)
                number_n[mine_n] = np.maximum(number_n[mine_n], there_n)
    means_c = np.array([sum(_mean(shares[site]) for site in sites) for sites in columns.sites])
    is_in_truth_n = (means_c > FAINTEST * means_c.max())[kind_n]
    place_n2 = place_n2 + rng.normal(0, RIPPLE_PM / math.sqrt(repeats), place_n2.shape)
    there = number_n > 0
    signal_n = power_n[there] / number_n[there] ** EXPONENT
    return Structure(place_n2[there], number_n[there], signal_n, is_in_truth_n[there])


def thinned(shares: Sequence[Shares], vacancy_fraction: float) -> list[Shares]:
    """Return the shares of sites after atoms are removed."""
    return [{z: p * (1 - vacancy_fraction) for z, p in one.items()} for one in shares]


Grown = tuple[Array, NDArray[np.int_]]


def _kept(grown_n: Grown, keep_n: NDArray[np.bool_]) -> Grown:
    return grown_n[0][keep_n], grown_n[1][keep_n]


def _nearest(columns: Columns) -> float:
    """Return the least distance between two columns of a crystal, in pm."""
    steps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ columns.plane_pm
    every = (columns.place_c2[:, None] + steps).reshape(-1, 2)
    far_n2, _ = cKDTree(every).query(columns.place_c2, k=2)
    return float(far_n2[:, 1].min())


def _drawn(
    shares: Shares, repeats: int, count: int, rng: Generator
) -> list[tuple[int, NDArray[np.int_]]]:
    """Return the number of atoms of each element on one site of each column."""
    numbers, chances = list(shares), list(shares.values())
    if len(numbers) == 1 and chances[0] >= 1:
        return [(numbers[0], np.full(count, repeats))]
    chances = [*chances, max(0.0, 1 - sum(chances))]
    drawn = rng.multinomial(repeats, np.array(chances) / sum(chances), count)
    return [(number, drawn[:, i]) for i, number in enumerate(numbers)]


def _mean(shares: Shares) -> float:
    return math.fsum(chance * number**EXPONENT for number, chance in shares.items())

"""Columns of atoms in one frame: a crystal grown over it, what stands in each column, boundaries.

One row of truth is one column. Its class is the heaviest element in it: Mo or V, S for the one or
two of a sulphur column, La wherever a column of La and Sr holds any La, Mn for the column it shares
with oxygen. Its signal is the sum over its atoms, so that a lost sulphur atom halves it and a
column grows with thickness in proportion; channelling and the spread of the beam are not in it.
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

FAINTEST = 0.1  # share of the strongest kind of column below which one is in no truth
CROWDED = 0.7  # share of the nearest distance in a grain below which a boundary keeps one column
Array = NDArray[np.floating]


def grown(columns: Columns, strain: float, side_pm: tuple[float, float], rng: Generator) -> "Grown":
    """Return a crystal over frame and margin, turned, moved and strained at random.

    Args:
        columns: the crystal as the beam sees it.
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
    """Return two grains that meet near the middle of the frame, turned by `tilt_deg`.

    The boundary is symmetric: it halves the angle between the grains. Where two columns of the two
    would stand nearer than 0.7 of their distance in a grain, one of them is left out.

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
    """Return the places (y, x) of all columns over frame and margin, and which each is.

    Args:
        columns: the crystal as the beam sees it.
        angle: by which it is turned, in radians.
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
    """Return columns with their atoms drawn: heaviest element, signal, and whether it is told.

    Which atom stands on a site is drawn anew for each site of each column in each repeat, so that
    mixed columns scatter about their mean, the less the thicker the crystal. Kinds of columns that
    would show a tenth of the strongest or less, such as pure oxygen beside La, are in the frame but
    not in the truth. A column without atoms is gone.

    Args:
        grown_n: places, and the kind of each.
        columns: the crystal as the beam sees it.
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
    told_n = (means_c > FAINTEST * means_c.max())[kind_n]
    place_n2 = place_n2 + rng.normal(0, RIPPLE_PM / math.sqrt(repeats), place_n2.shape)
    there = number_n > 0
    signal_n = power_n[there] / number_n[there] ** EXPONENT
    return Structure(place_n2[there], number_n[there], signal_n, told_n[there])


def thinned(shares: Sequence[Shares], vacancy_fraction: float) -> list[Shares]:
    """Return the shares of sites from each of which atoms are missing."""
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
    """Return how many atoms of each element stand on one site of each column."""
    numbers, chances = list(shares), list(shares.values())
    if len(numbers) == 1 and chances[0] >= 1:
        return [(numbers[0], np.full(count, repeats))]
    chances = [*chances, max(0.0, 1 - sum(chances))]
    drawn = rng.multinomial(repeats, np.array(chances) / sum(chances), count)
    return [(number, drawn[:, i]) for i, number in enumerate(numbers)]


def _mean(shares: Shares) -> float:
    return math.fsum(chance * number**EXPONENT for number, chance in shares.items())

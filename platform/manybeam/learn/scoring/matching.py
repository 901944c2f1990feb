"""Pairs of found and true atoms, one to one, and the radius within which they may lie.

Axis letters: n atom, p candidate pair, 2 the pair (y, x).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from manybeam.errors import MissingPixelSize

Array = NDArray[np.floating]
Index = NDArray[np.int64]
Flag = NDArray[np.bool_]

NEIGHBOUR_SHARE = 0.35  # match radius per nearest-neighbour distance
FALLBACK_RADIUS_PM = 50.0  # match radius if there is no neighbour
AT_ONCE = 400  # candidate pairs solved together: the solver's time grows faster than its matrix


@dataclass(frozen=True, eq=False)
class Match:
    """Pairs of a found and a true atom, one to one, by index and in the order of the truth."""

    found_index: Index
    truth_index: Index
    distance_px: Array

    def __len__(self) -> int:
        return len(self.found_index)


def match(found: Array, truth: Array, radius_px: float) -> Match:
    """Return the one-to-one pairs within the radius: the most pairs, then the least total distance.

    This is the Hungarian assignment, exact at any size. Only pairs within the radius are
    candidates. Groups of atoms that share no candidate are solved separately. If one true atom has
    several found ones near it, or the reverse, the nearest is paired without a solver.

    Args:
        found: (atoms, >= 2) y, x in pixels.
        truth: (atoms, >= 2) y, x in pixels.
        radius_px: greatest distance of a pair, in pixels; > 0.

    Example:
        >>> pairs = match(np.array([[1.0, 1.0], [9.0, 9.0]]), np.array([[1.0, 2.0]]), 2.0)
        >>> pairs.found_index.tolist(), pairs.truth_index.tolist()
        ([0], [0])
    """
    found_n2, truth_n2 = positions(found), positions(truth)
    if not len(found_n2) or not len(truth_n2):
        return Match(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    near = cKDTree(found_n2).sparse_distance_matrix(
        cKDTree(truth_n2), radius_px, output_type="ndarray"
    )
    near = near[np.lexsort((near["j"], near["i"], near["v"]))]
    is_star, component_p = _stars(near, len(found_n2), len(truth_n2))
    nearest = np.unique(component_p[is_star], return_index=True)[1]
    parts = _parts(near[~is_star], component_p[~is_star])
    pairs = np.concatenate([near[is_star][nearest], *(_assign(part, radius_px) for part in parts)])
    pairs = pairs[np.argsort(pairs["j"], kind="stable")]
    found_index, truth_index = pairs["i"].astype(np.int64), pairs["j"].astype(np.int64)
    distance = np.hypot(*(found_n2[found_index] - truth_n2[truth_index]).T)
    return Match(found_index, truth_index, distance)


def neighbour_distance_px(position: Array) -> float:
    """Return the median distance to the nearest neighbour, in pixels; NaN below two atoms."""
    position_n2 = positions(position)
    if len(position_n2) < 2:
        return float("nan")
    return float(np.median(cKDTree(position_n2).query(position_n2, k=2)[0][:, 1]))


def match_radius_px(truth_n2: Array, pixel_size_pm: float | None, radius_pm: float | None) -> float:
    """Return the match radius in pixels: the given one, else a share of the neighbour distance.

    Args:
        truth_n2: (atoms, >= 2) y, x in pixels.
        pixel_size_pm: edge of a pixel, in pm; None if unknown.
        radius_pm: in pm; if left out, 0.35 of the median neighbour distance, or 50 pm if there are
            fewer than two atoms.

    Raises:
        MissingPixelSize: the radius is in pm and the pixel size is unknown.
    """
    neighbour_px = neighbour_distance_px(truth_n2)
    if radius_pm is None and neighbour_px > 0:
        return NEIGHBOUR_SHARE * neighbour_px
    if pixel_size_pm is None:
        raise MissingPixelSize(
            "the match radius is in picometres and the pixel size of the frame is unknown",
            "without a pixel size, the frame needs two true atoms and no fixed radius",
            "pass --pixel-size-pm when you import the frame",
        )
    return (FALLBACK_RADIUS_PM if radius_pm is None else radius_pm) / pixel_size_pm


def away_from_edges(position_n2: Array, shape: tuple[int, int], border_px: float) -> Flag:
    """Return whether positions are at least a border away from the edges of the frame."""
    low, high = border_px - 0.5, np.array(shape) - 0.5 - border_px
    return np.asarray(((position_n2 >= low) & (position_n2 <= high)).all(axis=1))


def positions(atoms: Array) -> Array:
    """Return y, x (atoms, 2) of rows with two or more columns, also if there is no row."""
    atoms = np.asarray(atoms, float)
    return atoms.reshape(len(atoms), -1)[:, :2] if atoms.size else np.zeros((0, 2))


def _stars(near: NDArray[np.void], found_count: int, truth_count: int) -> tuple[Flag, Index]:
    """Return for each pair whether all pairs of its group share one atom, and its group."""
    size = found_count + truth_count
    graph = csr_array(
        (np.ones(len(near)), (near["i"], found_count + near["j"])), shape=(size, size)
    )
    count, group_n = connected_components(graph, directed=False)
    found_of = np.bincount(group_n[:found_count], minlength=count)
    truth_of = np.bincount(group_n[found_count:], minlength=count)
    group_p = group_n[near["i"]].astype(np.int64)
    return (np.minimum(found_of, truth_of) == 1)[group_p], group_p


def _parts(near: NDArray[np.void], component_p: Index) -> list[NDArray[np.void]]:
    """Return the pairs in parts of whole components, each as small as can be solved quickly."""
    if not len(near):
        return []
    order = np.argsort(component_p, kind="stable")
    _, start = np.unique(component_p[order], return_index=True)
    edges = start[np.flatnonzero(np.diff(start // AT_ONCE)) + 1]
    return np.split(near[order], edges)


def _assign(near: NDArray[np.void], radius_px: float) -> NDArray[np.void]:
    """Return the pairs of the assignment with the most pairs, then the least distance.

    The sparse matrix holds the pairs within the radius, and one costly entry for each found atom
    that stays without a pair.
    """
    found, row_p = np.unique(near["i"], return_inverse=True)
    truth, column_p = np.unique(near["j"], return_inverse=True)
    way_out = np.arange(len(found))
    # A pair costs 1 to 2. No pair costs more than any chain of swaps could save.
    alone = np.full(len(found), len(found) + 3.0)
    cost = np.concatenate([1 + near["v"] / radius_px, alone])
    rows = np.concatenate([row_p, way_out])
    columns = np.concatenate([column_p, len(truth) + way_out])
    size = (len(found), len(truth) + len(found))
    row, column = min_weight_full_bipartite_matching(csr_array((cost, (rows, columns)), shape=size))
    taken = column < len(truth)
    wanted = row[taken].astype(np.int64) * len(truth) + column[taken]
    return near[np.isin(row_p * len(truth) + column_p, wanted)]

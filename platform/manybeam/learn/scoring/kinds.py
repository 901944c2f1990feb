"""Scores of rare atoms: each kind of atom, dopants, edges, vacancies.

F1 over all atoms hides them: an answer that misses the one dopant in a hundred atoms has F1 .99.
Axis letters: n atom, t kind of truth, k kind found, 2 the pair (y, x).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from manybeam.errors import InvalidInput
from manybeam.learn.analysis.fitness import Lattice
from manybeam.learn.scoring.matching import Array, Flag, Index, away_from_edges, positions
from manybeam.learn.scoring.scores import MatchedFrame, f1_of

REACH = 1.25  # bonds within which an atom is a neighbour; the next ones of graphene lie at 1.73
ALIKE = 0.35  # bonds within which neighbours must point at one site for it to be a vacancy


def confusion(
    matched: Sequence[MatchedFrame],
    found: Sequence[Array],
    truth: Sequence[Array],
    elements: Sequence[int],
) -> Index:
    """Return how often each true kind was found as each kind, over frames.

    Args:
        matched: the matched frames.
        found: their atoms, (atoms, >= 3) y, x, class; class k + 1 means `elements[k]`.
        truth: true atoms, (atoms, >= 3) y, x, atomic number.
        elements: atomic numbers that the network distinguishes, in the order of its classes.

    Returns:
        (kinds + 1, kinds + 1) counts, true kind by rows, found kind by columns. The last row holds
        atoms that were found where no atom of these elements is, the last column missed atoms.

    Raises:
        InvalidInput: a class without an element, such as 0 from a network of one kind.

    Example:
        >>> truth = np.array([[50.0, 50.0, 14.0]])
        >>> found = np.array([[50.0, 50.0, 1.0]])
        >>> from manybeam.learn.scoring.scores import match_frame
        >>> frame = match_frame(found, truth, 10.0, (100, 100))
        >>> confusion([frame], [found], [truth], (6, 14)).tolist()
        [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    """
    frames = zip(matched, found, truth, strict=True)
    table_tk = np.zeros((len(elements) + 1,) * 2, np.int64)
    for frame, atoms, true_atoms in frames:
        table_tk += _confusion_of(frame, atoms, true_atoms, elements)
    return table_tk


def f1_of_kinds(confusion_tk: Index) -> Array:
    """Return F1 of each kind; an atom found as another kind is both a miss and a false alarm.

    F1 is 1 for a kind that was not there and was never found.
    """
    hits = np.diag(confusion_tk)[:-1]
    false = confusion_tk.sum(axis=0)[:-1] - hits
    missed = confusion_tk.sum(axis=1)[:-1] - hits
    return f1_of(np.stack([hits, false, missed], axis=-1))


def recall_of(matched: Sequence[MatchedFrame], is_asked: Sequence[Flag]) -> float:
    """Return the recall over some true atoms only, such as dopants or edges; NaN without any.

    Args:
        matched: the matched frames.
        is_asked: for each true atom of each frame, whether it is one of them. Atoms at the border
            of the frame are left out.
    """
    hits = total = 0
    for frame, asked in zip(matched, is_asked, strict=True):
        is_found = np.zeros(len(frame.truth_counts), bool)
        is_found[frame.match.truth_index] = True
        counted = frame.truth_counts & asked
        hits, total = hits + int((counted & is_found).sum()), total + int(counted.sum())
    return hits / total if total else float("nan")


def is_dopant(truth: Array, host: Sequence[int]) -> Flag:
    """Return for each true atom whether its element is not one of the host."""
    return ~np.isin(_third(truth), host)


def is_edge(truth: Array, pixel_size_pm: float, lattice: Lattice, shape: tuple[int, int]) -> Flag:
    """Return for each true atom whether it has open bonds: at edges of holes and at vacancies.

    Atoms nearer to the edge of the frame than a bond do not count: their neighbours lie outside.
    """
    truth_n2, bond_px = positions(truth), lattice.bond_pm / pixel_size_pm
    inside = away_from_edges(truth_n2, shape, REACH * bond_px)
    return np.asarray(inside & (_bonds(truth_n2, bond_px)[0] < lattice.bond_count))


def vacancies(
    truth: Array, pixel_size_pm: float, lattice: Lattice, shape: tuple[int, int]
) -> Array:
    """Return the sites where single atoms of the lattice are missing, (sites, 2) y, x in pixels.

    The bonds around an atom add up to zero, so the sum of an atom with one open bond points at the
    missing neighbour. A vacancy is a site that all its neighbours point at. Sites in holes, which
    lack neighbours on one side, and sites at the edge of the frame are not vacancies.

    Args:
        truth: (atoms, >= 2) y, x in pixels.
        pixel_size_pm: edge of a pixel, in pm.
        lattice: the crystal; the bonds around an atom must add up to zero, as in graphene.
        shape: rows and columns of the frame.
    """
    truth_n2, bond_px = positions(truth), lattice.bond_pm / pixel_size_pm
    count_n, sum_n2 = _bonds(truth_n2, bond_px)
    is_open = count_n == lattice.bond_count - 1
    pointed_n2 = truth_n2[is_open] - sum_n2[is_open]
    site_n = _groups(pointed_n2, ALIKE * bond_px)
    size = np.bincount(site_n)
    sums = [np.bincount(site_n, pointed_n2[:, axis], len(size)) for axis in (0, 1)]
    site_n2 = np.column_stack(sums) / np.maximum(size, 1)[:, None]
    site_n2 = site_n2[size >= lattice.bond_count]
    return np.asarray(site_n2[away_from_edges(site_n2, shape, 0.0)])


def _confusion_of(
    frame: MatchedFrame, found: Array, truth: Array, elements: Sequence[int]
) -> NDArray[np.int64]:
    kinds = len(elements)
    found_kind = _found_kinds(found, kinds)
    true_kind = np.full(len(truth), kinds)
    for kind, element in enumerate(elements):
        true_kind[_third(truth) == element] = kind
    claimed, is_missed = np.full(len(found), kinds), np.ones(len(truth), bool)
    claimed[frame.match.found_index] = true_kind[frame.match.truth_index]
    is_missed[frame.match.truth_index] = False
    table = np.zeros((kinds + 1, kinds + 1), np.int64)
    np.add.at(table, (claimed[frame.found_counts], found_kind[frame.found_counts]), 1)
    table[:, kinds] = np.bincount(true_kind[is_missed & frame.truth_counts], minlength=kinds + 1)
    table[kinds, kinds] = 0  # atoms of other elements are rightly missed
    return table


def _found_kinds(found: Array, kinds: int) -> Index:
    kind = _third(found).astype(np.int64) - 1
    if len(kind) and not 0 <= kind.min() <= kind.max() < kinds:
        wrong = kind.min() if kind.min() < 0 else kind.max()
        raise InvalidInput(
            f"class {wrong + 1} of a found atom, and {kinds} elements",
            f"classes 1 to {kinds}, in the order of the elements",
            "give the elements of the training masks; a network of one kind has no classes",
        )
    return kind


def _third(atoms: Array) -> Array:
    """Return the third column, class or atomic number; also of no atom in any shape."""
    return np.asarray(atoms)[:, 2] if np.size(atoms) else np.zeros(0)


def _bonds(truth_n2: Array, bond_px: float) -> tuple[Index, Array]:
    """Return each atom's number of bonds, and their sum as a vector."""
    count_n, sum_n2 = np.zeros(len(truth_n2), np.int64), np.zeros((len(truth_n2), 2))
    if len(truth_n2) < 2:
        return count_n, sum_n2
    pairs = cKDTree(truth_n2).query_pairs(REACH * bond_px, output_type="ndarray")
    for here, there in (pairs.T, pairs.T[::-1]):
        count_n += np.bincount(here, minlength=len(truth_n2))
        for axis in (0, 1):
            way = truth_n2[there, axis] - truth_n2[here, axis]
            sum_n2[:, axis] += np.bincount(here, way, len(truth_n2))
    return count_n, sum_n2


def _groups(position_n2: Array, reach_px: float) -> Index:
    """Return the group of each position; positions within reach are of one group."""
    size = (len(position_n2),) * 2
    if not len(position_n2):
        return np.zeros(0, np.int64)
    first, second = cKDTree(position_n2).query_pairs(reach_px, output_type="ndarray").T
    graph = csr_array((np.ones(len(first)), (first, second)), shape=size)
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)

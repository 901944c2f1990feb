"""Crystals: the contents of their cells, their files, and their views along a beam.

A view along a zone axis is a plane lattice of columns. Nothing else of a crystal is used, because
incoherent imaging does not show more. Axis letters: s site of a cell, c column of a plane cell.
"""

import hashlib
import logging
import math
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from manybeam.errors import InvalidInput, NotFound, UnreadableFile
from manybeam.settings import settings

if TYPE_CHECKING:
    from ase import Atoms

logger = logging.getLogger(__name__)
COLUMN_PM = 35.0  # sites whose projections are nearer than this are one column
LEAST_SIDE_PM = 70.0  # of the square around each column
CLASH_PM = 50.0  # no two atoms of a real crystal are nearer
LARGEST_CELL = 5000
VACUUM_PM = 700.0  # more than between layers of a crystal: 335 in graphite, 350 in MoS2
MOST_OCCUPIED = 1.01  # of one site, because files round thirds
Shares = Mapping[int, float]  # atomic number -> probability; the rest to 1 is vacancies
Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Crystal:
    """The cell of a crystal; compared by identity, so that its views can be cached.

    Attributes:
        cell_pm: (3, 3), the edges as rows.
        place_s3: each site, as fractions of the edges.
        shares: elements of each site and their probabilities.
    """

    cell_pm: Array
    place_s3: Array
    shares: tuple[Shares, ...]


@dataclass(frozen=True)
class Columns:
    """A crystal seen along a zone axis.

    Attributes:
        plane_pm: (2, 2), the edges (y, x) of the cell of the projection, as rows.
        place_c2: (y, x) of each column in it, in pm.
        sites: numbers of the sites that fall into each column.
        repeat_pm: period along the beam.
        is_sheet: whether there is vacuum between periods, as in a cell of one layer.
    """

    plane_pm: Array
    place_c2: Array
    sites: tuple[tuple[int, ...], ...]
    repeat_pm: float
    is_sheet: bool = False


# One layer of 2H-MoS2: a of Wakabayashi et al., Phys. Rev. B 12, 659 (1975), sulphur 158 pm above
# and below the metal. The third edge only has to be longer than the layer is thick.
MOS2 = Crystal(
    np.array([[316.0, 0, 0], [-158.0, 316.0 * math.sqrt(0.75), 0], [0, 0, 650.0]]),
    np.array(
        [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5 - 158 / 650], [2 / 3, 1 / 3, 0.5 + 158 / 650]]
    ),
    ({42: 1.0}, {16: 1.0}, {16: 1.0}),
)
# La0.7Sr0.3MnO3 as a cube of 388 pm; its true rhombohedral tilts move oxygen only.
LSMO = Crystal(
    np.eye(3) * 388.0,
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
    ({57: 0.7, 38: 0.3}, {25: 1.0}, {8: 1.0}, {8: 1.0}, {8: 1.0}),
)


@lru_cache(maxsize=16)
def bulk(symbol: str) -> Crystal:
    """Return the cubic crystal of an element: fcc, bcc or diamond.

    Raises:
        InvalidInput: there is no such element, or its crystal is not cubic.
    """
    from ase.build import bulk as build

    try:
        return _crystal(build(symbol, cubic=True), symbol)
    except (ValueError, KeyError, RuntimeError) as error:
        why = "sample.element is an element with a cubic crystal, such as Au, Pt, Cu, Fe, Si"
        raise InvalidInput(f"no cubic crystal of {symbol!r}: {error}", why, "") from error


def read_crystal(file: str, sha256: str | None = None) -> Crystal:
    """Return the crystal of a structure file: CIF, POSCAR and others that ase reads with a cell.

    A CIF may have sites that are partly occupied or shared by elements. Their atoms are drawn at
    random with these shares, anew for every atom of every frame.

    Args:
        file: path in the current folder, else in `structures` of the zoo folder.
        sha256: first hex digits of the digest of the file; None allows any.

    Raises:
        NotFound: there is no such file.
        UnreadableFile: ase cannot read it.
        InvalidInput: it is another file, its cell has no volume, it has no or too many atoms, or
            atoms lie on each other.
    """
    path = _found(file)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and not digest.startswith(sha256):
        raise InvalidInput(
            f"the digest of {path} does not begin with {sha256}",
            f"it begins with {digest[:12]}",
            "restore the file, or correct sample.file_sha256",
        )
    return _read(str(path), digest)


@lru_cache(maxsize=16)
def view(crystal: Crystal, zone_axis: tuple[int, int, int]) -> Columns:
    """Return the view of a crystal along a direction [u, v, w] of its cell.

    Raises:
        InvalidInput: columns overlap along this direction.
    """
    cell = crystal.cell_pm
    divisor = math.gcd(*zone_axis)
    u, v, w = (index // divisor for index in zone_axis)
    beam_pm = np.array([u, v, w]) @ cell
    screen = _screen(beam_pm, cell)
    plane_pm = _reduced(np.array(_completed(u, v, w)) @ cell @ screen.T)
    place_s2 = crystal.place_s3 @ cell @ screen.T
    place_s2 = place_s2 @ np.linalg.inv(plane_pm) % 1 @ plane_pm
    groups, anchored_s2 = _grouped(place_s2, plane_pm)
    extent_pm = max(np.ptp(anchored_s2[group], axis=0).max() for group in groups)
    area_pm2 = abs(np.linalg.det(plane_pm)) / len(groups)
    if extent_pm > 2 * COLUMN_PM or area_pm2 < LEAST_SIDE_PM**2:
        raise InvalidInput(
            f"columns overlap along {list(zone_axis)}: each has a square of "
            f"{math.sqrt(area_pm2):.0f} pm",
            f"each column needs a square of at least {LEAST_SIDE_PM:.0f} pm",
            "give a zone axis of low indices, such as [0, 0, 1]",
        )
    place_c2 = np.array([anchored_s2[group].mean(axis=0) for group in groups])
    sites = tuple(tuple(int(s) for s in group) for group in groups)
    repeat_pm = float(np.linalg.norm(beam_pm))
    across_pm = np.array(_completed(u, v, w)) @ cell
    return Columns(plane_pm, place_c2, sites, repeat_pm, _is_sheet(crystal, beam_pm, across_pm))


def _is_sheet(crystal: Crystal, beam_pm: Array, across_pm: Array) -> bool:
    """Return whether there is a gap along the beam that is too wide for a crystal."""
    repeat_pm = float(np.linalg.norm(beam_pm))
    beam = beam_pm / repeat_pm
    if np.abs(across_pm @ beam).max() > 1:  # the periods are not in planes across the beam
        return False
    height_s = np.sort(crystal.place_s3 @ crystal.cell_pm @ beam % repeat_pm)
    return bool(np.diff(height_s, append=height_s[0] + repeat_pm).max() > VACUUM_PM)


def _found(file: str) -> Path:
    places = [Path(file).expanduser(), Path(settings().zoo) / "structures" / file]
    for place in places:
        if place.is_file():
            return place
    searched = " and ".join(str(place) for place in places)
    hint = "put it there, or give sample.file another path"
    raise NotFound(f"there is no structure file {file!r}", f"searched: {searched}", hint)


@lru_cache(maxsize=16)
def _read(path: str, _digest: str) -> Crystal:
    """Return the crystal of a file; a changed file is read again."""
    from ase import Atoms
    from ase.io import read

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            atoms = read(path)
    except Exception as error:  # ase has forty readers with different errors
        why = _reason(error)
        hint = "give a CIF or another structure file with a cell that ase reads"
        raise UnreadableFile(f"{path} is not a structure file", why, hint) from error
    for text in dict.fromkeys(str(one.message) for one in caught):
        logger.warning("structure file was read with a warning", extra={"path": path, "why": text})
    if not isinstance(atoms, Atoms) or not len(atoms):
        raise UnreadableFile(f"{path} has no atoms", "it needs one structure", "")
    return _crystal(atoms, path)


def _crystal(atoms: "Atoms", name: str) -> Crystal:
    """Return the crystal of atoms that ase read or built."""
    if abs(atoms.cell.volume) < 1.0:
        raise InvalidInput(
            f"{name} has no cell", "a crystal needs three edges", "give the cell in the file"
        )
    if len(atoms) > LARGEST_CELL:
        raise InvalidInput(
            f"{name} has {len(atoms)} atoms", f"at most {LARGEST_CELL} in a cell", ""
        )
    shares = _shares(atoms, name)
    _refuse_clashes(atoms, name)
    return Crystal(np.asarray(atoms.cell) * 100, atoms.get_scaled_positions(), shares)


def _reason(error: Exception) -> str:
    """Return why ase failed, also if its exception has no text."""
    text = f"{type(error).__name__}: {error}"[:300]
    if str(error):
        return text
    if isinstance(error, StopIteration):
        return "it has no structure"
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return f"this check of ase failed: {line.removeprefix('assert ')}"[:300] if line else text


def _shares(atoms: "Atoms", name: str) -> tuple[Shares, ...]:
    """Return the shares of each site: the occupancies in the file, else its one element."""
    from ase.data import atomic_numbers

    given = atoms.info.get("occupancy") or {}
    if not given:
        return tuple({int(number): 1.0} for number in atoms.numbers)
    _check_occupancies(given, name)
    kinds = {
        str(kind): {atomic_numbers[symbol]: float(share) for symbol, share in mix.items()}
        for kind, mix in given.items()
    }
    return tuple(kinds[str(kind)] for kind in atoms.arrays["spacegroup_kinds"])


def _check_occupancies(given: Mapping[str, Mapping[str, float]], name: str) -> None:
    """Refuse impossible shares: below 0, above 1 in total, or 0 on all sites."""
    for kind, mix in given.items():
        total = math.fsum(float(share) for share in mix.values())
        least = min((float(share) for share in mix.values()), default=0.0)
        if not (least >= 0 and total <= MOST_OCCUPIED):
            number = least if not least >= 0 else total
            each = ", ".join(f"{symbol} {share:g}" for symbol, share in mix.items())
            raise InvalidInput(
                f"{name}: occupancy {number:g} on site {kind} ({each})",
                "each share at least 0, together at most 1",
                "correct the occupancies in the file",
            )
    if not any(float(share) for mix in given.values() for share in mix.values()):
        raise InvalidInput(f"all sites of {name} are empty", "one needs an occupancy above 0", "")


def _refuse_clashes(atoms: "Atoms", name: str) -> None:
    from ase.neighborlist import neighbor_list

    every = atoms.copy()
    every.pbc = True
    one_n, two_n, far_n = neighbor_list("ijd", every, CLASH_PM / 100)
    if len(far_n):
        i, j = int(one_n[0]), int(two_n[0])
        raise InvalidInput(
            f"{name}: atoms {i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]}) are "
            f"{100 * far_n[0]:.0f} pm apart",
            f"the least distance is {CLASH_PM:.0f} pm",
            "if elements share a site, give one site with occupancies",
        )


def _screen(beam_pm: Array, cell_pm: Array) -> Array:
    """Return (2, 3), the directions y and x across the beam; x lies along the longest edge."""
    beam = beam_pm / np.linalg.norm(beam_pm)
    across = cell_pm - np.outer(cell_pm @ beam, beam)
    x = across[int(np.argmax(np.linalg.norm(across, axis=1)))]
    x = x / np.linalg.norm(x)
    return np.array([np.cross(beam, x), x])


def _completed(u: int, v: int, w: int) -> list[list[int]]:
    """Return two integer vectors that span the lattice together with [u, v, w]."""
    g, p, q = _bezout(u, v)
    if g == 0:
        return [[1, 0, 0], [0, 1, 0]]
    _, r, s = _bezout(g, w)
    return [[-q, p, 0], [-s * u // g, -s * v // g, r]]


def _bezout(a: int, b: int) -> tuple[int, int, int]:
    """Return (g, p, q) with p a + q b = g, the greatest common divisor, not negative."""
    if b == 0:
        return abs(a), (a > 0) - (a < 0), 0
    g, p, q = _bezout(b, a % b)
    return g, q, p - (a // b) * q


def _reduced(plane_pm: Array) -> Array:
    """Return the two shortest vectors that span the same plane lattice (Gauss)."""
    one, two = sorted(plane_pm, key=lambda vector: float(vector @ vector))
    while True:
        two = two - round(float(one @ two) / float(one @ one)) * one
        if two @ two >= one @ one * (1 - 1e-9):
            return np.array([one, two])
        one, two = two, one


def _grouped(place_s2: Array, plane_pm: Array) -> tuple[list[NDArray[np.int_]], Array]:
    """Return the sites of each column, and all sites moved next to the first of their column."""
    steps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ plane_pm
    count = len(place_s2)
    images = (place_s2[:, None] + steps).reshape(-1, 2)
    pairs = cKDTree(place_s2).sparse_distance_matrix(
        cKDTree(images), COLUMN_PM, output_type="coo_matrix"
    )
    links = coo_array((np.ones(len(pairs.row)), (pairs.row, pairs.col // 9)), shape=(count, count))
    _, label_s = connected_components(links, directed=False)
    groups = [np.flatnonzero(label_s == label) for label in range(label_s.max() + 1)]
    anchored_s2 = place_s2.copy()
    for group in groups:
        near = place_s2[group][:, None] + steps
        best = np.linalg.norm(near - place_s2[group[0]], axis=2).argmin(axis=1)
        anchored_s2[group] = near[np.arange(len(group)), best]
    return groups, anchored_s2

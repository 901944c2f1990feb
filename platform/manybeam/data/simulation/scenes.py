"""The sample in one frame: atoms of the truth, loose atoms, and a support.

Axis letters: y row, x column of the canvas; k atom.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from manybeam.data.simulation.columns import grown, grown_boundary, occupied, thinned
from manybeam.data.simulation.crystals import LSMO, MOS2, Crystal, bulk, read_crystal, view
from manybeam.data.simulation.heavy import heavy_atoms
from manybeam.data.simulation.structures import (
    CARBON_A2,
    MARGIN_PM,
    Structure,
    cut,
    graphene,
    support_thickness,
)
from manybeam.spec.imaging import Sample

CARBON_PER_NM3 = 100.0  # amorphous carbon, 2.0 g/cm3
DISORDER = 0.15  # variance of the number of atoms in a pixel, relative to a gas
SHEET_PER_NM2 = 38.2  # atoms of one graphene layer
BOUNDARY_ELEMENT = "Au"
BEAM = (0, 0, 1)  # zone axis if the sample has none
BOUNDARY_BEAM = (1, 1, 0)
LSMO_BEAMS = ((1, 0, 0), (1, 1, 0))

Draw = Mapping[str, float]


@dataclass(frozen=True)
class Ground:
    """The canvas of a scene.

    Attributes:
        shape: rows and columns of the frame.
        canvas: rows and columns of the frame and the margins around it.
        margin_px: rows and columns of the canvas before the frame.
        pixel_size_pm: edge of a pixel.
        beyond_pm: how far the scan goes beyond the edges of the frame, where the sample continues.
    """

    shape: tuple[int, int]
    canvas: tuple[int, int]
    margin_px: int
    pixel_size_pm: float
    beyond_pm: float = 0.0

    @property
    def side_pm(self) -> tuple[float, float]:
        """Height and width of the scanned area: the frame, and `beyond_pm` on each side."""
        height, width = (side * self.pixel_size_pm + 2 * self.beyond_pm for side in self.shape)
        return height, width


@dataclass(frozen=True)
class Scene:
    """Everything that scatters in one frame.

    Attributes:
        atoms: those of the truth, and others of their kind.
        loose: carbon atoms without order; None if there are none.
        support_yx: scattering power of an amorphous support in each pixel of the canvas, in A^2.
    """

    atoms: Structure
    loose: Structure | None = None
    support_yx: NDArray[np.float32] | None = None


def scene(sample: Sample, draw: Draw, ground: Ground, rng: Generator) -> Scene:
    """Return the sample in one frame.

    Args:
        sample: its structure, and the names and directions that go with it.
        draw: quantities of this frame, by name and in their units.
        ground: canvas of the scene.
        rng: of this frame.

    Raises:
        InvalidInput: the crystal cannot be drawn.
        NotFound: there is no such structure file.
    """
    if sample.structure == "heavy_atoms":
        return _heavy(draw, ground, rng)
    atoms = _ATOMS[sample.structure](sample, draw, ground.side_pm, rng)
    loose = _loose_carbon(draw["amorphous"], ground.side_pm, rng)
    atoms, loose = (
        replace(one, position_n2=one.position_n2 - ground.beyond_pm) for one in (atoms, loose)
    )
    return Scene(atoms, loose if len(loose.number_n) else None)


def _graphene(
    sample: Sample, draw: Draw, side_pm: tuple[float, float], rng: Generator
) -> Structure:
    del sample
    return graphene(draw, side_pm, rng)


def _mos2(sample: Sample, draw: Draw, side_pm: tuple[float, float], rng: Generator) -> Structure:
    """Return one layer of MoS2: single sulphur atoms are missing, and V replaces Mo."""
    del sample
    columns = view(MOS2, BEAM)
    vanadium, vacancy = draw["vanadium_fraction"], draw["vacancy_fraction"]
    shares = [{42: 1 - vanadium, 23: vanadium}, *thinned(MOS2.shares[1:], vacancy)]
    place_n2, kind_n = grown(columns, draw["strain"], side_pm, rng)
    if rng.random() < draw["hole_probability"]:
        kept_n = cut(place_n2, side_pm, rng)
        place_n2, kind_n = place_n2[kept_n], kind_n[kept_n]
    return occupied((place_n2, kind_n), columns, shares, 1, rng)


def _lsmo(sample: Sample, draw: Draw, side_pm: tuple[float, float], rng: Generator) -> Structure:
    """Return LSMO along its zone axis; without one, each frame draws one of the usual axes."""
    zone_axis = sample.zone_axis or LSMO_BEAMS[rng.integers(len(LSMO_BEAMS))]
    return _slab(LSMO, zone_axis, draw, side_pm, rng, is_thickness_known=True)


def _from_file(
    sample: Sample, draw: Draw, side_pm: tuple[float, float], rng: Generator
) -> Structure:
    crystal = read_crystal(sample.file or "", sample.file_sha256)
    is_known = sample.thickness_nm is not None
    zone_axis = sample.zone_axis or BEAM
    return _slab(crystal, zone_axis, draw, side_pm, rng, is_thickness_known=is_known)


def _slab(
    crystal: Crystal,
    zone_axis: tuple[int, int, int],
    draw: Draw,
    side_pm: tuple[float, float],
    rng: Generator,
    *,
    is_thickness_known: bool,
) -> Structure:
    columns = view(crystal, zone_axis)
    place_n2, kind_n = grown(columns, draw["strain"], side_pm, rng)
    if rng.random() < draw["hole_probability"]:
        kept_n = cut(place_n2, side_pm, rng)
        place_n2, kind_n = place_n2[kept_n], kind_n[kept_n]
    # A cell with one sheet gives one sheet, unless the sample is thicker.
    alone = columns.is_sheet and not is_thickness_known
    repeats = 1 if alone else _repeats(draw, columns.repeat_pm)
    shares = thinned(crystal.shares, draw["vacancy_fraction"])
    return occupied((place_n2, kind_n), columns, shares, repeats, rng)


def _boundary(
    sample: Sample, draw: Draw, side_pm: tuple[float, float], rng: Generator
) -> Structure:
    """Return two grains of an element, or of a crystal from a file."""
    crystal = (
        read_crystal(sample.file, sample.file_sha256)
        if sample.file
        else bulk(sample.element or BOUNDARY_ELEMENT)
    )
    columns = view(crystal, sample.zone_axis or BOUNDARY_BEAM)
    repeats = _repeats(draw, columns.repeat_pm)
    shares = thinned(crystal.shares, draw["vacancy_fraction"])
    return occupied(grown_boundary(columns, draw, side_pm, rng), columns, shares, repeats, rng)


_ATOMS: dict[str, Callable[[Sample, Draw, tuple[float, float], Generator], Structure]] = {
    "graphene": _graphene,
    "mos2": _mos2,
    "lsmo": _lsmo,
    "grain_boundary": _boundary,
    "crystal": _from_file,
}


def _repeats(draw: Draw, repeat_pm: float) -> int:
    return max(1, round(draw["thickness_nm"] * 1000 / repeat_pm))


def _heavy(draw: Draw, ground: Ground, rng: Generator) -> Scene:
    """Return heavy atoms, and the carbon below them.

    The atoms of the support have no positions. Their number in each pixel scatters around its mean,
    less than in a gas, because the structure factor of an amorphous solid is small at low
    frequency.
    """
    size = ground.pixel_size_pm
    thickness_yx = support_thickness(draw, ground.canvas, size, rng)
    per_pixel = CARBON_PER_NM3 * draw["support_nm"] * (size / 1000) ** 2
    mean_yx = np.clip(thickness_yx, 0, None) * per_pixel
    support_yx = mean_yx + math.sqrt(DISORDER) * (rng.poisson(mean_yx) - mean_yx)
    power_yx = (support_yx.clip(0) * CARBON_A2).astype(np.float32)
    atoms = heavy_atoms(draw, power_yx, size, rng)
    atoms = replace(atoms, position_n2=atoms.position_n2 - ground.margin_px * size)
    return Scene(atoms, None, power_yx)


def _loose_carbon(density: float, side_pm: tuple[float, float], rng: Generator) -> Structure:
    """Return carbon atoms without order, denser around one place of the frame."""
    side = np.array(side_pm)
    area_nm2 = float(np.prod((side + 2 * MARGIN_PM) / 1000))
    count = int(density * SHEET_PER_NM2 * area_nm2)
    places = rng.uniform(-MARGIN_PM, side + MARGIN_PM, (count, 2))
    centre, width = rng.uniform(0, side), side.min() * 0.35
    near = np.exp(-((places - centre) ** 2).sum(axis=1) / (2 * width**2))
    places = places[rng.random(count) < near]
    return Structure(places, np.full(len(places), 6.0))

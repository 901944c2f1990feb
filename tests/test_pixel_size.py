"""Pixel size from the power spectrum of a known lattice."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manybeam.data.simulation.simulate import simulate
from manybeam.errors import MissingPixelSize
from manybeam.learn.analysis.pixel_size import CELLS, Cell, cell_of, infer_pixel_size
from manybeam.spec import Condition
from manybeam.spec.imaging import Sample

GRAPHENE = CELLS["graphene"]
SQUARE = Cell("a square lattice", 388.0, 388.0, 90.0)
Frame = np.ndarray


def crystal(cell: Cell, size_pm: float, turn: float, stretch: float = 1.0) -> Frame:
    """Waves of a lattice's reflections on noise, 240 px a side; rows stretched."""
    y, x = np.mgrid[:240, :240] * size_pm
    frame = np.random.default_rng(5).normal(size=y.shape)
    for spacing, direction in cell.spots():
        angle = direction + turn
        frame += np.cos(
            2 * math.pi * (y / stretch * math.sin(angle) + x * math.cos(angle)) / spacing
        )
    return frame


def graphene(size_pm: float, seed: int = 1, strain: float = 0.0) -> Frame:
    sample = {"structure": "graphene", "strain": strain, "hole_probability": 0}
    known = Condition.model_validate(
        {"id": "g", "sample": sample, "scan": {"pixel_size_pm": size_pm}}
    )
    return simulate(known, 1, seed=seed, shape=(200, 200)).frames_nyx[0]


@pytest.mark.parametrize(
    ("cell", "spacings"),
    [
        pytest.param(GRAPHENE, [213.0, 123.0], id="213 pm and 123 pm"),
        pytest.param(CELLS["mos2"], [273.7, 158.0], id="274 pm and 158 pm"),
        pytest.param(SQUARE, [388.0, 274.4], id="388 pm and 274 pm"),
    ],
)
def test_a_lattice_has_the_spacings_of_the_tables(cell, spacings):
    found = sorted({round(spacing, 1) for spacing, _ in cell.spots()}, reverse=True)
    assert found == pytest.approx(spacings, abs=0.1)


@pytest.mark.parametrize("cell", [*CELLS.values(), SQUARE], ids=lambda cell: cell.name)
@given(size_pm=st.floats(14, 30), turn=st.floats(0, math.pi))
@settings(max_examples=8, derandomize=True)
def test_a_known_crystal_tells_its_pixel_size_within_1_5_per_cent(cell, size_pm, turn):
    told = infer_pixel_size(crystal(cell, size_pm, turn), cell)
    assert told.pixel_size_pm == pytest.approx(size_pm, rel=0.015)


@pytest.mark.parametrize("size_pm", [9.0, 16.0, 24.0, 29.0])
def test_simulated_graphene_tells_its_pixel_size_within_two_errors(size_pm):
    told = infer_pixel_size(graphene(size_pm), GRAPHENE)
    assert abs(told.pixel_size_pm - size_pm) < 2 * told.error_pm
    assert told.error_pm < 0.05 * size_pm


@pytest.mark.slow
def test_the_error_covers_what_strain_hides():
    seen = [infer_pixel_size(graphene(16.0, seed, strain=0.01), GRAPHENE) for seed in range(12)]
    inside = [abs(one.pixel_size_pm - 16.0) < 2 * one.error_pm for one in seen]
    assert np.mean(inside) >= 0.75


def test_a_frame_turned_by_a_right_angle_tells_the_same_size():
    frame = graphene(16.0)
    sizes = [infer_pixel_size(one, GRAPHENE).pixel_size_pm for one in (frame, np.rot90(frame))]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.003)


def test_a_lattice_twice_as_large_has_pixels_twice_as_large():
    frame = graphene(16.0)
    double = Cell("double", 2 * GRAPHENE.a_pm, 2 * GRAPHENE.b_pm, 120.0)
    single, twice = (infer_pixel_size(frame, cell).pixel_size_pm for cell in (GRAPHENE, double))
    assert twice == pytest.approx(2 * single, rel=1e-6)


def test_a_stretched_frame_has_a_larger_error_and_the_size_between():
    straight, bent = (
        infer_pixel_size(crystal(GRAPHENE, 16.0, 0.3, stretch), GRAPHENE) for stretch in (1.0, 1.08)
    )
    assert bent.error_pm > 2 * straight.error_pm
    assert abs(bent.pixel_size_pm - 16.0) < 2 * bent.error_pm


@pytest.mark.parametrize("seed", range(6))
def test_noise_has_no_lattice(seed):
    noise = np.random.default_rng(seed).poisson(5.0, (200, 200))
    with pytest.raises(MissingPixelSize, match="no graphene lattice shows") as caught:
        infer_pixel_size(noise, GRAPHENE)
    assert "--pixel-size-pm" in caught.value.hint


@pytest.mark.parametrize("cell", [None, GRAPHENE], ids=["no lattice", "too small"])
def test_what_cannot_be_told_is_asked_for(cell):
    with pytest.raises(MissingPixelSize, match="no lattice is known"):
        infer_pixel_size(np.eye(24), cell)


@pytest.mark.parametrize(
    ("sample", "name"),
    [
        ({"structure": "graphene"}, "graphene"),
        ({"material": "1% V-doped MoS2 monolayer"}, "MoS2"),
        ({"structure": "heavy_atoms", "material": "Pt on N-doped carbon"}, None),
        ({}, None),
        # Its columns differ: the strong spots are {110}, and {100} would be told sqrt 2 too large.
        ({"structure": "lsmo", "material": "LSMO"}, None),
        ({"material": "MoS2 on graphene"}, None),
        ({"structure": "graphene", "material": "MoS2 on graphene"}, None),
        ({"structure": "lsmo", "material": "LSMO on graphene"}, None),
        ({"structure": "graphene", "zone_axis": [0, 0, 1]}, "graphene"),
        ({"structure": "graphene", "zone_axis": [0, 0, -2]}, "graphene"),
        ({"structure": "graphene", "zone_axis": [1, 0, 0]}, None),
        ({"material": "MoS2", "zone_axis": [1, 1, 0]}, None),
    ],
)
def test_structure_or_material_names_the_lattice(sample, name):
    cell = cell_of(Sample.model_validate(sample))
    assert (cell and cell.name) == name

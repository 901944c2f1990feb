"""Structures: atoms stand where their crystal puts them, and the beam sees them there."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from numpy.random import Generator
from pydantic import ValidationError
from scipy import ndimage
from scipy.spatial import cKDTree

from manybeam.data.simulation.columns import grown, grown_boundary, laid, occupied, thinned
from manybeam.data.simulation.crystals import LSMO, MOS2, Crystal, bulk, read_crystal, view
from manybeam.data.simulation.rendering import Tiling, image, structure_factor
from manybeam.data.simulation.scenes import Ground, Scene, scene
from manybeam.data.simulation.simulate import simulate
from manybeam.data.simulation.structures import MARGIN_PM, Structure, cut
from manybeam.data.simulation.typical import typical
from manybeam.errors import InvalidInput, ManybeamError, NotFound, UnreadableFile
from manybeam.spec import Condition
from manybeam.spec.imaging import Sample

SIDE_PM = (6000.0, 5000.0)
STO = """data_sto
_cell_length_a 3.905
_cell_length_b 3.905
_cell_length_c 3.905
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P m -3 m'
_space_group_IT_number 221
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""
WHOLE = "Sr1 Sr 0 0 0 1\nTi1 Ti 0.5 0.5 0.5 1\nO1 O 0.5 0.5 0 1\n"
MIXED = "Sr1 Sr 0 0 0 0.6\nLa1 La 0 0 0 0.3\nTi1 Ti 0.5 0.5 0.5 1\nO1 O 0.5 0.5 0 1\n"


@pytest.fixture
def rng() -> Generator:
    """A generator of its own for each test."""
    return np.random.default_rng(5)


def _condition(**sample: object) -> Condition:
    """A condition without distortions whose sample is given."""
    return Condition.model_validate(
        {
            "id": "test",
            "sample": {"vacancy_fraction": 0, "hole_probability": 0, "strain": 0, **sample},
            "scan": {"pixel_size_pm": 15, "row_jitter_pm": 0},
            "state": {"background": 0, "contamination": 0},
            "detector": {"readout_e": 0},
            "dose_e_per_a2": 1e9,
        }
    )


def _draw(condition: Condition) -> dict[str, float]:
    """The numbers of a condition by their own names, the unknown ones typical."""
    found = {path.rpartition(".")[2]: value for path, value in typical(condition).items()}
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _atoms(condition: Condition, rng: Generator, side_px: int = 400) -> Structure:
    """The atoms of one frame."""
    draw = _draw(condition)
    ground = Ground((side_px, side_px), (side_px, side_px), 0, draw["pixel_size_pm"])
    return scene(condition.sample, draw, ground, rng).atoms


def _area_nm2(side_px: int = 400) -> float:
    return float((side_px * 15.0 + 2 * MARGIN_PM) / 1000) ** 2


def _seen(
    scenes: Sequence[Scene], ground: Ground, tiling: Tiling | None = None, **other: float
) -> np.ndarray:
    """The image of scenes through a plain probe, changed by `other`."""
    draw = _draw(_condition(structure="graphene")) | other
    q = {name: torch.full((len(scenes),), value) for name, value in draw.items()}
    angle = torch.full((len(scenes), 3), 0.7)
    return image(scenes, [ground] * len(scenes), q, angle, tiling).numpy()


@given(st.floats(20, 40), st.floats(20, 40))
@settings(max_examples=12)
def test_an_atom_is_seen_where_it_stands(y: float, x: float) -> None:
    ground = Ground((64, 64), (64, 64), 0, 15.0)
    atom = Structure(np.array([[y, x]]) * 15.0, np.array([14.0]))
    seen = _seen([Scene(atom)], ground)[0]
    top, left = round(y) - 6, round(x) - 6
    found = ndimage.center_of_mass(np.maximum(seen - 0.1 * seen.max(), 0))
    assert (top, left) < found
    assert np.abs(np.array(found) - (y, x)).max() < 0.05


def test_the_structure_factor_is_its_definition(rng: Generator) -> None:
    place, power, canvas = rng.uniform(0, 60, (9, 2)), rng.uniform(0.1, 2, 9), (60, 75)
    fy, fx = np.fft.fftfreq(60)[:, None, None], np.fft.rfftfreq(75)[None, :, None]
    exact = (power * np.exp(-2j * math.pi * (fy * place[:, 0] + fx * place[:, 1]))).sum(axis=2)
    made = structure_factor(place, power, canvas).numpy()
    assert np.abs(made - exact).max() < 2e-5 * power.sum()


@pytest.mark.parametrize("structure", ["mos2", "lsmo", "heavy_atoms"])
def test_tiles_make_the_same_picture_as_one_piece(structure: str, rng: Generator) -> None:
    condition = _condition(structure=structure, hole_probability=1)
    ground = Ground((190, 170), (225, 216), 15, 15.0)
    made = scene(condition.sample, _draw(condition) | {"amorphous": 0.3}, ground, rng)
    width = {"atom_width_pm": 60.0, "coma_nm": 30.0}
    whole = _seen([made], ground, Tiling(reach_px=80), **width)
    tiled = _seen([made], ground, Tiling(whole_px=100, core_px=90, reach_px=80), **width)
    assert np.abs(tiled - whole).max() < 1e-4 * whole.max()


@pytest.mark.slow
@given(st.floats(0, 6.3), st.floats(-300, 300), st.floats(-300, 300))
@settings(max_examples=20)
def test_a_crystal_turned_by_90_degrees_is_that_crystal_turned(
    angle: float, y: float, x: float
) -> None:
    columns, middle = view(MOS2, (0, 0, 1)), np.array([2500.0, 2500.0])
    here, there = middle + np.array([y, x]), middle + np.array([-x, y])
    one, kind = laid(columns, angle, here, (5000.0, 5000.0))
    two, _ = laid(columns, angle + math.pi / 2, there, (5000.0, 5000.0))
    turned = (one - middle) @ np.array([[0, 1], [-1, 0]]) + middle
    inner = np.abs(turned - middle).max(axis=1) < 2400
    far, _ = cKDTree(two).query(turned[inner])
    assert far.max() < 1e-6
    assert set(kind) == {0, 1}


@given(st.tuples(*[st.integers(-3, 3)] * 3), st.sampled_from([LSMO, MOS2]))
@settings(max_examples=60)
def test_a_view_keeps_every_site_and_the_volume(
    zone_axis: tuple[int, int, int], crystal: Crystal
) -> None:
    assume(any(zone_axis))
    try:
        columns = view(crystal, zone_axis)
    except InvalidInput:
        reject()
    held = abs(np.linalg.det(columns.plane_pm)) * columns.repeat_pm
    assert held == pytest.approx(abs(np.linalg.det(crystal.cell_pm)))
    assert sorted(sum(columns.sites, ())) == list(range(len(crystal.shares)))


@pytest.mark.parametrize(
    ("crystal", "zone_axis", "distances_pm"),
    [
        pytest.param(MOS2, (0, 0, 1), [182.4, 316, 365], id="mos2"),
        pytest.param(LSMO, (0, 0, 1), [194, 274.4, 388], id="lsmo-100"),
        pytest.param(LSMO, (1, 1, 0), [137.2, 194, 237.6], id="lsmo-110"),
        pytest.param(bulk("Si"), (1, 1, 0), [135.8, 235.2, 384], id="si-110"),
        pytest.param(bulk("Au"), (1, 1, 0), [249.8, 288.5], id="au-110"),
    ],
)
def test_columns_stand_at_the_distances_of_the_crystal(
    crystal: Crystal, zone_axis: tuple[int, int, int], distances_pm: list[float]
) -> None:
    place, _ = laid(view(crystal, zone_axis), 0.3, np.zeros(2), (3000.0, 3000.0))
    middle = place[np.linalg.norm(place - 1500, axis=1).argsort()[:20]]
    far = np.linalg.norm(middle[:, None] - place, axis=2)
    for distance in distances_pm:
        assert (np.abs(far - distance) < 1).any()
    assert far[far > 1].min() == pytest.approx(distances_pm[0], abs=1)


def test_a_column_of_two_sulphur_atoms_scatters_twice_as_one(rng: Generator) -> None:
    atoms = _atoms(_condition(structure="mos2", vanadium_fraction=0, vacancy_fraction=0.3), rng)
    signal = np.asarray(atoms.signal_n)[atoms.number_n == 16]
    assert set(signal.round(9)) == {1.0, 2.0}
    assert (signal == 1).mean() == pytest.approx(0.42 / 0.91, abs=0.05)


def test_a_column_that_lost_both_sulphur_atoms_is_gone(rng: Generator) -> None:
    atoms = _atoms(_condition(structure="mos2", vanadium_fraction=0, vacancy_fraction=0.3), rng)
    per_nm2 = 1e6 / (316.0**2 * math.sqrt(0.75))
    assert (atoms.number_n == 42).sum() / _area_nm2() == pytest.approx(per_nm2, rel=0.03)
    assert (atoms.number_n == 16).sum() / _area_nm2() == pytest.approx(0.91 * per_nm2, rel=0.04)


def test_vanadium_stands_where_molybdenum_stood(rng: Generator) -> None:
    atoms = _atoms(_condition(structure="mos2", vanadium_fraction=0.2), rng)
    metal = atoms.number_n != 16
    assert (atoms.number_n[metal] == 23).mean() == pytest.approx(0.2, abs=0.04)
    far, _ = cKDTree(atoms.position_n2[metal]).query(atoms.position_n2[metal], k=2)
    assert np.abs(far[:, 1] - 316).max() < 40


def test_la_and_sr_are_mixed_as_in_the_formula(rng: Generator) -> None:
    atoms = _atoms(_condition(structure="lsmo", zone_axis=(0, 0, 1), thickness_nm=0.388), rng)
    counts = {z: (atoms.number_n == z).sum() for z in (57, 38, 25)}
    assert counts[57] / (counts[57] + counts[38]) == pytest.approx(0.7, abs=0.05)
    assert counts[57] + counts[38] == pytest.approx(counts[25], rel=0.05)


def test_lsmo_without_a_zone_axis_is_seen_along_both_usual_ones(rng: Generator) -> None:
    condition = _condition(structure="lsmo")
    counts = {round(len(_atoms(condition, rng, 100).number_n), -1) for _ in range(12)}
    along = [
        len(_atoms(_condition(structure="lsmo", zone_axis=zone), rng, 100).number_n)
        for zone in ((1, 0, 0), (1, 1, 0))
    ]
    assert min(counts) < np.mean(along) < max(counts)


def test_a_mixed_column_scatters_less_the_thicker_it_is(rng: Generator) -> None:
    scatter = []
    for thickness_nm in (3.88, 38.8):
        atoms = _atoms(
            _condition(structure="lsmo", zone_axis=(1, 0, 0), thickness_nm=thickness_nm), rng
        )
        signal = np.asarray(atoms.signal_n)[atoms.number_n == 57]
        scatter.append(signal.std() / signal.mean())
    assert scatter[0] / scatter[1] == pytest.approx(math.sqrt(10), rel=0.2)


@pytest.mark.parametrize("zone_axis", [(0, 0, 1), (1, 1, 0)])
def test_columns_of_oxygen_alone_are_seen_but_not_told(
    zone_axis: tuple[int, int, int], rng: Generator
) -> None:
    atoms = _atoms(_condition(structure="lsmo", zone_axis=zone_axis), rng)
    is_oxygen = atoms.number_n == 8
    assert is_oxygen.any()
    assert np.array_equal(atoms.is_in_truth_n, ~is_oxygen)
    told = simulate(_condition(structure="lsmo", zone_axis=zone_axis), 1, seed=0).truth[0]
    assert set(told[:, 2]) == {25.0, 57.0}


def test_twice_the_thickness_is_twice_the_signal(rng: Generator) -> None:
    means = [
        np.mean(
            _atoms(_condition(structure="lsmo", zone_axis=(1, 0, 0), thickness_nm=nm), rng).signal_n
        )
        for nm in (7.76, 15.52)
    ]
    assert means[1] / means[0] == pytest.approx(2, rel=0.02)


def test_no_frame_holds_more_electrons_than_were_sent() -> None:
    made = simulate(_condition(structure="grain_boundary", thickness_nm=500), 1, seed=0)
    sent = 1e9 * 0.15**2
    assert 0.5 * sent < made.frames_nyx.max() < 1.001 * sent


@pytest.mark.parametrize("tilt_deg", [10.0, 38.9, 90.0])
def test_a_boundary_keeps_its_columns_apart(tilt_deg: float, rng: Generator) -> None:
    columns = view(bulk("Au"), (1, 1, 0))
    place, _ = grown_boundary(columns, {"tilt_deg": tilt_deg, "strain": 0.0}, SIDE_PM, rng)
    far, _ = cKDTree(place).query(place, k=2)
    assert far[:, 1].min() > 0.7 * 249
    area = (SIDE_PM[0] + 2 * MARGIN_PM) * (SIDE_PM[1] + 2 * MARGIN_PM)
    per_area = len(columns.place_c2) / abs(np.linalg.det(columns.plane_pm))
    assert 0.9 < len(place) / area / per_area <= 1.01


def test_the_grains_of_a_boundary_are_turned_by_its_angle(rng: Generator) -> None:
    columns = view(bulk("Au"), (0, 0, 1))
    place, _ = grown_boundary(columns, {"tilt_deg": 30.0, "strain": 0.0}, SIDE_PM, rng)
    far, near = cKDTree(place).query(place, k=5)
    inner = np.isclose(far[:, 1], far[:, 4], rtol=1e-3)
    step = place[near[inner, 1]] - place[inner]
    angles = np.degrees(np.arctan2(step[:, 0], step[:, 1]))
    apart = np.abs((angles - angles[0] + 45) % 90 - 45)
    assert np.minimum(apart, np.abs(apart - 30)).max() < 0.01
    assert 0.2 < (apart > 15).mean() < 0.8


@pytest.mark.parametrize(
    ("text", "has"), [(WHOLE, {38}), (MIXED, {57, 38})], ids=["whole", "mixed"]
)
def test_a_crystal_comes_from_a_cif(
    text: str, has: set[int], tmp_path: Path, rng: Generator
) -> None:
    file = tmp_path / "sto.cif"
    file.write_text(STO + text)
    condition = _condition(structure="crystal", file=str(file), thickness_nm=0.39)
    atoms = _atoms(condition, rng)
    assert set(atoms.number_n[atoms.is_in_truth_n]) == has | {22}
    per_nm2 = 1 / 0.3905**2
    assert (atoms.number_n == 22).sum() / _area_nm2() == pytest.approx(per_nm2, rel=0.03)


def test_partly_occupied_sites_are_drawn_atom_by_atom(tmp_path: Path, rng: Generator) -> None:
    file = tmp_path / "mixed.cif"
    file.write_text(STO + MIXED)
    crystal = read_crystal(str(file))
    columns = view(crystal, (0, 0, 1))
    atoms = occupied(grown(columns, 0.0, SIDE_PM, rng), columns, crystal.shares, 1, rng)
    counts = {z: (atoms.number_n == z).sum() for z in (57, 38, 22)}
    assert counts[57] / counts[22] == pytest.approx(0.3, abs=0.08)
    assert counts[38] / counts[22] == pytest.approx(0.6, abs=0.08)


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.cif"
    file.write_text(STO + WHOLE)
    before = read_crystal(str(file))
    assert read_crystal(str(file)) is before
    file.write_text(STO.replace("3.905", "4.100") + WHOLE)
    assert read_crystal(str(file)).cell_pm[0, 0] == pytest.approx(410)


def test_a_file_that_is_not_the_one_named_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.cif"
    file.write_text(STO + WHOLE)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(read_crystal(str(file), digest[:12]).shares) == 5
    file.write_text(STO + MIXED)
    with pytest.raises(InvalidInput, match="does not begin with"):
        read_crystal(str(file), digest[:12])


def test_thinned_sites_lose_their_share() -> None:
    assert thinned([{42: 1.0}, {57: 0.5, 38: 0.5}], 0.1)[1] == {57: 0.45, 38: 0.45}


@pytest.mark.parametrize(
    ("name", "text", "kind", "says"),
    [
        pytest.param("none.cif", None, NotFound, "no structure file", id="missing"),
        pytest.param("bad.cif", "not a cif", UnreadableFile, "is not a structure file", id="junk"),
        pytest.param("empty.cif", "", UnreadableFile, "is not a structure file", id="empty"),
        pytest.param("a.xyz", "1\n\nAu 0 0 0\n", InvalidInput, "no cell", id="no-cell"),
        pytest.param("a.cif", STO + WHOLE + "O2 O 0.01 0 0 1\n", InvalidInput, "apart", id="clash"),
    ],
)
def test_a_file_that_holds_no_crystal_is_refused(
    name: str, text: str | None, kind: type[ManybeamError], says: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=says):
        read_crystal(str(tmp_path / name))


@pytest.mark.parametrize("symbol", ["Xx", "Ti", "He"])
def test_an_element_without_a_cubic_crystal_is_refused(symbol: str) -> None:
    with pytest.raises(InvalidInput, match="cubic"):
        bulk(symbol)


def test_a_direction_that_is_no_zone_axis_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sto.cif").write_text(STO + WHOLE)
    with pytest.raises(InvalidInput, match="columns overlap"):
        view(read_crystal(str(tmp_path / "sto.cif")), (7, 11, 13))


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        pytest.param({"zone_axis": [0, 0, 0]}, "no direction", id="no-direction"),
        pytest.param({"zone_axis": [0, 1]}, "required", id="two-indices"),
        pytest.param({"zone_axis": [0, 0, 99]}, "-20 to 20", id="high-index"),
        pytest.param({"structure": "crystal"}, "needs file", id="crystal-without-file"),
        pytest.param({"element": "gold"}, "pattern", id="no-symbol"),
        pytest.param({"thickness_nm": 0}, "0.1 to 500 nm", id="no-thickness"),
        pytest.param({"tilt_deg": 120}, "0 to 90 deg", id="tilt"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(sample: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Sample.model_validate(sample)


@pytest.mark.parametrize("side_pm", [300.0, 500.0, 720.0, 4000.0])
def test_a_hole_fits_into_frames_of_any_width(side_pm: float) -> None:
    place_n2 = np.random.default_rng(0).uniform(-400, side_pm + 400, (500, 2))
    for seed in range(20):
        kept = cut(place_n2, (side_pm, side_pm), np.random.default_rng(seed))
        assert kept.sum() > 30


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("Sr1 Sr 0 0 0 -0.5\nTi1 Ti 0.5 0.5 0.5 1\n", "-0.5"),
        ("Sr1 Sr 0 0 0 0.9\nLa1 La 0 0 0 0.6\nTi1 Ti 0.5 0.5 0.5 1\n", "1.5"),
        ("Sr1 Sr 0 0 0 0\nTi1 Ti 0.5 0.5 0.5 0\n", "are empty"),
    ],
    ids=["negative", "more than whole", "empty"],
)
def test_occupancies_that_no_site_can_have_are_refused(
    rows: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "a.cif").write_text(STO + rows)
    with pytest.raises(InvalidInput, match=says):
        read_crystal(str(tmp_path / "a.cif"))


@pytest.mark.parametrize("text", ["", "not a cif", STO, STO[: STO.index("_atom_site")]])
def test_a_file_that_cannot_be_read_is_told_with_a_reason(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text(text)
    with pytest.raises(UnreadableFile) as caught:
        read_crystal(str(tmp_path / "a.cif"))
    assert not caught.value.why.rstrip().endswith(("Error:", "StopIteration:"))


@pytest.mark.parametrize(
    ("sample", "layers"),
    [
        pytest.param({}, 1, id="thickness open"),
        pytest.param({"thickness_nm": 6.0}, 3, id="thickness given"),
    ],
)
def test_a_sheet_in_a_cell_of_its_own_is_one_sheet(
    sample: dict[str, float], layers: int, tmp_path: Path, rng: Generator
) -> None:
    sheet = STO.replace("_cell_length_c 3.905", "_cell_length_c 20").replace("P m -3 m", "P 1")
    sheet = sheet.replace("_space_group_IT_number 221", "_space_group_IT_number 1")
    (tmp_path / "sheet.cif").write_text(sheet + "Mo1 Mo 0 0 0.5 1\nS1 S 0.5 0.5 0.58 1\n")
    file = str(tmp_path / "sheet.cif")
    atoms = _atoms(_condition(structure="crystal", file=file, **sample), rng)
    assert np.unique(np.asarray(atoms.signal_n).round(6)).tolist() == [layers]


def test_a_bulk_crystal_is_no_sheet() -> None:
    assert not view(LSMO, (0, 0, 1)).is_sheet
    assert not view(LSMO, (1, 1, 0)).is_sheet

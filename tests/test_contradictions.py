"""Metadata: every unit is read right, and what contradicts itself is said, never averaged."""

import contextlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from manybeam.data.io.formats import Raw, _implied_by_fei
from manybeam.data.io.measured import check_one_condition, dose_e_per_a2, settle_pixel_size
from manybeam.data.io.reading import FrameFile, read_frames
from manybeam.data.io.units import OURS, factor, measure
from manybeam.errors import InvalidInput
from manybeam.spec import Condition

IMAGE = np.random.default_rng(7).integers(0, 250, (12, 24)).astype(np.uint8)


def with_sidecar(folder: Path, tree: Any) -> FrameFile:
    np.save(folder / "a.npy", IMAGE)
    (folder / "a.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return read_frames(folder / "a.npy")


def quantities(record: FrameFile) -> dict[str, float]:
    found = {path: value for path, value in record.condition.quantities() if value is not None}
    return {path: float(value) for path, value in found.items() if isinstance(value, float)}


@pytest.mark.parametrize(
    ("value", "unit", "ours", "expected"),
    [
        pytest.param(1.5e-11, "m", "pm", 15, id="m"),
        pytest.param("0.015 nm", "", "pm", 15, id="nm in the text"),
        pytest.param(0.15, "A", "pm", 15, id="A of a length is an angstrom"),
        pytest.param(0.15, "Å", "pm", 15, id="angstrom"),
        pytest.param(1.5e-5, "µm", "pm", 15, id="um"),
        pytest.param(0.03, "rad", "mrad", 30, id="rad"),
        pytest.param(30, "mrad", "mrad", 30, id="mrad"),
        pytest.param(1.0, "deg", "mrad", 17.4533, id="degrees"),
        pytest.param(8e-6, "s", "us", 8, id="s"),
        pytest.param("8 us", "", "us", 8, id="us"),
        pytest.param(0.008, "ms", "us", 8, id="ms"),
        pytest.param(60000, "V", "kV", 60, id="V"),
        pytest.param("60 keV", "", "kV", 60, id="keV"),
        pytest.param(3e-11, "A", "pA", 30, id="A of a current is an ampere"),
        pytest.param("30 pA", "", "pA", 30, id="pA"),
        pytest.param(0.03, "nA", "pA", 30, id="nA"),
        pytest.param(1e8, "e-/nm^2", "e/A^2", 1e6, id="e/nm^2"),
        pytest.param(1e6, "e/Å²", "e/A^2", 1e6, id="e/A^2"),
        pytest.param(-4e-9, "m", "nm", -4, id="negative"),
        pytest.param(60, "s", "kV", None, id="a unit of something else"),
        pytest.param(60, "", "kV", None, id="no unit"),
        pytest.param("fast", "s", "us", None, id="a word"),
        pytest.param(5.0, "1/nm", "pm", None, id="1/nm is no length"),
    ],
)
def test_a_number_is_read_in_its_unit(value, unit, ours, expected):
    assert measure(value, unit, ours) == (expected and pytest.approx(expected, rel=1e-5))


@given(st.sampled_from(sorted(set(OURS.values()))), st.floats(1e-3, 1e3))
def test_a_number_in_our_own_unit_is_left_alone(ours, value):
    assert factor(ours, ours) == pytest.approx(1.0)
    assert measure(value, ours, ours) == pytest.approx(value)


@pytest.mark.parametrize(
    ("tree", "path", "expected"),
    [
        ({"voltage": "60 kV"}, "optics.beam_kv", 60),
        ({"metadata": {"instrument": {"EHT": 60000}}}, "optics.beam_kv", 60),
        ({"beam_energy": 60.0}, "optics.beam_kv", 60),
        ({"HT": 60000}, "optics.beam_kv", 60),
        ({"HT (kV)": 60}, "optics.beam_kv", 60),
        ({"pixel_size_y": "15 pm"}, "scan.pixel_size_pm", 15),
        ({"pixel_size_x": "15 pm", "pixel_size_y": "15 pm"}, "scan.pixel_size_pm", 15),
        ({"beam_energy": {"value": 6e4, "unit": "eV"}}, "optics.beam_kv", 60),
        ({"convergence_angle": 0.03, "convergence_angle_units": "rad"},
         "optics.convergence_mrad", 30),
        ({"probe_current": "30 pA"}, "optics.beam_current_pa", 30),
        ({"beam current (nA)": 0.03}, "optics.beam_current_pa", 30),
        ({"defocus_nm": 4}, "optics.defocus_nm", 4),
        ({"C10": 4e-9}, "optics.defocus_nm", -4),
        ({"C30": 2e-6}, "optics.cs_um", 2),
        ({"C12": 1e-9}, "optics.astigmatism_nm", 1),
        ({"C21": 2e-8}, "optics.coma_nm", 20),
        ({"C23": 2e-8}, "optics.trefoil_nm", 20),
        ({"inner_angle": "70 mrad"}, "detector.detector_inner_mrad", 70),
        ({"outer_angle": 0.2, "outer_angle_unit": "rad"}, "detector.detector_outer_mrad", 200),
        ({"pixel_time_us": 16}, "scan.dwell_us", 16),
        ({"dwell_time": 16e-6, "dwell_time_units": "s"}, "scan.dwell_us", 16),
        ({"Acquisition_instrument": {"TEM": {"beam_current": 0.03}}}, "optics.beam_current_pa", 30),
        ({"Acquisition_instrument": {"TEM": {"beam_current": "30 pA"}}},
         "optics.beam_current_pa", 30),
        ({"Acquisition_instrument": {"TEM": {"Scan": {"dwell_time": 16e-6}}}}, "scan.dwell_us", 16),
        ({"dose": "1e8 e/nm^2"}, "dose_e_per_a2", 1e6),
        ({"pixel_size": "0.015 nm"}, "scan.pixel_size_pm", 15),
        ({"fov_nm": 0.36}, "scan.pixel_size_pm", 15),
        ({"spatial": [{"field_of_view_x": 3.6, "field_of_view_units": "A"}]},
         "scan.pixel_size_pm", 15),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_json_beside_a_frame_fills_its_condition(tree, path, expected, tmp_path):
    assert quantities(with_sidecar(tmp_path, tree)) == {path: pytest.approx(expected)}


@pytest.mark.parametrize(
    ("tree", "modality"),
    [
        ({"experiment_type": "HAADF-STEM"}, "haadf"),
        ({"scan": {"detector": "MAADF"}}, "maadf"),
        ({"experiment_type": "an overview"}, "unknown"),
    ],
    ids=str,
)
def test_a_json_beside_a_frame_tells_the_kind_of_imaging(tree, modality, tmp_path):
    assert with_sidecar(tmp_path, tree).condition.modality == modality


@pytest.mark.parametrize(
    ("tree", "expected", "noted"),
    [
        # No probe converges so little; but neither by 150 mrad.
        ({"convergence": 0.15}, {}, "0.15"),
        ({"convergence": 0.03}, {"optics.convergence_mrad": 30}, "0.03 was taken as rad"),
        ({"inner_angle": 0.15}, {"detector.detector_inner_mrad": 150}, "0.15 was taken as rad"),
        ({"voltage": 60000}, {"optics.beam_kv": 60}, "60000 was taken as V, not as kV"),
        ({"dwell": 16e-6}, {"scan.dwell_us": 16}, "taken as s, not as us"),
        ({"voltage": "60000 V"}, {"optics.beam_kv": 60}, ""),
        ({"EHT": 60000}, {"optics.beam_kv": 60}, ""),
    ],
    ids=str,
)
def test_a_bare_number_is_converted_only_out_of_reach_and_with_a_note(
    tree, expected, noted, tmp_path
):
    record = with_sidecar(tmp_path, tree)
    assert quantities(record) == pytest.approx(expected)
    assert noted in " ".join(record.notes) if noted else not record.notes


@pytest.mark.parametrize("value", [["1/nm"], [1, "1/nm"], {"x": "1/nm"}, None], ids=str)
def test_a_pixel_size_that_is_no_number_refuses_no_frame(value, tmp_path):
    assert quantities(with_sidecar(tmp_path, {"pixel_size": value})) == {}


def test_zero_in_a_json_is_unknown_and_strange_units_are_told(tmp_path):
    record = with_sidecar(tmp_path, {"voltage": "0 kV", "defocus": "3 turns", "dwell_us": None})
    assert quantities(record) == {}
    assert record.notes == ("a.json: defocus '3 turns' was not understood",)


@pytest.mark.parametrize("text", ["{", "[1, 2", "\x00"])
def test_a_broken_json_beside_a_frame_is_passed_over_with_a_word(text, tmp_path):
    record = with_sidecar(tmp_path, text)
    assert "a.json was ignored" in record.notes[0]
    assert record.pixel_size_pm is None


@pytest.mark.parametrize(
    ("tree", "size", "numbers"),
    [
        pytest.param({"pixel_size": "15 pm", "fov_nm": 0.48}, 15, ("15 pm", "20 pm"),
                     id="pixel size and field of view"),
        pytest.param({"fov_x_nm": 0.36, "fov_y_nm": 0.36}, 15, ("15 pm", "30 pm"),
                     id="a square field of a frame that is not"),
    ],
)  # fmt: skip
def test_two_pixel_sizes_in_a_json_are_told_and_not_averaged(tree, size, numbers, tmp_path):
    record = with_sidecar(tmp_path, tree)
    assert record.pixel_size_pm == pytest.approx(size)
    assert any(all(number in note for number in numbers) for note in record.notes)


def test_a_field_of_view_that_agrees_is_not_worth_a_word(tmp_path):
    record = with_sidecar(tmp_path, {"pixel_size": "15 pm", "fov_nm": 0.361})
    assert not [note for note in record.notes if "two pixel sizes" in note]


def test_two_tags_of_a_tiff_that_differ_are_told(tmp_path):
    sizes = {"PhysicalSizeX": 0.02, "PhysicalSizeXUnit": "nm",
             "PhysicalSizeY": 0.02, "PhysicalSizeYUnit": "nm"}  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, ome=True, metadata=sizes,
                     resolution=(4e8, 4e8), resolutionunit="CENTIMETER")  # fmt: skip
    record = read_frames(tmp_path / "a.ome.tif")
    assert record.pixel_size_pm == pytest.approx(20)
    assert "says 20 pm, the resolution tags 25 pm" in record.notes[0]


def test_a_tiff_and_the_json_beside_it_that_differ_are_told(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, imagej=True, resolution=(50, 50),
                     metadata={"unit": "nm"})  # fmt: skip
    (tmp_path / "a.json").write_text('{"pixel_size_pm": 24, "voltage": "60 kV"}')
    record = read_frames(tmp_path / "a.tif")
    assert record.pixel_size_pm == pytest.approx(20)
    assert record.condition.optics.beam_kv == 60
    assert any("says 20 pm, a.json 24 pm" in note for note in record.notes)


def test_the_extended_header_of_an_mrc_is_held_against_the_main_one():
    raw = Raw(IMAGE, pixel_size_pm=10.0)
    _implied_by_fei(raw, {"Pixel size X": 2e-11, "Scan size right": 100.0, "Full scan FOV X": 1e-9})
    notes: list[str] = []
    assert settle_pixel_size(raw, None, None, notes) == 10.0
    assert "the extended header 20 pm" in notes[0]
    assert len(notes) == 1  # the field of view agrees with the main header


@pytest.mark.parametrize(
    ("attributes", "path", "expected"),
    [
        ({"voltage": 80.0}, "optics.beam_kv", 80),
        ({"voltage": 80000.0}, "optics.beam_kv", 80),
        ({"voltage": 8e4, "voltage_units": "V"}, "optics.beam_kv", 80),
        ({"convergence_angle": 25.0}, "optics.convergence_mrad", 25),
        ({"probe_current": 5e-11, "probe_current_units": "A"}, "optics.beam_current_pa", 50),
        ({"defocus": "-4 nm"}, "optics.defocus_nm", -4),
        ({"dwell_time": 8.0, "dwell_time_units": "[us]"}, "scan.dwell_us", 8),
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_berkeley_file_states_its_microscope_with_units(attributes, path, expected, tmp_path):
    with h5py.File(tmp_path / "a.emd", "w") as file:
        group = file.create_group("data/scan")
        group.attrs["emd_group_type"] = 1
        group["data"] = IMAGE
        file.create_group("microscope").attrs.update(attributes)
    assert quantities(read_frames(tmp_path / "a.emd")) == {path: pytest.approx(expected)}


# -- dose -------------------------------------------------------------------------------------
DOSED = {"probe_current": "60 pA", "dwell_us": 16, "pixel_size": "7.8 pm"}


def test_the_dose_is_derived_and_said_to_be(tmp_path):
    record = with_sidecar(tmp_path, DOSED)
    assert record.condition.dose_e_per_a2 == pytest.approx(dose_e_per_a2(60, 16, 7.8))
    assert record.condition.dose_e_per_a2 == pytest.approx(9.85e5, rel=1e-3)
    assert any("9.85e+05 is derived: 60 pA x 16 us on 7.8 pm" in note for note in record.notes)


@pytest.mark.parametrize(
    ("dose", "is_told"), [("9.8e5 e/A^2", False), ("9e5 e/A^2", False), ("5e5 e/A^2", True)]
)
def test_a_stated_dose_is_kept_and_held_against_the_derived_one(dose, is_told, tmp_path):
    record = with_sidecar(tmp_path, DOSED | {"dose": dose})
    assert record.condition.dose_e_per_a2 == float(dose.split()[0])
    assert any("make 9.85e+05" in note for note in record.notes) == is_told


def test_a_condition_of_the_caller_that_contradicts_the_derived_dose_is_told(tmp_path):
    with_sidecar(tmp_path, DOSED)
    mine = Condition(id="mine", dose_e_per_a2=2e4)
    record = read_frames(tmp_path / "a.npy", condition=mine)
    assert record.condition.dose_e_per_a2 == 2e4
    assert any("2e+04 is stated" in note for note in record.notes)


@pytest.mark.parametrize("missing", DOSED)
def test_without_one_of_the_three_there_is_no_dose(missing, tmp_path):
    record = with_sidecar(tmp_path, {key: DOSED[key] for key in DOSED if key != missing})
    assert record.condition.dose_e_per_a2 is None


def test_a_detector_whose_hole_is_its_rim_is_left_unknown_and_told(tmp_path):
    record = with_sidecar(tmp_path, {"inner_angle": "200 mrad", "outer_angle": "70 mrad"})
    assert quantities(record) == {}
    assert "200 is not below detector_outer_mrad 70" in record.notes[0]


def sized(folder: Path, words: dict[str, Any], given: float | None, expected: float) -> FrameFile:
    with_sidecar(folder, words)
    mine = Condition.model_validate({"id": "mine", "scan": {"pixel_size_pm": expected}})
    return read_frames(folder / "a.npy", pixel_size_pm=given, condition=mine)


@pytest.mark.parametrize(
    ("words", "given", "pairs"),
    [
        ({}, 29.3, [("the caller says 29.3", "the condition 16")]),
        ({"pixel_size": "15 pm"}, None, [("the file says 15", "the condition 16")]),
        ({"pixel_size": "15 pm"}, 29.3, [("the file says 15", "the caller 29.3"),
                                        ("the file says 15", "the condition 16"),
                                        ("the caller says 29.3", "the condition 16")]),
    ],
    ids=["caller and condition", "file and condition", "all three"],
)  # fmt: skip
def test_every_pair_of_pixel_sizes_that_differ_is_told(words, given, pairs, tmp_path):
    notes = [note for note in sized(tmp_path, words, given, 16.0).notes if "a pixel, the" in note]
    assert len(notes) == len(pairs)
    for note, pair in zip(notes, pairs, strict=True):
        assert all(words in note for words in pair)


@pytest.mark.parametrize("given", [800.0, 0.5, -3.0, float("nan")])
def test_a_pixel_size_of_the_caller_that_no_condition_has_is_refused(given, tmp_path):
    with pytest.raises(InvalidInput, match="1 to 500 pm"):
        sized(tmp_path, {}, given, 16.0)


def test_a_pixel_size_of_a_file_out_of_bounds_is_left_unknown_as_is_said(tmp_path):
    record = with_sidecar(tmp_path, {"pixel_size": "5261 pm"})
    assert record.pixel_size_pm is None
    assert any("5261 is outside 1 to 500 pm: left unknown" in note for note in record.notes)
    assert sized(tmp_path, {"pixel_size": "5261 pm"}, None, 16.0).pixel_size_pm == 16.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"fov_nm": [8, 8]}, "fov_nm [8, 8] was not understood"),
        ({"voltage": {"kilo": 60}}, "voltage {'kilo': 60} was not understood"),
        ({"defocus": []}, "defocus [] was not understood"),
    ],
    ids=str,
)
def test_a_known_name_whose_value_is_not_read_is_told(words, says, tmp_path):
    record = with_sidecar(tmp_path, words)
    assert quantities(record) == {}
    assert record.notes == (f"a.json: {says}",)


def test_a_group_of_a_known_name_is_read_inside_without_a_word(tmp_path):
    record = with_sidecar(tmp_path, {"convergence": {"convergence_angle": "30 mrad"}})
    assert quantities(record) == {"optics.convergence_mrad": 30.0}
    assert record.notes == ()


def test_pixels_that_are_not_square_are_left_unknown_and_told(tmp_path):
    record = with_sidecar(tmp_path, {"pixel_size_x": "16 pm", "pixel_size_y": "32 pm"})
    assert record.pixel_size_pm is None
    assert "not square (32 x 16 pm)" in record.notes[0]


def test_the_angle_of_the_caller_stays_where_that_of_the_file_contradicts_it(tmp_path):
    with_sidecar(tmp_path, {"inner_angle": "300 mrad"})
    mine = Condition.model_validate({"id": "mine", "detector": {"detector_outer_mrad": 200}})
    record = read_frames(tmp_path / "a.npy", condition=mine)
    assert record.condition.detector.detector_outer_mrad == 200
    assert record.condition.detector.detector_inner_mrad is None
    assert "detector_inner_mrad 300 is not below" in record.notes[0]


NOISE = Condition.model_validate({"id": "a", "optics": {"beam_kv": 60}, "dose_e_per_a2": 1e5})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"optics": {"beam_kv": 200}}, r"optics\.beam_kv: 60 of one, 200 of other"),
        ({"dose_e_per_a2": 2e5}, r"dose_e_per_a2: 100000 of one, 200000 of other"),
        ({"optics": {"beam_kv": 60.3}, "dose_e_per_a2": 1.1e5}, None),
        ({"optics": {"defocus_nm": 3}}, None),
    ],
    ids=str,
)
def test_frames_of_one_set_have_one_condition(other, says):
    known = {"one": NOISE, "other": Condition.model_validate({"id": "b"} | other)}
    refused = pytest.raises(InvalidInput, match=says) if says else contextlib.nullcontext()
    with refused:
        check_one_condition(known)

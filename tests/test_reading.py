"""Intake: what instruments write becomes frames and conditions; what is no frame is refused."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from manybeam.data.io.reading import (
    READERS,
    check_frame,
    inspect_frame,
    read_frames,
    read_truth_csv,
)
from manybeam.errors import (
    InvalidFrame,
    InvalidInput,
    NotFound,
    TooLarge,
    UnreadableFile,
    UnsupportedMedia,
)
from manybeam.settings import settings
from manybeam.spec import Condition

IMAGE = np.random.default_rng(7).integers(0, 250, (12, 17)).astype(np.uint8)
STACK = np.random.default_rng(8).integers(0, 9999, (3, 12, 17)).astype(np.uint16)


# -- writers of small files in the instruments' formats ---------------------------------------
def dm_tag(name: str, value: Any, version: int) -> bytes:
    """One entry of a DM tree: a group (dict), a number, text, or an array."""
    wide = ">Q" if version == 4 else ">I"
    label = name.encode("latin-1")
    if isinstance(value, dict):
        body = dm_group(value, version)
    else:
        if isinstance(value, str):
            codes, data = [20, 4, len(value)], value.encode("utf-16-le")
        elif isinstance(value, np.ndarray):
            letter = {"uint8": 8, "uint16": 4, "float32": 6, "int32": 3}[value.dtype.name]
            codes, data = [20, letter, value.size], value.tobytes()
        elif isinstance(value, int):
            codes, data = [3], struct.pack("<i", value)
        else:
            codes, data = [7], struct.pack("<d", value)
        numbers = b"".join(struct.pack(wide, code) for code in [len(codes), *codes])
        body = b"%%%%" + numbers + data
    kind = 20 if isinstance(value, dict) else 21
    size = struct.pack(">Q", len(body)) if version == 4 else b""
    return struct.pack(">BH", kind, len(label)) + label + size + body


def dm_group(entries: dict[str, Any], version: int) -> bytes:
    count = struct.pack(">Q" if version == 4 else ">I", len(entries))
    tags = (dm_tag("" if name.isdigit() else name, v, version) for name, v in entries.items())
    return b"\0\0" + count + b"".join(tags)


def dm_image(pixels: NDArray[Any], kind: int, scale: float, unit: str) -> dict[str, Any]:
    sides = list(pixels.shape[::-1])
    axis = {"Origin": 0.0, "Scale": scale, "Units": unit}
    return {
        "ImageData": {
            "Calibrations": {"Dimension": {str(i + 1): axis for i in range(len(sides))}},
            "Data": pixels.ravel(),
            "DataType": kind,
            "Dimensions": {str(i + 1): side for i, side in enumerate(sides)},
        }
    }


def write_dm(path: Path, image: dict[str, Any], tags: dict[str, Any] | None = None) -> Path:
    version = int(path.suffix[-1])
    thumbnail = dm_image(np.full((64, 64), 9, np.int32), 23, 1.0, "")
    image = image | {"ImageTags": tags or {}}
    body = dm_group({"ImageList": {"1": thumbnail, "2": image}}, version)
    head = struct.pack(">IQI" if version == 4 else ">III", version, len(body), 1)
    path.write_bytes(head + body + b"\0" * 8)
    return path


def write_velox(path: Path, pixels: NDArray[Any], **changes: Any) -> Path:
    info = {
        "BinaryResult": {
            "Detector": "HAADF",
            "PixelSize": {"width": "1.5e-11", "height": "1.5e-11"},
            "PixelUnitX": changes.get("unit", "m"),
            "PixelUnitY": changes.get("unit", "m"),
        },
        "Optics": {"AccelerationVoltage": "60000", "BeamConvergence": "0.0315"}
        | changes.get("optics", {}),
        "Scan": {"DwellTime": "8e-6", "ScanSize": {"width": "512"}},
        "Detectors": {
            "Detector-0": {
                "DetectorName": "HAADF",
                "DetectorType": "ScanningDetector",
                "CollectionAngleRange": {"begin": "0.08", "end": "0.2"},
            }
        },
    }
    text = np.frombuffer(json.dumps(info).encode(), np.uint8)
    metadata = np.zeros((len(text) + 50, pixels.shape[2]), np.uint8)
    metadata[: len(text)] = text[:, None]
    with h5py.File(path, "w") as file:
        group = file.create_group("Data/Image/0a1b")
        group["Data"], group["Metadata"] = pixels, metadata
    return path


def write_berkeley(path: Path, pixels: NDArray[Any], unit: str, step: float = 0.2) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("data/scan")
        group.attrs["emd_group_type"] = 1
        group["data"] = pixels
        for axis, side in enumerate(pixels.shape):
            dim = group.create_dataset(f"dim{axis + 1}", data=np.arange(side) * step)
            dim.attrs["units"] = unit
        file.create_group("microscope").attrs["voltage"] = 80.0
    return path


def write_ser(path: Path, images: NDArray[Any], kind: int = 0x4122, step_m: float = 2e-11) -> Path:
    count = len(images)
    head = struct.pack("<3H4iqi", 0x4949, 0x0197, 0x0220, kind, 0x4152, count, count, 34, 0)
    start = len(head) + 16 * count
    elements, offsets = b"", []
    for image in images:
        offsets.append(start + len(elements))
        calibration = struct.pack("<ddiddi", 0, step_m, 0, 0, step_m, 0)
        sides = struct.pack("<hii", 2, image.shape[1], image.shape[0])
        elements += calibration + sides + image[::-1].astype("<u2").tobytes()
    tables = struct.pack(f"<{2 * count}q", *offsets, *offsets)
    path.write_bytes(head + tables + elements)
    return path


def write_emi(path: Path, kv: Any = (300, "kV"), defocus: Any = ("-0.004", "um")) -> Path:
    label = "<Data><Label>{}</Label><Value>{}</Value><Unit>{}</Unit></Data>"
    text = label.format("High tension", *kv) + label.format("Mode", "STEM nP SA Zoom", "")
    text += label.format("Defocus", *defocus) + "<DwellTimePath>0.000012</DwellTimePath>"
    path.write_bytes(b"JK\0\2" + b"<ObjectInfo>" + text.encode() + b"</ObjectInfo>" + b"\0" * 9)
    return path


def write_mrc(path: Path, pixels: NDArray[Any], angstrom: float = 0.12) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(pixels)
        mrc.voxel_size = angstrom
    return path


def write_tif(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


def write_npy(path: Path, pixels: NDArray[Any]) -> Path:
    np.save(path, pixels)
    return path


def write_png(path: Path, pixels: NDArray[Any]) -> Path:
    Image.fromarray(pixels).save(path)
    return path


GOOD: dict[str, Callable[[Path], Path]] = {
    "a.tif": lambda path: write_tif(path, IMAGE),
    "a.npy": lambda path: write_npy(path, IMAGE),
    "a.png": lambda path: write_png(path, IMAGE),
    "a.mrc": lambda path: write_mrc(path, IMAGE.astype(np.uint16)),
    "a.dm3": lambda path: write_dm(path, dm_image(IMAGE, 6, 0.012, "nm")),
    "a.dm4": lambda path: write_dm(path, dm_image(IMAGE, 6, 0.012, "nm")),
    "velox.emd": lambda path: write_velox(path, IMAGE[..., None]),
    "berkeley.emd": lambda path: write_berkeley(path, IMAGE, "[n_m]"),
    "a_1.ser": lambda path: write_ser(path, IMAGE[None]),
    "b.emi": lambda path: (write_ser(path.with_name("b_1.ser"), IMAGE[None]), write_emi(path))[1],
}


# -- every format, read -----------------------------------------------------------------------
@pytest.mark.parametrize("name", GOOD)
def test_every_format_gives_the_frame_back(name: str, tmp_path: Path) -> None:
    record = read_frames(GOOD[name](tmp_path / name))
    assert record.frame.dtype == np.float32
    assert np.array_equal(record.frame, IMAGE)
    assert record.condition.origin == "measured"
    assert record.condition.scan.shape == IMAGE.shape


def test_a_jpeg_is_read_and_its_loss_told(tmp_path: Path) -> None:
    record = read_frames(write_png(tmp_path / "a.jpg", IMAGE))
    assert record.frame.shape == IMAGE.shape
    assert "JPEG loses detail" in record.notes[0]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.tif", lambda path: write_tif(path, STACK, photometric="minisblack")),
        ("a.npy", lambda path: write_npy(path, STACK)),
        ("a.mrc", lambda path: write_mrc(path, STACK)),
        ("a.dm3", lambda path: write_dm(path, dm_image(STACK, 10, 0.012, "nm"))),
        ("a.emd", lambda path: write_velox(path, np.moveaxis(STACK, 0, 2))),
        ("b.emd", lambda path: write_berkeley(path, STACK, "nm")),
        ("a_1.ser", lambda path: write_ser(path, STACK)),
    ],
)
def test_a_movie_is_a_stack_of_frames(
    name: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    assert np.array_equal(read_frames(write(tmp_path / name)).frame, STACK)


# -- pixel size -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scale", "unit", "expected_pm"),
    [
        (0.0123, "nm", 12.3),
        (0.123, "Å", 12.3),
        (0.123, "A", 12.3),
        (1.23e-5, "µm", 12.3),
        (1.23e-11, "m", 12.3),
        (12.3, "pm", 12.3),
        (0.123, "A\u030a", 12.3),
        (1.23e-5, "\u00c2\u00b5m", 12.3),
        (0.0123, "nanometers", 12.3),
        (0.0123, "nm/pixel", 12.3),
        (-0.0123, "nm", 12.3),
        (1.0, "", None),
        (1.0, "px", None),
        (0.0, "nm", None),
        (float("nan"), "nm", None),
    ],
)
def test_the_pixel_size_is_read_in_any_unit_of_length(
    scale: float, unit: str, expected_pm: float | None, tmp_path: Path
) -> None:
    record = read_frames(write_dm(tmp_path / "a.dm4", dm_image(IMAGE, 6, scale, unit)))
    assert record.pixel_size_pm == pytest.approx(expected_pm)


@pytest.mark.parametrize(
    "unit",
    ["1/nm", "nm^-1", "1/A", "(1/nm)", "1/pixel", "nm⁻¹", "mrad", "milliradian", "eV", "THz"],
)
def test_a_diffraction_pattern_or_spectrum_is_refused(unit: str, tmp_path: Path) -> None:
    path = write_dm(tmp_path / "a.dm3", dm_image(IMAGE, 6, 0.01, unit))
    with pytest.raises(UnreadableFile, match=r"diffraction|spectrum"):
        read_frames(path, pixel_size_pm=10.0)


def test_of_a_tiff_with_a_thumbnail_the_largest_image_is_taken_and_told(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(IMAGE[:4, :4])
        file.write(IMAGE, resolution=(5e8, 5e8), resolutionunit="CENTIMETER")
    record = read_frames(tmp_path / "a.tif")
    assert np.array_equal(record.frame, IMAGE)
    assert record.pixel_size_pm == pytest.approx(20)
    assert record.notes[0].startswith("2 images; the largest was taken")


def test_a_unit_that_is_not_understood_is_told(tmp_path: Path) -> None:
    record = read_frames(write_dm(tmp_path / "a.dm3", dm_image(IMAGE, 6, 0.01, "furlong")))
    assert record.pixel_size_pm is None
    assert record.notes == (
        "its pixel size is in 'furlong', which is not understood: left unknown",
    )


@pytest.mark.parametrize(
    ("pixels", "options", "said"),
    [
        pytest.param(
            np.stack([STACK, STACK]),
            {"imagej": True, "metadata": {"axes": "TZYX"}},
            "2 times x 3 depths: each was taken as a frame",
            id="hyperstack",
        ),
        pytest.param(
            np.stack([IMAGE, IMAGE]).astype(np.uint16),
            {"imagej": True, "metadata": {"axes": "CYX"}},
            "2 channels, each taken as a frame",
            id="channels",
        ),
        pytest.param(IMAGE, {"photometric": "miniswhite"}, "0 to be white", id="inverted"),
    ],
)
def test_what_a_tiff_may_mean_otherwise_is_told(
    pixels: NDArray[Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in read_frames(write_tif(tmp_path / "a.tif", pixels, **options)).notes[0]


@pytest.mark.parametrize(
    ("options", "expected_pm"),
    [
        pytest.param({}, None, id="none"),
        pytest.param(
            {"imagej": True, "resolution": (50, 50), "metadata": {"unit": "nm"}}, 20.0, id="ImageJ"
        ),
        pytest.param(
            {"imagej": True, "resolution": (5e4, 5e4), "metadata": {"unit": "\\u00B5m"}},
            20.0,
            id="ImageJ micron",
        ),
        pytest.param({"resolution": (72, 72), "resolutionunit": "INCH"}, None, id="printer"),
        pytest.param({"resolution": (5e8, 5e8), "resolutionunit": "CENTIMETER"}, 20.0, id="cm"),
        pytest.param(
            {
                "ome": True,
                "metadata": {
                    "PhysicalSizeX": 0.02,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 0.02,
                    "PhysicalSizeYUnit": "nm",
                },
            },
            20.0,
            id="OME",
        ),
        pytest.param(
            {
                "extratags": [
                    (65003, "s", 0, "nm", True),
                    (65004, "s", 0, "nm", True),
                    (65009, "d", 1, 0.02, True),
                    (65010, "d", 1, 0.02, True),
                ]
            },
            20.0,
            id="Gatan",
        ),
    ],
)
def test_a_tiff_states_its_pixel_size_in_four_ways(
    options: dict[str, Any], expected_pm: float | None, tmp_path: Path
) -> None:
    record = read_frames(write_tif(tmp_path / "a.tif", IMAGE, **options))
    assert record.pixel_size_pm == pytest.approx(expected_pm)


def test_the_callers_pixel_size_counts_and_a_contradiction_is_told(tmp_path: Path) -> None:
    path = write_velox(tmp_path / "a.emd", IMAGE[..., None])
    record = read_frames(path, pixel_size_pm=18.0)
    assert record.pixel_size_pm == record.condition.scan.pixel_size_pm == 18.0
    assert any("the file says 15 pm a pixel, the caller 18" in note for note in record.notes)


def test_a_pixel_size_that_agrees_is_not_worth_a_note(tmp_path: Path) -> None:
    path = write_velox(tmp_path / "a.emd", IMAGE[..., None])
    assert read_frames(path, pixel_size_pm=15.05).notes == ()


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan"), float("inf")])
def test_a_pixel_size_that_is_none_is_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not from 1 to 500 pm"):
        read_frames(write_npy(tmp_path / "a.npy", IMAGE), pixel_size_pm=value)


# -- the condition ----------------------------------------------------------------------------
def test_velox_fills_the_condition_in_our_units(tmp_path: Path) -> None:
    record = read_frames(write_velox(tmp_path / "Scan 12 HAADF.emd", IMAGE[..., None]))
    found = {path: value for path, value in record.condition.quantities() if value is not None}
    assert found == pytest.approx(
        {
            "optics.beam_kv": 60,
            "optics.convergence_mrad": 31.5,
            "detector.detector_inner_mrad": 80,
            "detector.detector_outer_mrad": 200,
            "scan.pixel_size_pm": 15,
            "scan.dwell_us": 8,
        }
    )
    assert record.condition.id == "scan-12-haadf"
    assert record.condition.modality == "haadf"


def test_gatan_fills_the_condition_and_zero_means_unknown(tmp_path: Path) -> None:
    tags = {
        "Microscope Info": {
            "Voltage": 200000.0,
            "Probe Current (nA)": 0.05,
            "Cs(mm)": 0.0,
            "Illumination Mode": "STEM NANOPROBE",
        },
        "DigiScan": {"Sample Time": 3.5},
        "EELS": {"Convergence semi-angle (mrad)": 24.0},
        "QuickSaved": {"original name": "Fei HAADF"},
    }
    record = read_frames(write_dm(tmp_path / "a.dm3", dm_image(IMAGE, 6, 0.01, "nm"), tags))
    optics = record.condition.optics
    assert (optics.beam_kv, optics.beam_current_pa, optics.convergence_mrad) == (200, 50, 24)
    assert optics.cs_um is None
    assert record.condition.scan.dwell_us == 3.5
    assert record.condition.modality == "haadf"


def test_tia_fills_the_condition_and_turns_the_sign_of_defocus(tmp_path: Path) -> None:
    record = read_frames(GOOD["b.emi"](tmp_path / "b.emi"))
    assert record.pixel_size_pm == pytest.approx(20.0)
    assert record.condition.optics.beam_kv == 300
    assert record.condition.optics.defocus_nm == pytest.approx(4.0)
    assert record.condition.scan.dwell_us == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("kv", "defocus"),
    [((300, "kV"), (-4.0, "nm")), ((300000, "V"), ("-4e-9", "m")), ((300, ""), ("-0.004", ""))],
)
def test_tia_states_a_unit_beside_each_label(kv: Any, defocus: Any, tmp_path: Path) -> None:
    write_ser(tmp_path / "b_1.ser", IMAGE[None])
    optics = read_frames(write_emi(tmp_path / "b.emi", kv, defocus)).condition.optics
    assert optics.beam_kv == pytest.approx(300)
    assert optics.defocus_nm == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("width", "field_um", "is_told"),
    [
        pytest.param(2048, 0.01 * 2.048, False, id="of the whole scan"),
        pytest.param(2048, 0.00017, False, id="of what was left of it"),
        pytest.param(2048, 0.03, True, id="of neither"),
    ],
)
def test_gatans_field_of_view_is_held_against_its_calibration(
    *, width: int, field_um: float, is_told: bool, tmp_path: Path
) -> None:
    tags = {
        "Microscope Info": {"Field of View (\xb5m)": field_um},
        "DigiScan": {"Image Width": width, "Sample Time": 3.5},
    }
    record = read_frames(write_dm(tmp_path / "a.dm4", dm_image(IMAGE, 6, 0.01, "nm"), tags))
    assert record.pixel_size_pm == pytest.approx(10.0)
    assert any("says 10 pm, the field of view" in note for note in record.notes) == is_told


@pytest.mark.parametrize(("field_m", "is_told"), [(7.68e-9, False), (1e-8, True)])
def test_the_field_of_view_of_velox_is_held_against_its_pixel_size(
    *, field_m: float, is_told: bool, tmp_path: Path
) -> None:
    optics = {"FullScanFieldOfView": {"x": str(field_m), "y": str(field_m)}}
    record = read_frames(write_velox(tmp_path / "a.emd", IMAGE[..., None], optics=optics))
    assert record.pixel_size_pm == pytest.approx(15)
    assert any("says 15 pm, the field of view 19.5" in note for note in record.notes) == is_told


def test_what_the_file_does_not_say_stays_unknown(tmp_path: Path) -> None:
    record = read_frames(write_npy(tmp_path / "a.npy", IMAGE))
    assert [path for path, value in record.condition.quantities() if value is not None] == []
    assert record.condition.modality == "unknown"
    assert record.pixel_size_pm is None


def test_a_value_no_condition_may_have_is_left_out_and_told(tmp_path: Path) -> None:
    tags = {"Microscope Info": {"Voltage": 3000.0}}
    record = read_frames(write_dm(tmp_path / "a.dm3", dm_image(IMAGE, 6, 0.01, "nm"), tags))
    assert record.condition.optics.beam_kv is None
    assert any("beam_kv 3 is outside 20 to 400 kV" in note for note in record.notes)


def test_the_callers_condition_counts_and_the_file_fills_its_gaps(tmp_path: Path) -> None:
    mine = Condition.model_validate({"id": "mine", "optics": {"beam_kv": 80}})
    record = read_frames(write_velox(tmp_path / "a.emd", IMAGE[..., None]), condition=mine)
    assert record.condition.id == "mine"
    assert record.condition.optics.beam_kv == 80
    assert record.condition.optics.convergence_mrad == pytest.approx(31.5)
    assert any("optics.beam_kv: the file says 60, the condition 80" in n for n in record.notes)


def test_the_conditions_pixel_size_is_taken_where_the_file_has_none(tmp_path: Path) -> None:
    mine = Condition.model_validate({"id": "mine", "scan": {"pixel_size_pm": 29.3}})
    assert read_frames(write_npy(tmp_path / "a.npy", IMAGE), condition=mine).pixel_size_pm == 29.3


# -- sizes and settings that nobody measured, or in other units ----------------------------------
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.mrc", lambda path: write_mrc(path, STACK, angstrom=1.0)),
        ("a.dm3", lambda path: write_dm(path, dm_image(IMAGE, 6, 1.0, "A"))),
        ("a.emd", lambda path: write_berkeley(path, IMAGE, "A", step=1.0)),
        ("a_1.ser", lambda path: write_ser(path, IMAGE[None], step_m=1.0)),
    ],
)
def test_a_pixel_of_exactly_one_unit_is_doubted(
    name: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    record = read_frames(write(tmp_path / name))
    assert record.pixel_size_pm is None
    assert any("write when they do not know it" in note for note in record.notes)


def test_a_size_below_zero_in_an_mrc_file_is_none(tmp_path: Path) -> None:
    record = read_frames(write_mrc(tmp_path / "a.mrc", STACK, angstrom=-0.2))
    assert record.pixel_size_pm is None
    assert record.notes == ()


def test_a_doubted_size_is_that_of_the_caller_without_contradiction(tmp_path: Path) -> None:
    record = read_frames(write_mrc(tmp_path / "a.mrc", STACK, angstrom=1.0), pixel_size_pm=16.0)
    assert record.pixel_size_pm == 16.0
    assert len(record.notes) == 1


@pytest.mark.parametrize(
    ("stamp", "flags", "greatest", "meant"),
    [
        pytest.param(0, 0, 127.0, "int8", id="by the standard"),
        pytest.param(0, 0, 250.0, "uint8", id="by its greatest value"),
        pytest.param(1146047817, 0, 127.0, "uint8", id="IMOD, unsigned"),
        pytest.param(1146047817, 1, 250.0, "int8", id="IMOD, signed"),
    ],
)
def test_bytes_of_an_mrc_file_are_signed_or_not_as_its_writer_meant(
    stamp: int, flags: int, greatest: float, meant: str, tmp_path: Path
) -> None:
    path = write_mrc(tmp_path / "a.mrc", IMAGE.view(np.int8))
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 76, -128.0 if greatest == 127 else 0.0, greatest)
    struct.pack_into("<2i", content, 152, stamp, flags)
    path.write_bytes(content)
    assert np.array_equal(read_frames(path).frame, IMAGE.view(meant))


@pytest.mark.parametrize(
    "settings",
    [
        {"voltage": 80.0, "convergence angle": 30.0, "dwell_time": 4.0, "beam_current": 25.0},
        {"voltage": 8e4, "convergence angle": 0.03, "dwell_time": 4e-6, "beam_current": 2.5e-11},
        {
            "voltage": "80 kV",
            "convergence angle": "30 mrad",
            "dwell_time_us": 4,
            "beam_current_pA": 25,
        },
    ],
    ids=["ours", "SI", "with units"],
)
@pytest.mark.parametrize("where", ["a.emd", "a.npy"])
def test_bare_settings_are_understood_in_si_units_and_in_the_usual_ones(
    settings: dict[str, Any], where: str, tmp_path: Path
) -> None:
    if where == "a.emd":
        with h5py.File(write_berkeley(tmp_path / where, IMAGE, "nm"), "r+") as file:
            file["microscope"].attrs.clear()
            file["microscope"].attrs.update(settings)
    else:
        write_npy(tmp_path / where, IMAGE)
        (tmp_path / "a.json").write_text(json.dumps(settings))
    condition = read_frames(tmp_path / where).condition
    found = (condition.optics.beam_kv, condition.optics.convergence_mrad)
    found += (condition.scan.dwell_us, condition.optics.beam_current_pa)
    assert found == pytest.approx((80, 30, 4, 25))


# -- spectra and patterns -----------------------------------------------------------------------
def write_axes(path: Path, units: list[str], names: list[str]) -> Path:
    pixels = STACK if len(units) == 3 else IMAGE
    with h5py.File(write_berkeley(path, pixels, "nm"), "r+") as file:
        for number, (unit, name) in enumerate(zip(units, names, strict=True)):
            file[f"data/scan/dim{number + 1}"].attrs.update({"units": unit, "name": name})
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.dm3", lambda path: write_dm(path, dm_image(IMAGE, 6, 0.01, "s"))),
        (
            "a.dm4",
            lambda path: write_dm(
                path, dm_image(IMAGE, 6, 0.1, "nm"), {"Meta Data": {"Format": "Spectrum image"}}
            ),
        ),
        ("a_1.ser", lambda path: write_ser(path, IMAGE[None], step_m=4.2e7)),
        ("a.mrc", lambda path: write_mrc(path, IMAGE.astype(np.complex64))),
        ("a.emd", lambda path: write_velox(path, IMAGE[..., None], unit="1/m")),
        ("b.emd", lambda path: write_axes(path, ["nm", "eV"], ["y", "x"])),
        ("c.emd", lambda path: write_axes(path, ["nm", "nm"], ["x", "Wavelength"])),
        ("d.emd", lambda path: write_axes(path, ["eV", "nm", "nm"], ["energy", "y", "x"])),
        ("e.emd", lambda path: write_axes(path, ["[n_m^-1]", "[n_m^-1]"], ["Q_x", "Q_y"])),
    ],
)
def test_what_has_an_axis_of_something_else_is_no_frame(
    name: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnreadableFile, match=r"spectrum|diffraction|transform|scan over time"):
        read_frames(write(tmp_path / name), pixel_size_pm=10.0)


NANO = {"scale": 0.02, "units": "nm"}


@pytest.mark.parametrize(
    "tree",
    [
        {"pixel_size": "0.02 1/nm"},
        {"pixel_size": {"value": 0.1, "unit": "eV"}},
        {"pixel_size": 0.1, "units": "eV"},
        {"calibration": NANO | {"units": "1/nm"}},
        {"spatial_calibrations": [NANO, NANO | {"units": "eV"}]},
        {"axes": {"axis-0": NANO | {"units": "eV"}, "axis-1": NANO, "axis-2": NANO}},
        {"axes": [NANO | {"units": "keV/channel"}, NANO]},
        {"axes": [NANO | {"name": "Energy loss"}, NANO]},
        {"axes": [NANO | {"name": "photonEnergy"}, NANO]},
        {"axes": [NANO | {"name": "E-loss"}, NANO]},
    ],
    ids=str,
)
def test_a_sidecar_can_say_that_this_is_no_frame(tree: Any, tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", IMAGE)
    (tmp_path / "a.json").write_text(json.dumps(tree))
    with pytest.raises(UnreadableFile, match=r"spectrum|diffraction"):
        read_frames(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("tree", "expected_pm"),
    [
        ({"pixel_size_A": 0.12, "units": "nm"}, 12),
        ({"pixel_size_A": 0.12, "pixel_size_A_unit": "nm"}, 120),
        ({"field_of_view_nm": 0.34, "units": "um"}, 20),
        ({"pixel_size_nm": 0.02, "units": "counts"}, 20),
        ({"pixel_size_nm": 0.02, "voltage": 300, "unit": "kV"}, 20),
        ({"pixel_size_nm": 0.02, "units": None}, 20),
        ({"pixel_size": 0.02, "units": "", "unit": "nm"}, 20),
        ({"pixel_size_nm": 0.02, "diffraction_calibration": NANO | {"units": "1/nm"}}, 20),
        ({"pixel_size_nm": 0.02, "energy_calibration": NANO | {"units": "eV"}}, 20),
        ({"pixel_size_nm": 0.02, "time_calibration": NANO | {"units": "s"}}, 20),
        ({"pixel_size_nm": 0.02, "camera": {"calibration": NANO | {"units": "mrad"}}}, 20),
        ({"axes": [NANO, NANO], "source": {"axes": [NANO | {"units": "eV"}] * 2}}, 20),
        ({"items": [{"spatial_calibrations": [NANO, NANO]}]}, 20),
        ({"spatial_calibrations": [NANO | {"scale": -0.02}] * 2}, 20),
        ({"axes": [NANO | {"name": "defocus loss"}, NANO, NANO]}, 20),
        ({"axes": [NANO | {"name": "Glossary"}] * 2}, 20),
        ({"pixel_size_nm": [0.02, 0.02]}, 20),
        ({"pixel_size": ["0.02 nm", "0.2 Å"]}, 20),
        ({"pixel_size": {"value": [0.02, 0.02], "unit": "nm"}}, 20),
        ({"pixel_size": "0.02 nm per pixel"}, 20),
        ({"pixel_size": 0.02, "unit": "nm/pixels"}, 20),
        ({"pixel_size_x": "1 Å", "pixel_size_y": "1.005 Å"}, 100.25),
        ({"pixel_size": 1, "unit": "nm", "scan": {"pixel_size_pm": 12}}, 12),
        ({"pixel_size": 0.02, "unit": "nm"}, 20),
        ({"pixel_size": [0.02, 0.02], "units": "nanometers"}, 20),
        ({"pixel size (Å)": 0.2}, 20),
        ({"spatial_calibrations": [NANO, NANO], "intensity_calibration": {"scale": 3.0}}, 20),
        ({"axes": [NANO | {"units": "s"}, NANO, NANO]}, 20),
        ({"pixel_size": "100 pm"}, 100),
    ],
    ids=str,
)
def test_a_sidecar_states_the_pixel_size_as_programs_write_it(
    tree: Any, expected_pm: float, tmp_path: Path
) -> None:
    write_npy(tmp_path / "a.npy", IMAGE)
    (tmp_path / "a.json").write_text(json.dumps(tree))
    record = read_frames(tmp_path / "a.npy")
    assert record.pixel_size_pm == pytest.approx(expected_pm)
    assert len(record.notes) == 1
    assert f"the pixel size, {expected_pm} pm, is from" in record.notes[0]


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({"pixel_size": "1 Å"}, "exactly 1, which"),
        ({"pixel_size": "1 nanometer"}, "exactly 1, which"),
        ({"pixel_size_A": 1.0}, "exactly 1, which"),
        ({"pixel_size_x": 1, "pixel_size_y": 1, "units": "nm"}, "exactly 1, which"),
        ({"calibration": {"scale": 1.0, "units": "A"}}, "exactly 1 A"),
        ({"pixel_size_x": "2 Å", "pixel_size_y": "1 Å"}, "not square (100 x 200 pm)"),
        ({"pixel_size": 0.02, "voltage": 300, "unit": "kV"}, "pixel_size 0.02 was not understood"),
        ({"pixel_size": 0.02, "units": "counts"}, "pixel_size 0.02 counts was not understood"),
    ],
    ids=str,
)
def test_a_sidecar_can_leave_the_pixel_size_open_and_this_is_told(
    tree: Any, why: str, tmp_path: Path
) -> None:
    write_npy(tmp_path / "a.npy", IMAGE)
    (tmp_path / "a.json").write_text(json.dumps(tree))
    record = read_frames(tmp_path / "a.npy")
    assert record.pixel_size_pm is None
    assert len(record.notes) == 1
    assert why in record.notes[0]


@pytest.mark.parametrize(
    "tree",
    [
        {"pixel_size_nm": 0.02, "spatial_calibrations": [NANO | {"scale": 0.05}] * 2},
        {"axes": [NANO, NANO], "a": {"axes": [NANO | {"scale": 0.05}] * 2}},
        {"pixel_size_nm": 0.02, "scan": {"pixel_size_nm": 0.05}},
    ],
    ids=str,
)
def test_sizes_of_a_sidecar_that_contradict_each_other_are_told(tree: Any, tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", IMAGE)
    (tmp_path / "a.json").write_text(json.dumps(tree))
    record = read_frames(tmp_path / "a.npy")
    assert record.pixel_size_pm == pytest.approx(20)
    told = "a.json states scan.pixel_size_pm twice, 20 and 50: the first was taken"
    assert told in record.notes


def write_fei_mrc(path: Path, projection_mode: int) -> Path:
    from mrcfile.dtypes import get_ext_header_dtype

    fields = np.zeros(1, get_ext_header_dtype(b"FEI1", "<"))
    fields["Metadata size"] = fields.dtype.itemsize
    fields["Pixel size X"] = fields["Pixel size Y"] = 2e-11
    fields["Instrument mode"], fields["Projection mode"] = 1, projection_mode
    with mrcfile.new(path) as mrc:
        mrc.set_data(IMAGE.astype(np.uint16))
        mrc.set_extended_header(fields)
        mrc.header.exttyp = b"FEI1"
    return path


def test_a_pattern_by_thermo_fisher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="diffraction mode"):
        read_frames(write_fei_mrc(tmp_path / "a.mrc", projection_mode=1))


def test_a_frame_by_thermo_fisher_has_the_size_in_its_header(tmp_path: Path) -> None:
    record = read_frames(write_fei_mrc(tmp_path / "a.mrc", projection_mode=2))
    assert record.pixel_size_pm == pytest.approx(20)


def test_frames_that_follow_each_other_in_time_or_tilt_are_a_stack(tmp_path: Path) -> None:
    for unit in ("s", "deg"):
        path = write_axes(tmp_path / f"{unit}.emd", [unit, "nm", "nm"], [unit, "y", "x"])
        assert np.array_equal(read_frames(path).frame, STACK)


# -- EMD of others ------------------------------------------------------------------------------
def write_prismatic(path: Path, images: dict[str, NDArray[Any]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, image_yx in images.items():
            group = file.create_group(f"4DSTEM_simulation/data/realslices/{name}")
            group.attrs["emd_group_type"] = 1
            group["realslice"] = np.moveaxis(image_yx, (0, 1), (1, 0))
            for number, axis in ((1, "R_x"), (2, "R_y")):
                steps = np.arange(group["realslice"].shape[number - 1], dtype=np.float32) * 0.016
                dim = group.create_dataset(f"dim{number}", data=steps)
                dim.attrs.update({"name": np.bytes_(axis), "units": np.bytes_("[n_m]")})
    return path


def test_prismatic_gives_its_annular_image_at_the_greatest_depth(tmp_path: Path) -> None:
    images = {
        "DPC_CoM_depth0001": np.stack([IMAGE] * 2, axis=-1),
        "annular_detector_depth0000": IMAGE[::-1],
        "annular_detector_depth0001": IMAGE,
    }
    record = read_frames(write_prismatic(tmp_path / "a.emd", images))
    assert np.array_equal(record.frame, IMAGE)
    assert record.pixel_size_pm == pytest.approx(16, rel=1e-6)
    assert record.notes == ("3 results; annular_detector_depth0001 was taken",)


def test_prismatic_without_an_annular_image_is_refused(tmp_path: Path) -> None:
    rings = {"virtual_detector_depth0000": np.stack([IMAGE] * 9, axis=-1)}
    with pytest.raises(UnreadableFile, match="only virtual_detector_depth0000"):
        read_frames(write_prismatic(tmp_path / "a.emd", rings))


def test_objects_in_an_emd_file_are_no_numbers(tmp_path: Path) -> None:
    path = write_berkeley(tmp_path / "a.emd", IMAGE, "nm")
    with h5py.File(path, "r+") as file:
        del file["data/scan/data"]
        file["data/scan"].create_dataset("data", (12, 17), h5py.vlen_dtype(np.float32))
    with pytest.raises(UnreadableFile, match="not numbers but object"):
        read_frames(path)


# -- what is beside the frame in its file -------------------------------------------------------
def dm_axes(pixels: NDArray[Any], kind: int, *axes: tuple[float, str, float]) -> dict[str, Any]:
    """An image of DM whose axes have (scale, unit, origin), x first."""
    image = dm_image(pixels, kind, 1.0, "")
    image["ImageData"]["Calibrations"]["Dimension"] = {
        str(number): {"Origin": origin, "Scale": scale, "Units": unit}
        for number, (scale, unit, origin) in enumerate(axes, start=1)
    }
    return image


def write_dm_images(path: Path, *images: dict[str, Any]) -> Path:
    version = int(path.suffix[-1])
    listed = {"1": dm_image(np.full((64, 64), 9, np.int32), 23, 1.0, "")}
    listed |= {str(number): one for number, one in enumerate(images, start=2)}
    body = dm_group({"ImageList": listed}, version)
    head = struct.pack(">IQI" if version == 4 else ">III", version, len(body), 1)
    path.write_bytes(head + body + b"\0" * 8)
    return path


def write_groups(path: Path, *groups: tuple[NDArray[Any], str, str, str]) -> Path:
    """EMD groups of (data, unit of the last two axes, unit and name of the others)."""
    with h5py.File(path, "w") as file:
        for number, (pixels, unit, other, name) in enumerate(groups):
            group = file.create_group(f"data/g{number}")
            group.attrs["emd_group_type"] = 1
            group["data"] = pixels
            for axis, side in enumerate(pixels.shape):
                dim = group.create_dataset(f"dim{axis + 1}", data=np.arange(side) * 0.012)
                is_other = axis < pixels.ndim - 2
                dim.attrs.update({"units": other if is_other else unit, "name": name * is_other})
    return path


def write_velox_pattern(path: Path) -> Path:
    """A camera's pattern, whose detector comes first by name, and a scanned frame."""
    write_velox(path, np.tile(IMAGE, (2, 2))[..., None], unit="1/m")
    with h5py.File(path, "r+") as file:
        file.move("Data/Image/0a1b", "kept")
        write_velox(path.with_name("b.emd"), IMAGE[..., None])
        with h5py.File(path.with_name("b.emd")) as other:
            other.copy("Data/Image/0a1b", file, "Data/Image/ffff")
        file.move("kept", "Data/Image/0a1b")
    return path


COLOURS = np.random.default_rng(3).integers(0, 1 << 24, (24, 34)).astype(np.int32)
FRAME_12PM = dm_image(IMAGE, 6, 0.012, "nm")


@pytest.mark.parametrize(
    ("name", "write", "size_pm"),
    [
        pytest.param(
            "a.dm3",
            lambda path: write_dm_images(path, dm_image(COLOURS, 23, 0.006, "nm"), FRAME_12PM),
            12,
            id="DM, colours first",
        ),
        pytest.param(
            "a.dm4",
            lambda path: write_dm_images(
                path,
                FRAME_12PM,
                dm_axes(STACK, 10, (0.1, "nm", 0.0), (0.1, "nm", 0.0), (0.5, "eV", 0.0)),
            ),
            12,
            id="DM, survey and spectrum image",
        ),
        pytest.param(
            "a.dm4",
            lambda path: write_dm_images(
                path, dm_image(np.tile(IMAGE, (2, 2)), 6, 0.1, "1/nm"), FRAME_12PM
            ),
            12,
            id="DM, transform",
        ),
        pytest.param(
            "a.emd",
            lambda path: write_groups(path, (IMAGE, "nm", "", ""), (STACK, "nm", "eV", "Energy")),
            12,
            id="EMD, spectrum image",
        ),
        pytest.param(
            "a.emd",
            lambda path: write_groups(
                path, (np.tile(IMAGE, (2, 2)), "1/nm", "", ""), (IMAGE, "nm", "", "")
            ),
            12,
            id="EMD, pattern",
        ),
        pytest.param(
            "a.emd",
            lambda path: write_groups(
                path, (np.stack([IMAGE] * 3, axis=-1), "nm", "nm", "y"), (IMAGE, "nm", "", "")
            ),
            12,
            id="EMD, colours",
        ),
        pytest.param(
            "a.dm4",
            lambda path: write_dm_images(path, dm_image(STACK[:, :6], 10, 0.1, "nm"), FRAME_12PM),
            12,
            id="DM, more pixels in smaller frames",
        ),
        pytest.param(
            "a.emd",
            lambda path: write_groups(path, (STACK[:, :6], "nm", "s", "t"), (IMAGE, "nm", "", "")),
            12,
            id="EMD, more pixels in smaller frames",
        ),
        pytest.param(
            "a.emd",
            lambda path: write_groups(
                path, (np.tile(IMAGE, (2, 2)) * 1j, "", "", ""), (IMAGE, "nm", "", "")
            ),
            12,
            id="EMD, complex",
        ),
        pytest.param(
            "a.emd",
            lambda path: write_groups(
                path, (np.arange(5000.0)[None], "", "", ""), (IMAGE, "nm", "", "")
            ),
            12,
            id="EMD, profile",
        ),
        pytest.param("a.emd", write_velox_pattern, 15, id="Velox, pattern"),
    ],
)
def test_of_what_a_file_has_the_frame_is_taken(
    name: str, write: Callable[[Path], Path], size_pm: float, tmp_path: Path
) -> None:
    record = read_frames(write(tmp_path / name))
    assert np.array_equal(record.frame, IMAGE)
    assert record.pixel_size_pm == pytest.approx(size_pm)
    assert any("2 images" in note for note in record.notes)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param(
            "a.dm4",
            lambda path: write_dm_images(
                path, dm_axes(STACK, 10, (0.1, "nm", 0.0), (0.1, "nm", 0.0), (50.0, "nm", -8.0))
            ),
            id="DM, cube",
        ),
        pytest.param(
            "a.dm3",
            lambda path: write_dm_images(
                path, dm_axes(IMAGE, 6, (2.0, "nm", -200.0), (1.0, "", 0.0))
            ),
            id="DM, line",
        ),
        pytest.param(
            "a.tif",
            lambda path: write_tif(
                path,
                IMAGE,
                extratags=[(65003 + n, "s", 0, "nm", True) for n in range(2)]
                + [(65006 + n, "d", 1, start, True) for n, start in enumerate((300.0, 0.0))]
                + [(65009 + n, "d", 1, scale, True) for n, scale in enumerate((5.0, 0.02))],
            ),
            id="TIFF, line",
        ),
        pytest.param(
            "a.tif",
            lambda path: write_tif(
                path,
                STACK,
                photometric="minisblack",
                extratags=[
                    (65003 + n, "s", 0, unit, True) for n, unit in enumerate(("nm", "nm", "eV"))
                ]
                + [(65009 + n, "d", 1, 0.02, True) for n in range(3)],
            ),
            id="TIFF, energies",
        ),
    ],
)
def test_wavelengths_are_told_by_their_numbers_and_energies_by_their_unit(
    name: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnreadableFile, match="spectrum"):
        read_frames(write(tmp_path / name))


WIDE = np.random.default_rng(1).integers(0, 250, (30, 1700)).astype(np.uint8)


@pytest.mark.parametrize("other", [1.0, 1.000005, 1.009], ids=["equal", "rounded", "1 %"])
@pytest.mark.parametrize("name", ["a.dm3", "a.emd", "a.tif"])
def test_a_frame_far_from_the_origin_of_the_stage_is_no_spectrum(
    name: str, other: float, tmp_path: Path
) -> None:
    steps = (0.02, 0.02 * other)  # x, y
    if name == "a.dm3":
        image = dm_axes(WIDE, 6, *((step, "nm", -310 / step) for step in steps))
        write_dm_images(tmp_path / name, image)
    elif name == "a.emd":
        with h5py.File(write_berkeley(tmp_path / name, WIDE, "nm"), "r+") as file:
            for number, (step, side) in enumerate(zip(steps[::-1], WIDE.shape, strict=True), 1):
                file[f"data/scan/dim{number}"][:] = 310 + step * np.arange(side)
    else:
        starts = [(65006 + n, "d", 1, 310.0, True) for n in range(2)]
        write_tif(tmp_path / name, WIDE, extratags=gatan_tags(("nm", "nm"), steps) + starts)
    record = read_frames(tmp_path / name)
    assert record.pixel_size_pm == pytest.approx(10 * (1 + other))


def gatan_tags(units: tuple[str, ...], scales: tuple[float, ...]) -> list[Any]:
    return [(65003 + n, "s", 0, unit, True) for n, unit in enumerate(units)] + [
        (65009 + n, "d", 1, scale, True) for n, scale in enumerate(scales)
    ]


def test_a_short_axis_is_no_spectrum_whatever_its_start_and_the_other_step(tmp_path: Path) -> None:
    image = dm_axes(IMAGE, 6, (0.5, "nm", -800.0), (0.4, "nm", -1000.0))
    record = read_frames(write_dm_images(tmp_path / "a.dm3", image))
    assert "not square" in record.notes[0]


@pytest.mark.parametrize(
    ("units", "scales"),
    [
        pytest.param(("nm", "nm", "eV"), (0.02, 0.02, 0.5), id="a third unit of two axes"),
        pytest.param(("nm", "nm"), (-0.02, -0.02), id="mirrored"),
    ],
)
def test_the_tags_of_gatan_count_for_the_axes_that_there_are(
    units: tuple[str, ...], scales: tuple[float, ...], tmp_path: Path
) -> None:
    path = write_tif(tmp_path / "a.tif", IMAGE, extratags=gatan_tags(units, scales))
    assert read_frames(path).pixel_size_pm == pytest.approx(20)


def write_jeol(path: Path, mode: str, per_inch: float) -> Path:
    text = (
        "<TemReporter><EosMode>eosTEM</EosMode><AccelerationVoltage>200000</AccelerationVoltage>"
        f"<ModeString>{mode}</ModeString><SelectorValue>1000000</SelectorValue></TemReporter>"
    )
    options: dict[str, Any] = {"resolution": (per_inch, per_inch), "resolutionunit": "INCH"}
    return write_tif(path, IMAGE, description=text, **options)


def test_a_pattern_by_jeol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="diffraction mode"):
        read_frames(write_jeol(tmp_path / "a.tif", "DIFF", 2540))


@pytest.mark.parametrize(
    ("per_inch", "size_pm", "note"),
    [
        pytest.param(2540, 10, "rests on the nominal magnification 1e+06", id="of the chip"),
        pytest.param(72, None, "its resolution is for a printer", id="of a printer"),
    ],
)
def test_a_frame_by_jeol_has_the_pixel_of_its_chip_by_the_magnification(
    per_inch: float, size_pm: float | None, note: str, tmp_path: Path
) -> None:
    record = read_frames(write_jeol(tmp_path / "a.tif", "MAG", per_inch))
    assert record.pixel_size_pm == pytest.approx(size_pm)
    assert record.condition.optics.beam_kv == 200
    assert len(record.notes) == 1
    assert note in record.notes[0]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_of_several_frames_of_a_picture_the_first_is_taken_and_told(
    suffix: str, tmp_path: Path
) -> None:
    more = [Image.fromarray(IMAGE[::-1].copy())]
    kind = "MPO" if suffix == "jpg" else "PNG"
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(IMAGE).save(path, kind, save_all=True, append_images=more)
    assert "2 frames; the first was taken" in read_frames(path).notes


# -- which axis is which --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pixels", "names", "expected"),
    [
        pytest.param(IMAGE.T, ["x", "y"], IMAGE, id="columns first"),
        pytest.param(IMAGE.T, ["R_x", "R_y"], IMAGE, id="of the simulator"),
        pytest.param(IMAGE, ["y", "x"], IMAGE, id="rows first"),
        pytest.param(IMAGE, ["index", "fly"], IMAGE, id="words"),
        pytest.param(STACK.T, ["x", "y", "t"], STACK, id="HyperSpy's stack"),
        pytest.param(np.moveaxis(STACK, 0, -1), ["y", "x", "t"], STACK, id="frames last"),
        pytest.param(IMAGE.T, ["x axis", "y axis"], IMAGE, id="with a word"),
        pytest.param(IMAGE.T, ["x [nm]", "y [nm]"], IMAGE, id="with a unit"),
        pytest.param(IMAGE.T, ["Rx", "Ry"], IMAGE, id="of the sample"),
        pytest.param(IMAGE.T, ["width", "height"], IMAGE, id="sides"),
        pytest.param(IMAGE, ["height", "width"], IMAGE, id="sides, rows first"),
        pytest.param(STACK.swapaxes(1, 2), ["t", "x", "y"], STACK, id="frames first"),
    ],
)
def test_the_names_of_emd_axes_say_which_is_which(
    pixels: NDArray[Any], names: list[str], expected: NDArray[Any], tmp_path: Path
) -> None:
    with h5py.File(write_berkeley(tmp_path / "a.emd", pixels, "nm"), "r+") as file:
        for number, name in enumerate(names, start=1):
            unit = "s" if name == "t" else "nm"
            file[f"data/scan/dim{number}"].attrs.update({"name": name, "units": unit})
    record = read_frames(tmp_path / "a.emd")
    assert np.array_equal(record.frame, expected)
    assert record.pixel_size_pm == pytest.approx(200)


@pytest.mark.parametrize("names", [("", ""), ("<undefined>",) * 2, ("x", "y"), ("a", "b")], ids=str)
def test_hyperspy_writes_all_axes_in_reverse_whatever_their_names(
    names: tuple[str, str], tmp_path: Path
) -> None:
    with h5py.File(write_berkeley(tmp_path / "a.emd", IMAGE.T, "nm"), "r+") as file:
        file.attrs.update({"version_major": "0", "version_minor": "2"})
        file.move("data", "signals")
        for number, name in enumerate(names, start=1):
            file[f"signals/scan/dim{number}"].attrs["name"] = name
    record = read_frames(tmp_path / "a.emd")
    assert np.array_equal(record.frame, IMAGE)
    assert record.notes == ()


def test_an_emd_file_that_does_not_say_which_axis_is_x_is_noted(tmp_path: Path) -> None:
    record = read_frames(write_berkeley(tmp_path / "a.emd", IMAGE, "nm"))
    assert np.array_equal(record.frame, IMAGE)
    assert "which of its axes is x is not stated: rows and columns are as stored" in record.notes


@pytest.mark.parametrize(
    ("top", "expected"), [("4DSTEM_experiment", IMAGE), ("4DSTEM_simulation", IMAGE.T)]
)
def test_x_is_along_the_rows_for_py4dstem_and_along_the_columns_for_prismatic(
    top: str, expected: NDArray[Any], tmp_path: Path
) -> None:
    path = write_prismatic(tmp_path / "a.emd", {"BF": IMAGE.T})
    with h5py.File(path, "r+") as file:
        file.move("4DSTEM_simulation", "kept")
        file.move("kept", top)
    assert np.array_equal(read_frames(path).frame, expected)


def test_slices_with_a_word_for_each_are_frames(tmp_path: Path) -> None:
    path = write_berkeley(tmp_path / "a.emd", np.moveaxis(STACK, 0, -1), "nm")
    with h5py.File(path, "r+") as file:
        group = file["data/scan"]
        group.attrs["emd_group_type"] = "array"
        del group["dim3"]
        for number in (1, 2):
            group.move(f"dim{number}", f"dim{number - 1}")
        group["dim2"] = [b"BF", b"ADF", b"HAADF"]
    assert np.array_equal(read_frames(path).frame, STACK)


def test_emd_of_version_1_counts_axes_from_0_and_states_only_two_positions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.emd", "w") as file:
        group = file.create_group("root/adf")
        group.attrs["emd_group_type"] = "array"
        group["data"] = IMAGE
        for number, name in enumerate(("Rx", "Ry")):
            dim = group.create_dataset(f"dim{number}", data=[0.0, 0.02])
            dim.attrs.update({"name": name, "units": "nm"})
    record = read_frames(tmp_path / "a.emd")
    assert np.array_equal(record.frame, IMAGE)
    assert record.pixel_size_pm == pytest.approx(20)


def change_mrc(path: Path, *changes: tuple[str, int, Any]) -> Path:
    content = bytearray(path.read_bytes())
    for form, at, value in changes:
        struct.pack_into(form, content, at, value)
    path.write_bytes(content)
    return path


def test_rows_and_columns_of_a_map_whose_columns_run_along_y_are_exchanged(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", IMAGE.astype(np.uint16))
    record = read_frames(change_mrc(path, ("<i", 64, 2), ("<i", 68, 1)))
    assert np.array_equal(record.frame, IMAGE.T)
    assert record.pixel_size_pm == pytest.approx(12)


def test_a_section_across_y_has_the_spacing_of_its_own_axes(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", IMAGE.astype(np.uint16))
    grid = [("<i", 32, 1), ("<i", 36, 12), ("<f", 44, 9.0), ("<f", 48, 0.12 * 12)]
    record = read_frames(change_mrc(path, ("<i", 68, 3), ("<i", 72, 2), *grid))
    assert np.array_equal(record.frame, IMAGE)
    assert record.pixel_size_pm == pytest.approx(12)


def test_integers_above_the_largest_signed_one_are_unsigned(tmp_path: Path) -> None:
    deep = IMAGE.astype(np.uint16) * 200
    path = write_mrc(tmp_path / "a.mrc", deep.view(np.int16))
    record = read_frames(change_mrc(path, ("<f", 76, 0.0), ("<f", 80, float(deep.max()))))
    assert np.array_equal(record.frame, deep)
    assert "as its header says" in record.notes[0]


@pytest.mark.parametrize(
    ("least", "greatest", "notes"),
    [
        pytest.param(-100.0, 149.0, 0, id="signed"),
        pytest.param(0.0, 40_000.0, 1, id="a header of another map"),
    ],
)
def test_integers_below_zero_stay_so_whatever_a_stale_header_says(
    least: float, greatest: float, notes: int, tmp_path: Path
) -> None:
    signed = IMAGE.astype(np.int16) - 100
    path = write_mrc(tmp_path / "a.mrc", signed)
    record = read_frames(change_mrc(path, ("<f", 76, least), ("<f", 80, greatest)))
    assert np.array_equal(record.frame, signed)
    assert len(record.notes) == notes


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        pytest.param({"cf": 0, "c0": -32768.0, "c1": 1.0}, STACK[0] - 32768.0, id="signed"),
        pytest.param({"cf": 0, "c0": 100.0, "c1": -1.0}, 100.0 - STACK[0], id="inverted"),
    ],
)
def test_counts_that_imagej_stores_otherwise_are_read_as_they_were(
    calibration: dict[str, Any], expected: NDArray[Any], tmp_path: Path
) -> None:
    path = write_tif(tmp_path / "a.tif", STACK[0], imagej=True, metadata=calibration)
    assert np.array_equal(read_frames(path).frame, expected)


@pytest.mark.parametrize(
    ("calibration", "how"),
    [
        pytest.param({"cf": 1, "c0": 1.0, "c1": 2.0, "c2": 3.0}, "by a curve", id="curve"),
        pytest.param({"cf": 0}, "by a line without its numbers", id="no numbers"),
    ],
)
def test_counts_that_imagej_calibrates_otherwise_are_taken_as_stored(
    calibration: dict[str, Any], how: str, tmp_path: Path
) -> None:
    path = write_tif(tmp_path / "a.tif", STACK[0], imagej=True, metadata=calibration)
    record = read_frames(path)
    assert np.array_equal(record.frame, STACK[0])
    assert f"ImageJ calibrates its counts {how}: they were taken as stored" in record.notes


def test_of_the_series_of_an_experiment_the_one_with_images_is_taken(tmp_path: Path) -> None:
    write_ser(tmp_path / "b_1.ser", IMAGE[None], kind=0x4120)
    write_ser(tmp_path / "b_2.ser", IMAGE[None])
    record = read_frames(write_emi(tmp_path / "b.emi"))
    assert np.array_equal(record.frame, IMAGE)
    assert record.notes == ("2 series beside it; b_2.ser was taken",)


def test_images_at_the_places_of_a_scan_are_no_stack(tmp_path: Path) -> None:
    content = bytearray(write_ser(tmp_path / "a_1.ser", STACK).read_bytes())
    axes = b"".join(struct.pack("<iddiii", side, 0.0, 1e-9, 0, 0, 0) for side in (3, 2))
    struct.pack_into("<qi", content, 22, 34 + len(axes), 2)
    moved = [one + len(axes) for one in struct.unpack_from("<6q", content, 34)]
    content[34:82] = axes + struct.pack("<6q", *moved)
    (tmp_path / "a_1.ser").write_bytes(content)
    with pytest.raises(UnreadableFile, match="at each place of a scan of 3 x 2"):
        read_frames(tmp_path / "a_1.ser")


def test_a_part_that_is_longer_than_its_file_costs_no_memory(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", IMAGE)
    content = bytearray(path.read_bytes())
    struct.pack_into(">I", content, content.find(b"IDAT") - 4, 3_000_000_000)
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="runs past its end"):
        read_frames(path)
    content = bytearray(write_npy(tmp_path / "a.npy", IMAGE).read_bytes())
    content[6] = 2
    struct.pack_into("<I", content, 8, 4_000_000_000)
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UnreadableFile, match="runs past its end"):
        read_frames(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        pytest.param(b"eXIf", b"of no meaning", id="of PNG"),
        pytest.param(b"tEXt", b"Raw profile type exif\0\nexif\n  10\nzzzz\n", id="as text"),
    ],
)
def test_damaged_exif_costs_no_frame(kind: bytes, content: bytes, tmp_path: Path) -> None:
    whole = write_png(tmp_path / "a.png", IMAGE).read_bytes()
    part = kind + content
    part = struct.pack(">I", len(content)) + part + struct.pack(">I", zlib.crc32(part))
    start = whole.find(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(whole[:start] + part + whole[start:])
    record = read_frames(tmp_path / "a.png")
    assert np.array_equal(record.frame, IMAGE)
    assert "its EXIF is damaged and was ignored" in record.notes[0]


def test_a_palette_of_two_colours_has_one_bit_for_a_pixel(tmp_path: Path) -> None:
    pixels = np.zeros((4096, 4096), np.uint8)
    pixels[100:140, 100:140] = 1
    image = Image.fromarray(pixels, mode="P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "a.png", bits=1, compress_level=9)
    assert np.array_equal(read_frames(tmp_path / "a.png").frame, pixels * 255)


def test_a_jpeg_too_short_for_its_size_is_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.jpg", IMAGE)
    content = bytearray(path.read_bytes())
    struct.pack_into(">2H", content, content.find(b"\xff\xc0") + 5, 60_000, 100)
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="cannot hold"):
        read_frames(path)


# -- channels, depth ----------------------------------------------------------------------------
@pytest.mark.parametrize("place", [(2,), (1,), (0,), (0, 1), (2, 3), (1, 3)], ids=str)
def test_axes_of_length_1_are_no_frames(place: tuple[int, ...], tmp_path: Path) -> None:
    path = write_npy(tmp_path / "a.npy", np.expand_dims(IMAGE, place))
    assert np.array_equal(read_frames(path).frame, IMAGE)


@pytest.mark.parametrize("channels", [2, 3, 4, 8, 16])
def test_channels_last_are_refused_in_a_sentence(channels: int, tmp_path: Path) -> None:
    path = write_npy(tmp_path / "a.npy", np.stack([np.tile(IMAGE, (6, 6))] * channels, axis=-1))
    with pytest.raises(UnreadableFile, match=f"{channels} channels last"):
        read_frames(path)


@pytest.mark.parametrize("channels", [3, 4], ids=["colours", "with opacity"])
def test_colours_of_16_bits_keep_them(channels: int, tmp_path: Path) -> None:
    from imagecodecs import png_encode

    deep = np.stack([IMAGE.astype(np.uint16) * 257 + 3] * channels, axis=-1)
    (tmp_path / "a.png").write_bytes(png_encode(deep))
    assert np.array_equal(read_frames(tmp_path / "a.png").frame, deep[..., 0])


def test_an_offset_beside_a_pixel_that_is_none_is_taken_off_too() -> None:
    pixels = IMAGE.astype(np.float64) + 3e9
    pixels[0, 0] = np.nan
    frame, notes = inspect_frame(pixels)
    assert np.ptp(frame) == np.ptp(IMAGE.ravel()[1:])
    assert len(notes) == 2


# -- colours, oddities ------------------------------------------------------------------------
def test_colours_that_are_grey_are_read_without_a_word(tmp_path: Path) -> None:
    record = read_frames(write_png(tmp_path / "a.png", np.stack([IMAGE] * 3, axis=-1)))
    assert np.array_equal(record.frame, IMAGE)
    assert record.notes == ()


def test_true_colours_become_luminance_and_are_told(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (9, 8, 3)).astype(np.uint8)
    record = read_frames(write_tif(tmp_path / "a.tif", colours, photometric="rgb"))
    assert record.frame.shape == (9, 8)
    assert "luminance" in record.notes[0]


def test_the_recorded_image_of_a_dm_file_is_taken_not_its_thumbnail(tmp_path: Path) -> None:
    small = IMAGE[:3, :4]
    assert np.array_equal(
        read_frames(write_dm(tmp_path / "a.dm3", dm_image(small, 6, 0.01, "nm"))).frame, small
    )


def test_a_dm_file_without_calibrations_has_a_frame_all_the_same(tmp_path: Path) -> None:
    image = dm_image(IMAGE, 6, 1.0, "")
    del image["ImageData"]["Calibrations"]
    record = read_frames(write_dm_images(tmp_path / "a.dm4", image))
    assert np.array_equal(record.frame, IMAGE)
    assert record.pixel_size_pm is None


def test_pixels_that_are_not_square_leave_the_size_open(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "a.tif", IMAGE, imagej=True, resolution=(50, 25), metadata={"unit": "nm"}
    )
    record = read_frames(path)
    assert record.pixel_size_pm is None
    assert "not square" in record.notes[0]


# -- bad files --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_cut_short_is_refused_in_a_sentence(name: str, share: float, tmp_path: Path) -> None:
    path = GOOD[name](tmp_path / name)
    if path.suffix == ".emi":
        share *= 0.5  # the second half holds nothing we need
    path.write_bytes(path.read_bytes()[: max(1, int(path.stat().st_size * share))])
    with pytest.raises(UnreadableFile, match=path.name) as caught:
        read_frames(path)
    assert caught.value.why
    assert caught.value.hint


@pytest.mark.parametrize("suffix", READERS)
def test_a_text_file_under_another_name_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("x,y\n1,2\n" * 300)
    with pytest.raises(UnreadableFile, match="cannot be read as"):
        read_frames(path)


@pytest.mark.parametrize("suffix", READERS)
def test_an_empty_file_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(UnreadableFile, match="it is empty"):
        read_frames(tmp_path / f"a{suffix}")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(UnreadableFile, match="it is a folder"):
        read_frames(tmp_path / "a.tif")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        read_frames(tmp_path / "a.tif")


def test_a_format_we_do_not_read_names_those_we_do(tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(b"BM")
    with pytest.raises(UnsupportedMedia, match=r"\.dm3, \.dm4"):
        read_frames(tmp_path / "a.bmp")


def test_a_wrong_name_is_answered_with_the_right_one(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", IMAGE)
    shutil.copy(tmp_path / "a.png", tmp_path / "a.tif")
    with pytest.raises(UnreadableFile, match=r"its content looks like \.png: rename it"):
        read_frames(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.ser", lambda path: write_ser(path, IMAGE[None], kind=0x4120)),
        ("a.npy", lambda path: write_npy(path, np.arange(50.0))),
        ("a.dm3", lambda path: write_dm(path, dm_image(np.arange(50, dtype="f4"), 2, 1.0, "eV"))),
        ("a.emd", lambda path: write_berkeley(path, np.arange(50.0), "nm")),
    ],
)
def test_a_file_of_spectra_only_holds_no_frame(
    name: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnreadableFile, match=r"spectr|no image"):
        read_frames(write(tmp_path / name))


def test_a_scan_of_patterns_is_no_frame(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="a scan of patterns"):
        read_frames(write_npy(tmp_path / "a.npy", np.zeros((3, 3, 8, 8))))


def test_an_experiment_without_its_series_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"a_1\.ser beside it"):
        read_frames(write_emi(tmp_path / "a.emi"))


def test_a_pickle_in_a_npy_file_is_never_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UnreadableFile):
        read_frames(tmp_path / "a.npy")


def test_a_header_that_claims_more_than_the_file_holds_costs_no_memory(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", IMAGE.astype(np.uint16))
    content = bytearray(path.read_bytes())
    content[:12] = struct.pack("<3i", 2_000_000, 2_000_000, 9)
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="cannot hold"):
        read_frames(path)


def test_a_packed_file_that_would_unfold_past_the_limit_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_png(tmp_path / "a.png", np.tile(IMAGE, (20, 20)))
    monkeypatch.setenv("MANYBEAM_MAX_FRAME_PX", "10000")
    settings.cache_clear()
    try:
        with pytest.raises(TooLarge, match=r"a\.png: 240 x 340 pixels"):
            read_frames(path)
    finally:
        settings.cache_clear()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_that_declares_a_huge_size_is_too_large(suffix: str, tmp_path: Path) -> None:
    path = write_png(tmp_path / f"a.{suffix}", IMAGE)
    content = bytearray(path.read_bytes())
    if suffix == "png":
        struct.pack_into(">2I", content, 16, 60_000, 60_000)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    else:
        struct.pack_into(">2H", content, content.find(b"\xff\xc0") + 5, 60_000, 60_000)
    path.write_bytes(content)
    with pytest.raises(TooLarge, match=r"more than \d+ pixels are declared"):
        read_frames(path)


def test_a_jpeg_of_very_many_passes_is_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.jpg", IMAGE)
    path.write_bytes(path.read_bytes() + b"\xff\xda" * 501)
    with pytest.raises(UnreadableFile, match="passes over the image"):
        read_frames(path)


def test_a_series_whose_images_are_one_and_the_same_fills_no_memory(tmp_path: Path) -> None:
    path = write_ser(tmp_path / "a_1.ser", STACK)
    content = bytearray(path.read_bytes())
    content[42:58] = content[34:42] * 2
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="the same pixels"):
        read_frames(path)


@pytest.mark.slow
def test_a_damaged_hdf5_file_that_libhdf5_walks_for_ever_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_berkeley(tmp_path / "a.emd", IMAGE, "nm")
    content = bytearray(path.read_bytes())
    heap = content.find(b"GCOL")
    content[heap + 24 : heap + 32] = struct.pack("<q", -16)  # an item that leads back to itself
    path.write_bytes(content)
    monkeypatch.setattr("manybeam.data.io.limits.PATIENCE_S", 3.0)
    with pytest.raises(UnreadableFile, match="damaged"):
        read_frames(path)


def test_a_constant_frame_in_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidFrame, match=r"a\.npy: every pixel of the 8 x 8 frame is 0"):
        read_frames(write_npy(tmp_path / "a.npy", np.zeros((8, 8))))


def test_a_bad_frame_in_a_stack_is_named(tmp_path: Path) -> None:
    stack_nyx = STACK.astype(np.float32)
    stack_nyx[1] = np.nan
    with pytest.raises(InvalidFrame, match="frame 1: no finite pixel"):
        read_frames(write_npy(tmp_path / "a.npy", stack_nyx))


@pytest.mark.parametrize("dtype", ["uint32", "int64", "float64"])
def test_an_offset_that_would_swallow_the_contrast_is_taken_off_and_told(dtype: str) -> None:
    frame, notes = inspect_frame(IMAGE.astype(dtype) + np.array(3_000_000_000, dtype))
    assert np.array_equal(frame, IMAGE - IMAGE.min())
    assert "was subtracted from every pixel" in notes[0]


# -- what makes an array a frame --------------------------------------------------------------
@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "uint32", "int64", "float16", "float64", ">f4", ">u2"]
)
def test_any_real_number_makes_a_float32_frame(dtype: str) -> None:
    frame = check_frame(IMAGE.astype(dtype))
    assert frame.dtype == np.float32
    assert frame.dtype.isnative
    assert np.array_equal(frame, IMAGE)


def test_a_frame_of_bool_and_a_list_of_lists_are_frames() -> None:
    assert check_frame(IMAGE > 99).sum() == (IMAGE > 99).sum()
    assert check_frame([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]


def test_a_frame_that_is_ready_is_not_copied() -> None:
    frame = IMAGE.astype(np.float32)
    assert check_frame(frame) is frame
    assert check_frame(frame.T).flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("shape", [(5000, 3000), (1, 2), (511, 333), (3, 70001)], ids=str)
def test_any_size_and_odd_sides_are_fine(shape: tuple[int, int]) -> None:
    frame = np.zeros(shape, np.float32)
    frame[0, 0] = 1
    assert check_frame(frame).shape == shape


@pytest.mark.parametrize(
    ("array", "what"),
    [
        pytest.param(np.arange(9.0), "a profile", id="1-D"),
        pytest.param(np.float32(3), "0 axes", id="0-D"),
        pytest.param(np.ones((2, 3, 4)), "a stack, or colours", id="3-D"),
        pytest.param(np.ones((2, 2, 3, 4)), "not a frame", id="4-D"),
        pytest.param(np.ones((0, 7)), "an empty frame", id="empty"),
        pytest.param(np.full((4, 4), np.nan), "no finite pixel", id="NaN"),
        pytest.param(np.full((4, 4), np.inf), "no finite pixel", id="inf"),
        pytest.param(np.full((4, 4), 1e300), "no finite pixel", id="beyond float32"),
        pytest.param(np.full((4, 4), 5), "every pixel of the 4 x 4 frame is 5", id="constant"),
        pytest.param(np.array([[1.0, np.nan]]), "every pixel", id="constant but for NaN"),
        pytest.param([[7]], "every pixel of the 1 x 1 frame is 7", id="1 pixel"),
        pytest.param(np.ones((4, 4), complex), "complex numbers", id="complex"),
        pytest.param(np.full((4, 4), "a"), "a frame of <U1", id="text"),
        pytest.param([[1, 2], [3]], "not an array", id="ragged"),
    ],
)
def test_what_is_no_frame_is_refused_with_a_reason(array: Any, what: str) -> None:
    with pytest.raises(InvalidFrame, match=what) as caught:
        check_frame(array)
    assert caught.value.why


def test_a_frame_past_the_limit_is_too_large() -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (9000, 9000), (0, 0))
    with pytest.raises(TooLarge, match="max_frame_px"):
        check_frame(huge)


def test_single_bad_pixels_get_the_median_and_are_told() -> None:
    bad = IMAGE.astype(np.float64)
    bad[2, 3], bad[4, 5] = np.nan, np.inf
    good = np.isfinite(bad)
    frame, notes = inspect_frame(bad)
    assert frame[2, 3] == frame[4, 5] == np.median(IMAGE[good])
    assert np.array_equal(frame[good], IMAGE[good])
    assert notes == ("2 pixels were NaN or infinite and were set to the median",)
    assert np.isnan(bad[2, 3])


# -- truth ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("X,Y\n135,1\n395,6.5\n", [[1, 135, 0], [6.5, 395, 0]], id="plain"),
        pytest.param(" ,X,Y\n1,152,351\n2,174,332\n", [[351, 152, 0], [332, 174, 0]], id="index"),
        pytest.param("\ufeffy;x\n1;2\n", [[1, 2, 0]], id="semicolon, mark of order, lower case"),
        pytest.param("X,Y,class\n5,6,78\n", [[6, 5, 78]], id="class"),
        pytest.param("X,Y\n", [], id="no atoms"),
    ],
)
def test_truth_is_read_as_y_x_class(text: str, expected: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    truth = read_truth_csv(tmp_path / "a.csv")
    assert truth.dtype == np.float32
    assert np.array_equal(truth, np.array(expected, np.float32).reshape(-1, 3))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("A,B\n1,2\n", "not X and Y", id="columns"),
        pytest.param("X,Y\n1,2\n3,far\n", "line 3", id="word"),
        pytest.param("X,Y\n1\n", "line 2", id="short line"),
        pytest.param("X,Y\n1,nan\n", "line 2", id="NaN"),
    ],
)
def test_a_table_that_is_no_truth_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UnreadableFile, match=why):
        read_truth_csv(tmp_path / "a.csv")


def test_a_missing_table_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_truth_csv(tmp_path / "a.csv")

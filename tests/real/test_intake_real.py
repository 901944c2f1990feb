"""Intake of files that real instruments wrote: exact pixel sizes, shapes and settings."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from manybeam.data.io.reading import Pixels, read_frames, read_truth_csv
from manybeam.errors import InvalidFrame, ManybeamError, UnreadableFile
from manybeam.learn.analysis.pixel_size import cell_of, infer_pixel_size

pytestmark = pytest.mark.real

VENDOR = [
    # name, shape, pixel size in pm, settings, modality
    ("128x128-TEM_search.emi", (128, 128), 5261.214205047081, {"optics.beam_kv": 200}, "tem"),
    ("128x128-TEM_search_1.ser", (128, 128), 5261.214205047081, {"optics.beam_kv": 200}, "tem"),
    (
        "HAADFscan.mrc",
        (16, 16),
        5679.1313,
        {"optics.beam_kv": 300, "optics.convergence_mrad": 14.327324427576587},
        "haadf",
    ),
    ("example_image.emd", (3, 3), None, {}, "unknown"),
    (
        "fei_example_dpc_titles.emd",
        (2, 2),
        99.619915558306547,
        {
            "optics.beam_kv": 300,
            "optics.convergence_mrad": 1.0461282069309302,
            "detector.detector_inner_mrad": 0.60253744443432278,
            "detector.detector_outer_mrad": 3.3629874186804848,
            "scan.pixel_size_pm": 99.619915558306547,
            "scan.dwell_us": 10,
        },
        "df4",
    ),
    (
        "fei_example_tem_stack.emd",
        (2, 3, 3),
        8.1728831922978511,
        {
            "optics.beam_kv": 300,
            "optics.convergence_mrad": 11.411208809441558,
            "optics.defocus_nm": -30.231699205257632,
            "detector.gain": 1 / 0.835766,
            "scan.pixel_size_pm": 8.1728831922978511,
        },
        "tem",
    ),
    ("test-23.dm3", (2, 2), None, {}, "unknown"),
    ("test-6.dm4", (2, 2), None, {}, "unknown"),
    ("test-MonarcCL_mono-image.dm4", (2, 2), 18.32535e6, {"scan.dwell_us": 10}, "sem"),
    (
        "test_STEM_image.dm3",
        (68, 68),
        248.53802,
        {"optics.beam_kv": 200, "scan.pixel_size_pm": 248.53802, "scan.dwell_us": 3.5},
        "haadf",
    ),
    (
        "test_stackbuilder_imagestack.dm3",
        (3, 2, 16),
        59982.903,
        {"optics.beam_kv": 200, "scan.dwell_us": 30000.05078125},
        "haadf",
    ),
]
NAMES = [row[0] for row in VENDOR]


def frame_or_refusal(path: Path) -> Pixels | ManybeamError:
    try:
        return read_frames(path).frame
    except ManybeamError as error:
        return error


@pytest.mark.parametrize(("name", "shape", "pixel_pm", "settings", "modality"), VENDOR, ids=NAMES)
def test_every_vendor_file_gives_its_frame_pixel_size_and_settings(
    shared_data: Path,
    name: str,
    shape: tuple[int, ...],
    pixel_pm: float | None,
    settings: dict[str, float],
    modality: str,
) -> None:
    record = read_frames(shared_data / "vendor" / name)
    found = {path: value for path, value in record.condition.quantities() if value is not None}
    assert record.frame.shape == shape
    if pixel_pm is not None and pixel_pm > 500:  # more than a condition may have
        told = re.search(r"scan\.pixel_size_pm (\S+) is outside 1 to 500 pm", str(record.notes))
        assert told
        assert float(told[1]) == pytest.approx(pixel_pm, rel=1e-5)
        pixel_pm = None
    assert record.pixel_size_pm == (pixel_pm and pytest.approx(pixel_pm, rel=1e-6))
    assert found == pytest.approx(settings, rel=1e-6)
    assert (record.condition.modality, record.condition.origin) == (modality, "measured")


def test_the_vendor_folder_holds_no_file_that_is_not_tested(shared_data: Path) -> None:
    assert sorted(path.name for path in (shared_data / "vendor").iterdir()) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "corner"),
    [
        ("test-6.dm4", [[1, 2], [3, 4]]),
        ("test-23.dm3", [[1, 2], [3, 4]]),
        ("example_image.emd", [[0, 3], [1, 4]]),
        ("HAADFscan.mrc", [[5715, 6654], [6617, 7516]]),
        ("fei_example_dpc_titles.emd", [[30313, 29142], [30215, 30335]]),
    ],
)
def test_the_counts_are_the_files_own(
    shared_data: Path, name: str, corner: list[list[int]]
) -> None:
    assert read_frames(shared_data / "vendor" / name).frame[:2, :2].tolist() == corner


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("test-MonarcCL_mono-image.dm4", "optics.beam_kv 3 is outside 20 to 400 kV"),
        ("HAADFscan.mrc", "longer than the frame time allows"),
        ("fei_example_dpc_titles.emd", "8 images; DF4-A was taken"),
        ("128x128-TEM_search_1.ser", "scan.pixel_size_pm 5261.21 is outside 1 to 500 pm"),
    ],
)
def test_what_was_chosen_or_left_out_is_told(shared_data: Path, name: str, note: str) -> None:
    assert any(note in said for said in read_frames(shared_data / "vendor" / name).notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_vendor_file_cut_anywhere_is_read_whole_or_refused(
    shared_data: Path, name: str, tmp_path: Path
) -> None:
    content = (shared_data / "vendor" / name).read_bytes()
    whole = read_frames(shared_data / "vendor" / name).frame
    stem, suffix = Path(name).stem, Path(name).suffix
    for share in (0.001, 0.1, 0.5, 0.9) if suffix != ".emd" else (0.001, 0.5):
        path = tmp_path / f"{stem}-{share}{suffix}"
        path.write_bytes(content[: max(1, int(len(content) * share))])
        found = frame_or_refusal(path)
        if isinstance(found, ManybeamError):
            assert isinstance(found, UnreadableFile | InvalidFrame)
            assert path.name in found.what
        else:
            assert np.array_equal(found, whole)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith((".dm3", ".ser", ".mrc"))]
)
def test_bytes_that_flipped_end_in_a_sentence_never_in_a_crash(
    shared_data: Path, name: str, tmp_path: Path
) -> None:
    content = (shared_data / "vendor" / name).read_bytes()
    generator = np.random.default_rng(11)
    path = tmp_path / name
    for _ in range(60):
        damaged = bytearray(content)
        for at in generator.integers(0, min(len(content), 3000), 4):
            damaged[at] = generator.integers(0, 256)
        path.write_bytes(damaged)
        found = frame_or_refusal(path)
        assert isinstance(found, np.ndarray) or path.name in str(found)


def test_an_experiment_file_without_its_series_is_refused(
    shared_data: Path, tmp_path: Path
) -> None:
    shutil.copy(shared_data / "vendor" / "128x128-TEM_search.emi", tmp_path)
    with pytest.raises(UnreadableFile, match=r"128x128-TEM_search_1\.ser"):
        read_frames(tmp_path / "128x128-TEM_search.emi")


def test_ptnc_frames_know_their_pixel_size_and_agree_with_the_callers(shared_data: Path) -> None:
    files = sorted((shared_data / "frames" / "ptnc").glob("*.tif"))
    records = [read_frames(path, pixel_size_pm=29.3) for path in files]
    assert len(records) == 11
    assert {record.frame.shape for record in records} == {(512, 512)}
    assert {read_frames(path).pixel_size_pm for path in files} == {29.296875}
    assert [record.notes for record in records] == [()] * 11


def test_a_wrong_pixel_size_for_ptnc_is_told(shared_data: Path) -> None:
    record = read_frames(shared_data / "frames" / "ptnc" / "021.tif", pixel_size_pm=20.0)
    assert record.pixel_size_pm == 20.0
    assert "the file says 29.2969 pm a pixel, the caller 20" in record.notes[0]


@pytest.mark.parametrize(("folder", "image"), [("ptnc", ".tif"), ("rebpy", ".png")])
def test_marked_atoms_lie_in_their_frames_and_on_bright_spots(
    shared_data: Path, folder: str, image: str
) -> None:
    for table in sorted((shared_data / "frames" / folder).glob("*.csv")):
        frame, truth = read_frames(table.with_suffix(image)).frame, read_truth_csv(table)
        rows, columns = np.rint(truth[:, :2]).astype(int).clip(0, 511).T
        assert len(truth) > 0
        assert (truth[:, :2] >= 0).all()
        assert (truth[:, :2] <= 512).all()
        assert frame[rows, columns].mean() > frame.mean()


@pytest.mark.parametrize(("name", "size_pm"), [("000-2", 9000 / 512), ("001-5", 7000 / 512)])
def test_mos2_frames_take_their_condition_from_the_json_beside_them(
    shared_data: Path, name: str, size_pm: float
) -> None:
    record = read_frames(shared_data / "frames" / "mos2" / f"{name}.npy")
    optics = record.condition.optics
    assert record.pixel_size_pm == pytest.approx(size_pm)
    assert (optics.beam_kv, optics.beam_current_pa) == (60, 30)
    assert "MoS2" in record.condition.sample.material


@pytest.mark.parametrize(("name", "size_pm"), [("000-2", 9000 / 512), ("001-5", 7000 / 512)])
def test_the_lattice_of_real_mos2_tells_its_pixel_size_within_its_error(
    shared_data: Path, name: str, size_pm: float
) -> None:
    record = read_frames(shared_data / "frames" / "mos2" / f"{name}.npy")
    told = infer_pixel_size(record.frame, cell_of(record.condition.sample))
    assert abs(told.pixel_size_pm - size_pm) < 1.5 * told.error_pm
    assert told.error_pm < 0.1 * size_pm


@pytest.mark.parametrize("folder", ["other", "rebpy"])
def test_frames_without_metadata_are_read_with_nothing_made_up(
    shared_data: Path, folder: str
) -> None:
    for path in (shared_data / "frames" / folder).iterdir():
        if path.suffix in (".npy", ".png", ".jpg"):
            record = read_frames(path)
            assert record.pixel_size_pm is None
            assert not any(value for _, value in record.condition.quantities())

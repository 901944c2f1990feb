"""TIFF: the recorded image among others, its counts, and its pixel size by each maker's tags."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from manybeam.data.io.reading import FrameFile, read_frames
from manybeam.errors import UnreadableFile

IMAGE = np.random.default_rng(7).integers(0, 4095, (48, 60)).astype(np.uint16)
BYTES = (IMAGE // 16).astype(np.uint8)
PICTURE = np.stack([BYTES // 2 + 9] * 2 + [BYTES], axis=-1)  # for display, in colour
SIZED = {"resolution": (5e8, 5e8), "resolutionunit": "CENTIMETER"}  # 20 pm


def write_pages(path: Path, *pages: tuple[NDArray[Any], dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as file:
        for pixels, options in pages:
            kind = "rgb" if pixels.shape[-1] == 3 else "minisblack"
            file.write(pixels, **({"photometric": kind, "metadata": None} | options))
    return path


def read_pages(path: Path, *pages: tuple[NDArray[Any], dict[str, Any]]) -> FrameFile:
    return read_frames(write_pages(path, *pages))


# -- which image ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "pages",
    [
        pytest.param([(PICTURE, {}), (IMAGE, SIZED)], id="colour-first"),
        pytest.param([(IMAGE, SIZED), (PICTURE, {})], id="colour-last"),
        pytest.param([(PICTURE, {"compression": "jpeg"}), (IMAGE, SIZED)], id="jpeg-first"),
        pytest.param([(BYTES // 2, {}), (IMAGE, SIZED)], id="8-bit-grey-first"),
        pytest.param([(np.pad(PICTURE, ((0, 12), (0, 0), (0, 0))), {}), (IMAGE, SIZED)], id="bar"),
        pytest.param([(PICTURE.repeat(3, 0).repeat(3, 1), {}), (IMAGE, SIZED)], id="magnified"),
        pytest.param([(IMAGE[::2, ::2], {"subfiletype": 1}), (IMAGE, SIZED)], id="thumbnail-first"),
        pytest.param([(BYTES > 9, {"subfiletype": 4}), (IMAGE, SIZED)], id="mask-first"),
        pytest.param([(IMAGE[:9, :9].astype("f4"), {}), (BYTES, SIZED)], id="small-floats-first"),
    ],
)
def test_the_recorded_image_is_taken_with_its_own_size(pages: list[Any], tmp_path: Path) -> None:
    record = read_pages(tmp_path / "a.tif", *pages)
    wanted = next(pixels for pixels, options in pages if options is SIZED)
    assert np.array_equal(record.frame, wanted)
    assert record.pixel_size_pm == pytest.approx(20)
    assert record.notes[0].startswith("2 images; ")


def test_a_thumbnail_whose_frame_is_a_sub_page_is_not_taken(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(BYTES[::4, ::4], subifds=1, metadata=None)
        file.write(IMAGE, metadata=None)
    assert np.array_equal(read_frames(tmp_path / "a.tif").frame, IMAGE)


def test_of_a_pyramid_the_whole_image_is_taken(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(IMAGE, subifds=2)
        file.write(IMAGE[::2, ::2], subfiletype=1)
        file.write(IMAGE[::4, ::4], subfiletype=1)
    assert np.array_equal(read_frames(tmp_path / "a.ome.tif").frame, IMAGE)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["overview-first", "frame-first"])
@pytest.mark.parametrize("overview", [IMAGE[::4, ::4], IMAGE[:40], IMAGE[:, :50]], ids=str)
def test_of_two_images_of_ome_the_size_is_that_of_the_chosen_one(
    order: tuple[int, int], overview: NDArray[Any], tmp_path: Path
) -> None:
    images = [(overview, 0.064), (IMAGE, 0.016)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for pixels, size_nm in (images[place] for place in order):
            sizes = {f"PhysicalSize{axis}": size_nm for axis in "XY"}
            units = {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
            file.write(np.ascontiguousarray(pixels), metadata={"axes": "YX"} | sizes | units)
    record = read_frames(tmp_path / "a.ome.tif")
    assert record.frame.shape == IMAGE.shape
    assert record.pixel_size_pm == pytest.approx(16)


# -- counts -----------------------------------------------------------------------------------
def test_indexed_colours_are_read_as_those_of_the_same_png(tmp_path: Path) -> None:
    picture = Image.fromarray(PICTURE).quantize(200)
    picture.save(tmp_path / "a.tif")
    picture.save(tmp_path / "a.png")
    tif, png = (read_frames(tmp_path / f"a.{suffix}") for suffix in ("tif", "png"))
    assert np.array_equal(tif.frame, png.frame)
    assert tif.notes[0] == png.notes[0]


@pytest.mark.parametrize("grey", [[0, 255], [200, 3], [9, 250, 4, 100]], ids=str)
def test_a_few_greys_in_any_order_are_read_as_shown(grey: list[int], tmp_path: Path) -> None:
    indices = (BYTES % len(grey)).astype(np.uint8)
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, : len(grey)] = np.array(grey) * 257
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=colormap)
    assert np.array_equal(read_frames(tmp_path / "a.tif").frame, np.array(grey)[indices])


def test_what_follows_an_index_is_opacity(tmp_path: Path) -> None:
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:] = np.arange(256)[::-1] * 257
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.stack([BYTES, np.full_like(BYTES, 255)], axis=-1),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"],
        metadata=None,
        extratags=[(320, 3, 768, colormap.ravel().tolist(), True)],
    )
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages.first.tags[262].overwrite(3)
    assert np.array_equal(read_frames(tmp_path / "a.tif").frame, 255 - BYTES)


def test_a_grey_table_with_marks_of_an_overlay_shows_counts(tmp_path: Path) -> None:
    colormap = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
    colormap[0, 9:200:9] = 65535
    tifffile.imwrite(tmp_path / "a.tif", BYTES, photometric="palette", colormap=colormap)
    record = read_frames(tmp_path / "a.tif")
    assert np.array_equal(record.frame, BYTES)
    assert not any("colours" in note for note in record.notes)


def test_false_colours_of_imagej_show_counts(tmp_path: Path) -> None:
    rising = np.arange(256, dtype=np.uint16) * 257
    colormap = np.stack([rising, rising[::-1], rising])
    tifffile.imwrite(
        tmp_path / "a.tif",
        BYTES,
        photometric="palette",
        colormap=colormap,
        description="ImageJ=1.54",
    )
    record = read_frames(tmp_path / "a.tif")
    assert np.array_equal(record.frame, BYTES)
    assert record.notes[0] == "its colours show counts: the counts were taken"


@pytest.mark.parametrize("pixels", [BYTES, IMAGE], ids=["8-bit", "16-bit"])
def test_where_zero_is_white_atoms_are_as_bright_as_shown(
    pixels: NDArray[Any], tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    record = read_frames(tmp_path / "a.tif")
    assert np.array_equal(record.frame, np.iinfo(pixels.dtype).max - pixels.astype(np.float32))
    assert "0 to be white" in record.notes[0]


def test_a_table_that_imagej_only_shows_inverted_changes_no_count(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES, photometric="miniswhite", description="ImageJ=1.54")
    record = read_frames(tmp_path / "a.tif")
    assert np.array_equal(record.frame, BYTES)
    assert "0 to be white" in record.notes[0]


def pillow(pixels: NDArray[Any], **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(pixels).save(path, **options)


def tiff(pixels: NDArray[Any], **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        pytest.param(pillow(IMAGE, compression="tiff_lzw"), IMAGE, id="LZW"),
        pytest.param(pillow(IMAGE, compression="packbits"), IMAGE, id="PackBits"),
        pytest.param(pillow(BYTES > 99), BYTES > 99, id="1 bit"),
        pytest.param(pillow(BYTES > 99, compression="group4"), BYTES > 99, id="CCITT group 4"),
        pytest.param(pillow(BYTES > 99, compression="group3"), BYTES > 99, id="CCITT group 3"),
        pytest.param(tiff(IMAGE, compression="zlib", predictor=True), IMAGE, id="predictor"),
        pytest.param(
            tiff(IMAGE.astype("f4"), compression="zlib", predictor=True), IMAGE, id="of floats"
        ),
        pytest.param(tiff(IMAGE, compression="zstd"), IMAGE, id="Zstandard"),
        pytest.param(tiff(IMAGE, tile=(16, 16), compression="lzw"), IMAGE, id="tiles"),
        pytest.param(tiff(IMAGE, bigtiff=True, byteorder=">"), IMAGE, id="big end first"),
        pytest.param(tiff(BYTES.astype(np.int8)), BYTES.astype(np.int8), id="signed bytes"),
        pytest.param(tiff(IMAGE[..., None]), IMAGE, id="an axis of one channel"),
    ],
)
def test_a_tiff_in_any_packing_gives_the_counts_back(
    write: Callable[[Path], None], expected: NDArray[Any], tmp_path: Path
) -> None:
    write(tmp_path / "a.tif")
    assert np.array_equal(read_frames(tmp_path / "a.tif").frame, expected)


def test_a_tiff_packed_as_jpeg_is_near_its_counts(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(48), np.arange(60)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", smooth, compression="jpeg")
    assert np.abs(read_frames(tmp_path / "a.tif").frame - smooth).max() < 9


def test_opacity_is_no_channel_and_two_detectors_are_two_frames(tmp_path: Path) -> None:
    both = np.stack([IMAGE, IMAGE[::-1]], axis=-1)
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", both, extrasamples=["unassalpha"], **options)
    tifffile.imwrite(tmp_path / "b.tif", both, extrasamples=["unspecified"], **options)
    alone, pair = (read_frames(tmp_path / name) for name in ("a.tif", "b.tif"))
    assert np.array_equal(alone.frame, IMAGE)
    assert np.array_equal(pair.frame, np.moveaxis(both, -1, 0))
    assert "2 channels, each taken as a frame" in pair.notes[0]


@pytest.mark.parametrize(
    ("sides", "axes", "named"),
    [
        ((5,), "TYXS", "2 channels x 5 times"),
        ((5, 1), "TZYXS", "2 channels x 5 times"),
        ((5, 3), "TZYXS", "2 channels x 5 times x 3 depths"),
    ],
)
def test_frames_of_two_detectors_in_time_are_named_by_their_axes(
    sides: tuple[int, ...], axes: str, named: str, tmp_path: Path
) -> None:
    stack = np.random.default_rng(2).integers(0, 255, (*sides, 24, 34, 2)).astype(np.uint8)
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": axes}, **options)
    record = read_frames(tmp_path / "a.tif")
    assert np.array_equal(record.frame, np.moveaxis(stack, -1, 0).reshape(-1, 24, 34))
    assert f"{named}: each was taken as a frame, in this order" in record.notes


def test_patterns_of_a_scan_whose_axes_have_no_name_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 7, 24, 34), np.uint8))
    with pytest.raises(UnreadableFile, match="a scan of patterns"):
        read_frames(tmp_path / "a.tif")


def test_channels_written_last_are_refused(tmp_path: Path) -> None:
    channels = np.stack([IMAGE] * 3, axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", channels, photometric="minisblack")
    with pytest.raises(UnreadableFile, match="3 channels last"):
        read_frames(tmp_path / "a.tif")


def test_colours_of_a_printer_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "a.tif")
    with pytest.raises(UnreadableFile, match="SEPARATED"):
        read_frames(tmp_path / "a.tif")


# -- pixel size -------------------------------------------------------------------------------
ZEISS = "\r\n".join(  # lines of unnamed numbers; the fourth is the size on a screen of 1024 columns
    ["0", "0", "0", f"{20e-12 * 60 / 1024}", "0", "AP_ACTUALKV", "EHT = 30.00 kV", ""]
)
FEI = "[Beam]\r\nHV=60000\r\nBeam=EBeam\r\n[EBeam]\r\nBeamCurrent=3e-11\r\n"
FEI += "[Scan]\r\nDwelltime=8e-06\r\nPixelWidth=2e-11\r\nPixelHeight=2e-11\r\n"
TESCAN = b"\x01\x02[MAIN]\r\nPixelSizeX=2.0e-11\r\nPixelSizeY=2.0e-11\r\n[SEM]\r\nHV=30000.0\r\n"


@pytest.mark.parametrize(
    ("tags", "kv"),
    [
        pytest.param([(34118, "s", 0, ZEISS, True)], 30, id="Zeiss"),
        pytest.param([(34680, "s", 0, FEI, True)], 60, id="FEI SFEG"),
        pytest.param([(34682, "s", 0, FEI, True)], 60, id="FEI Helios"),
        pytest.param([(50431, "B", len(TESCAN), TESCAN, True)], 30, id="Tescan"),
    ],
)
def test_scanning_microscopes_state_size_and_voltage_in_their_tags(
    tags: list[Any], kv: float, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES, extratags=tags, metadata=None)
    record = read_frames(tmp_path / "a.tif")
    assert record.pixel_size_pm == pytest.approx(20)
    assert record.condition.optics.beam_kv == pytest.approx(kv)


def test_the_rows_of_a_data_bar_of_fei_are_told(tmp_path: Path) -> None:
    text = FEI + "[Image]\r\nResolutionX=60\r\nResolutionY=40\r\n"
    tifffile.imwrite(tmp_path / "a.tif", BYTES, extratags=[(34682, "s", 0, text, True)])
    record = read_frames(tmp_path / "a.tif")
    assert record.frame.shape == BYTES.shape
    assert "its last 8 rows are a data bar: crop them" in record.notes


JEOL = "$CM_FULL_SIZE 60 48\n$CM_ACCEL_VOLT 30.00\n$$SM_MICRON_BAR 50\n$$SM_MICRON_MARKER 1nm\n"
HITACHI = "[SemImageFile]\nDataSize=60x48\nPixelSize=0.02\nAcceleratingVoltage=30000 Volt\n"
HDR = "[MAIN]\nDevice=x\nPixelSizeX=2e-11\nPixelSizeY=2e-11\n[SEM]\nHV=30000\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("a.txt", JEOL.encode(), id="JEOL"),
        pytest.param("a.txt", HITACHI.encode(), id="Hitachi"),
        pytest.param(
            "a.txt", HITACHI.replace("0.02", "20.0   (pm)").encode(), id="Hitachi with unit"
        ),
        pytest.param("a.txt", HITACHI.encode("utf-16"), id="Hitachi in UTF-16"),
        pytest.param("a.hdr", HDR.encode(), id="Tescan"),
        pytest.param("a-tif.hdr", HDR.encode(), id="Tescan, named by its frame"),
    ],
)
def test_scanning_microscopes_state_size_and_voltage_in_a_text_beside(
    name: str, text: bytes, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES, metadata=None)
    (tmp_path / name).write_bytes(text)
    record = read_frames(tmp_path / "a.tif")
    assert record.pixel_size_pm == pytest.approx(20)
    assert record.condition.optics.beam_kv == 30
    assert record.notes == (f"the pixel size, 20 pm, is from {name}",)


@pytest.mark.parametrize("text", ["found 12 atoms\n", "PixelSize=3\n", "HV=30000\n", ""])
def test_a_text_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES, metadata=None)
    (tmp_path / "a.txt").write_text(text)
    record = read_frames(tmp_path / "a.tif")
    assert (record.pixel_size_pm, record.condition.optics.beam_kv) == (None, None)


def test_a_text_of_a_frame_of_another_size_gives_no_pixel_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES[:, ::2].copy(), metadata=None)
    (tmp_path / "a.txt").write_text(HITACHI)
    record = read_frames(tmp_path / "a.tif")
    assert (record.pixel_size_pm, record.condition.optics.beam_kv) == (None, None)
    assert "a.txt is of a frame of 60 columns, not 30" in record.notes[0]


def test_a_text_that_cannot_be_read_leaves_the_frame_readable(tmp_path: Path) -> None:
    frame = tmp_path / f"{'a' * 248}.x.tif"  # the name of its .hdr is too long for the disk
    tifffile.imwrite(frame, BYTES, metadata=None)
    record = read_frames(frame)
    assert np.array_equal(record.frame, BYTES)
    assert any("was ignored: file name too long" in note for note in record.notes)


def test_a_doubt_about_one_tag_is_not_told_where_another_gives_the_size(tmp_path: Path) -> None:
    unknown = [(65003, "s", 0, "nm", True), (65004, "s", 0, "nm", True),
               (65009, "d", 1, 1.0, True), (65010, "d", 1, 1.0, True)]  # fmt: skip
    options: dict[str, Any] = {"metadata": None, "extratags": unknown}
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, **SIZED, **options)
    tifffile.imwrite(tmp_path / "b.tif", IMAGE, **options)
    sized, unsized = (read_frames(tmp_path / name) for name in ("a.tif", "b.tif"))
    assert sized.pixel_size_pm == pytest.approx(20)
    assert not any("exactly 1 nm" in note for note in sized.notes)
    assert any("exactly 1 nm" in note for note in unsized.notes)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"resolution": (72, 72), "resolutionunit": "INCH"}, id="72 dpi"),
        pytest.param({"resolution": (96, 96), "resolutionunit": "INCH"}, id="96 dpi"),
        pytest.param({"resolution": (1, 1), "resolutionunit": "NONE"}, id="1 a unit"),
        pytest.param({"imagej": True, "resolution": (50, 50)}, id="ImageJ without unit"),
        pytest.param(
            {"imagej": True, "resolution": (1, 1), "metadata": {"unit": "A"}}, id="ImageJ, 1 A"
        ),
        pytest.param(
            {"ome": True, "metadata": {"PhysicalSizeX": 1, "PhysicalSizeY": 1}}, id="1 um"
        ),
    ],
)
def test_a_size_that_nobody_measured_is_left_open(options: dict[str, Any], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES, **options)
    assert read_frames(tmp_path / "a.tif").pixel_size_pm is None


STREAK = '[Scaling],ScalingXType=2,ScalingXUnit="nm",ScalingYType=2,ScalingYUnit="ps"'


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"imagej": True, "metadata": {"unit": "eV"}, **SIZED}, "spectrum", id="eV"),
        pytest.param(
            {"imagej": True, "metadata": {"unit": "1/nm"}, **SIZED}, "diffraction", id="1/nm"
        ),
        pytest.param(
            {"ome": True, "metadata": {"PhysicalSizeX": 2, "PhysicalSizeXUnit": "mrad"}},
            "diffraction",
            id="mrad",
        ),
        pytest.param(
            {"description": STREAK, "metadata": None}, "streak of wavelength", id="streak"
        ),
    ],
)
def test_a_tiff_of_something_else_than_a_frame_is_refused(
    options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES, **options)
    with pytest.raises(UnreadableFile, match=why):
        read_frames(tmp_path / "a.tif")


# -- damaged ----------------------------------------------------------------------------------
def chain(path: Path, *following: int) -> Path:
    """Write a TIFF of small pages, then set where each page says that the next one is."""
    write_pages(path, *[(IMAGE[:8, :8], {})] * len(following))
    with tifffile.TiffFile(path) as tif:
        starts = [page.offset for page in tif.pages]
    content = bytearray(path.read_bytes())
    for start, place in zip(starts, following, strict=True):
        (count,) = struct.unpack_from("<H", content, start)
        offset = starts[place] if 0 <= place < len(starts) else 0 if place < 0 else place
        struct.pack_into("<I", content, start + 2 + 12 * count, offset)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("following", [(0,), (1, 0), (1, 2, 1)], ids=str)
def test_pages_that_lead_in_circles_are_refused(following: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="lead back to an earlier one"):
        read_frames(chain(tmp_path / "a.tif", *following))


def test_frames_that_may_be_missing_are_told(tmp_path: Path) -> None:
    record = read_frames(chain(tmp_path / "a.tif", 1, 99_999_999, -1))
    assert record.frame.shape == (2, 8, 8)
    assert "breaks off after 2" in record.notes[0]


def test_pages_of_the_same_pixels_fill_no_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 65535, (48, 60)).astype(np.uint16)
    path = write_pages(tmp_path / "a.tif", (noise, {"compression": "zlib"}),
                       *[(IMAGE * 0, {"compression": "zlib"})] * 3)  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as tif:
        first = tif.pages[0].aspage()
        for page in tif.pages[1:]:
            tags = page.aspage().tags
            tags["StripOffsets"].overwrite(first.dataoffsets)
            tags["StripByteCounts"].overwrite(first.databytecounts)
    with pytest.raises(UnreadableFile, match="same pixels"):
        read_frames(path)


def test_a_jpeg_inside_that_declares_a_huge_size_costs_nothing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", BYTES, compression="jpeg")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into(">2H", content, content.find(b"\xff\xc0") + 5, 65_000, 65_000)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UnreadableFile, match="declares another size"):
        read_frames(tmp_path / "a.tif")


@pytest.mark.parametrize("packing", ["webp", "jpeg2000", "png", "jpegxl"])
def test_a_packing_without_a_bound_is_refused_by_its_name(packing: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PICTURE, photometric="rgb", compression=packing)
    with pytest.raises(UnreadableFile, match=r"packed by \w+, which is not read"):
        read_frames(tmp_path / "a.tif")


def test_a_file_without_an_image_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.tif").write_bytes(b"II*\0\x08\0\0\0" + bytes(200))
    with pytest.raises(UnreadableFile, match="no page with an image"):
        read_frames(tmp_path / "broken.tif")

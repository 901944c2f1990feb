"""The tags of a TIFF: pixel size and settings, as each maker of microscopes writes them."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from manybeam.data.io.formats import (
    ORIENTATION,
    Raw,
    as_values,
    check_axis,
    check_wavelengths,
    length_pm,
    note_orientation,
    pixel_pm,
)
from manybeam.data.io.limits import FileFault
from manybeam.data.io.semtext import add_text
from manybeam.data.io.units import as_number, measure

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

_GATAN_UNIT, _GATAN_START, _GATAN_SCALE = 65003, 65006, 65009  # and the next two, for y and frame
_SIS_INI, _SIS, _ZEISS, _FEI_SFEG, _FEI_HELIOS = 33471, 33560, 34118, 34680, 34682
_TVIPS, _TESCAN = 37706, 50431
_ZEISS_COLUMNS = 1024  # the screen that its sizes are of
_PRINTER_PM = 1e6  # above 1 um it is a resolution for printing
_PRINTED = "a resolution for printing"
_CHIP_PM = 1e8  # 0.1 mm; a pixel of no camera is larger


def read_tags(raw: Raw, tif: "TiffFile", image: "TiffPageSeries") -> None:
    """Add what the tags of the chosen image state.

    Of several pixel sizes the first counts, in the order below: what a program wrote for this
    purpose comes before the resolution, which also says how to print. The others are noted.
    """
    page = image.keyframe
    # Of two tags of one number the first counts: a program may have added its own.
    tags = {tag.code: tag.value for tag in reversed(list(page.tags))}
    _check_streak(tags)
    note_orientation(raw.notes, tags.get(ORIENTATION, 1))
    doubts: list[str] = []
    stated = {
        "Gatan's tags": _gatan_pm(tags, raw.array.shape, doubts),
        "OME": _ome_pm(tif, image, doubts),
        "FEI's tag": _fei(raw, tags, doubts),
        "JEOL's description": _jeol(raw, tags, doubts),
        "Zeiss's tag": _zeiss(raw, tags, page),
        "the tag of SIS": _sis_pm(tags, doubts),
        "the tag of TVIPS": _tvips_pm(tags, doubts),
        "Tescan's tag": _tescan_pm(raw, tags),
        **_resolution_pm(tif, tags, doubts),
    }
    known = {who: size for who, size in stated.items() if size}
    if not known and _PRINTED in stated:
        doubts.append("its resolution is for a printer and was not taken as a pixel size")
    if not known:  # why one tag gives no size matters only where no other gives one
        raw.notes += dict.fromkeys(doubts)
    raw.pixel_size_pm = next(iter(known.values()), None)
    raw.implied |= dict(list(known.items())[1:])


def _check_streak(tags: Mapping[int, Any]) -> None:
    """Refuse frames of Hamamatsu's streak cameras: their axes are wavelength and time."""
    text = str(tags.get(270, ""))
    found = [re.search(rf'Scaling{axis}Unit="([^"]+)"', text) for axis in "XY"]
    if any(found):
        x, y = (one[1] if one else "px" for one in found)
        raise FileFault(
            f"its axes are in {x} and {y}: a streak of wavelength and time, not a frame"
        )


def _gatan_pm(tags: Mapping[int, Any], shape: tuple[int, ...], notes: list[str]) -> float | None:
    """Return the pixel size of Gatan's private tags, which HyperSpy writes too: of x, y, frame."""
    if _GATAN_SCALE not in tags:
        return None
    units = [str(tags.get(_GATAN_UNIT + n, "")) for n in range(3)]
    scales, starts = (
        [as_number(tags.get(code + n)) for n in range(3)] for code in (_GATAN_SCALE, _GATAN_START)
    )
    if len(shape) > 2:
        check_axis(units[2], is_of_stack=True)
    check_wavelengths(
        [(scales[n], units[n], starts[n] or 0.0, side) for n, side in enumerate(shape[:-4:-1])][
            ::-1
        ]
    )
    x, y = ((abs(scales[n] or 0.0), units[n]) for n in range(2))  # below zero if mirrored
    return pixel_pm(y, x, notes)


def _ome_pm(tif: "TiffFile", image: "TiffPageSeries", notes: list[str]) -> float | None:
    """Return the pixel size of the chosen image; each image of the XML has its own."""
    if not tif.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(tif.ome_metadata)  # noqa: S314 - tifffile parsed it already
    except ElementTree.ParseError:
        notes.append("its OME description is damaged and was ignored")
        return None
    described = [one.attrib for one in root.iterfind("{*}Image/{*}Pixels")]
    names = [one.get("Name", "") for one in root.iterfind("{*}Image")]
    sides = {axis: str(image.shape[image.axes.index(axis)]) for axis in "YX"}
    fitting = [
        (name, pixels)
        for name, pixels in zip(names, described, strict=False)
        if all(pixels.get(f"Size{axis}") == side for axis, side in sides.items())
    ]
    if image.kind == "ome" and len(described) == len(tif.series):
        place = next(place for place, one in enumerate(tif.series) if one is image)
        fitting = [(image.name, described[place])]
    if any(name == image.name for name, _ in fitting):
        fitting = [(name, pixels) for name, pixels in fitting if name == image.name]
    sizes = {_ome_axes(pixels) for _, pixels in fitting}
    if len(sizes) != 1:
        if sizes:
            notes.append("its OME description gives several pixel sizes: none was taken")
        return None
    return pixel_pm(*sizes.pop(), notes)


def _ome_axes(pixels: Mapping[str, str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return (scale, unit) along y and x; the unit is um if it is left out."""
    y, x = (
        (pixels.get(f"PhysicalSize{axis}", ""), pixels.get(f"PhysicalSize{axis}Unit", "um"))
        for axis in "YX"
    )
    return y, x


def _resolution_pm(
    tif: "TiffFile", tags: Mapping[int, Any], notes: list[str]
) -> dict[str, float | None]:
    """Return the size that the resolution gives, with the unit of ImageJ if it wrote the file."""
    per_unit = [_per_unit(tags.get(code)) for code in (283, 282)]  # YResolution, XResolution
    written = tif.imagej_metadata or {}
    unit = str(written.get("unit", ""))
    name = "ImageJ" if unit else "the resolution tags"
    units = [unit or {2: "inch", 3: "cm"}.get(int(tags.get(296, 2)), "")] * 2
    if unit and written.get("yunit"):
        units[0] = str(written["yunit"])
    axes = [(1 / n if n else None, one) for n, one in zip(per_unit, units, strict=True)]
    edge_pm = length_pm(*axes[0])
    if not unit and edge_pm and edge_pm > _PRINTER_PM:
        return {_PRINTED: None}
    return {name: pixel_pm(axes[0], axes[1], notes)}


def _fei(raw: Raw, tags: Mapping[int, Any], notes: list[str]) -> float | None:
    """Map the tags of FEI and Thermo Fisher: SI units, in a tree of sections."""
    trees = [tags[code] for code in (_FEI_SFEG, _FEI_HELIOS) if isinstance(tags.get(code), dict)]
    tree = {key: value for one in trees for key, value in one.items()}
    sections = {key: value for key, value in tree.items() if isinstance(value, dict)}
    beam, scan = sections.get("Beam", {}), sections.get("Scan", {})
    mine = sections.get(str(beam.get("Beam", "")), {})
    found = {
        "optics.beam_kv": (beam.get("HV"), 1e-3),
        "optics.beam_current_pa": (mine.get("BeamCurrent"), 1e12),
        "scan.dwell_us": (scan.get("Dwelltime"), 1e6),
    }
    raw.values |= as_values(found)
    rows, scanned = raw.array.shape[-2], as_number(sections.get("Image", {}).get("ResolutionY"))
    if scanned and 0 < scanned < rows:
        raw.notes.append(f"its last {rows - scanned:.0f} rows are a data bar: crop them")
    axes = [(scan.get(f"Pixel{side}"), "m") for side in ("Height", "Width")]
    return pixel_pm(axes[0], axes[1], notes)


def _jeol(raw: Raw, tags: Mapping[int, Any], notes: list[str]) -> float | None:
    """Map the XML of JEOL's SightX; with the camera of a TEM, the resolution is that of its chip.

    Raises:
        FileFault: the camera recorded a diffraction pattern.
    """
    text = str(tags.get(270, ""))
    if "<TemReporter" not in text:
        return None

    def value(name: str) -> str:
        found = re.search(f"<{name}>([^<]*)</{name}>", text)
        return found[1].strip() if found else ""

    raw.values |= as_values({"optics.beam_kv": (value("AccelerationVoltage"), 1e-3)})
    if value("EosMode") != "eosTEM":
        return None
    raw.modality = "tem"
    if value("ModeString") == "DIFF":
        raise FileFault("the microscope was in diffraction mode: a pattern, not a frame")
    magnification = as_number(value("SelectorValue")) or 0.0
    if value("ModeString") != "MAG" or magnification <= 0:
        return None
    unit = {2: "inch", 3: "cm"}.get(int(tags.get(296, 2)), "")
    per_unit = (_per_unit(tags.get(283)), _per_unit(tags.get(282)))
    if any((length_pm(1 / n, unit) or 0.0) > _CHIP_PM for n in per_unit if n):
        return None  # a resolution for printing, as `_resolution_pm` notes
    y, x = ((1 / (n * magnification) if n else None, unit) for n in per_unit)
    size = pixel_pm(y, x, notes)
    if size:
        raw.notes.append(f"JEOL's pixel size rests on the nominal magnification {magnification:g}")
    return size


def _zeiss(raw: Raw, tags: Mapping[int, Any], page: "TiffPage") -> float | None:
    """Map the tag of Zeiss, whose entries are (name, number, unit).

    The first, unnamed entry has the size of a pixel of a screen of 1024 columns, in m. The named
    ones are rounded and some programs leave them out.
    """
    tree = tags.get(_ZEISS)
    if not isinstance(tree, dict):
        return None
    for name, field, ours in (("ap_actualkv", "optics.beam_kv", "kV"),
                              ("ap_iprobe", "optics.beam_current_pa", "pA")):  # fmt: skip
        entry = tree.get(name, ())
        number = measure(entry[1], str(entry[2]), ours) if len(entry) == 3 else None
        if number:
            raw.values[field] = number
    named = tree.get("ap_image_pixel_size", ())
    size = length_pm(named[1], str(named[2])) if len(named) == 3 else None
    plain = tree.get("", ())
    screen_m = as_number(plain[3]) if len(plain) > 3 else None
    if not screen_m:
        return size
    if size:
        raw.implied["Zeiss's image pixel size"] = size
    return length_pm(screen_m * _ZEISS_COLUMNS / page.imagewidth, "m")


def _sis_pm(tags: Mapping[int, Any], notes: list[str]) -> float | None:
    """Return the pixel size of Olympus SIS, in m."""
    trees = [tags[code] for code in (_SIS_INI, _SIS) if isinstance(tags.get(code), dict)]
    tree = {key: value for one in trees for key, value in one.items()}
    return pixel_pm((tree.get("pixelsizey"), "m"), (tree.get("pixelsizex"), "m"), notes)


def _tvips_pm(tags: Mapping[int, Any], notes: list[str]) -> float | None:
    tree = tags.get(_TVIPS)
    if not isinstance(tree, dict):
        return None
    return pixel_pm((tree.get("PixelSizeY"), "nm"), (tree.get("PixelSizeX"), "nm"), notes)


def _tescan_pm(raw: Raw, tags: Mapping[int, Any]) -> float | None:
    """Map the tag of Tescan: lines NAME=VALUE in SI units between bytes of unknown meaning."""
    content = tags.get(_TESCAN)
    text = content.decode("latin-1") if isinstance(content, bytes) else str(content or "")
    return add_text(raw, text, "Tescan's tag") if "PixelSizeX" in text else None


def _per_unit(value: Any) -> float:
    """Return pixels per unit from a fraction of TIFF; 0 if there is none."""
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else 0.0

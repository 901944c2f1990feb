"""Instrument formats: DigitalMicrograph (dm3, dm4) and TIA (ser, emi).

They are read here, and every length is compared with the size of the file: a wrong header must
cause an error message, not a full memory. Each reader returns a `formats.Raw`.

Axis letters: n frame, y row, x column.
"""

import glob
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.data.io.dmtags import TagArray, read_tags
from manybeam.data.io.formats import (
    Array,
    Raw,
    as_values,
    check_axis,
    check_wavelengths,
    detector_named,
    frames_among,
    grey,
    length_pm,
    pixel_pm,
)
from manybeam.data.io.limits import FileFault, check_declared
from manybeam.data.io.units import OURS, as_number, measure

# Image types of DigitalMicrograph -> NumPy; 23 is packed colour; 3 and 13 are complex.
_DM_TYPES = {1: "i2", 2: "f4", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8", 14: "u1"}
_DM_COLOUR = 23


def read_dm(path: Path) -> Raw:
    """Read the recorded image of a DM3 or DM4 file: that of the largest frames.

    Thumbnails, pictures for display in colour, spectra and patterns are not taken where the file
    has a frame beside them.
    """
    tags = read_tags(path)
    entries = [entry for entry in tags.get("ImageList", {}).values() if "ImageData" in entry]
    if len(entries) > 1 and entries[0]["ImageData"].get("DataType") == _DM_COLOUR:
        entries = entries[1:]  # the thumbnail
    usable = [entry for entry in entries if _dm_is_image(entry["ImageData"])]
    if not usable:
        raise FileFault("it has no image of real numbers (only tags, spectra or a transform)")
    usable.sort(key=_dm_rank)
    frames = frames_among(usable, _dm_check)
    entry = min(frames, key=lambda entry: entry["ImageData"]["DataType"] == _DM_COLOUR)
    data, axes = entry["ImageData"], _dm_axes(entry)
    sides = [int(side) for side in data["Dimensions"].values()]
    raw = Raw(_dm_array(path, data, sides[::-1]))
    if data["DataType"] == _DM_COLOUR:
        raw.array = grey(raw.array, raw.notes)
    if len(usable) > 1:
        name = str(entry.get("Name", "")) or f"number {1 + entries.index(entry)}"
        raw.notes.append(f"{len(usable)} images; the largest frame was taken: {name}")
    if len(axes) > 1:
        raw.pixel_size_pm = pixel_pm(axes[1], axes[0], raw.notes)
    _dm_metadata(raw, entry.get("ImageTags", {}))
    return raw


def _dm_rank(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return what is smallest for the image of the largest frames, of two alike the longest."""
    data = entry["ImageData"]
    columns, rows = list(data["Dimensions"].values())[:2]
    return -int(columns) * int(rows), -data["Data"].count


def _dm_axes(entry: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Return (scale, unit) of each axis; the scale of one that was mirrored is negative there."""
    dimensions = entry["ImageData"].get("Calibrations", {}).get("Dimension", {}).values()
    return [
        (abs(as_number(axis.get("Scale")) or 0.0), str(axis.get("Units", "")))
        for axis in dimensions
    ]


def _dm_check(entry: Mapping[str, Any]) -> None:
    """Refuse a spectrum image: by the kind that Gatan's programs state, or by the unit of an axis.

    The wavelengths of a spectrum are in nm, as lengths are; their numbers tell them.
    """
    kind = str(_deep(entry.get("ImageTags", {}), "Meta Data").get("Format", ""))
    if "spectrum" in kind.lower():
        raise FileFault(f"its tags call it {kind!r}: a spectrum or a spectrum image, not a frame")
    axes = _dm_axes(entry)
    for place, (_, unit) in enumerate(axes):  # x, y, then frame
        check_axis(unit, is_of_stack=place > 1)
    calibrations = entry["ImageData"].get("Calibrations", {}).get("Dimension", {}).values()
    starts = [-(as_number(axis.get("Origin")) or 0.0) for axis in calibrations]
    sides = entry["ImageData"]["Dimensions"].values()
    check_wavelengths(
        [
            (scale, unit, start * scale, int(side))
            for (scale, unit), start, side in zip(axes, starts, sides, strict=False)
        ][::-1]
    )


def _dm_is_image(data: Mapping[str, Any]) -> bool:
    known = data.get("DataType") in _DM_TYPES or data.get("DataType") == _DM_COLOUR
    sides = list(data.get("Dimensions", {}).values())
    return (
        known and isinstance(data.get("Data"), TagArray) and len(sides) > 1 and min(sides[:2]) > 1
    )


def _dm_array(path: Path, data: Mapping[str, Any], shape: list[int]) -> Array:
    """Return the pixels of one image; colours get a last axis of blue, green, red, opacity."""
    block: TagArray = data["Data"]
    colour = data["DataType"] == _DM_COLOUR
    dtype = np.dtype("u1" if colour else _DM_TYPES[data["DataType"]]).newbyteorder(block.order)
    if colour:
        shape = [*shape, 4]
    check_declared(tuple(shape[:-1] if colour else shape), dtype.itemsize, block.byte_count)
    pixels = np.fromfile(path, dtype, count=int(np.prod(shape)), offset=block.offset)
    return pixels.reshape(shape)[..., [2, 1, 0, 3]] if colour else pixels.reshape(shape)


def _dm_metadata(raw: Raw, tags: Mapping[str, Any]) -> None:
    """Map the tags of Gatan; zero means that a value was not entered."""
    scope, scan = _deep(tags, "Microscope Info"), _deep(tags, "DigiScan")
    spectrum = _deep(tags, "Experimental Conditions") or _deep(tags, "EELS")
    found = {
        "optics.beam_kv": (scope.get("Voltage"), 1e-3),
        "optics.beam_current_pa": (scope.get("Probe Current (nA)"), 1e3),
        "optics.cs_um": (scope.get("Cs(mm)"), 1e3),
        "optics.convergence_mrad": (spectrum.get("Convergence semi-angle (mrad)"), 1.0),
        "scan.dwell_us": (scan.get("Sample Time"), 1.0),
    }
    raw.values = as_values(found)
    _dm_field_of_view(raw, scope, scan)
    mode = str(scope.get("Illumination Mode", ""))
    raw.modality = mode or "unknown"
    if scan and not mode.upper().startswith("SEM"):
        channel = _deep(tags, "QuickSaved").get("original name")
        raw.modality = (
            detector_named(str(channel or _deep(tags, "source").get("source name"))) or "stem"
        )


def _dm_field_of_view(raw: Raw, scope: Mapping[str, Any], scan: Mapping[str, Any]) -> None:
    """Add the pixel size that the field of view implies.

    If the frame was cropped, the width of the scan counts; if it was binned, that of the frame. The
    nearer of both is taken.
    """
    width = next((v for k, v in scope.items() if k.startswith("Field of View")), 0.0)
    sides = [as_number(scan.get("Image Width")), raw.array.shape[-1]]
    sizes = [size for side in sides if side and (size := length_pm(width / side, "um"))]
    if sizes:
        near = raw.pixel_size_pm or sizes[0]
        raw.implied["the field of view"] = min(sizes, key=lambda size: abs(size - near))


def _deep(tags: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the first group of that name, at any depth: programs nest them differently."""
    for key, value in tags.items():
        if isinstance(value, Mapping):
            inner = value if key == name else _deep(value, name)
            if inner:
                return inner
    return {}


_SER_HEAD = struct.Struct("<3Hi")
_SER_IMAGES = 0x4122
_MOST_AXES = 8
_SER_TYPES = ["", "u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8", "c8", "c16"]


def read_ser(path: Path) -> Raw:
    """Read a TIA series, and the experiment file (.emi) beside it if there is one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        raw = _ser_images(memory)
    emi = path.with_name(re.sub(r"_\d+$", "", path.stem) + ".emi")
    if emi.is_file():
        _emi_metadata(raw, emi)
    return raw


def read_emi(path: Path) -> Raw:
    """Read the frames of a TIA experiment, which are in the .ser files beside it."""
    with path.open("rb") as file:
        if file.read(2) != b"JK":
            raise FileFault("it does not start like a TIA experiment")
    _emi_text(path)
    beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}_*.ser"))
    if not beside:
        raise FileFault(f"its frames are in {path.stem}_1.ser beside it, which is missing")
    taken = next((one for one in beside if _ser_kind(one) == _SER_IMAGES), beside[0])
    raw = read_ser(taken)
    if len(beside) > 1:
        raw.notes.append(f"{len(beside)} series beside it; {taken.name} was taken")
    return raw


def _ser_kind(path: Path) -> int:
    """Return the kind of a series, as TIA numbers it; 0 if it is cut short."""
    with path.open("rb") as file:
        head = file.read(_SER_HEAD.size)
    return int(_SER_HEAD.unpack(head)[3]) if len(head) == _SER_HEAD.size else 0


def _ser_images(memory: mmap.mmap) -> Raw:
    """Return all images of a series, which must have one shape."""
    order, series, version, kind = _SER_HEAD.unpack_from(memory)
    if (order, series) != (0x4949, 0x0197) or version not in (0x0210, 0x0220):
        raise FileFault("it does not start like a TIA series")
    if kind != _SER_IMAGES:
        raise FileFault("it has spectra or profiles, but no images")
    wide = version == 0x0220
    count = struct.unpack_from("<i", memory, 18)[0]
    table = struct.unpack_from("<q" if wide else "<i", memory, 22)[0]
    _check_scan(memory, 34 if wide else 30)
    if not 0 < count <= len(memory) // 58 or table < 0:
        raise FileFault(f"it declares {count} images in {len(memory)} bytes: cut short or empty")
    offsets = struct.unpack_from(f"<{count}{'q' if wide else 'i'}", memory, table)
    if len(set(offsets)) < count:
        raise FileFault("several of its images have the same pixels: damaged")
    raw = _ser_image(memory, offsets[0])
    shape, dtype = raw.array.shape, raw.array.dtype
    check_declared((count, *shape), dtype.itemsize, len(memory))
    stack = np.empty((count, *shape), dtype)
    for place, offset in enumerate(offsets):
        image = _ser_image(memory, offset).array
        if (image.shape, image.dtype) != (shape, dtype):
            raise FileFault("its images have different shapes: export them one by one")
        stack[place] = image
    raw.array = stack
    return raw


def _check_scan(memory: mmap.mmap, at: int) -> None:
    """Refuse images at the places of a scan of two axes, as of patterns: they are no stack.

    Args:
        memory: the file.
        at: where its axes are described, after their number; each ends in its name and its unit.
    """
    (axis_count,) = struct.unpack_from("<i", memory, at - 4)
    sides: list[int] = []
    for _ in range(min(axis_count, _MOST_AXES)):
        (side,) = struct.unpack_from("<i", memory, at)
        at += 24
        for _ in range(2):
            (length,) = struct.unpack_from("<i", memory, at)
            if length < 0:
                raise FileFault("its axes are damaged")
            at += 4 + length
        sides.append(side)
    if sum(side > 1 for side in sides) > 1:
        scan = " x ".join(map(str, sides))
        raise FileFault(f"it has an image at each place of a scan of {scan}: no stack of frames")


def _ser_image(memory: mmap.mmap, offset: int) -> Raw:
    """Return one image, top row first: TIA stores the bottom row first."""
    _, x_m, _, _, y_m, _ = struct.unpack_from("<ddiddi", memory, offset)
    code, columns, rows = struct.unpack_from("<hii", memory, offset + 40)
    if not 0 < code < len(_SER_TYPES):
        raise FileFault(f"data type {code} in its header is not one of 1 to {len(_SER_TYPES) - 1}")
    dtype = np.dtype(f"<{_SER_TYPES[code]}")
    check_declared((rows, columns), dtype.itemsize, len(memory) - offset - 50)
    start = offset + 50
    pixels = np.frombuffer(memory[start : start + rows * columns * dtype.itemsize], dtype)
    raw = Raw(pixels.reshape(rows, columns)[::-1])
    raw.pixel_size_pm = pixel_pm((abs(y_m), "m"), (abs(x_m), "m"), raw.notes)
    return raw


def _emi_text(path: Path) -> str:
    """Return the description in a .emi: XML between bytes of unknown meaning."""
    content = path.read_bytes()
    start, stop = content.find(b"<ObjectInfo>"), content.rfind(b"</ObjectInfo>")
    if start < 0 or stop < start:
        raise FileFault(
            "its description is missing: the file is cut short; the .ser beside it may be whole"
        )
    return content[start:stop].decode("utf-8", "replace")


def _emi_metadata(raw: Raw, path: Path) -> None:
    """Map the labelled values of TIA; they are matched as text, because no XML parser is safe."""
    try:
        text = _emi_text(path)
    except FileFault as error:
        raw.notes.append(f"{path.name} was ignored: {error}")
        return
    entry = r"<Label>([^<]{1,80})</Label><Value>([^<]{0,200})</Value>(?:<Unit>([^<]{0,20})</Unit>)?"
    labels = {
        label.strip(): (value.strip(), unit) for label, value, unit in re.findall(entry, text)
    }
    mode = labels.get("Mode", ("", ""))[0]
    dwell = re.search(r"<DwellTimePath>([^<]+)</DwellTimePath>", text)
    if dwell and "STEM" in mode:
        labels["Dwell time"] = (dwell[1], "s")
    usual = {
        "optics.beam_kv": ("High tension", "kV", 1),
        "optics.convergence_mrad": ("Convergence angle", "mrad", 1),
        # Overfocus is positive in files of Thermo Fisher, negative here.
        "optics.defocus_nm": ("Defocus", "um", -1),
        "scan.dwell_us": ("Dwell time", "s", 1),
    }
    stated = {
        field: measure(labels[name][0], labels[name][1] or unit, OURS[field])
        for field, (name, unit, _) in usual.items()
        if name in labels
    }
    raw.values = as_values({field: (stated[field], usual[field][2]) for field in stated})
    raw.modality = "stem" if "STEM" in mode else "tem" if "TEM" in mode else "unknown"

"""Open formats: TIFF, NumPy, PNG and JPEG, MRC, each read into one `Raw`.

Each reader compares the header with the size of the file before it allocates memory. A fault is a
ValueError in plain words; `data.io.reading` adds the name of the file and what to do.

Axis letters: n frame, y row, x column.
"""

import math
import re
import struct
import tokenize
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.errors import TooLarge
from manybeam.settings import settings

Array = NDArray[Any]

STACK_FRAMES = 16  # most pixels of a stack, in largest frames
RATIO = 1100  # deflate, the best compression of these formats, reaches about 1030 at most

FAULTS = (
    struct.error,
    zlib.error,
    tokenize.TokenError,
    BufferError,
)  # of the libraries, not derived from errors of Python

_PM = {
    "m": 1e12,
    "cm": 1e10,
    "inch": 2.54e10,
    "mm": 1e9,
    "um": 1e6,
    "micron": 1e6,
    "microns": 1e6,
    "nm": 1e3,
    "a": 1e2,
    "angstrom": 1e2,
    "angstroms": 1e2,
    "pm": 1.0,
}
_NOT_LENGTH = {
    "ev": "an energy axis: a spectrum, not a frame",
    "kev": "an energy axis: a spectrum, not a frame",
    "rad": "an angular axis: a diffraction pattern, not a frame",
    "mrad": "an angular axis: a diffraction pattern, not a frame",
}


@dataclass
class Raw:
    """The content of a file, in our units, before it is checked.

    Attributes:
        array: (y, x) or (n, y, x), any dtype.
        pixel_size_pm: edge of a pixel; None if the file has none.
        values: dotted path of a quantity of a Condition -> number in the unit of that quantity.
        modality: kind of imaging, as in the file.
        material: name of the sample, as in the file.
        notes: what the reader chose, converted or left out.
        implied: pixel sizes that other parts of the file imply, in pm, by the name of the part.
    """

    array: Array
    pixel_size_pm: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    modality: str = "unknown"
    material: str = ""
    notes: list[str] = field(default_factory=list)
    implied: dict[str, float] = field(default_factory=dict)


def length_pm(scale: object, unit: str) -> float | None:
    """Return a length in pm; None if the file does not give number or unit.

    Raises:
        ValueError: the unit is of reciprocal space, of angle or of energy: this is not an image.
    """
    name = re.sub(r"[\[\]_\s\x00]", "", unit).lower()
    name = name.replace("\\u00b5", "u").replace("µ", "u").replace("μ", "u").replace("å", "a")
    if name.startswith("1/") or name.endswith(("-1", "⁻¹")):
        raise ValueError(f"its pixels are in {unit}: a diffraction pattern or a Fourier transform")
    if name in _NOT_LENGTH:
        raise ValueError(f"its pixels are in {unit}: {_NOT_LENGTH[name]}")
    number = as_number(scale)
    return number * _PM[name] if number and number > 0 and name in _PM else None


def square_pm(y_pm: float | None, x_pm: float | None, notes: list[str]) -> float | None:
    """Return the edge of a pixel, or None with a note if the two edges differ."""
    if y_pm is None or x_pm is None:
        return y_pm if x_pm is None else x_pm
    if abs(y_pm - x_pm) > 0.01 * max(y_pm, x_pm):
        notes.append(
            f"pixels are not square ({y_pm:.4g} x {x_pm:.4g} pm): resample it, or give one size"
        )
        return None
    return (y_pm + x_pm) / 2


def as_number(value: object) -> float | None:
    """Return a value of a file as a finite number; None if it is not a number."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_values(found: Mapping[str, tuple[object, float]]) -> dict[str, float]:
    """Return the numbers times their factors; instruments write zero for "not set"."""
    numbers = {
        field: (as_number(value) or 0.0) * factor for field, (value, factor) in found.items()
    }
    return {field: number for field, number in numbers.items() if number}


def check_declared(
    shape: tuple[int, ...], itemsize: int, stored_bytes: int, ratio: int = 1
) -> None:
    """Refuse an array that its file cannot hold, before memory is allocated.

    Args:
        shape: shape in the header.
        itemsize: bytes of one pixel.
        stored_bytes: bytes of the array in the file.
        ratio: greatest possible ratio of compression.
    """
    if not shape or min(shape) < 1:
        raise ValueError(f"it declares an empty image of shape {tuple(shape)}")
    if math.prod(shape) * itemsize > stored_bytes * ratio:
        raise ValueError(
            f"it declares {' x '.join(map(str, shape))} pixels, "
            f"which {stored_bytes} bytes cannot hold: cut short or damaged"
        )
    most = settings().max_frame_px
    if math.prod(shape[-2:]) > most or math.prod(shape) > STACK_FRAMES * most:
        raise TooLarge(
            f"{' x '.join(map(str, shape))} pixels",
            f"at most {most} px in a frame and {STACK_FRAMES} times that in a stack (max_frame_px)",
            "crop the frame, split the stack, or raise MANYBEAM_MAX_FRAME_PX",
        )


def grey(array: Array, notes: list[str]) -> Array:
    """Return (..., channel) colours as grey, with a note if there are real colours."""
    if array.shape[-1] in (2, 4):  # the last channel is opacity
        array = array[..., :-1]
    if (array == array[..., :1]).all():
        return array[..., 0]
    notes.append(
        "colours were converted to grey by luminance: use the file of the instrument if you can"
    )
    weights = np.array([0.299, 0.587, 0.114])
    return np.asarray(array @ weights, np.float32)


def detector_named(name: str) -> str:
    """Return the detector in the name of a channel; empty if there is none."""
    match = re.search(r"HAADF|MAADF|LAADF|ADF|ABF|DF\d?|BF", name, re.IGNORECASE)
    return match[0].lower() if match else ""


def read_npy(path: Path) -> Raw:
    """Read a .npy file; a pickle or a .npz is refused, never opened."""
    mapped = np.lib.format.open_memmap(path, mode="r")
    check_declared(mapped.shape, mapped.itemsize, path.stat().st_size)
    return Raw(np.array(mapped))


def read_png(path: Path) -> Raw:
    """Read a PNG or JPEG; neither has a pixel size of the sample."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            check_declared((image.height, image.width), 1, path.stat().st_size, 10 * RATIO)
            raw = Raw(np.empty(0))
            if image.format == "JPEG":
                raw.notes.append("JPEG loses detail: counts and positions are approximate")
            is_coded = image.mode in ("P", "PA", "CMYK", "YCbCr")
            raw.array = np.array(image.convert("RGB") if is_coded else image)
    if raw.array.ndim == 3:
        raw.array = grey(raw.array, raw.notes)
    return raw


def read_tif(path: Path) -> Raw:
    """Read the largest image of a TIFF, with the calibration that ImageJ, Gatan or OME wrote."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        series = max(tif.series, key=_frame_px)
        first = series.keyframe
        packed = first.compression != tifffile.COMPRESSION.NONE
        stored = path.stat().st_size
        check_declared(_frame_axes(series.shape, series.axes), series.dtype.itemsize, stored,
                    RATIO if packed else 1)  # fmt: skip
        segments = zip(first.dataoffsets, first.databytecounts, strict=False)
        if any(offset + count > stored for offset, count in segments):
            raise ValueError("its pixels lie beyond the end of the file: the file is cut short")
        raw = Raw(series.asarray(), notes=_tif_notes(tif, series))
        if "S" in series.axes:
            raw.array = grey(np.moveaxis(raw.array, series.axes.index("S"), -1), raw.notes)
        raw.array = raw.array.reshape([side for side in raw.array.shape[:-2] if side > 1]
                                      + list(raw.array.shape[-2:]))  # fmt: skip
        _tif_pixel_pm(raw, tif, first)
        _tif_fei(raw, tif.fei_metadata or {})
    return raw


def _frame_px(series: Any) -> int:
    return math.prod(_frame_axes(series.shape, series.axes)[-2:])


def _frame_axes(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Return the shape with rows and columns last, and colours before them."""
    if "S" not in axes:
        return tuple(shape)
    channel = axes.index("S")
    return (shape[channel], *shape[:channel], *shape[channel + 1 :])


def _tif_notes(tif: Any, series: Any) -> list[str]:
    """Return notes on what was chosen in a TIFF, or may mean something else."""
    notes = []
    if len(tif.series) > 1:
        shape = " x ".join(map(str, series.shape))
        notes.append(f"{len(tif.series)} images; the largest was taken, {shape}")
    if "C" in series.axes and series.shape[series.axes.index("C")] > 1:
        count = series.shape[series.axes.index("C")]
        notes.append(f"{count} channels, each taken as a frame: export the channel of one detector")
    if series.keyframe.photometric == 0:
        notes.append("it declares 0 to be white: if atoms are dark, invert it")
    return notes


def _tif_pixel_pm(raw: Raw, tif: Any, page: Any) -> None:
    """Take the pixel size of the first of four conventions, and note the others."""
    tags = {tag.code: tag.value for tag in page.tags}
    stated: dict[str, float | None] = {}
    if 65009 in tags:  # Gatan's private tags, which HyperSpy writes too
        edges = [length_pm(tags.get(65009 + axis), str(tags.get(65003 + axis))) for axis in (1, 0)]
        stated["Gatan's tags"] = square_pm(edges[0], edges[1], raw.notes)
    if tif.ome_metadata:
        stated["OME"] = _ome_pixel_pm(tif.ome_metadata, raw.notes)
    per_unit = [_per_unit(tags.get(code)) for code in (283, 282)]  # YResolution, XResolution
    unit = str((tif.imagej_metadata or {}).get("unit", ""))
    name = "ImageJ" if unit else "the resolution tags"
    unit = unit or {2: "inch", 3: "cm"}.get(int(tags.get(296, 2)), "")
    edges = [length_pm(1 / n, unit) if n else None for n in per_unit]
    if name == "the resolution tags" and edges[0] and edges[0] > 1e6:  # above 1 um: of a printer
        if not any(stated.values()):
            raw.notes.append(
                "its resolution tag is for a printer and was not taken as a pixel size"
            )
    else:
        stated[name] = square_pm(edges[0], edges[1], raw.notes)
    known = {who: size for who, size in stated.items() if size}
    raw.pixel_size_pm = next(iter(known.values()), None)
    raw.implied |= dict(list(known.items())[1:])


def _tif_fei(raw: Raw, tree: Mapping[str, Any]) -> None:
    """Map the tag of FEI microscopes."""
    beam, scan = (tree.get(key) or {} for key in ("Beam", "Scan"))
    found = {
        "optics.beam_kv": (beam.get("HV"), 1e-3),
        "scan.dwell_us": (scan.get("Dwelltime"), 1e6),
    }
    raw.values |= as_values(found)
    size = length_pm(scan.get("PixelWidth"), "m")
    if raw.pixel_size_pm is None:
        raw.pixel_size_pm = size
    elif size:
        raw.implied["FEI's tag"] = size


def _ome_pixel_pm(xml: str, notes: list[str]) -> float | None:
    edges = []
    for axis in "YX":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', xml)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
        edges.append(length_pm(size[1], unit[1] if unit else "um") if size else None)
    return square_pm(edges[0], edges[1], notes)


def _per_unit(value: Any) -> float:
    """Return pixels per unit from a fraction of TIFF; 0 if there is none."""
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else 0.0


_MRC_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}


def read_mrc(path: Path) -> Raw:
    """Read an MRC file, and the extended header of Thermo Fisher if there is one."""
    import mrcfile.mrcfile

    with path.open("rb") as file:
        start = file.read(1024)
    big = start[212:213] == b"\x11"  # the machine stamp
    columns, rows, sections, mode = struct.unpack_from(">4i" if big else "<4i", start)
    extended = struct.unpack_from(">i" if big else "<i", start, 92)[0]
    if mode not in _MRC_BYTES or extended < 0:
        raise ValueError(f"mode {mode} in its header is not one of {sorted(_MRC_BYTES)}")
    stored = path.stat().st_size - 1024 - extended
    check_declared((sections, rows, columns), _MRC_BYTES[mode], max(stored, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # permissive mode warns often; the checks are ours
        with mrcfile.mrcfile.MrcFile(path, permissive=True) as mrc:
            raw = Raw(np.array(mrc.data))
            edges = [length_pm(mrc.voxel_size[axis], "A") for axis in "yx"]
            is_fei = bytes(mrc.header.exttyp) in (b"FEI1", b"FEI2")
            fields = mrc.indexed_extended_header if is_fei else None
    raw.pixel_size_pm = square_pm(edges[0], edges[1], raw.notes)
    if fields is not None and fields.dtype.names and len(fields):
        _read_fei(raw, {name: fields[name][0] for name in fields.dtype.names})
    return raw


def _implied_by_fei(raw: Raw, number: Mapping[str, float]) -> None:
    """Add the pixel sizes that the extended header implies."""
    size = length_pm(number.get("Pixel size X"), "m")
    if raw.pixel_size_pm is None:
        raw.pixel_size_pm = size
    elif size:
        raw.implied["the extended header"] = size
    width = number.get("Scan size right", 0.0) - number.get("Scan size left", 0.0)
    is_whole = not number.get("Scan size left") and not number.get("Scan size top")
    field = number.get("Full scan FOV X", 0.0)
    if is_whole and width > 0 and (size := length_pm(field / width, "m")):
        raw.implied["the field of view"] = size


def _read_fei(raw: Raw, fields: Mapping[str, Any]) -> None:
    """Map one record of the FEI1/FEI2 extended header; zero there means not set."""
    number = {key: as_number(value) or 0.0 for key, value in fields.items()}
    is_scanning = number.get("Instrument mode") == 2
    detector = bytes(fields.get("STEM Detector name" if is_scanning else "Camera name", b""))
    raw.modality = detector.decode("ascii", "replace").strip("\0 ") if is_scanning else "tem"
    _implied_by_fei(raw, number)
    found = {
        "optics.beam_kv": (number.get("HT"), 1e-3),
        "optics.convergence_mrad": (number.get("Convergence angle"), 1e3),
        # Overfocus is positive in files of Thermo Fisher, negative here.
        "optics.defocus_nm": (number.get("STEM Defocus" if is_scanning else "Defocus"), -1e9),
        "scan.dwell_us": (number.get("Dwell time") if is_scanning else None, 1e6),
    }
    raw.values = as_values(found)
    width, height = (
        number.get(f"Scan size {high}", 0) - number.get(f"Scan size {low}", 0)
        for low, high in (("left", "right"), ("top", "bottom"))
    )
    scanned_s = raw.values.get("scan.dwell_us", 0.0) * 1e-6 * width * height
    if scanned_s > number.get("Frame time", 0.0) > 0:
        raw.notes.append(
            f"its dwell time of {raw.values.pop('scan.dwell_us'):g} us is longer than the frame "
            "time allows: left unknown"
        )

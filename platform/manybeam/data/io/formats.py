"""Open formats: NumPy, PNG and JPEG, MRC, each read into one `Raw`, and what all readers share.

Each reader compares the header with the size of the file before it allocates memory. A fault is a
`FileFault`; `data.io.reading` adds the name of the file and what to do.

Axis letters: n frame, y row, x column.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.limits import JPEG_RATIO, RATIO, FileFault, check_declared
from manybeam.data.io.units import as_number, factor, plain_unit
from manybeam.errors import TooLarge

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]
_Image = TypeVar("_Image")

_SPECTRUM, _PATTERN = "a spectrum or a spectrum image", "a diffraction pattern"
_NOT_LENGTH = {
    **dict.fromkeys(("ev", "kev", "mev", "energy", "wavelength"), _SPECTRUM),
    **dict.fromkeys(("hz", "khz", "mhz", "ghz", "thz"), _SPECTRUM),
    **dict.fromkeys(("rad", "mrad", "urad", "deg"), _PATTERN),
    **dict.fromkeys(("s", "sec", "ms", "us", "ns", "ps", "fs", "min"), "a scan over time"),
    **dict.fromkeys(("v", "kv", "mv"), "a scan over voltage"),
    **dict.fromkeys(("k", "°c"), "a scan over temperature"),
}
_RECIPROCAL = re.compile(r"(1|cycles?|cyc)?/.*|.*(\^?-1|⁻¹)|(inverse|reciprocal|inv).*")
# A glossary and a loss of defocus are no spectra.
_OF_SPECTRA = re.compile(
    r"energ(y|ies)\b|energyloss|wavelength|\braman\b|\beloss\b|^(e )?loss$|electron loss"
)
# What programs write beside a number that is no size.
_NO_UNIT = {"", "px", "pix", "pixel", "pixels", "none", "null", "undefined", "<undefined>",
            "referenceframe", "unknown", "1", "a.u."}  # fmt: skip
UNSET = 1e-6  # a scale this near 1 was not measured
ONE_IS_UNKNOWN = (
    "which programs write when they do not know it: left unknown; if it is right, give it"
)
_WIDEST_PM = (
    1e12  # 1 m; some programs write the scale of a diffraction pattern, in 1/m, without unit
)
_LIGHT_NM = (150.0, 3000.0)
_SPAN_NM = 20.0  # the least of a spectrum of light
SQUARE = 0.01  # largest relative difference of the two edges of a square pixel


ORIENTATION = 274  # tag of TIFF and EXIF
MOST_SCANS = 500  # of a JPEG; about 10 are usual


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
        FileFault: the unit is of reciprocal space, angle, energy or time: this is no frame.
    """
    check_axis(unit)
    number, size_pm = as_number(scale), factor(unit, "pm")
    return number * size_pm if number and number > 0 and size_pm else None


def check_axis(unit: str, name: str = "", *, is_of_stack: bool = False) -> None:
    """Refuse an axis that is not along the sample.

    Args:
        unit: unit of the axis.
        name: its name; one of energy or wavelength is refused whatever its unit, because a
            wavelength is a length.
        is_of_stack: the axis counts frames, so it may be of time or of tilt.

    Raises:
        FileFault: the array is a spectrum image, a diffraction pattern or the like.
    """
    meaning = _NOT_LENGTH.get(plain_unit(unit), "")
    if is_of_stack and meaning != _SPECTRUM:
        meaning = ""
    if is_reciprocal(unit):
        meaning = _PATTERN + " or a Fourier transform"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    if _OF_SPECTRA.search(re.sub(r"[\W\d_]+", " ", words).strip().lower()):
        meaning, unit = _SPECTRUM, f"{name} ({unit})" if unit else name
    if meaning:
        what = "frames follow each other" if is_of_stack else "pixels are"
        raise FileFault(f"its {what} in {unit}: {meaning}, not a frame")


def is_reciprocal(unit: str) -> bool:
    """Return whether a unit is of reciprocal space."""
    return _RECIPROCAL.fullmatch(plain_unit(unit)) is not None


def check_wavelengths(axes: Sequence[tuple[float | None, str, float, int]]) -> None:
    """Refuse an axis of light, from the ultraviolet to the infrared, in units of length.

    Rows and columns of one step, within 1 %, are those of a frame, wherever on the sample it
    starts; so is an axis over less than 20 nm.

    Args:
        axes: (step, unit, start, length) of each; rows and columns last.

    Raises:
        FileFault: both ends of an axis are wavelengths of light.
    """
    units_nm = [(factor(unit, "pm") or 0.0) / 1e3 for _, unit, *_ in axes]
    steps = [abs(axis[0] or 0.0) * nm for axis, nm in zip(axes, units_nm, strict=True)][-2:]
    widest = max(steps, default=0.0)
    is_frame = widest - min(steps, default=0.0) <= SQUARE * widest
    doubtful = axes[:-2] if is_frame else axes
    for (step, _, start, length), nm in zip(doubtful, units_nm, strict=False):
        low, high = sorted(place * nm for place in (start, start + (step or 0.0) * (length - 1)))
        if _LIGHT_NM[0] <= low and high <= _LIGHT_NM[1] and high - low >= _SPAN_NM:
            span = f"{low:.4g} to {high:.4g} nm"
            raise FileFault(f"one of its axes goes from {span}, as wavelengths do: {_SPECTRUM}")


def pixel_pm(
    y_axis: tuple[object, str], x_axis: tuple[object, str], notes: list[str]
) -> float | None:
    """Return the edge of a pixel in pm, of (scale, unit) along y and x; None if it is unknown.

    It is unknown, with a note, if the two edges differ, if the unit is not known, and if both are
    exactly 1 of their unit: this is what programs write that know nothing. A scale below zero is
    none, as in MRC; where it is that of a mirrored axis, give its size.

    Raises:
        FileFault: the axes are not along the sample.
    """
    edges = [length_pm(*axis) for axis in (y_axis, x_axis)]
    known = [edge for edge in edges if edge]
    if known and max(known) > _WIDEST_PM:
        raise FileFault(f"its pixels are {max(known) / 1e12:.3g} m wide: {_PATTERN}, not a frame")
    if known and is_one(y_axis[0]) and is_one(x_axis[0]):
        notes.append(f"its pixel size is exactly 1 {x_axis[1]}, {ONE_IS_UNKNOWN}")
        return None
    units = [unit for _, unit in (y_axis, x_axis) if plain_unit(unit) not in _NO_UNIT]
    strange = [unit for unit in units if factor(unit, "pm") is None]
    if strange and not known and any(as_number(scale) for scale, _ in (y_axis, x_axis)):
        notes.append(f"its pixel size is in {strange[0]!r}, which is not understood: left unknown")
    return square_pm(edges[0], edges[1], notes)


def is_one(scale: object) -> bool:
    """Return whether a scale is 1, as it is where nobody measured it."""
    number = as_number(scale)
    return number is not None and abs(number - 1) < UNSET


def frames_among(images: Sequence[_Image], check: Callable[[_Image], object]) -> list[_Image]:
    """Return the images that pass a check: a file may have spectra and patterns beside a frame.

    Raises:
        FileFault: there is none; it is that of the first.
    """
    found, faults = [], []
    for image in images:
        try:
            check(image)
            found.append(image)
        except FileFault as fault:
            faults.append(fault)
    if not found:
        raise faults[0]
    return found


def square_pm(y_pm: float | None, x_pm: float | None, notes: list[str]) -> float | None:
    """Return the edge of a pixel, or None with a note if the two edges differ."""
    if y_pm is None or x_pm is None:
        return y_pm if x_pm is None else x_pm
    if abs(y_pm - x_pm) > SQUARE * max(y_pm, x_pm):
        notes.append(
            f"pixels are not square ({y_pm:.4g} x {x_pm:.4g} pm): resample it, or give one size"
        )
        return None
    return (y_pm + x_pm) / 2


def as_values(found: Mapping[str, tuple[object, float]]) -> dict[str, float]:
    """Return the numbers times their factors; instruments write zero for "not set"."""
    numbers = {
        field: (as_number(value) or 0.0) * factor for field, (value, factor) in found.items()
    }
    return {field: number for field, number in numbers.items() if number}


def grey(array: Array, notes: list[str]) -> Array:
    """Return (..., channel) colours as grey, with a note if there are real colours."""
    if array.shape[-1] in (2, 4):  # the last channel is opacity
        array = array[..., :-1]
    if (array == array[..., :1]).all():
        return array[..., 0]
    notes.append(
        "colours were converted to grey by luminance: use the file of the instrument if you can"
    )
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(array @ weights, np.float32)


def note_orientation(notes: list[str], orientation: object) -> None:
    """Note that other programs may show a frame in another way than its rows are stored."""
    number = as_number(orientation) or 1.0
    if number != 1:
        notes.append(
            f"orientation {number:.0f}: some programs show it turned or mirrored; rows and columns "
            "are as stored"
        )


def detector_named(name: str) -> str:
    """Return the detector in the name of a channel; empty if there is none."""
    match = re.search(r"HAADF|MAADF|LAADF|ADF|ABF|DF\d?|BF", name, re.IGNORECASE)
    return match[0].lower() if match else ""


def read_npy(path: Path) -> Raw:
    """Read a .npy file; a pickle or a .npz is refused, never opened."""
    with path.open("rb") as file:
        head = file.read(256)
    if re.search(rb"'descr':\s*'\|O", head):
        raise FileFault("it has Python objects, which are never loaded: save numbers")
    is_long = len(head) > 12 and head[6] > 1  # version 2 and later: a header of up to 4 GB
    if is_long and struct.unpack_from("<I", head, 8)[0] > path.stat().st_size:
        raise FileFault("its header runs past its end: cut short or damaged")
    mapped = np.lib.format.open_memmap(path, mode="r")
    check_declared(mapped.shape, mapped.itemsize, path.stat().st_size)
    return Raw(np.array(mapped))


def read_png(path: Path) -> Raw:
    """Read a PNG or JPEG; neither has a pixel size of the sample."""
    from PIL import Image

    raw = Raw(np.empty(0))
    _check_chunks(path)
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise TooLarge(
            f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels are declared",
            "no image is opened that could fill the memory",
            "crop it, or give the file of the instrument",
        ) from error
    with image:
        bits, colour = _png_form(path) if image.format == "PNG" else (8, 0)
        itemsize = min(bits, 8) / 8
        ratio = RATIO if image.format == "PNG" else JPEG_RATIO  # libjpeg fills gaps with grey
        check_declared((image.height, image.width), itemsize, path.stat().st_size, ratio)
        if image.format != "PNG":
            _check_scans(path)
            raw.notes.append("JPEG loses detail: counts and positions are approximate")
        _note_exif(raw.notes, image)
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raw.notes.append(f"{frames} frames; the first was taken")
        is_coded = image.mode in ("P", "PA", "CMYK", "YCbCr")
        if bits == 16 and colour in _PNG_COLOURS:
            from imagecodecs import png_decode  # because Pillow cuts these to 8 bits

            raw.array = np.asarray(png_decode(path.read_bytes()))
        else:
            raw.array = np.array(image.convert("RGB") if is_coded else image)
    if raw.array.ndim == 3:
        raw.array = grey(raw.array, raw.notes)
    return raw


def _check_chunks(path: Path) -> None:
    """Refuse a PNG with a part that is longer than the file: Pillow takes memory for the whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if file.tell() + length > size:
                raise FileFault("one of its parts runs past its end: cut short or damaged")
            if kind == b"IEND":
                return
            file.seek(length + 4, 1)


def _check_scans(path: Path) -> None:
    """Refuse a JPEG of very many passes: each costs the time of a whole one."""
    if path.read_bytes().count(b"\xff\xda") > MOST_SCANS:
        raise FileFault(f"it has more than {MOST_SCANS} passes over the image: damaged")


def _png_form(path: Path) -> tuple[int, int]:
    """Return the bits of a number in a PNG, and its type of colour."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24], head[25]


def _note_exif(notes: list[str], image: "Image.Image") -> None:
    """Note the orientation in the EXIF of a PNG or JPEG; a damaged one costs no frame."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - Pillow raises all kinds for damaged EXIF
        notes.append("its EXIF is damaged and was ignored: rows and columns are as stored")
    else:
        note_orientation(notes, orientation)


_IMOD_STAMP = 1146047817  # "IMOD"
_INT16_MAX = 32767
_PNG_COLOURS = (2, 4, 6)  # RGB, grey with opacity, RGB with opacity
_MRC_COMPLEX = (3, 4)
_MRC_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}


def read_mrc(path: Path) -> Raw:
    """Read an MRC file, and the extended header of Thermo Fisher if there is one."""
    import mrcfile.mrcfile

    with path.open("rb") as file:
        start = file.read(1024)
    big = start[212:213] == b"\x11"  # the machine stamp
    columns, rows, sections, mode = struct.unpack_from(">4i" if big else "<4i", start)
    extended = struct.unpack_from(">i" if big else "<i", start, 92)[0]
    if mode in _MRC_COMPLEX and extended >= 0:
        raise FileFault("it has complex numbers: a Fourier transform, not a frame")
    if mode not in _MRC_BYTES or extended < 0:
        raise FileFault(f"mode {mode} in its header is not one of {sorted(_MRC_BYTES)}")
    stored = path.stat().st_size - 1024 - extended
    check_declared((sections, rows, columns), _MRC_BYTES[mode], max(stored, 0))
    # Permissive, because the checks are ours.
    with mrcfile.mrcfile.MrcFile(path, permissive=True) as mrc:
        raw = Raw(np.array(mrc.data))
        if mode == 0 and _is_unsigned(mrc.header, start, raw):
            raw.array = raw.array.view(np.uint8)
        if mode == 1 and float(mrc.header.dmin) >= 0 and float(mrc.header.dmax) > _INT16_MAX:
            _unwrap(raw, float(mrc.header.dmax))
        axes = _mrc_axes(raw, mrc)
        is_fei = bytes(mrc.header.exttyp) in (b"FEI1", b"FEI2")
        fields = mrc.indexed_extended_header if is_fei else None
    doubts: list[str] = []
    raw.pixel_size_pm = pixel_pm(axes[0], axes[1], doubts)
    if fields is not None and fields.dtype.names and len(fields):
        _read_fei(raw, {name: fields[name][0] for name in fields.dtype.names})
    if raw.pixel_size_pm is None:
        raw.notes += doubts
    return raw


def _mrc_axes(raw: Raw, mrc: Any) -> list[tuple[object, str]]:
    """Return (scale, unit) along y and x; of a map whose columns run along y, exchange both.

    MAPC, MAPR and MAPS say which axis of the sample columns, rows and sections run along. Maps of
    crystals use that; sections across x or y stay as they are stored.
    """
    places = [int(mrc.header[name]) for name in ("mapc", "mapr", "maps")]
    if sorted(places) != [1, 2, 3]:
        places = [1, 2, 3]
    x, y = ("xyz"[place - 1] for place in places[:2])
    if places == [2, 1, 3]:
        raw.array, x, y = raw.array.swapaxes(-1, -2), "x", "y"
        raw.notes.append("its columns run along y: rows and columns were exchanged")
    return [(mrc.voxel_size[axis], "A") for axis in (y, x)]


def _unwrap(raw: Raw, greatest: float) -> None:
    """Take integers of 16 bits as unsigned where this agrees with the greatest in the header."""
    unsigned = raw.array.view(raw.array.dtype.str.replace("i", "u"))
    if not (raw.array < 0).any():
        return
    if abs(float(unsigned.max()) - greatest) <= 0.01 * greatest:
        raw.array = unsigned
        raw.notes.append(f"its integers are from 0 to {greatest:.0f}, as its header says")
    else:
        raw.notes.append(
            f"its header says that its integers go up to {greatest:.0f}, but they do not: they "
            "were taken as signed"
        )


def _is_unsigned(header: Any, start: bytes, raw: Raw) -> bool:
    """Return whether bytes are from 0 to 255, as IMOD and old programs write them.

    The standard says -128 to 127. The stamp of IMOD decides, else the greatest value in the header.
    """
    stamp, flags = struct.unpack_from("<2i" if start[212:213] != b"\x11" else ">2i", start, 152)
    if stamp == _IMOD_STAMP:
        return not flags & 1
    if float(header.dmin) < 0 or float(header.dmax) > 127:
        return float(header.dmin) >= 0
    if float(header.dmax) <= float(header.dmin) and (raw.array < 0).any():
        raw.notes.append(
            "its bytes were taken as -128 to 127, as the standard says: if the brightest pixels "
            "are dark, they are 0 to 255"
        )
    return False


def _implied_by_fei(raw: Raw, number: Mapping[str, float]) -> None:
    """Add the pixel sizes that the extended header implies."""
    size = pixel_pm((number.get("Pixel size Y"), "m"), (number.get("Pixel size X"), "m"), raw.notes)
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
    if number.get("Instrument mode") == 1 and number.get("Projection mode") == 1:
        raise FileFault(f"the microscope was in diffraction mode: {_PATTERN}, not a frame")
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

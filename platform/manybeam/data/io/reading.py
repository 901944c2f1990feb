"""Frames from files of instruments, and the checks of an array that is to be a frame.

`read_frames` reads frames, pixel size in pm and a measured Condition from a file. Every frame, from
a file or through the service, passes `check_frame`.

Axis letters: n frame, y row, x column.
"""

import csv
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manybeam.data.io import emd, formats, tiff, vendors
from manybeam.data.io.formats import Raw
from manybeam.data.io.limits import cause_of, deadline, patience_s
from manybeam.data.io.measured import settle_condition, settle_pixel_size
from manybeam.data.io.semtext import add_text_beside
from manybeam.data.io.sidecar import add_sidecar
from manybeam.data.io.units import as_number
from manybeam.errors import (
    InvalidFrame,
    ManybeamError,
    NotFound,
    TooLarge,
    UnreadableFile,
    UnsupportedMedia,
)
from manybeam.settings import settings
from manybeam.spec.elements import atomic_number_of
from manybeam.spec.imaging import Condition

Pixels = NDArray[np.float32]

READERS: dict[str, tuple[str, Callable[[Path], Raw]]] = {
    ".tif": ("TIFF", tiff.read_tif),
    ".tiff": ("TIFF", tiff.read_tif),
    ".npy": ("NumPy array", formats.read_npy),
    ".png": ("PNG", formats.read_png),
    ".jpg": ("JPEG", formats.read_png),
    ".jpeg": ("JPEG", formats.read_png),
    ".mrc": ("MRC", formats.read_mrc),
    ".dm3": ("DigitalMicrograph 3", vendors.read_dm),
    ".dm4": ("DigitalMicrograph 4", vendors.read_dm),
    ".emd": ("EMD (Velox, Berkeley or Prismatic)", emd.read_emd),
    ".ser": ("TIA series", vendors.read_ser),
    ".emi": ("TIA experiment", vendors.read_emi),
}

TABLE_HINT = "give CSV with columns X and Y in pixels, and element (Mo) or Z (42) if it is known"
KIND_COLUMNS = ("element", "class", "z")  # of a table of atoms; the first that is there counts
LEAST_STEP = 1e-3  # share of the contrast of a frame that float32 must resolve
# First bytes -> suffix, to recognise a file with a wrong name.
_MAGIC = {
    b"\x93NUMPY": ".npy",
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
    b"\x89HDF": ".emd",
    b"\x00\x00\x00\x03": ".dm3",
    b"\x00\x00\x00\x04": ".dm4",
    b"II\x97\x01": ".ser",
}

LEAST_SIDE = 5  # px; frames narrower than this are channels of one frame
MOST_CHANNELS = 16  # frames up to so narrow are too where they are also
NARROW = 1 / 4  # narrower than this share of both other axes


@dataclass(frozen=True)
class FrameFile:
    """The content of one file.

    Attributes:
        frame: float32 (y, x), or a stack (n, y, x).
        pixel_size_pm: edge of a pixel; None if neither file nor caller gives it.
        condition: settings that the instrument recorded; others are unknown (None).
        source: the file.
        notes: sentences on what was chosen, converted or filled, and on contradictions.
    """

    frame: Pixels
    pixel_size_pm: float | None
    condition: Condition
    source: Path
    notes: tuple[str, ...] = ()


def read_frames(
    path: Path | str, *, pixel_size_pm: float | None = None, condition: Condition | None = None
) -> FrameFile:
    """Return the frame, or the stack, of a file.

    Of several images the recorded one is taken, never a thumbnail, a spectrum or a pattern; the
    notes say which. The pixel size is that of the caller, else of the file, else of the condition.
    Contradictions are noted with both numbers; numbers are never averaged. If no dose is given, it
    is derived from current, dwell time and pixel size. What is read from each format:

    | format | read |
    |---|---|
    | dm3, dm4 | pixel size (any unit), field of view, kV, pA, Cs, convergence, dwell, detector |
    | Velox emd | the same but Cs, defocus, detector angles, counts per electron, sample |
    | Berkeley emd | pixel size; kV, mrad, pA, nm, us of group `microscope`; material |
    | Prismatic emd | the image of the annular detector at the greatest depth; pixel size |
    | mrc | voxel; FEI header: pixel size, field of view, kV, mrad, defocus, dwell, detector |
    | ser, emi | pixel size; kV, mrad, defocus, dwell, mode by the unit beside each label |
    | tif | pixel size by Gatan, OME, FEI, JEOL, Zeiss, SIS, TVIPS, Tescan, ImageJ, resolution |
    | | FEI: kV, pA, dwell; Zeiss: kV, pA; JEOL, Tescan: kV |
    | npy, png, jpg, and any other | FRAME.json beside it: names and units of `data.io.sidecar` |
    | | FRAME.txt of JEOL or Hitachi, FRAME.hdr of Tescan: pixel size, kV |

    Args:
        path: tif, npy, png, jpg, mrc, dm3, dm4, emd, ser or emi; the suffix decides.
        pixel_size_pm: edge of a pixel; it replaces that of the file.
        condition: known settings of the instrument; unknown ones are taken from the file.

    Raises:
        NotFound: there is no such file.
        UnsupportedMedia: the suffix is not supported.
        UnreadableFile: the file is of another format, is cut short, has no image but a spectrum or
            a diffraction pattern, or reading it does not end.
        InvalidFrame: the image is constant, or all its pixels are NaN.
        TooLarge: it has more pixels than `max_frame_px`.
    """
    path = Path(path)
    return settled(read_raw(path), path, pixel_size_pm, condition)


def read_raw(path: Path) -> Raw:
    """Return the content of a file; its array is a checked frame or stack. Raises as above."""
    raw = _read(path)
    raw.array = _check_images(raw, path)
    return raw


def settled(
    raw: Raw, path: Path, pixel_size_pm: float | None, condition: Condition | None
) -> FrameFile:
    """Return a file's content, as `read_raw` returns it, with what the caller knows.

    Raises:
        InvalidInput: the pixel size is out of bounds.
    """
    notes = list(raw.notes)
    pixel = settle_pixel_size(raw, pixel_size_pm, condition, notes)
    measured = settle_condition(raw, path, raw.array.shape, pixel, condition, notes)
    return FrameFile(raw.array, pixel, measured, path, tuple(notes))


def check_frame(array: ArrayLike) -> Pixels:
    """Return the array as a frame: float32, C-contiguous, finite; the same object if it is one.

    Raises:
        InvalidFrame: it has not two axes, is empty, complex or constant, or has no finite pixel.
        TooLarge: it has more pixels than `max_frame_px`.
    """
    return inspect_frame(array)[0]


def inspect_frame(array: ArrayLike) -> tuple[Pixels, tuple[str, ...]]:
    """Return the frame as `check_frame` does, and notes on its changes."""
    values = _numbers(array)
    _check_shape(values.shape)
    values, notes = _without_offset(values)
    with np.errstate(over="ignore", invalid="ignore"):
        frame = np.ascontiguousarray(values, dtype=np.float32)
    low, high = frame.min(), frame.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        frame, filled = _filled(frame, values)
        notes += filled
        low, high = frame.min(), frame.max()
    if low == high:
        raise InvalidFrame(
            f"every pixel of the {_sides(frame.shape)} frame is {low:g}",
            "a frame needs contrast",
            "check detector, shutter and the channel of the file",
        )
    return frame, notes


def frames_in(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of a file or a request as one frame (y, x) or a stack (n, y, x).

    Axes of length 1 are left out. Channels on the last axis, (y, x, 2) to (y, x, 4), are refused,
    because they look like y frames of 2 to 4 px; so are up to 16 where frames would be strips.
    Only where frames are as low as they are wide, (n, 4, 4), nothing but a stack can be meant.

    Raises:
        InvalidFrame: the array has channels, or is a spectrum, or a scan of patterns.

    Example:
        >>> frames_in(np.zeros((1, 96, 120, 1))).shape
        (96, 120)
    """
    shape = array.shape
    while array.ndim > 2 and 1 in array.shape:
        last = array.ndim - 1
        array = array.squeeze(last if array.shape[last] == 1 else array.shape.index(1))
    if array.ndim == 3 and _has_channels_last(*array.shape):
        raise InvalidFrame(
            f"shape {shape} looks like one frame with {array.shape[2]} channels last",
            "a frame is (y, x) and a stack (n, y, x)",
            "give the channel of one detector: array[..., 0]",
        )
    if array.ndim not in (2, 3):
        kind = "a spectrum or a profile" if array.ndim < 2 else "a scan of patterns or spectra"
        raise InvalidFrame(
            f"{kind}: an array of {len(shape)} axes, shape {shape}",
            "a frame has two axes, (y, x), and a stack three, (n, y, x)",
            "give an image or a stack",
        )
    return array


def read_truth_csv(path: Path | str) -> Pixels:
    """Return (k, 3) y, x, class from a table with columns X and Y, in pixels.

    Other columns, such as an index, are ignored. A column named element, class or Z gives the
    element, by its symbol or its atomic number; without it, or in an empty cell, the class is 0,
    unknown. A table without rows is a frame without atoms.

    Raises:
        NotFound: there is no such file.
        UnreadableFile: columns are missing, or a cell is not a number; the message names the line.
    """
    path = _existing(Path(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise _unreadable(path, "a table of atoms", str(error), TABLE_HINT) from error
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.DictReader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
    if not {"x", "y"} <= names.keys():
        why = f"its columns are {header!r}, not X and Y"
        raise _unreadable(path, "a table of atoms", why, TABLE_HINT)
    kind = next((names[one] for one in KIND_COLUMNS if one in names), None)
    rows = [_atom(row, names, kind, path, line) for line, row in enumerate(reader, start=2)]
    return np.array(rows, np.float32).reshape(-1, 3)


def _has_channels_last(first: int, rows: int, columns: int) -> bool:
    """Return whether frames of this shape would be strips."""
    if columns < LEAST_SIDE:
        return rows >= LEAST_SIDE
    return columns <= MOST_CHANNELS and columns < NARROW * min(first, rows)


def _read(path: Path) -> Raw:
    """Return the content that the reader of this suffix finds; every fault becomes one of ours."""
    _existing(path)
    if path.suffix.lower() not in READERS:
        raise UnsupportedMedia(
            f"{path}: files {path.suffix or 'without suffix'} cannot be read",
            f"supported are {', '.join(READERS)}",
            "export the frame as .tif or .npy",
        )
    name, reader = READERS[path.suffix.lower()]
    try:
        with deadline(patience_s(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about files that they read all the same
            raw = reader(path)
            add_sidecar(raw, path)
            add_text_beside(raw, path)
    except TooLarge as error:
        raise TooLarge(f"{path}: {error.what}", error.why, error.hint) from error
    except ManybeamError:
        raise
    except Exception as error:  # libraries raise all kinds for damaged files
        raise _unreadable(path, name, cause_of(error)) from error
    return raw


def _existing(path: Path) -> Path:
    if not path.exists():
        raise NotFound(f"there is no file {path}", "", f"ls {path.parent}")
    if not path.is_file():
        raise _unreadable(path, "a file", "it is a folder", "give the files in it")
    if path.stat().st_size == 0:
        raise _unreadable(path, "a frame", "it is empty", "copy it again from the instrument")
    return path


def _unreadable(path: Path, name: str, why: str, hint: str = "") -> UnreadableFile:
    """Return the error; if the content looks like another format, the hint says so."""
    if not hint:
        with path.open("rb") as file:
            start = file.read(8)
        looks = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")
        hint = "copy it again, or open it in the program that recorded it and export it as .tif"
        mine = READERS.get(path.suffix.lower())
        if looks and READERS[looks] != mine:
            hint = f"its content looks like {looks}: rename it"
    return UnreadableFile(f"{path} cannot be read as {name}", " ".join(why.split())[:300], hint)


def _check_images(raw: Raw, path: Path) -> Pixels:
    """Return the checked frame or stack of a file."""
    try:
        array = frames_in(raw.array)
    except InvalidFrame as error:
        raise _unreadable(path, "a frame", f"{error.what}: {error.why}", error.hint) from error
    if array.ndim == 2:
        return _checked(raw, array, str(path), "")
    frames = np.empty(array.shape, np.float32)
    for index, image in enumerate(array):
        frames[index] = _checked(raw, image, f"{path}, frame {index}", f"frame {index}: ")
    return frames


def _checked(raw: Raw, image: NDArray[Any], where: str, start: str) -> Pixels:
    try:
        frame, notes = inspect_frame(image)
    except InvalidFrame as error:
        raise InvalidFrame(f"{where}: {error.what}", error.why, error.hint) from error
    raw.notes += [start + note for note in notes]
    return frame


def _numbers(array: ArrayLike) -> NDArray[np.generic]:
    """Return an array of real numbers."""
    try:
        values = np.asarray(array)
    except ValueError as error:  # rows of unequal length
        raise InvalidFrame(f"not an array: {error}", "a frame has rows of equal length") from error
    if values.dtype.kind == "c":
        raise InvalidFrame(
            f"a frame of complex numbers ({values.dtype})",
            "a frame has real numbers, as counted by a detector",
            "give its modulus, or the frame before its transform",
        )
    if values.dtype.kind not in "buif":
        raise InvalidFrame(
            f"a frame of {values.dtype}", "a frame has bool, integer or floating-point numbers"
        )
    return values


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        kind = {1: "a profile", 3: "a stack, or colours"}.get(len(shape), "not a frame")
        raise InvalidFrame(
            f"an array of {len(shape)} axes, shape {shape}: {kind}",
            "a frame has two axes, rows and columns",
            "give the frames of a stack one by one" if len(shape) > 2 else "give the whole image",
        )
    if min(shape) == 0:
        raise InvalidFrame(f"an empty frame of shape {shape}", "a frame has at least 2 pixels")
    most = settings().max_frame_px
    if shape[0] * shape[1] > most:
        raise TooLarge(
            f"a frame of {_sides(shape)} px",
            f"at most {most} px (max_frame_px)",
            "crop or bin it, or raise MANYBEAM_MAX_FRAME_PX",
        )


def _without_offset(values: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the pixels without an offset that is too large for float32."""
    if values.dtype.itemsize <= 2 or values.dtype == np.float32:
        return values, ()
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        good = values[np.isfinite(values)]
        if not good.size:
            return values, ()
        low, high = good.min(), good.max()
    largest, spread = max(abs(float(low)), abs(float(high))), float(high) - float(low)
    if not spread or largest * float(np.finfo(np.float32).eps) <= LEAST_STEP * spread:
        return values, ()
    note = f"{float(low):.9g} was subtracted from every pixel: float32 cannot hold their contrast"
    return values - low, (note,)


def _filled(frame: Pixels, values: NDArray[np.generic]) -> tuple[Pixels, tuple[str, ...]]:
    """Return the frame with its bad pixels set to the median of the good ones."""
    good = np.isfinite(frame)
    if not good.any():
        raise InvalidFrame(
            f"no finite pixel in the {_sides(frame.shape)} frame of {values.dtype}",
            "single pixels may be missing, but not all",
            "record or export it again",
        )
    bad_count = int(good.size - good.sum())
    filled = np.where(good, frame, np.median(frame[good]))
    return filled, (f"{bad_count} pixels were NaN or infinite and were set to the median",)


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _atom(
    row: dict[str, str], names: dict[str, str], kind: str | None, path: Path, line: int
) -> tuple[float, float, float]:
    """Return y, x, class of one line."""
    cells = [row.get(names["y"]), row.get(names["x"]), (row.get(kind) if kind else "") or "0"]
    y, x, number = (as_number(cell) for cell in cells)
    if number is None:
        number = atomic_number_of(cells[2] or "")
    if y is None or x is None or number is None:
        why = f"line {line} is {list(row.values())}"
        raise _unreadable(path, "a table of atoms", why, TABLE_HINT)
    return y, x, number

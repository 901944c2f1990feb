"""The formats of requests, answers and errors.

Nothing here needs the web framework or the cluster, so it can be tested without a service. Axis
letters: n frame, y row, x column.
"""

import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.file_readers import check_name
from manybeam.data.io.formats import Raw
from manybeam.data.io.reading import READERS, frames_in, inspect_frame
from manybeam.errors import (
    InvalidFrame,
    InvalidInput,
    ManybeamError,
    TooLarge,
    UnreadableFile,
    UnsupportedMedia,
    problem,
)
from manybeam.serve.query import MAPS

NPY, RAW = "application/x-npy", "application/octet-stream"
FILE_MEDIA = {"image/tiff": ".tif", "image/png": ".png", "image/jpeg": ".jpg"}
# What programs say of a file that they know nothing of; the last is of curl.
_ANY_MEDIA = ("", RAW, "application/x-www-form-urlencoded")
NPZ, JSON, PROBLEM = "application/x-npz", "application/json", "application/problem+json"

ATOM_COLUMNS = ("y", "x", "class", "probability", "spread_y_px", "spread_x_px", "votes")
MEMBER_COLUMNS = ("member", "y", "x", "class", "probability")

BYTES_PER_PX = 8
HEADER_BYTES = 16_384

_DTYPE = re.compile(r"[<>|=]?(bool|[biufc]\d{1,2}|(?:u?int|float|complex)\d{1,3})")
_NPY_MAGIC = b"\x93NUMPY"
# Errors of numpy's header reader for damaged headers, which it parses as Python.
_HEADER_FAULTS = (
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,  # an error only if a process turns warnings into errors
    tokenize.TokenError,
)


# -- the body ---------------------------------------------------------------------------------
def body_limit(max_frame_px: int) -> int:
    """Return the largest size of a body in bytes: pixels of the widest type, and a header."""
    return max_frame_px * BYTES_PER_PX + HEADER_BYTES


def check_length(byte_count: int, limit: int) -> None:
    """Raise TooLarge for a body above the limit; called before it is read."""
    if byte_count > limit:
        raise TooLarge(
            f"the body has {byte_count} bytes or more",
            f"at most {limit}",
            "send fewer frames at once, or crop; MANYBEAM_MAX_FRAME_PX sets the limit",
        )


def read_body(body: bytes | bytearray, headers: Mapping[str, str]) -> NDArray[Any]:
    """Return the array of a body: (y, x) or (n, y, x), in its own dtype.

    Args:
        body: `.npy` bytes, or raw values in C order.
        headers: names in lower case: `content-type`; for raw values `x-dtype` and `x-shape`.

    Raises:
        UnsupportedMedia: neither form, or compressed.
        UnreadableFile: the bytes do not agree with the headers.
        InvalidFrame: the array cannot be a frame.
    """
    check_coding(headers)
    media = _media(headers)
    if not media:
        media = NPY if body.startswith(_NPY_MAGIC) else RAW if "x-dtype" in headers else ""
    if media not in (NPY, RAW):
        raise UnsupportedMedia(
            f"content-type {media[:80]!r} is not read",
            f"allowed: {NPY}, or {RAW} with the headers X-Dtype and X-Shape; instrument files with "
            f"the query filename, or as {', '.join(FILE_MEDIA)}",
            "numpy.save the frame and send that file, or add ?filename=NAME",
        )
    if not body:
        raise UnreadableFile("the body is empty", "one frame or a stack of them", "")
    dtype, shape, values = _npy_parts(body) if media == NPY else _raw_parts(body, headers)
    return _array(dtype, shape, values)


def check_coding(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedMedia if the body is compressed."""
    codings = {one.strip().lower() for one in headers.get("content-encoding", "").split(",")}
    if codings - {"", "identity"}:
        raise UnsupportedMedia(
            f"content-encoding {headers['content-encoding'][:40]!r}",
            "bodies must not be compressed",
            "",
        )


def _media(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def file_name(headers: Mapping[str, str], filename: str) -> str:
    """Return the name of the instrument file in a body; "" if the body is an array.

    Args:
        headers: of the request, with names in lower case.
        filename: the one of the query; "" for none.

    Raises:
        UnsupportedMedia: the ending is not known, or is not that of the content type.
        InvalidInput: it is no name of a file, or the headers are those of an array.
    """
    media = _media(headers)
    suffix = FILE_MEDIA.get(media, "")
    name = filename or (f"frame{suffix}" if suffix else "")
    if not name:
        return ""
    check_name(name)
    check_coding(headers)
    if {"x-dtype", "x-shape"} & set(headers):
        raise InvalidInput(
            f"{name[:40]!r} is a file, and X-Dtype or X-Shape are of raw values",
            "a body is one of them",
            "leave out the headers, or filename",
        )
    own = READERS[Path(name).suffix.lower()]
    suffix = suffix or (".npy" if media == NPY else "")
    if (not suffix and media not in _ANY_MEDIA) or (suffix and READERS[suffix] != own):
        raise UnsupportedMedia(
            f"content-type {media[:80]!r} is not that of {name[:40]!r}",
            f"allowed for a file of any format: {RAW}",
            f"send Content-Type: {RAW}",
        )
    return name


def _npy_parts(body: bytes | bytearray) -> tuple[np.dtype[Any], tuple[int, ...], memoryview]:
    """Read the header here, because numpy.load would allocate any size that it states."""
    stream = io.BytesIO(body[:HEADER_BYTES])  # the rest is not copied
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version}")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, is_fortran, dtype = read(stream)
    except _HEADER_FAULTS as error:
        raise UnreadableFile(
            "the body is not an .npy file of one array",
            f"{type(error).__name__}: {str(error)[:160]}",
            "numpy.save writes one; add ?filename=NAME if it is an instrument file",
        ) from error
    if dtype.hasobject:
        raise UnreadableFile(
            "the .npy holds pickled Python objects",
            "pickles are never read, because they can run any program",
            "save an array of numbers: numpy.asarray(frame, 'float32')",
        )
    if is_fortran and len(shape) > 1:
        raise UnreadableFile(
            "the .npy is in Fortran order", "C order only", "numpy.ascontiguousarray, then save"
        )
    return dtype, shape, memoryview(body)[stream.tell() :]


def _raw_parts(
    body: bytes | bytearray, headers: Mapping[str, str]
) -> tuple[np.dtype[Any], tuple[int, ...], memoryview]:
    kind, sides = headers.get("x-dtype", "").strip(), headers.get("x-shape", "").strip()
    if not _DTYPE.fullmatch(kind):
        raise InvalidInput(
            f"X-Dtype {kind[:40]!r} is not a type of number",
            "for example float32, <f4, >u2, uint16",
            "raw bodies need the headers X-Dtype and X-Shape; an instrument file needs the query "
            "filename, such as ?filename=scan_0142.dm4",
        )
    if not re.fullmatch(r"\d{1,9}(\s*,\s*\d{1,9}){0,7}", sides):
        raise InvalidInput(
            f"X-Shape {sides[:40]!r} is not a shape", "for example 512,512 or 16,512,512", ""
        )
    try:
        dtype = np.dtype(kind)
    except TypeError as error:
        raise InvalidInput(f"X-Dtype {kind!r} is no type of numpy", str(error)) from error
    return dtype, tuple(int(side) for side in sides.split(",")), memoryview(body)


def _array(dtype: np.dtype[Any], shape: tuple[int, ...], values: memoryview) -> NDArray[Any]:
    """Return values as an array without a copy; the number of bytes must be exact."""
    if dtype.kind not in "biuf" or dtype.itemsize > BYTES_PER_PX:
        raise InvalidFrame(
            f"values of type {dtype.str[:40]} are not those of a frame",
            "allowed: bool, integers and real numbers of up to 64 bits",
            "for complex data, send the modulus or the phase",
        )
    wanted = math.prod(shape) * dtype.itemsize
    if len(values) != wanted:
        raise UnreadableFile(
            f"the body holds {len(values)} bytes of values",
            f"shape {shape} of {dtype.name} is {wanted}",
            "the body is cut short, or its stated shape or type is wrong",
        )
    return np.frombuffer(values, dtype).reshape(shape)


@dataclass(frozen=True)
class Frames:
    """The frames of one request, checked.

    Args:
        frames: float32 (y, x) each.
        is_stack: whether the array has a third axis.
        notes: changes that were made to them, in words.
        file: the file that they come from; None if they were sent as an array.
    """

    frames: tuple[NDArray[np.float32], ...]
    is_stack: bool = False
    notes: tuple[str, ...] = ()
    file: "SentFile | None" = None


@dataclass(frozen=True, eq=False)
class SentFile:
    """An instrument file in the body of a request.

    Attributes:
        name: as its sender calls it.
        raw: what it holds; the array is one frame or a stack, checked.
    """

    name: str
    raw: Raw

    def facts(self) -> dict[str, Any]:
        """Return what the file says of its frames, as JSON data."""
        kind, _ = READERS[Path(self.name).suffix.lower()]
        size_pm, recorded = self.raw.pixel_size_pm, plain(self.raw.values)
        return {"name": self.name, "format": kind, "pixel_size_pm": size_pm, "recorded": recorded}


def of_file(frames: Frames, name: str, raw: Raw) -> Frames:
    """Return frames with the file that they come from."""
    return replace(frames, file=SentFile(name, raw))


def read_frames(array: NDArray[Any], max_frame_px: int) -> Frames:
    """Return the frames of a body.

    Args:
        array: (y, x) or (n, y, x).
        max_frame_px: largest number of pixels.

    Raises:
        TooLarge: it has more pixels.
        UnreadableFile: all values are NaN or infinity.
        InvalidFrame: not a frame; see `data.io.reading.check_frame`.
    """
    if array.size > max_frame_px:
        raise TooLarge(f"{array.size} pixels", f"at most {max_frame_px}", "send fewer at once")
    frames = frames_in(array)
    if frames.ndim == 3 and not len(frames):
        raise InvalidFrame("a stack of no frames", "at least one", "")
    if frames.ndim == 2:
        frame, notes = _frame(frames, "")
        # A stack of one stays a stack: its answer names the frame.
        is_stack = array.ndim > 2 and array.shape[-2:] == frames.shape
        return Frames((frame,), is_stack=is_stack, notes=notes)
    read = [_frame(frame, f"frame {n}: ") for n, frame in enumerate(frames)]
    notes = tuple(note for _, more in read for note in more)
    return Frames(tuple(frame for frame, _ in read), is_stack=True, notes=notes)


def _frame(frame_yx: NDArray[Any], where: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    if frame_yx.size and frame_yx.dtype.kind == "f" and not np.isfinite(frame_yx).any():
        raise UnreadableFile(f"{where}no pixel is finite", "nothing but NaN or infinity", "")
    try:
        frame, notes = inspect_frame(frame_yx)
    except InvalidFrame as error:
        raise type(error)(where + error.what, error.why, error.hint) from error
    return frame, tuple(where + note for note in notes)


# -- the answer -------------------------------------------------------------------------------
def answer_form(accept: str, want: Sequence[str]) -> str:
    """Return the media type of the answer: JSON if requested, else npz.

    Raises:
        UnsupportedMedia: the caller accepts neither.
        InvalidInput: maps were requested as JSON.
    """
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    if JSON in ranges and NPZ not in ranges:
        maps = [name for name in want if name in MAPS]
        if maps:
            raise InvalidInput(
                f"want={','.join(maps)}: maps are not sent as JSON",
                f"they come as {NPZ}",
                f"send Accept: {NPZ}, or leave {' and '.join(maps)} out",
            )
        return JSON
    if not ranges or any(one in (NPZ, "*/*", "application/*") for one in ranges):
        return NPZ
    raise UnsupportedMedia(f"accept {accept[:80]!r}", f"answers come as {NPZ} or {JSON}", "")


def refusal(path: str, error: ManybeamError, request_id: str) -> tuple[dict[str, Any], str]:
    """Return an error as JSON data and its media type, in the form of the URL's protocol.

    Example:
        >>> refusal("/v2/models/x", TooLarge("9 pixels", "at most 4", "crop"), "7")
        ({'error': '9 pixels; at most 4; crop'}, 'application/json')
    """
    if not is_of_protocol(path):
        return problem(error, request_id), PROBLEM
    return {"error": str(error)}, JSON


def is_of_protocol(path: str) -> bool:
    """Return whether a URL is of the Open Inference Protocol v2."""
    return path == "/v2" or path.startswith("/v2/")


def write_npz(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Return an uncompressed zip of arrays that `numpy.load` reads without pickle.

    `meta` is JSON in UTF-8 bytes: `json.loads(answer["meta"].tobytes())`.
    """
    text = np.frombuffer(json.dumps(meta, allow_nan=False).encode(), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays, meta=text)
    return stream.getvalue()


def write_json(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Return the answer as JSON: atoms by name, unknown values as null.

    Args:
        arrays: the arrays of the answer.
        meta: its facts; `elements` names the classes of the atoms, in `per_frame` for a stack.
    """
    content: dict[str, Any] = {}
    for name, columns in (("atoms", ATOM_COLUMNS), ("members", MEMBER_COLUMNS)):
        if name in arrays:
            rows = [dict(zip(columns, row, strict=True)) for row in plain(arrays[name].tolist())]
            for row, frame in zip(rows, arrays.get(f"{name}_frame", ()), strict=False):
                row["frame"] = int(frame)
            for row in rows:
                row["element"] = _element(row, meta)
            content[name] = rows
    if "votes" in arrays:
        content["votes"] = plain(arrays["votes"].tolist())
    return json.dumps({**content, "meta": meta}, allow_nan=False).encode()


def _element(row: Mapping[str, Any], meta: Mapping[str, Any]) -> str | None:
    """Return the symbol of the element of an atom, or None if its class is no element."""
    each = meta.get("per_frame")
    facts = each[row["frame"]] if each and "frame" in row else meta
    symbols = facts.get("elements", ())
    return symbols[int(row["class"]) - 1] if 0 < row["class"] <= len(symbols) else None


def plain(value: Any) -> Any:
    """Return a value as JSON data; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value

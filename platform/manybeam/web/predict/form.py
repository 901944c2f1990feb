"""The form of /predict: a file or a stored frame, and the question about it."""

import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from manybeam.errors import InvalidInput, MalformedRequest, TooLarge
from manybeam.predictor.answer import AUTO
from manybeam.zoo.records import Ref

HEAD_BYTES = 100_000  # of everything in a form beside the file
BYTES_PER_PX = 4  # of a file as large as the largest frame
MOST_FIELDS = 20


@dataclass(frozen=True)
class PredictForm:
    """The fields of the form.

    Attributes:
        name, content: the file; "" and nothing for a stored frame.
        frameset: path of a FrameSet below the store; "" for none.
        again: id of a result whose frame is asked about again; "" for none.
        frame: number of the frame in a stack or FrameSet; None for the first.
        ref: who answers.
        pixel_size_pm: edge of a pixel [pm], if the person gave it.
        is_size_trusted: take it also if the frame contradicts.
        is_quick: ask for an answer without frame analysis.
        is_same: ask what was asked before about `again`, now with frame analysis.
        csrf: the token of the session.
    """

    name: str = ""
    content: bytes = b""
    frameset: str = ""
    again: str = ""
    frame: int | None = None
    ref: str = AUTO
    pixel_size_pm: float | None = None
    is_size_trusted: bool = False
    is_quick: bool = False
    is_same: bool = False
    csrf: str = ""


async def read_form(request: Request, max_frame_px: int) -> PredictForm:
    """Return the form in the body of a request.

    Raises:
        TooLarge: the file is larger than the largest frame.
        MalformedRequest: the body is no form.
        InvalidInput: a field cannot be used; all faults are told at once.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise MalformedRequest(
            f"a body of type {kind[:80]!r} is no form",
            "a form with a file is multipart/form-data",
            "programs ask the prediction service: POST /v1/predict/{REF}",
        )
    most = most_bytes(max_frame_px)
    if int(request.headers.get("content-length", "0")) > most:
        raise _too_large(most)
    parser = MultiPartParser(
        request.headers,
        _bounded(request, most),
        max_files=1,
        max_fields=MOST_FIELDS,
        max_part_size=HEAD_BYTES,
    )
    try:
        parts = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequest(
            f"the form cannot be read: {error.message}", "", "send the form again"
        ) from error
    file = parts.get("file")
    fields = {name: one.strip() for name, one in parts.items() if isinstance(one, str)}
    try:
        if isinstance(file, UploadFile):
            return _form(fields, _last_part(file.filename or ""), await file.read())
        return _form(fields, "", b"")
    finally:
        await parts.close()


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """Yield the body of a request; raises TooLarge when it is more than so many bytes."""
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > most:
            raise _too_large(most)
        yield chunk


def most_bytes(max_frame_px: int) -> int:
    """Return the size of the largest form that is read, in bytes."""
    return BYTES_PER_PX * max_frame_px + HEAD_BYTES


def _too_large(most: int) -> TooLarge:
    return TooLarge(
        "the file is too large",
        f"at most {most / 1e6:.0f} MB are read",
        "crop the frame, or export one frame of the stack; "
        "manybeam predict reads larger files on this machine",
    )


def _last_part(name: str) -> str:
    """Return the name of a file without a folder; a browser writes a quote as %22."""
    return name.replace("%22", '"').replace("\\", "/").rpartition("/")[2]


def _form(fields: Mapping[str, str], name: str, content: bytes) -> PredictForm:
    faults: list[str] = []
    frame = _number(fields, "frame", faults)
    if frame is not None and (frame < 0 or frame != int(frame)):
        faults.append(f"frame: {frame:g} is no number of a frame; the first has 0")
    size_pm = _number(fields, "pixel_size_pm", faults)
    if size_pm is not None and not 1 <= size_pm <= 500:
        faults.append(
            f"pixel_size_pm: {size_pm:g} is not from 1 to 500 pm; give the edge of a pixel "
            "(a 1024 px frame 8 nm wide has 7.8)"
        )
    ref = fields.get("ref", "") or AUTO
    if faults:
        raise InvalidInput("; ".join(faults), "", "correct the form and send it again")
    if ref != AUTO:
        Ref.parse(ref)
    return PredictForm(
        name,
        content,
        fields.get("frameset", "").strip("/"),
        fields.get("again", ""),
        None if frame is None else int(frame),
        ref,
        size_pm,
        bool(fields.get("trust")),
        bool(fields.get("quick")),
        bool(fields.get("analyse") and fields.get("again")),
        fields.get("csrf", ""),
    )


def _number(fields: Mapping[str, str], name: str, faults: list[str]) -> float | None:
    """Return a number; a comma is read as a point, as many people write it."""
    text = fields.get(name, "").replace(",", ".")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        faults.append(f"{name}: {text[:40]!r} is no number")
        return None
    return value

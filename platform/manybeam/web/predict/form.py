"""The form of /predict: a file or a stored frame, and the question about it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from manybeam.errors import InvalidInput, MalformedRequest, TooLarge
from manybeam.predictor.answer import AUTO
from manybeam.zoo.records import Ref

HEAD_BYTES = 100_000  # of everything in a form beside the file
BYTES_PER_PX = 4  # of a file as large as the largest frame
NAME_LENGTH = 200


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
    most = most_bytes(max_frame_px)
    if int(request.headers.get("content-length", "0")) > most:
        raise _too_large(most)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    fields, name, content = _parts(bytes(body), request.headers.get("content-type", ""))
    return _form(fields, name, content)


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


def _parts(body: bytes, kind: str) -> tuple[dict[str, str], str, bytes]:
    """Return the fields of a form, and name and content of the file in it."""
    named = re.search(r'multipart/form-data;.*boundary="?([^";]{1,200})', kind)
    if named is None:
        raise MalformedRequest(
            f"a body of type {kind[:80]!r} is no form",
            "a form with a file is multipart/form-data",
            "programs ask the prediction service: POST /v1/predict/{REF}",
        )
    fields: dict[str, str] = {}
    name, content = "", b""
    limit = b"\r\n--" + named[1].encode()
    for part in (b"\r\n" + body).split(limit)[1:-1]:
        head, is_whole, value = part.partition(b"\r\n\r\n")
        words = head.decode(errors="replace")
        field = re.search(r'[; ]name="([^"]*)"', words)
        if not is_whole or field is None or len(head) > HEAD_BYTES:
            raise MalformedRequest("a part of the form has no name", "", "send the form again")
        file = re.search(r'filename="([^"]*)"', words)
        if file is not None:
            name, content = (file[1], value) if value or file[1] else (name, content)
        elif len(value) <= HEAD_BYTES:
            fields[field[1]] = value.decode(errors="replace").strip()
    return fields, _last_part(name), content


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

"""The messages of a stream: JSON heads, and the parts of bodies (decision 0041).

Nothing here needs the web framework, so the form of messages can be tested alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from manybeam.errors import MalformedRequest

IN_FLIGHT = 16  # frames of a stream without an answer
PART_BYTES = 2**20
BEAT_S = 5.0  # of silence, then the service says that it is there
MAX_HEAD = 16 * 2**10  # characters
MAX_REASON = 123  # bytes that the WebSocket protocol allows for the reason of an end

# Why a stream ends. Codes from 4000 are for applications.
MALFORMED, REFUSED, NO_SESSION, TOO_SLOW, TAKEN_OVER = 4400, 4401, 4404, 4408, 4409
RESTARTING = 1012

Value = Annotated[str, Field(max_length=1000)] | bool | int | float


class FrameMessage(BaseModel):
    """The head of a frame that a client sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["frame"]
    frame_id: str = Field(min_length=1, max_length=200)
    bytes: int = Field(ge=0)
    content_type: str = Field("", max_length=200)
    dtype: str = Field("", max_length=40)
    shape: list[int] = Field(default_factory=list, max_length=8)
    accept: str = Field("", max_length=200)
    query: dict[str, Value] = Field(default_factory=dict, max_length=32)

    @field_validator("query")
    @classmethod
    def _of_the_frame(cls, query: dict[str, Value]) -> dict[str, Value]:
        if said := {"instrument", "frame_id"} & set(query):
            raise ValueError(f"{sorted(said)} of the query: the path and the head say them")
        return query


class BeatMessage(BaseModel):
    """What a client may send to say that it is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["beat"]


_MESSAGES: TypeAdapter[FrameMessage | BeatMessage] = TypeAdapter(
    Annotated[FrameMessage | BeatMessage, Field(discriminator="type")]
)


@dataclass(frozen=True)
class FrameHead:
    """The head of a frame, as that of a request.

    Attributes:
        frame_id: the name that the caller gave the frame.
        byte_count: of the body that follows.
        headers: of the request that the frame stands for, with names in lower case.
        query: its query, as names and texts.
    """

    frame_id: str
    byte_count: int
    headers: Mapping[str, str]
    query: Mapping[str, str]


def read_head(text: str) -> FrameHead | None:
    """Return the head of a frame; None for a beat.

    Raises:
        MalformedRequest: it is neither; all faults are named.
    """
    if len(text) > MAX_HEAD:
        raise MalformedRequest(
            f"a head of {len(text)} characters", f"at most {MAX_HEAD}", "send the frame as parts"
        )
    try:
        message = _MESSAGES.validate_json(text)
    except ValidationError as error:
        faults = "; ".join(
            ": ".join(filter(None, (".".join(map(str, one["loc"][1:])), one["msg"])))
            for one in error.errors(include_url=False, include_input=False)
        )
        raise MalformedRequest(f"a head cannot be read: {faults[:500]}", "", _EXAMPLE) from error
    return _head(message) if isinstance(message, FrameMessage) else None


def _head(message: FrameMessage) -> FrameHead:
    headers = {
        "content-type": message.content_type,
        "x-dtype": message.dtype,
        "x-shape": ",".join(map(str, message.shape)),
        "accept": message.accept,
    }
    query = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in message.query.items()
    }
    given = {name: text for name, text in headers.items() if text}
    return FrameHead(message.frame_id, message.bytes, given, query)


_EXAMPLE = (
    'send {"type": "frame", "frame_id": "a", "content_type": "application/x-npy", "bytes": 9}'
)


# -- what the service sends --------------------------------------------------------------------
def welcome(version: str, session_id: int) -> dict[str, Any]:
    """Return the first message of a stream: what the client may send."""
    return {
        "type": "welcome",
        "version": version,
        "session": session_id,
        "in_flight": IN_FLIGHT,
        "part_bytes": PART_BYTES,
        "beat_s": BEAT_S,
    }


def answer_head(
    frame_id: str, status: int, headers: Mapping[str, str], byte_count: int
) -> dict[str, Any]:
    """Return the head of the answer to a frame.

    Args:
        frame_id: of the frame.
        status: of the answer.
        headers: of the answer, with names in lower case.
        byte_count: of the body that follows.
    """
    content = headers.get("content-type", "")
    head = {"type": "answer", "frame_id": frame_id, "status": status, "content_type": content}
    if later := headers.get("retry-after"):
        head["retry_after_s"] = int(later)
    return {**head, "bytes": byte_count}


def closing(code: int, problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last message of a stream that the service ends."""
    return {"type": "closing", "code": code, "problem": dict(problem)}


def beat() -> dict[str, Any]:
    """Return the message that says that the service is there."""
    return {"type": "beat"}


def as_text(message: Mapping[str, Any]) -> str:
    """Return a message as it is sent."""
    return json.dumps(message, allow_nan=False)


def parts(body: bytes | memoryview) -> Iterator[bytes]:
    """Yield the parts of a body; none of an empty one."""
    view = memoryview(body)
    for first in range(0, len(view), PART_BYTES):
        yield bytes(view[first : first + PART_BYTES])


def reason(text: str) -> str:
    """Return a reason, cut to what the WebSocket protocol allows.

    Example:
        >>> len(reason("é" * 200).encode())
        122
    """
    return text.encode()[:MAX_REASON].decode(errors="ignore")

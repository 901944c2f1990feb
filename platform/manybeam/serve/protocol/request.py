"""A request for inference: its JSON, the bytes behind it, and what it asks."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manybeam.errors import (
    InvalidInput,
    MalformedRequest,
    NotOffered,
    TooLarge,
    UnsupportedMedia,
)
from manybeam.serve import wire
from manybeam.serve.protocol.tensors import (
    FRAME,
    INPUTS,
    MAPS,
    OUTPUTS,
    PIXEL_SIZE,
    SentTensor,
    pixel_size_text,
)

JSON_LENGTH = "Inference-Header-Content-Length"
MOST_JSON = 16 * 2**20  # bytes; lists of Python take twenty times as much
MOST_NUMBERS = 2**21  # of an answer in JSON
_MEDIA = ("", wire.JSON, wire.RAW, "application/x-www-form-urlencoded")  # the last is of curl
_MAPS_WANTED = {"MEAN": "mean", "STD": "std"}
_SHARED = "shared_memory_"
_STATEFUL = ("sequence_id", "sequence_start", "sequence_end", "priority")
Parameters = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# So large that no array is, and small enough to be multiplied and printed.
_Length = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]


class _Input(_Part):
    name: str
    datatype: str
    shape: Annotated[tuple[_Length, ...], Field(max_length=8)]
    parameters: Parameters = {}
    data: Any = None


class _Output(_Part):
    name: str
    parameters: Parameters = {}


class _Message(_Part):
    id: Annotated[str, Field(max_length=1000)] = ""
    parameters: Parameters = {}
    inputs: Annotated[tuple[_Input, ...], Field(max_length=16)]
    outputs: Annotated[tuple[_Output, ...], Field(max_length=16)] = ()


class InferRequest:
    """What a request asks; its frames are read later, in a thread.

    Args:
        message: its JSON.
        inputs: its tensors, by name.

    Attributes:
        id: repeated in the answer; it is no `frame_id`, because clients send one id for all.
        outputs: names of the outputs, in order, and whether each comes as bytes.

    Raises:
        InvalidInput: a tensor, an output or a parameter is unknown, given twice, or lacks.
        NotOffered: it asks for a part of the protocol that is not offered.
    """

    def __init__(self, message: _Message, inputs: Mapping[str, SentTensor]) -> None:
        self.id, self._inputs = message.id, inputs
        self._parameters = dict(message.parameters)
        is_binary = self._parameters.pop("binary_data_output", False) is True
        wanted = message.outputs or tuple(_Output(name=name) for name in OUTPUTS)
        self.outputs: dict[str, bool] = {}
        for one in wanted:
            _check_name("output", one.name, tuple(OUTPUTS), self.outputs)
            self.outputs[one.name] = _is_binary(one, default=is_binary)

    def query(self) -> list[tuple[str, str]]:
        """Return what the query of a request to `/v1/predict` would say, but `want`.

        `timeout`, in microseconds, counts as `deadline_ms` if that is not given.

        Raises:
            InvalidInput: a parameter is no text, number or truth value.
        """
        values = dict(self._parameters)
        for name in _STATEFUL:
            if values.pop(name, 0):
                raise NotOffered(
                    f"parameter {name!r} is not offered",
                    "each request is answered by itself, in a fair order",
                    "leave it out; sessions of instruments have the parameter `instrument`",
                )
        timeout_us = values.pop("timeout", None)
        if timeout_us and "deadline_ms" not in values:
            values["deadline_ms"] = _milliseconds(timeout_us)
        pairs = [(name, _text(name, value)) for name, value in values.items()]
        if PIXEL_SIZE.name in self._inputs:
            pairs.append(("pixel_size_pm", pixel_size_text(self._inputs[PIXEL_SIZE.name])))
        return pairs

    @property
    def want(self) -> tuple[str, ...]:
        """What the answer must hold for the outputs."""
        return ("atoms", *(_MAPS_WANTED[name] for name in MAPS if name in self.outputs))

    def frames(self, max_frame_px: int) -> wire.Frames:
        """Return the frames.

        Raises:
            InvalidInput: the tensor is no frame and no stack; or maps are too large for JSON.
            MalformedRequest: the tensor is not as its shape says.
            TooLarge: it has too many pixels.
        """
        array = self._inputs[FRAME.name].array()
        frames = wire.read_frames(array, max_frame_px)
        maps = [name for name in MAPS if self.outputs.get(name) is False]
        if len(maps) * array.size > MOST_NUMBERS:
            raise InvalidInput(
                f"{' and '.join(maps)} of {array.size} pixels as numbers of JSON",
                f"at most {MOST_NUMBERS} numbers",
                "ask for them with binary_data: true",
            )
        return frames


def read_request(body: bytes | bytearray, headers: Mapping[str, str]) -> InferRequest:
    """Return what a body asks.

    Args:
        body: JSON, and perhaps bytes of tensors behind it.
        headers: names in lower case.

    Raises:
        UnsupportedMedia: it is compressed, or of another type.
        MalformedRequest: its JSON cannot be read, or lengths contradict each other.
        TooLarge: its JSON is too long.
        InvalidInput: it asks for what there is not.
    """
    wire.check_coding(headers)
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in _MEDIA:
        raise UnsupportedMedia(f"content-type {media[:80]!r}", f"{wire.JSON} or {wire.RAW}", "")
    length = _json_length(body, headers)
    try:
        message = _Message.model_validate_json(body[:length])
    except ValidationError as error:
        raise _odd_message(error) from error
    return InferRequest(message, _tensors(message.inputs, memoryview(body)[length:]))


def _odd_message(error: ValidationError) -> InvalidInput:
    """Return the error of JSON that cannot be read, or is no request."""
    found = error.errors(include_input=False, include_url=False)
    if found[0]["type"] == "json_invalid":
        return MalformedRequest(
            "the request is not JSON",
            found[0]["msg"][:160],
            f"the header {JSON_LENGTH} is the length of the JSON, if bytes of tensors follow",
        )
    faults = "; ".join(_fault(one) for one in found[:5])
    return InvalidInput(faults, "a request as the protocol says", "mend the JSON")


def _json_length(body: bytes | bytearray, headers: Mapping[str, str]) -> int:
    """Return how many bytes of a body are JSON."""
    text = headers.get(JSON_LENGTH.lower())
    if not body:
        raise MalformedRequest("the body is empty", "JSON, and perhaps the bytes of tensors", "")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise MalformedRequest(f"{JSON_LENGTH} is {text[:40]!r}", "a number of bytes", "")
    length = len(body) if text is None else int(text)
    if not 0 < length <= len(body):
        raise MalformedRequest(
            f"{JSON_LENGTH} is {length}", f"from 1 to the length of the body, {len(body)}", ""
        )
    if length > MOST_JSON:
        raise TooLarge(
            f"{length} bytes of JSON", f"at most {MOST_JSON}", "send FRAME as binary data"
        )
    return length


def _tensors(inputs: Sequence[_Input], rest: memoryview) -> dict[str, SentTensor]:
    """Return the tensors of a request; the bytes lie in their order behind the JSON."""
    found: dict[str, SentTensor] = {}
    place = 0
    for one in inputs:
        _check_name("input", one.name, tuple(form.name for form in INPUTS), found)
        count = _byte_count(one)
        values = one.data if count is None else rest[place : place + count]
        if count is not None and len(values) < count:
            raise MalformedRequest(
                f"{one.name}: binary_data_size is {count}",
                f"{len(values)} bytes are left in the body",
                "the body is cut short, or a size is wrong",
            )
        place += count or 0
        found[one.name] = SentTensor(one.name, one.datatype, one.shape, values).as_bytes()
    if place != len(rest):
        raise MalformedRequest(
            f"{len(rest) - place} bytes of the body belong to no input",
            "binary_data_size of all inputs together is the length behind the JSON",
            f"give each its size, and {JSON_LENGTH}",
        )
    if FRAME.name not in found:
        raise InvalidInput(f"the input {FRAME.name} lacks", "one frame or a stack of them", "")
    return found


def _byte_count(one: _Input) -> int | None:
    """Return how many bytes of a tensor lie behind the JSON; None if it is in the JSON."""
    for name in one.parameters:
        if name.startswith(_SHARED):
            raise _no_shared_memory(name)
        if name != "binary_data_size":
            raise _unknown(f"parameter of input {one.name}", name, ("binary_data_size",))
    count = one.parameters.get("binary_data_size")
    if (count is None) == (one.data is None):
        what = "no data" if count is None else "data in JSON and a binary_data_size"
        raise InvalidInput(f"{one.name} has {what}", "one of both", "")
    if count is None and not isinstance(one.data, list):
        raise InvalidInput(f"{one.name}: its data are no list", "a list of numbers", "")
    if count is not None and (type(count) is not int or count < 0):
        raise MalformedRequest(
            f"{one.name}: binary_data_size is {str(count)[:40]!r}", "a number of bytes", ""
        )
    return count


def _is_binary(one: _Output, *, default: bool) -> bool:
    """Return whether an output shall come as bytes."""
    for name in one.parameters:
        if name.startswith(_SHARED):
            raise _no_shared_memory(name)
        if name == "classification":
            raise NotOffered(
                f"{one.name}: classification is not offered",
                "an answer is atoms and maps, no list of classes",
                "leave it out; column 2 of ATOMS is the class of each atom",
            )
        if name != "binary_data":
            raise _unknown(f"parameter of output {one.name}", name, ("binary_data",))
    found = one.parameters.get("binary_data", default)
    if not isinstance(found, bool):
        raise InvalidInput(f"{one.name}: binary_data is {str(found)[:40]!r}", "true or false", "")
    return found


def _check_name(kind: str, name: str, known: Sequence[str], given: Mapping[str, Any]) -> None:
    if name not in known:
        raise _unknown(kind, name, known)
    if name in given:
        raise InvalidInput(f"{kind} {name} is given twice", "", "give it once")


def _unknown(kind: str, name: str, known: Sequence[str]) -> InvalidInput:
    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else ""
    return InvalidInput(f"no {kind} {name[:80]!r}", f"there are: {', '.join(known)}", advice)


def _no_shared_memory(name: str) -> NotOffered:
    return NotOffered(
        f"{name[:40]!r}: shared memory is not offered",
        "the service reads no memory of its callers",
        "send tensors in the body",
    )


def _milliseconds(timeout_us: object) -> int:
    if type(timeout_us) is not int or timeout_us < 0:
        raise InvalidInput(f"timeout {str(timeout_us)[:40]!r}", "whole microseconds", "")
    return max(1, timeout_us // 1000)


def _text(name: str, value: object) -> str:
    """Return the value of a parameter as the query of a URL says it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise InvalidInput(f"parameter {name[:80]!r} is no text and no number", "", "send one value")


def _fault(error: Any) -> str:
    """Return one fault of the JSON, with its place."""
    place = ".".join(str(part)[:40] for part in error["loc"])
    return f"{place}: {error['msg'][:200]}" if place else str(error["msg"])[:200]

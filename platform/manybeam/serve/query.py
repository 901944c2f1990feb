"""The query string of a request, as one model.

The model reports all faults of a query at once, and describes it in `/openapi.json`.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from manybeam.errors import InvalidInput

MAPS = ("mean", "std", "mi")  # maps: probability, spread, mutual information
WANTS = ("atoms", *MAPS, "members", "votes")
MAX_DEADLINE_MS = 600_000
FLAGS = {"true": True, "1": True, "false": False, "0": False}

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@-]{0,199}")


def _pixel_size(text: str) -> float:
    value = _number(text)
    if not 1 <= value <= 500:
        raise ValueError(
            f"{text[:40]!r} is not from 1 to 500 pm; give the edge of a pixel in picometres "
            "(a 1024 px frame 8 nm wide has 7.8)"
        )
    return value


def _deadline(text: str) -> int:
    value = _number(text)
    if not 1 <= value <= MAX_DEADLINE_MS:
        raise ValueError(f"{text[:40]!r} is not from 1 to {MAX_DEADLINE_MS} ms")
    return round(value)


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise ValueError(f"{text[:40]!r} is not a share between 0 and 1, such as 0.05")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]!r} is not finite")
    return value


def _flag(text: str) -> bool:
    if text.lower() not in FLAGS:
        raise ValueError(f"{text[:40]!r} is none of {', '.join(FLAGS)}")
    return FLAGS[text.lower()]


def _want(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in WANTS:
            near = difflib.get_close_matches(name, WANTS, n=1, cutoff=0.4)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name[:40]!r} is none of {', '.join(WANTS)}{advice}")
    return names


def is_label(text: str) -> bool:
    """Return whether a text can be the name of an instrument, a frame or a condition."""
    return _LABEL.fullmatch(text) is not None


def _label(text: str) -> str:
    if text and not is_label(text):  # an empty value means that it is left out
        raise ValueError(
            f"{text[:40]!r} is not a name; 1 to 200 letters, digits, spaces and . _ : / @ -"
        )
    return text


def _members(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"{text[:40]!r} are no members; give indices with commas, as 03,05")
    return tuple(dict.fromkeys(int(word) for word in words))


def _text(read: Callable[[str], Any]) -> BeforeValidator:
    """Return a validator that reads text from a query; other values are not changed."""
    return BeforeValidator(lambda value: read(value) if isinstance(value, str) else value)


def _name(description: str) -> Any:
    return Field(description=description, json_schema_extra={"pattern": f"^{_LABEL.pattern}$"})


@dataclass(frozen=True)
class RequestQuery:
    """The query of a request."""

    pixel_size_pm: Annotated[
        Annotated[float, Field(ge=1, le=500)] | None,
        _text(_pixel_size),
        Field(
            description="Edge of a pixel [pm]. If left out, it is inferred if the crystal is known."
        ),
    ] = None
    want: Annotated[
        tuple[str, ...],
        _text(_want),
        Field(
            description="What the answer holds, with commas: atoms (one row each), the maps mean, "
            "std and mi (mutual information in nats), members (what each found), votes.",
            json_schema_extra={"minItems": 1, "items": {"enum": list(WANTS)}},
        ),
    ] = ("atoms",)
    deadline_ms: Annotated[
        Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)] | None,
        _text(_deadline),
        Field(description="Time the caller waits [ms]; ten minutes if left out."),
    ] = None
    instrument: Annotated[
        str, _text(_label), _name("Name of the instrument, repeated in the answer.")
    ] = ""
    frame_id: Annotated[
        str, _text(_label), _name("The caller's name of the frame, repeated in the answer.")
    ] = ""
    false_atoms: Annotated[
        float,
        _text(_share),
        Field(
            description="Bound on the share of false atoms; left out for none.",
            json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ),
    ] = 0.0
    ensemble: Annotated[str, _text(_label), _name("REF to select from, or auto.")] = "auto"
    members: Annotated[
        tuple[int, ...],
        _text(_members),
        Field(
            description="Indices of the members of REF that answer, with commas; left out for all.",
            json_schema_extra={"minItems": 1, "items": {"type": "integer", "minimum": 0}},
        ),
    ] = ()
    condition: Annotated[
        str,
        _text(_label),
        _name("Id of the condition of the recording, in the library of the facility."),
    ] = ""
    trust_pixel_size: Annotated[
        bool,
        _text(_flag),
        Field(description="Take pixel_size_pm also if it contradicts the frame or the training."),
    ] = False
    filename: Annotated[
        str,
        Field(
            description="Name of the instrument file in the body, without a folder; its ending "
            "says the format. Left out if the body is an array.",
            json_schema_extra={"maxLength": 200, "pattern": r"^[^/\\\x00-\x1f]*\.[A-Za-z0-9]+$"},
        ),
    ] = ""
    quick: Annotated[
        bool,
        _text(_flag),
        Field(
            description="Without frame analysis: drift, predicted F1 and calibration come from "
            "the summary of the frame, several times as fast and less sure."
        ),
    ] = False


_MODEL: TypeAdapter[RequestQuery] = TypeAdapter(RequestQuery)

PREDICT_NAMES = (
    "pixel_size_pm",
    "trust_pixel_size",
    "want",
    "deadline_ms",
    "instrument",
    "frame_id",
    "false_atoms",
    "members",
    "condition",
    "quick",
    "filename",
)
# What the outputs and the body of the Open Inference Protocol say, its query does not.
PROTOCOL_NAMES = tuple(name for name in PREDICT_NAMES if name not in ("want", "filename"))
# Of a frame of a stream: its instrument is in the path, and its name in its head.
FRAME_NAMES = tuple(name for name in PREDICT_NAMES if name not in ("instrument", "frame_id"))
SELECT_NAMES = (
    "pixel_size_pm",
    "trust_pixel_size",
    "deadline_ms",
    "instrument",
    "frame_id",
    "ensemble",
    "condition",
    "filename",
)
SELECT_FOR_NAMES = tuple(name for name in SELECT_NAMES if name != "ensemble")


def read_query(pairs: Sequence[tuple[str, str]], allowed: Sequence[str]) -> RequestQuery:
    """Return the query of a query string; all its faults are reported at once.

    Args:
        pairs: (name, value) of the query, in order.
        allowed: names for this path.

    Raises:
        InvalidInput: a name is unknown or given twice, or a value is not allowed.

    Example:
        >>> read_query([("want", "atoms,std"), ("pixel_size_pm", "7.8")], PREDICT_NAMES).want
        ('atoms', 'std')
    """
    faults: list[str] = []
    values: dict[str, str] = {}
    for name, text in pairs:
        if name not in allowed:
            faults.append(_unknown_name(name, allowed))
        elif name in values:
            faults.append(f"{name}: given twice; give it once")
        else:
            values[name] = text
    try:
        query = _MODEL.validate_python(values)
    except ValidationError as error:
        faults += [_fault(one) for one in error.errors()]
    if faults:
        raise InvalidInput("; ".join(faults), f"allowed: {', '.join(allowed)}", "mend the query")
    return query


def parameters(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the description of a query with these names for `/openapi.json`."""
    known = _MODEL.json_schema()["properties"]
    for schema in known.values():
        if schema.get("default") in ("", [], None, 0.0) and schema.get("type") != "boolean":
            schema.pop("default", None)  # it means that nothing was given, and cannot be sent
    assert set(names) <= {one.name for one in fields(RequestQuery)}  # noqa: S101 - of this module
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": known[name].pop("description"),
            "schema": known[name],
            **({"style": "form", "explode": False} if known[name].get("type") == "array" else {}),
        }
        for name in names
    ]


def _fault(error: Any) -> str:
    """Return one fault of the query, with the name of the parameter."""
    cause = error.get("ctx", {}).get("error")
    return f"{'.'.join(map(str, error['loc']))}: {cause or error['msg']}"


def _unknown_name(name: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"{name[:80]!r}: no such name" + (f"; did you mean {near[0]!r}?" if near else "")

"""The description of the service at `/openapi.json`: what a path takes, and each of its answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from manybeam.serve import wire
from manybeam.serve.query import parameters

BINARY = {"schema": {"type": "string", "format": "binary"}}
_TEXT, _FACTS = {"type": "string"}, {"type": "object", "additionalProperties": True}
_ROWS = {"type": "array", "items": _FACTS}

PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "What is wrong, why, and what to do (RFC 9457).",
    "required": ["type", "title", "status", "detail", "hint", "request_id"],
    "properties": {
        "type": {**_TEXT, "pattern": "^urn:manybeam:", "description": "The kind of the error."},
        "title": _TEXT,
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {**_TEXT, "description": "What is wrong with the value seen, and why."},
        "hint": {**_TEXT, "description": "What to do now; may be empty."},
        "request_id": {**_TEXT, "description": "X-Request-Id of the request, for questions."},
    },
}
ATOMS = {
    "type": "object",
    "required": ["meta"],
    "properties": {
        "atoms": {**_ROWS, "description": "y, x [px], class, probability, spread [px], votes."},
        "members": {**_ROWS, "description": "The atoms that each member found."},
        "votes": {"type": "array"},
        "meta": {**_FACTS, "description": "Version, members, reasons, drift, timings and others."},
    },
}
RANKING = {
    "type": "object",
    "required": ["verdict", "candidates", "meta"],
    "properties": {
        "verdict": {"enum": ["ok", "out-of-distribution", "unknown"]},
        "candidates": {**_ROWS, "description": "Members, best first, with reasons."},
        "meta": _FACTS,
    },
}
ENSEMBLES = {"type": "object", "required": ["ensembles"], "properties": {"ensembles": _ROWS}}
SESSION = {
    "type": "object",
    "required": ["id", "instrument", "policy", "ref", "counts"],
    "properties": {
        "policy": {"enum": ["auto", "pinned"]},
        "counts": {**_FACTS, "description": "Frames, and how many were late, dropped, drifted."},
        "now": {"description": "Who answers now, and why; null before the first frame."},
        "events": {**_ROWS, "description": "The last changes, the newest first."},
        "history": {**_ROWS, "description": "The last frames, the newest first."},
    },
}
READY = {
    "type": "object",
    "required": ["status", "ensembles", "degraded"],
    "properties": {
        "status": {"enum": ["ready"]},
        "ensembles": {"type": "array", "items": _TEXT},
        "degraded": {"type": "array", "items": _TEXT, "description": "What limits the service."},
    },
}

LIVE = {**_FACTS, "description": "The newest frame, its picture, and the trend since `after`."}
LIVE_NAMES: list[dict[str, Any]] = [
    {
        "name": "after",
        "in": "query",
        "required": False,
        "description": "Number of the frame that the caller has.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 10**17},
    },
    {
        "name": "wait_s",
        "in": "query",
        "required": False,
        "description": "How long to wait for a newer frame [s].",
        "schema": {"type": "number", "minimum": 0, "maximum": 5},
    },
]
MARK = {
    "type": "object",
    "required": ["frame_id"],
    "additionalProperties": False,
    "properties": {"frame_id": {**_TEXT, "minLength": 1, "maxLength": 200}},
}
MARKED = {
    "type": "object",
    "required": ["kept"],
    "properties": {"kept": {**_TEXT, "description": "The FrameSet that has the frame."}},
}

_PROBLEMS = {
    400: "the request or its body cannot be read",
    401: "no token, or one that is not valid",
    403: "not for this token, this host name or this origin",
    404: "no such ensemble, member or condition",
    405: "this path has other methods",
    409: "the session of the instrument, or its frame of that name, says something else",
    408: "the head or the body came too slowly",
    413: "the body or the frame is too large",
    415: "the format of the body cannot be read",
    422: "a value of the query or the frame cannot be used",
    429: "busy: all places are taken, or by others with a claim to them",
    500: "internal error; report the request id",
    502: "the process that answered has ended; send the request again",
    503: "something that the answer needs does not answer",
    504: "no answer before the deadline",
}
ERROR = {
    "type": "object",
    "title": "Error",
    "description": "What is wrong; why; what to do.",
    "required": ["error"],
    "properties": {"error": _TEXT},
}
# By its head, and by the proxy, any request may be refused.
ALWAYS = (400, 403, 405, 408, 500, 502, 503, 504)
CHECKED = (*ALWAYS, 401, 422)  # with a token and a query
OF_FRAMES = tuple(_PROBLEMS)
OF_MODELS = (*CHECKED, 404)  # also a version that cannot be loaded
OF_SESSIONS = (*CHECKED, 404, 413, 429)
_RETRY = {
    "Retry-After": {
        "description": "After how many seconds it makes sense to send the request again.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


def answers(
    content: Mapping[str, Any], problems: Sequence[int] = ALWAYS
) -> dict[int | str, dict[str, Any]]:
    """Return the description of the answers of a path.

    Args:
        content: the schema of its good answer by media type.
        problems: the statuses of others.
    """
    of_problem = {wire.PROBLEM: {"schema": PROBLEM}}
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": _PROBLEMS[status], "content": of_problem} for status in problems
    }
    for status in {429, 502, 503} & set(problems):
        found[status]["headers"] = _RETRY
    return {200: {"description": "the answer", "content": dict(content)}} | found


def protocol_answers(
    content: Mapping[str, Any], problems: Sequence[int] = ALWAYS
) -> dict[int | str, dict[str, Any]]:
    """Return what `answers` does, with errors as the Open Inference Protocol has them."""
    found = answers(content, problems)
    for status in problems:
        found[status]["content"] = as_schema(ERROR)
    return found


def takes_tensors(names: Sequence[str], length: str) -> dict[str, Any]:
    """Return what FastAPI has to know of a path that takes tensors.

    Args:
        names: of its query, which may be parameters in its body too.
        length: the header with the length of the JSON in a body.
    """
    of_length = {
        "name": length,
        "in": "header",
        "required": False,
        "description": "Bytes of JSON in the body; those of tensors follow.",
        "schema": {"type": "integer", "minimum": 1},
    }
    message = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {**_TEXT, "description": "Repeated in the answer."},
            "parameters": {**_FACTS, "description": "What the query may say, too."},
            "inputs": {**_ROWS, "description": "FRAME, and perhaps PIXEL_SIZE_PM."},
            "outputs": {**_ROWS, "description": "ATOMS, ATOMS_FRAME, MEAN, STD; all by default."},
        },
    }
    forms = {**as_schema(message), wire.RAW: BINARY}
    extra = {
        "parameters": [*parameters(names), of_length],
        "requestBody": {"required": True, "content": forms},
    }
    all_answers = protocol_answers({**as_schema(_FACTS), wire.RAW: BINARY}, OF_FRAMES)
    return {"response_class": Response, "responses": all_answers, "openapi_extra": extra}


def takes_frames(names: Sequence[str], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what FastAPI has to know of a path that takes frames.

    Args:
        names: of its query.
        content: the schema of its good answer by media type.
    """
    headers = {
        "X-Dtype": ({**_TEXT, "pattern": "^[<>|=]?[a-z]+[0-9]*$"}, "Type of raw values: float32."),
        "X-Shape": ({**_TEXT, "pattern": "^[0-9]+(,[0-9]+){1,2}$"}, "Shape of raw values: 64,64."),
        "X-Request-Id": ({**_TEXT, "pattern": "^[!-~]{1,128}$"}, "Repeated in the answer."),
    }
    of_head = [
        {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (schema, text) in headers.items()
    ]
    extra = {
        "parameters": [*parameters(names), *of_head],
        "requestBody": {
            "required": True,
            "description": "One frame (y, x) or a stack (n, y, x): .npy, or raw values in C order "
            "with the headers X-Dtype and X-Shape; or a whole instrument file, of the format that "
            "`filename` or the media type says.",
            "content": dict.fromkeys((wire.NPY, wire.RAW, *wire.FILE_MEDIA), BINARY),
        },
    }
    all_answers = answers(content, OF_FRAMES)
    return {"response_class": Response, "responses": all_answers, "openapi_extra": extra}


def as_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an answer that is JSON."""
    return {wire.JSON: {"schema": dict(schema)}}

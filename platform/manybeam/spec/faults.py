"""Faults of a YAML file in our words: line, field, value, what is allowed, what to do.

pydantic finds the faults; its messages name types of Python, so they are not shown.
"""

import difflib
import re
import reprlib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from manybeam.spec.imaging import ID_PATTERN

Place = Sequence[str | int]

CLOSE = 0.75  # similarity from which a name is suggested
MOST_SHOWN = 80  # letters of a value
NAME_FORM = "lower-case letters, digits, dot, dash and underscore"

_WHOLE = "is no whole number; give one without a unit, such as 4"
_NUMBER = "is no number; give one without a unit, such as 0.5"
_LIST = "is no list; write it in brackets, as [a, b]"
_TRUTH = "is neither true nor false"
# The type of a fault in pydantic -> our words; {...} are values of the fault.
_WORDS: Mapping[str, str] = {
    "missing": "this field is required",
    "bool_parsing": _TRUTH,
    "bool_type": _TRUTH,
    "dict_type": "is no group; write its fields below it, as name: value",
    "finite_number": "is not finite; give a number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "is too small; give more than {gt:g}",
    "greater_than_equal": "is too small; give at least {ge:g}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "less_than": "is too large; give less than {lt:g}",
    "less_than_equal": "is too large; give at most {le:g}",
    "list_type": _LIST,
    "model_attributes_type": "is no group; write its fields below it, as name: value",
    "model_type": "is no group; write its fields below it, as name: value",
    "string_too_long": "is too long; give at most {max_length} letters",
    "string_too_short": "is too short; give at least {min_length} letters",
    "string_type": "is no text; put it in quotes",
    "too_long": "has too many entries; give at most {max_length}",
    "too_short": "has too few entries; give at least {min_length}",
    "tuple_type": _LIST,
}


def fault_lines(
    path: Path, model: type[BaseModel], error: ValidationError, tree: yaml.Node | None
) -> list[str]:
    """Return one line for each fault of a file, in the order of its lines.

    Args:
        path: the file.
        model: what the file should hold.
        error: the faults.
        tree: the parsed file, for the numbers of lines.
    """
    faults = error.errors()
    places = [tuple(fault["loc"]) for fault in faults]
    # A list whose entries are wrong is also too short for pydantic: that is no fault of its own.
    real = [
        (place, fault)
        for place, fault in zip(places, faults, strict=True)
        if fault["type"] != "too_short" or not _has_inside(place, places)
    ]
    found = [_fault(model, place, fault, tree) for place, fault in real]
    return [f"{path}:{line}: {words}" for line, words in sorted(found, key=lambda one: one[0])]


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return "; did you mean ...?" for a name that is close to a known one, else "".

    Example:
        >>> suggestion("optic", ["optics", "scan"]), suggestion("gpus", ["workers"])
        ("; did you mean 'optics'?", '')
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE)
    return f"; did you mean {near[0]!r}?" if near else ""


def _has_inside(place: tuple[str | int, ...], places: Sequence[tuple[str | int, ...]]) -> bool:
    return any(len(one) > len(place) and one[: len(place)] == place for one in places)


def _fault(
    model: type[BaseModel], place: Place, fault: Any, tree: yaml.Node | None
) -> tuple[int, str]:
    """Return the line of a fault, and its field, value and remedy in words."""
    words = _allowed(model, place, fault)
    if not place:  # it concerns several fields; the words name them
        named = re.match(r"[a-z0-9_.]+(?=:)", words)
        return _line_of(tree, named.group().split(".") if named else []), words
    has_value = fault["type"] != "missing" and fault["input"] is not None
    value = f" {_shown(fault['input'])}" if has_value else ""
    return _line_of(tree, place), f"{_path(place)}:{value} {words}"


def _allowed(model: type[BaseModel], place: Place, fault: Any) -> str:
    """Return what is wrong with a value, and what is allowed."""
    kind, context = fault["type"], fault.get("ctx", {})
    special: Mapping[str, Callable[[], str]] = {
        "extra_forbidden": lambda: f"no field of that name{_field_advice(model, place)}",
        "literal_error": lambda: _choice(fault["input"], context["expected"]),
        "string_pattern_mismatch": lambda: _form(model, place, context["pattern"]),
        "value_error": lambda: str(context["error"]),
    }
    if fault["input"] is None and kind not in ("missing", "value_error"):
        return "this field has no value; give one, or remove the field"
    if kind in special:
        return special[kind]()
    return _WORDS[kind].format(**context) if kind in _WORDS else str(fault["msg"])


def _choice(value: object, expected: str) -> str:
    """Return the allowed values; `expected` is pydantic's list, as "'a', 'b' or 'c'"."""
    names = re.findall(r"'([^']*)'", expected)
    return f"is none of {', '.join(names)}{suggestion(str(value), names)}"


def _form(model: type[BaseModel], place: Place, pattern: str) -> str:
    """Return the allowed form of a text."""
    if pattern == ID_PATTERN:
        return f"{NAME_FORM} are allowed, and a letter or digit first"
    field = _group_at(model, place[:-1]).get(str(place[-1]))
    return f"has not the form of this field: {field.description if field else pattern}"


def _field_advice(model: type[BaseModel], place: Place) -> str:
    """Return a close field of the same group, or the group that has this field, or all fields."""
    here, name = _group_at(model, place[:-1]), str(place[-1])
    if near := suggestion(name, list(here)):
        return near
    for group in _paths_of(model, name):
        return f"; it belongs to {group}: write it below that"
    return f"; fields here: {', '.join(here)}"


def _paths_of(model: type[BaseModel], name: str) -> Iterator[str]:
    """Yield each group of a model that has a field of this name."""
    for group, field in model.model_fields.items():
        kind = _model_in(field.annotation)
        if kind is not None and name in kind.model_fields:
            yield group


def _group_at(model: type[BaseModel], place: Place) -> Mapping[str, Any]:
    """Return the fields of the group at a place; none if it is no group."""
    group: type[BaseModel] | None = model
    for part in place:
        if isinstance(part, int):
            continue  # an entry of a list is of the model that its annotation names
        field = group.model_fields.get(part) if group else None
        group = _model_in(field.annotation) if field else None
    return group.model_fields if group else {}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an annotation is, or holds, as `tuple[Model, ...]` does."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(one) for one in typing.get_args(annotation))
    return next((one for one in inner if one is not None), None)


def _path(place: Place) -> str:
    """Return a place as text.

    Example:
        >>> _path(["members", 1, "seed"])
        'members[1].seed'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _shown(value: object) -> str:
    # Aliases of YAML may make a list of billions of entries.
    text = reprlib.repr(value) if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _line_of(node: yaml.Node | None, place: Place) -> int:
    """Return the line (from 1) of the deepest part of `place` that the file holds."""
    line = node.start_mark.line + 1 if node else 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            hit = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if hit is None:
                return line
            line, node = hit[0].start_mark.line + 1, hit[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                return line
            node = node.value[part]
            line = node.start_mark.line + 1
    return line

"""Reading a YAML file of plain values; what is wrong with its form is told with its line.

A value without quotes is what it is in YAML 1.2. PyYAML alone follows YAML 1.1, in which 2e5 is
text, 1:20 is 80, 010 is 8, no is false, and 2026-01-31 is a date.
"""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from manybeam.errors import InvalidSpec

LARGEST_BYTES = 1_000_000
DEEPEST = 20  # groups and lists inside each other; PyYAML crashes at some thousands
MOST_DIGITS = 40  # of a whole number; Python neither reads nor shows one of some thousands

_TAG = "tag:yaml.org,2002:"
_NO_TAG = "a tag (!) is not allowed; give plain values"
# Problems of PyYAML -> our words.
_SYNTAX: Mapping[str, str] = {
    "mapping values are not allowed": "a second ':' in one line, or a wrong indentation; put text "
    "with a colon in quotes",
    "tab character": "a tab; indent with spaces",
    "cannot start any token": "a tab or a special letter; indent with spaces, and put text that "
    "begins with a special letter in quotes",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "expected key": "a line is indented otherwise than its neighbours",
    "expected ':'": "a ':' is missing",
    "end of stream": "a quote or a bracket is not closed",
    "block sequence entries": "a '-' at a wrong place; a list stands below its field",
    "escape character": "a backslash between double quotes; use single quotes",
    "parsing a quoted scalar": "a backslash between double quotes; use single quotes",
    "alphabetic or numeric character": "a text that begins with & or * needs quotes",
    "undefined alias": "a text that begins with * needs quotes",
    "recursive": "a text that begins with * needs quotes",
    "for merging": "<< is not followed by fields",
    "directive": "a text that begins with % needs quotes",
    "a single document": "a second document begins after ---; a file holds one",
    "control characters": "a letter that cannot be printed; remove it",
}


def read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """Return the fields of a file, and its tree with the lines of the values.

    Raises:
        InvalidSpec: it cannot be read, is not YAML, or does not hold fields.
    """
    text = _text_of(path)
    try:
        _check_depth(text)
        loader = _Loader(text)
        tree = loader.get_single_node()
        content = loader.construct_document(tree) if tree else None
    except yaml.YAMLError as error:
        line, words = _syntax_words(error, text)
        raise InvalidSpec(
            f"{path}:{line}: is not YAML: {words}",
            "a YAML text file is needed",
            "correct this line or the one before it",
        ) from error
    if not isinstance(content, dict):
        raise InvalidSpec(
            f"{path}: holds {'nothing' if content is None else 'a list or a text, and no fields'}",
            "a file holds fields, as name: value",
            "see the examples in zoo/ and jobs/",
        )
    return content, tree


def _text_of(path: Path) -> str:
    why, hint = "a YAML text file is needed", "check the path and the permissions of the file"
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            words, hint = f"it is larger than {LARGEST_BYTES:,} bytes", "give another file"
            raise InvalidSpec(f"{path}: cannot be read: {words}", why, hint)
        return content.decode("utf-8-sig")
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise InvalidSpec(f"{path}: cannot be read: {words}", why, hint) from error
    except UnicodeDecodeError as error:
        if b"\0" in content and not content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            raise InvalidSpec(f"{path}: is no text file", why, "give a YAML file") from error
        line = content[: error.start].count(b"\n") + 1
        raise InvalidSpec(
            f"{path}:{line}: cannot be read: a letter of another encoding than UTF-8",
            why,
            "save the file as UTF-8",
        ) from error


def _check_depth(text: str) -> None:
    """Refuse nesting that would crash the parser, which calls itself for each level."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _refused(f"more than {DEEPEST} brackets or groups inside each other", event)


def _syntax_words(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Return the line of a fault in the form of a YAML file, and what is wrong there."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
    said = " ".join(
        str(part) for part in (getattr(error, "context", ""), getattr(error, "problem", "")) if part
    )
    said = said or str(error)
    words = next((ours for theirs, ours in _SYNTAX.items() if theirs in said), said)
    return line, " ".join(words.split())


class _Loader(yaml.CSafeLoader):
    """Text, numbers, true and false, nothing, lists and groups; no other types."""


# Not those of PyYAML, which `add_implicit_resolver` and `add_constructor` would extend.
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Return a mapping; a field given twice is an error, although YAML would take the last."""
    seen: set[str] = set()
    for key, value in node.value:
        if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
            raise _refused("the name of a field is no text; put it in quotes", key)
        if key.value in seen:
            raise _refused(f"field {key.value!r} is given twice", key)
        if key.tag == f"{_TAG}merge" and not isinstance(value, yaml.MappingNode):
            raise _refused("<< is not followed by fields", value)  # a list of them may explode
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _scalar(
    form: re.Pattern[str], read: Callable[[str], Any]
) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    """Return the function that reads a value of one form."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        if not form.match(text):
            raise _refused(_NO_TAG, node)
        try:
            return read(text)
        except ValueError as error:
            raise _refused("a number with too many digits", node) from error

    return construct


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


def _float(text: str) -> float:
    return float(re.sub(r"\.(?=[in])", "", text.lower()))


def _tagged(loader: _Loader, node: yaml.Node) -> None:
    del loader
    raise _refused(_NO_TAG, node)


def _refused(words: str, where: Any) -> yaml.YAMLError:
    """Return a fault at the beginning of a node or an event."""
    return yaml.constructor.ConstructorError(None, None, words, where.start_mark)


_DIGITS = list("-+0123456789")
# Type, its form without quotes, the first letters of it, and how it is read.
_PLAIN: tuple[tuple[str, str, list[str], Callable[[str], Any]], ...] = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda _: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text[0] in "tT"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _DIGITS, _whole),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*_DIGITS, "."],
        _float,
    ),
    ("merge", "<<", ["<"], str),
)
_Loader.add_constructor(None, _tagged)
_Loader.add_constructor(f"{_TAG}map", _mapping)
_Loader.add_constructor(f"{_TAG}seq", _sequence)
_Loader.add_constructor(f"{_TAG}str", _scalar(re.compile(""), str))
for _name, _values, _first, _read in _PLAIN:
    _form = re.compile(rf"(?:{_values})\Z")
    _Loader.add_implicit_resolver(_TAG + _name, _form, _first)
    _Loader.add_constructor(_TAG + _name, _scalar(_form, _read))

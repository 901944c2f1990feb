"""Reading YAML files: all mistakes are listed at once, with line, field, value and remedy.

A `Library` is the folder of conditions, policies and recipes that a job uses: `MANYBEAM_ZOO`, or
the folder `zoo` beside the folder of the job.
"""

import difflib
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from manybeam.errors import InvalidSpec, NotFound, UnknownCondition
from manybeam.spec.imaging import Condition, Policy
from manybeam.spec.job import Job
from manybeam.spec.recipe import Recipe

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.CSafeLoader):
    """YAML in which 2e5 is a number, as in YAML 1.2; in PyYAML's YAML 1.1 it is text."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Return a mapping; a field given twice is an error, although YAML would take the last."""
    names = [key.value for key, _ in node.value]
    for (key, _), name in zip(node.value, names, strict=True):
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"field {name!r} is given twice", key.start_mark
            )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)

# The type of a fault in pydantic, and our text about what is allowed.
_ALLOWED = {
    "missing": "this field is required",
    "extra_forbidden": "no field of that name",
    "string_pattern_mismatch": "lower-case letters, digits, dot, dash and underscore",
}


def load_condition(path: Path | str) -> Condition:
    """Read one condition; raises InvalidSpec with all mistakes."""
    return _load(Path(path), Condition)


def load_policy(path: Path | str) -> Policy:
    """Read one policy; raises InvalidSpec with all mistakes."""
    return _load(Path(path), Policy)


def load_recipe(path: Path | str) -> Recipe:
    """Read one recipe; raises InvalidSpec with all mistakes."""
    return _load(Path(path), Recipe)


def load_job(path: Path | str) -> Job:
    """Read one job; raises InvalidSpec with all mistakes."""
    return _load(Path(path), Job)


@dataclass(frozen=True)
class Library:
    """The conditions, policies and recipes of one facility: a folder shaped like `zoo/`."""

    folder: Path

    @classmethod
    def beside(cls, job_path: Path, fallback: Path) -> "Library":
        """Return the library of a job file: `zoo` beside its folder, else the fallback."""
        near = job_path.resolve().parent.parent / "zoo"
        return cls(near if near.is_dir() else fallback)

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """Every condition by id."""
        return self._all("conditions", Condition)

    @cached_property
    def policies(self) -> dict[str, Policy]:
        """Every policy by id."""
        return self._all("policies", Policy)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """Every recipe by id."""
        return self._all("recipes", Recipe)

    def condition(self, name: str) -> Condition:
        """Return one condition; raises UnknownCondition with the nearest ids."""
        if name not in self.conditions:
            raise UnknownCondition(*_unknown("condition", name, self.folder, self.conditions))
        return self.conditions[name]

    def matching(self, patterns: tuple[str, ...]) -> list[Condition]:
        """Return the conditions whose ids match any pattern, in order of id.

        Raises:
            UnknownCondition: a pattern matches nothing.
        """
        found: dict[str, Condition] = {}
        for pattern in patterns:
            hits = fnmatch.filter(self.conditions, pattern)
            if not hits:
                self.condition(pattern)
            found.update((name, self.conditions[name]) for name in hits)
        return [found[name] for name in sorted(found)]

    def policy(self, name: str) -> Policy:
        """Return one policy; raises NotFound with the nearest ids."""
        if name not in self.policies:
            raise NotFound(*_unknown("policy", name, self.folder, self.policies))
        return self.policies[name]

    def recipe(self, name: str) -> Recipe:
        """Return one recipe; raises NotFound with the nearest ids."""
        if name not in self.recipes:
            raise NotFound(*_unknown("recipe", name, self.folder, self.recipes))
        return self.recipes[name]

    def _all(self, kind: str, model: type[M]) -> dict[str, M]:
        """Read every file of one kind; the mistakes of all files are reported together."""
        found: dict[str, M] = {}
        faults: list[str] = []
        for path in sorted((self.folder / kind).glob("*.yaml")):
            try:
                item = _load(path, model)
            except InvalidSpec as error:
                faults.append(error.what)
                continue
            name = str(getattr(item, "id", path.stem))
            if name in found:
                faults.append(f"{path}: id {name!r} is used by another file of {path.parent}")
            found[name] = item
        if faults:
            raise InvalidSpec("\n".join(faults), "", "correct the lines listed above")
        return found


def _unknown(
    kind: str, name: str, folder: Path, known: Mapping[str, object]
) -> tuple[str, str, str]:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    names = ", ".join(sorted(known)) or "none"
    hint = f"similar names: {', '.join(near)}" if near else f"names in the folder: {names}"
    return f"there is no {kind} {name!r}", f"searched in {folder}", hint


def _load(path: Path, model: type[M]) -> M:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(
            f"{path}: cannot be read: {error}",
            "a YAML text file is needed",
            "check the path and the permissions of the file",
        ) from error
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        content = loader.construct_document(tree) if tree else None
    except yaml.YAMLError as error:
        raise InvalidSpec(
            f"{path}: is not YAML: {error}", "a YAML text file is needed", "check the indentation"
        ) from error
    if not isinstance(content, dict):
        raise InvalidSpec(
            f"{path}: holds {type(content).__name__}",
            "a file holds fields, as name: value",
            "see the examples in zoo/ and jobs/",
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = [_fault(path, model, fault, tree) for fault in error.errors()]
        raise InvalidSpec("\n".join(faults), "", "correct the lines listed above") from error


def _fault(path: Path, model: type[BaseModel], fault: Any, tree: yaml.Node | None) -> str:
    """Return one line: file:line, path of the field, value, what is allowed, what to do."""
    place = list(fault["loc"])
    field = ".".join(str(part) for part in place) or model.__name__
    seen = "" if fault["type"] == "missing" or not place else f" {fault['input']!r}"
    allowed = _ALLOWED.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    advice = _nearest_field(model, place) if fault["type"] == "extra_forbidden" else ""
    return f"{path}:{_line_of(tree, place)}: {field}:{seen[:120]} {allowed}{advice}"


def _nearest_field(model: type[BaseModel], place: list[str | int]) -> str:
    """Return "; did you mean ..." with a similar field of the same group."""
    group: Any = model
    for part in place[:-1]:
        field = getattr(group, "model_fields", {}).get(part)
        group = getattr(field, "annotation", None) if field else group
    names = list(getattr(group, "model_fields", {}))
    near = difflib.get_close_matches(str(place[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; fields here: {', '.join(names)}"


def _line_of(node: yaml.Node | None, place: list[str | int]) -> int:
    """Return the line (from 1) of the deepest part of `place` that the file holds."""
    line = node.start_mark.line + 1 if node else 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            hit = next(((k, v) for k, v in node.value if k.value == part), None)
            if hit is None:
                return line
            line, node = hit[0].start_mark.line + 1, hit[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line

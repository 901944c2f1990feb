"""Reading YAML files: all mistakes are listed at once, with line, field, value and remedy.

A `Library` is the folder of conditions, policies and recipes that a job uses: `MANYBEAM_ZOO`, or
the folder `zoo` beside the folder of the job.
"""

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from manybeam.errors import InvalidSpec, NotFound, UnknownCondition
from manybeam.spec.faults import CLOSE, fault_lines
from manybeam.spec.imaging import Condition, Policy
from manybeam.spec.job import Job
from manybeam.spec.plain_yaml import read_yaml
from manybeam.spec.recipe import Recipe

YAML = (".yaml", ".yml")
M = TypeVar("M", bound=BaseModel)


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


_LISTING = {
    "condition": "manybeam conditions ls",
    "policy": "manybeam policies ls",
    "recipe": "manybeam recipes ls",
}
KINDS: Mapping[str, type[BaseModel]] = {
    "conditions": Condition,
    "policies": Policy,
    "recipes": Recipe,
}


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
        """Read every file of one kind; the mistakes of all files are reported together.

        If there is a mistake, those of the other kinds are reported too.
        """
        found, faults = self._read(kind, model)
        if faults:
            others = ((name, one) for name, one in KINDS.items() if name != kind)
            faults += [fault for name, one in others for fault in self._read(name, one)[1]]
            raise InvalidSpec("\n".join(faults), "", "correct the lines listed above")
        return found

    def faults(self) -> list[str]:
        """Return a line for every mistake in the files of the library."""
        return [fault for kind, model in KINDS.items() for fault in self._read(kind, model)[1]]

    def _read(self, kind: str, model: type[M]) -> tuple[dict[str, M], list[str]]:
        """Return the items of one kind by id, and a line for every mistake."""
        found: dict[str, M] = {}
        faults: list[str] = []
        for path in yaml_files(self.folder / kind):
            try:
                item = _load(path, model)
            except InvalidSpec as error:
                faults.append(error.what)
                continue
            name = str(getattr(item, "id", path.stem))
            if name in found:
                faults.append(f"{path}: id {name!r} is used by another file of {path.parent}")
            found[name] = item
        return found, faults


def yaml_files(folder: Path) -> list[Path]:
    """Return the YAML files of a folder, in order; none if there is no such folder."""
    return sorted(path for path in folder.glob("*.y*ml") if path.suffix in YAML)


def load_project(job_path: Path, fallback: Path) -> tuple[Job, Library]:
    """Return a job and its library; the mistakes of all their files are reported together.

    Args:
        job_path: the job.
        fallback: folder of the library if there is none beside the job.

    Raises:
        InvalidSpec: with all mistakes.
    """
    library = Library.beside(job_path, fallback)
    try:
        job = load_job(job_path)
    except InvalidSpec as error:
        if not (faults := library.faults()):
            raise
        raise InvalidSpec(
            "\n".join([error.what, *faults]), error.why, "correct the lines listed above"
        ) from error
    if faults := library.faults():
        raise InvalidSpec("\n".join(faults), "", "correct the lines listed above")
    return job, library


def _unknown(
    kind: str, name: str, folder: Path, known: Mapping[str, object]
) -> tuple[str, str, str]:
    near = difflib.get_close_matches(name, known, n=3, cutoff=CLOSE)
    hint = f"similar names: {', '.join(near)}" if near else f"{_LISTING[kind]} lists all names"
    if not folder.is_dir():
        return (
            f"there is no {kind} {name!r}",
            f"there is no folder {folder}",
            "correct MANYBEAM_ZOO; or manybeam init DIR writes conditions, policies and recipes",
        )
    return f"there is no {kind} {name!r}", f"searched in {folder}", hint


def _load(path: Path, model: type[M]) -> M:
    content, tree = read_yaml(path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = fault_lines(path, model, error, tree)
        raise InvalidSpec("\n".join(faults), "", "correct the lines listed above") from error

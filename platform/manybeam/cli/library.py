"""`manybeam init`, and lists of the conditions, policies and recipes that commands name by id."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say, settled
from manybeam.errors import NotFound

if TYPE_CHECKING:
    from manybeam.spec import Library
    from manybeam.spec.imaging import Imaging, Quantity
    from manybeam.spec.recipe import Recipe

PatternArgument = Annotated[str, typer.Argument(help="Only ids like this: graphene, mos2-*.")]


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write into; made if it is new.")],
) -> None:
    """Copy the project's conditions, policies, recipes and jobs into a folder, to start from.

    Files that are there already are never overwritten. Without such a folder, the commands use
    the copy in the package.

    Example: manybeam init lab
    """
    from manybeam.spec.starter import copy_starter

    counts = copy_starter(folder)
    say(f"{folder}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    say(f"next: cd {folder}, then manybeam conditions ls, or manybeam train jobs/quickstart.yaml")


def _app(kind: str, text: str) -> typer.Typer:
    return typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help=f"{text}\n\nExample: manybeam {kind} ls",
    )


conditions = _app("conditions", "Conditions: how frames were recorded or simulated, as numbers.")
policies = _app("policies", "Policies: from which ranges training frames are drawn.")
recipes = _app("recipes", "Recipes: network, training and members of an ensemble.")


@conditions.command("ls")
def list_conditions(pattern: PatternArgument = "", *, form: FormOption = Form.auto) -> None:
    """List the conditions of the zoo folder.

    Example: manybeam conditions ls graphene
    """
    library = _library()
    _list("condition", library.conditions, pattern, form, library)


@policies.command("ls")
def list_policies(pattern: PatternArgument = "", *, form: FormOption = Form.auto) -> None:
    """List the policies of the zoo folder; `--policy` names one of them.

    Example: manybeam policies ls graphene
    """
    library = _library()
    _list("policy", library.policies, pattern, form, library)


@recipes.command("ls")
def list_recipes(pattern: PatternArgument = "", *, form: FormOption = Form.auto) -> None:
    """List the recipes of the zoo folder.

    Example: manybeam recipes ls
    """
    library = _library()
    _list("recipe", library.recipes, pattern, form, library)


@conditions.command("show")
def show_condition(
    name: Annotated[str, typer.Argument(help="Id of a condition.")], *, form: FormOption = Form.auto
) -> None:
    """Print every known number of a condition, with its unit.

    Example: manybeam conditions show graphene-60kv-nominal
    """
    _show(_library().condition(name), form)


@policies.command("show")
def show_policy(
    name: Annotated[str, typer.Argument(help="Id of a policy.")], *, form: FormOption = Form.auto
) -> None:
    """Print every known number or range of a policy, with its unit.

    Example: manybeam policies show graphene-general
    """
    _show(_library().policy(name), form)


def _library() -> "Library":
    from manybeam.settings import settings
    from manybeam.spec import Library

    return Library(settings().zoo)


def _list(
    kind: str, known: Mapping[str, Any], pattern: str, form: Form, library: "Library"
) -> None:
    """Print one row for each file whose id holds the pattern, or matches it as a glob."""
    import fnmatch

    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    ids = sorted(fnmatch.filter(known, glob))
    if not ids:
        raise NotFound(
            f"no {kind} is like {pattern!r}" if known else f"there is no {kind}",
            f"searched in {library.folder}"
            if library.folder.is_dir()
            else f"there is no folder {library.folder}",
            "leave the pattern out to see all"
            if known
            else "manybeam init DIR writes the project's own; or set MANYBEAM_ZOO",
        )
    row = _recipe_row if kind == "recipe" else _imaging_row
    emit([row(known[name], form) for name in ids], form, title=str(library.folder))


def _imaging_row(one: "Imaging", form: Form) -> dict[str, object]:
    return {
        "id": one.id,
        "title": one.title,
        "beam_kv": _shown(one.optics.beam_kv, form),
        "pixel_size_pm": _shown(one.scan.pixel_size_pm, form),
        "dose_e_per_a2": _shown(one.dose_e_per_a2, form),
    }


def _recipe_row(one: "Recipe", form: Form) -> dict[str, object]:
    del form  # a recipe has no ranges
    return {
        "id": one.id,
        "title": one.title,
        "members": len(one.members),
        "steps": one.training.steps,
        "policies": sorted({member.policy for member in one.members}),
    }


def _show(one: "Imaging", form: Form) -> None:
    """Print the known quantities with their units."""
    from manybeam.spec.imaging import quantity_bounds

    say(f"{one.id}: {one.title}")
    say(f"{one.modality}, {one.sample.material or one.sample.structure}; version {one.version}")
    units = {path: unit for path, (_, _, unit) in quantity_bounds().items()}
    known = [(path, value) for path, value in one.quantities() if value is not None]
    rows = [
        {"quantity": path, "value": _shown(value, form), "unit": units[path]}
        for path, value in known
    ]
    emit(rows, form)


def _shown(value: "Quantity", form: Form) -> object:
    """Return a number or [low, high]; on a terminal, words: `10 to 26`."""
    from manybeam.spec.imaging import Range

    ends = [value.low, value.high] if isinstance(value, Range) else value
    if settled(form) is not Form.table:
        return ends
    if isinstance(ends, list):
        return " to ".join(f"{end:g}" for end in ends)
    return "unknown" if ends is None else f"{ends:g}"

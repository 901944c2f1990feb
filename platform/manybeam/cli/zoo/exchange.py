"""`manybeam zoo export` and `zoo import`: ensembles as files for other programs and zoos."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress


class PackageForm(StrEnum):
    """Formats of a package."""

    bioimageio = "bioimageio"
    onnx = "onnx"
    safetensors = "safetensors"


def export(
    ref: Annotated[str, typer.Argument(help="name, name@serving, name@3 or name@3/07.")],
    *,
    package: Annotated[
        PackageForm,
        typer.Option("--format", help="bioimageio (a .zip), onnx (a graph) or safetensors."),
    ] = PackageForm.bioimageio,
    out: Annotated[Path | None, typer.Option(help="File or folder to write.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file, or the folder of an export.")
    ] = False,
    author: Annotated[list[str] | None, typer.Option(help="Name; may be repeated.")] = None,
    licence: Annotated[
        str,
        typer.Option(
            "--license",
            "--licence",
            help="SPDX identifier of the licence of weights and card; if left out, not stated.",
        ),
    ] = "",
    tag: Annotated[
        list[str] | None, typer.Option(help="Keyword for searches; may be repeated.")
    ] = None,
    form: FormOption = Form.auto,
) -> None:
    """Write an ensemble to a file or folder. The result is checked.

    A bioimage.io package holds the ensemble as one ONNX graph, which other programs can run. It
    also holds the members, recipes, scores and the calibration set, so that another zoo can
    import exactly the same ensemble. The format onnx writes only the graph. The format
    safetensors writes a folder and needs no additional Python packages.

    Example: manybeam zoo export graphene@serving --author "Ada Lovelace" --out graphene.zip
    """
    with Progress(f"export {ref}"):
        from manybeam.db.owner import login
        from manybeam.zoo.exchange import Credit
        from manybeam.zoo.exchange import export as write
        from manybeam.zoo.exchange.unpack import sha256_of_file
        from manybeam.zoo.registry import Zoo

        credit = Credit(
            authors=tuple(author or [login()]),
            licence=licence,
            tags=tuple(tag or ()),
        )
        path = write(Zoo(), ref, out, form=package.value, overwrite=overwrite, credit=credit)
    if package is PackageForm.bioimageio:
        say(f"author: {', '.join(credit.authors)}; to change it, give --author")
    if not licence and package is not PackageForm.onnx:
        say("no licence is stated, so others may not use it; to state one: --license CC-BY-4.0")
    digest = sha256_of_file(path) if path.is_file() else ""
    emit([{"path": str(path), "format": package.value, "ref": ref, "sha256": digest}], form)


def import_(
    path: Annotated[Path, typer.Argument(help="Package, folder, or AtomAI .tar.")],
    *,
    name: Annotated[str, typer.Option(help="Name of the ensemble in this zoo.")],
    alias: Annotated[str | None, typer.Option(help="serving or candidate.")] = None,
    pixel_size_pm: Annotated[
        float | None, typer.Option(help="For an AtomAI file: pixel size in its training [pm].")
    ] = None,
    mask_radius_pm: Annotated[
        float, typer.Option(help="For an AtomAI file: radius of an atom in its masks [pm].")
    ] = 42.0,
    elements: Annotated[
        str, typer.Option(help="For an AtomAI file: element of each channel, as C,Si.")
    ] = "",
    form: FormOption = Form.auto,
) -> None:
    """Register the ensemble of a package as the next version of a name.

    Every file is checked against its digest. No code in the package is run, and pickles are never
    opened. Scores keep their dates. The calibration set is kept if it belongs to exactly these
    weights.

    Example: manybeam zoo import graphene.zip --name graphene-imported --alias candidate
    """
    with Progress(f"import {path}"):
        from manybeam.zoo.exchange import AtomAIFrames
        from manybeam.zoo.exchange import import_ as read
        from manybeam.zoo.registry import Zoo

        frames = (
            AtomAIFrames(pixel_size_pm, mask_radius_pm, _numbers(elements))
            if pixel_size_pm is not None
            else None
        )
        record = read(Zoo(), path, name, alias=alias, frames=frames, say=say)
    row = {
        "ref": record.ref,
        "aliases": list(record.aliases),
        "members": record.member_count,
        "failed": len(record.failed),
        "format": record.job["form"],
        "sha256": record.sha256,
    }
    emit([row], form, title="Imported")


def _numbers(text: str) -> tuple[int, ...]:
    from manybeam.errors import InvalidInput
    from manybeam.spec.elements import atomic_number_of

    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tuple(atomic_number_of(part) or int(part) for part in parts)
    except ValueError as error:
        raise InvalidInput(
            f"elements: {text!r} is no list of elements",
            "symbols or atomic numbers, separated by commas",
            "--elements C,Si",
        ) from error

"""`manybeam zoo export` and `zoo import`: ensembles as files that others read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say


class PackageForm(StrEnum):
    """Forms of a package."""

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
    author: Annotated[list[str] | None, typer.Option(help="Who made it; may be repeated.")] = None,
    licence: Annotated[
        str, typer.Option(help="SPDX identifier of the licence of weights and card.")
    ] = "CC-BY-4.0",
    tag: Annotated[
        list[str] | None, typer.Option(help="Word to find it by; may be repeated.")
    ] = None,
    form: FormOption = Form.auto,
) -> None:
    """Write an ensemble to a file or folder: whole, checked, or not at all.

    A bioimage.io package holds the ensemble as one ONNX graph that others run, and its members,
    recipes, scores and rehearsal, so that another zoo imports the very same. ONNX is the graph
    alone. A safetensors folder needs no package that Manybeam itself does not.

    Example: manybeam zoo export graphene@serving --author "Ada Lovelace" --out graphene.zip
    """
    from manybeam.zoo.audit import whoami
    from manybeam.zoo.exchange import Credit
    from manybeam.zoo.exchange import export as write
    from manybeam.zoo.exchange.unpack import sha256_of_file
    from manybeam.zoo.registry import Zoo

    credit = Credit(
        authors=tuple(author or [whoami().partition("@")[0]]),
        licence=licence,
        tags=tuple(tag or ()),
    )
    path = write(Zoo(), ref, out, form=package.value, overwrite=overwrite, credit=credit)
    if package is PackageForm.bioimageio:
        say(
            f"by {', '.join(credit.authors)}, under {licence}: --author and --licence say otherwise"
        )
    digest = sha256_of_file(path) if path.is_file() else ""
    emit([{"path": str(path), "format": package.value, "ref": ref, "sha256": digest}], form)


def import_(
    path: Annotated[Path, typer.Argument(help="Package, folder, or AtomAI .tar.")],
    *,
    name: Annotated[str, typer.Option(help="Name of the ensemble here.")],
    alias: Annotated[str | None, typer.Option(help="serving or candidate.")] = None,
    pixel_size_pm: Annotated[
        float | None, typer.Option(help="Of an AtomAI file: pixel size it was trained at [pm].")
    ] = None,
    mask_radius_pm: Annotated[
        float, typer.Option(help="Of an AtomAI file: radius of an atom in its masks [pm].")
    ] = 42.0,
    elements: Annotated[
        str, typer.Option(help="Of an AtomAI file: atomic number of each channel, as 6,14.")
    ] = "",
    form: FormOption = Form.auto,
) -> None:
    """Register what a package holds as the next version of an ensemble, all or nothing.

    Every file is checked against its digest, nothing in it is run, and a pickle is never opened.
    Scores keep the dates they were taken at. A rehearsal is kept if it is of exactly these weights.

    Example: manybeam zoo import graphene.zip --name graphene-guest --alias candidate
    """
    from manybeam.zoo.exchange import AtomAIFrames
    from manybeam.zoo.exchange import import_ as read
    from manybeam.zoo.registry import Zoo

    frames = (
        AtomAIFrames(pixel_size_pm, mask_radius_pm, _numbers(elements))
        if pixel_size_pm is not None
        else None
    )
    record = read(Zoo(), path, name, alias=alias, frames=frames, said=say)
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

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InvalidInput(
            f"elements: {text!r}", "atomic numbers with commas between, as 6,14", ""
        ) from error

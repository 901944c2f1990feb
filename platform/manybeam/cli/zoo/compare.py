"""`manybeam zoo diff` compares two versions; `manybeam zoo card` writes a model card."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.cli.terminal.output import NOT_MEASURED, Form, FormOption, emit, first_sign, say
from manybeam.cli.terminal.targets import PICTURES, check_target
from manybeam.data.disk import write_files
from manybeam.errors import NotFound

if TYPE_CHECKING:
    from manybeam.zoo.compare import Difference
    from manybeam.zoo.matrix import Matrix

CARD_FORMS = (".html", ".md")
COLUMNS = ("member", "condition", "old", "new", "difference", "interval", "frames", "verdict")
RefArgument = Annotated[str, typer.Argument(help="name, name@candidate, name@3 or name@3/07.")]


def diff(
    old: RefArgument,
    new: RefArgument,
    *,
    score: Annotated[
        str, typer.Option(help="Score; f1, precision and recall have a significance test.")
    ] = "f1",
    members: Annotated[
        bool, typer.Option("--members", help="Also compare members of the same index.")
    ] = False,
    png: Annotated[
        Path | None, typer.Option(help="Draw the differences of the ensembles: .png, .svg, .pdf.")
    ] = None,
    form: FormOption = Form.auto,
) -> None:
    """Show on which conditions the second version is better or worse than the first.

    Versions measured on the same frames are compared frame by frame. A difference is significant
    if its 95 % interval does not contain 0. "taken alone" means: it is not significant after a
    correction for the number of conditions (Benjamini-Hochberg).

    Example: manybeam zoo diff graphene@serving graphene@candidate
    """
    from manybeam.zoo.compare import tally
    from manybeam.zoo.registry import Zoo

    check_target(png, PICTURES)
    zoo = Zoo()
    first, second = zoo.resolve(old), zoo.resolve(new)
    matrices = (zoo.matrix(first.ref), zoo.matrix(second.ref))
    _check_score(score, matrices)
    if first.ref == second.ref:
        say(f"{old} and {new} are both {first.ref}")
    rows = (first.subject, second.subject)
    found = _differences(matrices, rows, score, members=members)
    if png is not None:
        _draw([one for one in found if one.member == rows[1]], (first.ref, second.ref), png)
    shown = COLUMNS if members else COLUMNS[1:]
    title = f"{score}: {first.ref} (old), {second.ref} (new)"
    empty = "neither version is measured yet; manybeam evaluate measures them"
    table = [_as_row(one) for one in found]
    emit(table, form, title=title, columns=shown, empty=empty, missing=NOT_MEASURED)
    say(f"{second.ref} against {first.ref}, {score}: {tally(found).words}")
    if first.ref != second.ref:
        _say_gaps(found, first.ref, second.ref)


def card(
    ref: RefArgument,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="FILE.html or FILE.md; if left out, Markdown to the screen."),
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", "--licence", help="Licence of the weights, for the card.")
    ] = "",
) -> None:
    """Write the model card of a version: its members, its scores, and where it fails.

    Example: manybeam zoo card graphene@serving --out graphene.html
    """
    from urllib.parse import quote

    from manybeam.settings import settings
    from manybeam.zoo.registry import Zoo
    from manybeam.zoo.reports.cards import card_html, card_markdown, card_picture, note_for

    check_target(out, CARD_FORMS)
    zoo = Zoo()
    record = zoo.resolve(ref)
    matrix = zoo.matrix(record.ref)
    note = note_for(record, settings().zoo, matrix.conditions)
    if out is None:
        first_sign.end()
        typer.echo(card_markdown(record, matrix, note=note, licence=licence), nl=False)
        return
    if out.suffix.lower() == ".html":
        write_files({out: card_html(record, matrix, note=note, licence=licence).encode()})
    else:
        picture = out.with_name(f"{out.stem}-matrix.png")
        pictures = {picture: card_picture(matrix)} if len(matrix) else {}
        link = quote(picture.name) if pictures else ""
        text = card_markdown(record, matrix, note=note, licence=licence, picture=link)
        write_files({**pictures, out: text.encode()})
    say(f"card of {record.ref}: {out}")


def _differences(
    matrices: "tuple[Matrix, Matrix]", rows: tuple[int, int], score: str, *, members: bool
) -> "list[Difference]":
    from manybeam.zoo.compare import compare, compare_members

    if members:
        return compare_members(*matrices, key=score)
    return compare(*matrices, key=score, member=rows[0], new_member=rows[1])


def _as_row(one: "Difference") -> dict[str, object]:
    from manybeam.zoo.matrix import member_label

    interval = f"{one.low:+.3f} to {one.high:+.3f}" if one.low is not None else "no test"
    return {
        "condition": one.condition,
        "member": member_label(one.member),
        "old": one.old,
        "new": one.new,
        "difference": one.difference,
        "low": one.low,
        "high": one.high,
        "interval": interval,
        "is_significant": one.is_significant,
        "p_value": one.p_value,
        "p_adjusted": one.p_adjusted,
        "frames": one.frame_count,
        "verdict": one.words,
        "condition_digest": one.condition_digest,
    }


def _say_gaps(found: "list[Difference]", old: str, new: str) -> None:
    """Print the commands that measure the missing scores."""
    from manybeam.zoo.compare import NUMBERS_CHANGED

    gaps = {
        old: [one for one in found if one.old is None or one.reason == NUMBERS_CHANGED],
        new: [one for one in found if one.new is None or one.reason == NUMBERS_CHANGED],
    }
    for ref, missing in gaps.items():
        if missing:
            command = f"manybeam evaluate {ref} --conditions '{missing[0].condition}'"
            count = f"{len(missing)} of {len(found)} conditions"
            say(f"{ref} has no comparable scores on {count}; try: {command}")


def _check_score(score: str, matrices: "tuple[Matrix, Matrix]") -> None:
    known = sorted({key for matrix in matrices for key in matrix.keys})
    if known and score not in known:
        raise NotFound(
            f"there is no score {score!r}",
            "a recorded score is needed",
            f"recorded: {', '.join(known)}",
        )


def _draw(found: "list[Difference]", names: tuple[str, str], path: Path) -> None:
    from manybeam.zoo.reports.plots import difference_figure, drawn

    write_files({path: drawn(difference_figure(found, names), path.suffix[1:].lower(), 120)})
    say(f"differences drawn: {path}")

"""`manybeam zoo`: which ensembles there are, what they are made of, how well each member does."""

from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.cli.output import Form, FormOption, emit

if TYPE_CHECKING:
    from manybeam.zoo.records import Record

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The zoo: ensembles, their members and their scores.\n\n"
    "Example: manybeam zoo matrix graphene",
)
RefArgument = Annotated[
    str, typer.Argument(help="name, name@serving, name@candidate, name@3 or name@3/07.")
]


@app.command("ls")
def list_all(*, form: FormOption = Form.auto) -> None:
    """List every version of every ensemble.

    Example: manybeam zoo ls -o csv
    """
    from manybeam.zoo.registry import Zoo

    emit([as_row(record) for record in Zoo().ls()], form, title="Ensembles")


@app.command()
def show(ref: RefArgument, *, form: FormOption = Form.auto) -> None:
    """Show the members of one version: seed, policy, digest of the weights.

    Example: manybeam zoo show graphene@serving
    """
    from manybeam.zoo.registry import Zoo

    record = Zoo().resolve(ref)
    rows = [
        {
            "member": f"{record.name}@{record.version}/{member.index:02d}",
            "seed": member.seed,
            "policy": member.policy,
            "parent": member.parent,
            "weights": member.sha256[:12],
        }
        for member in record.members
    ]
    emit(rows, form, title=f"{record.name}@{record.version} {' '.join(record.aliases)}".strip())


@app.command()
def matrix(
    ref: RefArgument,
    *,
    score: Annotated[
        str, typer.Option(help="f1, precision, recall, rmse_pm, ece, seconds.")
    ] = "f1",
    form: FormOption = Form.auto,
) -> None:
    """Show how well each member does on each imaging condition it was measured on.

    Example: manybeam zoo matrix graphene --score rmse_pm
    """
    from manybeam.errors import NotFound
    from manybeam.zoo.matrix import member_label
    from manybeam.zoo.registry import Zoo

    table = Zoo().matrix(ref)
    if table.keys and score not in table.keys:
        raise NotFound(f"no score {score!r}", "", f"recorded: {', '.join(table.keys)}")
    rows = [
        {
            "condition": condition,
            **{member_label(m): table.value(m, condition, score) for m in table.scored},
        }
        for condition in table.conditions
    ]
    emit(rows, form, title=f"{score} of {ref}")


def as_row(record: "Record") -> dict[str, object]:
    """Return one version as a row of a table."""
    return {
        "ref": record.ref,
        "aliases": list(record.aliases),
        "members": record.member_count,
        "failed": len(record.failed),
        "created": record.created,
    }

"""`manybeam zoo ls | show | matrix`: list ensembles, their members and their scores."""

from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.cli.terminal.output import NOT_MEASURED, Form, FormOption, emit, say, settled
from manybeam.cli.zoo import compare as zoo_compare
from manybeam.cli.zoo import exchange as zoo_exchange
from manybeam.cli.zoo import life as zoo_life
from manybeam.cli.zoo import trust as zoo_trust
from manybeam.errors import InvalidInput, NotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from manybeam.zoo.catalogue import Catalogue, Query, Row
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The zoo: ensembles, their members and their scores.\n\n"
    "Example: manybeam zoo matrix graphene",
)
app.command("test")(zoo_trust.self_test)
app.command()(zoo_exchange.export)
app.command("import")(zoo_exchange.import_)
app.command()(zoo_life.promote)
app.command()(zoo_life.rollback)
app.command()(zoo_life.archive)
app.command()(zoo_life.unarchive)
app.command()(zoo_life.gc)
app.command()(zoo_life.audit)
app.command()(zoo_trust.verify)
app.command()(zoo_trust.sign)
app.command()(zoo_trust.keygen)
app.command()(zoo_trust.lineage)
app.command("diff")(zoo_compare.diff)
app.command("card")(zoo_compare.card)
RefArgument = Annotated[
    str, typer.Argument(help="name, name@serving, name@candidate, name@3 or name@3/07.")
]


@app.command("ls")
def list_all(
    text: Annotated[
        list[str] | None, typer.Argument(help="Search words: name, structure, microscope, ...")
    ] = None,
    *,
    condition: Annotated[
        str,
        typer.Option("--condition", "-c", help="Rank by the score on a condition: id or glob."),
    ] = "",
    where: Annotated[
        list[str] | None,
        typer.Option(help="Rank by conditions in a range: dose_e_per_a2<=200000, or NAME:1..5."),
    ] = None,
    members: Annotated[
        bool, typer.Option(help="One row for each member, not for each version.")
    ] = False,
    status: Annotated[
        list[str] | None, typer.Option(help="serving, candidate, archived or none.")
    ] = None,
    score: Annotated[str, typer.Option(help="A recorded score: f1, rmse_pm, ece, ...")] = "f1",
    order: Annotated[
        str,
        typer.Option(help="score, name or created; with a minus, the best or newest is first."),
    ] = "-score",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Largest number of rows.")] = 50,
    form: FormOption = Form.auto,
) -> None:
    """Find ensembles, best first: by words, by imaging condition, by a range of conditions.

    F1 is that of all members together. "selected" are the members chosen for each frame, and
    "best_member" is the best one of each condition, known only afterwards; --score selected_f1
    ranks by the selected ones.

    Versions are compared on conditions that all of them were measured on. Versions that were not
    measured there come later; "coverage" is on how many conditions a version was measured.
    Words such as low dose, high kV, noisy, blurred, dirty or coarse rank by the conditions they
    describe.

    Archived versions are shown with --status archived. If the zoo does not answer, the last
    state on this machine is shown, with its age.

    Example: manybeam zoo ls graphene HAADF "60 kV" --where "dose_e_per_a2<=200000"
    """
    from manybeam.zoo.catalogue import Catalogue, Query
    from manybeam.zoo.registry import Zoo

    catalogue = Catalogue(Zoo())
    _refresh(catalogue)
    query = Query(
        text=" ".join(text or ()),
        kind="members" if members else "ensembles",
        status=tuple(status or ("serving", "candidate", "none")),
        condition=condition,
        ranges=_ranges(where or ()),
        score=score,
        order=order,
        page_size=limit,
    )
    page = catalogue.find(query)
    for phrase in query.phrases:
        say(f"{phrase.name}: {phrase.meaning}; ranked by {len(page.asked)} conditions")
    if condition and page.conditions and not page.asked:
        raise NotFound(
            f"no version was measured on the condition {condition!r}",
            "an id or a glob over ids is needed",
            f"measured: {', '.join(dict.fromkeys(page.conditions))}",
        )
    known = catalogue.score_names()
    if known and score not in known:
        raise _no_score(score, known)
    rows = [_found(row, score) for row in page.rows]
    columns, empty = _shown(rows, score), _none_found(query)
    emit(_said(rows, score, form), form, title="Zoo", columns=columns, empty=empty)
    if "selected" in columns:
        say("f1: all members together; selected: the members chosen for each frame")
        say("best_member: the best one of each condition, known only afterwards")
    if order.removeprefix("-") == "score" and page.basis:
        say(f"{score} is {page.basis}")
    if page.total > len(page.rows):
        say(f"{len(page.rows)} of {page.total}; --limit shows more")


def _none_found(query: "Query") -> str:
    """Return why the list is empty, and what to do."""
    if query.text or query.condition or query.ranges:
        return "no ensemble fits this search; manybeam zoo ls lists all"
    return "no ensemble yet; train a first one: manybeam train jobs/quickstart.yaml"


def _no_score(score: str, known: "Iterable[str]") -> NotFound:
    return NotFound(
        f"there is no score {score!r}",
        "a recorded score is needed",
        f"recorded: {', '.join(known)}",
    )


def _shown(rows: "Sequence[dict[str, object]]", score: str) -> tuple[str, ...]:
    """Return the columns of a table; a mean over conditions has no interval."""
    ends = ("low", "high") if any(row["low"] is not None for row in rows) else ()
    is_selected = any(row.get("selected") is not None for row in rows)
    ways = ("selected", "best_member") if is_selected else ()
    return ("ref", "status", score, *ends, *ways, "frames", "coverage", "taken")


def _said(
    rows: "Sequence[dict[str, object]]", score: str, form: Form
) -> "Sequence[dict[str, object]]":
    """Return the rows; a table says of scores only that they were not measured."""
    if settled(form) is not Form.table:
        return rows
    lacking = dict.fromkeys((score, "selected", "best_member"), NOT_MEASURED)
    return [{**row, **{k: v for k, v in lacking.items() if row.get(k) is None}} for row in rows]


def _refresh(catalogue: "Catalogue") -> None:
    """Read the changes of the zoo; if it does not answer, print the age of the last state."""
    from datetime import UTC, datetime

    try:
        catalogue.refresh()
    except Unreachable as error:
        if catalogue.as_of is None:
            raise
        age_s = (datetime.now(UTC) - catalogue.as_of).total_seconds()
        say(f"{error.what}; this is the state of {age_s / 60:.0f} minutes ago")


def _ranges(texts: "Sequence[str]") -> "dict[str, tuple[float | None, float | None]]":
    """Return the ranges of quantities; ranges of the same quantity are intersected."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for name, (low, high) in map(_range, texts):
        ends = found.get(name, (None, None))
        lows = [end for end in (ends[0], low) if end is not None]
        highs = [end for end in (ends[1], high) if end is not None]
        found[name] = (max(lows, default=None), min(highs, default=None))
    return found


def _range(text: str) -> tuple[str, tuple[float | None, float | None]]:
    """Read `dose_e_per_a2<=200000`, `defocus_nm>=2` or `beam_kv:60..80`."""
    import re

    number = r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"
    match = re.fullmatch(rf"([a-z0-9_.]+)(?:(<=|>=){number}|:{number}\.\.{number})", text)
    try:
        if match is None:
            raise ValueError
        name, sign, bound, low, high = match.groups()
        if sign is None:
            return name, (float(low), float(high))
        return name, ((None, float(bound)) if sign.startswith("<") else (float(bound), None))
    except ValueError as error:
        raise InvalidInput(
            f"--where {text!r} is no range of a quantity",
            "allowed: NAME<=NUMBER, NAME>=NUMBER, NAME:NUMBER..NUMBER",
            "manybeam zoo ls --where 'dose_e_per_a2<=200000'",
        ) from error


def _found(row: "Row", score: str) -> dict[str, object]:
    return {
        "ref": row.ref,
        "status": row.status,
        score: row.value,
        "low": row.low,
        "high": row.high,
        **_ways(row, score),
        "frames": row.frame_count,
        "coverage": row.coverage,
        "conditions": row.measured_count,
        "compared_on": row.compared_count,
        "taken": row.taken.date() if row.taken else None,
        "policy": row.policy,
        "recipe": row.recipe,
        "network": row.network,
        "scorer": row.scorer,
        "aliases": list(row.aliases),
        "created": row.created,
    }


def _ways(row: "Row", score: str) -> dict[str, object]:
    """Return F1 of the selected members and of the best ones; nothing for one member."""
    if score != "f1" or row.member is not None:
        return {}
    return {"selected": row.selected_f1, "best_member": row.best_member_f1}


@app.command()
def show(ref: RefArgument, *, form: FormOption = Form.auto) -> None:
    """Show the members of one version (seed, policy, weights), its mean F1 and its signatures.

    Example: manybeam zoo show graphene@serving
    """
    from manybeam.zoo.integrity.imported import signatures
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    record = zoo.resolve(ref)
    rows = [
        {
            "member": f"{record.version_ref}/{member.index:02d}",
            "seed": member.seed,
            "policy": member.policy,
            "parent": member.parent,
            "weights": member.sha256[:12],
        }
        for member in record.members
    ]
    emit(rows, form, title=f"{record.version_ref} {' '.join(record.aliases)}".strip())
    _say_ways(zoo, record)
    for sentence in signatures(record):
        say(sentence)


def _say_ways(zoo: "Zoo", record: "Record") -> None:
    """Print the F1 of all members, of the selected ones and of the best ones."""
    from manybeam.zoo.ways import measured_on, ways_of

    table = zoo.matrix(record.ref)
    ways = ways_of(record, table, zoo.entry(record.ref))
    if ways.each:
        say(f"mean F1, measured on {measured_on(table, ways.conditions)}:")
    for way in ways.each:
        f1 = NOT_MEASURED if way.f1 is None else f"{way.f1:.3f}"
        say(f"  {way.name.lower():12s} {f1} ({way.meaning})")
    if ways.note:
        say(ways.note)
    if ways.commands:
        say(f"to measure the selected members: {', then '.join(ways.commands)}")


@app.command()
def matrix(
    ref: RefArgument,
    *,
    score: Annotated[
        str, typer.Option(help="f1, precision, recall, rmse_pm, ece, seconds.")
    ] = "f1",
    form: FormOption = Form.auto,
) -> None:
    """Show the score of each member on each measured imaging condition.

    Example: manybeam zoo matrix graphene --score rmse_pm
    """
    from manybeam.zoo.matrix import SELECTED, member_label
    from manybeam.zoo.registry import Zoo

    table = Zoo().matrix(ref)
    if table.keys and score not in table.keys:
        raise _no_score(score, table.keys)
    rows = [
        {
            "condition": condition,
            **{member_label(m): table.value(m, condition, score) for m in table.scored},
        }
        for condition in table.conditions
    ]
    empty = f"{ref} is not measured yet; manybeam evaluate {ref} --conditions ID measures it"
    emit(rows, form, title=f"{score} of {ref}", empty=empty, missing=NOT_MEASURED)
    if member_label(SELECTED) in (rows[0] if rows else {}):
        say("ensemble: all members together; selected: the members chosen for each frame")


def as_row(record: "Record") -> dict[str, object]:
    """Return one version as a row of a table."""
    return {
        "ref": record.ref,
        "aliases": list(record.aliases),
        "members": record.member_count,
        "failed": len(record.failed),
        "created": record.created,
    }

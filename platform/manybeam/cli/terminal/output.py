"""Output of a command: a table on a terminal, JSON lines in a pipe, or the chosen form."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

Row = Mapping[str, Any]
WIDTH = 400  # of a table that goes into a file or a pipe


class Form(StrEnum):
    """Forms of output; `auto` is a table on a terminal and JSON lines in a pipe."""

    auto = "auto"
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    id = "id"


FormOption = Annotated[
    Form, typer.Option("--output", "-o", help="auto, table, json, jsonl, csv or id.")
]


def emit(
    rows: Iterable[Row],
    form: Form,
    *,
    title: str = "",
    columns: Sequence[str] = (),
    empty: str = "",
) -> None:
    """Print rows to stdout; if there are none, say so on stderr.

    Args:
        rows: mappings with the same keys, in the order of the columns; the first is the id.
        form: how to print them.
        title: heading of a table; other forms leave it out.
        columns: keys that a table shows, if not all fit on a screen.
        empty: what there is none of yet, and what to do: `no token yet; manybeam ...`.
    """
    listed, form = list(rows), settled(form)
    if not listed:
        say(empty or f"{title}: nothing yet".removeprefix(": "))
    if form is Form.table and listed:
        _table([{k: row[k] for k in columns or row} for row in listed], title)
    elif form is Form.json:
        typer.echo(json.dumps(listed, indent=2, default=str))
    elif form is Form.jsonl:
        for row in listed:
            typer.echo(json.dumps(row, default=str))
    elif form is Form.csv:
        _csv(listed, columns)
    elif form is Form.id:
        for row in listed:
            typer.echo(str(next(iter(row.values()))))


def settled(form: Form) -> Form:
    """Return the form that `auto` means here."""
    if form is not Form.auto:
        return form
    return Form.table if sys.stdout.isatty() else Form.jsonl


def say(text: str) -> None:
    """Print one line to stderr."""
    typer.echo(text, err=True)


def cell(value: Any) -> str:
    """Return a value as a cell of a table; None is "not measured"."""
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _table(rows: Sequence[Row], title: str) -> None:
    """Print a table without borders; without a terminal, it is as wide as needed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Values may come from a package: they are shown as text, never as markup of rich.
    table = Table(
        title=Text(title) if title else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for place, name in enumerate(rows[0]):
        table.add_column(Text(str(name)), no_wrap=place == 0)  # an id must not be cut
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def csv_cell(value: Any) -> Any:
    """Return a value as a cell of a CSV file: text or a number, never a Python list.

    Example:
        >>> csv_cell(["serving", "candidate"]), csv_cell({"to": 3}), csv_cell(None)
        ('serving; candidate', '{"to": 3}', '')
    """
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return json.dumps(value, default=str)
    if isinstance(value, (list, tuple, set, frozenset)):
        return "; ".join(str(csv_cell(one)) for one in value)
    return value


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> None:
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0] if rows else columns))
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)

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
    lines: Iterable[str] = (),
) -> None:
    """Print rows to stdout.

    Args:
        rows: mappings with the same keys, in the order of the columns; the first is the id.
        form: how to print them.
        title: heading of a table; other forms leave it out.
        columns: keys that a table shows, if not all fit on a screen.
        lines: text that `auto` prints on a terminal in place of a table.
    """
    listed, text = list(rows), list(lines)
    if form is Form.auto and text and sys.stdout.isatty():
        typer.echo("\n".join(text))
        return
    if form is Form.auto:
        form = Form.table if sys.stdout.isatty() else Form.jsonl
    if form is Form.table:
        _table([{k: row[k] for k in columns or row} for row in listed], title)
    elif form is Form.json:
        typer.echo(json.dumps(listed, indent=2, default=str))
    elif form is Form.jsonl:
        for row in listed:
            typer.echo(json.dumps(row, default=str))
    elif form is Form.csv:
        _csv(listed)
    else:
        for row in listed:
            typer.echo(str(next(iter(row.values()))))


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
    for place, name in enumerate(rows[0] if rows else ("nothing here",)):
        table.add_column(Text(str(name)), no_wrap=place == 0)  # an id must not be cut
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _csv(rows: Sequence[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)

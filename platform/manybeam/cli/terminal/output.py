"""Output of a command: a table on a terminal, JSON lines in a pipe, or the chosen form."""

import csv
import json
import os
import re
import sys
import textwrap
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00")
Row = Mapping[str, Any]
WIDTH = 400  # of a table that goes into a file or a pipe
FIRST_SIGN_S = 1.0
FALLBACK_COLUMNS = 80
GAP = 2  # between two columns
UNKNOWN = "unknown"  # in a table, of a value that is missing
NOT_MEASURED = "not measured"  # the same of a score
LEAST_TEXT = 26  # width to which a column of text may be broken; shorter cells stay whole


class FirstSign:
    """A sign on a terminal that a command is at work, until it prints something itself."""

    _WORDS = "   at work ..."

    def __init__(self) -> None:
        self._lock, self._is_shown = threading.RLock(), False  # a signal may come while it is held
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Show the sign if the command prints nothing for `FIRST_SIGN_S`."""
        self.end()
        if sys.stderr.isatty():
            self._timer = threading.Timer(FIRST_SIGN_S, self._show)
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        """Remove the sign, or do not show it."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            if self._is_shown:
                with suppress(OSError):  # the terminal was closed
                    typer.echo(f"\r{' ' * len(self._WORDS)}\r", err=True, nl=False)
            self._timer, self._is_shown = None, False

    def _show(self) -> None:
        with self._lock:
            if self._timer:  # not ended meanwhile
                typer.echo(f"{self._WORDS}\r", err=True, nl=False)
                self._is_shown = True


first_sign = FirstSign()
bars: "list[Console]" = []  # consoles that show bars now; text is printed above these


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
    lines: Iterable[str] = (),
    missing: str = "",
) -> None:
    """Print rows to stdout; if there are none, say so on stderr.

    Args:
        rows: mappings with the same keys, in the order of the columns; the first is the id.
        form: how to print them.
        title: heading of a table; other forms leave it out.
        columns: keys that a table shows, if not all fit on a screen.
        empty: what there is none of yet, and what to do: `no token yet; manybeam ...`.
        lines: text that `auto` prints on a terminal in place of a table.
        missing: what a table shows for None, as `UNKNOWN`, or `NOT_MEASURED` for scores.
    """
    listed, text = list(rows), list(lines)
    first_sign.end()
    if form is Form.auto and text and sys.stdout.isatty():
        typer.echo("\n".join(text))
        return
    form = settled(form)
    if not listed:
        say(empty or f"{title}: nothing yet".removeprefix(": "))
    if form is Form.table and listed:
        names = columns or tuple(dict.fromkeys(name for row in listed for name in row))
        shown = [{name: cell(row.get(name), missing) for name in names} for row in listed]
        _table(shown, title)
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


def say(text: str, indent: str = "", *, is_whole: bool = False) -> None:
    """Print text to stderr.

    Args:
        text: one or more lines.
        indent: what each line but the first begins with.
        is_whole: whether a terminal breaks no line between words, as of a command to copy.
    """
    shown = text if is_whole else filled(text, indent)
    first_sign.end()
    if bars:
        bars[-1].print(shown, markup=False, emoji=False, highlight=False, soft_wrap=True)
    else:
        typer.echo(shown, err=True)


def filled(text: str, indent: str = "") -> str:
    """Return text for stderr: on a terminal, long lines are broken between words.

    Args:
        text: one or more lines.
        indent: what each line but the first begins with.
    """
    if not sys.stderr.isatty():
        return text.replace("\n", f"\n{indent}")
    width = max(LEAST_TEXT, _columns() - len(indent))
    lines = [part for line in text.splitlines() for part in _broken(line, width)]
    return f"\n{indent}".join(lines)


def _broken(line: str, width: int) -> list[str]:
    """Return the parts of a line; all of them are indented as it is."""
    margin = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _columns() -> int:
    """Return the width of the terminal of stderr; stdout may be a file."""
    with suppress(KeyError, ValueError):
        return int(os.environ["COLUMNS"])
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or FALLBACK_COLUMNS
    return FALLBACK_COLUMNS


def cell(value: Any, missing: str = "") -> str:
    """Return a value as a cell of a table; `missing` stands for None.

    Example:
        >>> cell(0.5), cell(["serving", "candidate"]), cell(None), cell(None, NOT_MEASURED)
        ('0.500', 'serving, candidate', '', 'not measured')
    """
    if value is None:
        return missing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, str) and _TIME.fullmatch(value):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M %Z}".strip()
    return _words(value)


def _words(value: Any) -> str:
    """Return a value as text; lists and mappings as their parts with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{part} {name}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _table(rows: Sequence[Mapping[str, str]], title: str) -> None:
    """Print a table without borders; without a terminal, it is as wide as needed.

    On a terminal too narrow for it, a single row is turned, and of several the last columns are
    left out and named.
    """
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    least = _least_widths(rows)
    shown = _fitting(least, console.width)
    if len(shown) < len(least) and len(rows) == 1:
        rows = [{"field": name, "value": value} for name, value in rows[0].items()]
        least = shown = _least_widths(rows)
    table = Table(
        title=Text(title) if title else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for place, (name, width) in enumerate(shown.items()):
        table.add_column(Text(name), no_wrap=place == 0, min_width=width)  # an id must not be cut
    for row in rows:
        # Values may come from a package: they are shown as text, never as markup of rich.
        table.add_row(*(Text(row[name]) for name in shown))
    console.print(table)
    if left_out := [name for name in least if name not in shown]:
        say(f"left out for lack of width: {', '.join(left_out)}; -o json shows all")


def _least_widths(rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Return the least width of each column: words and short cells are not broken."""
    found = {}
    for place, name in enumerate(rows[0]):
        cells = [name, *(row[name] for row in rows)]
        longest_word = max(len(word) for text in cells for word in text.split() or [""])
        whole = max(map(len, cells))
        found[name] = whole if place == 0 else min(whole, max(LEAST_TEXT, longest_word))
    return found


def _fitting(least: Mapping[str, int], width: int) -> dict[str, int]:
    """Return the first columns that fit; at least one."""
    fitting: dict[str, int] = {}
    used = 0
    for name, needed in least.items():
        used += needed + GAP
        if used > width and fitting:
            break
        fitting[name] = needed
    return fitting


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
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(columns)
    if not names:
        return
    writer = csv.DictWriter(sys.stdout, fieldnames=names)
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)

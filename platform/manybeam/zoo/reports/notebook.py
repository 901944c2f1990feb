"""Matrices and records in a notebook: HTML tables without script, with coloured cells."""

import html
from collections.abc import Callable

from manybeam.data.markup import CELL_STYLE, TABLE_STYLE, facts_html, table_html
from manybeam.zoo.matrix import Matrix, member_label
from manybeam.zoo.records import Record

MOST_ROWS = 60


def matrix_html(matrix: Matrix, key: str = "f1") -> str:
    """Return a matrix as an HTML table with coloured cells; the best members are bold.

    It has at most sixty rows; `to_pandas` has all.
    """
    if not len(matrix):
        return "<div>Not measured yet. Run <code>manybeam evaluate</code>.</div>"
    shown = (*matrix.scored[: MOST_ROWS - 3], *matrix.scored[MOST_ROWS - 3 :][-3:])
    head = "".join(
        f'<th scope="col" style="{CELL_STYLE}">{html.escape(c)}</th>' for c in matrix.conditions
    )
    best = {c: matrix.best(c, key) for c in matrix.conditions}
    paint = _painter(matrix, key)
    body = "".join(
        f'<tr><th scope="row" style="{CELL_STYLE}">{member_label(row)}</th>'
        + "".join(
            paint(matrix.value(row, c, key), is_best=best[c] == row) for c in matrix.conditions
        )
        + "</tr>"
        for row in shown
    )
    hidden = len(matrix.scored) - len(shown)
    more = f"<p>{hidden} more members: to_pandas() has all.</p>" if hidden else ""
    table = (
        f'<table style="{TABLE_STYLE}"><thead><tr><th>{html.escape(key)}</th>{head}</tr></thead>'
    )
    return f"<div>{table}<tbody>{body}</tbody></table>{more}</div>"


def record_html(record: Record) -> str:
    """Return a record as HTML: its facts and its members."""
    facts: list[tuple[str, object]] = [
        ("aliases", ", ".join(record.aliases) or "none"),
        ("registered", f"{record.created:%Y-%m-%d %H:%M} UTC"),
        ("job", record.job.get("kind", "not recorded")),
        ("parent", record.parent or "none"),
        ("failed members", "; ".join(record.failed) or "none"),
        ("SHA-256", record.sha256),
    ]
    rows = [
        (f"{m.index:02d}", str(m.seed), m.policy, m.recipe, m.sha256[:12])
        for m in record.members[:MOST_ROWS]
    ]
    table = table_html(("member", "seed", "policy", "recipe", "weights"), rows)
    count = record.member_count
    return facts_html(f"{record.ref}: {count} member{'s' * (count != 1)}", facts, table)


def _painter(matrix: Matrix, key: str) -> "Callable[..., str]":
    """Return a function that makes the cell of a score: a coloured number, or "not measured"."""
    from matplotlib import colormaps

    from manybeam.zoo.reports.plots import ink_on, scale_of

    scale = scale_of(matrix, key)

    def paint(value: float | None, *, is_best: bool) -> str:
        if value is None:
            return f'<td style="{CELL_STYLE};font-size:.8em">not measured</td>'
        colour = colormaps["viridis"](float(scale(value)))
        ground = "".join(f"{round(255 * part):02x}" for part in colour[:3])
        style = f"{CELL_STYLE};background:#{ground};color:{ink_on(colour)}"
        number = f"<strong>{value:.3f}</strong>" if is_best else f"{value:.3f}"
        return f'<td style="{style}">{number}</td>'

    return paint

"""The self-contained page of a demo: pictures, tables and their numbers."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.data.disk import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from manybeam.cli.demo.pictures import Panel

LARGE_PX = 640  # wider pictures are scrolled on a narrow screen, so that they stay legible
_TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class GridRow:
    """One row of a grid of numbers from 0 to 1.

    Attributes:
        name: its heading.
        note: a few words below the heading.
        values: one number for each column.
        best: columns that are outlined.
        is_last: whether a line separates it from the rows above.
    """

    name: str
    note: str
    values: Sequence[float]
    best: Sequence[int] = ()
    is_last: bool = False


@dataclass
class Report:
    """A page, made part by part and written at once. All text is escaped; `code` in backticks.

    Args:
        title: heading of the page.
        lead: a sentence or two below it.
    """

    title: str
    lead: str
    _parts: list[dict[str, Any]] = field(default_factory=list)
    _numbers: dict[str, Any] = field(default_factory=dict)
    _pictures: dict[str, bytes] = field(default_factory=dict)

    def section(self, title: str) -> None:
        """Begin a section with a heading."""
        self._add("section", title=title)

    def text(self, words: str) -> None:
        """Add a paragraph."""
        self._add("text", words=words)

    def points(self, lines: Sequence[str]) -> None:
        """Add a list."""
        self._add("points", lines=lines)

    def picture(self, figure: "Figure", caption: str, *, width: int | None = None) -> None:
        """Add a figure as a PNG inside the page.

        Args:
            figure: the figure.
            caption: text below it.
            width: largest width on the page, in pixels; if left out, the width of the page.
        """
        from manybeam.zoo.reports.plots import png

        is_large = (width or LARGE_PX) >= LARGE_PX
        content = _inline(png(figure, 100))
        self._add("picture", content=content, caption=caption, width=width, is_large=is_large)

    def panels(self, panels: Sequence["Panel"], *, name: str = "") -> None:
        """Add pictures of one frame side by side; on a narrow screen, two in a line.

        Args:
            panels: the pictures.
            name: also writes all of them as one picture beside the page, as `NAME.png`.
        """
        from manybeam.cli.demo.pictures import strip_figure
        from manybeam.zoo.reports.plots import png

        if name:
            self._pictures[f"{name}.png"] = png(strip_figure(panels), 100)
        self._add("panels", panels=[(one, _inline(png(one.figure(), 140))) for one in panels])

    def grid(
        self,
        corner: str,
        columns: Sequence[tuple[str, str]],
        rows: Sequence[GridRow],
        *,
        apart: int,
    ) -> None:
        """Add numbers from 0 to 1 as a coloured table.

        Args:
            corner: what the rows are.
            columns: heading and a few words of each column.
            rows: the rows.
            apart: first of the columns that a line separates from those before.
        """
        self._add("grid", corner=corner, columns=columns, rows=rows, apart=apart)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows as a table, and under `name` to the numbers at the end of the page."""
        self.numbers(name, rows)
        if rows:
            self._add("table", name=name, rows=rows)

    def numbers(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to the numbers at the end of the page only."""
        self._numbers[name] = list(rows)

    def steps(self, commands: Sequence[tuple[str, str]]) -> None:
        """Add commands, each with its effect."""
        self._add("steps", commands=commands)

    def write(self, path: Path) -> None:
        """Write the page and its named pictures; old files stay until all are written."""
        pictures = {path.parent / name: content for name, content in self._pictures.items()}
        write_files({**pictures, path: self._page().encode()})

    def _page(self) -> str:
        from jinja2 import Environment, StrictUndefined

        from manybeam.cli.terminal.output import cell
        from manybeam.zoo.reports.error_overlay import AT_EDGE, FALSE, MISSED, RIGHT

        place = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        place.filters |= {"cell": cell, "viridis": _viridis}
        return place.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
            title=self.title,
            lead=self.lead,
            parts=self._parts,
            marks={"right": RIGHT, "missed": MISSED, "false": FALSE, "at_edge": AT_EDGE},
            numbers=json.dumps(self._numbers, indent=1, default=str),
        )

    def _add(self, kind: str, **values: Any) -> None:
        self._parts.append({"kind": kind, **values})


def _inline(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _viridis(value: float) -> tuple[str, str]:
    """Return the colour of a number from 0 to 1, and of text on it (contrast of WCAG AA)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    from manybeam.web.colours import text_on

    colour = colormaps["viridis"](value)
    return to_hex(colour), text_on(colour[:3])

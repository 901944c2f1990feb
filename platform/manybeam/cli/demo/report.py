"""The self-contained page a demo leaves: pictures, tables and the numbers behind them."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.data.disk import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root{color-scheme:light dark;--ink:#1b2530;--paper:#fff;--line:#d8dee6;--soft:#5b6875}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf1;--paper:#14191f;--line:#33404d;--soft:#9fb0c0}
img{filter:none;background:#fff}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem}h2{margin-top:2.4rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{border:1px solid var(--line);padding:.3rem .6rem;text-align:left}
td.number{text-align:right}img{max-width:100%;border-radius:4px}.soft{color:var(--soft)}
pre{overflow-x:auto;border:1px solid var(--line);padding:.8rem}
"""


@dataclass
class Report:
    """A page put together section by section, then written at once.

    Args:
        title: heading of the page.
        lead: one paragraph below it.
    """

    title: str
    lead: str
    _parts: list[str] = field(default_factory=list)
    _numbers: dict[str, Any] = field(default_factory=dict)

    def section(self, title: str, text: str = "") -> None:
        """Begin a section with a heading and a paragraph."""
        self._parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")

    def picture(self, figure: "Figure", caption: str) -> None:
        """Add a figure as a PNG inside the page."""
        from manybeam.zoo.reports.plots import png

        data = base64.b64encode(png(figure, 100)).decode()
        text = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
            f'<figcaption class="soft">{text}</figcaption></figure>'
        )

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows as a table, and under `name` to the numbers at the end of the page."""
        from manybeam.cli.terminal.output import cell

        self._numbers[name] = list(rows)
        if not rows:
            return
        head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
        body = "".join(
            "<tr>" + "".join(_td(value, cell(value)) for value in row.values()) + "</tr>"
            for row in rows
        )
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def numbers(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to the numbers at the end of the page only."""
        self._numbers[name] = list(rows)

    def write(self, path: Path) -> None:
        """Write the page; what was there stays until the new one is whole."""
        numbers = json.dumps(self._numbers, indent=1, default=str)
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{html.escape(self.title)}'
            f"</title><style>{STYLE}</style></head><body><h1>{html.escape(self.title)}</h1>"
            f"<p>{html.escape(self.lead)}</p>{''.join(self._parts)}"
            f"<h2>The numbers behind it</h2><details><summary>JSON</summary>"
            f"<pre>{html.escape(numbers)}</pre></details></body></html>"
        )
        write_files({path: page.encode()})


def _td(value: Any, text: str) -> str:
    kind = ' class="number"' if isinstance(value, (int, float)) else ""
    return f"<td{kind}>{html.escape(text)}</td>"

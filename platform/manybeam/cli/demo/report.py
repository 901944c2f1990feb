"""The self-contained page of a demo: pictures, tables and their numbers."""

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
:root{color-scheme:light dark;--ink:#1b2530;--paper:#fff;--line:#d8dee6;--soft:#5b6875;
--card:#f3f6fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf1;--paper:#14191f;--line:#33404d;--soft:#9fb0c0;
--card:#1d252d}img{background:#fff}}
body{font:17px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.8rem;line-height:1.2;margin-bottom:.4rem}
h2{margin-top:2.6rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}
p,li{max-width:46rem}.lead{font-size:1.2rem}
.cards{display:flex;flex-wrap:wrap;gap:1rem;margin:1.4rem 0}
.cards div{flex:1 1 12rem;background:var(--card);border-radius:8px;padding:.9rem 1.1rem}
.cards b{display:block;font-size:2.1rem;line-height:1.1}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{border:1px solid var(--line);padding:.3rem .6rem;text-align:left;vertical-align:top}
td.number{text-align:right}img{max-width:100%;border-radius:4px}
figure{margin:1rem 0}figcaption{max-width:46rem}.soft{color:var(--soft)}
pre{overflow-x:auto;border:1px solid var(--line);border-radius:4px;padding:.6rem .8rem}
@media(max-width:640px){figure.large img{min-width:640px;max-width:none}
figure.large::before{content:"scroll the picture sideways";font-size:.85rem;color:var(--soft)}}
"""
LARGE_PX = 640  # wider pictures are scrolled on a narrow screen, so that they stay legible


@dataclass
class Report:
    """A page, made section by section and written at once.

    Args:
        title: heading of the page.
        lead: one sentence below it.
    """

    title: str
    lead: str
    _parts: list[str] = field(default_factory=list)
    _last: list[str] = field(default_factory=list)
    _numbers: dict[str, Any] = field(default_factory=dict)
    _pictures: dict[str, bytes] = field(default_factory=dict)

    def section(self, title: str) -> None:
        """Begin a section with a heading."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>")

    def text(self, words: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(words)}</p>")

    def points(self, lines: Sequence[str]) -> None:
        """Add a list."""
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        self._parts.append(f"<ul>{items}</ul>")

    def figures(self, cards: Sequence[tuple[str, str]]) -> None:
        """Add a few large numbers, each with its meaning."""
        inner = "".join(
            f"<div><b>{html.escape(number)}</b>{html.escape(words)}</div>"
            for number, words in cards
        )
        self._parts.append(f'<div class="cards">{inner}</div>')

    def picture(
        self, figure: "Figure", caption: str, *, name: str = "", width: int | None = None
    ) -> None:
        """Add a figure as a PNG inside the page.

        Args:
            figure: the figure.
            caption: text below it.
            name: also writes the picture beside the page, as `NAME.png`.
            width: largest width on the page, in pixels; if left out, the width of the page.
        """
        from manybeam.zoo.reports.plots import png

        content = png(figure, 100)
        if name:
            self._pictures[f"{name}.png"] = content
        data, text = base64.b64encode(content).decode(), html.escape(caption)
        large = ' class="large"' if (width or LARGE_PX) >= LARGE_PX else ""
        style = f' style="width:{width}px"' if width else ""
        self._parts.append(
            f'<figure{large}><div class="wide"><img alt="{text}"{style} '
            f'src="data:image/png;base64,{data}"></div>'
            f'<figcaption class="soft">{text}</figcaption></figure>'
        )

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows as a table, and under `name` to the numbers near the end of the page."""
        from manybeam.cli.terminal.output import cell

        self._numbers[name] = list(rows)
        if not rows:
            return
        head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
        body = "".join(
            "<tr>" + "".join(_td(value, cell(value)) for value in row.values()) + "</tr>"
            for row in rows
        )
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def numbers(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to the numbers near the end of the page only."""
        self._numbers[name] = list(rows)

    def next_steps(self, title: str, words: str, commands: Sequence[tuple[str, str]]) -> None:
        """End the page with commands, each with its effect."""
        steps = "".join(
            f"<li>{html.escape(what)}<pre>{html.escape(command)}</pre></li>"
            for command, what in commands
        )
        text = f"<h2>{html.escape(title)}</h2><p>{_code(words)}</p><ol>{steps}</ol>"
        self._last.append(text)

    def write(self, path: Path) -> None:
        """Write the page and its named pictures; old files stay until all are written."""
        numbers = json.dumps(self._numbers, indent=1, default=str)
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{html.escape(self.title)}'
            f"</title><style>{STYLE}</style></head><body><h1>{html.escape(self.title)}</h1>"
            f'<p class="lead">{html.escape(self.lead)}</p>{"".join(self._parts)}'
            f"<h2>The numbers behind it</h2><details><summary>JSON</summary>"
            f"<pre>{html.escape(numbers)}</pre></details>{''.join(self._last)}</body></html>"
        )
        pictures = {path.parent / name: content for name, content in self._pictures.items()}
        write_files({**pictures, path: page.encode()})


def _td(value: Any, text: str) -> str:
    kind = ' class="number"' if isinstance(value, (int, float)) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _code(words: str) -> str:
    """Return text as HTML, text in backticks as code."""
    parts = html.escape(words).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))

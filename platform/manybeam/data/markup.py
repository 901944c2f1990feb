"""Parts of what a notebook shows: tables and small pictures, as HTML without script.

Axis letters: y row, x column.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

PREVIEW_PX = 224  # longest side of a picture
TABLE_STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
CELL_STYLE = "padding:.15em .6em;text-align:left;vertical-align:top"


def facts_html(title: str, facts: Iterable[tuple[str, object]], pictures: str = "") -> str:
    """Return a title, a table of names and values, and pictures below; all text is escaped.

    Args:
        title: of the table.
        facts: name and value of each.
        pictures: HTML of `picture_html`.
    """
    rows = "".join(
        f'<tr><th scope="row" style="{CELL_STYLE}">{html.escape(name)}</th>'
        f'<td style="{CELL_STYLE}">{html.escape(str(value))}</td></tr>'
        for name, value in facts
    )
    table = f'<table style="{TABLE_STYLE}"><tbody>{rows}</tbody></table>'
    return f"<div><strong>{html.escape(title)}</strong>{table}{pictures}</div>"


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a heading for each column; all text is escaped.

    Args:
        columns: names of the columns.
        rows: their cells; None is shown as "not measured".
    """
    head = "".join(
        f'<th scope="col" style="{CELL_STYLE}">{html.escape(name)}</th>' for name in columns
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{CELL_STYLE}">{html.escape(_text(cell))}</td>' for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<table style="{TABLE_STYLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def picture_html(map_yx: ndarray, caption: str, colours: str = "gray") -> str:
    """Return a map as a small picture with a caption; see `small_png`.

    Args:
        map_yx: any map.
        caption: text below the picture.
        colours: name of a matplotlib colour map.
    """
    data = base64.b64encode(small_png(map_yx, colours=colours)).decode()
    words = html.escape(caption)
    return (
        '<figure style="display:inline-block;margin:.4em .6em 0 0">'
        f'<img alt="{words}" src="data:image/png;base64,{data}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def small_png(map_yx: ndarray, side_px: int = PREVIEW_PX, colours: str = "gray") -> bytes:
    """Return every n-th pixel of a map as a PNG, without its darkest 1 % and brightest 0.3 %.

    Args:
        map_yx: any map; values that are not finite are drawn dark.
        side_px: longest side of the picture, at most.
        colours: name of a matplotlib colour map.
    """
    from matplotlib import colormaps
    from PIL import Image

    step = max(1, -(-max(map_yx.shape) // side_px))
    small_yx: ndarray[Any, Any] = np.asarray(map_yx[::step, ::step], np.float64)
    known = small_yx[np.isfinite(small_yx)]
    low, high = np.percentile(known, [1, 99.7]) if known.size else (0.0, 1.0)
    known_yx = np.where(np.isfinite(small_yx), small_yx, low)
    scaled_yx = np.clip((known_yx - low) / (high - low if high > low else 1), 0, 1)
    buffer = io.BytesIO()
    Image.fromarray(colormaps[colours](scaled_yx, bytes=True)).save(buffer, "PNG")
    return buffer.getvalue()


def _text(value: object) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

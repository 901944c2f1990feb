"""How things look in a notebook: HTML without script, made when a cell shows them.

Axis letters: y row, x column.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

if TYPE_CHECKING:
    from manybeam.data.frames import FrameSet

PREVIEW_PX = 224  # longest side of a picture: enough to see what it is
TABLE_STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
CELL_STYLE = "padding:.15em .6em;text-align:left;vertical-align:top"


def facts_html(title: str, facts: Iterable[tuple[str, object]], pictures: str = "") -> str:
    """Return a title, a table of names and values, and pictures below; all text is escaped.

    Args:
        title: what is shown.
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
    """Return a table with a heading a column; all text is escaped.

    Args:
        columns: names of the columns.
        rows: their cells; None reads "not measured".
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
        caption: what it shows.
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
    """Return every n-th pixel of a map as a PNG, its darkest 1 % and brightest 0.3 % cut.

    Args:
        map_yx: any map; what is not finite is drawn dark.
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


def frameset_html(frames: "FrameSet") -> str:
    """Return how a FrameSet shows itself: what it holds, and its first frame."""
    kind = type(frames.condition).__name__.lower()
    facts: list[tuple[str, object]] = [
        ("frames", f"{len(frames)} of {frames.shape[0]} x {frames.shape[1]} px"),
        (kind, frames.condition.id),
        ("truth", "yes" if frames.has_truth else "no"),
        ("digest", frames.digest),
    ]
    if not len(frames):
        return facts_html(f"FrameSet {frames.url}", facts)
    size_pm = frames.pixel_size_pm(0)
    facts.insert(1, ("pixel size", f"{size_pm:g} pm" if size_pm else "unknown"))
    picture = picture_html(frames.frame(0), "frame 0")
    return facts_html(f"FrameSet {frames.url}", facts, picture)


def _text(value: object) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

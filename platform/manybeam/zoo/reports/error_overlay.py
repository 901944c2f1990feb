"""A picture of a frame with its right, false and missed atoms, to illustrate an F1.

Axis letters: n atom, 2 the pair (y, x).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from manybeam.learn.scoring.scores import MatchedFrame

# Colours of Okabe and Ito for people with colour blindness; each also has a different shape.
RIGHT, FALSE, MISSED, AT_EDGE = "#56b4e9", "#ff8c42", "#f0e442", "#d0d0d0"
MARKS = {RIGHT: "o", FALSE: "x", MISSED: "s", AT_EDGE: "."}
PICTURE_IN = (6.4, 9.6)  # sides of the smallest and the largest picture
LEGEND_IN = 0.42
GROUND = "#14181d"
SMALL_PX = 256  # side of a frame for which the smallest picture is large enough
Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class ErrorOverlay:
    """Right and wrong atoms of one answer on one frame, (atoms, 2) y, x in pixels.

    Attributes:
        right: found atoms that exist.
        false: found atoms that do not exist.
        missed: true atoms that were not found.
        at_edge: found or true atoms at the edge, which are not counted.
    """

    right: Array
    false: Array
    missed: Array
    at_edge: Array

    @classmethod
    def of(cls, found: Array, truth: Array, matched: "MatchedFrame") -> "ErrorOverlay":
        """Return the overlay of atoms that `learn.scoring.scores.match_frame` compared."""
        from manybeam.learn.scoring.matching import positions

        found_n2, truth_n2 = positions(found), positions(truth)
        is_met = np.zeros(len(truth_n2), bool)
        is_met[matched.match.truth_index] = True
        counts, is_true = matched.found_counts, matched.is_true
        uncounted = [found_n2[~counts], truth_n2[~matched.truth_counts & ~is_met]]
        return cls(
            right=found_n2[is_true & counts],
            false=found_n2[~is_true & counts],
            missed=truth_n2[matched.truth_counts & ~is_met],
            at_edge=np.concatenate(uncounted),
        )


def errors_figure(
    frame_yx: Array,
    found: Array,
    truth: Array,
    matched: "MatchedFrame",
    pixel_size_pm: float | None = None,
) -> Figure:
    """Return a frame with its right, false and missed atoms marked by shape and colour.

    Args:
        frame_yx: the frame.
        found: (atoms, >= 2) y, x in pixels.
        truth: (atoms, >= 2) y, x in pixels.
        matched: their comparison, by `learn.scoring.scores.match_frame`.
        pixel_size_pm: edge of a pixel, in pm, for the scale bar; None if unknown.
    """
    seen = ErrorOverlay.of(found, truth, matched)
    least, most = PICTURE_IN
    side = float(np.clip(least * max(frame_yx.shape) / SMALL_PX, least, most))
    share = frame_yx.shape[0] / frame_yx.shape[1]
    height = side * float(np.clip(share, 0.3, 2))
    figure = Figure(figsize=(side, height + LEGEND_IN), facecolor=GROUND)
    axis = figure.add_axes((0, 0, 1, height / (height + LEGEND_IN)))
    low, high = np.nanpercentile(frame_yx, [1, 99.7])
    axis.imshow(frame_yx, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
    axis.set_axis_off()
    mark_errors(axis, seen, _size_pt(frame_yx.shape, matched, pixel_size_pm, side))
    if pixel_size_pm:
        scale_bar(axis, frame_yx.shape, pixel_size_pm)
    figure.legend(loc="upper center", ncols=4, fontsize=9, labelcolor="white", frameon=False)
    return figure


def mark_errors(axis: "Axes", seen: ErrorOverlay, size_pt: float) -> None:
    """Draw the marks of an overlay on a frame, each kind of atom with its shape and colour."""
    groups = (
        (seen.right, RIGHT, "right"),
        (seen.missed, MISSED, "missed"),
        (seen.false, FALSE, "false"),
        (seen.at_edge, AT_EDGE, "at the edge, not counted"),
    )
    for place_n2, colour, word in groups:
        mark = MARKS[colour]
        drawn = {"color": colour} if mark in "x." else {"facecolors": "none", "edgecolors": colour}
        width = 1.3 if colour == RIGHT else 2.0
        style: dict[str, Any] = {"marker": mark, "linewidths": width, **drawn}
        style["s"] = (0.5 * size_pt if colour == AT_EDGE else size_pt) ** 2
        # A dark rim makes the marks visible on bright atoms too.
        style["path_effects"] = [withStroke(linewidth=width + 1.6, foreground="#000000")]
        label = f"{len(place_n2)} {word}"
        axis.scatter(place_n2[:, 1], place_n2[:, 0], label=label, **style)


def scale_bar(
    axis: "Axes",
    shape: tuple[int, ...],
    pixel_size_pm: float,
    corner_yx: tuple[int, int] = (0, 0),
) -> None:
    """Draw a bar of a round length, about a quarter of what is shown.

    Args:
        axis: where to draw.
        shape: rows and columns that are shown.
        pixel_size_pm: edge of a pixel, in pm.
        corner_yx: first row and column that are shown.
    """
    quarter_nm = shape[1] * pixel_size_pm / 4000
    power = 10 ** math.floor(math.log10(quarter_nm))
    length_nm = max(step for step in (1, 2, 5) if step * power <= quarter_nm * 1.0001) * power
    x, y = corner_yx[1] + 0.05 * shape[1], corner_yx[0] + 0.94 * shape[0]
    width = length_nm * 1000 / pixel_size_pm
    above: dict[str, Any] = {"zorder": 4}  # circles would hide it
    bar: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", **above}
    axis.add_patch(Rectangle((x, y), width, 0.012 * shape[0], **bar))
    style: dict[str, Any] = {"color": "white", "fontsize": 9, "ha": "center", "va": "bottom"}
    style |= above
    style["bbox"] = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
    words = f"{length_nm:g} nm" if length_nm >= 1 else f"{10 * length_nm:g} Å"
    axis.text(x + width / 2, y - 0.01 * shape[0], words, **style)


def _size_pt(
    shape: tuple[int, ...], matched: "MatchedFrame", pixel_size_pm: float | None, side_in: float
) -> float:
    """Return the width of a mark, in points: the match diameter, within limits."""
    radius_px = matched.radius_pm / pixel_size_pm if pixel_size_pm else math.nan
    across = 2 * radius_px / max(shape) * side_in * 72
    return float(np.clip(across, 4, 16)) if across > 0 else 8.0

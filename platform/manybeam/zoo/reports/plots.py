"""Pictures of scores, as matplotlib Figures, without the global state of pyplot.

Numbers, marks or words show the same as each colour.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from manybeam.zoo.compare import Difference
from manybeam.zoo.matrix import (
    BIN_COUNT,
    Matrix,
    calibration_error,
    less_is_better,
    member_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NUMBERED = 40  # with more rows or columns, numbers would not be legible
MOST_NAMED = 60  # with more rows or columns, only some are named
SHARES = ("f1", "precision", "recall", "ece", "doubt_auroc", "spread_auroc", "false_fill", "aurc")
NAMES = {"f1": "F1", "rmse_pm": "position error RMSE (pm)", "ece": "calibration error (ECE)"}
BETTER, WORSE, UNCLEAR = "#0072b2", "#d55e00", "#6b6b6b"  # blue and vermilion of Okabe and Ito
DARK_INK, LIGHT_INK = "#111111", "#ffffff"
Array = NDArray[Any]


def matrix_figure(matrix: Matrix, key: str = "f1") -> Figure:
    """Return members x conditions as a picture with numbers.

    The best member of each condition is outlined. A pair that was not measured is hatched. With
    more than 40 rows or columns only colours are drawn; with more than 60 only some are named.

    Args:
        matrix: the scores.
        key: name of the score.
    """
    rows, columns = matrix.scored, matrix.conditions
    if not rows or not columns:
        return _nothing("not measured yet")
    found = [[matrix.value(row, column, key) for column in columns] for row in rows]
    value_rc = np.array([[np.nan if v is None else v for v in line] for line in found], float)
    if np.isnan(value_rc).all():
        return _nothing(f"{key} was not measured")
    size = (2.6 + min(0.78 * len(columns), 24), 2.1 + min(0.36 * len(rows), 14))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    scale = scale_of(matrix, key)
    axis.set_facecolor("#f2f2f2")
    axis.add_patch(_hatched(value_rc.shape))
    picture = axis.imshow(value_rc, cmap="viridis", norm=scale, aspect="auto", zorder=1)
    if max(value_rc.shape) <= MOST_NUMBERED:
        _number(axis, value_rc, scale)
    _outline_best(axis, matrix, key)
    _name_axes(axis, [member_label(row) for row in rows], columns)
    figure.colorbar(picture, ax=axis, label=NAMES.get(key, key), pad=0.02)
    unmeasured = "hatched: not measured" if np.isnan(value_rc).any() else ""
    legend = ["outlined: best member of the condition" if len(matrix.members) > 1 else ""]
    axis.set_title("   ".join(filter(None, [*legend, unmeasured])), fontsize=8, loc="left")
    return figure


def difference_figure(differences: Sequence[Difference], names: tuple[str, str]) -> Figure:
    """Return a picture of the difference on each condition, with its 95 % interval.

    Args:
        differences: differences of one row, from `compare`.
        names: names of the older and the newer version.
    """
    if not differences:
        return _nothing("neither version was measured")
    count, key = len(differences), differences[0].key
    figure = Figure(figsize=(8.4, 1.9 + 0.3 * count), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="#333333", linewidth=0.8)
    for y, one in enumerate(differences):
        _interval(axis, y, one)
    axis.set_ylim(count - 0.4, -0.6)
    axis.set_yticks(range(count), [one.condition for one in differences], fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    words = "less is better" if less_is_better(key) else "more is better"
    axis.set_xlabel(f"{NAMES.get(key, key)}: {names[1]} - {names[0]}   ({words})", fontsize=9)
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(count), [_verdict(one) for one in differences], fontsize=8)
    right.tick_params(length=0)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_title("difference with its 95 % interval over frames", fontsize=9, loc="left")
    return figure


def reliability_figure(matrix: Matrix, condition: str | None = None) -> Figure:
    """Return the share of right atoms of the ensemble, by their probability.

    On the diagonal, 70 % of all atoms with a probability of 70 % exist. Below the diagonal the
    probabilities are too high. Bars show the number of atoms of each point.

    Args:
        matrix: the scores.
        condition: one condition; if left out, the atoms of all measured conditions together.
    """
    bins = matrix.reliability(condition)
    error = calibration_error(bins)
    if error is None:
        return _nothing("reliability was not measured")
    figure = Figure(figsize=(4.4, 4.6), layout="constrained")
    top, below = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
    top.plot([0, 1], [0, 1], color="#6b6b6b", linewidth=1, linestyle="--")
    slanted: dict[str, Any] = {"rotation": 45, "transform_rotates_text": True}
    top.text(0.05, 0.08, "perfect calibration", fontsize=8, color="#555555", **slanted)
    filled = np.array([one for one in bins if one[2]])
    top.plot(filled[:, 0], filled[:, 1], color=BETTER, marker="o", markersize=5, linewidth=1.6)
    top.set_ylim(-0.02, 1.04)
    top.set_ylabel("share that are right", fontsize=9)
    words = condition or "all conditions"
    title = f"{words}: ECE {error:.3f}, {int(filled[:, 2].sum()):,} atoms found"
    top.set_title(title, fontsize=9, loc="left")
    _count_bins(below, [count for _, _, count in bins])
    for axis in (top, below):
        axis.tick_params(labelsize=8)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure


def drawn(figure: Figure, form: str = "png", dpi: int = 110) -> bytes:
    """Return a figure as the bytes of a file: `png`, `svg` or `pdf`; two SVGs differ in ids."""
    import io

    buffer = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else None
    figure.savefig(buffer, format=form, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as a PNG."""
    return drawn(figure, "png", dpi)


def ink_on(colour: Sequence[float]) -> str:
    """Return the colour of text with the higher contrast to a background (WCAG luminance).

    Args:
        colour: red, green, blue from 0 to 1.

    Example:
        >>> ink_on((1.0, 1.0, 0.0)), ink_on((0.2, 0.0, 0.3))
        ('#111111', '#ffffff')
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Contrast with white is 1.05 / (l + 0.05), with this black (l + 0.05) / 0.0556.
    return DARK_INK if (luminance + 0.05) ** 2 > 1.05 * 0.0556 else LIGHT_INK


def scale_of(matrix: Matrix, key: str) -> Normalize:
    """Return the colour scale of a score: 0 to 1 for a share, else smallest to largest value."""
    if key.startswith(SHARES):
        return Normalize(0, 1)
    values = [matrix.value(row, c, key) for row in matrix.scored for c in matrix.conditions]
    known = [value for value in values if value is not None] or [0.0]
    low, high = min(known), max(known)
    return Normalize(low, high if high > low else low + 1)


def _count_bins(axis: "Axes", counts: Sequence[int]) -> None:
    """Draw the number of atoms in each bin, on a scale that shows small and large numbers."""
    middles = (np.arange(BIN_COUNT) + 0.5) / BIN_COUNT
    axis.bar(middles, counts, width=0.9 / BIN_COUNT, color="#8fb8d9", edgecolor=BETTER)
    axis.set_yscale("symlog", linthresh=10)
    axis.set_ylim(0)
    axis.set_xlim(0, 1)
    axis.set_ylabel("atoms", fontsize=9)
    axis.set_xlabel("probability of the ensemble", fontsize=9)


def _number(axis: "Axes", value_rc: Array, scale: Normalize) -> None:
    colours = colormaps["viridis"]
    digits = 2 if float(np.nanmax(np.abs(value_rc))) < 10 else 1
    for y, x in np.argwhere(np.isfinite(value_rc)):
        value = value_rc[y, x]
        ink = ink_on(colours(float(scale(value))))
        place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5}
        axis.text(x, y, f"{value:.{digits}f}", color=ink, **place)


def _outline_best(axis: "Axes", matrix: Matrix, key: str) -> None:
    if len(matrix.members) < 2:
        return
    for x, condition in enumerate(matrix.conditions):
        best = matrix.best(condition, key)
        if best is not None:
            corner = (x - 0.46, matrix.scored.index(best) - 0.44)
            for colour, width in ((LIGHT_INK, 4.0), (DARK_INK, 1.8)):  # visible on any colour
                style: dict[str, Any] = {"edgecolor": colour, "linewidth": width}
                axis.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, **style))


def _hatched(shape: tuple[int, ...]) -> Rectangle:
    """Return the hatched background; it is visible for NaN, which is drawn transparent."""
    style: dict[str, Any] = {"fill": False, "hatch": "////", "edgecolor": "#b0b0b0", "linewidth": 0}
    return Rectangle((-0.5, -0.5), shape[1], shape[0], zorder=0, **style)


def _name_axes(axis: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    down, across = (range(0, len(n), 1 + len(n) // MOST_NAMED) for n in (rows, columns))
    axis.set_yticks(list(down), [rows[i] for i in down], fontsize=8)
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(list(across), [columns[i] for i in across], fontsize=8, **turned)


def _interval(axis: "Axes", y: int, one: Difference) -> None:
    """Draw one condition: filled if significant, else open; nothing if not measured."""
    if one.difference is None:
        return
    colour = {True: BETTER, False: WORSE, None: UNCLEAR}[one.is_better]
    if one.low is not None and one.high is not None:
        axis.plot([one.low, one.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    mark = {True: ">", False: "<", None: "o"}[one.is_better]
    face = colour if one.is_significant else "white"
    style: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": colour, "markersize": 6.5}
    axis.plot([one.difference], [y], marker=mark, linestyle="none", **style)


def _verdict(one: Difference) -> str:
    if one.difference is None:
        return one.words
    return f"{one.difference:+.3f}  {one.words}"


def _nothing(words: str) -> Figure:
    """Return a figure with a text only, if there are no data."""
    figure = Figure(figsize=(4, 1.2), layout="constrained")
    figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=10)
    return figure

"""The picture of an answer: the frame with its atoms as open circles, and what is doubtful.

Axis letters: n atom, y row, x column.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from manybeam.spec.elements import symbol_of
from manybeam.zoo.reports.error_overlay import scale_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from manybeam.learn.nets.prediction import Prediction

Array = np.ndarray[Any, Any]
Window = tuple[slice, slice]

# Of Okabe and Ito, for people with colour blindness: sky blue, orange, green, yellow, ...
KINDS = ("#56b4e9", "#e69f00", "#00b884", "#f0e442", "#cc79a7", "#d55e00", "#ffffff", "#4fd5d5")
WARNING = "#c0392b"
MOST_ACROSS, ACROSS = 40, 28  # distances of neighbours that the large panel shows
CIRCLE = 0.33  # radius, in distances of neighbours
LEAST_RADIUS, MOST_RADIUS = 0.006, 0.02  # the same, as a share of the panel
SPREAD_SHARE = 98  # percentile of the position spreads at the end of their colours


def answer_figure(
    frame_yx: Array,
    prediction: "Prediction",
    pixel_size_pm: float | None,
    elements: Sequence[str],
    title: str = "",
) -> Figure:
    """Return the atoms on the frame, the whole frame, both maps and the spread of positions.

    If a frame has too many atoms to separate by eye, the atoms are shown where members differ
    most; a box marks that part on the whole frame.

    Args:
        frame_yx: the frame as it was recorded.
        prediction: the answer of the ensemble.
        pixel_size_pm: edge of a pixel, in pm; None draws no scale bar.
        elements: symbol of the element of each atom; "" if it is unknown.
        title: text above the pictures.
    """
    figure = Figure(figsize=(15, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    main, whole = figure.add_subplot(grid[:, :2]), figure.add_subplot(grid[0, 2])
    mean, spread = figure.add_subplot(grid[0, 3]), figure.add_subplot(grid[1, 2])
    places = figure.add_subplot(grid[1, 3])
    window = window_of(prediction, prediction.atoms, MOST_ACROSS, ACROSS)
    _frame(whole, frame_yx, pixel_size_pm, "the whole frame")
    if frame_yx[window].shape != frame_yx.shape:
        _box(whole, window)
    _frame(main, frame_yx, pixel_size_pm, "", window)
    _atoms(main, prediction, elements, window)
    _map(figure, mean, prediction.mean_yx, window, "mean probability", "viridis", 1.0)
    top = max(0.1, float(prediction.std_yx[window].max()))
    _map(figure, spread, prediction.std_yx, window, "spread (std over members)", "magma", top)
    _frame(places, frame_yx, pixel_size_pm, "", window)
    _position_spread(figure, places, prediction.atoms, pixel_size_pm, window)
    is_doubtful = "out of distribution" in title
    style = {"color": WARNING, "fontweight": "bold"} if is_doubtful else {}
    figure.suptitle(f"{title}: do not rely on these atoms" if is_doubtful else title, **style)
    return figure


def window_of(
    prediction: "Prediction", atoms: Array, most_across: float, across: float
) -> tuple[slice, slice]:
    """Return the part of the frame to show: all of it, or where the members differ most.

    Args:
        prediction: with the spread over the members.
        atoms: the atoms to separate by eye.
        most_across: width up to which the whole frame is shown, in distances of neighbours.
        across: width of the part that is shown of a wider frame, in the same unit.
    """
    from scipy.ndimage import uniform_filter

    from manybeam.learn.scoring.scores import neighbour_distance_px

    differ_yx, step_px = prediction.std_yx.copy(), neighbour_distance_px(atoms)
    if not max(differ_yx.shape) > most_across * step_px:  # NaN: fewer than two atoms
        return slice(0, differ_yx.shape[0]), slice(0, differ_yx.shape[1])
    edge_px = math.ceil(step_px)  # members are unreliable at the edge
    differ_yx[:edge_px] = differ_yx[-edge_px:] = 0
    differ_yx[:, :edge_px] = differ_yx[:, -edge_px:] = 0
    sides = [min(round(across * step_px), side) for side in differ_yx.shape]
    inside = tuple(
        slice(side // 2, whole - side + side // 2 + 1)
        for side, whole in zip(sides, differ_yx.shape, strict=True)
    )
    near_yx = uniform_filter(differ_yx, sides, mode="nearest")[inside]
    y, x = np.unravel_index(int(near_yx.argmax()), near_yx.shape)
    return slice(int(y), int(y) + sides[0]), slice(int(x), int(x) + sides[1])


def _frame(
    axis: "Axes",
    frame_yx: Array,
    pixel_size_pm: float | None,
    title: str,
    window: Window | None = None,
) -> None:
    """Draw a frame in grey, or a window of it in the coordinates of the frame, with a scale bar."""
    window = window or (slice(0, frame_yx.shape[0]), slice(0, frame_yx.shape[1]))
    seen_yx = frame_yx[window]
    low, high = np.nanpercentile(seen_yx, [1, 99.7])
    limits: dict[str, Any] = {"vmin": low, "vmax": max(high, low + 1e-9), "extent": _extent(window)}
    axis.imshow(seen_yx, cmap="gray", **limits)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
    if pixel_size_pm:
        corner = (window[0].start, window[1].start)
        scale_bar(axis, seen_yx.shape, pixel_size_pm, corner)


def _atoms(axis: "Axes", prediction: "Prediction", elements: Sequence[str], window: Window) -> None:
    """Draw atoms as open circles, coloured by element, and name the colours."""
    atoms, names = prediction.atoms, [symbol_of(one) for one in prediction.elements]
    colours = dict(zip((*names, ""), KINDS, strict=False))
    seen_n = _is_near(atoms, window)
    seen_colours = [
        colours.get(name, KINDS[-1]) for name, seen in zip(elements, seen_n, strict=True) if seen
    ]
    _circles(axis, atoms[seen_n], window, edgecolors=seen_colours)
    counts = {name: list(elements).count(name) for name in names}
    is_part = not seen_n.all()
    where = "; shown: where members differ most" if is_part else ""
    axis.set_title(f"{len(atoms)} atom{'s' * (len(atoms) != 1)}{where}", fontsize=11)
    handles = [
        Line2D([], [], marker="o", linestyle="none", markerfacecolor="none", markeredgewidth=2,
               color=colours[name], markersize=9, label=f"{name}: {count}")
        for name, count in counts.items()
    ]  # fmt: skip
    if names:
        below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "frameon": False}
        axis.legend(handles=handles, ncols=len(names), fontsize=11, **below)


def _position_spread(
    figure: Figure, axis: "Axes", atoms: Array, pixel_size_pm: float | None, window: Window
) -> None:
    """Draw the atoms, coloured by how far the members disagree about their positions."""
    scale, unit = (pixel_size_pm, "pm") if pixel_size_pm else (1.0, "px")
    spread_n = np.hypot(atoms[:, 4], atoms[:, 5]) * scale
    known_n = np.isfinite(spread_n) & _is_near(atoms, window)
    if not known_n.any():
        axis.set_title("no spread of positions: no two members agree", fontsize=10)
        return
    top = float(np.percentile(spread_n[known_n], SPREAD_SHARE))
    style: dict[str, Any] = {"array": spread_n[known_n], "cmap": "plasma", "clim": (0, top or 1.0)}
    drawn = _circles(axis, atoms[known_n], window, **style)
    figure.colorbar(drawn, ax=axis, fraction=0.046)
    axis.set_title(f"spread of positions between members [{unit}]", fontsize=10)


def _circles(axis: "Axes", atoms: Array, window: Window, **style: Any) -> EllipseCollection:
    """Draw open circles whose size follows the distance of neighbours, in pixels of the frame."""
    from manybeam.learn.scoring.scores import neighbour_distance_px

    width_px = max(one.stop - one.start for one in window)
    radius_px = CIRCLE * np.nan_to_num(neighbour_distance_px(atoms), nan=0.0)
    diameter = 2 * float(np.clip(radius_px, LEAST_RADIUS * width_px, MOST_RADIUS * width_px))
    place_n2 = atoms[:, [1, 0]]
    sizes = np.full(len(atoms), diameter)
    drawn = EllipseCollection(
        sizes, sizes, np.zeros(len(atoms)), units="xy", facecolors="none", linewidths=1.3,
        offsets=place_n2, offset_transform=axis.transData, **style,
    )  # fmt: skip
    drawn.set_path_effects([withStroke(linewidth=2.4, foreground="#000000a0")])
    axis.add_collection(drawn, autolim=False)
    return drawn


def _map(
    figure: Figure,
    axis: "Axes",
    map_yx: Array,
    window: Window,
    title: str,
    colours: str,
    top: float,
) -> None:
    shown: dict[str, Any] = {"vmin": 0, "vmax": top, "extent": _extent(window)}
    picture = axis.imshow(map_yx[window], cmap=colours, **shown)
    figure.colorbar(picture, ax=axis, fraction=0.046)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def _box(axis: "Axes", window: Window) -> None:
    rows, columns = window
    size = (columns.stop - columns.start, rows.stop - rows.start)
    style: dict[str, Any] = {"fill": False, "edgecolor": KINDS[1], "linewidth": 1.8}
    axis.add_patch(Rectangle((columns.start - 0.5, rows.start - 0.5), *size, **style))


def _is_near(atoms: Array, window: Window) -> Array:
    """Return whether each atom is in the window, or so near that its circle reaches into it."""
    near_nd = [
        (atoms[:, axis] > side.start - margin) & (atoms[:, axis] < side.stop + margin)
        for axis, side in enumerate(window)
        for margin in [MOST_RADIUS * (side.stop - side.start)]
    ]
    return np.asarray(np.logical_and(*near_nd))


def _extent(window: Window) -> tuple[float, float, float, float]:
    rows, columns = window
    return columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5

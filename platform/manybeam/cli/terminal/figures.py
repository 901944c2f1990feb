"""Pictures of answers: matplotlib Figures, without the global state of pyplot."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from manybeam.zoo.reports.answer_figure import window_of
from manybeam.zoo.reports.error_overlay import scale_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from manybeam.learn.nets.prediction import Prediction
    from manybeam.predictor.selection import Candidate, Selection

FOUND, MISSED, FALSE = "#1fa774", "#e8a11c", "#d1495b"
CHOSEN = "#1f6feb"
SHOWN_MEMBERS = 12
# Width of a panel in distances of neighbours: with more than the first, the eye cannot separate
# atoms, and the second is shown instead.
MOST_ACROSS, ACROSS = 32, 18
PANEL_IN = 3.1
Array = np.ndarray[Any, Any]


def members_figure(
    frame_yx: Array,
    prediction: "Prediction",
    selection: "Selection",
    *,
    preferred: Sequence[int] = (),
    title: str = "",
) -> Figure:
    """Return frame | mean of the chosen | atoms of each member, best first, at most twelve members.

    Colours show where the atoms of a member differ from those of the chosen members together. If a
    frame has too many atoms to separate by eye, the part where members differ most is shown.

    Args:
        frame_yx: the frame as it was recorded.
        prediction: the answer of all members, with their maps.
        selection: how they were ranked.
        preferred: members that a person preferred; the chosen ones if left out.
        title: text before the verdict.
    """
    chosen = tuple(preferred) or selection.chosen
    together = prediction.subset(preferred) if preferred else selection.answer(prediction)
    window = window_of(prediction, together.atoms, MOST_ACROSS, ACROSS)
    ranked = selection.candidates[:SHOWN_MEMBERS]
    figure, axes = _grid(2 + len(ranked))
    _whole_frame(axes[0], frame_yx, window, prediction.pixel_size_pm)
    _together(axes[1], together, window, "preferred" if preferred else "chosen")
    for axis, candidate in zip(axes[2:], ranked, strict=False):
        atoms = prediction.member_atoms[prediction.members.index(candidate.member)]
        _atoms_against(axis, frame_yx, atoms, together.atoms, window)
        is_chosen = candidate.member in chosen
        _frame_panel(axis, window, CHOSEN if is_chosen else "#888888", 3 if is_chosen else 1)
        _name(axis, candidate, len(atoms), is_chosen=is_chosen)
    _explain(figure, "preferred" if preferred else "chosen")
    more = len(selection.candidates) - len(ranked)
    rest = f"; {more} more members are not shown" if more else ""
    words = textwrap.wrap(f"{title}{selection.verdict}: {selection.why}{rest}", 145)
    figure.suptitle("\n".join(words[:2]) + " ..." * (len(words) > 2), fontsize=9)
    return figure


def reliability_figure(curves: Sequence[tuple[str, Array, Array, Array]]) -> Figure:
    """Return the share of true atoms over their probability.

    Args:
        curves: (name, mean probability of each bin, share of true ones, atoms in the bin).
    """
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
    for name, probability, share, count in curves:
        used = count > 0
        axis.plot(probability[used], share[used], marker="o", label=name)
    axis.set(xlabel="predicted probability", ylabel="share of true atoms", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=8)
    return figure


def _gray(axis: "Axes", frame_yx: Array, title: str, size: float = 9) -> None:
    low, high = np.nanpercentile(frame_yx, [1, 99.7])
    axis.imshow(frame_yx, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
    axis.set_title(title, fontsize=size)
    axis.set_axis_off()


def _grid(count: int) -> tuple[Figure, "list[Axes]"]:
    """Return a figure with this number of square panels."""
    columns = count if count <= 5 else 4 if count <= 8 else 5
    rows = math.ceil(count / columns)
    size = (PANEL_IN * columns, (PANEL_IN + 0.45) * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def _whole_frame(
    axis: "Axes", frame_yx: Array, window: tuple[slice, slice], pixel_size_pm: float | None
) -> None:
    rows, columns = window
    is_part = (rows.stop - rows.start, columns.stop - columns.start) != frame_yx.shape
    _gray(axis, frame_yx, "frame; boxed: where members differ most" if is_part else "frame")
    if is_part:
        size = (columns.stop - columns.start, rows.stop - rows.start)
        corner = (columns.start - 0.5, rows.start - 0.5)
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=CHOSEN, linewidth=1.5))
    if pixel_size_pm:
        scale_bar(axis, frame_yx.shape, pixel_size_pm)


def _together(
    axis: "Axes", prediction: "Prediction", window: tuple[slice, slice], word: str
) -> None:
    axis.imshow(prediction.mean_yx, cmap="viridis", vmin=0, vmax=1)
    names = ", ".join(f"{member:02d}" for member in prediction.members[:6])
    names += ", ..." * (len(prediction.members) > 6)
    axis.set_title(f"mean of the {word}: {names}\n{len(prediction.atoms)} atoms", fontsize=9)
    _frame_panel(axis, window, "#888888")


def _atoms_against(
    axis: "Axes", frame_yx: Array, atoms: Array, together: Array, window: tuple[slice, slice]
) -> None:
    """Draw atoms of a member: shared with the chosen, only its own, and missed."""
    from manybeam.learn.scoring.scores import match, neighbour_distance_px

    step_px = neighbour_distance_px(together)
    step_px = step_px if step_px > 0 else min(frame_yx.shape) / 10
    pairs = match(atoms, together, 0.35 * step_px)
    only_here = np.delete(atoms, pairs.found_index, axis=0)
    missed = np.delete(together, pairs.truth_index, axis=0)
    low, high = np.nanpercentile(frame_yx[window], [1, 99.7])
    axis.imshow(frame_yx, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
    across = max(window[0].stop - window[0].start, window[1].stop - window[1].start)
    size = float(np.clip(0.62 * step_px / across * 72 * PANEL_IN, 2.5, 14)) ** 2
    ring: dict[str, Any] = {"s": size, "facecolors": "none"}
    both = atoms[pairs.found_index]
    axis.scatter(both[:, 1], both[:, 0], edgecolors=FOUND, linewidths=0.9, alpha=0.85, **ring)
    axis.scatter(only_here[:, 1], only_here[:, 0], edgecolors=FALSE, linewidths=1.6, **ring)
    axis.scatter(missed[:, 1], missed[:, 0], color=MISSED, marker="x", s=size, linewidths=1.6)


def _name(axis: "Axes", candidate: "Candidate", atom_count: int, *, is_chosen: bool) -> None:
    """Write the predicted F1 above the panel of a member, and mark it if it is chosen."""
    forward = candidate.components.get("forward")
    explained = "" if forward is None else f", explain {100 * forward**2:.0f} % of the frame"
    interval = f"{candidate.low:.2f} to {candidate.high:.2f}"
    first = f"{candidate.member:02d}: predicted F1 {candidate.predicted_f1:.2f} ({interval})"
    weight, colour = ("bold", CHOSEN) if is_chosen else ("normal", "black")
    words = f"{first}\n{atom_count} atoms{explained}"
    axis.set_title(words, fontsize=8.5, fontweight=weight, color=colour)


def _frame_panel(axis: "Axes", window: tuple[slice, slice], colour: str, width: float = 1) -> None:
    """Show only the window, with a coloured border."""
    axis.set_axis_on()
    axis.set(xticks=[], yticks=[])
    axis.set_xlim(window[1].start - 0.5, window[1].stop - 0.5)
    axis.set_ylim(window[0].stop - 0.5, window[0].start - 0.5)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=width)


def _explain(figure: Figure, word: str) -> None:
    """Add a legend of the colours."""
    style: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "none", "markersize": 8}
    handles = [
        Line2D(
            [], [], marker="o", color=FOUND, label=f"also found by the {word} together", **style
        ),
        Line2D(
            [],
            [],
            marker="o",
            color=FALSE,
            label=f"found here, not by the {word} together",
            **style,
        ),
        Line2D(
            [],
            [],
            marker="x",
            color=MISSED,
            label=f"found by the {word} together, missed here",
            **style,
        ),
        Patch(edgecolor=CHOSEN, fill=False, linewidth=2, label=word),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)

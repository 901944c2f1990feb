"""Pictures of one frame, its truth and answers to it, as panels of one size.

A report shows panels beside each other on a wide screen and below each other on a narrow one; the
strip has them in one picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from manybeam.jobs.test_sets import LabelledFrame
from manybeam.zoo.reports.error_overlay import ErrorOverlay, mark_errors, scale_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_IN = 3.6
MARK_PT = 7.0  # an atom of graphene is about this wide in a panel
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a row.

    Attributes:
        title: what is shown.
        value: the number that counts, as "F1 0.87"; "" for none.
        draw: draws it on empty axes.
    """

    title: str
    value: str
    draw: "Callable[[Axes], None]"

    def figure(self) -> Figure:
        """Return the panel as a picture without margins."""
        figure = Figure(figsize=(PANEL_IN, PANEL_IN))
        self.draw(figure.add_axes((0, 0, 1, 1)))
        return figure


def frame_panel(frame: LabelledFrame, title: str) -> Panel:
    """Return the frame as it was recorded, with a scale bar."""

    def draw(axis: "Axes") -> None:
        _gray(axis, frame.frame_yx)
        if frame.pixel_size_pm:
            scale_bar(axis, frame.frame_yx.shape, frame.pixel_size_pm)

    return Panel(title, "", draw)


def truth_panel(frame: LabelledFrame) -> Panel:
    """Return the frame with its true atoms."""
    nothing = np.empty((0, 2))
    truth = ErrorOverlay(right=frame.truth[:, :2], false=nothing, missed=nothing, at_edge=nothing)
    return Panel("The truth", f"{len(frame.truth)} atoms", _marked(frame, truth))


def answer_panel(frame: LabelledFrame, title: str, atoms: Array) -> Panel:
    """Return the atoms of an answer, right, missed and false, with the F1 of this frame."""
    from manybeam.learn.scoring.scores import f1_of, match_frame

    shape = (frame.frame_yx.shape[0], frame.frame_yx.shape[1])
    matched = match_frame(atoms, frame.truth, frame.pixel_size_pm, shape)
    seen = ErrorOverlay.of(atoms, frame.truth, matched)
    return Panel(title, f"F1 {f1_of(np.array(matched.counts)):.2f}", _marked(frame, seen))


def strip_figure(panels: Sequence[Panel]) -> Figure:
    """Return all panels side by side in one picture, with their titles."""
    figure = Figure(figsize=(PANEL_IN * len(panels), PANEL_IN + 0.75))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, panel in zip(axes, panels, strict=True):
        panel.draw(axis)
        axis.set_title("\n".join(filter(None, (panel.title, panel.value))), fontsize=13)
    return figure


def _marked(frame: LabelledFrame, seen: ErrorOverlay) -> "Callable[[Axes], None]":
    def draw(axis: "Axes") -> None:
        _gray(axis, frame.frame_yx)
        mark_errors(axis, seen, MARK_PT)

    return draw


def _gray(axis: "Axes", frame_yx: Array) -> None:
    low, high = np.nanpercentile(frame_yx, [1, 99.7])
    axis.imshow(frame_yx, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    axis.set_axis_off()

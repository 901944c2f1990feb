"""Pictures a person judges an answer by: matplotlib Figures, never pyplot's global state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from manybeam.learn.ensemble import Prediction
    from manybeam.zoo.matrix import Matrix

FOUND, MISSED, FALSE = "#1fa774", "#e8a11c", "#d1495b"
Array = np.ndarray[Any, Any]


def answer_figure(frame_yx: Array, prediction: "Prediction", title: str = "") -> Figure:
    """Return frame | mean | spread | atoms of one answer, side by side.

    Args:
        frame_yx: the frame as it was recorded.
        prediction: the ensemble's answer to it.
        title: one line above the pictures.
    """
    figure = Figure(figsize=(14, 3.9), layout="constrained")
    axes = figure.subplots(1, 4)
    _gray(axes[0], frame_yx, "frame")
    _coloured(figure, axes[1], prediction.mean_yx, "mean probability", "viridis", 1.0)
    top = max(0.1, float(prediction.std_yx.max()))
    _coloured(figure, axes[2], prediction.std_yx, "spread (std over members)", "magma", top)
    _gray(axes[3], frame_yx, f"{len(prediction.atoms)} atoms, coloured by probability")
    atoms = prediction.atoms
    dots = axes[3].scatter(
        atoms[:, 1], atoms[:, 0], c=atoms[:, 3], s=10, cmap="viridis", vmin=0, vmax=1
    )
    figure.colorbar(dots, ax=axes[3], fraction=0.046)
    figure.suptitle(title[:160], fontsize=9)
    return figure


def truth_figure(
    frame_yx: Array, truth_k3: Array, answers: Sequence[tuple[str, Array]], radius_px: float
) -> Figure:
    """Return one picture an answer: atoms found, missed and false against the truth."""
    from manybeam.learn.scores import match

    figure = Figure(figsize=(4.2 * len(answers), 4.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(answers)))
    for axis, (name, atoms) in zip(axes, answers, strict=True):
        pairs = match(atoms, truth_k3, radius_px)
        _gray(axis, frame_yx, name)
        false = np.delete(atoms, pairs.found_index, axis=0)
        missed = np.delete(truth_k3, pairs.truth_index, axis=0)
        for points, colour in ((atoms[pairs.found_index], FOUND), (false, FALSE), (missed, MISSED)):
            axis.scatter(points[:, 1], points[:, 0], s=26, facecolors="none", edgecolors=colour)
    legend = [Patch(color=FOUND, label="found"), Patch(color=MISSED, label="missed")]
    figure.legend(
        handles=[*legend, Patch(color=FALSE, label="false")], loc="outside lower center", ncols=3
    )
    return figure


def matrix_figure(matrix: "Matrix", score: str = "f1") -> Figure:
    """Return the members x conditions matrix with its numbers; grey where not measured."""
    from manybeam.zoo.matrix import member_label

    rows, columns = matrix.scored, matrix.conditions
    values = [[matrix.value(m, c, score) for c in columns] for m in rows]
    table = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    figure = Figure(figsize=(2 + 0.95 * len(columns), 1.6 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("#cccccc")
    picture = axis.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for y, x in np.ndindex(table.shape):
        text = "not\nmeasured" if np.isnan(table[y, x]) else f"{table[y, x]:.3f}"
        colour = "black" if np.isnan(table[y, x]) or table[y, x] > 0.55 else "white"
        axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), [member_label(m) for m in rows], fontsize=8)
    figure.colorbar(picture, ax=axis, label=score)
    return figure


def reliability_figure(curves: Sequence[tuple[str, Array, Array, Array]]) -> Figure:
    """Return how often atoms of a given probability were true.

    Args:
        curves: (name, mean probability of each bin, share of true ones, atoms in the bin).
    """
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
    for name, probability, share, count in curves:
        used = count > 0
        axis.plot(probability[used], share[used], marker="o", label=name)
    axis.set(xlabel="probability said", ylabel="share that was true", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=8)
    return figure


def _gray(axis: "Axes", frame_yx: Array, title: str) -> None:
    low, high = np.nanpercentile(frame_yx, [1, 99.7])
    axis.imshow(frame_yx, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _coloured(
    figure: Figure, axis: "Axes", map_yx: Array, title: str, colours: str, top: float
) -> None:
    picture = axis.imshow(map_yx, cmap=colours, vmin=0, vmax=top)
    figure.colorbar(picture, ax=axis, fraction=0.046)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()

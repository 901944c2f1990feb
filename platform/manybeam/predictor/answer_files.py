"""The files of answers: CSV of atoms, Zarr groups, pictures; the same for commands and pages.

Every form says whether a frame is out of distribution, what F1 is predicted, and which element an
atom is.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.spec.elements import symbol_of

if TYPE_CHECKING:
    import numpy as np
    import zarr

    from manybeam.predictor.answer import Answer
    from manybeam.predictor.transferred_calibration import TransferredCalibration

ATOM_COLUMNS = ("y", "x", "class", "probability", "spread_y_px", "spread_x_px", "votes")
CSV_COLUMNS = (
    "file",
    "frame",
    *ATOM_COLUMNS,
    "y_nm",
    "x_nm",
    "element",
    "verdict",
    "predicted_f1",
    "predicted_f1_low",
    "predicted_f1_high",
)
DIGITS = 5  # of a number in the CSV, after the point: a hundredth of a picometre


def row(answer: "Answer") -> dict[str, Any]:
    """Return the facts of an answer as one row of a table or of JSON lines."""
    frame, predicted, calibration = answer.frame, answer.predicted_f1, answer.calibration
    return {
        "file": frame.origin,
        "frame": frame.index or 0,
        "atoms": len(answer.atoms),
        "verdict": answer.verdict,
        "predicted_f1": predicted.f1 if predicted else None,
        "low": predicted.low if predicted else None,
        "high": predicted.high if predicted else None,
        "elements": element_counts(answer),
        "members": [f"{m:02d}" for m in answer.members],
        "ensemble": answer.ref,
        "pixel_size_pm": frame.pixel_size_pm,
        "pixel_size_error_pm": frame.pixel_size_error_pm,
        "mean_spread_px": mean_of(answer.atoms[:, 4:6]),
        "position_90_pm": _finite(calibration.position_pm if calibration else None),
        **_bounded(calibration),
        "why": answer.why,
    }


def atoms_csv(answers: "Sequence[Answer]") -> bytes:
    """Return one CSV of all atoms; positions are also in nm if the pixel size is known."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for answer in answers:
        writer.writerows(_csv_rows(answer))
    return text.getvalue().encode()


def fill_group(root: "zarr.Group", answers: "Sequence[Answer]") -> None:
    """Write a sub-group for each frame into a Zarr group: frame, mean, std, mi, atoms."""
    for number, answer in enumerate(answers):
        group = root.create_group(f"{number:05d}")
        arrays = {name: getattr(answer, f"{name}_yx") for name in ("mean", "std", "mi")}
        arrays |= {"frame": answer.frame.pixels_yx, "atoms": answer.atoms}
        for name, array in arrays.items():
            group.create_array(name, data=array)
        symbols = [symbol_of(one) for one in answer.prediction.elements]
        named = {"atom_columns": list(ATOM_COLUMNS), "class_elements": symbols}
        group.attrs.update({**row(answer), **named})


def picture(answer: "Answer") -> bytes:
    """Return the picture of an answer as PNG."""
    from manybeam.zoo.reports.answer_figure import answer_figure
    from manybeam.zoo.reports.plots import png

    frame = answer.frame
    words = f"{frame_name(answer)}: {quality_words(answer)}"
    figure = answer_figure(
        frame.pixels_yx, answer.prediction, frame.pixel_size_pm, answer.elements, words
    )
    return png(figure)


def frame_name(answer: "Answer") -> str:
    """Return the file of an answer, and the number of the frame in a stack."""
    frame = answer.frame
    name = Path(frame.origin).name
    return name if frame.index is None else f"{name}, frame {frame.index}"


def quality_words(answer: "Answer") -> str:
    """Return predicted F1 and verdict in words."""
    predicted = answer.predicted_f1
    verdict = verdict_words(answer.verdict)
    if predicted is None:
        return f"predicted F1 unknown, {verdict}"
    f1 = f"predicted F1 {predicted.f1:.2f} ({predicted.low:.2f} to {predicted.high:.2f})"
    return f"{f1}{'' if answer.is_calibrated else ', not calibrated'}, {verdict}"


def verdict_words(verdict: str) -> str:
    """Return a verdict for people; "" stands for an answer without one.

    Example:
        >>> verdict_words("out-of-distribution"), verdict_words("unknown")
        ('out of distribution', 'drift unknown')
    """
    return "drift unknown" if verdict in ("", "unknown") else verdict.replace("-", " ")


def element_counts(answer: "Answer") -> dict[str, int]:
    """Return how many atoms of each element there are; empty if none is distinguished."""
    return {name: count for name, count in Counter(answer.elements).most_common() if name}


def mean_of(values: "np.ndarray[Any, Any]") -> float | None:
    """Return the mean of the finite values; None if there is none."""
    import numpy as np

    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _csv_rows(answer: "Answer") -> Iterator[tuple[object, ...]]:
    """Yield one row for each atom; what is unknown is an empty cell."""
    frame, predicted = answer.frame, answer.predicted_f1
    ends = (predicted.f1, predicted.low, predicted.high) if predicted else (None,) * 3
    quality = (answer.verdict, *map(_rounded, ends))
    nm = frame.pixel_size_pm / 1000 if frame.pixel_size_pm else math.nan
    for atom, element in zip(answer.atoms.tolist(), answer.elements, strict=True):
        y, x, kind, *more, votes = atom
        cells = (*map(_rounded, (y, x)), int(kind), *map(_rounded, more), _rounded(votes))
        place_nm = map(_rounded, (y * nm, x * nm))
        yield (frame.origin, frame.index or 0, *cells, *place_nm, element, *quality)


def _rounded(value: float | None) -> float | None:
    """Return a number for a cell of the CSV; None is an empty one."""
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def _bounded(calibration: "TransferredCalibration | None") -> dict[str, Any]:
    """Return the result of a bound on false atoms; nothing if there is no bound."""
    if calibration is None or not calibration.false_atoms:
        return {}
    return {
        "false_atoms": calibration.false_atoms,
        "is_kept": calibration.threshold is not None,
        "kept": calibration.kept,
        "doubts": "; ".join(calibration.notes),
    }


def _finite(value: float | None) -> float | None:
    """Return a number for JSON."""
    return value if value is not None and math.isfinite(value) else None

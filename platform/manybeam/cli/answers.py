"""How `manybeam predict` prints and writes answers: lines, rows, CSV, pictures, Zarr.

Every form says whether a frame is out of distribution, what F1 is predicted, and which element an
atom is.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.cli.terminal.output import say
from manybeam.data.disk import write_files

if TYPE_CHECKING:
    import numpy as np

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
POOR_F1 = 0.5  # an answer below it is warned of, also if other members suit the frame
MOST_NAMED = 3  # frames that a warning names


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
        "elements": _element_counts(answer),
        "members": [f"{m:02d}" for m in answer.members],
        "ensemble": answer.ref,
        "pixel_size_pm": frame.pixel_size_pm,
        "pixel_size_error_pm": frame.pixel_size_error_pm,
        "mean_spread_px": _mean(answer.atoms[:, 4:6]),
        "position_90_pm": _finite(calibration.position_pm if calibration else None),
        **_bounded(calibration),
        "why": answer.why,
    }


def lines(answer: "Answer", *, is_verbose: bool) -> Iterator[str]:
    """Yield an answer for a terminal: one line, and the details on more lines if asked for."""
    yield f"{frame_name(answer)}: {_atoms_words(answer)}, {_quality_words(answer)}"
    if not is_verbose:
        return
    size_pm, error_pm = answer.frame.pixel_size_pm, answer.frame.pixel_size_error_pm
    if size_pm is not None:
        inferred = f" +- {error_pm:.2g}, inferred" if error_pm is not None else ""
        yield f"  pixel size: {size_pm:.4g} pm{inferred}"
    members = ", ".join(f"{member:02d}" for member in answer.members)
    yield f"  answered by: {answer.ref}, members {members}"
    spread = _mean(answer.atoms[:, 4:6])
    if spread is not None:
        unit = f" ({spread * size_pm:.2g} pm)" if size_pm else ""
        yield f"  mean spread of positions between members: {spread:.2g} px{unit}"
    if answer.calibration and math.isfinite(answer.calibration.position_pm):
        yield f"  90 % of positions are right to {answer.calibration.position_pm:.2g} pm"
    yield from (f"  - {reason}" for reason in answer.reasons)


def frame_name(answer: "Answer") -> str:
    """Return the file of an answer, and the number of the frame in a stack."""
    frame = answer.frame
    name = Path(frame.origin).name
    return name if frame.index is None else f"{name}, frame {frame.index}"


def warn(answers: "Sequence[Answer]") -> None:
    """Print a warning that names the frames out of distribution, and one for poor answers."""
    drifted = [one for one in answers if one.is_drifted]
    if drifted:
        say(f"warning: out of distribution: {_names(drifted)}. Do not rely on these atoms")
        for reason in drifted[0].verdict_reasons:
            say(f"why: {reason}")
    poor = [one for one in answers if one not in drifted and _is_poor(one)]
    if poor:
        say(f"warning: a predicted F1 below {POOR_F1:g}: {_names(poor)}")
        say(f"why: {poor[0].why}")
    for first in (drifted or poor)[:1]:
        file = shlex.quote(first.frame.origin)
        say(f"try: manybeam select {file} -e {first.question.ref} --show")


def _names(some: "Sequence[Answer]") -> str:
    """Return the names of the first frames, and how many more there are."""
    names = "; ".join(frame_name(one) for one in some[:MOST_NAMED])
    return names + f" and {len(some) - MOST_NAMED} more" * (len(some) > MOST_NAMED)


def _is_poor(answer: "Answer") -> bool:
    return answer.predicted_f1 is not None and answer.predicted_f1.f1 < POOR_F1


def write_atoms(path: Path | None, answers: "Sequence[Answer]") -> None:
    """Write one CSV of all atoms; positions are also in nm if the pixel size is known."""
    if path is None:
        return
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for answer in answers:
        writer.writerows(_csv_rows(answer))
    write_files({path: text.getvalue().encode()})


def write_pictures(folder: Path | None, answers: "Sequence[Answer]") -> None:
    """Write a picture of each answer."""
    if folder is None:
        return
    from manybeam.cli.terminal.answer_figure import answer_figure
    from manybeam.zoo.reports.plots import png

    for number, answer in enumerate(answers):
        frame = answer.frame
        name = f"{number:03d}-{Path(frame.origin).stem}-{frame.index or 0:03d}.png"
        words = f"{frame_name(answer)}: {_quality_words(answer)}"
        figure = answer_figure(
            frame.pixels_yx, answer.prediction, frame.pixel_size_pm, answer.elements, words
        )
        write_files({folder / name: png(figure)})


def write_zarr(url: str, answers: "Sequence[Answer]") -> None:
    """Write one Zarr group with a sub-group for each frame: frame, mean, std, mi, atoms."""
    if not url:
        return
    import zarr

    from manybeam.cli.terminal.targets import check_empty
    from manybeam.data.store import open_store
    from manybeam.spec.elements import symbol_of
    from manybeam.zoo.lineage import note_prediction

    check_empty(url, "answers")  # again: another process may have written since the start
    store = open_store(url)
    with store.writing() as place:
        zarr.create_group(place)
    try:
        with store.writing() as place:
            root = zarr.open_group(place, mode="r+")
            for number, answer in enumerate(answers):
                group = root.create_group(f"{number:05d}")
                arrays = {name: getattr(answer, f"{name}_yx") for name in ("mean", "std", "mi")}
                arrays |= {"frame": answer.frame.pixels_yx, "atoms": answer.atoms}
                for name, array in arrays.items():
                    group.create_array(name, data=array)
                symbols = [symbol_of(one) for one in answer.prediction.elements]
                named = {"atom_columns": list(ATOM_COLUMNS), "class_elements": symbols}
                group.attrs.update({**row(answer), **named})
    except BaseException:  # this call created the group; a part of an answer is none
        store.delete("")
        raise
    for ref in dict.fromkeys(answer.ref for answer in answers):
        note_prediction(ref, store.url)


def _atoms_words(answer: "Answer") -> str:
    counts = _element_counts(answer)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.items())
    count = len(answer.atoms)
    return f"{count} atom{'s' * (count != 1)}" + (f" ({kinds})" if kinds else "")


def _quality_words(answer: "Answer") -> str:
    """Return predicted F1 and verdict in words."""
    predicted = answer.predicted_f1
    verdict = verdict_words(answer.verdict)
    if predicted is None:
        return f"predicted F1 unknown, {verdict}"
    f1 = f"predicted F1 {predicted.f1:.2f} ({predicted.low:.2f} to {predicted.high:.2f})"
    is_calibrated = answer.selection is not None and answer.selection.is_calibrated
    return f"{f1}{'' if is_calibrated else ', not calibrated'}, {verdict}"


def verdict_words(verdict: str) -> str:
    """Return a verdict for people; "" stands for an answer without one.

    Example:
        >>> verdict_words("out-of-distribution"), verdict_words("unknown")
        ('out of distribution', 'drift unknown')
    """
    return "drift unknown" if verdict in ("", "unknown") else verdict.replace("-", " ")


def _element_counts(answer: "Answer") -> dict[str, int]:
    """Return how many atoms of each element there are; empty if none is distinguished."""
    return {name: count for name, count in Counter(answer.elements).most_common() if name}


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


def _mean(values: "np.ndarray[Any, Any]") -> float | None:
    import numpy as np

    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None

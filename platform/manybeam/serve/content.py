"""The JSON of an answer besides atoms: version, members, reasons, predicted F1, drift.

Axis letters: n frame, m member, y row, x column.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manybeam.serve.query import MAPS, RequestQuery
from manybeam.serve.wire import Frames, plain
from manybeam.spec.elements import symbol_of

if TYPE_CHECKING:
    from manybeam.data.io.frame import Frame
    from manybeam.learn.nets.prediction import Prediction
    from manybeam.predictor.answer import Answer
    from manybeam.predictor.f1.predicted import PredictedF1
    from manybeam.predictor.predictor import Ranked
    from manybeam.predictor.selection import Answerer, Candidate, Selection
    from manybeam.predictor.transferred_calibration import TransferredCalibration
    from manybeam.zoo.records import Record

CALIBRATION_FIELDS = (
    "temperature",
    "shift",
    "position_pm",
    "false_atoms",
    "threshold",
    "kept",
    "frame_count",
    "atom_count",
)


def answer_meta(found: "Sequence[Answer]", frames: Frames, query: RequestQuery) -> dict[str, Any]:
    """Return the facts of an answer as JSON data.

    For a stack, the facts of the first frame are at the top level, and those of each frame under
    `per_frame`. The drift is that of the first frame that drifted.
    """
    first = found[0]
    drifted = next((one for one in found if one.is_drifted), first)
    content = _meta(first.record, first.members, first.frame, frames, query) | _facts(first)
    content["drift"] = _drift(drifted)
    content["dropped"] = sorted({member for one in found for member in one.dropped})
    content["degraded"] = [*_notes(found), *_limits(first.record)]
    if frames.is_stack:
        content["per_frame"] = [_facts(one) for one in found]
    return content


def selection_content(
    ranked: "Sequence[Ranked]", frames: Frames, query: RequestQuery
) -> tuple[dict[str, Any], bool]:
    """Return a ranking as JSON data, and whether the frame is out of distribution."""
    best = ranked[0]
    selection = _selection_of(best)
    rows = [
        _candidate_row(one, candidate, is_chosen=one is best)
        for one in ranked
        for candidate in _selection_of(one).candidates
    ]
    rows.sort(key=lambda row: -row["predicted_f1"])
    record = best.version.record
    limits = [*best.notes, *_limits(record)]
    content = {
        "verdict": selection.verdict,
        "rests_on": selection.rests_on,
        "why": selection.why,
        "reasons": list(selection.reasons),
        "ref": best.version.ref,
        "chosen": list(selection.chosen),
        "calibrated": selection.is_calibrated,
        "answerers": [_answerer_row(one) for one in selection.answerers],
        "candidates": rows,
        "nearest": [list(pair) for pair in selection.nearest],
        "meta": _meta(record, selection.chosen, best.frame, frames, query) | {"degraded": limits},
    }
    return plain(content), bool(selection.is_drifted)


def _selection_of(one: "Ranked") -> "Selection":
    assert one.selection is not None  # noqa: S101 - a frame too small is refused
    return one.selection


def _meta(
    record: "Record | None",
    members: Sequence[int],
    first: "Frame",
    frames: Frames,
    query: RequestQuery,
) -> dict[str, Any]:
    """Return the facts of all frames of a request; `first` is its first frame as it was used."""
    return {
        "ref": record.ref if record else "",
        "ensemble": record.name if record else "",
        "version": record.version if record else None,
        "members": list(members),
        "pixel_size_pm": first.pixel_size_pm,
        "pixel_size_error_pm": first.pixel_size_error_pm,
        "frames": len(frames.frames),
        "shape": list(frames.frames[0].shape),
        "notes": [*frames.notes, *first.notes],
        "instrument": query.instrument,
        "frame_id": query.frame_id,
        "file": frames.file.facts() if frames.file else None,
    }


def _facts(one: "Answer") -> dict[str, Any]:
    """Return the facts of the answer for one frame."""
    return {
        "ref": one.ref,
        "members": list(one.members),
        "verdict": one.verdict or None,
        "elements": [symbol_of(number) for number in one.prediction.elements],
        "predicted_f1": _predicted(one.predicted_f1),
        "drift": _drift(one),
        "calibration": _calibration(one.calibration),
        "why": one.why,
        "reasons": list(one.reasons),
    }


def _drift(one: "Answer") -> dict[str, Any]:
    """Return drift score and flag; null if they are unknown."""
    return {"score": plain(one.drift_score), "flag": one.is_drifted}


def _predicted(known: "PredictedF1 | None") -> dict[str, float] | None:
    if known is None:
        return None
    return {"f1": float(known.f1), "low": float(known.low), "high": float(known.high)}


def _calibration(one: "TransferredCalibration | None") -> dict[str, Any] | None:
    """Return the calibration of the probabilities; null if they are the networks' own."""
    if one is None:
        return None
    content = {name: getattr(one, name) for name in CALIBRATION_FIELDS}
    return {name: plain(value) for name, value in content.items()}


def _limits(record: "Record | None") -> Iterator[str]:
    """Yield the limits of every answer of this version."""
    if record and record.failed:
        yield f"{len(record.failed)} planned member(s) failed in training"


def _notes(found: "Sequence[Answer]") -> Iterator[str]:
    """Yield the limits of each answer; for several frames, with the number of the frame."""
    shared = set(found[0].notes).intersection(*(one.notes for one in found[1:]))
    yield from (note for note in found[0].notes if note in shared)
    for number, one in enumerate(found):
        yield from (f"frame {number}: {note}" for note in one.notes if note not in shared)


def _answerer_row(one: "Answerer") -> dict[str, Any]:
    """Return one answerer of the comparison, with the share of each member."""
    return {
        "name": one.name,
        "members": {f"{member:02d}": share for member, share in one.weights.items()},
        "predicted_f1": one.predicted_f1,
        "low": one.low,
        "high": one.high,
    }


def _candidate_row(one: "Ranked", candidate: "Candidate", *, is_chosen: bool) -> dict[str, Any]:
    """Return one row of the ranking."""
    record = one.version.record
    return {
        "ref": f"{record.version_ref if record else ''}/{candidate.member:02d}",
        "member": candidate.member,
        "chosen": is_chosen and candidate.member in _selection_of(one).chosen,
        "predicted_f1": float(candidate.predicted_f1),
        "low": float(candidate.low),
        "high": float(candidate.high),
        "components": dict(candidate.components),
        "why": candidate.why,
    }


def arrays(
    found: "Sequence[Answer]", want: Sequence[str], *, is_stack: bool
) -> dict[str, NDArray[Any]]:
    """Return the requested arrays; for a stack, also the number of the frame of each row."""
    arrays: dict[str, NDArray[Any]] = {}
    if "atoms" in want or "votes" in want:
        atoms, frame_of = _joined([one.atoms for one in found])
        wanted = {"atoms": atoms, "votes": atoms[:, 6]}
        arrays |= {name: wanted[name] for name in ("atoms", "votes") if name in want}
        arrays |= {"atoms_frame": frame_of} if is_stack else {}
    if "members" in want:
        arrays["members"], frame_of = _joined([_member_rows(one.prediction) for one in found])
        arrays |= {"members_frame": frame_of} if is_stack else {}
    for name in MAPS:
        if name in want:
            maps_nyx = np.stack([getattr(one, f"{name}_yx") for one in found]).astype(np.float16)
            arrays[name] = maps_nyx if is_stack else maps_nyx[0]
    return arrays


def _member_rows(prediction: "Prediction") -> NDArray[np.float32]:
    """Return the atoms of each member, one row an atom: member, y, x, class, probability."""
    rows = [
        np.column_stack([np.full(len(atoms), member, np.float32), atoms])
        for member, atoms in zip(prediction.members, prediction.member_atoms, strict=True)
    ]
    return np.concatenate(rows).astype(np.float32)


def _joined(
    rows_n: Sequence[NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    counts = [len(rows) for rows in rows_n]
    return np.concatenate(rows_n), np.repeat(np.arange(len(rows_n), dtype=np.int32), counts)

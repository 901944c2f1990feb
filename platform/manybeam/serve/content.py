"""What an answer of the service holds besides atoms: who answered, why, how sure; as JSON has it.

Axis letters: n frame, m member, y row, x column.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manybeam.serve.query import MAPS, Question
from manybeam.serve.wire import Frames, plain

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Prediction
    from manybeam.predictor.selection import Answerer, Selection
    from manybeam.serve.predict import Loaded
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


def doubts(loaded: "Loaded", question: Question) -> Iterator[str]:
    """Yield what makes the answer worth less than it could be."""
    if question.pixel_size_pm is None:
        yield "no pixel_size_pm: the frame is taken at the members' own pixel size"
    if loaded.record.failed:
        yield f"{len(loaded.record.failed)} planned member(s) failed in training"


def meta(
    record: "Record", members: Sequence[int], frames: Frames, question: Question
) -> dict[str, Any]:
    """Return who answered what."""
    return {
        "ref": record.ref,
        "ensemble": record.name,
        "version": record.version,
        "members": list(members),
        "pixel_size_pm": question.pixel_size_pm,
        "frames": len(frames.frames),
        "shape": list(frames.frames[0].shape),
        "notes": list(frames.notes),
        "instrument": question.instrument,
        "frame_id": question.frame_id,
    }


def by_the_first(frames: Frames, asked: "Sequence[Selection | None]") -> list[str]:
    """Return that the first frame of a stack spoke for all, if it did."""
    if asked[0] is None or len(frames.frames) == len(asked):
        return []
    count = len(frames.frames)
    return [f"members, calibration and drift were told by the first of {count} frames"]


def drift(asked: "Sequence[Selection | None]") -> dict[str, Any]:
    """Return drift score and flag; null where selection was not asked, never a guess.

    Of several frames those of the first that drifted.
    """
    known = [one for one in asked if one is not None]
    if not known:
        return {"score": None, "flag": None}
    selection = next((one for one in known if one.verdict != "ok"), known[0])
    score: float | None = selection.candidates[0].components.get("distance")
    if selection.is_calibrated:
        score = selection.distance
    return {"score": plain(score), "flag": selection.verdict != "ok"}


def answerer_row(one: "Answerer") -> dict[str, Any]:
    """Return one answer that was compared, with each member's share in it."""
    return {
        "name": one.name,
        "members": {f"{member:02d}": share for member, share in one.weights.items()},
        "predicted_f1": one.predicted_f1,
        "low": one.low,
        "high": one.high,
    }


def calibration(selection: "Selection | None") -> dict[str, Any] | None:
    """Return what stands behind the probabilities; null where networks speak for themselves."""
    if selection is None or selection.transferred is None:
        return None
    one = selection.transferred
    content = {name: getattr(one, name) for name in CALIBRATION_FIELDS}
    return {name: plain(value) for name, value in content.items()}


def unpromised(asked: "Sequence[Selection | None]") -> Iterator[str]:
    """Yield what cannot be promised, and why; of several frames with the frame's number."""
    for number, one in enumerate(asked):
        for note in (
            one.transferred.notes if one is not None and one.transferred is not None else ()
        ):
            yield f"frame {number}: {note}" if len(asked) > 1 else note


def candidate_row(
    loaded: "Loaded", selection: "Selection", candidate: Any, *, is_chosen: bool
) -> dict[str, Any]:
    """Return one row of the ranking."""
    return {
        "ref": f"{loaded.record.version_ref}/{candidate.member:02d}",
        "member": candidate.member,
        "chosen": is_chosen and candidate.member in selection.chosen,
        "predicted_f1": float(candidate.predicted_f1),
        "low": float(candidate.low),
        "high": float(candidate.high),
        "components": dict(candidate.components),
        "why": candidate.why,
    }


def arrays(
    found: "Sequence[Prediction]", want: Sequence[str], *, is_stack: bool
) -> dict[str, NDArray[Any]]:
    """Return the arrays wanted; of a stack, rows carry the number of their frame beside them."""
    arrays: dict[str, NDArray[Any]] = {}
    if "atoms" in want or "votes" in want:
        atoms, frame_of = _joined([one.atoms for one in found])
        wanted = {"atoms": atoms, "votes": atoms[:, 6]}
        arrays |= {name: wanted[name] for name in ("atoms", "votes") if name in want}
        arrays |= {"atoms_frame": frame_of} if is_stack else {}
    if "members" in want:
        arrays["members"], frame_of = _joined([_member_rows(one) for one in found])
        arrays |= {"members_frame": frame_of} if is_stack else {}
    for name in MAPS:
        if name in want:
            maps_nyx = np.stack([getattr(one, f"{name}_yx") for one in found]).astype(np.float16)
            arrays[name] = maps_nyx if is_stack else maps_nyx[0]
    return arrays


def _member_rows(prediction: "Prediction") -> NDArray[np.float32]:
    """Return what each member found, one row an atom: member, y, x, class, probability."""
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

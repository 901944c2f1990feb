"""The pixel size of frames whose file has none: told by their crystal and said, or asked for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from manybeam.cli.terminal.output import say
from manybeam.errors import InvalidInput, MissingPixelSize

if TYPE_CHECKING:
    from manybeam.data.io.reading import FrameFile
    from manybeam.learn.analysis.pixel_size import InferredPixelSize

ERRORS = 2.0  # by which two frames of one pixel size may differ


def sized(record: "FrameFile") -> "FrameFile":
    """Return the record, its pixel size told by the lattice of its sample if nothing else tells it.

    What was inferred is said with its error and enters the condition, with the dose that follows;
    where nothing could be, that is said, and the size stays open (None): whoever needs one asks
    for it.
    """
    return all_sized([record])[0]


def all_sized(records: "Sequence[FrameFile]") -> "list[FrameFile]":
    """Return records of one import: frames alike that lack a pixel size get one for all of them.

    Raises:
        InvalidInput: their lattices tell sizes that differ by more than two errors.
    """
    told = [_told(one) if one.pixel_size_pm is None else None for one in records]
    done = list(records)
    for shape in dict.fromkeys(one.frame.shape[-2:] for one in records):
        mine = {
            place: size
            for place, size in enumerate(told)
            if size is not None and records[place].frame.shape[-2:] == shape
        }
        if mine:
            size_pm, words = _weighted({records[i].source.name: one for i, one in mine.items()})
            for place in mine:
                done[place] = _with(records[place], size_pm, words)
    return done


def check_sized(records: "Sequence[FrameFile]") -> None:
    """Raise MissingPixelSize that names every record without a pixel size."""
    lacking = [one.source.name for one in records if one.pixel_size_pm is None]
    if lacking:
        raise MissingPixelSize(
            f"no pixel size in {', '.join(lacking)}",
            "without one atoms cannot be measured, nor seen at the scale the members learnt",
            "add --pixel-size-pm (a 1024 px frame 8 nm wide has 7.8)",
        )


def _told(record: "FrameFile") -> "InferredPixelSize | None":
    """Return what the lattice tells, and say it, or why it tells nothing."""
    from manybeam.learn.analysis.pixel_size import cell_of, infer_pixel_size

    try:
        frame_yx = record.frame if record.frame.ndim == 2 else record.frame[0]
        told = infer_pixel_size(frame_yx, cell_of(record.condition.sample))
    except MissingPixelSize as error:
        say(f"{record.source.name}: {error.what}")
        return None
    say(f"{record.source.name}: {told}")
    return told


def _weighted(told: "dict[str, InferredPixelSize]") -> tuple[float, str]:
    """Return the mean (pm) weighted by the errors, and words for it with its own error.

    The error is not below that of the surest frame: what strain leaves open, frames of one sheet
    share.
    """
    small, large = (pick(told, key=lambda name: told[name].pixel_size_pm) for pick in (min, max))
    one, two = told[small], told[large]
    if two.pixel_size_pm - one.pixel_size_pm > ERRORS * math.hypot(one.error_pm, two.error_pm):
        raise InvalidInput(
            f"{small} has {one}; {large} has {two}: they differ by more than two errors",
            "files of one import are of one condition, with one pixel size",
            "import each kind by itself, or give --pixel-size-pm",
        )
    weights = [one.error_pm**-2 for one in told.values()]
    sizes = [one.pixel_size_pm for one in told.values()]
    mean = sum(w * size for w, size in zip(weights, sizes, strict=True)) / sum(weights)
    error = min(one.error_pm for one in told.values())
    words = f"{mean:.3g} +- {error:.2g} pm"
    if len(told) > 1:
        words += f", the mean of {len(told)} frames"
        say(f"pixel size {words}")
    return mean, words


def _with(record: "FrameFile", size_pm: float, words: str) -> "FrameFile":
    """Return the record with a pixel size, its condition too."""
    from manybeam.data.io.measured import with_inferred_size

    notes: list[str] = []
    condition = with_inferred_size(record.condition, words, size_pm, notes)
    for note in notes:
        say(f"{record.source.name}: {note}")
    return replace(record, pixel_size_pm=size_pm, condition=condition)

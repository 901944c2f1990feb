"""Instrument files of a command, and the pixel size of those that have none.

It is inferred from the lattice of their crystal.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from manybeam.cli.terminal.output import say
from manybeam.errors import InvalidInput, ManybeamError, MissingPixelSize

if TYPE_CHECKING:
    from pathlib import Path

    from manybeam.data.io.reading import FrameFile
    from manybeam.learn.analysis.pixel_size import InferredPixelSize
    from manybeam.spec import Condition

ERRORS = 2.0  # standard errors by which two frames of one pixel size may differ


def sized(record: "FrameFile") -> "FrameFile":
    """Return the record; a missing pixel size is inferred from the lattice of its sample.

    An inferred size is printed with its error. It enters the condition, with the dose that follows
    from it. If nothing can be inferred, the reason is printed and the size stays None.
    """
    return all_sized([record])[0]


def all_sized(records: "Sequence[FrameFile]") -> "list[FrameFile]":
    """Return the records of one import; frames of one shape without a pixel size get the same one.

    Raises:
        InvalidInput: sizes inferred from their lattices differ by more than two errors.
    """
    _warn_of_contradiction(records[:1])  # they have one size; measuring it takes a second
    inferred = [_inferred(one) if one.pixel_size_pm is None else None for one in records]
    done = list(records)
    for shape in dict.fromkeys(one.frame.shape[-2:] for one in records):
        mine = {
            place: size
            for place, size in enumerate(inferred)
            if size is not None and records[place].frame.shape[-2:] == shape
        }
        if mine:
            size_pm, words = _weighted({records[i].source.name: one for i, one in mine.items()})
            for place in mine:
                done[place] = _with(records[place], size_pm, words)
    return done


def read_files(
    files: "Sequence[Path]", pixel_size_pm: float | None, condition: "Condition | None"
) -> "list[FrameFile]":
    """Read every file and print its notes, or raise one error that lists all unusable files."""
    from manybeam.data.io.reading import read_frames

    records: list[FrameFile] = []
    faults: list[ManybeamError] = []
    for path in files:
        try:
            records.append(read_frames(path, pixel_size_pm=pixel_size_pm, condition=condition))
        except ManybeamError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise InvalidInput(
            "\n".join(str(fault) for fault in faults),
            f"{len(faults)} of {len(files)} files cannot be used; nothing was written",
            "leave these files out",
        )
    for record in records:
        for note in record.notes:
            say(f"{record.source.name}: {note}")
    return records


def stated_condition(name: str) -> "Condition | None":
    """Return the condition of an id of the zoo folder or of a YAML file; None for ""."""
    from manybeam.spec import load_condition
    from manybeam.spec.facility import facility_library
    from manybeam.spec.files import YAML

    if not name:
        return None
    if name.lower().endswith(YAML):
        return load_condition(name)
    return facility_library().condition(name)


def check_sized(records: "Sequence[FrameFile]", sized_files: "Collection[str]" = ()) -> None:
    """Raise MissingPixelSize with the name of every file without a pixel size.

    Args:
        records: the files.
        sized_files: paths of files whose pixel size is known otherwise.
    """
    lacking = [
        one.source.name
        for one in records
        if one.pixel_size_pm is None and str(one.source) not in sized_files
    ]
    if lacking:
        raise MissingPixelSize(
            f"no pixel size in {', '.join(lacking)}",
            "positions in picometres and the scale of the members depend on it",
            "pass --pixel-size-pm (a 1024 px frame 8 nm wide has 7.8), or --condition",
        )


def _warn_of_contradiction(records: "Sequence[FrameFile]") -> None:
    from manybeam.data.io.frame import frames_of
    from manybeam.predictor.pixel_size import contradiction

    for record in records:
        if said := contradiction(frames_of(record)[0]):
            say(f"warning: {record.source.name}: {said}")


def _inferred(record: "FrameFile") -> "InferredPixelSize | None":
    """Return the pixel size of the lattice and print it, or print why there is none."""
    from manybeam.learn.analysis.pixel_size import cell_of, infer_pixel_size

    try:
        frame_yx = record.frame if record.frame.ndim == 2 else record.frame[0]
        size = infer_pixel_size(frame_yx, cell_of(record.condition.sample))
    except MissingPixelSize as error:
        say(f"{record.source.name}: {error.what}")
        return None
    say(f"{record.source.name}: {size}")
    return size


def _weighted(found: "dict[str, InferredPixelSize]") -> tuple[float, str]:
    """Return the mean (pm) weighted by the errors, and a text of it with its error.

    The error is not below that of the best frame, because frames of one sheet share its strain.
    """
    small, large = (end(found, key=lambda name: found[name].pixel_size_pm) for end in (min, max))
    one, two = found[small], found[large]
    if two.pixel_size_pm - one.pixel_size_pm > ERRORS * math.hypot(one.error_pm, two.error_pm):
        raise InvalidInput(
            f"{small} has {one}; {large} has {two}: they differ by more than two errors",
            "files of one import have one condition and one pixel size",
            "import each kind separately, or pass --pixel-size-pm",
        )
    weights = [one.error_pm**-2 for one in found.values()]
    sizes = [one.pixel_size_pm for one in found.values()]
    mean = sum(w * size for w, size in zip(weights, sizes, strict=True)) / sum(weights)
    error = min(one.error_pm for one in found.values())
    words = f"{mean:.3g} +- {error:.2g} pm"
    if len(found) > 1:
        words += f", the mean of {len(found)} frames"
        say(f"pixel size {words}")
    return mean, words


def _with(record: "FrameFile", size_pm: float, words: str) -> "FrameFile":
    """Return the record with a pixel size, also in its condition."""
    from manybeam.data.io.measured import with_inferred_size

    notes: list[str] = []
    condition = with_inferred_size(record.condition, words, size_pm, notes)
    for note in notes:
        say(f"{record.source.name}: {note}")
    return replace(record, pixel_size_pm=size_pm, condition=condition)

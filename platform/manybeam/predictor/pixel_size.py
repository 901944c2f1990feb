"""The pixel size of a frame before a network sees it: inferred if missing, doubted if impossible.

A lattice tells the size if the crystal is known: from the condition of the frame, or because the
version that answers was made for one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.frame import Frame
from manybeam.errors import DoubtfulPixelSize, MissingPixelSize
from manybeam.learn.analysis.pixel_size import (
    CELLS,
    Cell,
    InferredPixelSize,
    cell_of,
    infer_pixel_size,
)
from manybeam.learn.nets.member import Member
from manybeam.predictor.condition_distance import comparable, structure_of
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.spec import Library, Policy, Range

MIDDLE_PX = 1024  # side of the part of a large frame whose lattice is measured
# Within the first ratio of the trained pixel sizes a stated size is taken as it is. Beyond it the
# lattice is measured. If there is none, the size is doubted beyond the second ratio.
USUAL, IMPOSSIBLE = 1.5, 4.0
CONTRADICTION = 2.5  # ratio of stated and inferred size; a second order taken for a first makes 2


def cell_for(frame: Frame, version: LoadedVersion | None, library: Library) -> Cell | None:
    """Return the lattice of a frame's crystal, or None if it is unknown.

    If the condition of the frame names no sample, it is the crystal the version was made for.
    """
    if frame.condition is not None and _names_sample(frame):
        return cell_of(frame.condition.sample)
    if version is None:
        return None
    measured = comparable(version.matrix, library)
    known = version.performance
    structure = structure_of(
        None,
        [*measured, *policies_of(version.ensemble.members, library)],
        known.table.structure if known else "",
    )
    return CELLS.get(structure)


def with_inferred_size(
    frames: Sequence[Frame], version: LoadedVersion | None, library: Library
) -> tuple[Frame, ...]:
    """Return the frames of one recording with the pixel size that the lattice of the first shows.

    Frames that have a pixel size keep it. A note says what was inferred and assumed.

    Args:
        frames: of one recording.
        version: the version that the caller named; None for `auto`. Its crystal is assumed if the
            condition names no sample.
        library: conditions and policies by id.

    Raises:
        MissingPixelSize: no lattice is known, or none shows in the frame.
    """
    first = next((one for one in frames if one.pixel_size_pm is None), None)
    if first is None:
        return tuple(frames)
    size = infer_pixel_size(_middle(first.pixels_yx), cell_for(first, version, library))
    assumed = ""
    if version is not None and not _names_sample(first):
        name = version.ref or "this ensemble"
        assumed = f"; this assumes {size.lattice}, for which {name} was made"
    return tuple(
        replace(
            one,
            pixel_size_pm=size.pixel_size_pm,
            pixel_size_error_pm=size.error_pm,
            notes=(*one.notes, f"pixel size inferred: {_words(size)}{assumed}"),
        )
        if one.pixel_size_pm is None
        else one
        for one in frames
    )


def check_pixel_size(frame: Frame, version: LoadedVersion, library: Library) -> None:
    """Refuse a stated pixel size that contradicts the frame, or what the members were trained for.

    Raises:
        DoubtfulPixelSize: with both sizes, and how to insist.
    """
    size_pm = frame.pixel_size_pm
    if size_pm is None or frame.pixel_size_error_pm is not None:
        return
    low_pm, high_pm = trained_sizes_pm(version, library)
    if low_pm / USUAL <= size_pm <= high_pm * USUAL:
        return
    seen = _seen(frame, cell_for(frame, version, library))
    if seen is not None:
        if not _contradicts(seen, size_pm):
            return
        raise _doubtful(size_pm, f"the frame shows {_words(seen)}", f"{seen.pixel_size_pm:.3g}")
    if low_pm / IMPOSSIBLE <= size_pm <= high_pm * IMPOSSIBLE:
        return
    span = f"{low_pm:g}" if low_pm == high_pm else f"{low_pm:g} to {high_pm:g}"
    name = version.ref or "this ensemble"
    raise _doubtful(size_pm, f"{name} was trained for {span} pm a pixel", "the right one")


def contradiction(frame: Frame) -> str:
    """Return what the lattice of the stated crystal says against the stated size; "" if nothing."""
    if frame.pixel_size_pm is None or frame.condition is None:
        return ""
    seen = _seen(frame, cell_of(frame.condition.sample))
    if seen is None or not _contradicts(seen, frame.pixel_size_pm):
        return ""
    return f"pixel size {frame.pixel_size_pm:.4g} pm is stated, but the frame shows {_words(seen)}"


def trained_sizes_pm(version: LoadedVersion, library: Library) -> tuple[float, float]:
    """Return the smallest and the largest pixel size that the members of a version know, in pm."""
    return sizes_of_members_pm(version.ensemble.members, library)


def sizes_of_members_pm(members: Sequence[Member], library: Library) -> tuple[float, float]:
    """Return the smallest and the largest pixel size that members know, in pm."""
    sizes = [member.recipe.tiles.pixel_size_pm for member in members]
    for policy in policies_of(members, library):
        size = policy.scan.pixel_size_pm
        sizes += [size.low, size.high] if isinstance(size, Range) else [size] if size else []
    return min(sizes), max(sizes)


def policies_of(members: Sequence[Member], library: Library) -> list[Policy]:
    """Return the policies of members that the library has."""
    names = dict.fromkeys(member.policy for member in members)
    return [library.policies[name] for name in names if name in library.policies]


def _names_sample(frame: Frame) -> bool:
    """Return whether the condition of a frame says what the sample is."""
    if frame.condition is None:
        return False
    sample = frame.condition.sample
    return sample.structure != "unknown" or bool(sample.material)


def _words(size: InferredPixelSize) -> str:
    return (
        f"{size.pixel_size_pm:.3g} +- {size.error_pm:.2g} pm, from {size.spot_count} spots of the "
        f"{size.lattice} lattice"
    )


def _contradicts(seen: InferredPixelSize, size_pm: float) -> bool:
    return not 1 / CONTRADICTION < seen.pixel_size_pm / size_pm < CONTRADICTION


def _seen(frame: Frame, cell: Cell | None) -> InferredPixelSize | None:
    try:
        return infer_pixel_size(_middle(frame.pixels_yx), cell)
    except MissingPixelSize:
        return None


def _middle(pixels_yx: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the middle of a large frame, so that its size does not make a question slow."""
    tops = [max(0, (side - MIDDLE_PX) // 2) for side in pixels_yx.shape]
    return pixels_yx[tops[0] : tops[0] + MIDDLE_PX, tops[1] : tops[1] + MIDDLE_PX]


def _doubtful(size_pm: float, against: str, right: str) -> DoubtfulPixelSize:
    return DoubtfulPixelSize(
        f"pixel size {size_pm:.4g} pm is stated, but {against}",
        "at a wrong size the answer is wrong, and can take minutes",
        f"pass --pixel-size-pm with {right}; if {size_pm:.4g} is right, add --trust-pixel-size "
        "(over HTTP pixel_size_pm and trust_pixel_size=true)",
    )

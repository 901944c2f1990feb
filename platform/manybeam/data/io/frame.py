"""One frame, from an instrument file, an array or a request.

Axis letters: n frame, y row, x column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manybeam.data.io.formats import Raw
from manybeam.data.io.measured import settle_condition, settle_pixel_size
from manybeam.data.io.reading import FrameFile, inspect_frame
from manybeam.spec.imaging import Condition


@dataclass(frozen=True, eq=False)
class Frame:
    """One recorded image with the known facts of its recording.

    Attributes:
        pixels_yx: float32, finite, with contrast.
        pixel_size_pm: edge of a pixel, in pm; None if unknown.
        condition: its known condition; unknown fields are None.
        origin: file or other source, for messages.
        index: number of the frame in its stack; None if it came alone.
        pixel_size_error_pm: standard error of an inferred pixel size; None if it was stated.
        notes: what was chosen, converted or filled when it was read, a sentence each.
    """

    pixels_yx: NDArray[np.float32] = field(repr=False)
    pixel_size_pm: float | None = None
    condition: Condition | None = None
    origin: str = "array"
    index: int | None = None
    pixel_size_error_pm: float | None = None
    notes: tuple[str, ...] = ()


def frame_of(
    array: ArrayLike,
    pixel_size_pm: float | None = None,
    condition: Condition | None = None,
    *,
    origin: str = "array",
) -> Frame:
    """Return an array as a checked frame, with its known condition.

    Args:
        array: two axes of real numbers.
        pixel_size_pm: edge of a pixel, in pm; that of the condition if left out.
        condition: its condition, as far as it is known.
        origin: its source, for messages.

    Raises:
        InvalidFrame: the array is not a frame.
        InvalidInput: the pixel size is out of bounds.
    """
    pixels_yx, notes = inspect_frame(array)
    return _framed(pixels_yx, pixel_size_pm, condition, origin, notes)


def frames_of(file: FrameFile) -> tuple[Frame, ...]:
    """Return the frames of a file, each with the pixel size and condition of the file."""
    is_stack = file.frame.ndim == 3
    return tuple(
        Frame(
            pixels_yx,
            file.pixel_size_pm,
            file.condition,
            file.source.name,
            number if is_stack else None,
            notes=file.notes,
        )
        for number, pixels_yx in enumerate(file.frame if is_stack else file.frame[None])
    )


def stack_of(
    pixels_nyx: Sequence[NDArray[np.float32]],
    pixel_size_pm: float | None = None,
    condition: Condition | None = None,
    *,
    origin: str = "array",
    is_stack: bool = True,
) -> tuple[Frame, ...]:
    """Return checked arrays of one recording as frames; each is numbered if it is a stack."""
    frames = [_framed(one, pixel_size_pm, condition, origin, ()) for one in pixels_nyx]
    if not is_stack:
        return tuple(frames)
    return tuple(replace(one, index=number) for number, one in enumerate(frames))


def _framed(
    pixels_yx: NDArray[np.float32],
    pixel_size_pm: float | None,
    condition: Condition | None,
    origin: str,
    notes: Sequence[str],
) -> Frame:
    raw, more = Raw(pixels_yx), list(notes)
    size_pm = settle_pixel_size(raw, pixel_size_pm, condition, more)
    known = settle_condition(raw, Path(origin), pixels_yx.shape, size_pm, condition, more)
    return Frame(pixels_yx, size_pm, known, origin, notes=tuple(more))

"""The pixel size of frames whose file has none: told by their crystal and said, or asked for."""

from dataclasses import replace
from typing import TYPE_CHECKING

from manybeam.cli.output import say
from manybeam.errors import MissingPixelSize

if TYPE_CHECKING:
    from manybeam.data.intake import Record


def sized(record: "Record") -> "Record":
    """Return the record, its pixel size told by the lattice of its sample if nothing else tells it.

    What was inferred is said with its error; where nothing could be, that is said, and the size
    stays open (None): whoever needs one asks for it.
    """
    if record.pixel_size_pm is not None:
        return record
    from manybeam.learn.pixel_size import cell_of, infer_pixel_size

    try:
        frame_yx = record.frame if record.frame.ndim == 2 else record.frame[0]
        told = infer_pixel_size(frame_yx, cell_of(record.condition.sample))
    except MissingPixelSize as error:
        say(f"{record.source.name}: {error.what}")
        return record
    say(f"{record.source.name}: {told}")
    return replace(record, pixel_size_pm=told.pixel_size_pm)

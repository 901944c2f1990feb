"""Writing a whole FrameSet batch by batch; readers see it after the last one.

The arrays are in a new folder, so writers do not disturb each other. A set that is there does not
change until the record that replaces it is written. Axis letters: n frame, y row, x column.
"""

import logging
import uuid
from collections.abc import Iterable, Sequence

import zarr
from numpy import ndarray

from manybeam.data import layout
from manybeam.data.batch import Batch
from manybeam.data.commits import Commit, CommitLog
from manybeam.data.store import Store
from manybeam.errors import ManybeamError

logger = logging.getLogger(__name__)
Part = tuple[ndarray, Sequence[ndarray] | None, float | ndarray | None]


def write_whole(store: Store, first: Commit, parts: Iterable[Part], *, overwrite: bool) -> Commit:
    """Write frames part by part and return the record that shows them all.

    Args:
        store: store of the set.
        first: the record of the set without frames.
        parts: (frames, truth, pixel sizes) of each part, as `FrameSet.append` takes them.
        overwrite: replace a set that is there, when the new one is whole.

    Raises:
        Conflict: there is a set, and it must not be overwritten.
    """
    made = first.model_copy(update={"folder": f"{layout.MADE}/{uuid.uuid4().hex}"})
    folder = made.folder
    try:
        for part in parts:
            made = _added(store, made, Batch(made, *part))
        record, before = CommitLog(store).replace(made, overwrite=overwrite)
    except BaseException:
        _delete(store, [folder])
        raise
    if before is not None:
        _delete(store, [before.folder] if before.folder else layout.ARRAYS)
    return record


def _added(store: Store, before: Commit, batch: Batch) -> Commit:
    if not len(batch.frames_nyx):
        return before
    after = batch.commit_after(before)
    with store.writing() as place, zarr.config.set({"array.write_empty_chunks": True}):
        layout.frames_array(place, after)[before.count :] = batch.frames_nyx
        layout.sizes_array(place, after)[before.count :] = batch.sizes_n
        if batch.rows is not None and len(batch.rows):
            layout.truth_array(place, after)[before.truth_rows or 0 :] = batch.rows
    return after


def _delete(store: Store, parts: Sequence[str]) -> None:
    """Free space; if something stays, no record refers to it."""
    try:
        for part in parts:
            store.delete(part)
    except ManybeamError as error:
        extra = {"url": store.url, "why": str(error)}
        logger.warning("unused frames were not deleted", extra=extra)

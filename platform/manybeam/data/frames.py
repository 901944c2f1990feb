"""Frames of one condition and the truth on them, in one Zarr group that grows by atomic appends.

Axis letters: n frame, y row, x column; K atoms of one frame.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy import ndarray

from manybeam.data import layout
from manybeam.data.batch import Batch, chain, seed
from manybeam.data.commits import AppendLock, Commit, CommitLog
from manybeam.data.making import Part, write_whole
from manybeam.data.representation import Drawable
from manybeam.data.store import Store, open_store
from manybeam.errors import (
    Conflict,
    Corrupt,
    InvalidInput,
    ManybeamError,
    NotFound,
    UnknownFrameSet,
)
from manybeam.spec import Condition, Policy

logger = logging.getLogger(__name__)
BATCH_BYTES = 64 * 2**20


class FrameSet(Drawable, html="manybeam.data.notebook:frameset_html"):
    """Frames, their truth and pixel sizes, and the condition (or policy) they came from.

    A FrameSet shows one commit: its content when it was opened or last appended to through this
    object. Call `FrameSet.open` again to see what others have appended since.

    Args:
        store: store of the set.
        commit: the commit to show.
    """

    def __init__(self, store: Store, commit: Commit) -> None:
        self._store, self._commit, self._log = store, commit, CommitLog(store)
        kind = Condition if commit.kind == "condition" else Policy
        self._condition: Condition | Policy = kind.model_validate(commit.imaging)
        self._truth_rows: ndarray | None = None
        self._sizes: ndarray | None = None

    @classmethod
    def create(
        cls,
        url: str | Path,
        condition: Condition | Policy,
        shape: tuple[int, int],
        dtype: str = "float32",
        *,
        overwrite: bool = False,
    ) -> "FrameSet":
        """Make an empty FrameSet.

        Args:
            url: place of the set; see `open_store`.
            condition: condition or policy of the frames.
            shape: rows and columns of each frame.
            dtype: stored type: `float32`, `uint8` or `uint16`; frames are read back as float32.
            overwrite: replace a set that is there, in one step.

        Raises:
            Conflict: there is already a set.
            InvalidInput: the shape or type cannot be stored.
        """
        commit = _first(condition, shape, dtype)
        store = open_store(url)
        if overwrite:
            made = cls(store, write_whole(store, commit, (), overwrite=True))
        else:
            made = cls(store, commit)
            try:
                made._log.begin(commit)
            except Conflict as error:
                hint = "choose another URL, or overwrite it"
                raise Conflict(f"there is already a FrameSet at {store.url}", "", hint) from error
        made._describe()
        return made

    @classmethod
    def write(
        cls,
        url: str | Path,
        condition: Condition | Policy,
        shape: tuple[int, int],
        parts: Iterable[Part],
        *,
        overwrite: bool = False,
    ) -> "FrameSet":
        """Make a FrameSet of frames that come part by part; readers see it after the last part.

        Args:
            url: place of the set; see `open_store`.
            condition: condition or policy of the frames.
            shape: rows and columns of each frame.
            parts: (frames, truth, pixel sizes) of each part, as `append` takes them.
            overwrite: replace a set that is there, when the new one is whole.

        Raises:
            Conflict: there is already a set.
            InvalidInput: the shape cannot be stored; or what `append` raises.
        """
        store = open_store(url)
        first = _first(condition, shape, "float32")
        made = cls(store, write_whole(store, first, parts, overwrite=overwrite))
        made._describe()
        return made

    @classmethod
    def open(cls, url: str | Path, digest: str = "") -> "FrameSet":
        """Return the FrameSet of a URL: one listing and one read.

        Args:
            url: place of the set.
            digest: show the set as it was when it had this digest.

        Raises:
            UnknownFrameSet: there is no set, it never had that digest, or it was replaced.
            Corrupt: its commit record cannot be read.
            StoreUnreachable: the store does not answer in time.
        """
        try:
            store = open_store(url, create=False)
        except NotFound as error:
            why, hint = error.what, "manybeam data ls lists FrameSets"
            if Path(url).is_file():
                why, hint = "it is a file", f"manybeam data import {url} --out frames/today"
            raise UnknownFrameSet(f"there is no FrameSet at {url}", why, hint) from error
        log = CommitLog(store)
        head = log.head()
        return cls(store, head if digest in ("", head.digest) else log.before(head, digest))

    def __len__(self) -> int:
        return self._commit.count

    def __repr__(self) -> str:
        return f"FrameSet({self.url!r}, {len(self)} frames of {self.shape})"

    @property
    def url(self) -> str:
        """URL of the set."""
        return self._store.url

    @property
    def condition(self) -> Condition | Policy:
        """Condition or policy of the frames."""
        return self._condition

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of each frame."""
        return self._commit.shape

    @property
    def has_truth(self) -> bool:
        """Whether the atoms of the frames are known."""
        return self._commit.truth_rows is not None

    @property
    def digest(self) -> str:
        """32 hex digits of frames, truth, pixel sizes and condition, for any series of appends."""
        return self._commit.digest

    def append(
        self,
        frames_nyx: ndarray,
        truth: Sequence[ndarray] | None,
        pixel_size_pm: float | ndarray | None,
    ) -> None:
        """Add frames; readers see all of them or none.

        Args:
            frames_nyx: finite frames of the shape of the set.
            truth: (K, 3) = y, x, class of the atoms of each frame; None if unknown. A set has
                truth for all frames or for none.
            pixel_size_pm: edge of a pixel, one for all or one for each frame; None or NaN if
                unknown.

        Raises:
            InvalidFrame: frames have another shape, are not finite, or lose values in the type of
                the set.
            InvalidInput: truth or pixel sizes do not fit the frames.
            Conflict: another writer is appending, or has appended since this set was opened.
            WriteFailed: the disk is full; the set is unchanged.
            StoreUnreachable: the store stopped answering; open the set again to see its content.
        """
        batch = Batch(self._commit, frames_nyx, truth, pixel_size_pm)
        if not len(batch.frames_nyx):
            return
        with self._log.lock(self._commit) as lock:
            after = batch.commit_after(lock.head)
            try:
                self._write(lock, after, batch)
                lock.commit(after)
            except (ConnectionError, Conflict):
                raise  # another writer may have written there by now
            except BaseException:
                self._discard(lock.head, after)
                raise
        self._commit, self._truth_rows, self._sizes = after, None, None
        self._describe()

    def frames(self, which: slice | Sequence[int] | None = None) -> ndarray:
        """Return frames as float32: all, a slice, or those of the given numbers in that order.

        Raises:
            NotFound: a number is beyond the last frame.
            Corrupt: a chunk is lost or was changed.
        """
        numbers = range(len(self))[which] if isinstance(which, slice) else which
        numbers = range(len(self)) if numbers is None else numbers
        if not isinstance(numbers, range) or numbers.step != 1:
            numbers = [self._number(i) for i in numbers]
        return self._read(numbers).astype(np.float32, copy=False)

    def frame(self, i: int) -> ndarray:
        """Return one frame; negative numbers count from the end."""
        number = self._number(i)
        found_yx: ndarray = self.frames(slice(number, number + 1))[0]
        return found_yx

    def truth(self, i: int) -> ndarray:
        """Return y, x, class of the atoms of one frame; raises NotFound if the set has no truth."""
        number = self._number(i)
        if not self.has_truth:
            raise NotFound(f"{self.url} has no truth", "", "append frames with their atoms")
        if self._truth_rows is None:
            self._truth_rows = self._load(layout.truth_array(self._store.zarr(), self._commit))
        low, high = np.searchsorted(self._truth_rows[:, 0], [number, number + 1])
        return self._truth_rows[low:high, 1:].copy()

    def pixel_size_pm(self, i: int) -> float | None:
        """Return the edge of a pixel of one frame, else that of the condition, else None."""
        number = self._number(i)
        if self._sizes is None:
            self._sizes = self._load(layout.sizes_array(self._store.zarr(), self._commit))
        if np.isfinite(self._sizes[number]):
            return float(self._sizes[number])
        known = self.condition.scan.pixel_size_pm
        return known if isinstance(known, float) else None

    def verify(self) -> None:
        """Read everything and compare it with the record of each append.

        Raises:
            Corrupt: some frames differ from what was appended; the message names the first.
        """
        history = [c for c in self._log.history() if c.number <= self._commit.number]
        digest, count = seed(self._commit.dtype, self.shape, self.condition), 0
        for after in (c for c in history if c.folder == self._commit.folder):
            for low in range(count, after.count, self._batch_count):
                numbers = range(low, min(low + self._batch_count, after.count))
                digest = chain(digest, self._read(numbers), *self._beside(numbers))
            if digest != after.digest:
                part = f"frames {count} to {after.count - 1}" if after.count else "the condition"
                raise self._corrupt(part)
            count = after.count

    @property
    def _batch_count(self) -> int:
        return max(1, BATCH_BYTES // (4 * self.shape[0] * self.shape[1]))

    def _beside(self, numbers: range) -> tuple[list[ndarray] | None, ndarray]:
        """Return truth and pixel sizes as they were appended."""
        sizes = self._load(layout.sizes_array(self._store.zarr(), self._commit))
        truth = [self.truth(i) for i in numbers] if self.has_truth else None
        return truth, sizes[numbers.start : numbers.stop]

    def _number(self, i: int) -> int:
        number = int(i) + len(self) if i < 0 else int(i)
        if not 0 <= number < len(self):
            raise NotFound(f"there is no frame {i} in {self.url}", f"it has {len(self)} frames", "")
        return number

    def _read(self, numbers: range | Sequence[int]) -> ndarray:
        """Return frames as stored, in one batched read."""
        array = layout.frames_array(self._store.zarr(read_only=True), self._commit)
        if not len(numbers):
            return np.zeros((0, *self.shape), self._commit.dtype)
        is_run = isinstance(numbers, range)
        where = slice(numbers[0], numbers[-1] + 1) if is_run else list(numbers)
        try:
            frames_nyx = self._load(array, where, f"frame {numbers[0]}")
        except Corrupt:
            for number in numbers if len(numbers) > 1 else ():
                self._read([number])  # raises for the damaged one, with its number
            raise
        step_y, step_x = layout.chunk_shape(self.shape)
        lost_n = np.isnan(frames_nyx[:, ::step_y, ::step_x]).any(axis=(1, 2))
        if lost_n.any():
            raise self._corrupt(f"frame {numbers[int(lost_n.argmax())]}")
        return frames_nyx

    def _load(
        self, array: "zarr.Array[Any]", where: slice | list[int] = slice(None), part: str = ""
    ) -> ndarray:
        chosen = where if isinstance(where, slice) else np.array(where)
        try:
            with self._store.guard("read"):
                return np.asarray(array.oindex[chosen])
        except (ValueError, RuntimeError) as error:
            if isinstance(error, ManybeamError):
                raise
            raise self._corrupt(part or array.basename, str(error)) from error

    def _corrupt(self, part: str, why: str = "") -> Corrupt:
        why = why or "the stored bytes are not those that were appended"
        hint = "restore it from a backup, or make the set again"
        return Corrupt(f"{part} of {self.url} is corrupt", why, hint)

    def _write(self, lock: AppendLock, after: Commit, batch: Batch) -> None:
        """Write the arrays of an append; they count only after the commit."""
        start = lock.head.count
        with self._store.writing() as place, zarr.config.set({"array.write_empty_chunks": True}):
            frames_array = layout.frames_array(place, after)
            for low in range(0, len(batch.frames_nyx), self._batch_count):
                part_nyx = batch.frames_nyx[low : low + self._batch_count]
                lock.check()
                frames_array[start + low : start + low + len(part_nyx)] = part_nyx
            lock.check()
            layout.sizes_array(place, after)[start:] = batch.sizes_n
            if batch.rows is not None and len(batch.rows):
                layout.truth_array(place, after)[lock.head.truth_rows or 0 :] = batch.rows

    def _discard(self, head: Commit, after: Commit) -> None:
        """Free the space of frames that will never count.

        If an interrupt comes after the record was written, the frames count.
        """
        try:
            if not self._store.exists(after.key):
                self._store.delete_keys(layout.frame_keys(after, head.count, after.count))
        except ManybeamError as error:
            logger.warning("frames of a failed append stay", extra={"why": str(error)})

    def _describe(self) -> None:
        """Write the metadata for other readers; ours use only the commit."""
        name = self.url.rstrip("/").rsplit("/", 1)[-1]
        try:
            for key, document in layout.documents(self._commit, name).items():
                self._store.put(key, document)
        except ManybeamError as error:
            extra = {"url": self.url, "why": str(error)}
            logger.warning("metadata was not written; the next append writes it", extra=extra)


def _first(condition: Condition | Policy, shape: tuple[int, int], dtype: str) -> Commit:
    """Return the record of a set without frames."""
    if dtype not in layout.DTYPES:
        raise InvalidInput(f"dtype {dtype!r} cannot be stored", f"one of {layout.DTYPES}", "")
    if len(shape) != 2 or min(shape) < 1:
        raise InvalidInput(
            f"{shape} is not the shape of a frame", "rows and columns, each >= 1", ""
        )
    rows, columns = int(shape[0]), int(shape[1])
    return Commit(
        number=0,
        count=0,
        digest=seed(dtype, (rows, columns), condition),
        shape=(rows, columns),
        dtype=dtype,
        kind="policy" if isinstance(condition, Policy) else "condition",
        imaging=condition.model_dump(mode="json"),
    )


def list_framesets(url: str | Path) -> list[str]:
    """Return the URLs of the FrameSets at and below a URL, sorted; none if nothing is there."""
    try:
        store = open_store(url, create=False)
    except NotFound:
        return []
    found, waiting = [], [""]
    while waiting:
        prefix = waiting.pop()
        below = store.folders(prefix)
        if f"{prefix}/commits".lstrip("/") in below:
            found.append(store.child(prefix).url)
        else:
            waiting += [name for name in below if not name.endswith(f"/{layout.MADE}")]
    return sorted(found)

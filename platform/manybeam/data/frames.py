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


class FrameSet:
    """Frames, their truth and pixel sizes, and the condition (or policy) they came from.

    A FrameSet shows one commit: what was there when it was opened or last appended to through
    it. `FrameSet.open` again to see what others have appended since.

    Args:
        store: where it lies.
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
            url: where; see `open_store`.
            condition: what the frames were recorded under, or drawn from.
            shape: rows and columns of each frame.
            dtype: `float32`, `uint8` or `uint16`, as stored; frames are read back as float32.
            overwrite: put it in place of a set that is there, at once: at no moment is there none.

        Raises:
            Conflict: there is a set already.
            InvalidInput: a shape or type that cannot be kept.
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
                hint = "give another URL, or overwrite it"
                raise Conflict(f"there is a frame set at {store.url}", "", hint) from error
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
        """Make a FrameSet of frames that come part by part; nobody sees it before the last one.

        Args:
            url: where; see `open_store`.
            condition: what the frames were recorded under, or drawn from.
            shape: rows and columns of each frame.
            parts: (frames, truth, pixel sizes) of each part, as `append` takes them.
            overwrite: replace a set that is there; it stays whole until the new one is.

        Raises:
            Conflict: there is a set already.
            InvalidInput: a shape that cannot be kept; or what `append` raises.
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
            url: where it lies.
            digest: show it as it was when it had this digest, whatever was appended since.

        Raises:
            UnknownFrameSet: there is none, or it never had that digest, or was replaced since.
            Corrupt: its commit record cannot be read.
            StoreUnreachable: the store does not answer in time.
        """
        try:
            store = open_store(url, create=False)
        except NotFound as error:
            why, hint = error.what, "manybeam data ls shows those there are"
            if Path(url).is_file():
                why, hint = "it is a file", f"manybeam data import {url} --out frames/today"
            raise UnknownFrameSet(f"no frame set at {url}", why, hint) from error
        log = CommitLog(store)
        head = log.head()
        return cls(store, head if digest in ("", head.digest) else log.before(head, digest))

    def __len__(self) -> int:
        return self._commit.count

    def __repr__(self) -> str:
        return f"FrameSet({self.url!r}, {len(self)} frames of {self.shape})"

    def _repr_html_(self) -> str:
        from manybeam.data.notebook import frameset_html

        return frameset_html(self)

    @property
    def url(self) -> str:
        """Where the set lies."""
        return self._store.url

    @property
    def condition(self) -> Condition | Policy:
        """What the frames were recorded under, or drawn from."""
        return self._condition

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of each frame."""
        return self._commit.shape

    @property
    def has_truth(self) -> bool:
        """Whether the frames came with the atoms on them."""
        return self._commit.truth_rows is not None

    @property
    def digest(self) -> str:
        """32 hex digits of frames, truth, pixel sizes and condition, whatever the appends were."""
        return self._commit.digest

    def append(
        self,
        frames_nyx: ndarray,
        truth: Sequence[ndarray] | None,
        pixel_size_pm: float | ndarray | None,
    ) -> None:
        """Add frames; readers see all of them or none.

        Args:
            frames_nyx: the frames, finite, of the set's shape.
            truth: (K, 3) = y, x, class of each frame's atoms; None if unknown. A set has truth on
                all frames or on none.
            pixel_size_pm: edge of a pixel, one for all or one a frame; None or NaN if unknown.

        Raises:
            InvalidFrame: frames of another shape, not finite, or that lose value in the set's type.
            InvalidInput: truth or pixel sizes that do not fit the frames.
            Conflict: somebody else is appending, or has appended since this set was opened.
            WriteFailed: the disk is full; the set is as it was.
            StoreUnreachable: the store stopped answering; open the set again to see what counts.
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
                raise  # what lies there may be another writer's by now
            except BaseException:
                self._discard(lock.head, after)
                raise
        self._commit, self._truth_rows, self._sizes = after, None, None
        self._describe()

    def frames(self, which: slice | Sequence[int] | None = None) -> ndarray:
        """Return frames as float32: all, a slice, or those of the given numbers in that order.

        Raises:
            NotFound: a number beyond the last frame.
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
            raise NotFound(f"{self.url} has no truth", "", "append frames with the atoms on them")
        if self._truth_rows is None:
            self._truth_rows = self._load(layout.truth_array(self._store.zarr(), self._commit))
        low, high = np.searchsorted(self._truth_rows[:, 0], [number, number + 1])
        return self._truth_rows[low:high, 1:].copy()

    def pixel_size_pm(self, i: int) -> float | None:
        """Return the edge of a pixel of one frame: its own, else the condition's, else None."""
        number = self._number(i)
        if self._sizes is None:
            self._sizes = self._load(layout.sizes_array(self._store.zarr(), self._commit))
        if np.isfinite(self._sizes[number]):
            return float(self._sizes[number])
        known = self.condition.scan.pixel_size_pm
        return known if isinstance(known, float) else None

    def verify(self) -> None:
        """Read everything and compare with what was recorded at each append.

        Raises:
            Corrupt: names the first frames that are not what was appended.
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
            raise NotFound(f"no frame {i} in {self.url}", f"it has {len(self)}", "")
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
                self._read([number])  # raises for the one it is, and says so
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
        why = why or "the bytes stored are not those that were appended"
        return Corrupt(f"{part} of {self.url} is corrupt", why, "restore it, or make the set again")

    def _write(self, lock: AppendLock, after: Commit, batch: Batch) -> None:
        """Write what an append adds; nothing of it counts yet."""
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
        """Give back the space of frames that will never count; they are overwritten anyway.

        An interrupt may come when the record is written already: then they count.
        """
        try:
            if not self._store.exists(after.key):
                self._store.delete_keys(layout.frame_keys(after, head.count, after.count))
        except ManybeamError as error:
            logger.warning("frames of a failed append stay", extra={"why": str(error)})

    def _describe(self) -> None:
        """Write what other readers go by; ours goes by the commit, which stands already."""
        name = self.url.rstrip("/").rsplit("/", 1)[-1]
        try:
            for key, document in layout.documents(self._commit, name).items():
                self._store.put(key, document)
        except ManybeamError as error:
            extra = {"url": self.url, "why": str(error)}
            logger.warning("metadata lags behind; the next append mends it", extra=extra)


def _first(condition: Condition | Policy, shape: tuple[int, int], dtype: str) -> Commit:
    """Return the record of a set without frames."""
    if dtype not in layout.DTYPES:
        raise InvalidInput(f"dtype {dtype!r} is not kept", f"one of {layout.DTYPES}", "")
    if len(shape) != 2 or min(shape) < 1:
        raise InvalidInput(f"{shape} is not the shape of a frame", "rows, columns, >= 1", "")
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

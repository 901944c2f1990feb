"""Which frames of a set count: numbered records, each an object that is created exclusively.

Readers use only the newest record, so an append is all or nothing. Writers take turns with a lock,
which is also an object that is created exclusively. It is beside the frames and not in the
database, because frames are also written where there is no database; whether its owner is gone is
decided as for the database's locks. A lock whose owner is gone is not just removed: first a void
record is written in place of that writer's record. So the old writer can no longer commit if it
wakes up, and only then the next writer changes the frames.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from manybeam.data.store import Store
from manybeam.db.owner import Owner
from manybeam.errors import Conflict, Corrupt, ManybeamError, NotFound, UnknownFrameSet
from manybeam.settings import settings

logger = logging.getLogger(__name__)
FOLDER = "commits"
STALE_S = 120.0  # a lock is renewed every 15 s; one this old has no writer any more
_AS_OWNER = TypeAdapter(Owner)


class Commit(BaseModel):
    """The whole state of a FrameSet from this record on.

    `truth_rows` is None as long as no frame with truth was appended. `pixel_size_pm` is the size of
    all frames, if they share one. `folder` is the place of the arrays in the set. If a record has
    another folder than the one before it, it replaces the set.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    number: int = Field(ge=0)
    count: int = Field(ge=0)
    truth_rows: int | None = None
    digest: str
    shape: tuple[int, int]
    dtype: str
    folder: str = ""
    kind: Literal["condition", "policy"]
    imaging: dict[str, Any]
    pixel_size_pm: float | None = None
    is_void: bool = False
    writer: str = Field(default_factory=lambda: uuid.uuid4().hex)
    written: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> str:
        """Key of the record in the set."""
        return _record(self.number)

    def following(self, **changes: Any) -> "Commit":
        """Return the record after this one, with changes."""
        fresh = {"number": self.number + 1, "is_void": False, "writer": uuid.uuid4().hex}
        return self.model_copy(update=fresh | {"written": datetime.now(UTC)} | changes)


class CommitLog:
    """The records and the lock of one FrameSet.

    Args:
        store: store of the set.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def head(self) -> Commit:
        """Return the newest record: one listing and one read.

        Raises:
            UnknownFrameSet: there is no record.
            Corrupt: the record cannot be read.
        """
        keys = self._store.list(FOLDER)
        if not keys:
            raise UnknownFrameSet(
                f"there is no FrameSet at {self._store.url}", "", "manybeam data ls lists FrameSets"
            )
        return self.read(keys[-1])

    def history(self) -> list[Commit]:
        """Return every record, oldest first."""
        return [self.read(key) for key in self._store.list(FOLDER)]

    def before(self, head: Commit, digest: str) -> Commit:
        """Return the record with a digest, if its frames are still part of the set.

        Raises:
            UnknownFrameSet: the set never had that digest, or was replaced.
        """
        for commit in self.history():
            if (commit.digest, commit.folder) == (digest, head.folder):
                return commit
        raise UnknownFrameSet(
            f"{self._store.url} does not hold the frames of digest {digest}",
            f"its digest is {head.digest}: it was replaced, or it is another set",
            "",
        )

    def read(self, key: str) -> Commit:
        """Return one record; raises Corrupt if the object is no record."""
        try:
            return Commit.model_validate_json(self._store.get(key))
        except ValidationError as error:
            raise Corrupt(
                f"{self._store.url}/{key} is not a commit record",
                str(error),
                "restore it from a backup",
            ) from error

    def begin(self, first: Commit) -> None:
        """Write the first record; raises Conflict if there is one."""
        self._store.create(first.key, _bytes(first))

    def replace(self, made: Commit, *, overwrite: bool) -> tuple[Commit, Commit | None]:
        """Make `made` the newest record; return it and the record that it replaces.

        A writer that appends at the same time gets a Conflict.

        Raises:
            Conflict: there is a set, and it must not be overwritten.
        """
        while True:
            keys = self._store.list(FOLDER)
            if keys and not overwrite:
                hint = "choose another URL, or overwrite it"
                raise Conflict(f"there is already a FrameSet at {self._store.url}", "", hint)
            head = self.read(keys[-1]) if keys else None
            record = made.model_copy(update={"number": head.number + 1 if head else 0})
            with contextlib.suppress(Conflict):
                create(self._store, record)
                return record, head

    @contextlib.contextmanager
    def lock(self, head: Commit) -> Iterator["AppendLock"]:
        """Hold the right to write the record after `head`.

        The lock is released at the end, unless the store stopped answering: then it is unknown
        what arrived, and the next writer shuts this one out.

        Raises:
            Conflict: another writer is writing, or has written since `head` was read.
        """
        lock = self._take(head)
        try:
            yield lock
        except BaseException as error:
            if not isinstance(error, ConnectionError):
                lock.release()
            raise
        else:
            lock.release()
        finally:
            lock.owner.end()

    def _take(self, head: Commit) -> "AppendLock":
        lock = AppendLock(self._store, head)
        try:
            self._store.create(lock.key, _AS_OWNER.dump_json(lock.owner))
        except Conflict as error:
            lock.owner.end()
            if not self._is_abandoned(lock.key):
                raise self._busy() from error
            return self._take(self._shut_out(head))
        except BaseException:
            lock.owner.end()
            raise
        self._check_newest(lock)
        return lock

    def _check_newest(self, lock: "AppendLock") -> None:
        """Look only after the lock is ours: before, a finished writer could slip between."""
        try:
            lock.check()
            newest_writer = self.read(lock.head.key).writer
        except (Conflict, NotFound):
            newest_writer = ""
        except BaseException:
            lock.owner.end()
            raise
        if newest_writer != lock.head.writer:
            lock.owner.end()
            lock.release()
            raise _overtaken(self._store.url)

    def _shut_out(self, head: Commit) -> Commit:
        """Write a void record in place of the record of the writer that is gone."""
        void = head.following(is_void=True)
        try:
            self._store.create(void.key, _bytes(void))
        except Conflict as error:
            raise _overtaken(self._store.url) from error
        self._store.delete_keys([_lock(void.number)])
        logger.warning("abandoned append was shut out", extra={"url": self._store.url})
        return void

    def _is_abandoned(self, key: str) -> bool:
        try:
            with contextlib.suppress(ValidationError):  # what cannot be read is left to its age
                if _AS_OWNER.validate_json(self._store.get(key)).is_gone():
                    return True
            return self._store.age_s(key) > max(STALE_S, 6 * settings().s3_timeout_s)
        except NotFound:
            return False

    def _busy(self) -> Conflict:
        return Conflict(
            f"another writer is appending to {self._store.url}",
            "only one append at a time is possible; your frames were not written",
            "append again when the other append is finished",
        )


class AppendLock:
    """The right to write one record.

    Args:
        store: store of the set.
        head: the record before it.
    """

    def __init__(self, store: Store, head: Commit) -> None:
        self._store, self.head = store, head
        self.key, self.owner = _lock(head.number + 1), Owner.new()
        self._renewed = time.monotonic()

    def check(self) -> None:
        """Renew the lock if needed; raises Conflict if another writer has shut this one out."""
        if self._store.exists(_record(self.head.number + 1)):
            raise _overtaken(self._store.url)
        if time.monotonic() - self._renewed > 15.0:
            self._store.put(self.key, _AS_OWNER.dump_json(self.owner))
            self._renewed = time.monotonic()

    def commit(self, record: Commit) -> None:
        """Make `record` the newest one; raises Conflict if another writer was first."""
        create(self._store, record)

    def release(self) -> None:
        """Let the next writer in; if the store does not answer, it will find this lock stale."""
        try:
            self._store.delete_keys([self.key])
        except ManybeamError as error:
            logger.warning(
                "append lock was not given back", extra={"key": self.key, "why": str(error)}
            )


def create(store: Store, record: Commit) -> None:
    """Write a record that must not exist yet; raises Conflict if another writer wrote it.

    If the response to a conditional write is lost, obstore writes again and finds the record of its
    first try. So an existing record is ours if it has our writer id.
    """
    try:
        store.create(record.key, _bytes(record))
    except Conflict as error:
        if record.writer.encode() not in store.get(record.key):
            raise _overtaken(store.url) from error


def _record(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def _lock(number: int) -> str:
    return f"claims/{number:08d}.json"  # so called since the first version


def _bytes(record: Commit) -> bytes:
    return record.model_dump_json().encode()


def _overtaken(url: str) -> Conflict:
    return Conflict(
        f"another writer has changed {url} since it was opened",
        "your frames were not written, and no other frames were lost",
        "open the FrameSet again and append",
    )

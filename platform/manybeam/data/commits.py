"""Which frames of a set count: numbered records, each one object that is created exclusively.

Readers trust the newest record and nothing else, so an append is all or nothing. Writers take
turns by a lock, an object that is also created exclusively. It lies beside the frames and not in
the database, as frames are also written where there is none; who holds it, and whether that owner
is gone, is decided as for the database's locks. A lock whose owner is gone is never just removed: a
void record is written where that writer's record would go, so that it can
no longer commit should it wake up, and only then does the next writer touch the frames.
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
    """What a FrameSet holds from this record on; each repeats the whole state, none is read twice.

    `truth_rows` is None as long as no frame with truth was appended; `pixel_size_pm` is the size
    all frames share, if they do; `folder` is where in the set the arrays lie. A record of another
    folder than the one before it replaces the set.
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
        """Where the record lies in the set."""
        return _record(self.number)

    def following(self, **changes: Any) -> "Commit":
        """Return the record after this one, with what changes."""
        fresh = {"number": self.number + 1, "is_void": False, "writer": uuid.uuid4().hex}
        return self.model_copy(update=fresh | {"written": datetime.now(UTC)} | changes)


class CommitLog:
    """The records and the lock of one FrameSet.

    Args:
        store: where the set lies.
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
                f"no frame set at {self._store.url}", "", "manybeam data ls shows those there are"
            )
        return self.read(keys[-1])

    def history(self) -> list[Commit]:
        """Return every record, oldest first."""
        return [self.read(key) for key in self._store.list(FOLDER)]

    def before(self, head: Commit, digest: str) -> Commit:
        """Return the record of a digest whose frames `head` still holds.

        Raises:
            UnknownFrameSet: the set never had that digest, or was replaced since.
        """
        for commit in self.history():
            if (commit.digest, commit.folder) == (digest, head.folder):
                return commit
        raise UnknownFrameSet(
            f"{self._store.url} does not hold the frames of digest {digest}",
            f"now it has {head.digest}: it was replaced, or is another set",
            "",
        )

    def read(self, key: str) -> Commit:
        """Return one record; raises Corrupt if it is not one."""
        try:
            return Commit.model_validate_json(self._store.get(key))
        except ValidationError as error:
            raise Corrupt(
                f"{self._store.url}/{key}: is no commit record", str(error), "restore it"
            ) from error

    def begin(self, first: Commit) -> None:
        """Write the first record; raises Conflict if there is one."""
        self._store.create(first.key, _bytes(first))

    def replace(self, made: Commit, *, overwrite: bool) -> tuple[Commit, Commit | None]:
        """Make `made` the newest record, whatever is there; return it and the one it replaces.

        Whoever is appending meanwhile is told that somebody else wrote first.

        Raises:
            Conflict: there is a set, and it must not be overwritten.
        """
        while True:
            keys = self._store.list(FOLDER)
            if keys and not overwrite:
                hint = "give another URL, or overwrite it"
                raise Conflict(f"there is a frame set at {self._store.url}", "", hint)
            head = self.read(keys[-1]) if keys else None
            record = made.model_copy(update={"number": head.number + 1 if head else 0})
            with contextlib.suppress(Conflict):
                create(self._store, record)
                return record, head

    @contextlib.contextmanager
    def lock(self, head: Commit) -> Iterator["AppendLock"]:
        """Hold the right to write the record after `head`.

        The lock is given back at the end, except when the store stopped answering: then nobody
        knows what arrived, and the next writer shuts this one out instead.

        Raises:
            Conflict: somebody else is writing, or has written since `head` was read.
        """
        lock = self._take(head)
        try:
            yield lock
        except BaseException as error:
            if not isinstance(error, ConnectionError):
                lock.give_back()
            raise
        else:
            lock.give_back()
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
            lock.give_back()
            raise _overtaken(self._store.url)

    def _shut_out(self, head: Commit) -> Commit:
        """Put a void record where the writer that is gone would have put its own."""
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
            "one append at a time; nothing of yours was written",
            "append again when it is done",
        )


class AppendLock:
    """The right to write one record.

    Args:
        store: where the set lies.
        head: the record to build on.
    """

    def __init__(self, store: Store, head: Commit) -> None:
        self._store, self.head = store, head
        self.key, self.owner = _lock(head.number + 1), Owner.new()
        self._renewed = time.monotonic()

    def check(self) -> None:
        """Say that we are still at work; raises Conflict if we were shut out."""
        if self._store.exists(_record(self.head.number + 1)):
            raise _overtaken(self._store.url)
        if time.monotonic() - self._renewed > 15.0:
            self._store.put(self.key, _AS_OWNER.dump_json(self.owner))
            self._renewed = time.monotonic()

    def commit(self, record: Commit) -> None:
        """Make `record` the newest; raises Conflict if somebody else did."""
        create(self._store, record)

    def give_back(self) -> None:
        """Let the next writer in; if the store does not answer, it will find this lock stale."""
        try:
            self._store.delete_keys([self.key])
        except ManybeamError as error:
            logger.warning(
                "append lock was not given back", extra={"key": self.key, "why": str(error)}
            )


def create(store: Store, record: Commit) -> None:
    """Write a record that must not exist yet; raises Conflict if somebody else wrote it.

    A conditional write whose answer was lost is tried again by obstore and then finds itself, so
    a record that exists is ours if it names us.
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
        f"{url} was written by somebody else since it was opened",
        "nothing of yours was written and nothing of theirs was lost",
        "open it again and append",
    )

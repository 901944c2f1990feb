"""Locks: one holder at a time for each name, also if a holder dies.

A holder has a lease that ends by the database's clock. Another process gets the lock when the lease
is over, or at once if the holder is known to be gone (`owner`). Each holder has a higher fencing
number than the one before, so a holder can find out that its lease is over.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, select, update

from manybeam.db.database import Database, insert_if_new, now
from manybeam.db.owner import Owner
from manybeam.db.tables import LockRow
from manybeam.errors import Conflict, Unreachable

logger = logging.getLogger(__name__)

FILES_LOCK = "files of the zoo"  # for a backup, which copies files, and for their removal
KEPT_S = 60.0  # lease of a lock that is renewed during long work


@dataclass(frozen=True)
class Held:
    """The holder of a lock.

    Attributes:
        name: name of the lock.
        who: a person, for messages.
        purpose: the work, as `promote of graphene@3`.
        fence: the fencing number.
        age_s: age of the lock, by the database's clock.
        left_s: time until the lease ends; negative afterwards.
        owner: the process.
    """

    name: str
    who: str
    purpose: str
    fence: int
    age_s: float
    left_s: float
    owner: Owner

    @property
    def is_over(self) -> bool:
        """Whether another process may take the lock."""
        return self.left_s <= 0 or self.owner.is_gone()


class Lock:
    """A lock that this process took; `Locks.take` makes it.

    Args:
        database: where it is kept.
        name: of the lock.
        fence: the fencing number.
        owner: this holder.
        lease_s: how long it is held without `renew`.
    """

    def __init__(
        self, database: Database, name: str, fence: int, owner: Owner, lease_s: float
    ) -> None:
        self._database, self._owner, self._lease_s = database, owner, lease_s
        self.name, self.fence = name, fence

    def check(self, need_s: float = 0.0) -> None:
        """Check that this process still has the lock.

        Args:
            need_s: the time for which it is needed from now.

        Raises:
            Conflict: the lease is over, or ends earlier.
        """
        with self._database.reading() as connection:
            self._check(connection, need_s)

    def renew(self) -> None:
        """Renew the lease; raises Conflict if another process has taken the lock."""
        with self._database.writing() as connection:
            self._check(connection, float("-inf"))
            self._set(connection, expires=now(connection) + timedelta(seconds=self._lease_s))

    def release(self) -> None:
        """Release the lock. If the database does not answer, other processes see that it ended."""
        self._owner.end()
        with suppress(Unreachable), self._database.writing() as connection:
            self._set(connection, token="")

    def _check(self, connection: Connection, need_s: float) -> None:
        found = _held(connection, self.name)
        if found is None or found.fence != self.fence or found.left_s <= need_s:
            raise Conflict(
                f"the lock on {self.name} is not held any more",
                "this took longer than the lease",
                "try again",
            )

    def _set(self, connection: Connection, **values: Any) -> None:
        own = (LockRow.name == self.name) & (LockRow.fence == self.fence)
        connection.execute(update(LockRow).where(own).values(**values))


class Locks:
    """All locks of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, name: str, *, who: str, purpose: str, lease_s: float) -> Lock:
        """Take a lock that is free, or whose holder is gone or too slow.

        Args:
            name: what is locked, as `ensemble graphene`.
            who: a person, for messages.
            purpose: the work, for messages.
            lease_s: length of the lease, by the database's clock; see `Lock.renew`.

        Raises:
            Conflict: another process holds it; the message names holder, purpose and time left.
            DatabaseUnreachable, WriteFailed: the lock was not taken.
        """
        owner = Owner.new()
        try:
            with self._database.writing() as connection:
                fence = self._take(connection, name, owner, who, purpose, lease_s)
        except BaseException:
            owner.end()
            raise
        return Lock(self._database, name, fence, owner, lease_s)

    @contextmanager
    def holding(self, name: str, *, who: str, purpose: str, lease_s: float) -> Iterator[Lock]:
        """Hold a lock for the block; raises as `take`."""
        lock = self.take(name, who=who, purpose=purpose, lease_s=lease_s)
        try:
            yield lock
        finally:
            lock.release()

    @contextmanager
    def keeping(self, name: str, *, who: str, purpose: str) -> Iterator[Lock]:
        """Hold a lock for a long block; a thread renews its lease.

        Raises:
            Conflict: another process holds the lock, or took it when it could not be renewed.
        """
        with self.holding(name, who=who, purpose=purpose, lease_s=KEPT_S) as lock:
            ended = threading.Event()
            beats = threading.Thread(target=_beat, args=(lock, ended), daemon=True)
            beats.start()
            try:
                yield lock
            finally:
                ended.set()
                beats.join()
            lock.check()

    def holder(self, name: str) -> Held | None:
        """Return the holder of a lock; None if it is free."""
        with self._database.reading() as connection:
            return _held(connection, name)

    def _take(
        self,
        connection: Connection,
        name: str,
        owner: Owner,
        who: str,
        purpose: str,
        lease_s: float,
    ) -> int:
        at = now(connection)
        row = {"machine": owner.machine, "pid": owner.pid, "started": owner.started}
        row |= {"token": owner.token, "who": who, "purpose": purpose}
        times = {"taken": at, "expires": at + timedelta(seconds=lease_s)}
        insert_if_new(connection, LockRow, {"name": name, "fence": 0, **row, **times, "token": ""})
        found = connection.execute(_row(name).with_for_update()).one()
        held = _as_held(found, at)
        if held is not None and not held.is_over:
            raise _taken(held)
        if held is not None:
            logger.warning("lock taken from a holder that is gone", extra={"lock": name})
        own = LockRow.name == name
        fresh = {**row, **times, "fence": found.fence + 1}
        connection.execute(update(LockRow).where(own).values(fresh))
        return int(found.fence) + 1


def _beat(lock: Lock, ended: threading.Event) -> None:
    """Renew a lock until the work has ended, or another process has the lock."""
    while not ended.wait(KEPT_S / 4):
        try:
            lock.renew()
        except Unreachable as error:
            logger.warning("a lock could not be renewed: %s", error.what)
        except Conflict:
            return


def _row(name: str) -> Select[*tuple[Any, ...]]:
    return select(*LockRow.__table__.columns).where(LockRow.name == name)


def _held(connection: Connection, name: str) -> Held | None:
    found = connection.execute(_row(name)).first()
    return None if found is None else _as_held(found, now(connection))


def _as_held(row: Row[*tuple[Any, ...]], at: datetime) -> Held | None:
    if not row.token:
        return None
    age_s, left_s = (at - row.taken).total_seconds(), (row.expires - at).total_seconds()
    owner = Owner(row.machine, row.pid, row.started, row.token)
    return Held(row.name, row.who, row.purpose, row.fence, age_s, left_s, owner)


def _taken(held: Held) -> Conflict:
    return Conflict(
        f"{held.who} holds the lock on {held.name}: {held.purpose}",
        f"taken {held.age_s:.0f} s ago, not given back yet",
        f"wait {held.left_s:.0f} s and try again",
    )

"""Changes of an ensemble: one at a time, also if a process is killed during a change.

A change needs the lock of the ensemble. It is announced in the audit log (`promote asked`), made
in one transaction of MLflow, and closed (`promote done` or `promote dropped`). An announcement is
refused if another change of the ensemble was recorded since the state was read. If a process is
killed before it closes its change, the next process with the lock closes it; MLflow shows whether
the change was made.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from manybeam.db.audit import AuditLog, Entry
from manybeam.db.deployment import authenticated_name
from manybeam.db.locks import Lock, Locks
from manybeam.errors import Conflict, ManybeamError, Unreachable
from manybeam.zoo.records import VersionEntry
from manybeam.zoo.registry import ARCHIVED_TAG, Zoo

logger = logging.getLogger(__name__)

ASKED, DONE, DROPPED = "asked", "done", "dropped"
LEASE_S = 30.0  # a change takes a second or two; a writer that may be alive gets this time
_NEED_S = LEASE_S * 2 / 3  # with less time left, a change is not begun
_TRIES = 20


@dataclass(frozen=True)
class EnsembleState:
    """The records of one ensemble in the audit log, and its versions in MLflow.

    Attributes:
        name: name of the ensemble.
        head: number of the last record of the log when it was read.
        entries: records about the ensemble, oldest first.
        versions: its versions in MLflow, newest first, read after the log.
    """

    name: str
    head: int
    entries: Sequence[Entry]
    versions: Sequence[VersionEntry]

    def version_at(self, alias: str) -> int | None:
        """Return the version an alias points to; None if there is none."""
        return version_at(self.versions, alias)

    def moves(self, alias: str) -> list[Entry]:
        """Return the completed moves of an alias, oldest first."""
        asked = {one.number: one for one in self.entries if one.details.get("alias") == alias}
        closed = [one for one in self.entries if one.action.endswith(f" {DONE}")]
        return [asked[n] for one in closed if (n := one.details.get("claim")) in asked]


def settled_state(zoo: Zoo, log: AuditLog, name: str) -> EnsembleState:
    """Return the state of an ensemble, after closing a change that was left open.

    Raises:
        Conflict: another process is changing it at this moment.
    """
    for _ in range(_TRIES):
        seen = read_state(zoo, log, name)
        if open_change(seen.entries) is None:
            return seen
        with _locked(log, name, authenticated_name(), "closing a change that was left open"):
            _close_for(zoo, log, name)
    raise Conflict(f"{name} is changed by many processes at once", "", "try again")


def read_state(zoo: Zoo, log: AuditLog, name: str) -> EnsembleState:
    """Return the state of an ensemble, also if a change is open."""
    head = log.head()
    entries = [one for one in reversed(log.entries(name)) if one.number <= head]
    return EnsembleState(name, head, entries, zoo.listing(name))


def carry_out(
    log: AuditLog,
    seen: EnsembleState,
    verb: str,
    subject: str,
    act: Callable[[], object],
    undo: Callable[[], object] = lambda: None,
    *,
    who: str,
    reason: str,
    details: Mapping[str, Any],
) -> Entry:
    """Announce a change, make it and close it; return the announcement.

    Args:
        log: the audit log.
        seen: the state of the ensemble on which the change is based.
        verb: the kind of change.
        subject: the version that is changed.
        act: makes the change, in one transaction.
        undo: corrects the effect of `act` if another change was made meanwhile.
        who: for the record.
        reason: for the record.
        details: for the record.

    Raises:
        Conflict: another process was faster, or this one too slow; nothing was changed.
    """
    with _locked(log, seen.name, who, f"{verb} {ASKED} of {subject}") as lock:
        asked = log.append(
            f"{verb} {ASKED}",
            subject,
            who=who,
            reason=reason,
            details=details,
            since=seen.head,
            unless=lambda one: _is_change(one, seen.name),
        )
        _act(log, lock, asked, act, who)
        try:
            _close(log, asked, DONE, who, "", since=asked.number)
        except Conflict:
            if not _is_done(log, asked):
                undo()
                raise
    return asked


def open_change(entries: Sequence[Entry]) -> Entry | None:
    """Return the last change that was announced and not closed; None if there is none.

    Args:
        entries: records about one ensemble.
    """
    closed = {one.details.get("claim") for one in entries}
    asked = [one for one in entries if one.action.endswith(f" {ASKED}")]
    return next((one for one in reversed(asked) if one.number not in closed), None)


def version_at(versions: Sequence[VersionEntry], alias: str) -> int | None:
    """Return the version an alias points to; None if there is none."""
    return next((one.version for one in versions if alias in one.aliases), None)


@contextmanager
def _locked(log: AuditLog, name: str, who: str, purpose: str) -> Iterator[Lock]:
    """Hold the lock of an ensemble for the block.

    If a server in it does not answer, the change may still be made later. So the lock is then kept
    until its lease ends.
    """
    locks = Locks(log.database)
    lock = locks.take(f"ensemble {name}", who=who, purpose=purpose, lease_s=LEASE_S)
    try:
        yield lock
    except ManybeamError as error:
        if not isinstance(error, Unreachable):
            lock.release()
        raise
    lock.release()


def _act(log: AuditLog, lock: Lock, asked: Entry, act: Callable[[], object], who: str) -> None:
    """Make an announced change; close it if it is refused."""
    try:
        lock.check(_NEED_S)
        act()
    except Unreachable:
        raise  # it may still be made; the next process checks
    except ManybeamError:
        with suppress(Unreachable, Conflict):  # the next process closes it, or has closed it
            _close(log, asked, DROPPED, who, "", since=asked.number)
        raise


def _close_for(zoo: Zoo, log: AuditLog, name: str) -> None:
    """Close a change that another process left open; this process has the lock."""
    seen = read_state(zoo, log, name)
    pending = open_change(seen.entries)
    if pending is None:
        return  # another process has closed it
    outcome = DONE if _was_made(zoo, pending) else DROPPED
    logger.warning("closed a change its writer left open: %s, %s", pending.action, outcome)
    why = f"{pending.writer} ended, or was too slow, before it closed the change"
    with suppress(Conflict):  # its writer was alive and has closed it now
        _close(log, pending, outcome, authenticated_name(), why, since=seen.head)


def _close(log: AuditLog, asked: Entry, outcome: str, who: str, why: str, *, since: int) -> None:
    verb = asked.action.removesuffix(f" {ASKED}")
    name = asked.subject.partition("@")[0]
    log.append(
        f"{verb} {outcome}",
        asked.subject,
        who=who,
        reason=why,
        details={"claim": asked.number},  # the key in the records of all versions
        since=since,
        unless=lambda one: _is_change(one, name),
    )


def _is_change(entry: Entry, name: str) -> bool:
    return entry.is_about(name) and entry.action.endswith((ASKED, DONE, DROPPED))


def _is_done(log: AuditLog, asked: Entry) -> bool:
    """Return whether another process closed the change as done."""
    later = log.since(asked.number)
    return any(
        one.details.get("claim") == asked.number and one.action.endswith(f" {DONE}")
        for one in later
    )


def _was_made(zoo: Zoo, asked: Entry) -> bool:
    """Return whether MLflow shows that an announced change was made."""
    name, _, version = asked.subject.partition("@")
    versions = zoo.listing(name)
    if alias := asked.details.get("alias"):
        return version_at(versions, alias) == int(version)
    own = next((one for one in versions if one.version == int(version)), None)
    is_archived = own is not None and ARCHIVED_TAG in own.tags
    return {
        "archive": is_archived,
        "unarchive": own is not None and not is_archived,
        "collect": own is None,
    }[asked.action.removesuffix(f" {ASKED}")]

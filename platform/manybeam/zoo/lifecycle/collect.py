"""Collection: data of the zoo that is not needed is found and removed.

Two kinds of data can be removed: orphans, from a registration that did not finish, and versions
that were archived long ago. A version is kept if an alias points to it, if a rollback would go to
it, if another version was adapted from it, or if its predictions are recorded.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from manybeam.db.audit import AuditLog, checked_reason, checked_who
from manybeam.db.deployment import open_database
from manybeam.db.locks import FILES_LOCK, Locks
from manybeam.errors import Conflict, InvalidInput, NotFound
from manybeam.zoo.lifecycle.changes import EnsembleState, carry_out, read_state, settled_state
from manybeam.zoo.lifecycle.life import SERVING, served_before
from manybeam.zoo.lifecycle.orphans import Orphan, Orphans
from manybeam.zoo.lineage import lineage, measured_on
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.records import Record
from manybeam.zoo.registry import ARCHIVED_TAG, Zoo

logger = logging.getLogger(__name__)

GRACE = timedelta(hours=24)
LEAST_GRACE = timedelta(hours=1)  # a running registration is active far more often
MOST = timedelta(days=36_500)  # the range of dates is limited
REMOVABLE, KEPT, REMOVED = "removable", "kept", "removed"


@dataclass(frozen=True)
class CollectItem:
    """One archived version or one orphan.

    Attributes:
        what: reference of an archived version, or the run of a registration that stopped.
        name: name of the ensemble.
        models: LoggedModels that are removed with it; 0 for a version that is kept.
        since: time of archiving, or of the last activity, in UTC.
        state: `removable`, `kept` or `removed`.
        why: why it can be removed, or must be kept.
        is_version: True for an archived version, False for an orphan.
    """

    what: str
    name: str
    models: int
    since: datetime
    state: str
    why: str
    is_version: bool


def collect(
    zoo: Zoo,
    *,
    who: str,
    reason: str = "",
    grace: timedelta = GRACE,
    archived_for: timedelta | None = None,
    remove: bool = False,
    now: datetime | None = None,
) -> list[CollectItem]:
    """Return data that can be removed and data that must be kept; remove the former if asked.

    It can be stopped at any time and run again: it finds unfinished removals.

    Args:
        zoo: the zoo.
        who: the person, for the audit log.
        reason: the reason, for the audit log.
        grace: time without activity after which an unfinished registration is removed; at least
            one hour.
        archived_for: time after archiving after which a version is removed; None keeps all.
        remove: whether to remove the data; otherwise nothing is changed.
        now: the time, in UTC; if left out, the present time.

    Raises:
        InvalidInput: a grace below one hour, a negative time, or more than a century.
        Conflict: a backup is running.
        Corrupt: a manifest cannot be read, so it is unknown what it needs; nothing is removed.
        ZooUnreachable, StoreUnreachable: the zoo or the log does not answer.
    """
    who, reason, now = checked_who(who), checked_reason(reason), now or datetime.now(UTC)
    _check(grace, archived_for)
    with _alone(who) if remove else nullcontext():
        return _collected(zoo, who, reason, grace, archived_for, now, remove=remove)


def _alone(who: str) -> AbstractContextManager[object]:
    """Remove files only while no backup copies them."""
    return Locks(open_database()).keeping(FILES_LOCK, who=who, purpose="gc")


def _collected(
    zoo: Zoo,
    who: str,
    reason: str,
    grace: timedelta,
    archived_for: timedelta | None,
    now: datetime,
    *,
    remove: bool,
) -> list[CollectItem]:
    found: list[CollectItem] = []
    if archived_for is not None:
        found += _archived(zoo, now - archived_for, who, reason, remove=remove)
    orphans = Orphans(zoo.tracking)
    records = zoo.ls()
    needed = {record.model_id for record in records}
    needed.update(member.model_id for record in records for member in record.members)
    for orphan in orphans.find():
        if orphan.last_sign > now - grace or needed.intersection(orphan.model_ids):
            continue
        state = REMOVABLE
        if remove:
            state = REMOVED if _remove(orphans, orphan, audit_log(), who, reason) else KEPT
        found.append(_item_of(orphan, state))
    return found


def _check(grace: timedelta, archived_for: timedelta | None) -> None:
    if grace < LEAST_GRACE:
        raise InvalidInput(
            f"a grace of {grace} is too short",
            "a running registration could be removed",
            "give at least one hour",
        )
    if archived_for is not None and archived_for < timedelta(0):
        raise InvalidInput(
            f"archived for {archived_for} is not allowed", "0 days or more", "--archived-days 90"
        )
    longest = max(grace, archived_for or timedelta(0))
    if longest > MOST:
        raise InvalidInput(
            f"{longest.days} days are too many", f"at most {MOST.days} days", "give fewer days"
        )


def _archived(
    zoo: Zoo, before: datetime, who: str, reason: str, *, remove: bool
) -> Iterator[CollectItem]:
    """Yield the versions archived before a time; remove those that are not needed if asked."""
    records, log = zoo.ls(), audit_log()
    parents = {
        parent.partition("/")[0]
        for record in records
        for parent in (record.parent, *(one.parent for one in record.members))
    }
    parents.update(str(record.job.get("ensemble", "")) for record in records)
    for record in records:
        if record.archived is None or record.archived > before:
            continue
        why = _needed(zoo, read_state(zoo, log, record.name), record, parents)
        state = KEPT if why else REMOVABLE
        if remove and not why:
            why = _remove_version(zoo, log, record, who, reason)
            state = KEPT if why else REMOVED
        models = 0 if state == KEPT else 1 + record.member_count
        why = why or "it is archived and not needed"
        yield CollectItem(
            record.ref, record.name, models, record.archived, state, why, is_version=True
        )


def _needed(zoo: Zoo, seen: EnsembleState, record: Record, parents: set[str]) -> str:
    """Return why a version is needed; "" if it is not."""
    if record.ref in parents:
        return "another version was adapted from it"
    if answers := lineage(zoo, record.ref).predictions:
        return f"its predictions are recorded, such as {answers[0]}"
    return _in_use(seen, record.version)


def _in_use(seen: EnsembleState, version: int) -> str:
    """Return which alias points to a version, or would after a rollback; "" if none does."""
    own = next((one for one in seen.versions if one.version == version), None)
    if own is None or ARCHIVED_TAG not in own.tags:
        return "it was unarchived or removed meanwhile"
    if own.aliases:
        return f"it is {' and '.join(own.aliases)}"
    serving = seen.version_at(SERVING)
    with suppress(NotFound):
        if serving is not None and served_before(seen, serving) == version:
            return "a rollback would go to it"
    return ""


def _remove_version(zoo: Zoo, log: AuditLog, record: Record, who: str, reason: str) -> str:
    """Remove one version as one change of its ensemble; return why it was kept, or ""."""
    orphans = Orphans(zoo.tracking)
    try:
        seen = settled_state(zoo, log, record.name)
        if why := _in_use(seen, record.version):
            return why
        carry_out(
            log,
            seen,
            "collect",
            record.ref,
            lambda: orphans.remove_version(record.name, record.version),
            who=who,
            reason=reason,
            details=_log_details(seen, record),
        )
    except Conflict as error:
        return error.what
    _remove(orphans, orphans.of_run(record.name, record.run_id), log, who, reason)
    return ""


def _log_details(seen: EnsembleState, record: Record) -> dict[str, Any]:
    """Return the audit record of a removed version, with the FrameSets that it used."""
    own = next(one for one in seen.versions if one.version == record.version)
    used = {"trained_on": record.inputs, "measured_on": measured_on(own)}
    named = {how: [f"{one.digest} {one.url}" for one in uses] for how, uses in used.items()}
    return {"sha256": record.sha256, "run": record.run_id, **named}


def _remove(orphans: Orphans, orphan: Orphan, log: AuditLog, who: str, reason: str) -> bool:
    """Remove an orphan; return False if it has become a version meanwhile."""
    if not orphans.close(orphan):
        return False
    log.append(
        "files removed",
        orphan.name,
        who=who,
        reason=reason,
        details={"run": orphan.run_id, "models": list(orphan.model_ids)},
    )
    for model_id in orphan.model_ids:
        orphans.remove_model(model_id)
    logger.info("orphan removed", extra={"ensemble": orphan.name, "run": orphan.run_id})
    return True


def _item_of(orphan: Orphan, state: str) -> CollectItem:
    return CollectItem(
        f"run {orphan.run_id}",
        orphan.name,
        len(orphan.model_ids),
        orphan.last_sign,
        state,
        "its registration did not finish, or its version was removed",
        is_version=False,
    )

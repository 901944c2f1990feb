"""Collection: what nobody can name any more is removed, and nothing else.

Two things can go: what a registration left that never became a version, and versions that were
archived long ago. A version is kept as long as an alias points at it, a rollback would go to it,
a version was adapted from it, or answers of it were kept.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from manybeam.errors import Conflict, InvalidInput, NotFound
from manybeam.zoo.audit import AuditLog, checked_reason, checked_who
from manybeam.zoo.claims import Standing, carry_out, look, standing
from manybeam.zoo.lifecycle.life import SERVING, served_before
from manybeam.zoo.lifecycle.orphans import Orphan, Orphans
from manybeam.zoo.lineage import lineage, measured_on
from manybeam.zoo.records import Record
from manybeam.zoo.registry import ARCHIVED_TAG, Zoo

logger = logging.getLogger(__name__)

GRACE = timedelta(hours=24)
LEAST_GRACE = timedelta(hours=1)  # a registration at work shows a sign of life far more often
MOST = timedelta(days=36_500)  # a calendar ends somewhere
REMOVABLE, KEPT, REMOVED = "removable", "kept", "removed"


@dataclass(frozen=True)
class Find:
    """One thing that was looked at.

    Attributes:
        what: reference of an archived version, or the run of a registration that was cut off.
        name: of the ensemble.
        models: LoggedModels that go with it; 0 for a version that is kept.
        since: when it was archived, or showed its last sign of life, in UTC.
        state: `removable`, `kept` or `removed`.
        why: why it can go, or has to stay.
        is_version: which of the two it is.
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
) -> list[Find]:
    """Return what can be removed and what has to stay, and remove it if asked to.

    It may be stopped anywhere and run again: what was begun is found again.

    Args:
        zoo: the zoo.
        who: who does it, for the audit log.
        reason: why.
        grace: for how long a registration that was cut off shows no sign of life before it goes;
            an hour at least.
        archived_for: how long ago a version was archived before it goes; None keeps them all.
        remove: whether to remove it; otherwise nothing is changed.
        now: the time, in UTC; by the clock if left out.

    Raises:
        InvalidInput: a grace below an hour, a negative time, or more than a century.
        Corrupt: a manifest cannot be read, so that nobody knows what it needs; nothing is removed.
        ZooUnreachable, StoreUnreachable: the zoo or the log does not answer.
    """
    who, reason, now = checked_who(who), checked_reason(reason), now or datetime.now(UTC)
    _check(grace, archived_for)
    found: list[Find] = []
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
            state = REMOVED if _remove(orphans, orphan, AuditLog(), who, reason) else KEPT
        found.append(_told(orphan, state))
    return found


def _check(grace: timedelta, archived_for: timedelta | None) -> None:
    if grace < LEAST_GRACE:
        raise InvalidInput(
            f"a grace of {grace}",
            "a registration at work must not be taken for one that was cut off",
            "an hour at least",
        )
    if archived_for is not None and archived_for < timedelta(0):
        raise InvalidInput(f"archived for {archived_for}", "0 days or more", "")
    longest = max(grace, archived_for or timedelta(0))
    if longest > MOST:
        raise InvalidInput(f"{longest.days} days back", f"at most {MOST.days} days", "")


def _archived(zoo: Zoo, before: datetime, who: str, reason: str, *, remove: bool) -> Iterator[Find]:
    """Yield the versions archived before some time, and what became of each."""
    records, log = zoo.ls(), AuditLog()
    parents = {
        parent.partition("/")[0]
        for record in records
        for parent in (record.parent, *(one.parent for one in record.members))
    }
    parents.update(str(record.job.get("ensemble", "")) for record in records)
    for record in records:
        if record.archived is None or record.archived > before:
            continue
        why = _needed(zoo, look(zoo, log, record.name), record, parents)
        state = KEPT if why else REMOVABLE
        if remove and not why:
            why = _remove_version(zoo, log, record, who, reason)
            state = KEPT if why else REMOVED
        models = 0 if state == KEPT else 1 + record.member_count
        why = why or "archived, and nothing needs it"
        yield Find(record.ref, record.name, models, record.archived, state, why, is_version=True)


def _needed(zoo: Zoo, seen: Standing, record: Record, parents: set[str]) -> str:
    """Return what still needs a version; "" if nothing does."""
    if record.ref in parents:
        return "another version was made from it"
    if answers := lineage(zoo, record.ref).predictions:
        return f"answers of it are kept, as {answers[0]}"
    return _in_use(seen, record.version)


def _in_use(seen: Standing, version: int) -> str:
    """Return what points at a version, or would after a rollback; "" if nothing does."""
    own = next((one for one in seen.versions if one.version == version), None)
    if own is None or ARCHIVED_TAG not in own.tags:
        return "it was taken up again, or removed, meanwhile"
    if own.aliases:
        return f"it is {' and '.join(own.aliases)}"
    serving = seen.version_at(SERVING)
    with suppress(NotFound):
        if serving is not None and served_before(seen, serving) == version:
            return "a rollback would go to it"
    return ""


def _remove_version(zoo: Zoo, log: AuditLog, record: Record, who: str, reason: str) -> str:
    """Remove one version as one change of its ensemble; return what kept it, "" if nothing did."""
    orphans = Orphans(zoo.tracking)
    try:
        seen = standing(zoo, log, record.name)
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
            details=_last_words(seen, record),
        )
    except Conflict as error:
        return error.what
    _remove(orphans, orphans.of_run(record.name, record.run_id), log, who, reason)
    return ""


def _last_words(seen: Standing, record: Record) -> dict[str, Any]:
    """Return what the log keeps of a version that goes: who used some frames stays known."""
    own = next(one for one in seen.versions if one.version == record.version)
    used = {"trained_on": record.inputs, "measured_on": measured_on(own)}
    named = {how: [f"{one.digest} {one.url}" for one in uses] for how, uses in used.items()}
    return {"sha256": record.sha256, "run": record.run_id, **named}


def _remove(orphans: Orphans, orphan: Orphan, log: AuditLog, who: str, reason: str) -> bool:
    """Remove what a run left, and say whether it could be: it is none if it became a version."""
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
    logger.info("leftover removed", extra={"ensemble": orphan.name, "run": orphan.run_id})
    return True


def _told(orphan: Orphan, state: str) -> Find:
    return Find(
        f"run {orphan.run_id}",
        orphan.name,
        len(orphan.model_ids),
        orphan.last_sign,
        state,
        "it never became a version, or the version is removed",
        is_version=False,
    )

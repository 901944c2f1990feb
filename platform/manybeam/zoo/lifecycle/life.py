"""Changes of a version: promotion behind gates, rollback, archive, unarchive.

An ensemble has one change at a time (`changes`). The audit log records each change. If a process
is killed, the alias points to the old or to the new version.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from manybeam.db.audit import AuditLog, checked_reason, checked_who
from manybeam.db.deployment import authenticated_name
from manybeam.errors import (
    Conflict,
    InvalidInput,
    ManybeamError,
    NotFound,
    RefusedByGate,
    Unreachable,
)
from manybeam.settings import settings
from manybeam.spec.job import Gates
from manybeam.zoo.checks import check_alias
from manybeam.zoo.lifecycle.changes import (
    EnsembleState,
    carry_out,
    open_change,
    settled_state,
    version_at,
)
from manybeam.zoo.lifecycle.gates import NEVER_FORCED, REGRESSION, check_gates, reasons
from manybeam.zoo.lifecycle.proposals import Promotion, PromotionProposal
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.records import Record, Ref
from manybeam.zoo.registry import ARCHIVED_TAG, Zoo

logger = logging.getLogger(__name__)

SERVING, CANDIDATE = "serving", "candidate"


def propose(
    zoo: Zoo, ref: str, *, to: str = SERVING, gates: Gates | None = None
) -> PromotionProposal:
    """Return the results of the gates for a version, and change nothing.

    Args:
        zoo: the zoo.
        ref: the version.
        to: the alias; a candidate is not compared with other versions.
        gates: the limits; if left out, those of the job of the version.

    Raises:
        UnknownRef: there is no such version.
        InvalidInput: the reference is of one member, or there is no such alias.
    """
    new = _version(zoo, ref)
    now = version_at(zoo.listing(new.name), to)
    return _proposal(zoo, new, now, to, gates)


def promote(
    zoo: Zoo,
    ref: str,
    *,
    to: str = SERVING,
    who: str,
    force: bool = False,
    reason: str = "",
    gates: Gates | None = None,
    on_proposal: Callable[[PromotionProposal], None] = lambda _: None,
) -> Promotion:
    """Point an alias to a version if every gate accepts it, and record the change.

    Args:
        zoo: the zoo.
        ref: the version.
        to: `serving` or `candidate`.
        who: the person, for the audit log.
        force: override the gates, except those for damaged and archived versions.
        reason: the reason, for the audit log; needed to force.
        gates: the limits; if left out, those of the job of the version.
        on_proposal: called with the results of the gates, before the alias is moved.

    Raises:
        RefusedByGate: lists the failed checks; the alias is not moved.
        Conflict: another process changed the ensemble meanwhile, or is changing it.
        InvalidInput: `force` without a reason, or no such alias.
        UnknownRef: there is no such version.
        ZooUnreachable, StoreUnreachable: the zoo or the log does not answer. If this happens
            during the change, the alias is old or new, and the next command records which.
    """
    who, reason = checked_who(who), _checked_force(ref, checked_reason(reason), force=force)
    new, log = _version(zoo, ref), audit_log()
    seen = settled_state(zoo, log, new.name)
    new = _version(zoo, new.ref)  # read again, after unfinished changes are closed
    proposal = _proposal(zoo, new, seen.version_at(to), to, gates)
    on_proposal(proposal)
    _refuse(proposal, force=force)
    if proposal.is_there:
        return Promotion(new.ref, to, new.ref)
    overridden = [one.words for one in proposal.refusals]
    return _move(zoo, log, seen, "promote", proposal, who=who, reason=reason, overridden=overridden)


def settle(
    zoo: Zoo, record: Record, to: str | None, *, say: Callable[[str], None] = lambda _: None
) -> Record:
    """Give a new version its alias, through the gates; if they refuse, it becomes the candidate.

    Args:
        zoo: the zoo.
        record: the version.
        to: `serving` or `candidate`; None for no alias.
        say: called with the reason if the version does not serve.

    Raises:
        RefusedByGate: it cannot be a candidate either.
        Conflict: another process changes the ensemble.
        ZooUnreachable, StoreUnreachable: the zoo or the log does not answer.

        Each error says that the version is registered, and what to do next.
    """
    if to is None:
        return record
    try:
        try:
            promote(zoo, record.ref, to=to, who=authenticated_name())
        except RefusedByGate as error:
            if to != SERVING:
                raise
            to = CANDIDATE
            promote(zoo, record.ref, to=to, who=authenticated_name())
            say(f"{error.what}; it is now the candidate")
            for reason in error.why.splitlines():
                say(f"  {reason}")
        return zoo.resolve(record.ref)
    except ManybeamError as error:
        raise _unsettled(record, to, error) from error


def _unsettled(record: Record, to: str, error: ManybeamError) -> ManybeamError:
    """Return an error of the same kind that also says that the version is registered."""
    # If the zoo stopped to answer during the move, the alias may have been moved.
    state = "may have no alias" if isinstance(error, Unreachable) else "has no alias"
    what = f"{record.ref} is registered but {state}: {error.what}"
    hint = f"manybeam zoo promote {record.ref} --to {to}"
    if isinstance(error, RefusedByGate):
        is_unsigned = bool(settings().trusted_keys) and not record.signature
        hint = f"manybeam zoo sign {record.ref} first, then {hint}" if is_unsigned else error.hint
    return type(error)(what, error.why, hint)


def rollback(
    zoo: Zoo, name: str, *, who: str, reason: str = "", expect: int | None = None
) -> Promotion:
    """Point `serving` back to the version before; a second rollback undoes the first.

    The gates are not used, so that a rollback is always possible. Weights are checked when they
    are loaded.

    Args:
        zoo: the zoo.
        name: the ensemble.
        who: the person, for the audit log.
        reason: the reason, for the audit log.
        expect: the version that should serve now; if left out, any version.

    Raises:
        NotFound: no version serves, or the log does not name the version before.
        Conflict: the version before is archived or removed, another version than `expect`
            serves, or another process changes the ensemble.
        InvalidInput: a reference to one version instead of a name.
    """
    who, reason = checked_who(who), checked_reason(reason)
    asked = Ref.parse(name)
    if (asked.alias, asked.member) != (SERVING, None):
        raise InvalidInput(
            f"{name!r} is not only the name of an ensemble",
            "a rollback goes to the version that served before",
            f"manybeam zoo rollback {asked.name}, or manybeam zoo promote {name}",
        )
    log = audit_log()
    seen = settled_state(zoo, log, asked.name)
    now = seen.version_at(SERVING)
    if now is None:
        zoo.resolve(asked.name)  # raises if there is no such ensemble, or if none serves
        raise Conflict(
            f"{asked.name} was changed at this moment",
            "another process changes the same ensemble",
            f"check with manybeam zoo ls {asked.name}, then try again",
        )
    if expect not in (None, now):
        raise Conflict(
            f"{asked.name}@{expect} does not serve; {asked.name}@{now} serves",
            "the ensemble was changed meanwhile",
            "reload the page, or check with manybeam zoo ls",
        )
    before = _restorable(zoo, asked.name, served_before(seen, now))
    proposal = PromotionProposal(before, f"{asked.name}@{now}", SERVING)
    return _move(zoo, log, seen, "rollback", proposal, who=who, reason=reason, overridden=[])


def archive(zoo: Zoo, ref: str, *, who: str, reason: str = "") -> Record:
    """Archive a version: lists do not show it, and it cannot be promoted. Nothing is deleted.

    Raises:
        Conflict: an alias points to it, or another process changes the ensemble.
        UnknownRef: there is no such version.
    """
    who, reason, log = checked_who(who), checked_reason(reason), audit_log()
    record = _version(zoo, ref)
    seen = settled_state(zoo, log, record.name)
    record = _version(zoo, record.ref)
    if record.aliases:
        raise Conflict(
            f"{record.ref} is {' and '.join(record.aliases)}",
            "a version with an alias is in use and cannot be archived",
            f"promote another version of {record.name} first",
        )
    if record.archived is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        carry_out(
            log,
            seen,
            "archive",
            record.ref,
            lambda: zoo.tag(record.ref, ARCHIVED_TAG, now),
            lambda: zoo.untag(record.ref, ARCHIVED_TAG),
            who=who,
            reason=reason,
            details={},
        )
    return zoo.resolve(record.ref)


def unarchive(zoo: Zoo, ref: str, *, who: str, reason: str = "") -> Record:
    """Unarchive an archived version; raises as `archive` does."""
    who, reason, log = checked_who(who), checked_reason(reason), audit_log()
    record = _version(zoo, ref)
    seen = settled_state(zoo, log, record.name)
    if _version(zoo, record.ref).archived is not None:
        carry_out(
            log,
            seen,
            "unarchive",
            record.ref,
            lambda: zoo.untag(record.ref, ARCHIVED_TAG),
            who=who,
            reason=reason,
            details={},
        )
    return zoo.resolve(record.ref)


def served_before(seen: EnsembleState, now: int) -> int:
    """Return the version that served before the present one.

    Raises:
        NotFound: the audit log does not name it.
    """
    moves = seen.moves(SERVING)
    last = moves[-1].details if moves else {}
    if last.get("to") == now and last.get("from") is not None:
        return int(last["from"])
    why = "the audit log has no record of a move of serving"
    if moves and last.get("to") != now:
        to = f"{seen.name}@{last.get('to')}"
        why = f"the last recorded move of serving was to {to}; a later move is not recorded"
    elif moves:
        why = "no version served before it"
    others = [one.version for one in seen.versions if one.version != now]
    hint = (
        f"manybeam zoo promote {seen.name}@{others[0]}" if others else "there is no other version"
    )
    raise NotFound(f"there is no version to go back to from {seen.name}@{now}", why, hint)


def _version(zoo: Zoo, ref: str) -> Record:
    record = zoo.resolve(ref)
    if record.selected is not None:
        raise InvalidInput(
            f"{ref} is one member",
            "only whole versions can be changed",
            f"give {record.name}@{record.version}",
        )
    return record


def _proposal(
    zoo: Zoo, new: Record, now: int | None, to: str, gates: Gates | None
) -> PromotionProposal:
    check_alias(to)
    old = "" if now is None else f"{new.name}@{now}"
    if old == new.ref:
        return PromotionProposal(new, old, to)
    verdicts = check_gates(zoo, old if to == SERVING else "", new, gates)
    return PromotionProposal(new, old, to, verdicts)


def _checked_force(ref: str, reason: str, *, force: bool) -> str:
    if force and not reason:
        raise InvalidInput(
            f"{ref} cannot be forced without a reason",
            "the audit log needs the reason for which gates are overridden",
            f'manybeam zoo promote {ref} --force --reason "..."',
        )
    return reason


def _refuse(proposal: PromotionProposal, *, force: bool) -> None:
    """Raise RefusedByGate if a check failed and is not overridden."""
    final = [one for one in proposal.refusals if one.gate in NEVER_FORCED]
    against = final if force else proposal.refusals
    if not against:
        return
    new, old = proposal.new, proposal.old
    lost = [one for one in against if one.gate == REGRESSION]
    worse = [one.condition or "every condition" for one in lost if not one.is_missing]
    missing = [one.condition for one in lost if one.is_missing]
    parts = [one.gate for one in against if one.gate != REGRESSION]
    parts += [f"lower F1 than {old} on {', '.join(worse)}"] if worse else []
    parts += [f"not measured on {', '.join(missing)}"] if missing else []
    see = f"manybeam zoo diff {old} {new.ref}; " if old and lost else ""
    raise RefusedByGate(
        f"{new.ref} was not promoted to {proposal.alias}: {'; '.join(parts)}",
        "\n".join(reasons(against)),
        f'{see}--force --reason "..." overrides the gates and is recorded in the audit log'
        if not final
        else "correct this; it cannot be forced",
    )


def _move(
    zoo: Zoo,
    log: AuditLog,
    seen: EnsembleState,
    verb: str,
    proposal: PromotionProposal,
    *,
    who: str,
    reason: str,
    overridden: list[str],
) -> Promotion:
    """Move an alias as one change."""
    new, old, alias = proposal.new, proposal.old, proposal.alias
    was = seen.version_at(alias)
    details: dict[str, Any] = {"alias": alias, "from": was, "to": new.version}
    if overridden:
        details["overridden"] = overridden

    def act() -> None:
        if version_at(zoo.listing(new.name), alias) != was:
            raise Conflict(
                f"{alias} of {new.name} was moved meanwhile",
                "another process changed the same ensemble",
                f"check with manybeam zoo ls {new.name}, then try again",
            )
        zoo.set_alias(new.name, alias, new.version)

    done = carry_out(
        log,
        seen,
        verb,
        new.ref,
        act,
        lambda: _as_logged(zoo, log, new.name, alias, was),
        who=who,
        reason=reason,
        details=details,
    )
    logger.info("alias moved", extra={"alias": alias, "ref": new.ref, "who": who})
    return Promotion(
        new.ref, alias, old, proposal.verdicts, is_forced=bool(overridden), number=done.number
    )


def _as_logged(zoo: Zoo, log: AuditLog, name: str, alias: str, was: int | None) -> None:
    """Point an alias that was moved too late to the version in the log.

    If another change is open, it will set the alias, so nothing is done.
    """
    entries = log.entries(name)[::-1]
    if open_change(entries) is not None:
        return
    moves = EnsembleState(name, 0, entries, ()).moves(alias)
    logged = int(moves[-1].details["to"]) if moves else was
    if logged is not None:
        zoo.set_alias(name, alias, logged)


def _restorable(zoo: Zoo, name: str, version: int) -> Record:
    ref = f"{name}@{version}"
    try:
        record = zoo.resolve(ref)
    except NotFound as error:
        raise Conflict(
            f"{ref} served before and was removed",
            "a removed version cannot serve",
            f"promote another version of {name}",
        ) from error
    if record.archived is not None:
        raise Conflict(
            f"{ref} served before and is archived",
            "an archived version cannot serve",
            f"manybeam zoo unarchive {ref}",
        )
    return record

"""The life of a version: promoted behind gates, rolled back, put aside and taken up again.

Each is one change at a time of an ensemble (`zoo.claims`), and each is in the audit log. A process
that is killed anywhere leaves the alias where it was or where it was to go, never between.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

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
from manybeam.zoo.audit import AuditLog, checked_reason, checked_who, whoami
from manybeam.zoo.checks import check_alias
from manybeam.zoo.claims import Standing, carry_out, open_claim, standing, version_at
from manybeam.zoo.lifecycle.gates import NEVER_FORCED, REGRESSION, judge
from manybeam.zoo.lifecycle.proposals import Promotion, Proposal
from manybeam.zoo.records import Record, Ref
from manybeam.zoo.registry import ARCHIVED_TAG, Zoo

logger = logging.getLogger(__name__)

SERVING, CANDIDATE = "serving", "candidate"


def propose(zoo: Zoo, ref: str, *, to: str = SERVING, gates: Gates | None = None) -> Proposal:
    """Return what the gates say of a version, and change nothing.

    Args:
        zoo: the zoo.
        ref: the version.
        to: the alias; a candidate need only be whole, not better.
        gates: the limits; those of the version's job if left out.

    Raises:
        UnknownRef: nothing is called that.
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
    heard: Callable[[Proposal], None] = lambda _: None,
) -> Promotion:
    """Point an alias at a version if every gate agrees, and record it.

    Args:
        zoo: the zoo.
        ref: the version.
        to: `serving` or `candidate`.
        who: who does it, for the audit log.
        force: override the gates; never those for damaged or archived versions.
        reason: why; needed to force.
        gates: the limits; those of the version's job if left out.
        heard: told of the proposal once it is judged, before it is refused or done.

    Raises:
        RefusedByGate: names what stands against it; the alias stays where it was.
        Conflict: somebody else changed the ensemble meanwhile, or is doing so.
        InvalidInput: forced without a reason, or no such alias.
        UnknownRef: nothing is called that.
        ZooUnreachable, StoreUnreachable: the zoo or the log does not answer. If that happens in
            the middle, the alias is old or new, and the next command records which.
    """
    who, reason = checked_who(who), _checked_force(ref, checked_reason(reason), force=force)
    new, log = _version(zoo, ref), AuditLog()
    seen = standing(zoo, log, new.name)
    new = _version(zoo, new.ref)  # as it is now that what was left open is closed
    proposal = _proposal(zoo, new, seen.version_at(to), to, gates)
    heard(proposal)
    _refuse(proposal, force=force)
    if proposal.is_there:
        return Promotion(new.ref, to, new.ref)
    overridden = [one.words for one in proposal.refusals]
    return _move(zoo, log, seen, "promote", proposal, who=who, reason=reason, overridden=overridden)


def settle(
    zoo: Zoo, record: Record, to: str | None, *, said: Callable[[str], None] = lambda _: None
) -> Record:
    """Give a version just made its alias, through the gates; one they refuse is the candidate.

    Args:
        zoo: the zoo.
        record: the version.
        to: `serving` or `candidate`; None for no alias.
        said: told why it does not serve.

    Raises:
        RefusedByGate: it may not even be a candidate.
        Conflict: somebody else changes the ensemble.
        ZooUnreachable, StoreUnreachable: the zoo or the log does not answer.

        Each of them says that the version is registered all the same, and what is left to do.
    """
    if to is None:
        return record
    try:
        try:
            promote(zoo, record.ref, to=to, who=whoami())
        except RefusedByGate as error:
            if to != SERVING:
                raise
            to = CANDIDATE
            promote(zoo, record.ref, to=to, who=whoami())
            said(f"{error.what}: {error.why}; it is the candidate")
        return zoo.resolve(record.ref)
    except ManybeamError as error:
        raise _unsettled(record, to, error) from error


def _unsettled(record: Record, to: str, error: ManybeamError) -> ManybeamError:
    """Return an error of the same kind that also says that the version is registered."""
    # What is cut off in the middle of a move may have been moved.
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
    """Point `serving` back at the version that served before; once more undoes it.

    Nothing is judged: it is for when something is wrong now. Weights are checked when they are
    loaded, as ever.

    Args:
        zoo: the zoo.
        name: the ensemble.
        who: who does it, for the audit log.
        reason: why.
        expect: the version that is to be taken back; whichever serves if left out.

    Raises:
        NotFound: nothing serves, or the log does not tell what served before.
        Conflict: that version is archived or gone, another than `expect` serves, or somebody else
            changes the ensemble.
        InvalidInput: a reference to one version instead of a name.
    """
    who, reason = checked_who(who), checked_reason(reason)
    asked = Ref.parse(name)
    if (asked.alias, asked.member) != (SERVING, None):
        raise InvalidInput(
            f"{name!r} names more than an ensemble",
            "rollback goes to what served before",
            f"manybeam zoo rollback {asked.name}, or manybeam zoo promote {name}",
        )
    log = AuditLog()
    seen = standing(zoo, log, asked.name)
    now = seen.version_at(SERVING)
    if now is None:
        zoo.resolve(asked.name)  # tells that there is no such ensemble, or that none serves
        raise Conflict(f"{asked.name} has been changed at this moment", "", "look again")
    if expect not in (None, now):
        raise Conflict(
            f"{asked.name}@{expect} does not serve, {asked.name}@{now} does",
            "it changed since you looked",
            "look again, or reload the page",
        )
    before = _restorable(zoo, asked.name, served_before(seen, now))
    proposal = Proposal(before, f"{asked.name}@{now}", SERVING)
    return _move(zoo, log, seen, "rollback", proposal, who=who, reason=reason, overridden=[])


def archive(zoo: Zoo, ref: str, *, who: str, reason: str = "") -> Record:
    """Put a version aside: lists leave it out and nothing may promote it. Nothing is deleted.

    Raises:
        Conflict: an alias points at it, or somebody else changes the ensemble.
        UnknownRef: nothing is called that.
    """
    who, reason, log = checked_who(who), checked_reason(reason), AuditLog()
    record = _version(zoo, ref)
    seen = standing(zoo, log, record.name)
    record = _version(zoo, record.ref)
    if record.aliases:
        raise Conflict(
            f"{record.ref} is {' and '.join(record.aliases)}",
            "what an alias points at is in use",
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
    """Take an archived version up again; raises as `archive` does."""
    who, reason, log = checked_who(who), checked_reason(reason), AuditLog()
    record = _version(zoo, ref)
    seen = standing(zoo, log, record.name)
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


def served_before(seen: Standing, now: int) -> int:
    """Return the version that served before the one that does now.

    Raises:
        NotFound: the log does not tell.
    """
    moves = seen.moves(SERVING)
    last = moves[-1].details if moves else {}
    if last.get("to") == now and last.get("from") is not None:
        return int(last["from"])
    why = "the audit log tells of no move of serving"
    if moves and last.get("to") != now:
        why = f"the log moved serving to {seen.name}@{last.get('to')}; something else moved it on"
    elif moves:
        why = "no version served before it"
    others = [one.version for one in seen.versions if one.version != now]
    hint = (
        f"manybeam zoo promote {seen.name}@{others[0]}" if others else "there is no other version"
    )
    raise NotFound(f"nothing to go back to from {seen.name}@{now}", why, hint)


def _version(zoo: Zoo, ref: str) -> Record:
    record = zoo.resolve(ref)
    if record.selected is not None:
        raise InvalidInput(
            f"{ref} is one member", "this is done to whole versions", f"name {record.name}@..."
        )
    return record


def _proposal(zoo: Zoo, new: Record, now: int | None, to: str, gates: Gates | None) -> Proposal:
    check_alias(to)
    old = "" if now is None else f"{new.name}@{now}"
    if old == new.ref:
        return Proposal(new, old, to)
    verdicts = judge(zoo, old if to == SERVING else "", new, gates)
    return Proposal(new, old, to, verdicts)


def _checked_force(ref: str, reason: str, *, force: bool) -> str:
    if force and not reason:
        raise InvalidInput(
            f"{ref} cannot be forced without a reason",
            "who overrides a gate says why, for the audit log",
            f'manybeam zoo promote {ref} --force --reason "..."',
        )
    return reason


def _refuse(proposal: Proposal, *, force: bool) -> None:
    """Raise RefusedByGate if anything stands against it that may not, or is not, overridden."""
    final = [one for one in proposal.refusals if one.gate in NEVER_FORCED]
    against = final if force else proposal.refusals
    if not against:
        return
    lost = [one.condition or proposal.old for one in against if one.gate == REGRESSION]
    others = [one.gate for one in against if one.gate != REGRESSION]
    parts = [*others, *([f"F1 on {', '.join(lost)}"] if lost else [])]
    new, old = proposal.new, proposal.old
    see = f"manybeam zoo diff {old} {new.ref}; " if old and lost else ""
    raise RefusedByGate(
        f"{new.ref} may not be {proposal.alias}: {'; '.join(parts)}",
        "; ".join(one.words for one in against),
        f'{see}--force --reason "..." overrides and is audited'
        if not final
        else "mend that; it cannot be forced",
    )


def _move(
    zoo: Zoo,
    log: AuditLog,
    seen: Standing,
    verb: str,
    proposal: Proposal,
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
            raise Conflict(f"{alias} of {new.name} was moved meanwhile", "", "look again")
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
    """Put an alias that was moved too late where the log says it is; who changes it now, will."""
    entries = log.entries(name)[::-1]
    if open_claim(entries) is not None:
        return
    moves = Standing(name, 0, entries, ()).moves(alias)
    wanted = int(moves[-1].details["to"]) if moves else was
    if wanted is not None:
        zoo.set_alias(name, alias, wanted)


def _restorable(zoo: Zoo, name: str, version: int) -> Record:
    ref = f"{name}@{version}"
    try:
        record = zoo.resolve(ref)
    except NotFound as error:
        raise Conflict(f"{ref} served before and is gone", "", f"promote another {name}") from error
    if record.archived is not None:
        raise Conflict(f"{ref} served before and is archived", "", f"manybeam zoo unarchive {ref}")
    return record

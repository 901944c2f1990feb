"""`manybeam zoo promote` and its kin: the life of a version, its gates and the log of all of it."""

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say

if TYPE_CHECKING:
    from manybeam.zoo.lifecycle.proposals import Promotion, Proposal

ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
RefArgument = Annotated[str, typer.Argument(help="name@candidate or name@3.")]


class Alias(StrEnum):
    """What a version can be promoted to."""

    serving = "serving"
    candidate = "candidate"


def promote(
    ref: RefArgument,
    *,
    to: Annotated[Alias, typer.Option(help="serving or candidate.")] = Alias.serving,
    force: Annotated[bool, typer.Option("--force", help="Override the gates.")] = False,
    reason: ReasonOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only judge.")] = False,
    form: FormOption = Form.auto,
) -> None:
    """Let a version serve if every gate agrees: it is whole, and nowhere worse than what serves.

    A gate that says no is exit 6, with each condition that regresses.

    Example: manybeam zoo promote graphene@candidate
    """
    from manybeam.zoo.audit import whoami
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    if dry_run:
        proposal = life.propose(Zoo(), ref, to=to.value)
        _show(proposal, form)
        say(f"nothing was changed; it would be {'refused' if proposal.refusals else 'promoted'}")
        return
    done = life.promote(
        Zoo(),
        ref,
        to=to.value,
        who=whoami(),
        force=force,
        reason=reason,
        heard=lambda proposal: _show(proposal, form),
    )
    _tell(done)


def rollback(
    name: Annotated[str, typer.Argument(help="Name of the ensemble.")], *, reason: ReasonOption = ""
) -> None:
    """Let the version serve again that served before; once more undoes it.

    Example: manybeam zoo rollback graphene --reason "misses the dopants"
    """
    from manybeam.zoo.audit import whoami
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    _tell(life.rollback(Zoo(), name, who=whoami(), reason=reason))


def archive(ref: RefArgument, *, reason: ReasonOption = "") -> None:
    """Put a version aside: lists leave it out and it cannot be promoted. Nothing is deleted.

    Example: manybeam zoo archive graphene@2
    """
    from manybeam.zoo.audit import whoami
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    record = life.archive(Zoo(), ref, who=whoami(), reason=reason)
    say(f"{record.ref} is archived; manybeam zoo unarchive {record.ref} takes it up again")


def unarchive(ref: RefArgument, *, reason: ReasonOption = "") -> None:
    """Take an archived version up again.

    Example: manybeam zoo unarchive graphene@2
    """
    from manybeam.zoo.audit import whoami
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    record = life.unarchive(Zoo(), ref, who=whoami(), reason=reason)
    say(f"{record.ref} is not archived")


def gc(
    *,
    older_than_hours: Annotated[
        int,
        typer.Option(
            min=1, max=876_000, help="For how long a cut-off registration has been silent."
        ),
    ] = 24,
    archived_days: Annotated[
        int | None, typer.Option(min=0, max=36_500, help="Also versions archived so long ago.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it.")] = False,
    reason: ReasonOption = "",
    form: FormOption = Form.auto,
) -> None:
    """List what no version, alias or lineage needs, and remove it with --yes.

    Example: manybeam zoo gc --archived-days 90
    """
    from dataclasses import asdict

    from manybeam.zoo.audit import whoami
    from manybeam.zoo.lifecycle.collect import REMOVABLE, REMOVED, collect
    from manybeam.zoo.registry import Zoo

    found = collect(
        Zoo(),
        who=whoami(),
        reason=reason,
        grace=timedelta(hours=older_than_hours),
        archived_for=None if archived_days is None else timedelta(days=archived_days),
        remove=yes,
    )
    emit([asdict(one) for one in found], form, title="What is not needed", columns=_GC_COLUMNS)
    gone = [one for one in found if one.state == (REMOVED if yes else REMOVABLE)]
    models = sum(one.models for one in gone)
    what = f"{len(gone)} with {models} models and their files"
    say(f"removed: {what}" if yes else f"nothing was removed; --yes removes {what}")


_GC_COLUMNS = ("what", "name", "models", "since", "state", "why")


def audit(
    subject: Annotated[str | None, typer.Argument(help="Ensemble or version; all if left out.")] = (
        None
    ),
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Check every link.")] = False,
    anchor: Annotated[str, typer.Option(help="What --verify once told; checked as well.")] = "",
    form: FormOption = Form.auto,
) -> None:
    """Show who did what and why, newest first; --verify finds a record that was tampered with.

    Example: manybeam zoo audit graphene
    """
    from dataclasses import asdict

    from manybeam.zoo.audit import AuditLog

    log = AuditLog()
    if verify or anchor:
        chain = log.verify(anchor)
        say(f"{chain.count} records, each follows the one before")
        say("keep this elsewhere, and give it to --anchor later, to see that none was cut off:")
        emit([{"anchor": chain.anchor}], Form.id if form is Form.auto else form)
        return
    rows = [asdict(one) for one in log.entries(subject)]
    emit(rows, form, title="Audit log", columns=_AUDIT_COLUMNS)


_AUDIT_COLUMNS = ("number", "when", "action", "subject", "who", "reason")


def _show(proposal: "Proposal", form: Form) -> None:
    rows = [
        {
            "gate": one.gate,
            "condition": one.condition or "all",
            "verdict": "passes" if one.passed else "refuses",
            "what": one.what,
        }
        for one in proposal.verdicts
    ]
    versus = f" against {proposal.old}" if proposal.old else ""
    emit(rows, form, title=f"{proposal.new.ref}{versus}")


def _tell(done: "Promotion") -> None:
    if not done.number:
        say(f"{done.ref} is {done.alias} already")
        return
    before = f", {done.previous} before" if done.previous else ""
    forced = " (gates overridden)" if done.is_forced else ""
    say(f"{done.ref} is {done.alias} now{before}{forced}; audit record {done.number}")
    if done.alias == "serving" and done.previous:
        say(f"to undo: manybeam zoo rollback {done.ref.partition('@')[0]}")

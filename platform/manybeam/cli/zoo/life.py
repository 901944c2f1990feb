"""`manybeam zoo promote | rollback | archive | unarchive | gc | audit`."""

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say

if TYPE_CHECKING:
    from manybeam.zoo.lifecycle.proposals import Promotion, PromotionProposal

ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
RefArgument = Annotated[str, typer.Argument(help="name@candidate or name@3.")]


class Alias(StrEnum):
    """Aliases to which a version can be promoted."""

    serving = "serving"
    candidate = "candidate"


def promote(
    ref: RefArgument,
    *,
    to: Annotated[Alias, typer.Option(help="serving or candidate.")] = Alias.serving,
    force: Annotated[
        bool, typer.Option("--force", help="Override the gates; needs --reason.")
    ] = False,
    reason: ReasonOption = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the result of the gates.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Let a version serve if every gate accepts it.

    The gates check that the version is complete and unchanged, and that it is not worse than the
    serving version on any condition. If a gate refuses, the exit code is 6 and the failed checks
    are listed.

    Example: manybeam zoo promote graphene@candidate
    """
    from manybeam.db.deployment import authenticated_name
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    if dry_run:
        proposal = life.propose(Zoo(), ref, to=to.value)
        show_proposal(proposal, form)
        result = "refused" if proposal.refusals else "promoted"
        say(f"nothing was changed; the version would be {result}")
        return
    done = life.promote(
        Zoo(),
        ref,
        to=to.value,
        who=authenticated_name(),
        force=force,
        reason=reason,
        on_proposal=lambda proposal: show_proposal(proposal, form),
    )
    report_move(done)


def rollback(
    name: Annotated[str, typer.Argument(help="Name of the ensemble.")], *, reason: ReasonOption = ""
) -> None:
    """Let the version before serve again. A second rollback undoes the first.

    Example: manybeam zoo rollback graphene --reason "misses the dopants"
    """
    from manybeam.db.deployment import authenticated_name
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    report_move(life.rollback(Zoo(), name, who=authenticated_name(), reason=reason))


def archive(ref: RefArgument, *, reason: ReasonOption = "") -> None:
    """Archive a version: lists do not show it, and it cannot be promoted. Nothing is deleted.

    Example: manybeam zoo archive graphene@2
    """
    from manybeam.db.deployment import authenticated_name
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    record = life.archive(Zoo(), ref, who=authenticated_name(), reason=reason)
    say(f"{record.ref} is archived; to undo: manybeam zoo unarchive {record.ref}")


def unarchive(ref: RefArgument, *, reason: ReasonOption = "") -> None:
    """Unarchive an archived version.

    Example: manybeam zoo unarchive graphene@2
    """
    from manybeam.db.deployment import authenticated_name
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    record = life.unarchive(Zoo(), ref, who=authenticated_name(), reason=reason)
    say(f"{record.ref} is no longer archived")


def gc(
    *,
    older_than_hours: Annotated[
        int,
        typer.Option(
            min=1, max=876_000, help="Hours without activity after a registration that stopped."
        ),
    ] = 24,
    archived_days: Annotated[
        int | None,
        typer.Option(min=0, max=36_500, help="Also versions archived at least so long ago."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the listed data.")] = False,
    reason: ReasonOption = "",
    form: FormOption = Form.auto,
) -> None:
    """List data that no version, alias or lineage needs. Remove it with --yes.

    Example: manybeam zoo gc --archived-days 90
    """
    from dataclasses import asdict

    from manybeam.db.deployment import authenticated_name
    from manybeam.zoo.lifecycle.collect import REMOVABLE, REMOVED, collect
    from manybeam.zoo.registry import Zoo

    found = collect(
        Zoo(),
        who=authenticated_name(),
        reason=reason,
        grace=timedelta(hours=older_than_hours),
        archived_for=None if archived_days is None else timedelta(days=archived_days),
        remove=yes,
    )
    rows, title = [asdict(one) for one in found], "Data that is not needed"
    empty = "no data that can be removed; --archived-days N includes archived versions"
    emit(rows, form, title=title, columns=_GC_COLUMNS, empty=empty)
    gone = [one for one in found if one.state == (REMOVED if yes else REMOVABLE)]
    models = sum(one.models for one in gone)
    entries = "1 entry" if len(gone) == 1 else f"{len(gone)} entries"
    what = f"{entries} with {models} models and their files"
    say(f"removed: {what}" if yes else f"nothing was removed; --yes removes {what}")


_GC_COLUMNS = ("what", "name", "models", "since", "state", "why")


def audit(
    subject: Annotated[
        str | None, typer.Argument(help="Ensemble or version; if left out, all records.")
    ] = None,
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash of every record.")] = (
        False
    ),
    anchor: Annotated[
        str, typer.Option(help="Anchor that --verify printed before; it is checked too.")
    ] = "",
    form: FormOption = Form.auto,
) -> None:
    """Show who changed what and why, newest first. --verify finds records that were altered.

    Example: manybeam zoo audit graphene
    """
    from dataclasses import asdict

    from manybeam.zoo.older_objects import audit_log

    log = audit_log()
    if verify or anchor:
        chain = log.verify(anchor)
        say(f"{chain.count} records, all unchanged and in order")
        say("keep this anchor elsewhere; give it to --anchor later to find removed records:")
        emit([{"anchor": chain.anchor}], Form.id if form is Form.auto else form)
        return
    rows = [asdict(one) for one in log.entries(subject)]
    of = f" of {subject}" if subject else ""
    empty = f"no record{of} yet; manybeam zoo audit without a name lists all"
    emit(rows, form, title="Audit log", columns=_AUDIT_COLUMNS, empty=empty)


_AUDIT_COLUMNS = ("number", "when", "action", "subject", "who", "reason")


def show_proposal(proposal: "PromotionProposal", form: Form) -> None:
    """Print the results of the gates."""
    rows = [
        {
            "gate": one.gate,
            "condition": one.condition or "all",
            "verdict": "accepts" if one.passed else "refuses",
            "what": one.what,
        }
        for one in proposal.verdicts
    ]
    versus = f" against {proposal.old}" if proposal.old else ""
    empty = f"no check is needed: {proposal.new.ref} is {proposal.alias} already"
    emit(rows, form, title=f"{proposal.new.ref}{versus}", empty=empty)


def report_move(done: "Promotion") -> None:
    """Say which version serves now, and how to undo it."""
    if not done.number:
        say(f"{done.ref} is already {done.alias}")
        return
    before = f", before it {done.previous}" if done.previous else ""
    forced = " (gates overridden)" if done.is_forced else ""
    say(f"{done.ref} is now {done.alias}{before}{forced}; audit record {done.number}")
    if done.alias == "serving" and done.previous:
        say(f"to undo: manybeam zoo rollback {done.ref.partition('@')[0]}")

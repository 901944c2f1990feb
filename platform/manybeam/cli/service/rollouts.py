"""`manybeam serve shadow | canary | promote | rollback`: a new version under traffic."""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manybeam.cli.terminal.output import UNKNOWN, Form, FormOption, emit, say, settled
from manybeam.cli.zoo.life import ReasonOption, report_move, show_proposal
from manybeam.errors import InvalidInput

if TYPE_CHECKING:
    from manybeam.db.serving.comparison import Compared, Comparison
    from manybeam.db.serving.rollouts import Kind, Rollout

FOLLOWS = (
    "a running service follows within 5 s, within 10 s if it has to load a version first; one that "
    "starts later, at its start"
)
BEFORE_AND_NEW = "serving version / new one"

RefArgument = Annotated[
    str | None,
    typer.Argument(help="The new version: name@candidate or name@3. If left out, list what runs."),
]
InstrumentOption = Annotated[
    list[str] | None,
    typer.Option(help="Only frames of this instrument; may be given several times."),
]
AllOption = Annotated[bool, typer.Option("--all", help="List also those that have ended.")]
NameArgument = Annotated[
    str, typer.Argument(help="Name of the ensemble, or the version of its rollout.")
]


def shadow(
    ref: RefArgument = None,
    *,
    instrument: InstrumentOption = None,
    share: Annotated[float, typer.Option(help="Share of the frames, above 0 and at most 1.")] = 1.0,
    reason: ReasonOption = "",
    ended: AllOption = False,
    form: FormOption = Form.auto,
) -> None:
    """Let a version answer the same frames after the serving one; callers get nothing of it.

    Without REF, list the shadows and how both versions answered so far: the share of the serving
    version's atoms that the new one found too (agreed), the F1 between both, the predicted F1 of
    both, and their times. The shadow works only while no request is answered; frames that find no
    room are counted as skipped.

    Example: manybeam serve shadow graphene@candidate --instrument STEM-1
    """
    if ref is None:
        _refuse_options(instrument, has_share=share != 1.0, reason=reason)
        _list("shadow", form, with_ended=ended)
        return
    _start("shadow", ref, share, instrument or [], reason, form)


def canary(
    ref: RefArgument = None,
    *,
    instrument: InstrumentOption = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of the frames; all frames of --instrument if left out."),
    ] = None,
    reason: ReasonOption = "",
    ended: AllOption = False,
    form: FormOption = Form.auto,
) -> None:
    """Let a version answer a share of the frames, or all frames of an instrument.

    It answers callers who ask for NAME, NAME@serving or auto; those who name a version get that
    one. A frame that is sent twice gets the same version. If the new version fails, the serving one
    answers. Without REF, list the canaries and how both versions answered so far. For another
    share, give the same command with it.

    Example: manybeam serve canary graphene@candidate --share 0.1
    """
    if ref is None:
        _refuse_options(instrument, has_share=share is not None, reason=reason)
        _list("canary", form, with_ended=ended)
        return
    if share is None and not instrument:
        raise InvalidInput(
            "a canary needs a share of the frames, or an instrument",
            "without either, all frames would be answered by the new version",
            f"manybeam serve canary {ref} --share 0.1, or --instrument STEM-1",
        )
    _start("canary", ref, 1.0 if share is None else share, instrument or [], reason, form)


def promote(
    name: NameArgument,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Override the gates; needs --reason.")
    ] = False,
    reason: ReasonOption = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the result of the gates.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Let the version of the running shadow or canary serve, if every gate accepts it.

    The gates are those of `manybeam zoo promote`. If one refuses, the exit code is 6, and the
    shadow or canary goes on.

    Example: manybeam serve promote graphene
    """
    from manybeam.db.deployment import authenticated_name
    from manybeam.serve.traffic import changes
    from manybeam.zoo.lifecycle import life
    from manybeam.zoo.registry import Zoo

    if dry_run:
        rollout = changes.running(name)
        proposal = life.propose(Zoo(), rollout.ref)
        show_proposal(proposal, form)
        result = "refused" if proposal.refusals else "promoted"
        say(f"nothing was changed; the version would be {result}")
        return
    done, rollout = changes.promote(
        Zoo(),
        name,
        who=authenticated_name(),
        force=force,
        reason=reason,
        on_proposal=lambda proposal: show_proposal(proposal, form),
    )
    report_move(done)
    say(f"the {rollout.kind} has ended: {FOLLOWS}")


def rollback(
    name: NameArgument, *, reason: ReasonOption = "", form: FormOption = Form.auto
) -> None:
    """End the running shadow or canary; if none runs, let the version before serve again.

    The version before serves again too if that of the shadow or canary was promoted meanwhile.

    Example: manybeam serve rollback graphene --reason "misses the dopants"
    """
    from manybeam.db.deployment import authenticated_name
    from manybeam.serve.traffic import changes
    from manybeam.zoo.registry import Zoo

    done = changes.rollback(Zoo(), name, who=authenticated_name(), reason=reason)
    rollout, move = done.rollout, done.move
    if rollout is not None:
        row = _facts(rollout) | {"serves": done.serves}
        emit([row], form, title=f"{rollout.kind} ended", missing=UNKNOWN)
    elif move is not None:
        row = {"ref": move.ref, "alias": move.alias, "before": move.previous}
        emit([row], form, title="rolled back")
    if move is not None:
        if rollout is not None:
            say(f"{rollout.ref} served already, so the version before it serves again")
        report_move(move)
        say(FOLLOWS)
    elif rollout is not None:
        say(f"{_serves(done.serves, rollout)}: {FOLLOWS}")
        say(f"to undo: {_command(rollout)}", is_whole=True)


def _serves(ref: str | None, ended: "Rollout") -> str:
    """Return what answers after a rollout, in words."""
    if ref is None:
        return (
            f"the zoo does not answer, so what serves is unknown: if {ended.ref} does, "
            f"manybeam zoo rollback {ended.ensemble}"
        )
    if not ref:
        return f"no version of {ended.ensemble} serves"
    return f"{ref} answers every frame{' again' if ref == ended.base else ''}"


def _start(
    kind: "Kind", ref: str, share: float, instruments: list[str], reason: str, form: Form
) -> None:
    from manybeam.db.deployment import authenticated_name
    from manybeam.serve.traffic import changes
    from manybeam.zoo.registry import Zoo

    started = changes.start(
        Zoo(),
        kind,
        ref,
        share=share,
        instruments=instruments,
        who=authenticated_name(),
        reason=reason,
    )
    emit([_facts(started.rollout)], form, title=f"{kind} started")
    for one in started.warnings:
        say(f"warning: {one}")
    say(FOLLOWS)
    say(f"to compare: manybeam serve {kind}; to undo: manybeam serve rollback "
        f"{started.rollout.ensemble}")  # fmt: skip


def _refuse_options(instrument: list[str] | None, *, has_share: bool, reason: str) -> None:
    if instrument or has_share or reason:
        raise InvalidInput(
            "--instrument, --share and --reason are for a version",
            "without one, the command lists what runs",
            "manybeam serve shadow graphene@candidate --instrument STEM-1",
        )


def _list(kind: "Kind", form: Form, *, with_ended: bool) -> None:
    """Print one row for each instrument of each rollout."""
    from manybeam.serve.traffic import changes

    found = changes.compared(kind, with_ended=with_ended)
    empty = f"no {kind} runs: manybeam serve {kind} graphene@candidate"
    empty += " --share 0.1" if kind == "canary" else ""
    is_table = settled(form) is Form.table
    rows = [row for one in found for row in _comparison_rows(one)]
    shown = [_short(row, with_ended=with_ended) for row in rows] if is_table else rows
    title = f"{kind}, {BEFORE_AND_NEW}" if is_table else ""
    emit(shown, form, title=title, empty=empty, missing=UNKNOWN)
    for one in found:
        _say_state(one)


def _say_state(one: "Compared") -> None:
    rollout = one.rollout
    since = f"since {rollout.started:%Y-%m-%d %H:%M} UTC, by {rollout.started_by}"
    ended = f"; {rollout.outcome} by {rollout.ended_by}" if rollout.ended else ""
    say(f"{rollout.id}: {rollout.words} beside {rollout.base} {since}{ended}")
    if one.fault:
        say(f"   last failure: {one.fault}")
    if not one.rows and rollout.ended is None:
        say("   no frame so far: is a service running, and does it get frames?")


def _comparison_rows(one: "Compared") -> list[dict[str, Any]]:
    facts = _facts(one.rollout)
    whose = facts.pop("instruments")
    rows = one.rows or (("", None),)
    return [
        {
            "id": facts["id"],
            "ref": facts["ref"],
            "instrument": instrument or ("not named" if found else ""),
            **_numbers(found),
            **facts,
            "instruments": whose,
            **({} if found else {"fault": one.fault}),
        }
        for instrument, found in rows
    ]


def _short(row: Mapping[str, Any], *, with_ended: bool) -> dict[str, Any]:
    """Return a row that fits on a screen, with both versions in one cell."""

    def both(field: str, digits: int) -> str:
        pair = (row[f"base_{field}"], row[f"new_{field}"])
        return " / ".join("-" if one is None else f"{one:.{digits}f}" for one in pair)

    short = {
        "id": row["id"],
        "ref": row["ref"],
        "instrument": row["instrument"],
        "frames": both("frames", 0) if row["kind"] == "canary" else row["frames"],
        **({"agreed": row["agreed"], "f1": row["f1_between"]} if row["kind"] == "shadow" else {}),
        "predicted F1": both("predicted_f1", 3),
        "drifted": both("drifted", 2),
        "p50 ms": both("p50_ms", 0),
        "p99 ms": both("p99_ms", 0),
        **({"skipped": row["skipped"]} if row["kind"] == "shadow" else {"late": both("late", 0)}),
        "failed": row["failed"],
    }
    return short | ({"state": row["state"]} if with_ended else {})


def _numbers(found: "Comparison | None") -> dict[str, Any]:
    from manybeam.db.serving.comparison import Comparison

    one = found or Comparison.of({})
    sides = {"base": one.base, "new": one.new}
    numbers: dict[str, Any] = {
        "frames": one.new.frames,
        "agreed": one.agreed,
        "f1_between": one.f1_between,
        "offset_pm": one.offset_pm,
        "skipped": one.skipped,
        "failed": one.failed,
        "fault": one.fault,
    }
    for name, side in sides.items():
        numbers |= {f"{name}_{field}": value for field, value in vars(side).items()}
    return numbers


def _facts(rollout: "Rollout") -> dict[str, Any]:
    return {
        "id": rollout.id,
        "kind": rollout.kind,
        "ref": rollout.ref,
        "base": rollout.base,
        "share": rollout.share,
        "instruments": list(rollout.instruments),
        "state": rollout.outcome or "running",
        "started": rollout.started.isoformat(),
        "started_by": rollout.started_by,
        "ended": rollout.ended.isoformat() if rollout.ended else None,
        "ended_by": rollout.ended_by,
    }


def _command(rollout: "Rollout") -> str:
    """Return the command that starts it again."""
    words = ["manybeam", "serve", rollout.kind, rollout.ref]
    for one in rollout.instruments:
        words += ["--instrument", one]
    if rollout.share < 1 or (rollout.kind == "canary" and not rollout.instruments):
        words += ["--share", f"{rollout.share:g}"]
    return shlex.join(words)

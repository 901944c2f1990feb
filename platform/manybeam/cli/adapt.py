"""`manybeam iterate`: gated rounds of iterative training on unlabelled frames."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.errors import RefusedByGate


class LabelSource(StrEnum):
    """Who labels the new frames: simulated twins of them, the ensemble itself, or both."""

    twin = "twin"
    pseudo = "pseudo"
    both = "both"


def iterate(
    frames: Annotated[str, typer.Argument(help="FrameSet of unlabelled frames of one condition.")],
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF to start from.")],
    policy: Annotated[str, typer.Option(help="Policy the condition is inferred in.")],
    teacher: Annotated[
        LabelSource, typer.Option(help="Who labels the new frames.")
    ] = LabelSource.twin,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps for each member.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds; they end with the gain.")] = 1,
    member: Annotated[
        list[int] | None, typer.Option(min=0, help="Adapt this one; selection chooses if none.")
    ] = None,
    frame: Annotated[
        list[int] | None, typer.Option(min=0, help="Index of a frame to adapt to; else 16.")
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Add adapted members, keep their parents.")
    ] = False,
    max_regression: Annotated[
        float, typer.Option(min=0, max=1, help="Loss of F1 on held-out truth that still passes.")
    ] = 0.005,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Folder for pictures and tables, before and after.")
    ] = None,
    form: FormOption = Form.auto,
) -> None:
    """Adapt members to frames nobody labelled; register a candidate only if the gate agrees.

    Interrupted, the same command goes on where it was. Refused by the gate it exits 6 and the zoo
    is as it was.

    Example: manybeam iterate frames/today -e graphene --policy graphene-general
    """
    from manybeam.cli.adapt_report import iterate_report, standing_rows
    from manybeam.jobs.adapt import iterate as run_rounds
    from manybeam.settings import settings
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

    library = Library(settings().zoo)
    done = run_rounds(
        Zoo(),
        ensemble,
        frames,
        library.policy(policy),
        library,
        members=member,
        frames=frame or (),
        teacher=teacher.value,
        steps=steps,
        rounds=rounds,
        beside=beside,
        max_regression=max_regression,
        seed=seed,
    )
    emit(standing_rows(done.round.steps), form, title="Rounds")
    if report is not None:
        say(f"report: {iterate_report(done, report)}")
    if done.record is None:
        raise RefusedByGate(
            "no member passed the gate", done.round.why, "the parent stays as it is"
        )
    say(f"registered {done.record.ref} as candidate in {done.round.wall_s:.0f} s")
    say(f"selection knows it by rule of thumb until: manybeam rehearse {done.record.ref}")

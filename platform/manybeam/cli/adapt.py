"""`manybeam iterate`: gated rounds of iterative training on unlabelled frames."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manybeam.cli.terminal.output import NOT_MEASURED, Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress

if TYPE_CHECKING:
    from manybeam.jobs.adapt import AdaptOutcome


class LabelChoice(StrEnum):
    """Where labels come from: simulated twins of the frames, pseudo-labels, or both."""

    twin = "twin"
    pseudo = "pseudo"
    both = "both"


def iterate(
    frames: Annotated[str, typer.Argument(help="FrameSet of unlabelled frames of one condition.")],
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF to start from.")],
    policy: Annotated[
        str, typer.Option(help="Policy in which the condition of the frames is inferred.")
    ],
    labels: Annotated[
        LabelChoice,
        typer.Option(
            "--labels",
            "--teacher",
            help="Where labels come from: frames simulated like the new ones (twin), atoms on "
            "which the members agree (pseudo), or both. --teacher is the old name.",
        ),
    ] = LabelChoice.twin,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps for each member.")] = 100,
    rounds: Annotated[
        int, typer.Option(min=1, help="Largest number of rounds; no gain ends them earlier.")
    ] = 1,
    member: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Member to adapt; if left out, selection chooses."),
    ] = None,
    frame: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Index of a frame to adapt to; if left out, the first 16."),
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Add adapted members and keep their parents.")
    ] = False,
    max_regression: Annotated[
        float,
        typer.Option(min=0, max=1, help="Largest loss of F1 on held-out truth that is accepted."),
    ] = 0.005,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random draws.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Folder for pictures and tables, before and after.")
    ] = None,
    form: FormOption = Form.auto,
) -> None:
    """Adapt members to unlabelled frames; register a candidate if the gate accepts them.

    If the command is interrupted, run it again: it continues with the finished steps. If the
    acceptance gate refuses the adapted members, the exit code is 6 and the zoo is unchanged.

    Example: manybeam iterate frames/today -e graphene --policy graphene-general
    """
    if report is not None:
        from manybeam.zoo.checks import check_folder

        check_folder(report)
    with Progress(f"start adapting {ensemble}") as bars:
        done = _rounds(
            ensemble,
            frames,
            policy,
            progress=bars.update,
            members=member,
            frames=frame or (),
            labels=labels.value,
            steps=steps,
            rounds=rounds,
            beside=beside,
            max_regression=max_regression,
            seed=seed,
        )
    from manybeam.cli.adapt_report import assessment_rows, iterate_report
    from manybeam.jobs.kinds import refused_by_gate

    emit(assessment_rows(done.round.steps), form, title="Rounds", missing=NOT_MEASURED)
    if report is not None:
        say(f"report: {iterate_report(done, report)}")
    if done.record is None:
        raise refused_by_gate(done.round.why)
    say(f"registered {done.record.ref} as candidate in {done.round.wall_s:.0f} s")
    say(f"not calibrated yet; run: manybeam calibrate {done.record.ref}")


def _rounds(ref: str, frames_url: str, policy: str, **asked: Any) -> "AdaptOutcome":
    """Run the rounds; heavy modules are imported here, after the first sign of progress."""
    from manybeam.jobs.adapt import iterate as run_rounds
    from manybeam.settings import settings
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

    library = Library(settings().zoo)
    return run_rounds(Zoo(), ref, frames_url, library.policy(policy), library, **asked)

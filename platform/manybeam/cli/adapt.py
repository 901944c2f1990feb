"""`manybeam iterate`: one gated round of iterative training on unlabelled frames."""

from enum import StrEnum
from typing import Annotated

import typer

from manybeam.cli.output import Form, FormOption, emit, say
from manybeam.errors import RefusedByGate


class Teacher(StrEnum):
    """Who labels the new frames: simulated twins of them, or the ensemble itself."""

    twin = "twin"
    pseudo = "pseudo"


def iterate(
    frames: Annotated[str, typer.Argument(help="FrameSet of unlabelled frames of one condition.")],
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF to start from.")],
    policy: Annotated[str, typer.Option(help="Policy the condition is inferred in.")],
    teacher: Annotated[Teacher, typer.Option(help="Who labels the new frames.")] = Teacher.twin,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps for each member.")] = 100,
    max_regression: Annotated[
        float, typer.Option(min=0, max=1, help="Loss of F1 on held-out truth that still passes.")
    ] = 0.005,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    form: FormOption = Form.auto,
) -> None:
    """Adapt members to frames nobody labelled; register a candidate only if the gate agrees.

    Refused by the gate it exits 6 and the zoo is as it was.

    Example: manybeam iterate frames/today -e graphene --policy graphene-general
    """
    from manybeam.jobs.iterate import iterate as run_round
    from manybeam.settings import settings
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

    library = Library(settings().zoo)
    done = run_round(
        Zoo(),
        ensemble,
        frames,
        library.policy(policy),
        library,
        teacher=teacher.value,
        steps=steps,
        max_regression=max_regression,
        seed=seed,
    )
    emit(
        [
            {
                "member": f"{step.member:02d}",
                "accepted": step.accepted,
                "fitness_before": step.before.fitness,
                "fitness_after": step.after and step.after.fitness,
                "f1_before": step.before.f1,
                "f1_after": step.after and step.after.f1,
                "why": step.why,
            }
            for step in done.round.steps
        ],
        form,
        title="One round",
    )
    if done.record is None:
        raise RefusedByGate(
            "no member passed the gate", done.round.why, "the parent stays as it is"
        )
    say(f"registered {done.record.ref} as candidate in {done.round.wall_s:.0f} s")

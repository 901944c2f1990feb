"""`manybeam train` runs a job of any kind; `manybeam evaluate` measures a version."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress
from manybeam.cli.zoo.listing import as_row
from manybeam.errors import NotFound

if TYPE_CHECKING:
    from manybeam.spec import Job, Library
    from manybeam.zoo.records import Record


def train(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="A job of any kind.")],
    *,
    form: FormOption = Form.auto,
) -> None:
    """Run a job on this machine: train, evaluate, calibrate or adapt one version.

    If the command is interrupted, run it again: it continues with the finished work.

    Example: manybeam train jobs/quickstart.yaml
    """
    from manybeam.settings import settings
    from manybeam.spec.files import load_project
    from manybeam.spec.starter import job_here

    if (ours := job_here(job_file)) != job_file:
        say(f"{job_file} is not here; the copy in the package is used (manybeam init DIR)")
        job_file = ours
    job, library = load_project(job_file, settings().zoo)
    with Progress(f"start the job {job.name or job.ensemble}") as progress:
        record = run_job(job, library, progress)
    emit([as_row(record)], form, title="Measured" if job.kind == "evaluate" else "Registered")


def evaluate(
    ref: Annotated[str, typer.Argument(help="Which version: name, name@serving, name@3.")],
    *,
    conditions: Annotated[
        list[str] | None, typer.Option(help="Ids or globs of conditions.")
    ] = None,
    frames: Annotated[list[str] | None, typer.Option(help="URLs of labelled FrameSets.")] = None,
    count: Annotated[
        int, typer.Option(min=1, max=100_000, help="Frames simulated for each condition.")
    ] = 8,
    radius_pm: Annotated[
        float,
        typer.Option(
            min=0, max=1000, help="Match radius [pm]; if 0, 0.35 of the neighbour distance."
        ),
    ] = 0.0,
    score: Annotated[str, typer.Option(help="Score to print.")] = "f1",
    form: FormOption = Form.auto,
) -> None:
    """Measure members x conditions and record the scores in the zoo.

    Measured are every member, all members together ("ensemble"), a classical detector, and, if
    the version was calibrated, the members that are selected for each frame ("selected").

    Example: manybeam evaluate graphene --conditions 'graphene-60kv-*'
    """
    from manybeam.cli.zoo.listing import matrix

    with Progress(f"start measuring {ref}") as progress:
        from manybeam.jobs.evaluate import is_score_name
        from manybeam.jobs.kinds import Callbacks, measure_version
        from manybeam.settings import settings
        from manybeam.spec import Library
        from manybeam.spec.job import Measure

        if not is_score_name(score):
            raise NotFound(
                f"there is no score {score!r}",
                "a score that is measured is needed",
                "--score f1, precision, recall, rmse_pm, ece; manybeam zoo matrix lists more",
            )
        measure = Measure(
            conditions=tuple(conditions or ()),
            frames=tuple(frames or ()),
            frames_per_condition=count,
            match_radius_pm=radius_pm or None,
        )
        library, callbacks = Library(settings().zoo), Callbacks(progress.update, say)
        record = measure_version(ref, measure, library, callbacks)
    matrix(record.ref, score=score, form=form)


def _warn_of_policies(job: "Job", library: "Library") -> None:
    """Print warnings about training frames that are physically doubtful."""
    from manybeam.data.simulation.physics import warnings_for
    from manybeam.data.simulation.typical import filled

    for name in sorted({plan.policy for plan in library.recipe(job.recipe).members}):
        for sentence in warnings_for(filled(library.policy(name))):
            say(f"warning: policy {name}: {sentence}")


def run_job(job: "Job", library: "Library", progress: Progress) -> "Record":
    """Run a job of any kind and return the version that it made or measured."""
    from manybeam.jobs.kinds import Callbacks, run

    if job.kind == "train":
        _warn_of_policies(job, library)
    return run(job, library, Callbacks(progress.update, say))

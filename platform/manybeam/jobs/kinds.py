"""What runs a job of each kind: one table, for the command line and whoever else starts jobs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manybeam.errors import InvalidInput, InvalidSpec, RefusedByGate
from manybeam.spec import Job, Library

if TYPE_CHECKING:
    from manybeam.jobs.adapt import IterateOutcome
    from manybeam.zoo.records import Record


@dataclass(frozen=True)
class Callbacks:
    """Whom a running job tells how it goes.

    Attributes:
        progress: called with a task's name, what is done of it, all of it, and a note.
        say: called with a sentence for the person who started it.
    """

    progress: Callable[[str, float, float, str], None]
    say: Callable[[str], None]


Runner = Callable[[Job, Library, Callbacks], "Record"]


def run(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Run a job here and now and return the version it made, or measured.

    Raises:
        InvalidSpec: nothing runs jobs of that kind.
        RefusedByGate: an adaptation was not good enough; the zoo is as it was.
        ManybeamError: what the kind's own runner raises.
    """
    if job.kind not in RUNNERS:
        raise InvalidSpec(
            f"kind: {job.kind!r} cannot be run here", f"one of {', '.join(RUNNERS)}", ""
        )
    # A typo here should be told before the work, not after it.
    library.matching(job.measure.conditions)
    return RUNNERS[job.kind](job, library, callbacks)


def train(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Train every member of a job, measure them, and register one version."""
    from manybeam.jobs.evaluate import evaluate as measured
    from manybeam.jobs.train import train as train_members
    from manybeam.settings import settings
    from manybeam.zoo.lifecycle.life import settle
    from manybeam.zoo.registry import Zoo

    outcome = train_members(
        job,
        library,
        settings().store_url,
        progress=lambda e: callbacks.progress(
            f"member {e.member:02d}", e.step, e.steps, f"loss {e.loss:.3f}"
        ),
    )
    for failure in outcome.failed:
        callbacks.say(f"failed: {failure}")
    scores = measured(
        outcome.members,
        job.measure,
        library,
        progress=lambda done, total: callbacks.progress("measure", done, total, ""),
    )
    zoo = Zoo()
    record = zoo.register(
        job.name,
        outcome.members,
        job=job.model_dump(mode="json"),
        scores=scores,
        failed=outcome.failed,
        inputs=outcome.inputs,
    )
    return settle(zoo, record, job.alias, said=callbacks.say)


def evaluate(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Measure a version on the job's conditions and frames and record the scores."""
    from manybeam.jobs.evaluate import evaluate as measured
    from manybeam.zoo.registry import Zoo

    if not job.measure.conditions and not job.measure.frames:
        raise InvalidInput(
            "measure: nothing to measure on",
            "measure.conditions or measure.frames must name something",
            "name conditions, such as 'graphene-*', or a labelled FrameSet",
        )
    zoo = Zoo()
    record = zoo.resolve(job.ensemble)
    scores = measured(
        zoo.members(record.ref),
        job.measure,
        library,
        seed=job.seed,
        progress=lambda done, total: callbacks.progress("measure", done, total, ""),
    )
    zoo.record_scores(record.ref, scores)
    return record


def rehearse(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Rehearse a version, so that selection learns what its members promise."""
    from manybeam.jobs.calibrate import calibrate_ensemble
    from manybeam.zoo.registry import Zoo

    return calibrate_ensemble(
        Zoo(),
        job.ensemble,
        library,
        policies=job.rehearsal.policies,
        frame_count=job.rehearsal.frame_count,
        seed=job.seed,
        progress=lambda done, total: callbacks.progress("rehearse", done, total, ""),
    )


def iterate(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Adapt members to the job's frames and register a candidate if the gate agrees."""
    done = iterate_outcome(job, library)
    for step in done.round.steps:
        callbacks.say(f"round {step.round}, member {step.member:02d}: {step.why}")
    if done.record is None:
        raise RefusedByGate(
            "no member passed the gate", done.round.why, "the parent stays as it is"
        )
    return done.record


def iterate_outcome(job: Job, library: Library) -> "IterateOutcome":
    """Return all that came of a job of kind iterate, whether or not the gate agreed."""
    from manybeam.jobs.adapt import iterate as run_rounds
    from manybeam.zoo.registry import Zoo

    asked = job.adapt
    return run_rounds(
        Zoo(),
        job.ensemble,
        job.frames[0],
        library.policy(asked.policy),
        library,
        members=asked.members,
        frames=asked.frames,
        teacher=asked.teacher,
        steps=asked.steps,
        rounds=asked.rounds,
        beside=asked.beside,
        max_regression=job.gates.max_regression,
        seed=job.seed,
    )


RUNNERS: Mapping[str, Runner] = {
    "train": train,
    "evaluate": evaluate,
    "rehearse": rehearse,
    "iterate": iterate,
}

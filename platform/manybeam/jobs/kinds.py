"""The function that runs a job of each kind, in one table for all that start jobs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from manybeam.errors import InvalidInput, InvalidSpec, RefusedByGate
from manybeam.spec import Job, Library
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import ENSEMBLE, SELECTED

if TYPE_CHECKING:
    from manybeam.jobs.adapt import AdaptOutcome
    from manybeam.learn.nets.member import Member
    from manybeam.predictor.performance import PerformancePredictor
    from manybeam.zoo.matrix import Score
    from manybeam.zoo.records import Record


@dataclass(frozen=True)
class Callbacks:
    """Functions that a running job calls to report its progress.

    Attributes:
        progress: called with the name of a task, the amount done, the total, and a note.
        say: called with a sentence for the person who started the job.
    """

    progress: Callable[[str, float, float, str], None]
    say: Callable[[str], None]


Runner = Callable[[Job, Library, Callbacks], "Record"]


def run(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Run a job in this process and return the version that it made or measured.

    Raises:
        InvalidSpec: no function runs jobs of that kind.
        RefusedByGate: the acceptance gate refused an adaptation; the zoo is unchanged.
        ManybeamError: see the function of the kind.
    """
    if job.kind not in RUNNERS:
        raise InvalidSpec(
            f"kind: jobs of kind {job.kind!r} cannot be run yet",
            f"kinds that can be run: {', '.join(RUNNERS)}",
            "change the field kind",
        )
    # A wrong name is reported before the work, not after it.
    library.matching(job.measure.conditions)
    return RUNNERS[job.kind](job, library, callbacks)


def train(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Train every member of a job, measure them, and register one version.

    A job that names nothing to measure on is complete too; its version is "not measured".
    """
    from manybeam.jobs.preflight import check_training, is_asked
    from manybeam.jobs.train import train as train_members
    from manybeam.settings import settings
    from manybeam.zoo.lifecycle.life import settle
    from manybeam.zoo.lifecycle.noted import note_registered
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    check_training(job, library, zoo)
    outcome = train_members(
        job,
        library,
        settings().store_url,
        progress=lambda e: callbacks.progress(
            f"member {e.member:02d}", e.step, e.steps, f"loss {e.loss:.3f}"
        ),
        simulated=lambda done, total: callbacks.progress("simulate", done, total, "policies"),
    )
    for failure in outcome.failed:
        callbacks.say(f"failed: {failure}")
    is_measured = is_asked(job.measure)
    # Their frames have the seed of `manybeam evaluate`, so that versions are compared on the same.
    scores = _measured(job.measure, library, outcome.members, callbacks) if is_measured else ()
    record = zoo.register(
        job.name,
        outcome.members,
        job=job.model_dump(mode="json"),
        scores=scores,
        failed=outcome.failed,
        inputs=outcome.inputs,
    )
    note_registered(record)
    if not scores:
        callbacks.say(
            f"{record.ref} is not measured, because the job names no conditions; to measure it: "
            f"manybeam evaluate {record.ref} --conditions ID"
        )
    return settle(zoo, record, job.alias, say=callbacks.say)


def evaluate(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Measure a version on the job's conditions and frames and record the scores."""
    from manybeam.jobs.preflight import is_asked

    if not is_asked(job.measure):
        raise InvalidInput(
            "measure: no conditions and no frames",
            "measure.conditions or measure.frames is needed",
            "give ids of conditions, such as 'graphene-*', or the URL of a labelled FrameSet",
        )
    return measure_version(job.ensemble, job.measure, library, callbacks, seed=job.seed)


def measure_version(
    ref: str, measure: Measure, library: Library, callbacks: Callbacks, *, seed: int = 0
) -> "Record":
    """Measure a version and record the scores; of a REF of one member, only those of the member.

    Args:
        ref: the version, or a member of it.
        measure: if it names nothing, the conditions of the version's first measurement are used.
        library: where conditions are looked up.
        callbacks: functions that report progress.
        seed: seed of the test frames.

    Raises:
        InvalidInput: nothing is named, and the version's job named nothing.
        ManybeamError: as `jobs.evaluate.evaluate`.
    """
    from manybeam.jobs.preflight import check_measure, is_asked
    from manybeam.predictor.learned import performance_predictor
    from manybeam.zoo.lifecycle.noted import note_measured
    from manybeam.zoo.registry import Zoo
    from manybeam.zoo.selected_scores import digest_of

    zoo = Zoo()
    # Measuring takes minutes, and an alias may move meanwhile; so the version is fixed here.
    record = zoo.resolve(ref)
    if not is_asked(measure):
        measure = _as_first_measured(record, measure)
    check_measure(measure, library, seed)
    zoo.check_writable(record.name)
    is_whole = record.selected is None
    calibration = digest_of(zoo.entry(record.ref)) if is_whole else ""
    whole = performance_predictor(zoo, record.ref, with_preferences=False) if is_whole else None
    members = zoo.members(record.ref)
    scores = _measured(measure, library, members, callbacks, seed=seed, performance=whole)
    if not is_whole:
        scores = [one for one in scores if one.member == record.selected]
    elif calibration and len(members) > 1:
        scores = [_calibrated(one, calibration) for one in scores]
        if why := not_selected(record.ref, scores, is_usable=whole is not None):
            callbacks.say(why)
    zoo.record_scores(record.ref, scores)
    note_measured(record, scores)
    return record


def _calibrated(score: "Score", calibration: str) -> "Score":
    """Return a score with the calibration set that its selection had, or would have had."""
    return (
        replace(score, calibration=calibration) if score.member in (ENSEMBLE, SELECTED) else score
    )


def not_selected(ref: str, scores: "Sequence[Score]", *, is_usable: bool) -> str:
    """Return on which conditions a calibrated version has no score of selected members, and why.

    Args:
        ref: the version.
        scores: its scores.
        is_usable: whether its calibration set is of its members.
    """
    chosen = {one.condition for one in scores if one.member == SELECTED}
    names = [one.condition for one in scores if one.member == ENSEMBLE]
    lacking = [name for name in names if name not in chosen]
    if not is_usable:
        return (
            f"the selected members are not measured: {ref} was calibrated with other members; "
            f"run: manybeam calibrate {ref}"
        )
    if not lacking:
        return ""
    return (
        f"the selected members are not measured on {', '.join(lacking)}: some frames are under "
        "48 px or without a pixel size, so members cannot be selected for them"
    )


def _as_first_measured(record: "Record", asked: Measure) -> Measure:
    """Return the conditions of the first measurement of a version, with the present settings."""
    first = record.job.get("measure") or {}
    if not first.get("conditions") and not first.get("frames"):
        raise InvalidInput(
            f"the job of {record.ref} has no conditions to measure on",
            "conditions or labelled frames are needed",
            f"manybeam evaluate {record.ref} --conditions 'graphene-*'",
        )
    kept = {"conditions": first["conditions"], "frames": first["frames"]}
    return Measure.model_validate({**asked.model_dump(), **kept})


def _measured(
    measure: Measure,
    library: Library,
    members: "Sequence[Member]",
    callbacks: Callbacks,
    *,
    seed: int = 0,
    performance: "PerformancePredictor | None" = None,
) -> "Sequence[Score]":
    """Return the scores of members, with progress; `performance` as `jobs.evaluate.evaluate`."""
    from manybeam.jobs.evaluate import evaluate as measured

    return measured(
        members,
        measure,
        library,
        performance=performance,
        seed=seed,
        progress=lambda done, total: callbacks.progress("measure", done, total, ""),
    )


def calibrate(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Measure the calibration set of a version, so that selection can predict F1."""
    from manybeam.jobs.calibrate import calibrate_ensemble
    from manybeam.zoo.registry import Zoo

    return calibrate_ensemble(
        Zoo(),
        job.ensemble,
        library,
        policies=job.calibrate.policies,
        frame_count=job.calibrate.frame_count,
        seed=job.seed,
        progress=lambda done, total: callbacks.progress("calibrate", done, total, ""),
    )


def adapt(job: Job, library: Library, callbacks: Callbacks) -> "Record":
    """Adapt members to the job's frames; register a candidate if the gate accepts them."""
    done = adapt_outcome(job, library, callbacks)
    for step in done.round.steps:
        callbacks.say(f"round {step.round}, member {step.member:02d}: {step.why}")
    if done.record is None:
        raise refused_by_gate(done.round.why)
    return done.record


def refused_by_gate(why: str) -> RefusedByGate:
    """Return the error of an adaptation that the acceptance gate refused."""
    return RefusedByGate(
        "the acceptance gate accepted no member", why, "nothing to do: the version is unchanged"
    )


def adapt_outcome(job: Job, library: Library, callbacks: Callbacks) -> "AdaptOutcome":
    """Return the result of a job of kind adapt, accepted or refused by the gate."""
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
        labels=asked.labels,
        steps=asked.steps,
        rounds=asked.rounds,
        beside=asked.beside,
        max_regression=job.gates.max_regression,
        seed=job.seed,
        progress=lambda what, done, total: callbacks.progress(what, done, total, ""),
    )


RUNNERS: Mapping[str, Runner] = {
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "adapt": adapt,
}

"""Rounds of iterative training on a FrameSet without labels, and registration of their result.

`learn.adaptation.rounds` holds the rounds themselves. This module gives them an ensemble of the
zoo, held-out truth for every condition the ensemble was measured on, and a folder for finished
steps. If the acceptance gate accepts adapted members, they are registered as a candidate.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from manybeam import __version__
from manybeam.data.frames import FrameSet
from manybeam.data.io.frame import Frame
from manybeam.data.simulation import SIMULATOR
from manybeam.data.simulation.simulate import Simulated, simulate
from manybeam.errors import InvalidInput
from manybeam.jobs.evaluate import evaluate
from manybeam.jobs.preflight import check_measure, is_asked
from manybeam.jobs.run import TRAINING, digest_of
from manybeam.jobs.scratch import Scratch
from manybeam.learn.adaptation.outcome import Adaptation
from manybeam.learn.adaptation.pseudo_labels import LabelSource, frames_digest
from manybeam.learn.adaptation.rounds import OnProgress, adapt
from manybeam.predictor.answer import Question
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.spec import Library, Policy
from manybeam.spec.job import Adapt, Measure
from manybeam.zoo.lifecycle.life import CANDIDATE, settle
from manybeam.zoo.lifecycle.noted import note_registered
from manybeam.zoo.matrix import FrameSetUse

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member
    from manybeam.zoo.matrix import Matrix
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

HELD_OUT_FRAMES = 3  # simulated for each condition the ensemble was measured on
HELD_OUT_SEED = 90_001  # far from the seeds of training frames
HELD_OUT_SHAPE = (128, 128)
FRAME_LIMIT = 16  # frames of the set that are used if none is named


@dataclass(frozen=True)
class AdaptOutcome:
    """The result of all rounds.

    Attributes:
        round: the decision of the gate, and the members as they are now.
        record: the registered version; None if the gate refused all members.
        parents: the members before adaptation.
        frames_nyx: the frames adapted to, (n, y, x).
        pixel_size_pm: edge of their pixels, in pm, or None.
    """

    round: Adaptation
    record: "Record | None"
    parents: "tuple[Member, ...]"
    frames_nyx: np.ndarray
    pixel_size_pm: float | None


def iterate(
    zoo: "Zoo",
    ref: str,
    frames_url: str,
    imaging: Policy,
    library: Library,
    *,
    members: Sequence[int] | None = None,
    frames: Sequence[int] = (),
    labels: LabelSource = "twin",
    steps: int = 100,
    rounds: int = 1,
    beside: bool = False,
    max_regression: float = 0.005,
    seed: int = 0,
    executor: Literal["ray", "local"] = "ray",
    progress: OnProgress | None = None,
) -> AdaptOutcome:
    """Adapt members of an ensemble to the frames of one set; register them if the gate agrees.

    The new version holds the adapted members and, unchanged, the others. It gets the alias
    `candidate`, never `serving`. Its parent is the version it came from. A call that was
    stopped leaves nothing in the zoo; the same call continues with its finished steps.

    Args:
        zoo: zoo of the ensemble and of the new version.
        ref: the ensemble to start from; `graphene@3/07` adapts member 07 only, and the other
            members go unchanged into the new version.
        frames_url: FrameSet of unlabelled frames of one condition; truth in it is not used.
        imaging: policy in which the condition is inferred.
        library: conditions that held-out truth is simulated for.
        members: indices of members to adapt; if left out, selection chooses them.
        frames: indices of the frames to adapt to; if left out, the first 16.
        labels: where labels come from; see `learn.adaptation.rounds.adapt`.
        steps: optimiser steps for each member and round.
        rounds: largest number of rounds.
        beside: add adapted members to the ensemble and keep their parents.
        max_regression: largest loss of F1 on held-out truth that the gate accepts.
        seed: seed of all random draws.
        executor: where a new version is measured, on the conditions its parent was measured on.
        progress: called from several threads with what is done, how much of it, and the whole.

    Raises:
        UnknownRef: there is no such ensemble, or it has no such member.
        UnknownFrameSet: there is no FrameSet at that URL.
        InvalidInput: the set is empty or has several conditions, a frame is not in it, there is
            no condition to simulate held-out truth for, or the policy is of a structure that no
            member was trained on.
    """
    record, members = _start(zoo, ref, members)
    _check_structure(record, imaging, library)
    # By its version, because an alias may move while frames are read.
    ensemble, matrix = zoo.ensemble(record.ref), zoo.matrix(record.ref)
    frames_nyx, pixel_size_pm = _unlabelled(frames_url, frames)
    measure = _measure_of(record, matrix, library)
    zoo.check_writable(record.name)
    if not members:
        members = _chosen(zoo, record, Frame(frames_nyx[0], pixel_size_pm), library)
    asked = Adapt(
        policy=imaging.id, labels=labels, steps=steps, rounds=rounds, beside=beside,
        members=tuple(members), frames=tuple(frames),
    )  # fmt: skip
    held_out = held_out_truth(matrix, library)
    job = _as_job(record, frames_url, imaging, asked, max_regression, seed)
    scratch = Scratch(_digest(job, record, frames_digest(frames_nyx, pixel_size_pm), library))
    found = adapt(
        ensemble,
        frames_nyx,
        pixel_size_pm,
        imaging=imaging,
        held_out=held_out,
        policies=library.policies,
        members=members,
        labels=labels,
        steps=steps,
        rounds=rounds,
        beside=beside,
        max_regression=max_regression,
        seed=seed,
        step_store=scratch,
        progress=progress,
    )
    logger.info("rounds done", extra={"ensemble": ref, "accepted": found.accepted})
    made = None
    if found.accepted:
        made = _register(zoo, record, found, job, measure, library, executor, progress)
    scratch.clear()
    parents = ensemble.subset(members).members
    return AdaptOutcome(found, made, parents, frames_nyx, pixel_size_pm)


def _chosen(zoo: "Zoo", record: "Record", frame: Frame, library: Library) -> tuple[int, ...]:
    """Return the members that selection chooses for a frame."""
    predictor = Predictor(ZooVersions(zoo), library)
    # Frames unlike those of the training are the reason to adapt, also in their pixel size.
    question = Question(record.ref, is_selecting=True, is_size_trusted=True)
    selection = predictor.rank(frame, question)[0].selection
    return selection.chosen if selection is not None else ()


def _start(zoo: "Zoo", ref: str, members: Sequence[int] | None) -> "tuple[Record, Sequence[int]]":
    """Return the version of a reference, and the members that are to be adapted."""
    record = zoo.resolve(ref)
    if record.selected is None:
        return record, [record.member(index).index for index in members or ()]
    if members and set(members) != {record.selected}:
        raise InvalidInput(
            f"members {', '.join(map(str, members))} cannot be adapted from {ref}",
            f"this reference means member {record.selected:02d} alone",
            f"to adapt other members, give {record.name}@{record.version}",
        )
    return zoo.resolve(f"{record.name}@{record.version}"), (record.selected,)


def _check_structure(record: "Record", imaging: Policy, library: Library) -> None:
    """Refuse a policy of a structure that no member was trained on."""
    trained = {one.policy for one in record.members} & set(library.policies)
    structures = {library.policies[name].sample.structure for name in trained}
    if structures and imaging.sample.structure not in structures:
        raise InvalidInput(
            f"policy {imaging.id} is of {imaging.sample.structure}",
            f"members of {record.ref} were trained on {', '.join(sorted(structures))}",
            "give a policy of the structure in the frames",
        )


def _register(
    zoo: "Zoo",
    record: "Record",
    found: Adaptation,
    job: dict[str, Any],
    measure: Measure,
    library: Library,
    executor: Literal["ray", "local"],
    progress: OnProgress | None,
) -> "Record":
    """Register the members as a candidate, measured on the conditions of their parent."""
    children = _with_parents(found, record)
    counted = partial(progress, "measure") if progress else None
    made = zoo.register(
        record.name,
        children,
        scores=evaluate(children, measure, library, executor=executor, progress=counted),
        job=job | _as_result(found) | {"measure": measure.model_dump(mode="json")},
        parent=record.version_ref,
        inputs=[_as_input(job["frames"][0])],
    )
    note_registered(made)
    return settle(zoo, made, CANDIDATE)


def _measure_of(record: "Record", matrix: "Matrix", library: Library) -> Measure:
    """Return where an adapted version is measured: as its parent's job says, or was measured."""
    asked = Measure.model_validate(record.job.get("measure") or {})
    if not is_asked(asked):
        known = [name for name in matrix.conditions if name in library.conditions]
        asked = Measure(conditions=tuple(known))
    check_measure(asked, library)
    return asked


def _as_input(frames_url: str) -> FrameSetUse:
    frameset = FrameSet.open(frames_url)
    return FrameSetUse(frameset.url, frameset.digest)


def held_out_truth(matrix: "Matrix", library: Library) -> dict[str, Simulated]:
    """Return a few labelled frames of every simulated condition in the matrix, by its id.

    Raises:
        InvalidInput: no condition of the matrix can be simulated.
    """
    conditions = [
        library.conditions[name] for name in matrix.conditions if name in library.conditions
    ]
    conditions = [one for one in conditions if one.origin == "simulated"]
    if not conditions:
        raise InvalidInput(
            "no simulated condition to test the adapted members on",
            "the gate needs simulated conditions on which the ensemble was measured",
            "run manybeam evaluate first, with MANYBEAM_ZOO set to the library of the ensemble",
        )
    return {
        one.id: simulate(one, HELD_OUT_FRAMES, seed=HELD_OUT_SEED + rank, shape=HELD_OUT_SHAPE)
        for rank, one in enumerate(conditions)
    }


def _unlabelled(frames_url: str, asked: Sequence[int]) -> tuple[np.ndarray, float | None]:
    """Return the named frames of a set, or its first frames, and their pixel size."""
    frameset = FrameSet.open(frames_url)
    indices = list(dict.fromkeys(asked)) or list(range(min(len(frameset), FRAME_LIMIT)))
    if not indices:
        raise InvalidInput(
            f"{frames_url} holds no frames",
            "a round needs at least one frame",
            "add frames with manybeam data import",
        )
    absent = [index for index in indices if not 0 <= index < len(frameset)]
    if absent:
        raise InvalidInput(
            f"no frame {', '.join(map(str, absent))} in {frames_url}",
            f"it holds frames 0 to {len(frameset) - 1}",
            "give indices of frames in the set",
        )
    sizes = {frameset.pixel_size_pm(index) for index in indices}
    if len(sizes) > 1:
        raise InvalidInput(
            f"{frames_url} holds frames of {len(sizes)} pixel sizes",
            "a round adapts to one condition",
            "make one set for each pixel size",
        )
    return np.stack([frameset.frame(index) for index in indices]), sizes.pop()


def _digest(job: dict[str, Any], record: "Record", frames: str, library: Library) -> str:
    """Return the digest of all inputs that decide the result of the rounds."""
    imaging = (*library.policies.values(), *library.conditions.values())
    return digest_of(
        {
            "versions": [__version__, SIMULATOR, TRAINING],
            "job": job,
            "parent": record.sha256,
            "frames": frames,
            "library": {one.id: one.digest for one in imaging},
        }
    )


def _with_parents(found: Adaptation, record: "Record") -> "list[Member]":
    """Return the members; each adapted member names its parent."""
    return [
        dataclasses.replace(one, parent=f"{record.version_ref}/{found.parents[one.index]:02d}")
        if one.index in found.parents
        else one
        for one in found.members
    ]


def _as_job(
    record: "Record",
    frames_url: str,
    imaging: Policy,
    asked: Adapt,
    max_regression: float,
    seed: int,
) -> dict[str, Any]:
    """Return the job as plain data, for the record of the new version."""
    return {
        "kind": "adapt",
        "name": record.name,
        "ensemble": record.version_ref,
        "frames": [frames_url],
        "imaging": imaging.model_dump(mode="json", exclude_none=True),
        "adapt": asked.model_dump(mode="json"),
        "gates": {"max_regression": max_regression},
        "seed": seed,
    }


def _as_result(found: Adaptation) -> dict[str, Any]:
    """Return the result as plain data: the inferred condition, and each step of each round."""
    inferred = found.inferred
    return {
        "frames_digest": found.frames_digest,
        "inferred": inferred and inferred.policy.model_dump(mode="json", exclude_none=True),
        "rounds": [
            [dataclasses.asdict(step) for step in found.steps if step.round == number]
            for number in range(1, found.round_count + 1)
        ],
    }

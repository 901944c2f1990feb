"""Gated rounds of iterative training on a FrameSet that nobody labelled, and their registration.

The rounds themselves are `learn.adaptation.rounds`; here they are given an ensemble of the zoo,
held-out truth for every condition the ensemble was measured on, and a folder that finished steps
are kept in until all is done; what passed the gate becomes a candidate.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from manybeam import __version__
from manybeam.data.frames import FrameSet
from manybeam.data.io.frame import Frame
from manybeam.data.simulation.simulate import SIMULATOR, Simulated, simulate
from manybeam.errors import InvalidInput
from manybeam.jobs.evaluate import evaluate
from manybeam.jobs.run import TRAINING, digest_of
from manybeam.jobs.scratch import Scratch
from manybeam.learn.adaptation.outcome import Adaptation
from manybeam.learn.adaptation.pseudo_labels import LabelSource, frames_digest
from manybeam.learn.adaptation.rounds import adapt
from manybeam.learn.analysis.frame_analysis import check_size
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.question import Question
from manybeam.predictor.versions import ZooVersions
from manybeam.spec import Library, Policy
from manybeam.spec.job import Adapt, Measure
from manybeam.zoo.lifecycle.life import CANDIDATE, settle
from manybeam.zoo.matrix import FrameSetUse

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member
    from manybeam.zoo.matrix import Matrix
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

HELD_OUT_FRAMES = 3  # simulated for each condition the ensemble was measured on
HELD_OUT_SEED = 90_001  # far from the seeds that training frames are drawn with
HELD_OUT_SHAPE = (128, 128)
FRAME_LIMIT = 16  # frames of the set that are looked at, where none are named


@dataclass(frozen=True)
class IterateOutcome:
    """What the rounds came to.

    Attributes:
        round: what was decided, and the members as they are now.
        record: the version registered; None if the gate refused all.
        parents: the members tried, as they were before.
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
    teacher: LabelSource = "twin",
    steps: int = 100,
    rounds: int = 1,
    beside: bool = False,
    max_regression: float = 0.005,
    seed: int = 0,
    executor: Literal["ray", "local"] = "ray",
) -> IterateOutcome:
    """Adapt members of an ensemble to the frames of one set; register them if the gate agrees.

    The new version holds the adapted members and, unchanged, the others; it gets the alias
    `candidate`, never `serving`, and its parent is the version it came from. A call that was
    stopped leaves nothing in the zoo; the same call goes on with its finished steps.

    Args:
        zoo: where the ensemble is and the new version goes.
        ref: the ensemble to start from; of `graphene@3/07` member 07 is adapted, and the others
            go unchanged into the new version as they always do.
        frames_url: FrameSet of unlabelled frames of one condition; truth in it is not looked at.
        imaging: policy in which the condition is inferred.
        library: conditions to hold truth out for.
        members: indices of members to adapt; those that selection chooses if left out.
        frames: indices of the frames to adapt to; the first 16 if none is named.
        teacher: see `learn.adaptation.rounds.adapt`, as for the next three.
        steps: optimiser steps for each member and round.
        rounds: most rounds.
        beside: add adapted members to the ensemble and keep their parents.
        max_regression: largest loss of F1 on held-out truth that passes the gate.
        seed: of everything drawn.
        executor: where a new version is measured, on the conditions its parent was measured on.

    Raises:
        UnknownRef: no such ensemble, or no such member of it.
        UnknownFrameSet: no FrameSet at that URL.
        InvalidInput: the set is empty or of several conditions, a frame is not in it, no condition
            is known to hold truth out for, or the policy is of a structure no member was taught.
    """
    record, members = _start(zoo, ref, members)
    _check_structure(record, imaging, library)
    # By its version: an alias may move while frames are read.
    ensemble, matrix = zoo.ensemble(record.ref), zoo.matrix(record.ref)
    frames_nyx, pixel_size_pm = _unlabelled(frames_url, frames)
    if not members:
        members = _chosen(zoo, record, Frame(frames_nyx[0], pixel_size_pm), library)
    asked = Adapt(
        policy=imaging.id, teacher=teacher, steps=steps, rounds=rounds, beside=beside,
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
        teacher=teacher,
        steps=steps,
        rounds=rounds,
        beside=beside,
        max_regression=max_regression,
        seed=seed,
        step_store=scratch,
    )
    logger.info("rounds done", extra={"ensemble": ref, "accepted": found.accepted})
    made = _register(zoo, record, found, job, library, executor) if found.accepted else None
    scratch.clear()
    parents = ensemble.subset(members).members
    return IterateOutcome(found, made, parents, frames_nyx, pixel_size_pm)


def _chosen(zoo: "Zoo", record: "Record", frame: Frame, library: Library) -> tuple[int, ...]:
    """Return the members that selection chooses for a frame."""
    check_size(frame.pixels_yx)
    predictor = Predictor(ZooVersions(zoo), library)
    selection = predictor.rank(frame, Question(record.ref))[0].selection
    return selection.chosen if selection is not None else ()


def _start(zoo: "Zoo", ref: str, members: Sequence[int] | None) -> "tuple[Record, Sequence[int]]":
    """Return the whole version that a reference means, and the members it asks for."""
    record = zoo.resolve(ref)
    if record.selected is None:
        return record, [record.member(index).index for index in members or ()]
    if members and set(members) != {record.selected}:
        raise InvalidInput(
            f"members {', '.join(map(str, members))} of {ref}",
            f"that is member {record.selected:02d} alone",
            f"name {record.name}@{record.version} to adapt others",
        )
    return zoo.resolve(f"{record.name}@{record.version}"), (record.selected,)


def _check_structure(record: "Record", imaging: Policy, library: Library) -> None:
    """Refuse a policy that draws another structure than those the members were taught."""
    taught = {one.policy for one in record.members} & set(library.policies)
    structures = {library.policies[name].sample.structure for name in taught}
    if structures and imaging.sample.structure not in structures:
        raise InvalidInput(
            f"policy {imaging.id} is of {imaging.sample.structure}",
            f"members of {record.ref} were taught {', '.join(sorted(structures))}",
            "give a policy of the structure that the frames show",
        )


def _register(
    zoo: "Zoo",
    record: "Record",
    found: Adaptation,
    job: dict[str, Any],
    library: Library,
    executor: Literal["ray", "local"],
) -> "Record":
    """Register the members as a candidate, measured as their parent was."""
    children, measure = _with_parents(found, record), record.job.get("measure")
    asked = Measure.model_validate(measure) if measure else None
    made = zoo.register(
        record.name,
        children,
        scores=evaluate(children, asked, library, executor=executor) if asked else None,
        job=job | _told(found) | {"measure": measure},
        parent=record.version_ref,
        inputs=[_as_input(job["frames"][0])],
    )
    return settle(zoo, made, CANDIDATE)


def _as_input(frames_url: str) -> FrameSetUse:
    frameset = FrameSet.open(frames_url)
    return FrameSetUse(frameset.url, frameset.digest)


def held_out_truth(matrix: "Matrix", library: Library) -> dict[str, Simulated]:
    """Return a few labelled frames of every simulated condition in the matrix, by its id.

    Raises:
        InvalidInput: the matrix names no condition that can be simulated.
    """
    conditions = [
        library.conditions[name] for name in matrix.conditions if name in library.conditions
    ]
    conditions = [one for one in conditions if one.origin == "simulated"]
    if not conditions:
        raise InvalidInput(
            "no condition to hold truth out for",
            "the gate judges a round on simulated conditions the ensemble was measured on",
            "manybeam evaluate the ensemble first, with MANYBEAM_ZOO set to its library",
        )
    return {
        one.id: simulate(one, HELD_OUT_FRAMES, seed=HELD_OUT_SEED + rank, shape=HELD_OUT_SHAPE)
        for rank, one in enumerate(conditions)
    }


def _unlabelled(frames_url: str, wanted: Sequence[int]) -> tuple[np.ndarray, float | None]:
    """Return the named frames of a set, or its first, and the pixel size they share."""
    frameset = FrameSet.open(frames_url)
    indices = list(dict.fromkeys(wanted)) or list(range(min(len(frameset), FRAME_LIMIT)))
    if not indices:
        raise InvalidInput(
            f"{frames_url} holds no frames", "a round needs at least one", "append some first"
        )
    absent = [index for index in indices if not 0 <= index < len(frameset)]
    if absent:
        raise InvalidInput(
            f"no frame {', '.join(map(str, absent))} in {frames_url}",
            f"it holds frames 0 to {len(frameset) - 1}",
        )
    sizes = {frameset.pixel_size_pm(index) for index in indices}
    if len(sizes) > 1:
        raise InvalidInput(
            f"{frames_url} holds frames of {len(sizes)} pixel sizes",
            "a round adapts to one condition",
            "put frames of each pixel size in a set of their own",
        )
    return np.stack([frameset.frame(index) for index in indices]), sizes.pop()


def _digest(job: dict[str, Any], record: "Record", frames: str, library: Library) -> str:
    """Return the name of all that decides the rounds' outcome."""
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
    """Return the members, each adapted one naming the member it came from."""
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
    """Return what was asked for as plain data, for the record of the version it makes."""
    return {
        "kind": "iterate",
        "name": record.name,
        "ensemble": record.version_ref,
        "frames": [frames_url],
        "imaging": imaging.model_dump(mode="json", exclude_none=True),
        "adapt": asked.model_dump(mode="json"),
        "gates": {"max_regression": max_regression},
        "seed": seed,
    }


def _told(found: Adaptation) -> dict[str, Any]:
    """Return what came of it as plain data: the condition, and each step of each round."""
    inferred = found.inferred
    return {
        "frames_digest": found.frames_digest,
        "inferred": inferred and inferred.policy.model_dump(mode="json", exclude_none=True),
        "rounds": [
            [dataclasses.asdict(step) for step in found.steps if step.round == number]
            for number in range(1, found.round_count + 1)
        ],
    }

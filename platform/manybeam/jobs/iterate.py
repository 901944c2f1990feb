"""One gated round of iterative training on a FrameSet that nobody labelled, and its registration.

The round itself is `learn.iterate`; here it is given an ensemble of the zoo, held-out truth for
every condition the ensemble was measured on, and what passed the gate becomes a candidate.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from manybeam.data.frames import FrameSet
from manybeam.data.simulate import Simulated, simulate
from manybeam.errors import InvalidInput
from manybeam.jobs.evaluate import evaluate
from manybeam.learn.iterate import Round, Teacher, adapt
from manybeam.spec import Library, Policy
from manybeam.spec.job import Measure
from manybeam.zoo.select import select

if TYPE_CHECKING:
    from manybeam.learn.member import Member
    from manybeam.zoo.matrix import Matrix
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

HELD_OUT_FRAMES = 3  # simulated for each condition the ensemble was measured on
HELD_OUT_SEED = 90_001  # far from the seeds that training frames are drawn with
HELD_OUT_SHAPE = (128, 128)
FRAME_LIMIT = 16  # frames of the set that a round looks at


@dataclass(frozen=True)
class IterateOutcome:
    """What a round came to: the round, and the version registered (None if the gate refused)."""

    round: Round
    record: "Record | None"


def iterate(
    zoo: "Zoo",
    ref: str,
    frames_url: str,
    imaging: Policy,
    library: Library,
    *,
    members: Sequence[int] | None = None,
    teacher: Teacher = "twin",
    steps: int = 100,
    max_regression: float = 0.005,
    seed: int = 0,
    executor: Literal["ray", "local"] = "ray",
) -> IterateOutcome:
    """Adapt members of an ensemble to the frames of one set; register them if the gate agrees.

    The new version holds the adapted members and, unchanged, the others; it gets the alias
    `candidate`, never `serving`, and its parent is the version it came from.

    Args:
        zoo: where the ensemble is and the new version goes.
        ref: the ensemble to start from.
        frames_url: FrameSet of unlabelled frames of one condition; truth in it is not looked at.
        imaging: policy in which the condition is inferred.
        library: conditions to hold truth out for.
        members: indices of members to adapt; those that selection chooses if left out.
        teacher: see `learn.iterate.adapt`.
        steps: optimiser steps for each member.
        max_regression: largest loss of F1 on held-out truth that passes the gate.
        seed: of everything drawn in the round.
        executor: where a new version is measured, on the conditions its parent was measured on.

    Raises:
        UnknownRef: no such ensemble.
        UnknownFrameSet: no FrameSet at that URL.
        InvalidInput: the set is empty, or no condition is known to hold truth out for.
    """
    record, ensemble, matrix = zoo.resolve(ref), zoo.ensemble(ref), zoo.matrix(ref)
    frames_nyx, pixel_size_pm = _unlabelled(frames_url)
    if members is None:
        members = select(
            record, matrix, ensemble, frames_nyx[0], pixel_size_pm, library=library
        ).chosen
    found = adapt(
        ensemble,
        frames_nyx,
        pixel_size_pm,
        imaging=imaging,
        held_out=held_out_truth(matrix, library),
        policies=library.policies,
        members=members,
        teacher=teacher,
        steps=steps,
        max_regression=max_regression,
        seed=seed,
    )
    logger.info("round done", extra={"ensemble": ref, "accepted": found.accepted})
    if not found.accepted:
        return IterateOutcome(found, None)
    children, measure = _with_parents(found, record), record.job.get("measure")
    asked = Measure.model_validate(measure) if measure else None
    made = zoo.register(
        record.name,
        children,
        scores=evaluate(children, asked, library, executor=executor) if asked else None,
        job=_as_job(found, frames_url, imaging, teacher, steps, seed) | {"measure": measure},
        alias="candidate",
        parent=f"{record.name}@{record.version}",
    )
    return IterateOutcome(found, made)


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


def _unlabelled(frames_url: str) -> tuple[np.ndarray, float | None]:
    """Return the first frames of a set and the pixel size they share."""
    frameset = FrameSet.open(frames_url)
    count = min(len(frameset), FRAME_LIMIT)
    if not count:
        raise InvalidInput(
            f"{frames_url} holds no frames", "a round needs at least one", "append some first"
        )
    sizes = {frameset.pixel_size_pm(index) for index in range(count)}
    if len(sizes) > 1:
        raise InvalidInput(
            f"{frames_url} holds frames of {len(sizes)} pixel sizes",
            "a round adapts to one condition",
            "put frames of each pixel size in a set of their own",
        )
    return frameset.frames(slice(0, count)), sizes.pop()


def _with_parents(found: Round, record: "Record") -> "list[Member]":
    """Return the members, each adapted one naming the member it came from."""
    adapted = {step.member for step in found.steps if step.accepted}
    return [
        dataclasses.replace(one, parent=f"{record.name}@{record.version}/{one.index:02d}")
        if one.index in adapted
        else one
        for one in found.members
    ]


def _as_job(
    found: Round, frames_url: str, imaging: Policy, teacher: Teacher, steps: int, seed: int
) -> dict[str, Any]:
    """Return the round as plain data, for the record of the version it made."""
    inferred = found.inferred
    return {
        "kind": "iterate",
        "frames": [frames_url],
        "frames_digest": found.frames_digest,
        "imaging": imaging.model_dump(mode="json", exclude_none=True),
        "inferred": inferred and inferred.policy.model_dump(mode="json", exclude_none=True),
        "teacher": teacher,
        "steps": steps,
        "seed": seed,
        "decisions": [dataclasses.asdict(step) for step in found.steps],
    }

"""The result of rounds of adaptation: the new ensemble, and the reason for each decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from manybeam.learn.adaptation.acceptance import AcceptanceGate, Assessment, loss_refusal
from manybeam.learn.adaptation.step_checkpoint import Attempt, Step
from manybeam.learn.analysis.condition_inference import Inferred
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member


@dataclass(frozen=True)
class Adaptation:
    """The result of one or more rounds of adaptation.

    Attributes:
        accepted: whether any member was adapted.
        before: mean scores of the adapted members, before the first round.
        after: their mean scores after the last step, accepted or not.
        members: the whole ensemble, in order of index. Adapted members take their parents' places;
            with `beside` they follow at the end.
        parents: for each adapted member its parent's index.
        steps: what happened to each member, round by round.
        tuned: the fine-tuned members of the first round, also those that the gate refused.
        frames_digest: digest of the unlabelled frames; those of adapted members depend on it.
        inferred: the condition inferred, for labels `twin` and `both`.
        wall_s: time it took, in seconds.
        why: the reasons of all decisions, as text.
    """

    accepted: bool
    before: Assessment
    after: Assessment
    members: tuple[Member, ...]
    parents: Mapping[int, int]
    steps: tuple[Step, ...]
    tuned: tuple[Member, ...]
    frames_digest: str
    inferred: Inferred | None
    wall_s: float
    why: str

    @property
    def round_count(self) -> int:
        """Number of rounds that began."""
        return max(step.round for step in self.steps)


def outcome(
    ensemble: Ensemble,
    acceptance: AcceptanceGate,
    history: Sequence[Sequence[Attempt]],
    max_regression: float,
) -> Adaptation:
    """Return the new ensemble and all decisions; the caller fills in digest and time.

    Args:
        ensemble: the parents.
        acceptance: the gate that scored the members.
        history: for each round the attempt of each member.
        max_regression: largest loss of F1 on held-out truth that passes.
    """
    adapted = {one.step.member: one.child for attempt in history for one in attempt if one.child}
    steps = [one.step for attempt in history for one in attempt]
    if acceptance.among is not None and len(adapted) > 1:
        adapted, steps = _passing_together(adapted, steps, acceptance, max_regression)
    parents: dict[int, int] = {}
    members = list(ensemble.members)
    for place, (index, child) in enumerate(sorted(adapted.items())):
        if acceptance.among is None:
            members[ensemble.indices.index(index)] = child
            parents[index] = index
        else:
            free = max(ensemble.indices) + 1 + place
            members.append(replace(child, index=free))
            parents[free] = index
    last = {step.member: step for step in steps}
    return Adaptation(
        accepted=bool(parents),
        before=_mean([one.step.before for one in history[0]]),
        after=_mean([step.after or step.before for step in last.values()]),
        members=tuple(members),
        parents=parents,
        steps=tuple(steps),
        tuned=tuple(one.tuned for one in history[0] if one.tuned),
        frames_digest="",
        inferred=acceptance.inferred,
        wall_s=0.0,
        why="; ".join(f"member {step.member:02d}: {step.why}" for step in steps),
    )


def _passing_together(
    adapted: Mapping[int, Member],
    steps: Sequence[Step],
    acceptance: AcceptanceGate,
    max_regression: float,
) -> tuple[dict[int, Member], list[Step]]:
    """Return all adapted members if they pass together, else only the best of them.

    Each was scored as the only new member, and small losses add up.
    """
    first = next(step.before for step in steps)
    together = acceptance.with_held(first, *adapted.values())
    refusal = loss_refusal(first, together, max_regression)
    if not refusal:
        return dict(adapted), list(steps)
    gain = {
        step.member: step.after.fitness - step.before.fitness
        for step in steps
        if step.accepted and step.after
    }
    best = max(gain, key=lambda index: gain[index])
    decided = [
        step
        if step.member == best or not step.accepted
        else replace(step, accepted=False, why=f"left out beside member {best:02d}: {refusal}")
        for step in steps
    ]
    return {best: adapted[best]}, decided


def _mean(assessments: Sequence[Assessment]) -> Assessment:
    twins = [one.twin_f1 for one in assessments if one.twin_f1 is not None]
    return Assessment(
        fitness=float(np.mean([one.fitness for one in assessments])),
        f1=float(np.mean([one.f1 for one in assessments])),
        twin_f1=float(np.mean(twins)) if twins else None,
        on_noise=float(np.mean([one.on_noise for one in assessments])),
    )

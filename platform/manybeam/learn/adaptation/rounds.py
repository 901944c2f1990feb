"""Gated rounds of iterative training: members adapted to frames that nobody labelled.

Unlabelled frames -> batch norms re-estimated on them, the cheap first step -> a lesson made by a
teacher -> a short fine-tuning from the members' own weights -> its threshold moved to 0.5 again.
After each of the two stands the gate of `learn.adaptation.acceptance`: what does not pass is thrown
away. Tuning measures its own batch norms anew, so the cheap step counts where tuning is refused.
Axis letters: n frame, y row, x column.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from manybeam.data.simulation.simulate import Simulated, simulate
from manybeam.errors import InvalidInput, MemberDiverged
from manybeam.learn.adaptation.acceptance import (
    SHAPE,
    AcceptanceGate,
    Assessment,
    gain_refusal,
    gate,
    held_means,
    loss_refusal,
)
from manybeam.learn.adaptation.batch_norm import re_estimated
from manybeam.learn.adaptation.outcome import Adaptation, outcome
from manybeam.learn.adaptation.pseudo_labels import (
    TEACHERS,
    LabelledTiles,
    LabelSource,
    ask,
    frames_digest,
    mixed_tiles,
    pseudo_labelled_tiles,
    twin_tiles,
)
from manybeam.learn.adaptation.step_checkpoint import Attempt, Step, StepStore, pack, unpack
from manybeam.learn.analysis.condition_inference import DRAWS, infer
from manybeam.learn.analysis.one_condition import check_one_condition
from manybeam.learn.nets.ensemble import Ensemble, Prediction
from manybeam.learn.nets.member import Member
from manybeam.learn.training.member import train_member
from manybeam.learn.training.side_by_side import each_abreast, stop_if_nobody_waits
from manybeam.learn.training.threshold import Labelled, centred
from manybeam.spec import MemberPlan, Policy
from manybeam.spec.recipe import TileSpec

TUNING_RATE = 0.4  # peak learning rate, as a share of the recipe's
NEW_TILES = 48  # new tiles a member is tuned on, beside as many general ones
CENTRING_FRAMES = 16  # simulated anew, to find a tuned member's threshold on

Seen = list[tuple[np.ndarray, Prediction]]


def adapt(
    ensemble: Ensemble,
    frames_nyx: np.ndarray,
    pixel_size_pm: float | None,
    *,
    imaging: Policy,
    held_out: Mapping[str, Simulated],
    policies: Mapping[str, Policy] | None = None,
    members: Sequence[int] | None = None,
    teacher: LabelSource = "twin",
    steps: int = 100,
    rounds: int = 1,
    beside: bool = False,
    max_regression: float = 0.005,
    seed: int = 0,
    draws: int = DRAWS,
    step_store: StepStore | None = None,
) -> Adaptation:
    """Return what gated rounds on unlabelled frames of one condition came to.

    The members of a round are worked on side by side, one on each core.

    Args:
        ensemble: the members to start from.
        frames_nyx: the new frames, (n, y, x).
        pixel_size_pm: edge of their pixels, in pm, or None.
        imaging: the policy a condition is inferred in.
        held_out: simulated frames with truth that no member was trained on, by condition.
        policies: by id, what members were trained on: half of each lesson is drawn from a
            member's own, so that it does not forget; from `imaging` where it is not given.
        members: indices of the members to adapt; all if left out.
        teacher: `twin` simulates labelled frames under the inferred condition, `pseudo` believes
            what the members agree on, `both` takes half of each.
        steps: optimiser steps for each member and round.
        rounds: most rounds; a later one goes on with the members that the one before accepted.
        beside: add an adapted member to the ensemble and keep its parent. Held-out truth is then
            judged for the whole ensemble, with and without it.
        max_regression: largest loss of F1 on `held_out` that the gate lets pass, of all rounds
            together.
        seed: of everything drawn.
        draws: frames simulated to infer the condition.
        step_store: keeps each finished step, so that a call that was stopped goes on where it was.

    Raises:
        InvalidInput: no frames or frames of several conditions, no held-out truth, an unknown
            teacher, or with `pseudo` members that agree on nothing.
        InvalidFrame: constant frames.
    """
    start = time.perf_counter()
    _check(frames_nyx, held_out, teacher, rounds)
    check_one_condition(frames_nyx, pixel_size_pm, imaging)
    inferred = None
    if teacher != "pseudo":
        inferred = infer(frames_nyx, pixel_size_pm, imaging, seed=seed, draws=draws)
    among = ensemble if beside else None
    acceptance = AcceptanceGate(frames_nyx, pixel_size_pm, held_out, imaging, inferred, seed, among)
    school = _Rounds(
        ensemble, acceptance, policies or {}, teacher, steps, max_regression, step_store
    )
    chosen = ensemble.subset(members) if members is not None else ensemble
    history = [school.round(1, chosen.members, {})]
    while history[-1] and len(history) < rounds and any(one.child for one in history[-1]):
        history.append(school.round(len(history) + 1, *_going_on(history)))
    made = outcome(ensemble, acceptance, history, max_regression)
    return replace(made, frames_digest=school.digest, wall_s=time.perf_counter() - start)


def _going_on(history: Sequence[Sequence[Attempt]]) -> tuple[list[Member], dict[int, Assessment]]:
    """Return the members the last round accepted, and where each stands.

    On held-out truth they answer for all rounds together: there they are compared with the parent
    that the first round began with.
    """
    first = {one.step.member: one.step.before for one in history[0]}
    members, assessments = [], {}
    for one in history[-1]:
        if one.child and one.step.after:
            was = first[one.step.member]
            members.append(one.child)
            assessments[one.step.member] = replace(one.step.after, f1=was.f1, held=was.held)
    return members, assessments


class _Rounds:
    """What every member of a round goes through: batch norms, lesson, fine-tuning and gate."""

    def __init__(
        self,
        ensemble: Ensemble,
        acceptance: AcceptanceGate,
        policies: Mapping[str, Policy],
        teacher: LabelSource,
        steps: int,
        max_regression: float,
        step_store: StepStore | None,
    ) -> None:
        self.ensemble, self.acceptance, self.policies = ensemble, acceptance, policies
        self.teacher, self.steps, self.max_regression = teacher, steps, max_regression
        self.step_store = step_store
        self.digest = frames_digest(acceptance.frames_nyx, acceptance.pixel_size_pm)
        self.seen: dict[TileSpec, Seen] = {}

    def round(
        self, number: int, starts: Sequence[Member], assessments: Mapping[int, Assessment]
    ) -> list[Attempt]:
        """Return what became of each member in one round."""
        if self.teacher != "twin":
            now = {one.index: one for one in starts}
            asked = Ensemble([now.get(one.index, one) for one in self.ensemble.members])
            for spec in {one.recipe.tiles for one in starts}:
                self.seen[spec] = ask(
                    asked, self.acceptance.frames_nyx, self.acceptance.pixel_size_pm, spec
                )
        return each_abreast(lambda one: self._kept(number, one, assessments.get(one.index)), starts)

    def _kept(self, number: int, start: Member, before: Assessment | None) -> Attempt:
        """Return what became of a member, from what an earlier call kept if it got so far."""
        key = f"round-{number:02d}-member-{start.index:02d}"
        if self.step_store is not None and (data := self.step_store.get(key)) is not None:
            return unpack(data, start)
        attempt = self._try(number, start, before or self.acceptance.before(start))
        if self.step_store is not None:
            self.step_store.put(key, pack(attempt))
        return attempt

    def _try(self, number: int, parent: Member, before: Assessment) -> Attempt:
        """Return what became of one member: tuned, with new batch norms only, or as it was."""
        start, assessment = (parent, before) if number > 1 else self._renormed(parent, before)
        # On held-out truth both stages together answer to the parent.
        bar = replace(assessment, f1=before.f1, held=before.held)
        child, after, refusal = self._tuned(number, start, bar)
        passed, tuned, why = None, child, f"parent kept: {refusal}"
        if child is not None and not refusal:
            passed, why = child, f"adapted: {_gain(before, after)}"
        elif start is not parent:
            passed, after = start, assessment
            why = f"batch norms re-estimated: {_gain(before, after)}; not tuned: {refusal}"
        step = Step(parent.index, passed is not None, before, after, why, number)
        return Attempt(step, passed, tuned)

    def _renormed(self, parent: Member, before: Assessment) -> tuple[Member, Assessment]:
        """Return the member with batch norms re-estimated on the frames, if that passes."""
        acceptance = self.acceptance
        child = re_estimated(parent, acceptance.frames_nyx, acceptance.pixel_size_pm)
        if child is parent:
            return parent, before
        after = acceptance.on_new_frames(child)
        if gain_refusal(before, after):  # the cheaper half of the gate is asked first
            return parent, before
        after = acceptance.with_held(after, child)
        if loss_refusal(before, after, self.max_regression):
            return parent, before
        name = f"batch norms {self.digest} {parent.data_digest}".encode()
        return replace(child, data_digest=hashlib.sha256(name).hexdigest()[:32]), after

    def _tuned(
        self, number: int, start: Member, before: Assessment
    ) -> tuple[Member | None, Assessment | None, str]:
        """Return the tuned member, where it stands, and why the gate refuses it."""
        known = self.policies.get(start.policy, self.acceptance.imaging)
        seed = self.acceptance.seed + 1000 * (number - 1)
        labelled = self._labelled_tiles(known, start.recipe.tiles, seed)
        try:
            child = tune(start, labelled, steps=self.steps, seed=seed)
        except MemberDiverged as error:
            return None, None, error.what
        child = centred(child, _rehearsal(known, self.acceptance))
        after = self.acceptance.with_held(self.acceptance.on_new_frames(child), child)
        return child, after, gate(before, after, self.max_regression)

    def _labelled_tiles(self, known: Policy, spec: TileSpec, seed: int) -> LabelledTiles:
        inferred = self.acceptance.inferred
        if inferred is None:
            return pseudo_labelled_tiles(self.digest, self.seen[spec], known, spec, seed=seed)
        if self.teacher == "twin":
            return twin_tiles(self.digest, inferred.policy, known, spec, count=NEW_TILES, seed=seed)
        return mixed_tiles(
            self.digest, inferred.policy, self.seen[spec], known, spec, count=NEW_TILES, seed=seed
        )


def _gain(before: Assessment, after: Assessment | None) -> str:
    now = after or before
    was, held = held_means(before, now)
    return (
        f"label-free score {before.fitness:.3f} to {now.fitness:.3f}, "
        f"held-out F1 {was:.3f} to {held:.3f}"
    )


def _check(
    frames_nyx: np.ndarray, held_out: Mapping[str, Simulated], teacher: str, rounds: int
) -> None:
    if frames_nyx.ndim != 3 or not len(frames_nyx):
        raise InvalidInput(
            f"frames of shape {frames_nyx.shape} to adapt to",
            "at least one frame, as (frames, rows, columns)",
            "give the FrameSet of the new frames",
        )
    if not held_out or not all(len(made.frames_nyx) for made in held_out.values()):
        raise InvalidInput(
            "no held-out truth to judge the round by",
            "the gate needs simulated frames that no member was trained on",
            "simulate a few for each condition the ensemble is measured on",
        )
    if teacher not in TEACHERS:
        raise InvalidInput(f"teacher {teacher!r} is not known", f"one of {', '.join(TEACHERS)}", "")
    if rounds < 1:
        raise InvalidInput(f"{rounds} rounds", "at least one", "")


def _rehearsal(known: Policy, acceptance: AcceptanceGate) -> list[Labelled]:
    """Return frames like those of the lesson, none of them in it or in court.

    Tuning drives the last bias back to where the loss wants it, so the threshold that centring
    found for the parent does not hold for the child.
    """
    imaging = [acceptance.inferred.policy, known] if acceptance.inferred else [known]
    labelled: list[Labelled] = []
    for rank, policy in enumerate(imaging):
        count = CENTRING_FRAMES // len(imaging)
        made = simulate(policy, count, seed=acceptance.seed + 3 + rank, shape=SHAPE)
        sizes = map(float, made.pixel_size_pm)
        labelled += zip(made.frames_nyx, made.truth, sizes, strict=True)
    return labelled


def tune(parent: Member, labelled: LabelledTiles, *, steps: int, seed: int) -> Member:
    """Return the member after a short fine-tuning from its own weights.

    Raises:
        MemberDiverged: the loss became NaN or infinite.
    """
    rate = parent.recipe.training.learning_rate
    if parent.recipe.strategy != "baseline":  # one tuned before has the lower rate already
        rate *= TUNING_RATE
    training = parent.recipe.training.model_copy(update={"steps": steps, "learning_rate": rate})
    recipe = parent.recipe.model_copy(update={"training": training, "strategy": "baseline"})
    plan = MemberPlan(seed=(parent.seed + 7919 * (seed + 1)) % 2**31, policy=parent.policy)
    child = train_member(
        recipe,
        plan,
        parent.index,
        labelled.tiles,
        on_step=lambda *_: stop_if_nobody_waits(),
        initial=parent.weights,
        weight_nyx=labelled.weight_nyx,
    )
    return replace(child, seed=parent.seed)

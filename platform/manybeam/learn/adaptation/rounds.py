"""Rounds of adaptation: members are fine-tuned on unlabelled frames and must pass a gate.

One round does this with each member:
1. It re-estimates the batch norms on the unlabelled frames, which is cheap.
2. It makes labelled tiles (`learn.adaptation.pseudo_labels`), fine-tunes the member on them for a
   short time, and moves the threshold back to 0.5.
The gate of `learn.adaptation.acceptance` follows each of the two steps. A result that does not pass
is dropped. Fine-tuning measures the batch norms anew, so step 1 counts only if step 2 is refused.
Axis letters: n frame, y row, x column.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock

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
    LABEL_SOURCES,
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
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.prediction import Prediction
from manybeam.learn.training.member import train_member
from manybeam.learn.training.side_by_side import each_abreast, stop_if_nobody_waits
from manybeam.learn.training.threshold import Labelled, centred
from manybeam.spec import MemberPlan, Policy
from manybeam.spec.recipe import TileSpec

TUNING_RATE = 0.4  # peak learning rate, as a share of the recipe's
NEW_TILES = 48  # new tiles that a member is fine-tuned on, and as many known ones
CENTRING_FRAMES = 16  # simulated anew, to find the threshold of a fine-tuned member

OnProgress = Callable[[str, float, float], None]  # what is done, how much of it, and the whole
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
    labels: LabelSource = "twin",
    steps: int = 100,
    rounds: int = 1,
    beside: bool = False,
    max_regression: float = 0.005,
    seed: int = 0,
    draws: int = DRAWS,
    step_store: StepStore | None = None,
    progress: OnProgress | None = None,
) -> Adaptation:
    """Adapt members to unlabelled frames of one condition and return the new ensemble.

    The members of a round are adapted side by side, one on each core.

    Args:
        ensemble: the members to start from.
        frames_nyx: the new frames, (n, y, x).
        pixel_size_pm: edge of their pixels, in pm, or None.
        imaging: the policy a condition is inferred in.
        held_out: simulated frames with truth that no member was trained on, by condition.
        policies: the policies that members were trained on, by id. Half of the tiles are drawn
            from the member's policy, so that it does not forget; from `imaging` if it is missing.
        members: indices of the members to adapt; all if left out.
        labels: where labels come from. `twin` simulates labelled frames under the inferred
            condition, `pseudo` uses what the members agree on, `both` takes half of each.
        steps: optimiser steps for each member and round.
        rounds: largest number of rounds; each continues with the members that the last accepted.
        beside: add an adapted member to the ensemble and keep its parent. F1 on held-out truth is
            then that of the whole ensemble, with and without the new member.
        max_regression: largest loss of F1 on `held_out` that passes the gate, over all rounds.
        seed: of everything drawn.
        draws: frames simulated to infer the condition.
        step_store: stores each finished step, so that a stopped call continues where it was.
        progress: called from the threads that adapt members, many times a second.

    Raises:
        InvalidInput: no frames or frames of several conditions, no held-out truth, an unknown
            source of labels, or with `pseudo` members that agree on nothing.
        InvalidFrame: constant frames.
    """
    start = time.perf_counter()
    _check(frames_nyx, held_out, labels, rounds)
    check_one_condition(frames_nyx, pixel_size_pm, imaging)
    report, inferred = progress or _say_nothing, None
    if labels != "pseudo":
        inferred = infer(
            frames_nyx,
            pixel_size_pm,
            imaging,
            seed=seed,
            draws=draws,
            progress=lambda done, total: report("infer the condition", done, total),
        )
    among = ensemble if beside else None
    acceptance = AcceptanceGate(frames_nyx, pixel_size_pm, held_out, imaging, inferred, seed, among)
    adaptation = _Rounds(
        ensemble, acceptance, policies or {}, labels, steps, max_regression, step_store, report
    )
    chosen = ensemble.subset(members) if members is not None else ensemble
    history = [adaptation.round(1, chosen.members, {})]
    while history[-1] and len(history) < rounds and any(one.child for one in history[-1]):
        history.append(adaptation.round(len(history) + 1, *_going_on(history)))
    made = outcome(ensemble, acceptance, history, max_regression)
    return replace(made, frames_digest=adaptation.digest, wall_s=time.perf_counter() - start)


def _say_nothing(what: str, done: float, total: float) -> None:
    pass


def _going_on(history: Sequence[Sequence[Attempt]]) -> tuple[list[Member], dict[int, Assessment]]:
    """Return the members that the last round accepted, and the scores of each.

    F1 on held-out truth is that of the parent before the first round, so that the losses of all
    rounds count together.
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
    """The steps of a round for each member: batch norms, labelled tiles, fine-tuning and gate."""

    def __init__(
        self,
        ensemble: Ensemble,
        acceptance: AcceptanceGate,
        policies: Mapping[str, Policy],
        labels: LabelSource,
        steps: int,
        max_regression: float,
        step_store: StepStore | None,
        report: OnProgress,
    ) -> None:
        self.ensemble, self.acceptance, self.policies = ensemble, acceptance, policies
        self.labels, self.steps, self.max_regression = labels, steps, max_regression
        self.step_store, self.report = step_store, report
        self.counted = Lock()
        self.steps_done = self.steps_total = 0  # of the optimisers, in this round
        self.digest = frames_digest(acceptance.frames_nyx, acceptance.pixel_size_pm)
        self.seen: dict[TileSpec, Seen] = {}

    def round(
        self, number: int, starts: Sequence[Member], assessments: Mapping[int, Assessment]
    ) -> list[Attempt]:
        """Return the attempt of each member in one round."""
        self.steps_done, self.steps_total = 0, self.steps * len(starts)
        self.report(f"round {number}", 0, self.steps_total)
        if self.labels != "twin":
            now = {one.index: one for one in starts}
            asked = Ensemble([now.get(one.index, one) for one in self.ensemble.members])
            for spec in {one.recipe.tiles for one in starts}:
                self.seen[spec] = ask(
                    asked, self.acceptance.frames_nyx, self.acceptance.pixel_size_pm, spec
                )
        return each_abreast(
            lambda one: self._stored(number, one, assessments.get(one.index)), starts
        )

    def _stored(self, number: int, start: Member, before: Assessment | None) -> Attempt:
        """Return the attempt of a member, from the store if an earlier call finished it."""
        key = f"round-{number:02d}-member-{start.index:02d}"
        if self.step_store is not None and (data := self.step_store.get(key)) is not None:
            return unpack(data, start)
        attempt = self._try(number, start, before or self.acceptance.before(start))
        if self.step_store is not None:
            self.step_store.put(key, pack(attempt))
        return attempt

    def _try(self, number: int, parent: Member, before: Assessment) -> Attempt:
        """Return the attempt of a member: fine-tuned, with new batch norms only, or unchanged."""
        start, assessment = (parent, before) if number > 1 else self._renormed(parent, before)
        # On held-out truth the result of both stages is compared with the parent.
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
        """Return the member with batch norms re-estimated on the frames, if it passes the gate."""
        acceptance = self.acceptance
        child = re_estimated(parent, acceptance.frames_nyx, acceptance.pixel_size_pm)
        if child is parent:
            return parent, before
        after = acceptance.on_new_frames(child)
        if gain_refusal(before, after):  # the cheaper half of the gate comes first
            return parent, before
        after = acceptance.with_held(after, child)
        if loss_refusal(before, after, self.max_regression):
            return parent, before
        name = f"batch norms {self.digest} {parent.data_digest}".encode()
        return replace(child, data_digest=hashlib.sha256(name).hexdigest()[:32]), after

    def _tuned(
        self, number: int, start: Member, before: Assessment
    ) -> tuple[Member | None, Assessment | None, str]:
        """Return the fine-tuned member, its scores, and why the gate refuses it."""
        known = self.policies.get(start.policy, self.acceptance.imaging)
        seed = self.acceptance.seed + 1000 * (number - 1)
        labelled = self._labelled_tiles(known, start.recipe.tiles, seed)
        try:
            child = tune(
                start, labelled, steps=self.steps, seed=seed, on_step=partial(self._count, number)
            )
        except MemberDiverged as error:
            return None, None, error.what
        child = centred(child, _centring_frames(known, self.acceptance))
        after = self.acceptance.with_held(self.acceptance.on_new_frames(child), child)
        return child, after, gate(before, after, self.max_regression)

    def _count(self, number: int) -> None:
        """Report one more step of an optimiser; threads of several members call it."""
        stop_if_nobody_waits()
        with self.counted:
            self.steps_done += 1
            self.report(f"round {number}", self.steps_done, self.steps_total)

    def _labelled_tiles(self, known: Policy, spec: TileSpec, seed: int) -> LabelledTiles:
        inferred = self.acceptance.inferred
        if inferred is None:
            return pseudo_labelled_tiles(self.digest, self.seen[spec], known, spec, seed=seed)
        if self.labels == "twin":
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
    frames_nyx: np.ndarray, held_out: Mapping[str, Simulated], labels: str, rounds: int
) -> None:
    if frames_nyx.ndim != 3 or not len(frames_nyx):
        raise InvalidInput(
            f"frames of shape {frames_nyx.shape} to adapt to",
            "at least one frame, as (frames, rows, columns)",
            "give the FrameSet of the new frames",
        )
    if not held_out or not all(len(made.frames_nyx) for made in held_out.values()):
        raise InvalidInput(
            "there is no held-out truth to score the round with",
            "the gate needs simulated frames that no member was trained on",
            "simulate a few for each condition the ensemble is measured on",
        )
    if labels not in LABEL_SOURCES:
        raise InvalidInput(
            f"labels: {labels!r} is unknown", f"one of {', '.join(LABEL_SOURCES)}", ""
        )
    if rounds < 1:
        raise InvalidInput(f"{rounds} rounds", "at least one", "")


def _centring_frames(known: Policy, acceptance: AcceptanceGate) -> list[Labelled]:
    """Return labelled frames like those of fine-tuning and of the gate, but other ones.

    Fine-tuning moves the last bias to where the loss is smallest. So the threshold that was found
    for the parent does not hold for the child.
    """
    imaging = [acceptance.inferred.policy, known] if acceptance.inferred else [known]
    labelled: list[Labelled] = []
    for rank, policy in enumerate(imaging):
        count = CENTRING_FRAMES // len(imaging)
        made = simulate(policy, count, seed=acceptance.seed + 3 + rank, shape=SHAPE)
        sizes = map(float, made.pixel_size_pm)
        labelled += zip(made.frames_nyx, made.truth, sizes, strict=True)
    return labelled


def tune(
    parent: Member,
    labelled: LabelledTiles,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[], None] = stop_if_nobody_waits,
) -> Member:
    """Return the member after a short fine-tuning from its own weights.

    Args:
        parent: the member.
        labelled: tiles to learn from.
        steps: optimiser steps.
        seed: of all random draws.
        on_step: called after each step.

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
        on_step=lambda *_: on_step(),
        initial=parent.weights,
        weight_nyx=labelled.weight_nyx,
    )
    return replace(child, seed=parent.seed)

"""One gated round of iterative training: members adapted to frames that nobody labelled.

Unlabelled frames -> a lesson made by a teacher -> a short fine-tuning from the members' own
weights -> its threshold moved to 0.5 again -> the gate: a member is replaced only if its atoms fit
the new frames better AND its F1 on held-out truth did not fall. The gate is not a formality: tuning
can destroy a network.
Axis letters: n frame, y row, x column.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from manybeam.data.simulate import Simulated, simulate
from manybeam.errors import InvalidInput, MemberDiverged
from manybeam.learn.centring import Labelled, centred
from manybeam.learn.ensemble import Ensemble
from manybeam.learn.fitness import LATTICES, Lattice, combine, fitness
from manybeam.learn.infer import Inferred, infer
from manybeam.learn.member import Member, train_member
from manybeam.learn.scores import score_frames
from manybeam.learn.teachers import Lesson, ask, frames_digest, pseudo_lesson, twin_lesson
from manybeam.spec import MemberPlan, Policy
from manybeam.spec.recipe import TileSpec

Teacher = Literal["twin", "pseudo"]
TEACHERS: tuple[Teacher, ...] = ("twin", "pseudo")
USELESS_F1 = 0.5  # below this on a condition nobody would use the member there: nothing to lose
LEAST_GAIN = 0.002  # rise of the label-free score below which nothing was gained
TUNING_RATE = 0.4  # peak learning rate, as a share of the recipe's
TWIN_TILES = 48  # labelled twins a member is tuned on, beside as many general tiles
TWIN_TESTS = 6  # labelled twins a member is judged on
CENTRING_FRAMES = 16  # simulated anew, to find a tuned member's threshold on
SHAPE = (128, 128)  # of frames simulated to judge and to centre on


@dataclass(frozen=True)
class Standing:
    """Where one member stands.

    Attributes:
        fitness: label-free score on the new frames, 0 to 1.
        f1: F1 on held-out truth, mean over its conditions.
        twin_f1: F1 on labelled twins of the new frames; None without an inferred condition.
        held: on each held-out condition: F1, and its standard error by the number of atoms.
    """

    fitness: float
    f1: float
    twin_f1: float | None = None
    held: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What the round did with one member."""

    member: int
    accepted: bool
    before: Standing
    after: Standing | None
    why: str


@dataclass(frozen=True)
class Round:
    """What one round came to.

    Attributes:
        accepted: whether any member was replaced.
        before: mean standing of the members tried, before.
        after: and after, as tuned, whether accepted or not.
        members: the whole ensemble, in order: adapted members where the gate let them pass, the
            parents elsewhere.
        steps: what happened to each member tried.
        tuned: the tuned members, also those the gate refused; for inspection only.
        frames_digest: names the unlabelled frames; each adapted member's data digest follows it.
        inferred: the condition inferred, for the teacher `twin`.
        wall_s: how long it took.
        why: the decision in words.
    """

    accepted: bool
    before: Standing
    after: Standing
    members: tuple[Member, ...]
    steps: tuple[Step, ...]
    tuned: tuple[Member, ...]
    frames_digest: str
    inferred: Inferred | None
    wall_s: float
    why: str


def adapt(
    ensemble: Ensemble,
    frames_nyx: np.ndarray,
    pixel_size_pm: float | None,
    *,
    imaging: Policy,
    held_out: Mapping[str, Simulated],
    policies: Mapping[str, Policy] | None = None,
    members: Sequence[int] | None = None,
    teacher: Teacher = "twin",
    steps: int = 100,
    max_regression: float = 0.005,
    seed: int = 0,
) -> Round:
    """Return one gated round on unlabelled frames of one condition.

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
            what the members agree on.
        steps: optimiser steps for each member.
        max_regression: largest loss of F1 on `held_out` that the gate lets pass.
        seed: of everything drawn in this round.

    Raises:
        InvalidInput: no frames, no held-out truth, or an unknown teacher.
    """
    _check(frames_nyx, held_out, teacher)
    start = time.perf_counter()
    digest = frames_digest(frames_nyx, pixel_size_pm)
    inferred = infer(frames_nyx, pixel_size_pm, imaging, seed=seed) if teacher == "twin" else None
    court = Court(frames_nyx, pixel_size_pm, held_out, imaging, inferred, seed)
    chosen = ensemble.subset(members) if members is not None else ensemble
    replaced, tuned, done = {}, [], []
    for parent in chosen.members:
        known = (policies or {}).get(parent.policy, imaging)
        lesson = _lesson(digest, ensemble, court, known, parent.recipe.tiles)
        step, child = _try(parent, known, lesson, court, steps, max_regression)
        done.append(step)
        tuned += [child] if child else []
        if step.accepted and child:
            replaced[parent.index] = child
    return Round(
        accepted=bool(replaced),
        before=_mean([step.before for step in done]),
        after=_mean([step.after or step.before for step in done]),
        members=tuple(replaced.get(one.index, one) for one in ensemble.members),
        steps=tuple(done),
        tuned=tuple(tuned),
        frames_digest=digest,
        inferred=inferred,
        wall_s=time.perf_counter() - start,
        why="; ".join(f"member {step.member:02d}: {step.why}" for step in done),
    )


class Court:
    """Everything a member is judged by in one round, the same before and after tuning."""

    def __init__(
        self,
        frames_nyx: np.ndarray,
        pixel_size_pm: float | None,
        held_out: Mapping[str, Simulated],
        imaging: Policy,
        inferred: Inferred | None,
        seed: int,
    ) -> None:
        self.frames_nyx, self.pixel_size_pm = frames_nyx, pixel_size_pm
        self.held_out, self.imaging, self.inferred, self.seed = held_out, imaging, inferred, seed
        self.lattice: Lattice | None = LATTICES.get(imaging.sample.structure)
        self.twins = (
            simulate(inferred.policy, TWIN_TESTS, seed=seed + 2, shape=SHAPE) if inferred else None
        )

    def standing(self, member: Member) -> Standing:
        """Return where a member stands."""
        alone = Ensemble([member])
        held = {name: f1_on(alone, made) for name, made in self.held_out.items()}
        atoms = {name: sum(map(len, made.truth)) for name, made in self.held_out.items()}
        return Standing(
            fitness=label_free_score(alone, self.frames_nyx, self.pixel_size_pm, self.lattice),
            f1=float(np.mean(list(held.values()))),
            twin_f1=f1_on(alone, self.twins) if self.twins else None,
            held={name: (f1, _standard_error(f1, atoms[name])) for name, f1 in held.items()},
        )


def label_free_score(
    alone: Ensemble,
    frames_nyx: np.ndarray,
    pixel_size_pm: float | None,
    lattice: Lattice | None,
) -> float:
    """Return how well one member's atoms fit frames without truth, 0 to 1, mean over frames.

    Of the fitness only what the member cannot raise by itself counts: rendered atoms against the
    frame, and the lattice. Its own confidence rises with any training, however wrong.
    """
    scores = []
    for frame_yx in frames_nyx:
        atoms = alone.predict(frame_yx, pixel_size_pm).member_atoms
        parts = fitness(frame_yx, atoms, pixel_size_pm, lattice)[0].parts
        scores.append(combine({key: parts[key] for key in ("forward", "lattice") if key in parts}))
    return float(np.mean(scores))


def f1_on(ensemble: Ensemble, made: Simulated) -> float:
    """Return the ensemble's F1 on frames with truth."""
    sizes = [float(size) for size in made.pixel_size_pm]
    found = [
        ensemble.predict(frame, size).atoms
        for frame, size in zip(made.frames_nyx, sizes, strict=True)
    ]
    shapes = [(frame.shape[0], frame.shape[1]) for frame in made.frames_nyx]
    return score_frames(found, made.truth, sizes, shapes=shapes).f1


def _standard_error(f1: float, atoms: int) -> float:
    """Return the standard error of a share of so many atoms; not 0 where none was missed."""
    share = (f1 * atoms + 1) / (atoms + 2)
    return math.sqrt(share * (1 - share) / max(atoms, 1))


def gate(before: Standing, after: Standing, max_regression: float) -> str:
    """Return why the gate refuses; empty if it lets the member pass.

    Asked as "is it not good enough", so that NaN, which is not good enough, never passes. A
    single condition may fall by what its few atoms cannot resolve (two standard errors) and no
    more: a gain on a bad condition does not buy a loss on a good one. Where the parent was of no
    use, it has nothing to lose.
    """
    useful = [name for name, held in before.held.items() if held[0] >= USELESS_F1]
    for name in useful:
        (was, error), now = before.held[name], after.held.get(name, (math.nan, 0.0))[0]
        if not now >= was - max_regression - 2 * error:
            return f"F1 on held-out truth of {name} fell from {was:.3f} to {now:.3f}"
    was, now = _mean_f1(before, useful), _mean_f1(after, useful)
    if not now >= was - max_regression:
        return (
            f"F1 on held-out truth fell from {was:.3f} to {now:.3f}, more than {max_regression:g}"
        )
    if not after.fitness >= before.fitness + LEAST_GAIN:
        return f"label-free score went from {before.fitness:.3f} to {after.fitness:.3f}"
    if after.twin_f1 is not None and not after.twin_f1 >= (before.twin_f1 or 0.0):
        return f"F1 on labelled twins fell from {before.twin_f1:.3f} to {after.twin_f1:.3f}"
    return ""


def _mean_f1(standing: Standing, conditions: Sequence[str]) -> float:
    """Return the mean F1 over some held-out conditions; over all if there are none."""
    if not conditions:
        return standing.f1
    return float(np.mean([standing.held[name][0] for name in conditions]))


def _check(frames_nyx: np.ndarray, held_out: Mapping[str, Simulated], teacher: str) -> None:
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


def _lesson(
    digest: str, ensemble: Ensemble, court: "Court", known: Policy, spec: TileSpec
) -> Lesson:
    """Return the lesson of the teacher the round has: twins where a condition was inferred."""
    if court.inferred is not None:
        twin = court.inferred.policy
        return twin_lesson(digest, twin, known, spec, count=TWIN_TILES, seed=court.seed)
    seen = ask(ensemble, court.frames_nyx, court.pixel_size_pm, spec)
    return pseudo_lesson(digest, seen, known, spec, seed=court.seed)


def _try(
    parent: Member, known: Policy, lesson: Lesson, court: Court, steps: int, max_regression: float
) -> tuple[Step, Member | None]:
    """Return what became of one member, and the tuned member (None if it diverged)."""
    before = court.standing(parent)
    try:
        child = tune(parent, lesson, steps=steps, seed=court.seed)
    except MemberDiverged as error:
        why = f"parent kept: {error.what}"
        return Step(parent.index, accepted=False, before=before, after=None, why=why), None
    child = centred(child, _rehearsal(known, court))
    after = court.standing(child)
    refusal = gate(before, after, max_regression)
    gain = (
        f"label-free score {before.fitness:.3f} to {after.fitness:.3f}, "
        f"held-out F1 {before.f1:.3f} to {after.f1:.3f}"
    )
    why = f"parent kept: {refusal}" if refusal else f"adapted: {gain}"
    return Step(parent.index, not refusal, before, after, why), child


def _rehearsal(known: Policy, court: Court) -> list[Labelled]:
    """Return frames like those of the lesson, none of them in it or in court.

    Tuning drives the last bias back to where the loss wants it, so the threshold that centring
    found for the parent does not hold for the child.
    """
    imaging = [court.inferred.policy, known] if court.inferred else [known]
    labelled: list[Labelled] = []
    for rank, policy in enumerate(imaging):
        count = CENTRING_FRAMES // len(imaging)
        made = simulate(policy, count, seed=court.seed + 3 + rank, shape=SHAPE)
        sizes = map(float, made.pixel_size_pm)
        labelled += zip(made.frames_nyx, made.truth, sizes, strict=True)
    return labelled


def tune(parent: Member, lesson: Lesson, *, steps: int, seed: int) -> Member:
    """Return the member after a short fine-tuning from its own weights.

    Raises:
        MemberDiverged: the loss became NaN or infinite.
    """
    rate = TUNING_RATE * parent.recipe.training.learning_rate
    training = parent.recipe.training.model_copy(update={"steps": steps, "learning_rate": rate})
    recipe = parent.recipe.model_copy(update={"training": training, "strategy": "baseline"})
    plan = MemberPlan(seed=(parent.seed + 7919 * (seed + 1)) % 2**31, policy=parent.policy)
    child = train_member(
        recipe,
        plan,
        parent.index,
        lesson.tiles,
        initial=parent.weights,
        weight_nyx=lesson.weight_nyx,
    )
    return dataclasses.replace(child, seed=parent.seed)


def _mean(standings: Sequence[Standing]) -> Standing:
    twins = [one.twin_f1 for one in standings if one.twin_f1 is not None]
    return Standing(
        fitness=float(np.mean([one.fitness for one in standings])),
        f1=float(np.mean([one.f1 for one in standings])),
        twin_f1=float(np.mean(twins)) if twins else None,
    )

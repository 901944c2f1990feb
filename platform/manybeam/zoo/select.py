"""Selection: which members of an ensemble suit this frame, how well they will do, and why.

One ranking for the command line, the service and the demo. It weighs what was measured before
(the members x conditions matrix, read at the conditions nearest to the frame) against what the
frame itself says (`learn.fitness`). The nearness of conditions lives in `zoo.nearness`, the words
in `zoo.reasons`. Axis letters: m member, y row, x column.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from manybeam.learn.ensemble import Ensemble, Prediction
from manybeam.learn.fitness import LATTICES, Fitness, fitness
from manybeam.settings import settings
from manybeam.spec import Condition, Library, Policy
from manybeam.zoo.matrix import Matrix
from manybeam.zoo.nearness import Near, nearest_conditions, structure_of
from manybeam.zoo.reasons import Outlook, candidate_reason, selection_reason
from manybeam.zoo.records import Record

# F1 that a fitness stands for, a line through 6 members on 16 simulated conditions of graphene; the
# standard deviation around it, with a lattice to judge by and without; and that of the matrix's F1
# for each unit of distance to the nearest condition.
FITNESS_SLOPE, FITNESS_OFFSET = 1.25, -0.2
FITNESS_SIGMA = 0.08
FITNESS_SIGMA_NO_LATTICE = 0.15
SIGMA_PER_DISTANCE = 0.3
SCATTER = 1.0  # distance that frames have from their own condition; only what is beyond counts
LEAST_SIGMA = 0.01
# A frame is out of distribution when it lies more than this many times as far from every measured
# condition as frames of one condition lie apart (they reach 2.1), or when no member promises this
# F1.
FAR = 2.5
POOR_F1 = 0.6

Verdict = Literal["ok", "out-of-distribution"]


@dataclass(frozen=True)
class Candidate:
    """One member's prospects on a frame.

    Attributes:
        member: index of the member.
        predicted_f1: expected F1, 0 to 1.
        low: lower end of the interval.
        high: upper end of the interval.
        components: every score that went in, by name: `matrix` (absent where nothing was
            measured), `forward`, `lattice`, `agreement`, `confidence`, `fitness`, `distance`.
        why: the reason in words.
    """

    member: int
    predicted_f1: float
    low: float
    high: float
    components: Mapping[str, float]
    why: str


@dataclass(frozen=True)
class Selection:
    """The members ranked for one frame.

    Attributes:
        verdict: `ok`, or `out-of-distribution`; the latter is a flag and never blocks an answer.
        candidates: every member, best first.
        chosen: the best member and those that cannot be told from it.
        why: the reason in words.
        nearest: the nearest measured conditions with their distance, nearest first.
    """

    verdict: Verdict
    candidates: tuple[Candidate, ...]
    chosen: tuple[int, ...]
    why: str
    nearest: tuple[tuple[str, float], ...] = ()


def select(
    record: Record,
    matrix: Matrix,
    ensemble: Ensemble,
    frame_yx: np.ndarray,
    pixel_size_pm: float | None,
    condition: Condition | None = None,
    prediction: Prediction | None = None,
    *,
    library: Library | None = None,
) -> Selection:
    """Return the members of an ensemble ranked for one frame.

    The predicted F1 is the mean of two estimates, each weighted by the inverse of its variance:
    the matrix at the nearest measured conditions, less sure the farther the frame is from them,
    and the fitness of the member's own atoms. Its interval covers about nine in ten of what these
    variances allow and widens where the two disagree. It is NOT calibrated yet: read the order of
    the members from it, and its value as a rough forecast.

    Args:
        record: the ensemble's record; its members' policies enter the reason.
        matrix: its members x conditions scores; may be empty.
        ensemble: the members.
        frame_yx: the frame.
        pixel_size_pm: edge of a pixel, or None.
        condition: what is known of how the frame was recorded; unknown fields do not count.
        prediction: the ensemble's answer on this frame with `keep_members`, if there is one.
        library: conditions and policies by id; the facility's (`MANYBEAM_ZOO`) if left out.
    """
    library = library or _facility_library()
    if prediction is None:
        prediction = ensemble.predict(frame_yx, pixel_size_pm, keep_members=True)
    policies = _policies(record, library)
    known = [library.conditions[name] for name in matrix.conditions if name in library.conditions]
    near = nearest_conditions(frame_yx, pixel_size_pm, condition, known)
    if not known:  # measured, but where is not known here: then everywhere alike
        near = Near(math.inf, dict.fromkeys(matrix.conditions, 1 / max(len(matrix.conditions), 1)))
    seen = [policy for _, policy in policies.values() if policy is not None]
    structure = structure_of(condition, [*known, *seen])
    lattice = LATTICES.get(structure)
    found = fitness(frame_yx, prediction.member_atoms, pixel_size_pm, lattice)
    sigma = FITNESS_SIGMA if lattice else FITNESS_SIGMA_NO_LATTICE
    drafts = [
        _forecast(member, one, matrix, near, sigma)
        for member, one in zip(prediction.members, found, strict=True)
    ]
    drafts.sort(key=lambda one: (-one.predicted_f1, one.member))
    return _decide(drafts, policies, near, _told(condition, pixel_size_pm))


def _facility_library() -> Library:
    """Return the facility's library, read again only when one of its files has changed."""
    folder = settings().zoo
    stamps = tuple(sorted((str(path), path.stat().st_mtime_ns) for path in folder.glob("*/*.yaml")))
    return _read_library(folder, stamps)


@lru_cache(maxsize=4)
def _read_library(folder: Path, stamps: tuple[tuple[str, int], ...]) -> Library:
    del stamps  # only the key: other files, another library
    return Library(folder)


def _policies(record: Record, library: Library) -> dict[int, tuple[str, Policy | None]]:
    """Return each member's policy: its id, and its ranges where the library still has them."""
    return {
        member.index: (member.policy, library.policies.get(member.policy))
        for member in record.members
    }


def _told(condition: Condition | None, pixel_size_pm: float | None) -> dict[str, float]:
    """Return every number known of how the frame was recorded, by dotted path."""
    known = {} if condition is None else condition.quantities()
    told = {path: float(value) for path, value in known if isinstance(value, (int, float))}
    return told | ({} if pixel_size_pm is None else {"scan.pixel_size_pm": pixel_size_pm})


def _forecast(
    member: int, found: Fitness, matrix: Matrix, near: Near, fitness_sigma: float
) -> Outlook:
    """Return one member's predicted F1: matrix and fitness, weighted by inverse variance."""
    promised = float(np.clip(FITNESS_SLOPE * found.score + FITNESS_OFFSET, 0.0, 1.0))
    estimates = [(promised, fitness_sigma)]
    parts = {**found.parts, "fitness": found.score}
    if math.isfinite(near.distance):
        parts["distance"] = near.distance
    measured = _matrix_estimate(member, matrix, near)
    if measured is not None:
        estimates.append(measured)
        parts["matrix"] = measured[0]
    weights = np.array([1 / max(sigma, LEAST_SIGMA) ** 2 for _, sigma in estimates])
    values = np.array([value for value, _ in estimates])
    mean = float(np.average(values, weights=weights))
    # Two estimates that contradict each other are less sure than their own widths say.
    conflict = float(np.average((values - mean) ** 2, weights=weights))
    reach = 1.64 * math.sqrt(1 / float(weights.sum()) + conflict)
    low, high = max(mean - reach, 0.0), min(mean + reach, 1.0)
    return Outlook(member, mean, low, high, parts, found.explained)


def _matrix_estimate(member: int, matrix: Matrix, near: Near) -> tuple[float, float] | None:
    """Return F1 at the frame's place in the matrix and its standard deviation, if measured."""
    known = [
        (value, weight, _measured_sigma(member, name, matrix))
        for name, weight in near.weights.items()
        if (value := matrix.value(member, name, "f1")) is not None
    ]
    if not known:
        return None
    values, weights, sigmas = (np.array(column) for column in zip(*known, strict=True))
    mean = float(np.average(values, weights=weights))
    variance = float(np.average((values - mean) ** 2 + sigmas**2, weights=weights))
    away = min(max(near.distance - SCATTER, 0.0), FAR)
    return mean, math.sqrt(variance + (SIGMA_PER_DISTANCE * away) ** 2)


def _measured_sigma(member: int, condition: str, matrix: Matrix) -> float:
    """Return the standard deviation of a measured F1, from its bootstrap interval."""
    low, high = (matrix.value(member, condition, key) for key in ("f1_low", "f1_high"))
    return LEAST_SIGMA if low is None or high is None else (high - low) / 3.92


def _decide(
    ranked: list[Outlook],
    policies: Mapping[int, tuple[str, Policy | None]],
    near: Near,
    told: Mapping[str, float],
) -> Selection:
    best = ranked[0]
    # Where there is nothing to compare with, far is not known to be far.
    is_far = math.isfinite(near.distance) and near.distance > FAR
    is_poor = best.predicted_f1 < POOR_F1
    chosen = _within_noise(ranked)
    return Selection(
        verdict="out-of-distribution" if is_far or is_poor else "ok",
        candidates=tuple(
            Candidate(
                member=one.member,
                predicted_f1=one.predicted_f1,
                low=one.low,
                high=one.high,
                components=one.components,
                why=candidate_reason(one, policies, told),
            )
            for one in ranked
        ),
        chosen=chosen,
        why=selection_reason(ranked, chosen, policies, near, told, far=FAR, poor_f1=POOR_F1),
        nearest=near.ranked,
    )


def _within_noise(ranked: list[Outlook]) -> tuple[int, ...]:
    """Return the best member and those it cannot be told from.

    All members saw the same frame, so most of what makes a forecast unsure is common to them: two
    are told apart at a quarter of the interval's half-width, at least by half a per cent of F1.
    """
    best = ranked[0]
    noise = min(max(0.25 * (best.high - best.low) / 2, 0.005), 0.03)
    return tuple(one.member for one in ranked if one.predicted_f1 >= best.predicted_f1 - noise)

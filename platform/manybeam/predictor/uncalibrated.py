"""Selection for a version that was never calibrated: matrix and label-free scores, by rule.

The predicted F1 is the mean of two estimates, each weighted by the inverse of its variance. One is
the members x conditions matrix at the measured conditions nearest to the frame; its variance grows
with their distance. The other is a line through the label-free scores. The interval is NOT
calibrated.
Axis letters: m member.
"""

import math
from collections.abc import Sequence

import numpy as np

from manybeam.learn.analysis.fitness import SCORES, WEIGHTS, combine
from manybeam.learn.analysis.frame_analysis import FrameAnalysis
from manybeam.predictor.condition_distance import Near
from manybeam.predictor.reasons import Outlook
from manybeam.zoo.matrix import Matrix

# F1 as a linear function of fitness, fitted to 6 members on 16 simulated conditions of graphene;
# the standard deviation around it, with and without a known lattice; and the standard deviation of
# the matrix's F1 for each unit of distance to the nearest condition.
FITNESS_SLOPE, FITNESS_OFFSET = 1.25, -0.2
FITNESS_SIGMA = 0.08
FITNESS_SIGMA_NO_LATTICE = 0.15
SIGMA_PER_DISTANCE = 0.3
SCATTER = 1.0  # distance of frames from their own condition; only the distance beyond it counts
LEAST_SIGMA = 0.01
FAR = 2.5  # the standard deviation does not grow beyond this distance
POOR_F1 = 0.6


def rule_of_thumb(seen: FrameAnalysis, matrix: Matrix, near: Near) -> list[Outlook]:
    """Return the predicted F1 of each member, the best first."""
    sigma = FITNESS_SIGMA if seen.lattice else FITNESS_SIGMA_NO_LATTICE
    found = [
        _outlook(member, score_f, matrix, near, sigma)
        for member, score_f in zip(seen.prediction.members, seen.score_mf, strict=True)
    ]
    return sorted(found, key=lambda one: (-one.predicted_f1, one.member))


def _outlook(
    member: int, score_f: np.ndarray, matrix: Matrix, near: Near, fitness_sigma: float
) -> Outlook:
    """Return one member's predicted F1: matrix and fitness, weighted by inverse variance."""
    parts = {k: float(v) for k, v in zip(SCORES, score_f, strict=True) if math.isfinite(v)}
    fitness = combine({name: parts[name] for name in WEIGHTS if name in parts})
    by_fitness = float(np.clip(FITNESS_SLOPE * fitness + FITNESS_OFFSET, 0.0, 1.0))
    estimates = [(by_fitness, fitness_sigma)]
    parts["fitness"] = fitness
    if math.isfinite(near.distance):
        parts["distance"] = near.distance
    measured = matrix_estimate(member, matrix, near)
    if measured is not None:
        estimates.append(measured)
        parts["matrix"] = measured[0]
    weights = np.array([1 / max(sigma, LEAST_SIGMA) ** 2 for _, sigma in estimates])
    values = np.array([value for value, _ in estimates])
    mean = float(np.average(values, weights=weights))
    # If the two estimates contradict each other, the interval is wider.
    conflict = float(np.average((values - mean) ** 2, weights=weights))
    reach = 1.64 * math.sqrt(1 / float(weights.sum()) + conflict)
    low, high = max(mean - reach, 0.0), min(mean + reach, 1.0)
    return Outlook(member, mean, low, high, parts, parts["forward"] ** 2)


def matrix_estimate(member: int, matrix: Matrix, near: Near) -> tuple[float, float] | None:
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


def within_noise(ranked: Sequence[Outlook]) -> tuple[int, ...]:
    """Return the best member and those that cannot be distinguished from it.

    All members saw the same frame, so most of the error of a prediction is common to them. Two are
    distinguished at a quarter of the interval's half-width, within 0.005 to 0.03 of F1.
    """
    best = ranked[0]
    noise = min(max(0.25 * (best.high - best.low) / 2, 0.005), 0.03)
    return tuple(one.member for one in ranked if one.predicted_f1 >= best.predicted_f1 - noise)

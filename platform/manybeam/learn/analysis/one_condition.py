"""Whether frames were recorded under one condition; checked before members are adapted to them.

Pairs of frames are simulated, each pair under another condition of the policy. Directions are
looked for in which pairs differ much while the two frames of a pair differ little: these depend on
the condition and not on the atoms. The new frames are compared along them.
Axis letters: n frame, s number of a summary, k direction, p pair.

Source: R. A. Fisher, Ann. Eugen. 7, 179 (1936), discriminant analysis, with a within-class scatter
shrunk towards its diagonal; groups by single linkage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import linalg
from scipy.sparse.csgraph import connected_components

from manybeam.data.simulation.simulate import simulate
from manybeam.errors import InvalidFrame, InvalidInput
from manybeam.learn.analysis.condition_inference import LEAST_SIDE_PX, SHAPE, draw, fixed_pixel_size
from manybeam.learn.analysis.summaries import summaries
from manybeam.spec import Policy

PAIRS = 128  # simulated; about two seconds on one core, once for a policy and a pixel size
DIRECTIONS = 4
SHRINKAGE = 0.1  # of the within-pair scatter towards its diagonal
CLIP = 6.0  # deviations; larger values are set to this
# Least distance between groups. In sets of 2 to 16 frames of one simulated condition 98 % of the
# largest gaps are below 4.5. Between conditions that a person can distinguish they start at 12.
FAR = 7.0


def check_one_condition(
    frames_nyx: np.ndarray, pixel_size_pm: float | None, imaging: Policy
) -> None:
    """Check that frames have contrast and seem to be of one condition.

    Args:
        frames_nyx: the frames; those smaller than 48 px a side are not compared.
        pixel_size_pm: edge of their pixels, in pm, or None.
        imaging: policy that conditions are drawn from.

    Raises:
        InvalidFrame: a frame is constant, or has values that are not numbers.
        InvalidInput: the frames form several groups; the message lists their indices.
    """
    _check_content(frames_nyx)
    found = groups(frames_nyx, pixel_size_pm, imaging)
    if len(found) > 1:
        listed = " | ".join(", ".join(map(str, group)) for group in found)
        raise InvalidInput(
            f"the frames are of {len(found)} conditions; their indices: {listed}",
            "a round adapts to one condition",
            "put each group into another FrameSet, or pass the frames of one group with --frame",
        )


def groups(
    frames_nyx: np.ndarray, pixel_size_pm: float | None, imaging: Policy
) -> list[tuple[int, ...]]:
    """Return the indices of the frames of each group, largest group first.

    Args:
        frames_nyx: frames of one shape.
        pixel_size_pm: edge of their pixels, in pm, or None.
        imaging: policy that conditions are drawn from.
    """
    every = tuple(range(len(frames_nyx)))
    if len(every) < 2 or min(frames_nyx.shape[1:]) < LEAST_SIDE_PX:
        return [every]
    step_nn = distances_between(frames_nyx, pixel_size_pm, imaging)
    count, group_n = connected_components(step_nn <= FAR, directed=False)
    found = [tuple(np.flatnonzero(group_n == one).tolist()) for one in range(count)]
    return sorted(found, key=lambda one: (-len(one), one))


def distances_between(
    frames_nyx: np.ndarray, pixel_size_pm: float | None, imaging: Policy
) -> np.ndarray:
    """Return the distances between frames, (n, n); 1 is usual within one simulated condition."""
    shape = (min(frames_nyx.shape[1], SHAPE[0]), min(frames_nyx.shape[2], SHAPE[1]))
    top, left = ((side - part) // 2 for side, part in zip(frames_nyx.shape[1:], shape, strict=True))
    middle_nyx = frames_nyx[:, top : top + shape[0], left : left + shape[1]]
    place_nk = _discriminant(imaging, pixel_size_pm, shape).places(
        summaries(middle_nyx, pixel_size_pm)
    )
    step_nnk = place_nk[:, None] - place_nk[None]
    return np.asarray(np.sqrt(np.mean(step_nnk**2, axis=2) / 2))


@dataclass(frozen=True, eq=False)
class _Discriminant:
    """Middle and deviation of summaries, and the directions that separate conditions."""

    middle_s: np.ndarray
    deviation_s: np.ndarray
    direction_sk: np.ndarray

    def places(self, summary_ns: np.ndarray) -> np.ndarray:
        """Return the coordinates of frames, in scatters within a pair; NaN becomes the middle."""
        unit_ns = (np.nan_to_num(summary_ns - self.middle_s)) / self.deviation_s
        return np.asarray(np.clip(unit_ns, -CLIP, CLIP) @ self.direction_sk)


@lru_cache(maxsize=8)
def _discriminant(
    imaging: Policy, pixel_size_pm: float | None, shape: tuple[int, int]
) -> _Discriminant:
    """Return the discriminant of a policy, from pairs of frames simulated under it."""
    policy = fixed_pixel_size(imaging, pixel_size_pm) if pixel_size_pm else imaging
    rng = np.random.default_rng(0)
    made_nyx = np.concatenate(
        [
            simulate(draw(policy, rng), 2, seed=int(rng.integers(2**31)), shape=shape).frames_nyx
            for _ in range(PAIRS)
        ]
    )
    summary_ns = np.nan_to_num(summaries(made_nyx, pixel_size_pm))
    deviation_s = summary_ns.std(axis=0)
    deviation_s[deviation_s < 1e-6] = 1.0  # constant: no information
    unit_ns = (summary_ns - summary_ns.mean(axis=0)) / deviation_s
    direction_sk = _directions(unit_ns)
    return _Discriminant(summary_ns.mean(axis=0), deviation_s, direction_sk)


def _directions(unit_ns: np.ndarray) -> np.ndarray:
    """Return the directions that separate pairs best, in units of the scatter within a pair."""
    apart_ps = (unit_ns[::2] - unit_ns[1::2]) / np.sqrt(2)
    within_ss = apart_ps.T @ apart_ps / len(apart_ps)
    diagonal_ss = np.diag(np.diag(within_ss))
    shrunk_ss = (1 - SHRINKAGE) * within_ss + SHRINKAGE * diagonal_ss
    shrunk_ss += 1e-3 * np.eye(len(within_ss))
    _, vector_sk = linalg.eigh(np.cov(unit_ns.T), shrunk_ss)
    best_sk = vector_sk[:, ::-1][:, :DIRECTIONS]
    return np.asarray(best_sk / np.sqrt(np.mean((apart_ps @ best_sk) ** 2, axis=0)))


def _check_content(frames_nyx: np.ndarray) -> None:
    broken = [i for i, frame in enumerate(frames_nyx) if not np.isfinite(frame).all()]
    empty = [i for i, frame in enumerate(frames_nyx) if i not in broken and not np.ptp(frame)]
    for which, what in ((broken, "has values that are not numbers"), (empty, "is constant")):
        if which:
            raise InvalidFrame(
                f"frame {_listed(which)} {what}",
                "members are adapted to frames that show atoms",
                "leave it out: pass the others with --frame, or put them into another FrameSet",
            )


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))

"""Under which condition were these frames recorded? Answered from the frames alone.

Approximate Bayesian computation: conditions are drawn from a policy, one frame is simulated under
each, and those whose fingerprints come nearest to the frames' are kept. What they span is the
answer, a narrower policy. Axis letters: n frame or draw, f feature, y row, x column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manybeam.data.simulate import simulate
from manybeam.errors import InvalidInput
from manybeam.learn.fingerprint import distances, fingerprints
from manybeam.spec import Policy, Range

SHAPE = (128, 128)  # of the frames simulated to compare with
GROUPS = ("sample", "optics", "detector", "scan", "state")


@dataclass(frozen=True)
class Inferred:
    """A condition inferred from frames.

    Attributes:
        policy: the policy narrowed to what the kept draws span.
        distance: of the best draw, in units of the scatter of all; above 1 the policy holds
            nothing that looks like the frames.
        draw_count: frames simulated for it.
    """

    policy: Policy
    distance: float
    draw_count: int


def infer(
    frames_nyx: np.ndarray,
    pixel_size_pm: float | None,
    imaging: Policy,
    *,
    seed: int,
    draws: Sequence[int] = (160, 96),
    keep: int = 8,
) -> Inferred:
    """Return the part of a policy that makes frames like these.

    The second stage draws from what the first one kept, so that a policy of twenty ranges is
    searched with a few hundred frames.

    Args:
        frames_nyx: frames of one unknown condition.
        pixel_size_pm: edge of their pixels, in pm; None leaves the policy's range to be searched.
        imaging: the policy to search in.
        seed: of the draws.
        draws: frames simulated in each stage.
        keep: nearest draws that span the answer of a stage.

    Raises:
        InvalidInput: no frames.
    """
    if not len(frames_nyx):
        raise InvalidInput("no frames to infer a condition from", "at least one", "")
    seen_f = np.median(_crops(frames_nyx, pixel_size_pm), axis=0)
    rng = np.random.default_rng(seed)
    policy = imaging if pixel_size_pm is None else fixed_pixel_size(imaging, pixel_size_pm)
    best = np.inf
    for count in draws:
        drawn = [draw(policy, rng) for _ in range(count)]
        made_nf = np.concatenate([_simulated(one, rng, pixel_size_pm) for one in drawn])
        far_n = distances(seen_f, made_nf, _spread(made_nf))
        order = np.argsort(far_n, kind="stable")[:keep]
        best = min(best, float(far_n[order[0]]))
        policy = _spanned(policy, [drawn[index] for index in order])
    return Inferred(policy.model_copy(update={"id": "inferred"}), best, sum(draws))


def draw(policy: Policy, rng: np.random.Generator) -> Policy:
    """Return the policy with one number in place of each range."""
    return _mapped(policy, lambda path, value: _number(policy, path, value, rng))


def fixed_pixel_size(policy: Policy, pixel_size_pm: float) -> Policy:
    """Return the policy at one known pixel size."""
    scan = policy.scan.model_copy(update={"pixel_size_pm": float(pixel_size_pm)})
    return policy.model_copy(update={"scan": scan})


def _number(policy: Policy, path: str, value: Any, rng: np.random.Generator) -> Any:
    if not isinstance(value, Range):
        return value
    # Over orders of magnitude what counts is the ratio, as in the policies' own draws.
    if path.rsplit(".", 1)[-1] in policy.LOG_UNIFORM and value.low > 0:
        return float(np.exp(rng.uniform(np.log(value.low), np.log(value.high))))
    return float(rng.uniform(value.low, value.high))


def _spanned(policy: Policy, kept: Sequence[Policy]) -> Policy:
    """Return the policy with each range narrowed to what the kept draws span.

    A few draws span less than what they were drawn from, by one gap at each end on average; that
    is given back, so that a quantity the frames tell nothing about keeps its range.
    """
    found = [dict(one.quantities()) for one in kept]

    def narrowed(path: str, value: Any) -> Any:
        if not isinstance(value, Range):
            return value
        numbers = [float(one[path]) for one in found]  # type: ignore[arg-type]
        gap = (max(numbers) - min(numbers)) / max(len(numbers) - 1, 1)
        low, high = min(numbers) - gap, max(numbers) + gap
        return Range(low=max(low, value.low), high=min(high, value.high))

    return _mapped(policy, narrowed)


def _mapped(policy: Policy, change: Any) -> Policy:
    """Return a policy with `change(path, value)` in place of every quantity."""
    values = {path: change(path, value) for path, value in policy.quantities()}
    groups = {
        name: getattr(policy, name).model_copy(
            update={
                path.partition(".")[2]: value
                for path, value in values.items()
                if path.startswith(f"{name}.")
            }
        )
        for name in GROUPS
    }
    return policy.model_copy(update={**groups, "dose_e_per_a2": values["dose_e_per_a2"]})


def _simulated(one: Policy, rng: np.random.Generator, pixel_size_pm: float | None) -> np.ndarray:
    made = simulate(one, 1, seed=int(rng.integers(2**31)), shape=SHAPE)
    sizes = None if pixel_size_pm is None else made.pixel_size_pm
    return fingerprints(made.frames_nyx, sizes)


def _crops(frames_nyx: np.ndarray, pixel_size_pm: float | None) -> np.ndarray:
    """Return fingerprints of crops as large as the simulated frames: size must not tell."""
    rows, columns = (
        min(side, wanted) for side, wanted in zip(frames_nyx.shape[1:], SHAPE, strict=True)
    )
    found = [
        frame_yx[top : top + rows, left : left + columns]
        for frame_yx in frames_nyx
        for top in range(0, frame_yx.shape[0] - rows + 1, rows)
        for left in range(0, frame_yx.shape[1] - columns + 1, columns)
    ]
    return fingerprints(np.stack(found), pixel_size_pm)


def _spread(made_nf: np.ndarray) -> np.ndarray:
    """Return each feature's scatter over all draws, robustly; features that never vary get 1."""
    middle_f = np.median(made_nf, axis=0)
    scatter_f = 1.48 * np.median(np.abs(made_nf - middle_f), axis=0)
    return np.asarray(np.where(scatter_f > 1e-6, scatter_f, 1.0))

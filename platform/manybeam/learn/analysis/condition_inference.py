"""The condition of frames, inferred from the frames alone.

The method is approximate Bayesian computation. Conditions are drawn from a policy (the prior) and
one frame is simulated under each. A regression learns the quantities from the summaries of these
frames. The draws whose predicted quantities are nearest to those of the new frames are accepted,
each moved by the error of the regression there. Axis letters: n draw, c crop of a frame,
s number of a summary, q varied quantity, a accepted draw, y row, x column.

Source: Blum and Francois, Stat. Comput. 20, 63 (2010), regression adjustment; Fearnhead and
Prangle, J. R. Stat. Soc. B 74, 419 (2012), regressions as summaries. Errors are those of each
draw left out of the fit, so that the intervals hold for few draws as well; that is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manybeam.errors import InvalidFrame, InvalidInput, MissingPixelSize
from manybeam.learn.analysis.pixel_size import cell_of, infer_pixel_size
from manybeam.learn.analysis.regress import Regression, fit, square_distances, standardised
from manybeam.learn.analysis.summaries import summaries
from manybeam.spec import Condition, Policy, Range

SHAPE = (128, 128)  # of the frames simulated to compare with
LEAST_SIDE_PX = 48
MOST_CROPS = 24
DRAWS = 448
ACCEPTED_SHARE = 0.3  # of the draws: few enough to be local, enough for a tail of 5 %
LEAST_ACCEPTED = 20
NARROWED = 0.75  # width below which the frames determine a quantity
TAIL = 0.05  # on either side of a 90 % interval
GROUPS = ("sample", "optics", "detector", "scan", "state")
# Frames do not show the sign of these: the posterior is that of the magnitude.
MAGNITUDES = frozenset({"optics.defocus_nm", "scan.drift_pm_per_row"})


@dataclass(frozen=True)
class Posterior:
    """One quantity as inferred from frames, in its unit.

    Attributes:
        median: half of the accepted draws lie below.
        low: 5 % of the accepted draws lie below.
        high: 5 % of the accepted draws lie above.
        width: width of the 90 % interval, divided by that of the prior, on the scale (linear or
            logarithmic) of the draws; 1 means that the frames say nothing about the quantity.
        is_magnitude: the sign is unknown; median, low and high are those of the magnitude.
    """

    median: float
    low: float
    high: float
    width: float
    is_magnitude: bool = False

    @property
    def is_determined(self) -> bool:
        """Whether the frames narrow the interval of the prior by at least a quarter."""
        return self.width < NARROWED


@dataclass(frozen=True)
class Inferred:
    """A condition inferred from frames.

    Attributes:
        policy: the policy with each range narrowed to the 90 % interval of the posterior.
        distance: distance of the frames from the nearest draw, divided by the distance that 95 %
            of the draws have from theirs; above 1, the policy rarely produces such frames.
        draw_count: number of simulated frames.
        posterior: that of each quantity that was a range, by its dotted path.
    """

    policy: Policy
    distance: float
    draw_count: int
    posterior: Mapping[str, Posterior] = field(default_factory=dict)

    @property
    def condition(self) -> Condition:
        """The posterior medians as a condition of origin `inferred`; underfocus is assumed."""
        middle = {path: one.median for path, one in self.posterior.items()}
        numbers = _mapped(self.policy, lambda path, value: middle.get(path, value))
        return Condition.model_validate(numbers.model_dump() | {"origin": "inferred"})


def infer(
    frames_nyx: np.ndarray,
    pixel_size_pm: float | None,
    imaging: Policy,
    *,
    seed: int,
    draws: int = DRAWS,
    progress: Callable[[int, int], None] | None = None,
) -> Inferred:
    """Return the condition that frames were recorded under, within a policy.

    Args:
        frames_nyx: frames of one unknown condition, at least 48 px a side.
        pixel_size_pm: edge of their pixels, in pm; if None, it is inferred from a lattice, or
            searched within the policy's range.
        imaging: the policy to search in; its ranges are the prior.
        seed: of the draws.
        draws: number of simulated frames; 448 take 4 s on one core for graphene, 7 s for heavy
            atoms.
        progress: called with (frames simulated, all frames).

    Raises:
        InvalidInput: no frames.
        InvalidFrame: the frames are too small.
    """
    from manybeam.data.simulation.simulate import simulate  # needs torch, an analysis does not

    crops_cyx = crops(frames_nyx)
    rng = np.random.default_rng(seed)
    policy = _sized(imaging, frames_nyx, pixel_size_pm)
    drawn = [draw(policy, rng) for _ in range(draws)]
    shape = (crops_cyx.shape[1], crops_cyx.shape[2])
    made = []
    for done, one in enumerate(drawn, 1):
        made.append(simulate(one, 1, seed=int(rng.integers(2**31)), shape=shape).frames_nyx)
        if progress:
            progress(done, draws)
    made_nyx = np.concatenate(made)
    seen_cs, made_ns = standardised(
        summaries(crops_cyx, pixel_size_pm), summaries(made_nyx, pixel_size_pm)
    )
    posterior = _posterior(policy, imaging, drawn, made_ns, seen_cs)
    narrowed = _narrowed(policy, posterior).model_copy(update={"id": "inferred"})
    return Inferred(narrowed, _distance(seen_cs, made_ns), draws, posterior)


def draw(policy: Policy, rng: np.random.Generator) -> Policy:
    """Return the policy with one number in place of each range."""
    scales = _scales(policy)
    return _mapped(policy, lambda path, value: scales[path].draw(rng) if path in scales else value)


def fixed_pixel_size(policy: Policy, pixel_size_pm: float) -> Policy:
    """Return the policy at one known pixel size."""
    scan = policy.scan.model_copy(update={"pixel_size_pm": float(pixel_size_pm)})
    return policy.model_copy(update={"scan": scan})


def as_stated(policy: Policy, known: Mapping[str, float]) -> tuple[Policy, list[str]]:
    """Return the policy with stated quantities in place of the ranges that hold them.

    Args:
        policy: what is possible.
        known: stated quantities by their dotted path.

    Returns:
        The policy, and a sentence for each quantity: that it is fixed, or that it lies outside of
        the policy, which is then searched without it.
    """
    fixed, notes = dict(policy.quantities()), []
    for path in sorted(known):
        stated, allowed = known[path], fixed[path]
        low, high = (
            (allowed.low, allowed.high) if isinstance(allowed, Range) else (allowed, allowed)
        )
        if low is None or high is None or low <= stated <= high:
            fixed[path] = stated
            notes.append(f"{path} {stated:.6g} is stated: fixed")
        else:
            within = f"{low:g} to {high:g}" if low < high else f"{low:g}"
            notes.append(f"{path} {stated:.6g} is stated, which is outside {within} of {policy.id}")
    return _mapped(policy, lambda path, _: fixed[path]), notes


@dataclass(frozen=True)
class _Scale:
    """The scale a quantity is drawn on: from 0 to 1 over its range, by ratio or by difference."""

    low: float
    high: float
    is_log: bool
    is_magnitude: bool

    def draw(self, rng: np.random.Generator) -> float:
        if self.is_log:
            return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        return float(rng.uniform(self.low, self.high))

    def to_unit(self, value: float) -> float:
        if self.is_magnitude:
            return abs(value) / self._most
        if self.is_log:
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return (value - self.low) / max(self.high - self.low, 1e-300)

    def from_unit(self, unit: float) -> float:
        if self.is_magnitude:
            return unit * self._most
        if self.is_log:
            return float(np.clip(self.low * (self.high / self.low) ** unit, self.low, self.high))
        return float(np.clip(self.low + unit * (self.high - self.low), self.low, self.high))

    def posterior(self, unit_a: np.ndarray, prior: "_Scale") -> Posterior:
        low, middle, high = (
            self.from_unit(float(one)) for one in np.quantile(unit_a, [TAIL, 0.5, 1 - TAIL])
        )
        width = (prior.to_unit(high) - prior.to_unit(low)) / (1 - 2 * TAIL)
        return Posterior(middle, low, high, width, self.is_magnitude)

    @property
    def _most(self) -> float:
        return max(-self.low, self.high)


def _scales(policy: Policy) -> dict[str, _Scale]:
    """Return the scale of each quantity that is a range."""
    found = {}
    for path, value in policy.quantities():
        if isinstance(value, Range):
            name = path.rpartition(".")[2]
            is_log = name in policy.LOG_UNIFORM and value.low > 0
            is_magnitude = path in MAGNITUDES and value.low < 0 < value.high
            found[path] = _Scale(value.low, value.high, is_log, is_magnitude)
    return found


def _value(drawn: Policy, path: str) -> float:
    group, _, name = path.rpartition(".")
    return float(getattr(getattr(drawn, group) if group else drawn, name))


def _sized(policy: Policy, frames_nyx: np.ndarray, pixel_size_pm: float | None) -> Policy:
    """Return the policy at the known pixel size, or within three errors of that of a lattice."""
    if pixel_size_pm is not None:
        return fixed_pixel_size(policy, pixel_size_pm)
    searched = policy.scan.pixel_size_pm
    try:
        inferred = infer_pixel_size(frames_nyx[0], cell_of(policy.sample))
    except MissingPixelSize:
        return policy
    low, high = (inferred.pixel_size_pm + side * inferred.error_pm for side in (-3, 3))
    if not isinstance(searched, Range) or high <= searched.low or low >= searched.high:
        return policy
    near = Range(low=max(low, searched.low), high=min(high, searched.high))
    return policy.model_copy(
        update={"scan": policy.scan.model_copy(update={"pixel_size_pm": near})}
    )


def _posterior(
    policy: Policy,
    prior: Policy,
    drawn: Sequence[Policy],
    made_ns: np.ndarray,
    seen_cs: np.ndarray,
) -> dict[str, Posterior]:
    """Return the posterior of each range, from the draws that look like the frames."""
    scales, priors = _scales(policy), _scales(prior)
    if not scales:
        return {}
    rows = [[scale.to_unit(_value(d, path)) for path, scale in scales.items()] for d in drawn]
    unit_aq = _accepted(fit(made_ns, np.array(rows)), seen_cs)
    return {
        path: scale.posterior(unit_aq[:, q], priors[path])
        for q, (path, scale) in enumerate(scales.items())
    }


def _accepted(known: Regression, seen_cs: np.ndarray) -> np.ndarray:
    """Return the accepted draws (a, q): the prediction for the frames plus the error of each draw.

    Several crops are predicted one by one and averaged. The error is that of one crop, because the
    crops of a frame share its dirt and its scan.
    """
    guess_q = known.predict(seen_cs).mean(axis=0)
    weight_q = np.sqrt(known.explained_q) / np.maximum(known.fitted_nq.std(axis=0), 1e-9)
    step_nq = ((known.fitted_nq - guess_q) * weight_q) ** 2
    count = min(len(step_nq), max(LEAST_ACCEPTED, round(ACCEPTED_SHARE * len(step_nq))))
    found = []
    for q in range(len(guess_q)):
        # Neighbours in this quantity count more: errors grow towards the ends of its range.
        far_n = step_nq.sum(axis=1) + 3 * step_nq[:, q]
        near_a = np.argsort(far_n, kind="stable")[:count]
        found.append(np.clip(guess_q[q] + known.error_nq[near_a, q], 0, 1))
    return np.stack(found, axis=1)


def _distance(seen_cs: np.ndarray, made_ns: np.ndarray) -> float:
    """Return the distance of the frames from the nearest draw, divided by the usual distance.

    Usual is the distance that 95 % of the draws have from their nearest neighbour. If there are
    several crops, their median distance counts.
    """
    near_c = np.sqrt(square_distances(seen_cs, made_ns).min(axis=1))
    square_nn = square_distances(made_ns, made_ns)
    np.fill_diagonal(square_nn, np.inf)
    usual = float(np.quantile(np.sqrt(square_nn.min(axis=1)), 1 - TAIL)) if len(made_ns) > 1 else 1
    return float(np.median(near_c)) / max(usual, 1e-9)


def _narrowed(policy: Policy, posterior: Mapping[str, Posterior]) -> Policy:
    """Return the policy with each range narrowed to its 90 % interval, on both sides of zero."""

    def narrowed(path: str, value: Any) -> Any:
        if path not in posterior:
            return value
        one = posterior[path]
        low = max(-one.high, value.low) if one.is_magnitude else one.low
        return Range(low=low, high=min(one.high, value.high))

    return _mapped(policy, narrowed)


def _mapped(policy: Policy, change: Callable[[str, Any], Any]) -> Policy:
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


def crops(frames_nyx: np.ndarray) -> np.ndarray:
    """Return evenly chosen crops as large as the simulated frames, so that size has no effect."""
    if not len(frames_nyx):
        raise InvalidInput("no frames to infer a condition from", "at least one", "")
    if frames_nyx.ndim != 3 or min(frames_nyx.shape[1:]) < LEAST_SIDE_PX:
        raise InvalidFrame(
            f"frames of shape {frames_nyx.shape} are too small to infer a condition from",
            f"(frames, rows, columns), at least {LEAST_SIDE_PX} px a side",
            "give larger frames",
        )
    rows, columns = (min(n, most) for n, most in zip(frames_nyx.shape[1:], SHAPE, strict=True))
    places: Sequence[tuple[int, int, int]] = [
        (n, top, left)
        for n in range(len(frames_nyx))
        for top in range(0, frames_nyx.shape[1] - rows + 1, rows)
        for left in range(0, frames_nyx.shape[2] - columns + 1, columns)
    ]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST_CROPS)).astype(int))
    return np.stack(
        [frames_nyx[n, top : top + rows, left : left + columns]
         for n, top, left in (places[index] for index in chosen)]
    )  # fmt: skip

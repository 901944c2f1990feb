"""How soon is a drift found, and how often is there a false alarm?

    python tests/benchmarks/drift_watch.py

Simulated graphene. A session of a known condition wanders harmlessly (0.3 of a unit of distance of
`predictor.condition_distance`, ten frames at each place); the watch knows frames that wander a
third further. False alarms are counted on fresh frames, each seen once, with the exact interval of
a Poisson count. Detection: fresh frames of the new condition follow frames in control; streams of
one drift are drawn from one pool; a slow drift, over 50 frames, counts from the frame at which it
leaves what is harmless. The named conditions start from the nominal one; nothing was chosen on
them.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import chi2

from manybeam.data.simulation.simulate import simulate
from manybeam.data.simulation.typical import filled
from manybeam.learn.analysis.condition_inference import draw
from manybeam.predictor.condition_distance import DIFFERENCE_STEPS, RATIO_STEPS
from manybeam.predictor.stream.advice import WANDER, WATCHED_WANDER, wandering
from manybeam.predictor.stream.drift import Alarm, DriftWatch, frame_features
from manybeam.settings import settings
from manybeam.spec import Condition, Library, Policy

BLOCK = 10
LEAD = 20  # frames in control before a change
GOAL = 10  # frames to find it in
RAMP = 50  # frames a slow drift takes
SHAPE = (128, 128)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", type=int, default=400, help="frames to watch by")
    parser.add_argument("--fresh", type=int, default=4000, help="frames in control watched")
    parser.add_argument("--repeats", type=int, default=10, help="streams of each drift")
    parser.add_argument("--drawn", type=int, default=0, help="drawn conditions, not the named ones")
    words = parser.parse_args()
    start, busy = time.perf_counter(), time.process_time()
    library = Library(settings().zoo)
    for base, others in _cases(library, words.drawn):
        known = _session(base, words.known, 1, WATCHED_WANDER)
        fine = _session(base, words.fresh, 2)
        state = DriftWatch(known).state()
        _print_false_alarms(base, state, fine)
        print("\n| drift | frames to detection, median | 90 % | found within 10 | onset error |")
        print("|---|---|---|---|---|")
        for name, after in others.items():
            _print_drift(name, state, fine, _changed(after, words.repeats))
        for name, (ramp, left) in _ramps(base).items():
            _print_drift(name, state, fine, _slow(ramp, words.repeats), left)
    wall, busy = time.perf_counter() - start, time.process_time() - busy
    print(f"\n{wall:.0f} s ({busy:.0f} s of a core)")


def _cases(library: Library, drawn: int) -> Iterator[tuple[Condition, dict[str, Condition]]]:
    """Yield a known condition and those that it drifts to."""
    names = [one for one in library.conditions if one.startswith("graphene-60kv-")]
    if not drawn:
        nominal = library.conditions["graphene-60kv-nominal"]
        yield nominal, {n: library.conditions[n] for n in names if n != nominal.id}
    rng, policy = np.random.default_rng(2026), library.policies["graphene-general"]
    for _ in range(drawn):
        base, *rest = (_condition(draw(policy, rng)) for _ in range(5))
        yield base, {f"drawn {index}": one for index, one in enumerate(rest)}


def _condition(one: Policy) -> Condition:
    return Condition.model_validate(filled(one).model_dump() | {"origin": "simulated"})


def _features(imaging: Condition | Policy, count: int, seed: int) -> list[np.ndarray]:
    made = simulate(imaging, count, seed=seed, shape=SHAPE)
    return [
        frame_features(frame, float(size))
        for frame, size in zip(made.frames_nyx, made.pixel_size_pm, strict=True)
    ]


def _session(base: Condition, count: int, seed: int, share: float = WANDER) -> np.ndarray:
    rng, about = np.random.default_rng(seed), wandering(base, share)
    blocks = range(count // BLOCK)
    return np.concatenate(
        [_features(draw(about, rng), BLOCK, 10_000 * seed + block) for block in blocks]
    )


def _changed(after: Condition, repeats: int) -> list[list[np.ndarray]]:
    made = _features(after, 2 * repeats + 2 * GOAL, 50_000)
    rng = np.random.default_rng(3)
    return [[made[i] for i in rng.permutation(len(made))[: 2 * GOAL]] for _ in range(repeats)]


def _ramps(base: Condition) -> dict[str, tuple[list[Condition], int]]:
    """Return slow drifts, one condition a frame, and how many of these are still harmless."""
    numbers = {path: value for path, value in base.quantities() if isinstance(value, float)}
    dose, dirt = numbers["dose_e_per_a2"], numbers.get("state.contamination", 0.0)
    share = np.linspace(1 / RAMP, 1, RAMP)
    dirt_step = DIFFERENCE_STEPS["state.contamination"]
    return {
        "defocus 0 to 6 nm, slowly": (
            [_with(base, "optics", "defocus_nm", 6 * s) for s in share],
            int(RAMP * WANDER * DIFFERENCE_STEPS["optics.defocus_nm"] / 6),
        ),
        "contamination by 1.5, slowly": (
            [_with(base, "state", "contamination", dirt + 1.5 * s) for s in share],
            int(RAMP * WANDER * dirt_step / 1.5),
        ),
        "dose to a tenth, slowly": (
            [base.model_copy(update={"dose_e_per_a2": dose * 0.1**s}) for s in share],
            int(RAMP * WANDER * np.log10(RATIO_STEPS["dose_e_per_a2"])),
        ),
    }


def _with(base: Condition, group: str, name: str, value: float) -> Condition:
    changed = getattr(base, group).model_copy(update={name: float(value)})
    return base.model_copy(update={group: changed})


def _slow(ramp: Sequence[Condition], repeats: int) -> list[list[np.ndarray]]:
    return [
        [_features(one, 1, 60_000 + 100 * repeat + index)[0] for index, one in enumerate(ramp)]
        for repeat in range(min(repeats, 5))
    ]


def _resampled(fine: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    first = rng.integers(len(fine) // BLOCK, size=count // BLOCK) * BLOCK
    return np.asarray(fine[(first[:, None] + np.arange(BLOCK)).ravel()])


def _print_false_alarms(base: Condition, state: str, fine: np.ndarray) -> None:
    count, frames = len(_alarms(state, fine)), len(fine) / 1000
    low, high = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0, chi2.ppf(0.975, 2 * count + 2) / 2
    print(
        f"\nKnown: {base.id}, {base.dose_e_per_a2:.2g} e/A2, {base.scan.pixel_size_pm:.3g} pm: "
        f"{count} false alarms in {len(fine)} frames, {count / frames:.2f} in 1,000 "
        f"(95 %: {low / frames:.2f} to {high / frames:.2f})"
    )


def _alarms(state: str, rows: Sequence[np.ndarray] | np.ndarray) -> list[Alarm]:
    watch = DriftWatch.restore(state)
    return [alarm for row in rows if (alarm := watch.see(row)) is not None]


def _print_drift(
    name: str,
    state: str,
    fine: np.ndarray,
    streams: Sequence[Sequence[np.ndarray]],
    harmless: int = 0,
) -> None:
    rng, delays, onsets = np.random.default_rng(5), [], []
    for stream in streams:
        rows = [*_resampled(fine, LEAD, rng), *stream]
        first = LEAD + harmless
        alarm = next((one for one in _alarms(state, rows) if one.frame >= LEAD), None)
        delays.append(max(alarm.frame - first + 1, 0) if alarm else np.inf)
        onsets += [alarm.since - first] if alarm else []
    median, most = np.quantile(delays, [0.5, 0.9], method="inverted_cdf")
    share = np.mean(np.array(delays) <= GOAL)
    onset = f"{np.median(onsets):+.0f}" if onsets else "-"
    print(f"| {name} | {_told(median)} | {_told(most)} | {share:.0%} | {onset} |")


def _told(delay: float) -> str:
    return f"{delay:.0f}" if np.isfinite(delay) else "not found"


if __name__ == "__main__":
    main()

"""How soon is a drift found, and how often is there a false alarm?

    python tests/benchmarks/drift_watch.py
    python tests/benchmarks/drift_watch.py --session

Simulated graphene. A session of a known condition wanders harmlessly (0.3 of a unit of distance of
`predictor.condition_distance`, ten frames at each place); the watch knows frames that wander a
third further. False alarms are counted on fresh frames, each seen once, with the exact interval of
a Poisson count. Detection: fresh frames of the new condition follow frames in control; streams of
one drift are drawn from one pool; a slow drift, over 50 frames, counts from the frame at which it
leaves what is harmless. The named conditions start from the nominal one; nothing was chosen on
them. `--session` measures the watch of a session: by known frames, and by its first 60; and one
that is unlike the known frames from its start, which must tell of it once, and of what comes next.
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
from manybeam.predictor.stream.session_watch import LEARNT, SessionWatch, WatchChange
from manybeam.settings import settings
from manybeam.spec import Condition, Library, Policy

BLOCK = 10
LEAD = 20  # frames in control before a change
GOAL = 10  # frames to find it in
LEARNING = 5  # sessions that begin to learn
RAMP = 50  # frames a slow drift takes
SHAPE = (128, 128)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", type=int, default=400, help="frames to watch by")
    parser.add_argument("--fresh", type=int, default=4000, help="frames in control watched")
    parser.add_argument("--repeats", type=int, default=10, help="streams of each drift")
    parser.add_argument("--drawn", type=int, default=0, help="drawn conditions, not the named ones")
    parser.add_argument("--session", action="store_true", help="measure the watch of a session")
    parser.add_argument("--seed", type=int, default=0, help="of sessions; other ones, other frames")
    words = parser.parse_args()
    start, busy = time.perf_counter(), time.process_time()
    library = Library(settings().zoo)
    for base, others in _cases(library, words.drawn):
        if words.session:
            _print_session(base, others, words)
            continue
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
    print(
        f"\nKnown: {base.id}, {base.dose_e_per_a2:.2g} e/A2, {base.scan.pixel_size_pm:.3g} pm: "
        f"{_rate(_alarms(state, fine), len(fine))}"
    )


def _alarms(state: str, rows: Sequence[np.ndarray] | np.ndarray) -> list[Alarm]:
    watch = DriftWatch.restore(state)
    return [alarm for row in rows if (alarm := watch.see(row)) is not None]


# -- the watch of a session ---------------------------------------------------------------------
def _print_session(
    base: Condition, others: dict[str, Condition], words: argparse.Namespace
) -> None:
    known = DriftWatch(_session(base, words.known, words.seed + 1, WATCHED_WANDER))
    fine, first = (
        _session(base, words.fresh, words.seed + 2),
        _session(base, LEARNT, words.seed + 7),
    )
    learnt = SessionWatch()
    _changes(learnt, first)
    watches = {"known frames": SessionWatch(known), f"the first {LEARNT}": learnt}
    states = {name: watch.to_json() for name, watch in watches.items()}
    for name, state in states.items():
        print(f"\nBy {name}: {_rate(_told_of(known, state, fine), len(fine))}")
    count = words.fresh // LEARNING
    alarms = 0
    for number in range(LEARNING):
        rows = _session(base, count, words.seed + 20 + number)
        alarms += sum(one.is_drifted for one in _changes(SessionWatch(), rows))
    print(f"\n{LEARNING} sessions of {count} frames that learn from the first: {alarms} alarms")
    print("\n| drift | " + " | ".join(f"{one}: median, 90 %, within 10" for one in states) + " |")
    print("|---|" + "---|" * len(states))
    for name, after in others.items():
        streams = _changed(after, words.repeats)
        cells = [_delays(known, state, fine, streams) for state in states.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    _print_unlike(known, others, words.fresh // 4)


def _print_unlike(known: DriftWatch, others: dict[str, Condition], count: int) -> None:
    """Sessions of another condition: one alarm, then none, then one when it changes again."""
    print(f"\n| unlike the known | alarms in {count} frames | back | told of the next after |")
    print("|---|---|---|---|")
    names = list(others)[::4]
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        rows, more = _session(others[name], count, 8), _features(others[following], GOAL * 2, 9)
        watch = SessionWatch(known)
        told = _changes(watch, rows)
        drifts = [one for one in told if one.is_drifted]
        delay = next((k + 1 for k, row in enumerate(more) if watch.see(f"m{k}", row)), np.inf)
        print(
            f"| {name}, then {following} | {len(drifts)} | {len(told) - len(drifts)} "
            f"| {_told(delay)} |"
        )


def _told_of(known: DriftWatch, state: str, rows: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    watch = SessionWatch.restore(known, state)
    return [
        k for k, row in enumerate(rows) if (told := watch.see(f"f{k}", row)) and told.is_drifted
    ]


def _changes(watch: SessionWatch, rows: np.ndarray) -> list[WatchChange]:
    return [told for k, row in enumerate(rows) if (told := watch.see(f"s{k}", row)) is not None]


def _delays(
    known: DriftWatch, state: str, fine: np.ndarray, streams: Sequence[Sequence[np.ndarray]]
) -> str:
    rng, delays = np.random.default_rng(5), []
    for stream in streams:
        rows = [*_resampled(fine, LEAD, rng), *stream]
        found = [k for k in _told_of(known, state, rows) if k >= LEAD]
        delays.append(found[0] - LEAD + 1 if found else np.inf)
    median, most = np.quantile(delays, [0.5, 0.9], method="inverted_cdf")
    share = np.mean(np.array(delays) <= GOAL)
    return f"{_told(median)}, {_told(most)}, {share:.0%}"


def _rate(alarms: Sequence[object], frames: int) -> str:
    count, thousands = len(alarms), frames / 1000
    low, high = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0, chi2.ppf(0.975, 2 * count + 2) / 2
    return (
        f"{count} false alarms in {frames} frames, {count / thousands:.2f} in 1,000 "
        f"(95 %: {low / thousands:.2f} to {high / thousands:.2f})"
    )


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

"""Drift detectors of a library (river) beside `predictor.stream`, on streams of `drift_watch.py`.

river's detectors watch one number. They get the distance of a frame from the frames known to be in
control, in the same whitened directions as ours, and are told of a change by its rise. Each is run
with its own defaults, and tuned: of a grid, the most sensitive setting that keeps to 0.5 false
alarms in 1,000 frames on resampled held-out in-control frames, which is how our threshold is set.

river is no dependency of the project: `pip install river`, or a folder of it in PYTHONPATH.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from manybeam.predictor.stream.advice import WATCHED_WANDER
from manybeam.predictor.stream.drift import DriftWatch
from manybeam.predictor.stream.in_control import BLOCK, FALSE_ALARM_RATE, FOLDS, HELD_IN, fit
from manybeam.settings import settings
from manybeam.spec import Condition, Library

sys.path.append(str(Path(__file__).parent))  # so that pytest can read this file too
from drift_watch import (
    GOAL,
    LEAD,
    _cases,
    _changed,
    _ramps,
    _resampled,
    _session,
    _slow,
    _with,
)

STREAMS, STREAM_FRAMES = 40, 500  # resampled to tune on
Array = np.ndarray[Any, Any]
Make = Callable[[], Any]


class Watcher(Protocol):
    """Takes frames one at a time; says whether one raised an alarm."""

    def see(self, row_s: Array) -> bool:
        """Return whether this frame raised an alarm."""


class Ours:
    """`predictor.stream.drift.DriftWatch` as it is."""

    def __init__(self, state: str) -> None:
        self._watch = DriftWatch.restore(state)

    def see(self, row_s: Array) -> bool:
        """Return whether this frame raised an alarm."""
        return self._watch.see(row_s) is not None


class OfDistance:
    """A detector of one number, fed with frames' distances in scatters of those in control."""

    def __init__(
        self, make: Make, distance: Callable[[Array], float], before: Array, most: float
    ) -> None:
        self._detector, self._distance, self._most = make(), distance, most
        for value in before:  # in control: what the detector compares with
            self._detector.update(float(value))

    def see(self, row_s: Array) -> bool:
        """Return whether this frame raised an alarm."""
        self._detector.update(min(self._distance(row_s), self._most))
        return bool(self._detector.drift_detected)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", type=int, default=300, help="frames to watch by")
    parser.add_argument("--fresh", type=int, default=2000, help="frames in control watched")
    parser.add_argument("--repeats", type=int, default=5, help="streams of each drift")
    words = parser.parse_args()
    start, library = time.perf_counter(), Library(settings().zoo)
    base, others = next(_cases(library, 0))
    known, fine = _session(base, words.known, 1, WATCHED_WANDER), _session(base, words.fresh, 2)
    drifts = {
        "named conditions": {n: _changed(c, words.repeats) for n, c in others.items()},
        "medium": {n: _changed(c, words.repeats) for n, c in _medium(base).items()},
    }
    slow = [(_slow(ramp, words.repeats), left) for ramp, left in _ramps(base).values()]
    odd = [rows[0] for streams in drifts["named conditions"].values() for rows in streams]
    print(f"slow: {', '.join(_ramps(base))}; medium: {', '.join(drifts['medium'])}\n")
    print(
        "| detector | false alarms in 1,000 | single odd frames that raise one | "
        + "".join(f"{n}: found within 10, median | " for n in drifts)
        + "slow | us a frame |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, make in _watchers(known).items():
        _print(name, make, fine, odd, drifts, slow)
    print(f"\n{time.perf_counter() - start:.0f} s")


def _medium(base: Condition) -> dict[str, Condition]:
    """Return drifts about half as far as the named conditions, one quantity each."""
    scan, state = base.scan, base.state
    return {
        "defocus 3 nm": _with(base, "optics", "defocus_nm", 3.0),
        "astigmatism 3 nm": _with(base, "optics", "astigmatism_nm", 3.0),
        "source 90 pm": _with(base, "optics", "source_fwhm_pm", 90.0),
        "dose a third": base.model_copy(update={"dose_e_per_a2": base.dose_e_per_a2 / 3}),
        "contamination + 0.4": _with(
            base, "state", "contamination", float(state.contamination or 0) + 0.4
        ),
        "background + 0.4": _with(base, "state", "background", float(state.background or 0) + 0.4),
        "jitter + 16 pm": _with(base, "scan", "row_jitter_pm", float(scan.row_jitter_pm or 0) + 16),
        "gamma 1.35": _with(base, "detector", "gamma", 1.35),
    }


def _watchers(known_ns: Array) -> dict[str, Callable[[], Watcher]]:
    from river import drift

    held, distance = _distances(known_ns)
    most, before = float(np.quantile(np.concatenate(held), HELD_IN)), np.concatenate(held)[-100:]
    grids: dict[str, list[Make]] = {
        "ADWIN": [partial(drift.ADWIN, delta=10.0**-p, clock=1) for p in range(13)],
        "PageHinkley": [
            partial(drift.PageHinkley, delta=0.5, threshold=t, mode="up")
            for t in (2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 40)
        ],
        "KSWIN": [partial(_kswin, 10.0**-p) for p in np.arange(2, 12, 0.5)],
    }
    plain: dict[str, Make] = {"ADWIN": drift.ADWIN, "PageHinkley": drift.PageHinkley}
    found: dict[str, Callable[[], Watcher]] = {"ours": partial(Ours, DriftWatch(known_ns).state())}
    for name, make in plain.items():
        found[f"{name}, defaults"] = partial(OfDistance, make, distance, before, np.inf)
    for name, grid in grids.items():
        for words, limit in (("tuned", np.inf), ("tuned, distances held in", most)):
            kept = [np.minimum(one, limit) for one in held]
            first = np.minimum(before, limit)
            tuned = next((one for one in grid if _rate(one, kept, first) <= FALSE_ALARM_RATE), None)
            if tuned is not None:
                found[f"{name}, {words}"] = partial(OfDistance, tuned, distance, first, limit)
    return found


def _kswin(alpha: float) -> Any:
    from river import drift

    return drift.KSWIN(alpha=alpha, window_size=100, stat_size=GOAL, seed=1)


def _distances(known_ns: Array) -> tuple[list[Array], Callable[[Array], float]]:
    """Return the distances of in-control frames, and what gives that of another frame.

    Those in control are held against the others, block after block; all are in units of their
    scatter.
    """
    group_n, block_n = np.zeros(len(known_ns), int), np.arange(len(known_ns)) // BLOCK
    whole, far_n = fit(known_ns, group_n), np.empty(len(known_ns))
    for fold in range(FOLDS):
        out_n = block_n % FOLDS == fold
        rest = fit(known_ns[~out_n], group_n[~out_n])
        far_n[out_n] = rest.lengths(rest.residuals(known_ns[out_n])[1])
    middle, scatter = far_n.mean(), far_n.std()

    def distance(row_s: Array) -> float:
        return float((whole.lengths(whole.residuals(row_s[None])[1])[0] - middle) / scatter)

    return [(far_n[block_n == one] - middle) / scatter for one in np.unique(block_n)], distance


def _rate(make: Make, held: Sequence[Array], before: Array) -> float:
    """Return false alarms a frame on resampled in-control streams."""
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(STREAMS):
        detector = make()
        chosen = rng.integers(len(held), size=STREAM_FRAMES // BLOCK)
        for value in np.concatenate([before, *(held[i] for i in chosen)]):
            detector.update(float(value))
            alarms += bool(detector.drift_detected)
    return alarms / (STREAMS * STREAM_FRAMES)


def _print(
    name: str,
    make: Callable[[], Watcher],
    fine: Array,
    odd: Sequence[Array],
    drifts: dict[str, dict[str, list[list[Array]]]],
    slow: Sequence[tuple[list[list[Array]], int]],
) -> None:
    watcher, begun = make(), time.perf_counter()
    false = sum(watcher.see(row) for row in fine)
    per_frame_us = 1e6 * (time.perf_counter() - begun) / len(fine)
    cells = [f"{1000 * false / len(fine):.1f}", f"{_odd(make, fine, odd):.0%}"]
    for streams in drifts.values():
        medians = [_median(make, fine, one) for one in streams.values()]
        within = [median for median in medians if median <= GOAL]
        typical = f", {np.median(within):.0f}" if within else ""
        cells.append(f"{len(within)} of {len(medians)}{typical}")
    late = [_median(make, fine, streams, left) for streams, left in slow]
    cells.append(", ".join("-" if np.isinf(one) else f"{one:.0f}" for one in late))
    print(f"| {name} | {' | '.join(cells)} | {per_frame_us:.0f} |", flush=True)


def _odd(make: Callable[[], Watcher], fine: Array, odd: Sequence[Array]) -> float:
    """Return the share of single odd frames, among frames in control, that raise an alarm."""
    rng, raised = np.random.default_rng(9), 0
    for row in odd:
        watcher = make()
        rows = [*_resampled(fine, LEAD, rng), row, *_resampled(fine, GOAL, rng)]
        raised += any([watcher.see(one) for one in rows][LEAD:])
    return raised / len(odd)


def _median(
    make: Callable[[], Watcher], fine: Array, streams: Sequence[Sequence[Array]], harmless: int = 0
) -> float:
    """Return the median number of frames until a drift is found; infinite if it is not."""
    rng, delays = np.random.default_rng(5), []
    for stream in streams:
        watcher, first = make(), LEAD + harmless
        rows = [*_resampled(fine, LEAD, rng), *stream]
        alarms = [place for place, row in enumerate(rows) if watcher.see(row) and place >= LEAD]
        delays.append(max(alarms[0] - first + 1, 0) if alarms else np.inf)
    return float(np.quantile(delays, 0.5, method="inverted_cdf"))


if __name__ == "__main__":
    main()

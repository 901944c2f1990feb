"""Does inference of a condition know what it does not know? Checked on conditions that are known.

    python tests/benchmarks/condition_inference.py --count 30 --picture twins.png

Conditions are drawn from a policy, a frame is simulated under each, the condition is inferred from
the frame alone, and the truth is held against the 90 % interval. `width` is that of the interval
over the prior's: 1 says that frames do not tell the quantity. The picture shows frames beside
frames simulated under what was inferred from them.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.data.simulation.simulate import simulate
from manybeam.learn.analysis.condition_inference import MAGNITUDES, Inferred, draw, infer
from manybeam.settings import settings
from manybeam.spec import Library, Policy

Known = tuple[Policy, np.ndarray[Any, Any], Inferred]


def main() -> None:
    """Print one table a policy as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="*", default=["graphene-general", "pt-broad"])
    parser.add_argument("--count", type=int, default=30, help="conditions of each policy")
    parser.add_argument("--side-px", type=int, default=128)
    parser.add_argument("--with-pixel-size", action="store_true", help="as if the file told it")
    parser.add_argument("--picture", type=Path, default=None)
    words = parser.parse_args()
    library = Library(settings().zoo)
    for name in words.policies:
        start, busy = time.perf_counter(), time.process_time()
        known = _inferred(
            library.policies[name],
            words.count,
            words.side_px,
            with_pixel_size=words.with_pixel_size,
        )
        wall, busy = time.perf_counter() - start, time.process_time() - busy
        print(f"\n{name}: {words.count} conditions, one frame of {words.side_px} px each")
        print(f"{wall / words.count:.1f} s each ({busy / words.count:.1f} s of a core)\n")
        _print(known)
        if words.picture:
            _draw(known[:4], words.picture.with_stem(f"{words.picture.stem}-{name}"))


def _inferred(policy: Policy, count: int, side_px: int, *, with_pixel_size: bool) -> list[Known]:
    rng, found = np.random.default_rng(2026), []
    for index in range(count):
        true = draw(policy, rng)
        made = simulate(true, 1, seed=90_000 + index, shape=(side_px, side_px))
        size = float(made.pixel_size_pm[0]) if with_pixel_size else None
        found.append((true, made.frames_nyx, infer(made.frames_nyx, size, policy, seed=index)))
    return found


def _print(known: Sequence[Known]) -> None:
    print("| quantity | coverage of the 90 % interval | median error | width over prior's |")
    print("|---|---|---|---|")
    hits = []
    for path in known[0][2].posterior:
        pairs = [(_true(one, path), found.posterior[path]) for one, _, found in known]
        inside = [told.low <= true <= told.high for true, told in pairs]
        error = np.median([abs(told.median / true - 1) for true, told in pairs if true])
        width = np.median([told.width for _, told in pairs])
        hits += inside
        print(f"| {path} | {np.mean(inside):.2f} | {error:.0%} | {width:.2f} |")
    print(f"| all | {np.mean(hits):.3f} | | |")


def _true(one: Policy, path: str) -> float:
    value = float(dict(one.quantities())[path])  # type: ignore[arg-type]
    is_magnitude = path in MAGNITUDES
    return abs(value) if is_magnitude else value


def _draw(known: Sequence[Known], path: Path) -> None:
    """Write frames above their simulated twins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(known), 6.4))
    axes = figure.subplots(2, len(known))
    for column, (true, frames_nyx, found) in enumerate(known):
        twin = simulate(found.condition, 1, seed=column, shape=frames_nyx.shape[1:]).frames_nyx[0]
        for row, (frame, words) in enumerate(((frames_nyx[0], _words(true)),
                                              (twin, _words(found.condition)))):  # fmt: skip
            axes[row, column].imshow(frame, cmap="gray")
            axes[row, column].set_title(("frame" if row == 0 else "twin") + words, fontsize=7)
            axes[row, column].axis("off")
    figure.savefig(path, dpi=80)


def _words(one: Any) -> str:
    numbers = dict(one.quantities())
    dirt = numbers["state.contamination"] or 0.0
    return (
        f": {numbers['dose_e_per_a2']:.2g} e/A2, {numbers['scan.pixel_size_pm']:.1f} pm, "
        f"defocus {numbers['optics.defocus_nm']:.1f} nm\ndirt {dirt:.2f}, "
        f"background {numbers['state.background']:.2f}"
    )


if __name__ == "__main__":
    main()

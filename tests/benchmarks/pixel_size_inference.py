"""How well does a lattice tell the pixel size? Simulated frames of known size, then real ones.

    python tests/benchmarks/pixel_size_inference.py --frames ../shared/data/frames/mos2

`told`: share of frames an answer was given for; bias and spread are of answer over truth, robust;
`in 1` and `in 2`: share of truths within one and two of the errors stated (68 and 95 % wanted).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.data.io.reading import read_frames
from manybeam.data.simulation.simulate import simulate
from manybeam.errors import MissingPixelSize
from manybeam.learn.analysis.pixel_size import CELLS, infer_pixel_size
from manybeam.settings import settings
from manybeam.spec import Library

CONDITIONS = ("graphene-60kv-nominal", "graphene-60kv-lowdose", "graphene-60kv-dirty",
              "graphene-60kv-scan", "graphene-60kv-defocus")  # fmt: skip
SIZES_PM = (8.0, 12.0, 16.0, 20.0, 25.0, 30.0)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12, help="frames of each kind")
    parser.add_argument("--side-px", type=int, default=256)
    parser.add_argument("--frames", type=Path, help="real frames of MoS2, .npy with .json")
    words = parser.parse_args()
    library = Library(settings().zoo)
    print("| condition | pm | told | bias | spread | error stated | in 1 | in 2 | worst | ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in CONDITIONS:
        for size in SIZES_PM:
            known = library.condition(name)
            scan = known.scan.model_copy(update={"pixel_size_pm": size})
            condition = known.model_copy(update={"scan": scan})
            print(f"| {name} | {size:g} | {_row(condition, size, words)} |")
    for path in sorted(words.frames.glob("*.npy")) if words.frames else []:
        record = read_frames(path)
        told = infer_pixel_size(record.frame, CELLS["mos2"])
        print(f"{path.name}: {told}; the file says {record.pixel_size_pm:.3g}")


def _row(condition: Any, size_pm: float, words: argparse.Namespace) -> str:
    shape = (words.side_px, words.side_px)
    made = simulate(condition, words.count, seed=71, shape=shape)
    start, found = time.perf_counter(), []
    for frame_yx in made.frames_nyx:
        try:
            told = infer_pixel_size(frame_yx, CELLS["graphene"])
        except MissingPixelSize:
            continue
        found.append((told.pixel_size_pm / size_pm - 1, told.error_pm / size_pm))
    spent_ms = (time.perf_counter() - start) / words.count * 1000
    if not found:
        return f"0 % | | | | | | | {spent_ms:.0f}"
    off, error = np.array(found).T
    bias = np.median(off)
    numbers = (len(found) / words.count, bias, 1.4826 * np.median(np.abs(off - bias)),
               np.median(error), np.mean(np.abs(off) < error), np.mean(np.abs(off) < 2 * error),
               np.abs(off).max())  # fmt: skip
    forms = ("{:.0%}", "{:+.1%}", "{:.1%}", "{:.1%}", "{:.0%}", "{:.0%}", "{:.1%}")
    cells = [form.format(number) for form, number in zip(forms, numbers, strict=True)]
    return " | ".join([*cells, f"{spent_ms:.0f}"])


if __name__ == "__main__":
    main()

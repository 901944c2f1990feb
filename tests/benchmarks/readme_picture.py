"""The README's picture: the first picture of a demo's report, small enough to be checked in.

`make demo`, then `python tests/benchmarks/readme_picture.py`. Greys of the frame are reduced to 24
steps; the colours of the marks are kept.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from manybeam.zoo.reports.error_overlay import AT_EDGE, FALSE, MISSED, RIGHT

ROOT = Path(__file__).parents[2]
WIDTH_PX = 1100
GREYS, SHADES = 24, 5


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=ROOT / "manybeam-demo", help="its folder")
    parser.add_argument("--out", type=Path, default=ROOT / "platform/pictures/demo-frame.png")
    words = parser.parse_args()
    whole = Image.open(words.demo / "demo-frame.png").convert("RGB")
    height = round(whole.height * WIDTH_PX / whole.width)
    small = whole.resize((WIDTH_PX, height), Image.Resampling.LANCZOS)
    small.quantize(palette=_palette(), dither=Image.Dither.NONE).save(words.out, optimize=True)
    print(f"{words.out}: {words.out.stat().st_size / 1000:.0f} kB")


def _palette() -> Image.Image:
    """Return greys and the colours of the marks, also darker ones, as an image's palette."""
    greys = [(level, level, level) for level in np.linspace(0, 1, GREYS)]
    marks = np.array([to_rgb(colour) for colour in (RIGHT, MISSED, FALSE, AT_EDGE)])
    shades = [tuple(mark * level) for mark in marks for level in np.linspace(0.4, 1, SHADES)]
    colours = np.array([*greys, *shades])
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * colours).round().astype(np.uint8).ravel().tolist())
    return palette


if __name__ == "__main__":
    main()

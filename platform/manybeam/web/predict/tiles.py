"""Tiles of a frame and of its spread, for the viewer: a pyramid by means, drawn tile by tile.

Axis letters: y row, x column.
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manybeam.errors import NotFound

TILE_PX = 512
SAMPLE = 1 << 17  # pixels from which the percentiles of a frame are read
JPEG_QUALITY = 85
OPAQUE_FROM = 0.6  # share of the largest spread from which its layer is opaque
LEAST_TOP = 0.1  # spread at the end of the colours, if no spread is larger
Map = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pyramid:
    """A map at halved resolutions, smallest first; the last one is the map itself.

    Attributes:
        levels: each level has half the sides of the next, rounded up.
        sorted_: values of some of its pixels in order, for percentiles.
    """

    levels: tuple[Map, ...]
    sorted_: Map

    @classmethod
    def of(cls, map_yx: NDArray[Any]) -> "Pyramid":
        """Return the pyramid of a map: each pixel is the mean of four of the next level."""
        levels = [np.ascontiguousarray(map_yx, np.float32)]
        while max(levels[0].shape) > 1:
            levels.insert(0, _halved(levels[0]))
        step = math.isqrt(max(map_yx.size // SAMPLE, 1))
        return cls(tuple(levels), np.sort(levels[-1][::step, ::step], axis=None))

    def percentile(self, share: float) -> float:
        """Return the value below which so many percent of the pixels are."""
        last = len(self.sorted_) - 1
        return float(self.sorted_[round(last * min(max(share, 0.0), 100.0) / 100)])

    def tile(self, level: int, column: int, row: int) -> Map:
        """Return a part of a level, at most `TILE_PX` wide and high.

        Raises:
            NotFound: there is no such tile.
        """
        if 0 <= level < len(self.levels) and column >= 0 and row >= 0:
            top, left = row * TILE_PX, column * TILE_PX
            found = self.levels[level][top : top + TILE_PX, left : left + TILE_PX]
            if found.size:
                return found
        raise NotFound(
            f"there is no tile {column}_{row} on level {level}",
            f"levels are from 0 to {len(self.levels) - 1}",
            "reload the page",
        )


def _halved(map_yx: Map) -> Map:
    rows, columns = map_yx.shape
    even_yx = np.pad(map_yx, ((0, rows % 2), (0, columns % 2)), mode="edge")
    tall_yx = even_yx[0::2] + even_yx[1::2]
    halved: Map = (tall_yx[:, 0::2] + tall_yx[:, 1::2]) * np.float32(0.25)
    return halved


def frame_tile(tile_yx: Map, low: float, high: float, gamma: float) -> bytes:
    """Return a tile of a frame as JPEG.

    Args:
        tile_yx: its values.
        low: the value that is black.
        high: the value that is white.
        gamma: exponent of the grey values; below 1 is brighter.
    """
    grey_yx = np.clip((tile_yx - low) / max(high - low, 1e-30), 0, 1)
    if gamma != 1:
        grey_yx **= gamma
    file = io.BytesIO()
    Image.fromarray((grey_yx * 255 + 0.5).astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def spread_tile(tile_yx: Map, top: float) -> bytes:
    """Return a tile of a spread as PNG with a palette: viridis, transparent where it is 0."""
    index_yx = np.clip(tile_yx * (255 / top), 0, 255).astype(np.uint8)
    picture = Image.fromarray(index_yx)
    picture.putpalette(_palette())
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=_alpha(), compress_level=1)
    return file.getvalue()


def spread_top(pyramid: Pyramid) -> float:
    """Return the spread at the end of the colours."""
    return max(LEAST_TOP, float(pyramid.levels[-1].max()))


@lru_cache(maxsize=1)
def _palette() -> bytes:
    from matplotlib import colormaps

    return bytes(colormaps["viridis"](np.arange(256), bytes=True)[:, :3].tobytes())


@lru_cache(maxsize=1)
def _alpha() -> bytes:
    return np.clip(np.arange(256) / OPAQUE_FROM, 0, 255).astype(np.uint8).tobytes()

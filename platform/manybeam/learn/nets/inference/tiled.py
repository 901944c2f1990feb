"""Networks on a frame of any size: padded to sides that they can halve, and cut into tiles.

All tiles of a frame have one shape. They overlap by twice the reach of the network, so the middle
of each is what the network says of the whole frame. If its reach is unknown or large, tiles overlap
more and are blended.
Axis letters: m member, c kind of atom, y row, x column.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from manybeam.learn.nets.shapes import BANDPASS, reach_px, side_multiple
from manybeam.spec.recipe import Network

Map = NDArray[np.float32]
Stack = NDArray[np.float32]
Run = Callable[[Map], Stack]

TILE_PX = 1024  # side of a square with as many pixels as the largest tile: half a GB of 16 maps
BANDPASS_TILES = 4  # of these pixels that a band-pass may get: it needs an eighth of the memory
SMALLEST_PX = 32  # smaller frames are extended to this by reflection


@runtime_checkable
class KeepsMemory(Protocol):
    """A network that gives memory back after each tile, unless it shall keep it for the next."""

    def keeping_memory(self) -> AbstractContextManager[None]:
        """Keep the memory of tiles until the end of the block."""


def probabilities(
    networks: Sequence[Run],
    input_yx: Map,
    network: Network,
    tile_px: int,
    check: Callable[[], None] = lambda: None,
) -> Stack:
    """Return probabilities (m, c, y, x) of one whole frame, computed in tiles if it is large.

    Args:
        networks: give the probabilities (c, y, x) of a tile; all have the same shape.
        input_yx: the frame as the networks get it.
        network: their shape.
        tile_px: side of a square with as many pixels as the largest tile.
        check: called before each network and tile; what it raises ends the work.
    """
    shape = input_yx.shape
    padded_yx = _reflect(input_yx, _step(network))
    rows, columns = _layout(padded_yx.shape, network, tile_px)
    whole = (len(networks), network.classes, *padded_yx.shape)
    if len(rows) == len(columns) == 1:
        prob_mcyx = np.empty(whole, np.float32)
        for place, run in enumerate(networks):
            check()
            prob_mcyx[place] = run(padded_yx)
    else:
        prob_mcyx = np.zeros(whole, np.float32)
        for sum_cyx, run in zip(prob_mcyx, networks, strict=True):
            with run.keeping_memory() if isinstance(run, KeepsMemory) else nullcontext():
                for row in rows:
                    for column in columns:
                        check()
                        part_cyx = run(padded_yx[row.tile, column.tile])
                        part_cyx = part_cyx[:, row.used, column.used]
                        weight_yx = row.weight[:, None] * column.weight
                        sum_cyx[:, row.placed, column.placed] += part_cyx * weight_yx
        np.clip(prob_mcyx, 0, 1, out=prob_mcyx)
    return prob_mcyx[..., : shape[0], : shape[1]]


def _step(network: Network) -> int:
    """Return the number that divides where tiles begin and their sides, so that poolings agree."""
    return max(side_multiple(network), 2)


def _reflect(input_yx: Map, step: int) -> Map:
    """Return the frame, reflected at its far edges so that its sides are multiples of `step`."""
    sides = [max(SMALLEST_PX, side) for side in input_yx.shape]
    missing = [
        (0, -(-wanted // step) * step - side)
        for wanted, side in zip(sides, input_yx.shape, strict=True)
    ]
    return np.pad(input_yx, missing, mode="reflect") if np.any(missing) else input_yx


def around(
    window: tuple[slice, slice], shape: tuple[int, ...], scale: float, network: Network, border: int
) -> tuple[slice, slice]:
    """Return the part of a frame on which networks say the same of a window as on the whole.

    Args:
        window: rows and columns, in pixels of the recorded frame.
        shape: of the frame as the networks get it.
        scale: its pixels for each recorded pixel.
        network: their shape.
        border: pixels around the window on which they shall say the same too.
    """
    reach = reach_px(network)
    if reach is None:
        return slice(0, shape[0]), slice(0, shape[1])
    step, more = _step(network), border + reach
    starts, stops = [], []
    for part, side in zip(window, shape, strict=False):
        start = max(int(part.start * scale) - more, 0)
        starts.append(start // step * step)  # so that poolings agree
        stops.append(min(int(np.ceil(part.stop * scale)) + more, side))
    return slice(starts[0], stops[0]), slice(starts[1], stops[1])


@dataclass(frozen=True)
class _Span:
    """Where a tile lies along one side, and what is used of its answer.

    Attributes:
        tile: the tile.
        placed: the part of the side that gets its answer.
        weight: of the tile there; the weights of all tiles add up to 1.
    """

    tile: slice
    placed: slice
    weight: Map

    @property
    def used(self) -> slice:
        """The part of the tile that is used."""
        return slice(self.placed.start - self.tile.start, self.placed.stop - self.tile.start)


@dataclass(frozen=True)
class _Overlap:
    """How much tiles overlap along a side, in pixels.

    Attributes:
        least: multiple of `step`.
        blended: width over which the weight moves from one tile to the next.
        step: divides starts and sides of tiles.
    """

    least: int
    blended: int
    step: int

    @classmethod
    def of(cls, network: Network, tile_px: int) -> "_Overlap":
        """Return that of a network.

        Up to a quarter of a tile it is twice the reach. Else it is three margins: more than one at
        a cut edge is not used, and half of one in the middle is blended.
        """
        step, reach = _step(network), reach_px(network)
        if reach is not None and reach <= tile_px // 4:
            return cls(_up(2 * reach, step), 0, step)
        margin = max(32, 16 << (network.levels - 1))
        return cls(_up(3 * margin, step), margin // 2, step)

    def side(self, length: int, count: int) -> int:
        """Return the side of so many equal tiles that cover a length."""
        return _up(-(-(length + self.least * (count - 1)) // count), self.step)

    def count(self, length: int, side: int) -> int:
        """Return how many equal tiles cover a length, if none is larger than `side`."""
        if length <= side:
            return 1
        free = max(_down(side, self.step) - self.least, 1)
        return max(-(-(length - self.least) // free), 1)

    def largest(self, length: int, count: int) -> int:
        """Return the largest side of so many tiles with which at most two are blended anywhere."""
        return length - (count - 1) * _up(max(self.blended, 1), self.step)

    def spans(self, length: int, count: int, side: int) -> list[_Span]:
        """Return so many tiles of one side that cover a length, spread evenly."""
        free, half = (length - side) // self.step, self.blended // 2
        starts = [free * place // max(count - 1, 1) * self.step for place in range(count)]
        middles = [(start + before + side) // 2 for before, start in pairwise(starts)]
        firsts = [0, *(middle - half for middle in middles)]
        lasts = [*(middle + half for middle in middles), length]
        ramp = (np.arange(2 * half, dtype=np.float32) + 0.5) / (2 * half or 1)
        spans = []
        for start, first, last in zip(starts, firsts, lasts, strict=True):
            weight = np.ones(last - first, np.float32)
            if first > 0:
                weight[: len(ramp)] *= ramp
            if last < length:
                weight[len(weight) - len(ramp) :] *= ramp[::-1]
            spans.append(_Span(slice(start, start + side), slice(first, last), weight))
        return spans


def _layout(
    shape: tuple[int, ...], network: Network, tile_px: int
) -> tuple[list[_Span], list[_Span]]:
    """Return rows and columns of tiles of one shape, so that networks see the fewest pixels.

    No tile has more pixels than a square of `tile_px`, or of four thirds of the overlap if that is
    larger; that of a band-pass has four times as many. If the whole tile has an effect on each
    pixel, as with a norm over it, tiles are made as large as that allows.
    """
    overlap = _Overlap.of(network, tile_px)
    side = _down(max(tile_px, overlap.least * 4 // 3), overlap.step)
    most = side**2 * (BANDPASS_TILES if network.name == BANDPASS else 1)
    height, width = shape
    found = []
    for rows in range(1, 2 * overlap.count(height, side) + 1):
        tall = overlap.side(height, rows)
        columns = overlap.count(width, most // tall)
        wide = overlap.side(width, columns)
        tallest, widest = overlap.largest(height, rows), overlap.largest(width, columns)
        if tall <= tallest and wide <= widest and tall * wide <= most:
            found.append((rows * columns * tall * wide, rows, columns, tall, wide))
    _, rows, columns, tall, wide = min(found)
    if reach_px(network) is None:
        wide = min(overlap.largest(width, columns), _down(most // tall, overlap.step))
        tall = min(overlap.largest(height, rows), _down(most // wide, overlap.step))
    return overlap.spans(height, rows, tall), overlap.spans(width, columns, wide)


def _up(length: int, step: int) -> int:
    """Return the least multiple of `step` that is not smaller."""
    return -(-length // step) * step


def _down(length: int, step: int) -> int:
    """Return the greatest multiple of `step` that is not larger."""
    return length // step * step

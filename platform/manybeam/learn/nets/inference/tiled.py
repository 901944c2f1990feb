"""Networks on a frame of any size: padded to sides that they can halve, and cut into tiles.

Axis letters: m member, c kind of atom, y row, x column.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from manybeam.learn.nets.shapes import is_local, side_multiple
from manybeam.spec.recipe import Network

Map = NDArray[np.float32]
Stack = NDArray[np.float32]
Span = tuple[int, int, Map]
Run = Callable[[Map], Stack]

TILE_PX = 1024  # largest side of a tile: half a GB for 16 feature maps
SMALLEST_PX = 32  # smaller frames are extended to this by reflection


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
        tile_px: largest side of a tile.
        check: called before each network and tile; what it raises ends the work.
    """
    shape = input_yx.shape
    step = max(side_multiple(network), 2)
    padded_yx = _reflect(input_yx, step)
    margin = _margin(network)
    tile = max(tile_px, 4 * margin) // step * step
    rows, columns = (_spans(side, tile, margin, step) for side in padded_yx.shape)
    whole = (len(networks), network.classes, *padded_yx.shape)
    if len(rows) == len(columns) == 1:
        prob_mcyx = np.empty(whole, np.float32)
        for place, run in enumerate(networks):
            check()
            prob_mcyx[place] = run(padded_yx)
    else:
        prob_mcyx = np.zeros(whole, np.float32)
        for top, bottom, weight_y in rows:
            for left, right, weight_x in columns:
                for sum_cyx, run in zip(prob_mcyx, networks, strict=True):
                    check()
                    part_cyx = run(padded_yx[top:bottom, left:right])
                    part_cyx *= weight_y[:, None] * weight_x
                    sum_cyx[:, top:bottom, left:right] += part_cyx
        np.clip(prob_mcyx, 0, 1, out=prob_mcyx)
    return prob_mcyx[..., : shape[0], : shape[1]]


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
    if not is_local(network):
        return slice(0, shape[0]), slice(0, shape[1])
    step, more = max(side_multiple(network), 2), border + _reach(network)
    starts, stops = [], []
    for part, side in zip(window, shape, strict=False):
        start = max(int(part.start * scale) - more, 0)
        starts.append(start // step * step)  # so that poolings agree
        stops.append(min(int(np.ceil(part.stop * scale)) + more, side))
    return slice(starts[0], stops[0]), slice(starts[1], stops[1])


def _margin(network: Network) -> int:
    """Return the reach of the effect of a cut edge, in pixels: about twice that of our U-Net."""
    return max(32, 16 << (network.levels - 1))


def _reach(network: Network) -> int:
    """Return the pixels beyond which a cut edge has no effect at all, or a few more."""
    return 8 << (network.levels - 1) if network.name == "unet" else _margin(network)


def _spans(side: int, tile: int, margin: int, step: int) -> list[Span]:
    """Return start, end and blending weights of the tiles along one side; weights add up to 1.

    Tiles overlap by three margins. The margin at each cut edge has weight 0, and over the middle
    margin the weight moves from one tile to the next. All tiles start at multiples of `step`, so
    that their poolings agree.
    """
    if side <= tile:
        return [(0, side, np.ones(side, np.float32))]
    stride = (tile - 3 * margin) // step * step
    starts = [*range(0, side - tile, stride), side - tile]
    from_edge = (np.arange(tile) + 0.5 - margin) / margin
    ramp = np.clip(from_edge, 0, 1)
    raw = [
        np.minimum(ramp if start else 1.0, ramp[::-1] if start + tile < side else 1.0)
        * np.ones(tile)
        for start in starts
    ]
    total = np.zeros(side)
    for start, weight in zip(starts, raw, strict=True):
        total[start : start + tile] += weight
    return [
        (start, start + tile, (weight / total[start : start + tile]).astype(np.float32))
        for start, weight in zip(starts, raw, strict=True)
    ]

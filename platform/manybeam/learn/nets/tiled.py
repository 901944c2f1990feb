"""One network on a frame of any size, as fast as possible without a change of the result.

Axis letters: c kind of atom, y row, x column.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from manybeam.learn.nets.networks import side_multiple
from manybeam.spec.recipe import Recipe

Map = NDArray[np.float32]
Stack = NDArray[np.float32]
Span = tuple[int, int, Map]

TILE_PX = 1024  # largest side of a tile: half a GB for 16 feature maps
SMALLEST_PX = 32  # smaller frames are extended to this by reflection


def prepare(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network, prepared for fast inference with the same result."""
    network = network.to(device).eval().requires_grad_(requires_grad=False)
    _fold_batch_norm(network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _fold_batch_norm(network: nn.Module) -> None:
    """Fold each batch norm into the convolution directly before it, in place."""
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for place in range(len(module) - 1):
            first, second = module[place], module[place + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[place] = fuse_conv_bn_eval(first, second)
                module[place + 1] = nn.Identity()


def probabilities(
    network: nn.Module, input_yx: Map, recipe: Recipe, tile_px: int, device: torch.device
) -> Stack:
    """Return probabilities (kinds, y, x) of one whole frame, computed in tiles if it is large."""
    shape = input_yx.shape
    step = max(side_multiple(recipe.network), 2)
    padded_yx = _reflect(input_yx, step)
    margin = _margin(recipe)
    tile = max(tile_px, 4 * margin) // step * step
    rows, columns = (_spans(side, tile, margin, step) for side in padded_yx.shape)
    prob_cyx = np.zeros((recipe.network.classes, *padded_yx.shape), np.float32)
    for top, bottom, weight_y in rows:
        for left, right, weight_x in columns:
            part_cyx = _forward(network, padded_yx[top:bottom, left:right], device)
            part_cyx *= weight_y[:, None] * weight_x
            prob_cyx[:, top:bottom, left:right] += part_cyx
    return np.clip(prob_cyx[:, : shape[0], : shape[1]], 0, 1)


@torch.inference_mode()
def _forward(network: nn.Module, input_yx: Map, device: torch.device) -> Stack:
    batch = torch.from_numpy(np.ascontiguousarray(input_yx))[None, None].to(device)
    logits = network(batch.contiguous(memory_format=torch.channels_last))
    return np.ascontiguousarray(logits.float().sigmoid()[0].cpu().numpy())


def _reflect(input_yx: Map, step: int) -> Map:
    """Return the frame, reflected at its far edges so that its sides are multiples of `step`."""
    sides = [max(SMALLEST_PX, side) for side in input_yx.shape]
    missing = [
        (0, -(-wanted // step) * step - side)
        for wanted, side in zip(sides, input_yx.shape, strict=True)
    ]
    return np.pad(input_yx, missing, mode="reflect") if np.any(missing) else input_yx


def _margin(recipe: Recipe) -> int:
    """Return the reach of the effect of a cut edge, in pixels: about twice that of our U-Net."""
    return max(32, 16 << (recipe.network.levels - 1))


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

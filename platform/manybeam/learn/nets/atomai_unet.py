"""AtomAI's U-Net, written anew, for members that were trained with AtomAI.

Properties without a field in a recipe (layers of each block, how maps are enlarged, what a block
holds) are in the name of the network, as in `atomai1223bilinearNorm`.
Axis letters: n tile, c feature map or kind, y row, x column.

Source:
    Ziatdinov et al., Nat. Mach. Intell. 4, 1101 (2022), "AtomAI framework for deep learning
    analysis of image and spectroscopy data"; the network of version 0.8.1, none of its code.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from manybeam.learn.nets.shapes import LEVELS, Shape
from manybeam.spec.recipe import Network


class AtomAIUNet(nn.Module):
    """Encoder and decoder with skips; convolution, activation, batch norm in that order.

    Args:
        shape: properties from the name.
        network: `filters` of the first block, `classes` without the background, and `dropout` of
            the blocks around the deepest, which has twice as much.
    """

    def __init__(self, shape: Shape, network: Network) -> None:
        super().__init__()
        self.shape = shape
        widths = [network.filters * 2**level for level in range(LEVELS)]
        drops = [0.0, 0.0, network.dropout, min(2 * network.dropout, 0.9)]
        self.down = nn.ModuleList(
            _Block(
                before,
                after,
                count,
                dropout=drop,
                has_norm=shape.has_norm,
                is_dilated=shape.is_dilated and after == widths[-1],
            )
            for before, after, count, drop in zip(
                [1, *widths[:-1]], widths, shape.layers, drops, strict=True
            )
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.narrow = nn.ModuleList(nn.Conv2d(deep, wide, 1) for deep, wide in steps)
        self.up = nn.ModuleList(
            _Block(deep, wide, count, dropout=drop, has_norm=shape.has_norm)
            for (deep, wide), count, drop in zip(
                steps, shape.layers[-2::-1], drops[-2::-1], strict=True
            )
        )
        self.last = nn.Conv2d(widths[0], network.classes + shape.has_background, 1)
        self.offset = nn.Parameter(torch.zeros(network.classes))

    def forward(self, frames_ncyx: Tensor) -> Tensor:
        """Return logits (n, classes, y, x) of frames (n, 1, y, x); sides are multiples of 8."""
        features, skips = self.down[0](frames_ncyx), []
        for block in list(self.down)[1:]:
            skips.append(features)
            features = block(functional.max_pool2d(features, 2))
        for skip, narrow, block in zip(reversed(skips), self.narrow, self.up, strict=True):
            wide = functional.interpolate(features, scale_factor=2.0, mode=self.shape.enlarging)
            features = block(torch.cat([skip, narrow(wide)], dim=1))
        logits = cast(Tensor, self.last(features))
        if self.shape.has_background:
            logits = _against_all_others(logits)
        return logits + self.offset[:, None, None]


class _Block(nn.Module):
    """Convolutions, each followed by dropout, activation and batch norm if the network has them.

    A dilated block returns the sum of the outputs of all its parts, those of dropout too.
    """

    def __init__(
        self,
        before: int,
        after: int,
        count: int,
        *,
        dropout: float,
        has_norm: bool,
        is_dilated: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.is_dilated = dropout, is_dilated
        reach = [2 * (index + 1) if is_dilated else 1 for index in range(count)]
        self.conv = nn.ModuleList(
            nn.Conv2d(after if index else before, after, 3, padding=far, dilation=far)
            for index, far in enumerate(reach)
        )
        self.norm = nn.ModuleList(nn.BatchNorm2d(after) for _ in range(count) if has_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Return feature maps of the same sides."""
        parts: list[Tensor] = []
        for index, conv in enumerate(self.conv):
            parts.append(conv(features))
            if self.dropout > 0:
                parts.append(functional.dropout(parts[-1], self.dropout, self.training))
            parts.append(functional.leaky_relu(parts[-1], 0.01))
            if len(self.norm):
                parts.append(self.norm[index](parts[-1]))
            features = parts[-1]
        return torch.stack(parts).sum(0) if self.is_dilated else features


def _against_all_others(logits_ncyx: Tensor) -> Tensor:
    """Return logits whose sigmoids are the softmax of these, without those of the last channel."""
    channels = logits_ncyx.unbind(1)
    odds = [
        one - torch.stack(channels[:place] + channels[place + 1 :], dim=1).logsumexp(dim=1)
        for place, one in enumerate(channels[:-1])
    ]
    return torch.stack(odds, dim=1)

"""One network of torch on a tile, as fast as possible without a change of the result.

Axis letters: c kind of atom, y row, x column.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Map = NDArray[np.float32]
Stack = NDArray[np.float32]


class TorchNetwork:
    """A network prepared for inference; safe to use from several threads."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network, self._device = prepare(network, device), device

    @torch.inference_mode()
    def __call__(self, tile_yx: Map) -> Stack:
        """Return probabilities (c, y, x) of a tile, whose sides the network can halve."""
        batch = torch.from_numpy(np.ascontiguousarray(tile_yx))[None, None].to(self._device)
        logits = self._network(batch.contiguous(memory_format=torch.channels_last))
        return np.ascontiguousarray(logits.float().sigmoid()[0].cpu().numpy())


def prepare(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network, prepared for fast inference with the same result."""
    network = network.to(device).eval().requires_grad_(requires_grad=False)
    _fold_batch_norm(network)
    # Torch's types do not know this form of `to`.
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

"""Networks by name: our U-Net, the band-pass, AtomAI's, and MONAI's by class name.

Every network maps frames (n, 1, y, x) to logits (n, classes, y, x) of the same sides.
Axis letters: n tile, c feature map, y row, x column.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from manybeam.errors import InvalidSpec
from manybeam.learn.nets.atomai_unet import AtomAIUNet
from manybeam.learn.nets.bandpass import BandPass
from manybeam.learn.nets.shapes import BANDPASS, Shape
from manybeam.spec.recipe import Network


def build(network: Network) -> nn.Module:
    """Return an untrained network with weights drawn from torch's current generator.

    Args:
        network: that of the recipe; `name` is `unet`, `bandpass`, a name of
            `learn.nets.shapes.Shape`, or a class of `monai.networks.nets`.

    Raises:
        InvalidSpec: MONAI has no such class, or it cannot be built from the fields of `network`.
    """
    if network.name == "unet":
        return UNet(network)
    if network.name == BANDPASS:
        return BandPass(network)
    shape = Shape.of(network.name)
    return _build_monai(network) if shape is None else AtomAIUNet(shape, network)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def shifted(weights: Mapping[str, Tensor], by: float) -> dict[str, Tensor]:
    """Return the weights with every logit of their network raised by a constant."""
    bias = "head.bias" if "head.bias" in weights else "offset"
    return {**weights, bias: weights[bias] + by}


class UNet(nn.Module):
    """Encoder and decoder with skips; convolution, batch norm, activation in that order.

    In this order batch norm can be folded into the convolution exactly, so the convolution has no
    bias. On the way up a 1x1 convolution halves the feature maps *before* they are enlarged: the
    result is the same and it is four times cheaper there. The first level, where a convolution
    costs most, has one convolution on each side, the others have two.

    Source:
        Ronneberger et al., MICCAI 2015, "U-Net"; the changes above are ours.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        widths = [network.filters * 2**level for level in range(network.levels)]
        self.down = nn.ModuleList(
            _block(before, after, 1 if level == 0 else 2, network.dropout)
            for level, (before, after) in enumerate(zip([1, *widths], widths, strict=False))
        )
        pairs = list(zip(widths[1:], widths, strict=False))
        self.narrow = nn.ModuleList(nn.Conv2d(deep, wide, 1, bias=False) for deep, wide in pairs)
        self.up = nn.ModuleList(
            _block(2 * wide, wide, 1 if level == 0 else 2, network.dropout)
            for level, (_, wide) in enumerate(pairs)
        )
        self.head = nn.Conv2d(network.filters, network.classes, 1)

    def forward(self, frames_ncyx: Tensor) -> Tensor:
        """Return logits (n, classes, y, x) of frames (n, 1, y, x)."""
        features, skips = self.down[0](frames_ncyx), []
        for block in list(self.down)[1:]:
            skips.append(features)
            features = block(functional.max_pool2d(features, 2, ceil_mode=True))
        for skip, narrow, block in reversed(list(zip(skips, self.narrow, self.up, strict=True))):
            wide = _enlarge(narrow(features), skip)
            features = block(torch.cat([skip, wide], dim=1))
        return cast(Tensor, self.head(features))


def _block(before: int, after: int, count: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        maps = before if index == 0 else after
        layers.append(nn.Conv2d(maps, after, 3, padding=1, bias=False))
        layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(0.01, inplace=True))
    if dropout > 0:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


def _enlarge(features: Tensor, like: Tensor) -> Tensor:
    """Enlarge twofold and cut to the sides of the skip, which may be odd."""
    wide = functional.interpolate(features, scale_factor=2.0, mode="bilinear")
    return wide[..., : like.shape[-2], : like.shape[-1]]


def _build_monai(network: Network) -> nn.Module:
    kind = getattr(_monai_nets(), network.name, None)
    if not inspect.isclass(kind) or not issubclass(kind, nn.Module):
        raise InvalidSpec(
            f"network.name: {network.name!r} is not a network",
            "'unet', 'bandpass', or a class of monai.networks.nets such as UNet, AttentionUnet, "
            "SegResNet",
            "correct network.name in the recipe",
        )
    accepted = inspect.signature(kind).parameters
    given = {name: value for name, value in _monai_words(network).items() if name in accepted}
    missing = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in given
    ]
    if missing:
        raise InvalidSpec(
            f"network.name: {network.name!r} also needs {', '.join(missing)}",
            "only networks that filters, levels, classes and dropout describe completely",
            "use 'unet' or MONAI's UNet, AttentionUnet, BasicUNet or SegResNet",
        )
    return _Padded(kind(**given), network.classes)


def _monai_nets() -> object:
    from monai.networks import nets

    return nets


def _monai_words(network: Network) -> dict[str, object]:
    """Return our fields under each name that constructors of MONAI have for them."""
    widths = [network.filters * 2**level for level in range(network.levels)]
    # BasicUNet always has five levels and needs the width of its last layer too.
    five = [network.filters * 2 ** min(level, network.levels - 1) for level in range(5)]
    return {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": network.classes,
        "channels": widths,
        "strides": [2] * (network.levels - 1),
        "features": [*five, network.filters],
        "init_filters": network.filters,
        "dropout": network.dropout,
        "dropout_prob": network.dropout,
    }


class _Padded(nn.Module):
    """A MONAI network; its input is padded to sides it can halve, its output is cut back."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        self.offset = nn.Parameter(torch.zeros(classes))

    def forward(self, frames_ncyx: Tensor) -> Tensor:
        rows, columns = frames_ncyx.shape[-2:]
        pad = partial(functional.pad, mode="replicate")
        padded = pad(frames_ncyx, (0, -columns % 32, 0, -rows % 32))
        logits = cast(Tensor, self.network(padded))[..., :rows, :columns]
        return logits + self.offset[:, None, None]

"""What the name of a network says about it, without torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from manybeam.spec.recipe import Network

BANDPASS = "bandpass"  # the name of a band-pass, in a recipe
LEVELS = 4  # of AtomAI's networks
_NAME = re.compile(r"atomai([1-9]{4})(bilinear|nearest)(Norm)?(Dilated)?(Background)?")


@dataclass(frozen=True)
class Shape:
    """The properties of a U-Net of AtomAI, besides its feature maps and kinds.

    Attributes:
        layers: convolutions of a block on the way down; the same on the way up.
        enlarging: `bilinear` or `nearest`.
        has_norm: whether batch norm follows each activation.
        is_dilated: whether the deepest block is a cascade of dilated convolutions.
        has_background: whether the last channel, one more than there are kinds, means "no atom";
            the probabilities of all channels then add up to 1.

    Example:
        >>> Shape((1, 2, 2, 3), "bilinear", has_norm=True).name
        'atomai1223bilinearNorm'
        >>> Shape.of("atomai1223bilinearNorm").layers
        (1, 2, 2, 3)
    """

    layers: tuple[int, int, int, int]
    enlarging: str
    has_norm: bool
    is_dilated: bool = False
    has_background: bool = False

    @classmethod
    def of(cls, name: str) -> "Shape | None":
        """Return the shape in the name of a network; None if it is no such network."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        layers, enlarging, *flags = match.groups()
        first, second, third, deepest = (int(digit) for digit in layers)
        return cls(
            (first, second, third, deepest), enlarging, *(flag is not None for flag in flags)
        )

    @property
    def name(self) -> str:
        """The name of the network."""
        flags = {
            "Norm": self.has_norm,
            "Dilated": self.is_dilated,
            "Background": self.has_background,
        }
        words = "".join(word for word, is_set in flags.items() if is_set)
        return f"atomai{''.join(map(str, self.layers))}{self.enlarging}{words}"


def reach_px(network: Network) -> int | None:
    """Return how far from a pixel the frame has an effect on its answer, in pixels.

    Beyond it there is none at all, so an answer cut there is that of the whole frame.

    Returns:
        None if the whole frame has an effect, or nobody knows. The band-pass measures heights in
        the scatter of the whole frame, and MONAI's networks may normalise by its mean.

    Example:
        >>> [reach_px(Network(levels=levels)) for levels in (1, 2, 3, 4)]
        [1, 8, 24, 56]
        >>> reach_px(Network(name="bandpass"))
    """
    shape = Shape.of(network.name)
    if network.name == "unet":
        down = [1] + [2] * (network.levels - 1)
        return _farthest(down, down[:-1], is_bilinear=True)
    if shape is None:
        return None
    *upper, deepest = shape.layers
    dilated = deepest * (deepest + 1) if shape.is_dilated else deepest  # 2 + 4 + 6 ...
    return _farthest([*upper, dilated], upper, is_bilinear=shape.enlarging == "bilinear")


def _farthest(down: Sequence[int], up: Sequence[int], *, is_bilinear: bool) -> int:
    """Return how far the frame has an effect on some pixel of a U-Net's answer.

    From each pixel the way leads back through the deepest level, to the pixels that have an effect
    on it.

    Args:
        down: reach of the convolutions of each level on the way down, the frame's first.
        up: the same on the way up, the frame's first.
        is_bilinear: whether maps are enlarged by bilinear interpolation, else by repetition.
    """
    farthest, more = 0, int(is_bilinear)
    for pixel in range(2 ** len(up)):  # poolings begin anew after so many
        first = last = pixel
        for reach in up:
            first, last = (first - reach - more) // 2, (last + reach + more) // 2
        first, last = first - down[-1], last + down[-1]
        for reach in reversed(down[:-1]):
            first, last = 2 * first - reach, 2 * last + 1 + reach
        farthest = max(farthest, pixel - first, last - pixel)
    return farthest


def side_multiple(network: Network) -> int:
    """Return the number that divides the sides of a frame (our U-Net also accepts others)."""
    if network.name == "unet":
        return int(2 ** (network.levels - 1))
    if network.name == BANDPASS:
        return 1
    return 32 if Shape.of(network.name) is None else 2 ** (LEVELS - 1)

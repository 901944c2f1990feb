"""What the name of a network says about it, without torch."""

import re
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


def is_local(network: Network) -> bool:
    """Return whether each pixel of an answer depends on the frame around it only.

    The band-pass measures heights in the scatter of the whole frame, MONAI's networks may normalise
    by its mean, and dilated convolutions reach far.
    """
    shape = Shape.of(network.name)
    return network.name == "unet" or (shape is not None and not shape.is_dilated)


def side_multiple(network: Network) -> int:
    """Return the number that divides the sides of a frame (our U-Net also accepts others)."""
    if network.name == "unet":
        return int(2 ** (network.levels - 1))
    if network.name == BANDPASS:
        return 1
    return 32 if Shape.of(network.name) is None else 2 ** (LEVELS - 1)

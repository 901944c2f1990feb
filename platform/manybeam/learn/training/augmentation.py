"""Augmentation: changes to a batch of tiles, so that no member sees the same tile twice.

Each member has its generator; there is no global seed. So two members differ, and one member can be
trained again. The content of the *frames* (dose, defocus, dirt) is drawn earlier, by
`data.simulation.simulate` from the policy of the member.
Axis letters: n tile, y row, x column, k maps that share a tile's geometry (mask, weights).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Strength:
    """How much tiles of unit deviation are changed; with all zero, values do not change."""

    gamma: float = 0.3  # the exponent lies between exp(-gamma) and exp(gamma)
    gain: float = 0.2  # and likewise the contrast
    offset: float = 0.2
    noise: float = 0.25  # largest standard deviation added
    blur: float = 0.5  # largest share of a 3 x 3 binomial blur mixed in


def augment(
    tiles_nyx: Tensor, maps_knyx: Tensor, generator: Generator, strength: Strength | None = None
) -> tuple[Tensor, Tensor]:
    """Return the batch rotated, mirrored and with changed values, and its maps moved alike.

    Each tile draws other numbers. Rotations and mirrors are the eight of a square, exact on pixels.
    Values change by gamma, blur, noise, gain and offset, in the order of a microscope.

    Args:
        tiles_nyx: square tiles of about zero mean and unit deviation, float32.
        maps_knyx: masks or weights on the same pixels; only moved.
        generator: that of the member, on the CPU; advances by the same amount for equal shapes.
        strength: how much values change; the default suits simulated frames.
    """
    strength = strength or Strength()
    tiles_nyx, maps_knyx = turn(tiles_nyx, maps_knyx, generator)
    drawn = torch.rand((5, len(tiles_nyx), 1, 1), generator=generator)
    noise_nyx = torch.randn(tiles_nyx.shape, generator=generator)
    tiles_nyx = _bend(tiles_nyx, torch.exp(strength.gamma * (2 * drawn[0] - 1)))
    share = strength.blur * drawn[1]
    tiles_nyx = (1 - share) * tiles_nyx + share * _blur(tiles_nyx)
    # Squared, so that most tiles get little noise and a few get much.
    tiles_nyx = tiles_nyx + strength.noise * drawn[2].square() * noise_nyx
    gain = torch.exp(strength.gain * (2 * drawn[3] - 1))
    return gain * tiles_nyx + strength.offset * (2 * drawn[4] - 1), maps_knyx


def turn(tiles_nyx: Tensor, maps_knyx: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return each tile, and its maps, in one of the eight orientations of a square."""
    flags = torch.randint(0, 2, (3, len(tiles_nyx), 1, 1), generator=generator).bool()
    stack = torch.cat([tiles_nyx[None], maps_knyx.to(tiles_nyx.dtype)])
    stack = torch.where(flags[0], stack.flip(-1), stack)
    stack = torch.where(flags[1], stack.flip(-2), stack)
    stack = torch.where(flags[2], stack.transpose(-1, -2), stack)
    return stack[0], stack[1:]


def _bend(tiles_nyx: Tensor, exponent: Tensor) -> Tensor:
    """Apply gamma between the extremes of each tile, then restore its mean and deviation."""
    low, high = tiles_nyx.amin((1, 2), keepdim=True), tiles_nyx.amax((1, 2), keepdim=True)
    bent = ((tiles_nyx - low) / (high - low).clamp_min(1e-6)).clamp_min(1e-6).pow(exponent)
    mean, deviation = _moments(tiles_nyx)
    bent_mean, bent_deviation = _moments(bent)
    return (bent - bent_mean) / bent_deviation.clamp_min(1e-6) * deviation + mean


def _moments(tiles_nyx: Tensor) -> tuple[Tensor, Tensor]:
    deviation, mean = torch.std_mean(tiles_nyx, dim=(1, 2), keepdim=True, correction=0)
    return mean, deviation


def _blur(tiles_nyx: Tensor) -> Tensor:
    padded = functional.pad(tiles_nyx[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16

"""Pixel losses of a training, by the names a recipe uses.

Axis letters: n tile, c class, y row, x column.
"""

from torch import Tensor, ones_like
from torch.nn import functional

SMOOTH = 1.0  # keeps dice defined and smooth if a tile has no atom
FOCUS = 2.0  # exponent of the focal loss


def pixel_loss(
    name: str, logits_ncyx: Tensor, target_ncyx: Tensor, weight_n1yx: Tensor | None = None
) -> Tensor:
    """Return one loss of a batch, a scalar >= 0.

    Args:
        name: `bce`, `focal`, `dice` or `bce+dice`.
        logits_ncyx: output of the network.
        target_ncyx: 0 or 1, or between if a label is doubtful.
        weight_n1yx: weight of each pixel; 1 if left out.
    """
    if weight_n1yx is None:
        weight_ncyx = ones_like(logits_ncyx)
    else:
        weight_ncyx = weight_n1yx.expand_as(logits_ncyx)
    parts = {"bce": _cross_entropy, "focal": _focal, "dice": _dice}
    terms = [parts[part](logits_ncyx, target_ncyx, weight_ncyx) for part in name.split("+")]
    return sum(terms[1:], start=terms[0])


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean(entropy, weight)


def _focal(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy, smaller where the network is already right (Lin et al., ICCV 2017)."""
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    missed = target * (1 - probability) + (1 - target) * probability
    return _mean(missed**FOCUS * entropy, weight)


def _dice(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """One minus the overlap of each class over the whole batch (Milletari et al., 3DV 2016)."""
    probability = logits.sigmoid() * weight
    target = target * weight
    axes = (0, 2, 3)
    overlap = (probability * target).sum(axes)
    size = probability.sum(axes) + target.sum(axes)
    return 1 - ((2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value * weight).sum() / weight.sum().clamp_min(1e-6)

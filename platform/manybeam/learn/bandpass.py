"""A network of another kind: it sees what stands out of its surroundings, and nothing else.

A U-Net sees texture, and errs in ways of its own where texture is unlike what it was taught. This
is the classical detector (`learn.classical`) as a network: a difference of Gaussians in units of
its own scatter over the frame, and what such a height is worth. Its five numbers are fitted
(`learn.fitted`), not trained; then it is a member like any other.
Axis letters: n tile, y row, x column.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from manybeam.errors import InvalidSpec
from manybeam.learn.classical import FLAT
from manybeam.spec.recipe import Network

NAME = "bandpass"  # of the network, in a recipe
REACH = 4.0  # deviations of a Gaussian that its kernel reaches
WIDEST_PX = 64  # that a kernel may reach: smaller frames cannot be mirrored farther
TINY = 1e-12


class BandPass(nn.Module):
    """Logits from the height of a band-passed frame; it knows one kind of atom.

    Attributes:
        width_px: of the narrow Gaussian.
        ratio: width of the wide Gaussian per narrow one.
        window_px: width of the window in which a frame is evened out first; 0 for not at all.
        head: what a height is worth, in log-odds.
    """

    width_px: Tensor
    ratio: Tensor
    window_px: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        if network.classes != 1:
            raise InvalidSpec(
                f"network.name: {NAME} with {network.classes} classes",
                "it tells an atom from none, not kinds of atom",
                "give tiles.elements none, or take another network",
            )
        self.register_buffer("width_px", torch.tensor(2.0))
        self.register_buffer("ratio", torch.tensor(1.6))
        self.register_buffer("window_px", torch.tensor(0.0))
        self.head = nn.Conv2d(1, 1, 1)

    def forward(self, frames_ncyx: Tensor) -> Tensor:
        """Return logits (n, 1, y, x) of frames (n, 1, y, x)."""
        width, ratio, window = (float(one) for one in (self.width_px, self.ratio, self.window_px))
        even = _evened(frames_ncyx, window)
        band = _blurred(even, width) - _blurred(even, width * ratio)
        scatter = band.flatten(1).std(dim=1).clamp_min(TINY)
        return cast(Tensor, self.head(band / scatter[:, None, None, None]))


def _evened(frames_ncyx: Tensor, window: float) -> Tensor:
    """Return frames in local deviations from their local mean, as the classical detector does."""
    scatter = frames_ncyx.flatten(1).std(dim=1).clamp_min(TINY)[:, None, None, None]
    frames_ncyx = frames_ncyx / scatter
    if window <= 0:
        return frames_ncyx
    centred = frames_ncyx - _blurred(frames_ncyx, window)
    variance = _blurred(centred.square(), window)
    return centred / variance.clamp_min(FLAT**2).sqrt()


def _blurred(frames_ncyx: Tensor, width: float) -> Tensor:
    """Return frames (n, 1, y, x) blurred by a Gaussian, mirrored at their edges."""
    most = min(WIDEST_PX, *(side - 1 for side in frames_ncyx.shape[2:]))
    reach = min(int(REACH * width + 0.5), most)
    offset = torch.arange(-reach, reach + 1, dtype=frames_ncyx.dtype, device=frames_ncyx.device)
    kernel = torch.softmax(-0.5 * (offset / width).square(), dim=0)
    padded = functional.pad(frames_ncyx, (reach,) * 4, mode="reflect")
    return functional.conv2d(
        functional.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :]
    )

"""The band-pass network: the classical detector (`learn.scoring.classical`) as a network.

A U-Net uses texture and makes errors where texture differs from that of its training. This network
makes other errors. It is a difference of Gaussians in units of its scatter over the frame, and a
linear function from such heights to log-odds. Its five numbers are fitted
(`learn.training.fitted`), not trained. After that it is a member like any other.
Axis letters: n tile, y row, x column.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from manybeam.errors import InvalidSpec
from manybeam.learn.nets.shapes import BANDPASS
from manybeam.learn.scoring.classical import FLAT
from manybeam.spec.recipe import Network

REACH_PX, WINDOW_REACH_PX = 32, 96  # of the kernels: of the band, and of the window
MIRRORS = 4  # times that a side of 32 px is mirrored to fill the longest reach
TINY = 1e-12


class BandPass(nn.Module):
    """Logits from the height of a band-passed frame, for one kind of atom.

    Attributes:
        width_px: of the narrow Gaussian.
        ratio: width of the wide Gaussian divided by that of the narrow one.
        window_px: width of the window of local standardisation.
        head: log-odds of a height, a linear function.
    """

    width_px: Tensor
    ratio: Tensor
    window_px: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        if network.classes != 1:
            raise InvalidSpec(
                f"network.name: {BANDPASS!r} with {network.classes} classes",
                "this network has one class, because it cannot distinguish kinds of atom",
                "remove tiles.elements, or use another network",
            )
        self.register_buffer("width_px", torch.tensor(2.0))
        self.register_buffer("ratio", torch.tensor(1.6))
        self.register_buffer("window_px", torch.tensor(16.0))
        self.head = nn.Conv2d(1, 1, 1)

    def forward(self, frames_ncyx: Tensor) -> Tensor:
        """Return logits (n, 1, y, x) of frames (n, 1, y, x)."""
        even = _locally_standardised(frames_ncyx, self.window_px)
        narrow = _blurred(even, self.width_px, REACH_PX)
        band = narrow - _blurred(even, self.width_px * self.ratio, REACH_PX)
        return cast(Tensor, self.head(band / _scatter(band)))


def _locally_standardised(frames_ncyx: Tensor, window: Tensor) -> Tensor:
    """Return frames in local deviations from their local mean, as the classical detector does."""
    frames_ncyx = frames_ncyx / _scatter(frames_ncyx)
    centred = frames_ncyx - _blurred(frames_ncyx, window, WINDOW_REACH_PX)
    variance = _blurred(centred.square(), window, WINDOW_REACH_PX)
    return centred / variance.clamp_min(FLAT**2).sqrt()


def _scatter(frames_ncyx: Tensor) -> Tensor:
    return frames_ncyx.std(dim=(2, 3), keepdim=True).clamp_min(TINY)


def _blurred(frames_ncyx: Tensor, width: Tensor, reach: int) -> Tensor:
    """Return frames (n, 1, y, x) blurred by a Gaussian, mirrored at their edges."""
    offset = torch.arange(-reach, reach + 1, dtype=width.dtype, device=width.device)
    kernel = torch.softmax(-0.5 * (offset / width).square(), dim=0).to(frames_ncyx.dtype)
    rows, columns = (_mirrored(side, reach, width.device) for side in frames_ncyx.shape[2:])
    blurred = functional.conv2d(frames_ncyx[:, :, rows], kernel[None, None, :, None])
    return functional.conv2d(blurred[..., columns], kernel[None, None, None, :])


def _mirrored(side: int, reach: int, device: torch.device) -> Tensor:
    """Return the row, or column, at each position up to `reach` beyond the edges.

    It uses no remainder, because ONNX cannot express one for sides that vary.
    """
    last = side - 1
    place = torch.arange(-reach, side + reach, device=device)
    for _ in range(MIRRORS):
        place = last - (last - place.abs()).abs()
    return place.clamp(0, last)

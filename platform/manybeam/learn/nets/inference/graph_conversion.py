"""A network of torch made into a graph of OpenVINO with the same answers at every size."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manybeam.errors import WorkFailed
from manybeam.learn.nets.inference.runtime import core, hints, openvino
from manybeam.learn.nets.inference.tiled import SMALLEST_PX
from manybeam.learn.nets.inference.torch_network import prepare
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.shapes import side_multiple

TOLERANCE = 1e-5  # of a probability, between a graph and its network


def to_graph(member: Member) -> bytes:
    """Return the graph of a member, compiled.

    It maps a tile (1, 1, y, x) to probabilities (1, c, y, x) in float32.

    Raises:
        WorkFailed: the network cannot be a graph, or the graph gives other answers.
    """
    network = _Probabilities(prepare(member.network(), torch.device("cpu"))).eval()
    step = max(side_multiple(member.recipe.network), 2)
    least = -(-SMALLEST_PX // step) * step
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer, about lengths; `_check` sees them
            example = torch.rand(1, 1, least + step, least + 2 * step)
            traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch's lacks types
                network, example, check_trace=False
            )
            graph = openvino().convert_model(traced, input=[1, 1, -1, -1])
            compiled = core().compile_model(graph, "CPU", hints())
        _check(network, compiled, least, step)
        content: bytes = compiled.export_model().getvalue()
    except WorkFailed:
        raise
    except Exception as error:  # converters raise errors of many kinds
        raise WorkFailed(
            f"the network {member.recipe.network.name} cannot be compiled",
            str(error).strip().splitlines()[0][:300],
            "it answers without, more slowly",
        ) from error
    return content


class _Probabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tile_ncyx: Tensor) -> Tensor:
        return self.network(tile_ncyx).sigmoid()  # type: ignore[no-any-return]  # of a module


def _check(network: nn.Module, compiled: Any, least: int, step: int) -> None:
    """Refuse a graph that differs from its network at some size."""
    for shape in ((1, 1, least, least), (1, 1, least + step, least + 3 * step)):
        tile_ncyx = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(tile_ncyx)).numpy()
        far = float(np.abs(compiled(tile_ncyx)[0] - expected).max())
        if not far <= TOLERANCE:
            raise WorkFailed(
                f"the compiled network differs by {far:.2g} at {shape[2:]} px",
                f"at most {TOLERANCE:g} in probability",
                "it answers without, more slowly",
            )

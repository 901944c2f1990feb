"""The networks of an ensemble, ready to run: compiled for the CPU, or of torch on any device."""

import sys
from collections.abc import Sequence
from pathlib import Path

from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.tiled import Run
from manybeam.learn.nets.member import Member

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))  # of Linux


class Engine:
    """Networks of members in their order; safe to use from several threads.

    Args:
        members: the members.
        device: `cpu` or `cuda`; the GPU if there is one, else the CPU.
        graphs: compiled networks of this machine, for the CPU; None to use torch.

    Attributes:
        networks: what gives the probabilities (c, y, x) of a tile, for each member.
        device: where they run: `cpu`, `cpu, compiled`, `cpu, compiled, bf16` or `cuda`.
    """

    def __init__(
        self, members: Sequence[Member], device: str | None, graphs: Graphs | None
    ) -> None:
        self.device = device or _usual_device()
        compiled = graphs.networks(members) if graphs and self.device == "cpu" else None
        if graphs and compiled:
            self.device = "cpu, compiled" + (", bf16" if graphs.precision == "bf16" else "")
        self.networks: tuple[Run, ...] = compiled or tuple(map(self._torch, members))

    def part(self, places: Sequence[int]) -> "Engine":
        """Return the networks of some of the members."""
        part = Engine.__new__(Engine)
        part.device = self.device
        part.networks = tuple(self.networks[place] for place in places)
        return part

    def _torch(self, member: Member) -> Run:
        import torch

        from manybeam.learn.nets.inference.torch_network import TorchNetwork

        return TorchNetwork(member.network(), torch.device(self.device))


def compile_ahead(members: Sequence[Member]) -> None:
    """Compile networks once, before many processes of this machine do so, if they will need it."""
    if _usual_device() == "cpu":
        Graphs.here().networks(members)


def _usual_device() -> str:
    """Return the GPU if there is one; torch is not imported where there is no driver of one."""
    if sys.platform == "linux" and not any(path.exists() for path in GPU_DRIVERS):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

"""The networks of an ensemble, ready to run: compiled for the CPU, or of torch on any device."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from manybeam.errors import ManybeamError
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.tiled import Run
from manybeam.learn.nets.member import Member

logger = logging.getLogger(__name__)

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


class Engine:
    """Networks of members in their order; safe to use from several threads.

    Args:
        members: the members.
        device: `cpu`, `cuda`; the GPU if there is one, else the CPU.
        graphs: compiled networks of this machine; None to use torch.

    Attributes:
        networks: what gives the probabilities (c, y, x) of a tile, for each member.
    """

    def __init__(
        self, members: Sequence[Member], device: str | None, graphs: Graphs | None
    ) -> None:
        self._members, self._device = tuple(members), device or _usual_device()
        self._graphs = graphs if self._device == "cpu" else None
        self.networks: tuple[Run, ...] = tuple(map(self._load, self._members))

    @property
    def device(self) -> str:
        """Where the networks run, as `cpu`, `cpu, compiled` or `cuda`."""
        if self._graphs is not None and all(map(self._graphs.has, self._members)):
            return f"{self._device}, compiled"
        return self._device

    def part(self, places: Sequence[int]) -> "Engine":
        """Return the networks of some of the members."""
        part = Engine.__new__(Engine)
        part._members = tuple(self._members[place] for place in places)
        part._device, part._graphs = self._device, self._graphs
        part.networks = tuple(self.networks[place] for place in places)
        return part

    def compile(self) -> None:
        """Compile what is not compiled yet; what cannot be compiled goes on with torch."""
        if self._graphs is None or all(map(self._graphs.has, self._members)):
            return
        for member in self._members:
            try:
                self._graphs.make([member])
            except ManybeamError as error:
                logger.warning("member %02d is not compiled: %s", member.index, error)
        self.networks = tuple(map(self._load, self._members))

    def _load(self, member: Member) -> Run:
        if self._graphs is not None and self._graphs.has(member):
            return self._graphs.network(member)
        import torch

        from manybeam.learn.nets.inference.torch_network import TorchNetwork

        return TorchNetwork(member.network(), torch.device(self._device))


def _usual_device() -> str:
    """Return the GPU if there is one; torch is not imported where there is no driver of one."""
    if "torch" not in sys.modules and not any(path.exists() for path in GPU_DRIVERS):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

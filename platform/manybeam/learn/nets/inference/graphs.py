"""Networks as graphs of OpenVINO: on a CPU faster than torch (decision 0034), and without it.

A graph is made once from a network and kept on this machine; its name is the digest of all that
decides it. It answers tiles of any size. Every member has its own: one graph of all members is not
faster, and could not answer for some of them.

Axis letters: c kind of atom, y row, x column.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.disk import write_files
from manybeam.errors import ManybeamError, WorkFailed
from manybeam.learn.nets.inference.runtime import core, has_bf16, hints, openvino
from manybeam.learn.nets.member import Member
from manybeam.settings import settings

logger = logging.getLogger(__name__)

GRAPH = 1  # raised if the same network gives another graph than before
MOST_KEPT = 1000  # graphs on this machine; a usual one has 0.5 to 2 MB
KEPT_PX = 512 * 512  # of a tile; the memory of larger ones is given back
SUM_BYTES = hashlib.sha256().digest_size

Map = NDArray[np.float32]
Stack = NDArray[np.float32]


@dataclass(frozen=True)
class Graphs:
    """The graphs of one machine.

    Args:
        folder: where they are kept; any number of processes may share it.
        precision: of the arithmetic, `f32` or `bf16`; the files are the same.
    """

    folder: Path
    precision: str = "f32"

    @classmethod
    def here(cls) -> "Graphs":
        """Return those in the folder of the settings."""
        named = settings().graphs
        return cls(Path(named) if named else settings().cache / "graphs")

    def reduced(self) -> "Graphs":
        """Return the same in bfloat16, if this CPU has it."""
        return replace(self, precision="bf16") if has_bf16() else self

    def networks(self, members: Iterable[Member]) -> "tuple[CompiledNetwork, ...] | None":
        """Return the compiled networks of members; what is missing is compiled.

        Returns:
            None if one of them cannot be compiled or kept; the log says why.
        """
        try:
            found = tuple(map(self._network, members))
        except ManybeamError as error:
            logger.warning("the networks run without being compiled, more slowly: %s", error)
            return None
        self._prune()
        return found

    def _network(self, member: Member) -> "CompiledNetwork":
        path = self._path(member)
        kept = _kept(path)
        if kept is not None:
            with suppress(WorkFailed):  # it is made again
                return self._imported(kept)
        from manybeam.learn.nets.inference.graph_conversion import to_graph  # imports torch

        graph = to_graph(member)
        write_files({path: hashlib.sha256(graph).digest() + graph})
        return self._imported(graph)

    def _imported(self, graph: bytes) -> "CompiledNetwork":
        tensor = openvino().Tensor(np.frombuffer(graph, np.uint8))
        try:
            return CompiledNetwork(core().import_model(tensor, "CPU", hints(self.precision)))
        except RuntimeError as error:
            raise WorkFailed(
                "OpenVINO does not read a compiled network", str(error)[:300], ""
            ) from error

    def _path(self, member: Member) -> Path:
        machine = (openvino().__version__, core().get_property("CPU", "FULL_DEVICE_NAME"))
        network = (member.recipe.network.model_dump_json(), member.weights_digest)
        digest = hashlib.sha256(repr((GRAPH, *machine, *network)).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.graph"

    def _prune(self) -> None:
        """Delete what was not used for the longest time, if there is too much of it."""
        for path in sorted(self.folder.glob("*.graph"), key=_age)[MOST_KEPT:]:
            with suppress(OSError):  # another process deleted it, or it is another user's
                path.unlink()


class CompiledNetwork:
    """A graph ready to run; safe to use from several threads.

    OpenVINO keeps the memory of the largest tile that it was given, half a GB for one of 1024 px.
    After a large tile it is given back as soon as no thread runs the graph. To get it anew takes a
    quarter of the time of a tile, so between the tiles of one frame it is kept.
    """

    def __init__(self, compiled: Any) -> None:  # OpenVINO has no types
        self._compiled, self._own = compiled, threading.local()
        self._lock, self._running, self._is_large = threading.Lock(), 0, False

    def __call__(self, tile_yx: Map) -> Stack:
        """Return probabilities (c, y, x) of a tile, whose sides the network can halve."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        with self.keeping_memory():
            found: Any = self._own.request.infer([np.ascontiguousarray(tile_yx)[None, None]])
            with self._lock:
                self._is_large |= tile_yx.size > KEPT_PX
            return np.array(found[0][0])

    @contextmanager
    def keeping_memory(self) -> Iterator[None]:
        """Keep the memory of tiles until the end of the block."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._is_large and not self._running:
                    self._compiled.release_memory()
                    self._is_large = False


def _kept(path: Path) -> bytes | None:
    """Return the graph in a file; None if there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # it may be another user's
        os.utime(path)  # the oldest are deleted first
    graph = content[SUM_BYTES:]
    return graph if hashlib.sha256(graph).digest() == content[:SUM_BYTES] else None


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except FileNotFoundError:  # another process deleted it
        return 0.0

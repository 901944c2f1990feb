"""Networks as graphs of OpenVINO: on a CPU two to three times as fast as torch, and without it.

A graph is made once from a network and kept on this machine; its name is the digest of all that
decides it. It answers tiles of any size. Every member has its own: one graph of all members is not
faster, and could not answer for some of them.

Axis letters: c kind of atom, y row, x column.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.disk import write_files
from manybeam.learn.nets.inference.runtime import core, cores, openvino
from manybeam.learn.nets.member import Member

logger = logging.getLogger(__name__)

GRAPH = 1  # raised if the same network gives another graph than before
MOST_KEPT = 1000  # graphs on this machine; a usual one has 0.5 MB, and as much compiled

Map = NDArray[np.float32]
Stack = NDArray[np.float32]


@dataclass(frozen=True)
class Graphs:
    """The graphs of one machine.

    Args:
        folder: where they are kept; any number of processes may share it.
    """

    folder: Path

    def has(self, member: Member) -> bool:
        """Tell whether the graph of a member was made."""
        return self._path(member).is_file()

    def make(self, members: Iterable[Member]) -> None:
        """Make the graphs of members that have none yet; a second of one core each.

        Raises:
            WriteFailed: the disk refused.
            WorkFailed: a network cannot be compiled.
        """
        missing = [member for member in members if not self.has(member)]
        for member in missing:
            from manybeam.learn.nets.inference.graph_conversion import to_graph

            path = self._path(member)
            files = to_graph(member)
            write_files({path.with_suffix(end): content for end, content in files.items()})
        if missing:
            self._prune()

    def network(self, member: Member) -> "CompiledNetwork":
        """Return the compiled graph of a member; it must have been made."""
        path = self._path(member)
        os.utime(path)  # the oldest are deleted first
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": cores(),
            "ENABLE_CPU_PINNING": False,  # other processes use these cores too
            "CACHE_DIR": str(self.folder / "compiled"),
        }
        return CompiledNetwork(core().compile_model(path, "CPU", hints))

    def _path(self, member: Member) -> Path:
        decides = (GRAPH, openvino().__version__, member.recipe.network.model_dump_json())
        digest = hashlib.sha256(repr((*decides, member.weights_digest)).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.xml"

    def _prune(self) -> None:
        """Delete what was not used for the longest time, if there is too much of it."""
        for folder, ending in ((self.folder, "*.xml"), (self.folder / "compiled", "*.blob")):
            by_age = sorted(folder.glob(ending), key=_age)
            for path in by_age[MOST_KEPT:]:
                path.unlink(missing_ok=True)
                path.with_suffix(".bin").unlink(missing_ok=True)


class CompiledNetwork:
    """A graph ready to run; safe to use from several threads."""

    def __init__(self, compiled: Any) -> None:  # OpenVINO has no types
        self._compiled, self._own = compiled, threading.local()

    def __call__(self, tile_yx: Map) -> Stack:
        """Return probabilities (c, y, x) of a tile, whose sides the network can halve."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        found: Any = self._own.request.infer([np.ascontiguousarray(tile_yx)[None, None]])
        return np.array(found[0][0])


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except FileNotFoundError:  # another process deleted it
        return 0.0

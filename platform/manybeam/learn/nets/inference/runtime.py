"""The cores of this process, and OpenVINO, loaded so that it keeps to itself."""

import os
import sys
from functools import cache
from types import ModuleType
from typing import Any


@cache
def openvino() -> ModuleType:
    """Return the package, without the reports that it sends to an analytics service."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not there"
    import openvino as package

    return package  # type: ignore[no-any-return]  # it has no types


@cache
def core() -> Any:
    """Return its core, of which a process needs one; it takes a tenth of a second."""
    return openvino().Core()


def cores() -> int:
    """Return how many threads one answer may use: `OMP_NUM_THREADS`, else all cores."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated):
        return int(stated)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hints() -> dict[str, Any]:
    """Return how graphs run on this machine."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": cores(),
        "ENABLE_CPU_PINNING": False,  # other processes use these cores too
    }

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


def has_bf16() -> bool:
    """Return whether this CPU computes in bfloat16."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def hints(precision: str = "f32") -> dict[str, Any]:
    """Return how graphs run on this machine; the precision is `f32` or `bf16`."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": cores(),
        "ENABLE_CPU_PINNING": False,  # other processes use these cores too
    }

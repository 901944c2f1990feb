"""OpenVINO, loaded so that it keeps to itself."""

import sys
from functools import cache
from types import ModuleType
from typing import Any


@cache
def openvino() -> ModuleType:
    """Return the package; its import would report itself to an analytics service on the internet."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not there"
    import openvino as package

    return package  # type: ignore[no-any-return]  # it has no types


@cache
def core() -> Any:
    """Return its core, of which a process needs one; it takes a tenth of a second."""
    return openvino().Core()

"""Manybeam: ensembles of networks for microscopes, kept in one zoo and served with uncertainty.

`manybeam.zoo()` opens the zoo, `manybeam.simulate` makes frames with known truth and
`manybeam.predict` asks an ensemble about a frame. Each is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manybeam.public import OpenZoo, OutOfDistributionWarning, predict, simulate

__version__ = "0.1.0"
__all__ = ["OpenZoo", "OutOfDistributionWarning", "__version__", "predict", "simulate"]

_HOME = "manybeam.public"


def __getattr__(name: str) -> Any:
    """Load a public name on first use; `zoo` is the package, which opens the zoo when called."""
    if name == "zoo":
        return import_module("manybeam.zoo")
    if name in __all__:
        return getattr(import_module(_HOME), name)
    raise AttributeError(f"module 'manybeam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "zoo"])

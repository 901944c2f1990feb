"""The versioned zoo: members, the ensembles made of them, and their scores, kept in MLflow.

`records` says what is kept, `matrix` holds members x conditions, `registry` is the only module
that imports mlflow (slow: import it inside the function that needs it), `select` says which
members suit a frame.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Matrix, Score, member_label

if TYPE_CHECKING:
    from manybeam.zoo.opened import OpenZoo

__all__ = ["CLASSICAL", "ENSEMBLE", "Matrix", "Score", "member_label"]


class _Package(ModuleType):
    """This package, which opens the zoo when it is called: `manybeam.zoo()`.

    The name stands for both; an attribute of `manybeam` would be lost when the package is loaded.
    """

    def __call__(self) -> "OpenZoo":
        """Return the zoo of the settings."""
        from manybeam.zoo.opened import OpenZoo

        return OpenZoo()


sys.modules[__name__].__class__ = _Package

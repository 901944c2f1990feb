"""The versioned zoo: members, the ensembles made of them, and their scores, kept in MLflow.

Kept: `records` of versions and references to them, the `matrix` of members x conditions, found and
written by the `registry` (`registration`, `checks`, `score_reports`, `calibration_sets`;
`tracking` speaks to MLflow, `refusals` words what it raises, `cache` holds its files here).
Searched: `catalogue`. Vouched for: `integrity`, `lineage`. Changed: `lifecycle`, one change at a
time (`claims`), kept in the `audit` log. Compared and shown: `compare`, `reports`. Out and in:
`exchange`.

The registry imports mlflow, which takes a second or two: import it inside the function that needs
it.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Matrix, Score, member_label

if TYPE_CHECKING:
    from manybeam import OpenZoo

__all__ = ["CLASSICAL", "ENSEMBLE", "Matrix", "Score", "member_label"]


class _Package(ModuleType):
    """This package, which opens the zoo when it is called: `manybeam.zoo()`.

    The name stands for both; an attribute of `manybeam` would be lost when the package is loaded.
    """

    def __call__(self) -> "OpenZoo":
        """Return the zoo of the settings."""
        from manybeam import OpenZoo

        return OpenZoo()


sys.modules[__name__].__class__ = _Package

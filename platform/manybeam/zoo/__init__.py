"""The versioned zoo: ensembles, their members and their scores, stored in MLflow.

Storage: `records` of versions and references to them, and the `matrix` of members x conditions.
The `registry` reads and writes them (`registration`, `checks`, `score_reports`,
`calibration_sets`); `tracking` calls MLflow, `refusals` translates its errors, `cache` keeps its
files on this machine. Search: `catalogue`. Checks: `integrity`, `lineage`. Changes: `lifecycle`,
one change at a time (`changes`), recorded in the audit log. Comparison and reports: `compare`,
`reports`. Export and import: `exchange`.

The registry imports mlflow, which takes a second or two. So import it inside the function that
needs it.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED, Matrix, Score, member_label

if TYPE_CHECKING:
    from manybeam import OpenZoo

__all__ = ["CLASSICAL", "ENSEMBLE", "SELECTED", "Matrix", "Score", "member_label"]


class _Package(ModuleType):
    """This package. A call, `manybeam.zoo()`, opens the zoo.

    The package and the function have the same name. An attribute of `manybeam` would be replaced
    when the package is imported.
    """

    def __call__(self) -> "OpenZoo":
        """Return the zoo of the settings."""
        from manybeam import OpenZoo

        return OpenZoo()


sys.modules[__name__].__class__ = _Package

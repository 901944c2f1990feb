"""The versioned zoo: members, the ensembles made of them, and their scores, kept in MLflow.

Kept: `records` of versions and references to them, the `matrix` of members x conditions, found
and written by the `registry` (`registration`, `checks`, `sheets`, `selftest`; `tracking` speaks to
MLflow, `leftovers` too, `refusals` words what it raises, `cache` holds its files here). Searched:
`catalogue`. Vouched for: `trust`, `verify`, `lineage`. Changed: `life`, behind `gates`
(`proposals`), one at a time (`claims`), told in the `audit` log; `collect` takes away. Compared
and shown: `compare`, `cards`, `plots`, `mistakes`, `notebook`. Chosen for a frame: `select`, with
`forecasts` of what was rehearsed or `unrehearsed`, `nearness`, `reasons`, people's `picks`;
`watch` sees a stream leave. Out and in: `exchange`. For Python: `opened`.

The registry imports mlflow, which takes a second or two: import it inside the function that needs
it.
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

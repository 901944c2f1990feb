"""The catalogue: a copy of the zoo on this machine, searched in milliseconds.

`catalogue` updates the copy in the file of `db.catalogue_file`. `subjects` makes the rows of a
version, `words` its words for the search, `conditions` reads the conditions of the library. `rows`
defines queries and results, `table` has the rows in memory, `answers` answers queries.
"""

from manybeam.zoo.catalogue.catalogue import Catalogue
from manybeam.zoo.catalogue.conditions import conditions_of
from manybeam.zoo.catalogue.rows import (
    FACETS,
    STATUSES,
    Bounds,
    Facet,
    Kind,
    Page,
    Query,
    Row,
    quantity_names,
)

__all__ = [
    "FACETS",
    "STATUSES",
    "Bounds",
    "Catalogue",
    "Facet",
    "Kind",
    "Page",
    "Query",
    "Row",
    "conditions_of",
    "quantity_names",
]

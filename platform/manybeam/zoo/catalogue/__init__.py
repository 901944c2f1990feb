"""The catalogue: a copy of the zoo on this machine, searched in milliseconds.

`catalogue` keeps the copy, in the file of `db.catalogue_file`; `subjects` says what is kept of a
version, `words` by which words it is found, `conditions` what the library knows of the conditions
it was measured on. `rows` holds what is asked and answered, `table` the rows in memory, `answers`
how they answer.
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

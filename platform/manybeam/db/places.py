"""The addresses of files in MLflow's database, and how they change if the files were moved.

MLflow stores the full address of every file, so a zoo whose folder was renamed or whose objects
were copied to another bucket would look for them at their old place.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import (
    ColumnElement,
    Connection,
    TableClause,
    case,
    column,
    func,
    or_,
    select,
    table,
    update,
)

from manybeam.db.copies import MLFLOW_SCHEMA
from manybeam.db.database import Database

_EXPERIMENTS = ("experiments", "artifact_location")
_MODELS = ("logged_models", "artifact_location")
_ADDRESSES = (
    _EXPERIMENTS,
    ("runs", "artifact_uri"),
    _MODELS,
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def experiment_places(url: str, prefix: str) -> dict[str, str]:
    """Return name -> address of the experiments whose names begin with a prefix.

    Args:
        url: of MLflow's database.
        prefix: the beginning of the names.
    """
    with _reading(url) as (connection, schema):
        there = table(_EXPERIMENTS[0], column("name"), column(_EXPERIMENTS[1]), schema=schema)
        wanted = select(there.c.name, there.c.artifact_location)
        rows = connection.execute(wanted.where(there.c.name.startswith(prefix, autoescape=True)))
        return {name: place or "" for name, place in rows}


def model_places(url: str, below: str) -> list[str]:
    """Return the addresses of all LoggedModels below an address."""
    with _reading(url) as (connection, schema):
        name, place = _MODELS
        there = table(name, column(place), schema=schema)
        wanted = select(there.c[place]).where(_is_below(there, place, below))
        return list(connection.execute(wanted).scalars())


def move_places(url: str, before: str, after: str) -> None:
    """Replace the beginning of every address of files in MLflow's database, in one transaction.

    Args:
        url: of MLflow's database.
        before: the old address; addresses that only begin with the same letters stay.
        after: the new one.
    """
    database = Database(url)
    try:
        with database.writing() as connection:
            schema = _schema(connection)
            for name, place in _ADDRESSES:
                there = table(name, column(place), schema=schema)
                rest = func.substr(there.c[place], len(before) + 1)
                moved = case((there.c[place] == before, after), else_=after + rest)
                is_moved = _is_below(there, place, before)
                connection.execute(update(there).where(is_moved).values({place: moved}))
    finally:
        database.close()


@contextmanager
def _reading(url: str) -> Iterator[tuple[Connection, str | None]]:
    database = Database(url)
    try:
        with database.reading() as connection:
            yield connection, _schema(connection)
    finally:
        database.close()


def _schema(connection: Connection) -> str | None:
    """Return the schema of MLflow's tables; SQLite has none."""
    return None if connection.dialect.name == "sqlite" else MLFLOW_SCHEMA


def _is_below(there: TableClause, place: str, address: str) -> ColumnElement[bool]:
    start = func.substr(there.c[place], 1, len(address) + 1)
    return or_(there.c[place] == address, start == f"{address}/")

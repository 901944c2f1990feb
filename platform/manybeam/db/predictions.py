"""Predictions: the URLs of the answers of a version, for its lineage."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import insert, select

from manybeam.db.database import Database, now
from manybeam.db.imports import is_marked, mark
from manybeam.db.tables import PredictionRow

KIND = "predictions"


class Predictions:
    """The URLs of answers in one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, ref: str, url: str) -> None:
        """Record the URL of answers of a version (`name@version`)."""
        with self._database.writing() as connection:
            row = {"ref": ref, "url": url, "made": now(connection)}
            connection.execute(insert(PredictionRow).values(row))

    def of(self, ref: str) -> tuple[str, ...]:
        """Return the URLs of the answers of a version, oldest first."""
        wanted = select(PredictionRow.url).where(PredictionRow.ref == ref)
        with self._database.reading() as connection:
            found = connection.execute(wanted.order_by(PredictionRow.made, PredictionRow.id))
            return tuple(found.scalars())

    def take_over(
        self, found: Sequence[tuple[str, str, datetime]], place: str, *, unreadable: int
    ) -> int:
        """Import (version, URL, time) of an older version, once; return their number."""
        with self._database.writing() as connection:
            if is_marked(connection, KIND):
                return 0
            rows = [{"ref": ref, "url": url, "made": made} for ref, url, made in found]
            if rows:
                connection.execute(insert(PredictionRow), rows)
            mark(connection, KIND, place, count=len(rows), unreadable=unreadable)
        return len(rows)

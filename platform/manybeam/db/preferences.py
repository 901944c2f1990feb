"""The preferences of a database; `manybeam.db.preference` says what a preference is.

A preference that is taken back keeps its row, with the person who took it back.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import insert, select, update

from manybeam.db.database import Database, now
from manybeam.db.imports import is_marked, mark
from manybeam.db.preference import AS_PREFERENCE, KIND, Preference, Retraction, read_preference
from manybeam.db.tables import PreferenceRow
from manybeam.errors import NotFound


class Preferences:
    """The preferences of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, preference: Preference) -> None:
        """Add a preference; raises Conflict if its id exists."""
        with self._database.writing() as connection:
            connection.execute(insert(PreferenceRow).values(_row(preference)))

    def list(self, ensemble: str | None = None) -> Sequence[Preference]:
        """Return the preferences that were not taken back, of one ensemble or of all.

        The oldest is first. A row that cannot be read is logged and left out.
        """
        wanted = select(PreferenceRow.id, PreferenceRow.content).where(
            PreferenceRow.retracted.is_(None)
        )
        if ensemble is not None:
            wanted = wanted.where(PreferenceRow.ensemble == ensemble)
        with self._database.reading() as connection:
            rows = connection.execute(wanted.order_by(PreferenceRow.made, PreferenceRow.id)).all()
        read = [read_preference(row.content, f"preference {row.id}") for row in rows]
        return [one for one in read if one is not None]

    def retract(self, preference_id: str, who: str) -> None:
        """Take a preference back: `list` leaves it out. Doing this twice has no further effect.

        Raises:
            NotFound: no preference has that id.
        """
        own = PreferenceRow.id == preference_id
        with self._database.writing() as connection:
            if connection.execute(select(PreferenceRow.id).where(own)).first() is None:
                hint = "manybeam select --picks lists them"
                raise NotFound(f"no preference {preference_id!r}", "", hint)
            values = {"retracted_by": who, "retracted": now(connection)}
            still = own & PreferenceRow.retracted.is_(None)
            connection.execute(update(PreferenceRow).where(still).values(values))

    def retraction(self, preference_id: str) -> Retraction | None:
        """Return who took a preference back; None if it counts."""
        wanted = select(PreferenceRow.retracted_by, PreferenceRow.retracted)
        with self._database.reading() as connection:
            found = connection.execute(wanted.where(PreferenceRow.id == preference_id)).first()
        if found is None or found.retracted is None:
            return None
        return Retraction(found.retracted_by or "", found.retracted)

    def take_over(
        self,
        found: Sequence[Preference],
        retracted: Mapping[str, Retraction],
        place: str,
        *,
        unreadable: int,
    ) -> int:
        """Import the preferences of an older version, once; return their number.

        Args:
            found: the preferences.
            retracted: who took a preference back, by id.
            place: the store of the old preferences.
            unreadable: number of those that could not be read.
        """
        rows = []
        for one in found:
            back = retracted.get(one.id)
            gone = {"retracted_by": back.who, "retracted": back.when} if back else {}
            rows.append({"retracted_by": None, "retracted": None, **_row(one), **gone})
        with self._database.writing() as connection:
            if is_marked(connection, KIND):
                return 0
            if rows:
                connection.execute(insert(PreferenceRow), rows)
            mark(connection, KIND, place, count=len(rows), unreadable=unreadable)
        return len(rows)


def _row(preference: Preference) -> dict[str, object]:
    return {
        "id": preference.id,
        "ensemble": preference.ensemble,
        "version": preference.version,
        "made": preference.when,
        "content": AS_PREFERENCE.dump_json(preference).decode(),
    }

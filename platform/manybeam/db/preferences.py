"""Preferences: members that a person chose for a frame, with person, time and known scores.

A person who compares the members by eye may know more than the scores. A preference records what
selection proposed, the scores of every member, and what was chosen, so that predicted F1 can learn
from it. A preference that is taken back keeps its row, with the person who took it back.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import insert, select, update

from manybeam.db.database import Database, now
from manybeam.db.imports import is_marked, mark
from manybeam.db.tables import PreferenceRow
from manybeam.errors import NotFound

logger = logging.getLogger(__name__)

KIND = "preferences"


@dataclass(frozen=True)
class Preference:
    """One choice of members for one frame, by a person.

    Attributes:
        id: its id; begins with the time.
        who: the person.
        when: UTC, ISO 8601.
        ensemble: name of the ensemble.
        version: version of the ensemble.
        members: indices of the chosen members, in order.
        proposed: the members that selection had chosen.
        frame_digest: digest of the frame's shape and values.
        file: name of the frame's file, without its folder.
        pixel_size_pm: edge of a pixel, in pm; None if unknown.
        condition: known numbers of the frame's condition, by dotted path; None if there are none.
        features: for each ranked member, the components of its score and `predicted_f1` at that
            time, if finite.
        summary: summary of the frame, `learn.analysis.summaries`; None if the frame is too small
            for a number. Predicted F1 learns from `features` and `summary`.
        note: free words.
        format: format of the stored text.
    """

    id: str
    who: str
    when: str
    ensemble: str
    version: int
    members: tuple[int, ...]
    proposed: tuple[int, ...]
    frame_digest: str
    file: str
    pixel_size_pm: float | None
    condition: Mapping[str, float] | None
    features: Mapping[int, Mapping[str, float]]
    summary: tuple[float | None, ...] = ()
    note: str = ""
    format: Literal["manybeam-pick-1"] = "manybeam-pick-1"

    @property
    def ref(self) -> str:
        """The version chosen from: `graphene@3`."""
        return f"{self.ensemble}@{self.version}"

    @property
    def is_as_proposed(self) -> bool:
        """Whether the person chose the members that selection had chosen."""
        return set(self.members) == set(self.proposed)


@dataclass(frozen=True)
class Retraction:
    """The person who took a preference back, and the time."""

    who: str
    when: datetime


_AS_PREFERENCE = TypeAdapter(Preference)


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


def read_preference(text: str | bytes, name: str) -> Preference | None:
    """Return a stored preference; if it cannot be read, log this and return None."""
    try:
        return _AS_PREFERENCE.validate_json(text)
    except ValidationError as error:
        why = str(error).replace("\n", " ")[:200]
        logger.warning("%s cannot be read and is left out: %s", name, why)
        return None


def _row(preference: Preference) -> dict[str, object]:
    return {
        "id": preference.id,
        "ensemble": preference.ensemble,
        "version": preference.version,
        "made": preference.when,
        "content": _AS_PREFERENCE.dump_json(preference).decode(),
    }

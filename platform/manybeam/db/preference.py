"""Preferences: members that a person chose for a frame, with person, time and known scores.

A person who compares the members by eye may know more than the scores. A preference records what
selection proposed, the scores of every member, and what was chosen, so that predicted F1 can learn
from it. `manybeam.db.preferences` stores it.
"""

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from manybeam.addresses import SQLITE, sqlite_path
from manybeam.db.migrations import REVISION, TABLE

logger = logging.getLogger(__name__)

KIND = "preferences"
_LISTED = """
    SELECT id, content FROM preferences
    WHERE retracted IS NULL AND (:ensemble IS NULL OR ensemble = :ensemble) ORDER BY made, id
"""


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


AS_PREFERENCE = TypeAdapter(Preference)


def read_preference(text: str | bytes, name: str) -> Preference | None:
    """Return a stored preference; if it cannot be read, log this and return None."""
    try:
        return AS_PREFERENCE.validate_json(text)
    except ValidationError as error:
        why = str(error).replace("\n", " ")[:200]
        logger.warning("%s cannot be read and is left out: %s", name, why)
        return None


def listed_in_file(url: str, ensemble: str | None = None) -> list[Preference] | None:
    """Return what `Preferences.list` returns, from a SQLite file, without SQLAlchemy.

    Importing SQLAlchemy takes half a second, an eighth of a `manybeam predict`.

    Returns:
        None if the database is no such file, or is not up to date, or cannot be read: the
        deployment's database then brings it up to date, or says what is wrong.
    """
    if not url.startswith(SQLITE):
        return None
    try:
        place = f"{sqlite_path(url).absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(place, uri=True)) as file:
            step = file.execute(f"SELECT version_num FROM {TABLE}").fetchone()  # noqa: S608 - ours
            taken_over = file.execute("SELECT 1 FROM imports WHERE kind = ?", (KIND,)).fetchone()
            if step != (REVISION,) or taken_over is None:
                return None
            rows = file.execute(_LISTED, {"ensemble": ensemble}).fetchall()
    except sqlite3.Error as error:
        logger.debug("preferences are read the usual way: %s", error)
        return None
    read = [read_preference(content, f"preference {name}") for name, content in rows]
    return [one for one in read if one is not None]

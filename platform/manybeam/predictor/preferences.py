"""Preferences: a person's choice of members for a frame, with the scores of selection.

`manybeam.db.preference` says what a preference holds. What stores it is imported late: a prediction
only reads preferences, and a database of SQLite is then read without SQLAlchemy.
"""

import hashlib
import logging
import math
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from manybeam.db.owner import login
from manybeam.db.preference import Preference, listed_in_file
from manybeam.errors import InvalidInput, MemberCountError
from manybeam.settings import settings
from manybeam.spec import Condition
from manybeam.zoo.records import Record

if TYPE_CHECKING:
    from manybeam.predictor.selection import Selection

logger = logging.getLogger(__name__)

MAX_WHO, MAX_NOTE = 100, 2000  # characters


def record_preference(
    record: Record,
    selection: "Selection",
    members: Sequence[int],
    *,
    frame_yx: np.ndarray,
    file: str,
    pixel_size_pm: float | None,
    condition: Condition | None = None,
    who: str | None = None,
    note: str = "",
) -> Preference:
    """Record that a person chose these members for a frame, and return what was recorded.

    Args:
        record: the version chosen from.
        selection: the selection for this frame.
        members: indices of the chosen members, at least one.
        frame_yx: the frame.
        file: its file; the folder is not recorded.
        pixel_size_pm: edge of a pixel, in pm, or None.
        condition: its known condition.
        who: the person; the login name if left out.
        note: free words, at most 2000 characters.

    Raises:
        MemberCountError: no member.
        UnknownRef: a member that the version does not have.
        InvalidInput: no name, or a name or a note that is too long.
        DatabaseUnreachable, WriteFailed: it could not be recorded.
    """
    from manybeam.zoo.lifecycle import noted
    from manybeam.zoo.older_objects import preferences_kept

    if not members:
        raise MemberCountError("no member was chosen", "at least one is needed", "--pick 03,05")
    name, now = _checked_who(who), datetime.now(UTC)
    preference = Preference(
        id=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        who=name,
        when=now.isoformat(timespec="milliseconds"),
        ensemble=record.name,
        version=record.version,
        members=tuple(record.member(index).index for index in dict.fromkeys(members)),
        proposed=tuple(selection.chosen),
        frame_digest=frame_digest(frame_yx),
        file=file.replace("\\", "/").rsplit("/", 1)[-1],
        pixel_size_pm=pixel_size_pm,
        condition=_known(condition),
        features=_features(selection),
        summary=tuple(one if math.isfinite(one) else None for one in selection.summary),
        note=_checked_note(note),
    )
    preferences_kept().add(preference)
    noted.note("preference recorded", preference.ref, preference=preference.id, given_name=name)
    logger.info("preference recorded", extra={"ref": preference.ref, "who": name})
    return preference


def preferences(name: str | None = None) -> Sequence[Preference]:
    """Return the preferences that were not taken back, of one ensemble or of all, oldest first.

    Raises:
        DatabaseUnreachable: the database does not answer.
    """
    found = listed_in_file(settings().database_address, name)
    if found is None:
        from manybeam.zoo.older_objects import preferences_kept

        return preferences_kept().list(name)
    return found


def retract(preference_id: str, who: str | None = None) -> None:
    """Take a preference back: it no longer counts, and its record names who took it back.

    Raises:
        NotFound: no preference has that id.
        InvalidInput: no name, or a name that is too long.
        DatabaseUnreachable, WriteFailed: it could not be recorded.
    """
    from manybeam.zoo.lifecycle import noted
    from manybeam.zoo.older_objects import preferences_kept

    name = _checked_who(who)
    preferences_kept().retract(preference_id, name)
    noted.note("preference taken back", preference_id, given_name=name)
    logger.info("preference taken back", extra={"preference": preference_id, "who": name})


def frame_digest(frame_yx: np.ndarray) -> str:
    """Return 32 hex digits of a frame's shape and values as float32, independent of its file.

    Example:
        >>> frame_digest(np.zeros((2, 3), np.uint8)) == frame_digest(np.zeros((2, 3)))
        True
    """
    values = np.ascontiguousarray(frame_yx, "<f4")
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()[:32]


def _checked_who(who: str | None) -> str:
    """Return the name on one line; the login name if it is left out."""
    if who is None:
        who = login()
    name = " ".join(who.split())
    if not 0 < len(name) <= MAX_WHO:
        raise InvalidInput(
            f"{name[:40]!r} does not say who chose",
            f"1 to {MAX_WHO} characters",
            "add --who NAME",
        )
    return name


def _checked_note(note: str) -> str:
    if len(note) > MAX_NOTE:
        raise InvalidInput(f"a note of {len(note)} characters", f"at most {MAX_NOTE}", "shorten it")
    return note


def _known(condition: Condition | None) -> dict[str, float] | None:
    quantities = () if condition is None else condition.quantities()
    return {path: float(v) for path, v in quantities if isinstance(v, (int, float))} or None


def _features(selection: "Selection") -> dict[int, dict[str, float]]:
    rows = {
        one.member: {**one.components, "predicted_f1": one.predicted_f1}
        for one in selection.candidates
    }
    return {
        member: {name: float(value) for name, value in row.items() if math.isfinite(value)}
        for member, row in rows.items()
    }

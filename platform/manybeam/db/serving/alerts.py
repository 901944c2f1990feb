"""Alerts: what a person should check, and the messages about them that wait to be sent.

The table is the outbox: an alert is stored first and sent afterwards, so that none is lost with a
process. Whoever sends one claims it for a while, so that two processes do not send it at once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from manybeam.db.database import Database, now
from manybeam.db.tables import AlertRow
from manybeam.errors import InvalidInput

LIMIT_S = 5.0  # of one reading
KEPT = 1_000  # alerts; the oldest are removed first
KEPT_DAYS = 90
MOST_BYTES = 256 * 2**10  # of the content of one; two small pictures have 50 kB
DELIVER_WITHIN = timedelta(days=1)  # later, nobody is helped by it
MOST_ERROR = 500  # characters


@dataclass(frozen=True)
class Alert:
    """An alert.

    Attributes:
        id: its number.
        at: when it was raised, by the clock of the database.
        kind: `drifted`, `back in control`.
        instrument: the id of the instrument, or "".
        session_id: the session, or None.
        text: one sentence for a person.
        content: what its message holds.
        delivered: when the message was taken; None if not yet, or never.
        tries: how often it was sent in vain.
        next_try: when it is sent next; None if it is not sent any more.
        last_error: why the last try failed, or "".
    """

    id: int
    at: datetime
    kind: str
    instrument: str
    session_id: int | None
    text: str
    content: Mapping[str, Any]
    delivered: datetime | None = None
    tries: int = 0
    next_try: datetime | None = None
    last_error: str = ""


class Alerts:
    """The alerts of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        kind: str,
        *,
        text: str,
        content: Mapping[str, Any],
        instrument: str = "",
        session_id: int | None = None,
        is_sent: bool,
    ) -> Alert:
        """Return a new alert, which is stored; those that are too old or too many are removed.

        Args:
            kind: `drifted`, `back in control`.
            text: one sentence for a person.
            content: what its message holds; JSON, at most 256 KiB.
            instrument: the id of the instrument, which is in the database.
            session_id: the session, which is in the database.
            is_sent: whether a message about it is sent; if not, it is kept only.

        Raises:
            InvalidInput: the content is no JSON, or too large.
        """
        _check(content)
        with self._database.writing() as connection:
            at = now(connection)
            row = {
                "at": at,
                "kind": kind,
                "level": "warning",
                "subject": instrument,
                "instrument_id": instrument or None,
                "session_id": session_id,
                "text": text,
                "values": dict(content),
                "next_try": at if is_sent else None,
            }
            made = connection.execute(insert(AlertRow).values(row))
            (number,) = made.inserted_primary_key or (0,)
            _prune(connection, at)
            return _found(connection, AlertRow.id == number)[0]

    def claim(self, hold_s: float, limit: int = 1) -> list[Alert]:
        """Return alerts that are due, the oldest first; no other process gets them for a while.

        If this process ends before it tells of `delivered` or `failed`, they are due again then.
        Alerts of more than a day ago are not due any more.

        Args:
            hold_s: how long they are claimed for; longer than sending them takes.
            limit: the most that are returned.
        """
        with self._database.writing() as connection:
            at = now(connection)
            is_due = (AlertRow.next_try <= at, AlertRow.at > at - DELIVER_WITHIN)
            wanted = select(AlertRow.id).where(*is_due).order_by(AlertRow.id).limit(limit)
            due = connection.execute(wanted.with_for_update(skip_locked=True)).scalars().all()
            mine = AlertRow.id.in_(due)
            until = at + timedelta(seconds=hold_s)
            connection.execute(update(AlertRow).where(mine).values(next_try=until))
            return _found(connection, mine)

    def delivered(self, alert_id: int) -> None:
        """Note that the message of an alert was taken."""
        with self._database.writing() as connection:
            values = {"delivered": now(connection), "next_try": None, "last_error": ""}
            own = AlertRow.id == alert_id
            connection.execute(update(AlertRow).where(own).values(values))

    def failed(self, alert_id: int, error: str, pause_s: float | None) -> None:
        """Note that sending the message of an alert failed.

        Args:
            alert_id: the alert.
            error: why.
            pause_s: when it is tried again; never if None, or if it is a day old by then.
        """
        with self._database.writing() as connection:
            for alert in _found(connection, AlertRow.id == alert_id, AlertRow.delivered.is_(None)):
                next_try = None if pause_s is None else now(connection) + timedelta(seconds=pause_s)
                if next_try is not None and next_try >= alert.at + DELIVER_WITHIN:
                    next_try = None
                values = {
                    "tries": alert.tries + 1,
                    "next_try": next_try,
                    "last_error": error[:MOST_ERROR],
                }
                own = AlertRow.id == alert_id
                connection.execute(update(AlertRow).where(own).values(values))

    def recent(self, instrument: str | None = None, limit: int = 50) -> list[Alert]:
        """Return the newest alerts, of one instrument or of all, the newest first."""
        of = () if instrument is None else (AlertRow.instrument_id == instrument,)
        wanted = select(AlertRow.__table__).where(*of).order_by(AlertRow.id.desc()).limit(limit)
        with self._database.reading(LIMIT_S) as connection:
            return [_as_alert(row) for row in connection.execute(wanted)]


def _check(content: Mapping[str, Any]) -> None:
    try:
        size = len(json.dumps(dict(content), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput("the content of the alert is no JSON", str(error), "") from error
    if size > MOST_BYTES:
        raise InvalidInput(
            f"the content of the alert has {size} bytes", f"at most {MOST_BYTES}", "smaller frames"
        )


def _prune(connection: Connection, at: datetime) -> None:
    newest = select(AlertRow.id).order_by(AlertRow.id.desc()).offset(KEPT).limit(1)
    last = connection.execute(newest).scalar()
    is_old = AlertRow.at < at - timedelta(days=KEPT_DAYS)
    which = is_old if last is None else is_old | (AlertRow.id <= last)
    connection.execute(delete(AlertRow).where(which))


def _found(connection: Connection, *which: Any) -> list[Alert]:
    """Return the alerts that meet all conditions, the oldest first."""
    wanted = select(AlertRow.__table__).where(*which).order_by(AlertRow.id)
    return [_as_alert(row) for row in connection.execute(wanted)]


def _as_alert(row: Row[*tuple[Any, ...]]) -> Alert:
    return Alert(
        id=row.id,
        at=row.at,
        kind=row.kind,
        instrument=row.instrument_id or "",
        session_id=row.session_id,
        text=row.text,
        content=row._mapping["values"],
        delivered=row.delivered,
        tries=row.tries,
        next_try=row.next_try,
        last_error=row.last_error,
    )

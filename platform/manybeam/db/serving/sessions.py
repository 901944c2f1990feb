"""Sessions of instruments: who answers their frames, and what was answered so far.

A session is one row. Its settings are those that the instrument gave, the last ones count; `state`
is what the service chose since, with counts. A choice counts only for the revision it was made for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from manybeam.db.audit import append
from manybeam.db.database import Database, insert_if_new, now
from manybeam.db.owner import whoami
from manybeam.db.tables import InstrumentRow, SessionEventRow, SessionFrameRow, SessionRow
from manybeam.db.tokens import check_instrument_id
from manybeam.errors import Conflict, NotFound

LIMIT_S = 5.0  # of one reading, so that the next one is soon
KEPT = 20_000  # frames of a session in its history; the oldest are removed first
EVENTS_KEPT = 2_000  # changes of a session
KEPT_DAYS = 90  # frames of sessions that ended before are removed when their instrument starts one
SPARE = 1_000  # more than that many are removed at once
AT_ONCE = 500  # names that one query asks for
SESSIONS = 1_000  # that go on at once: without tokens, callers choose the names of instruments
AHEAD_S = 60  # a frame later than that is from a clock that went wrong


@dataclass(frozen=True)
class Session:
    """A session of an instrument.

    Attributes:
        id: of the session.
        instrument: the id of its instrument.
        policy: `auto` or `pinned`.
        ref: the REF that may answer, or `auto`.
        members: the pinned members; all if empty.
        budget_ms: when an answer should be ready; None for no limit.
        settings: further settings of the instrument.
        state: what the service chose since: `now`, and `counts`.
        revision: grows with each change of settings or of `now`.
        started: when.
        ended: when; None while it goes on.
        stream: number of its newest stream of frames; 0 for none so far.
    """

    id: int
    instrument: str
    policy: str
    ref: str
    members: tuple[int, ...]
    budget_ms: int | None
    settings: Mapping[str, Any]
    state: Mapping[str, Any]
    revision: int
    started: datetime
    ended: datetime | None
    stream: int = 0


@dataclass(frozen=True)
class AnsweredFrame:
    """A frame that a session answered.

    Attributes:
        session_id: of the session.
        frame_id: the caller's name of the frame.
        at: when the answer was given, UTC.
        digest: of the frame; "" if the caller did not name it.
        ref: the version that answered.
        members: its members that answered.
        values: why, drift, predicted F1, timings, members that were dropped, limits.
    """

    session_id: int
    frame_id: str
    at: datetime
    digest: str
    ref: str
    members: tuple[int, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class SessionEvent:
    """A change of a session between two frames."""

    at: datetime
    kind: str
    frame_id: str
    ref: str
    members: tuple[int, ...]
    why: str


class Sessions:
    """The sessions of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def running(self) -> list[Session]:
        """Return the sessions of instruments in use that go on; one for each at most."""
        with self._database.reading(LIMIT_S) as connection:
            wanted = _going_on(select(SessionRow.__table__))
            rows = connection.execute(wanted).all()
        return [_as_session(row) for row in rows]

    def put(
        self,
        instrument: str,
        *,
        policy: str,
        ref: str,
        members: Sequence[int] = (),
        budget_ms: int | None = None,
        settings: Mapping[str, Any] | None = None,
        is_new_welcome: bool = False,
        who: str = "",
    ) -> Session:
        """Start a session, or change the one that goes on; then the service chooses anew.

        The same settings once more change nothing.

        Args:
            instrument: its id.
            policy: `auto` or `pinned`.
            ref: REF or `auto`.
            members: the pinned members; all if empty.
            budget_ms: when an answer should be ready.
            settings: further settings, as JSON.
            is_new_welcome: whether an unknown instrument is added.
            who: who does so, for the audit log; the login of this process if left out.

        Raises:
            NotFound: there is no such instrument, or it was retired.
            InvalidInput: this cannot be the id of a new one.
            Conflict: too many sessions go on.
        """
        given = {
            "policy": policy,
            "ref": ref,
            "members": list(members),
            "budget_ms": budget_ms,
            "settings": dict(settings or {}),
        }
        with self._database.writing() as connection:
            at = now(connection)
            _check_instrument(connection, instrument, at, is_new_welcome=is_new_welcome)
            row = _running(connection, instrument)
            if row is not None and all(getattr(row, name) == given[name] for name in given):
                return _as_session(row)
            if row is None:
                _check_room(connection)
                _forget_old(connection, instrument, at - timedelta(days=KEPT_DAYS))
                new = {
                    **given,
                    "instrument_id": instrument,
                    "state": {},
                    "revision": 1,
                    "started": at,
                }
                connection.execute(insert(SessionRow).values(new))
            else:
                state = {"counts": row.state.get("counts", {})}
                changed = {**given, "state": state, "revision": row.revision + 1}
                connection.execute(
                    update(SessionRow).where(SessionRow.id == row.id).values(changed)
                )
            found = _running(connection, instrument)
            assert found is not None  # noqa: S101 - it was just written
            session = _as_session(found)
            kind = "changed" if row else "started"
            _note(connection, session, kind, ref=ref, members=members, why="as asked")
            append(connection, f"session {kind}", instrument, who=who or whoami(), details=given)
        return session

    def end(self, instrument: str, *, who: str = "") -> Session:
        """End the session of an instrument; its history stays.

        Raises:
            NotFound: it has none.
        """
        with self._database.writing() as connection:
            row = _running(connection, instrument)
            if row is None:
                raise NotFound(
                    f"instrument {instrument!r} has no session",
                    "",
                    "PUT /v1/instruments/ID/session starts one",
                )
            own = SessionRow.id == row.id
            changed = {"ended": now(connection), "revision": row.revision + 1}
            connection.execute(update(SessionRow).where(own).values(changed))
            append(connection, "session ended", instrument, who=who or whoami(), details={})
            return _as_session(connection.execute(select(SessionRow.__table__).where(own)).one())

    def switch(
        self,
        session: Session,
        chosen: Mapping[str, Any],
        *,
        kind: str,
        why: str,
        frame_id: str = "",
    ) -> Session:
        """Record which version and members answer from now on.

        Args:
            session: as it was seen.
            chosen: `ref`, `members`, and what else is known of the choice, as JSON.
            kind: of the event, as `switched` or `confirmed`.
            why: the reason.
            frame_id: the frame for which they were chosen.

        Raises:
            Conflict: somebody changed or ended the session meanwhile.
        """
        with self._database.writing() as connection:
            row = _running(connection, session.instrument)
            if row is None or (row.id, row.revision) != (session.id, session.revision):
                raise Conflict("the session was changed meanwhile", "", "look at it again")
            state = {**row.state, "now": dict(chosen)}
            counts = Counter(state.get("counts", {}))
            counts.update({"selections": 1, "selection_ms": chosen.get("selection_ms", 0)})
            state["counts"] = dict(counts)
            changed = {"state": state, "revision": row.revision + 1}
            connection.execute(update(SessionRow).where(SessionRow.id == row.id).values(changed))
            ref, members = chosen["ref"], chosen["members"]
            _note(connection, session, kind, ref=ref, members=members, why=why, frame_id=frame_id)
            found = _running(connection, session.instrument)
            assert found is not None  # noqa: S101 - it was just written
            return _as_session(found)

    def take_stream(self, session_id: int, number: int) -> Session:
        """Return a session after it has a stream of this number; `stream` is the largest one.

        Raises:
            NotFound: there is no such session.
        """
        own = SessionRow.id == session_id
        with self._database.writing() as connection:
            is_newest = own & (SessionRow.stream < number)
            connection.execute(update(SessionRow).where(is_newest).values(stream=number))
            row = connection.execute(select(SessionRow.__table__).where(own)).first()
        if row is None:
            raise NotFound(f"there is no session {session_id}")
        return _as_session(row)

    def record(self, frames: Sequence[AnsweredFrame]) -> None:
        """Add frames to the history and the counts of their sessions; one that is there is kept."""
        for session_id in sorted({one.session_id for one in frames}):
            own = [one for one in frames if one.session_id == session_id]
            with self._database.writing() as connection:
                _record(connection, session_id, own)

    def frames(self, session_id: int, names: Sequence[str]) -> dict[str, AnsweredFrame]:
        """Return the known frames of a session by the callers' names of them."""
        table = SessionFrameRow.__table__
        found: list[AnsweredFrame] = []
        with self._database.reading(LIMIT_S) as connection:
            for first in range(0, len(names), AT_ONCE):
                wanted = select(table).where(
                    SessionFrameRow.session_id == session_id,
                    SessionFrameRow.frame_id.in_(names[first : first + AT_ONCE]),
                )
                found += map(_as_frame, connection.execute(wanted))
        return {one.frame_id: one for one in found}

    def history(self, session_id: int, count: int) -> list[AnsweredFrame]:
        """Return the last frames of a session, the newest first."""
        wanted = (
            select(SessionFrameRow.__table__)
            .where(SessionFrameRow.session_id == session_id)
            .order_by(SessionFrameRow.at.desc())
            .limit(count)
        )
        with self._database.reading(LIMIT_S) as connection:
            return [_as_frame(row) for row in connection.execute(wanted)]

    def events(self, session_id: int, count: int) -> list[SessionEvent]:
        """Return the last changes of a session, the newest first."""
        wanted = (
            select(SessionEventRow.__table__)
            .where(SessionEventRow.session_id == session_id)
            .order_by(SessionEventRow.id.desc())
            .limit(count)
        )
        with self._database.reading(LIMIT_S) as connection:
            return [
                SessionEvent(row.at, row.kind, row.frame_id, row.ref, tuple(row.members), row.why)
                for row in connection.execute(wanted)
            ]


def _check_instrument(
    connection: Connection, instrument: str, at: datetime, *, is_new_welcome: bool
) -> None:
    known = connection.execute(
        # Locked, so that two who start a session at once do not start two.
        select(InstrumentRow.retired).where(InstrumentRow.id == instrument).with_for_update()
    ).first()
    if known is not None and known.retired is None:
        return
    if known is None and is_new_welcome:
        check_instrument_id(instrument)
        row = {"id": instrument, "title": "", "created": at, "weight": 1.0}
        insert_if_new(connection, InstrumentRow, row)
        return
    raise NotFound(
        f"no instrument {instrument!r}" + (" is in use: it was retired" if known else ""),
        "a session belongs to a known one",
        f"manybeam instrument add {instrument}",
    )


def _going_on(wanted: Select[Any]) -> Select[Any]:
    """Return a query for sessions that go on: those of retired instruments do not."""
    return wanted.join(InstrumentRow, InstrumentRow.id == SessionRow.instrument_id).where(
        SessionRow.ended.is_(None), InstrumentRow.retired.is_(None)
    )


def _check_room(connection: Connection) -> None:
    going_on = _going_on(select(func.count()).select_from(SessionRow))
    if connection.execute(going_on).scalar_one() >= SESSIONS:
        raise Conflict(
            f"{SESSIONS} sessions go on already",
            "that is the limit",
            "end those that are not needed: DELETE /v1/instruments/ID/session",
        )


def _running(connection: Connection, instrument: str) -> Row[*tuple[Any, ...]] | None:
    """Return the row of a session that goes on, locked for this transaction where that exists."""
    wanted = select(SessionRow.__table__).where(
        SessionRow.instrument_id == instrument, SessionRow.ended.is_(None)
    )
    return connection.execute(wanted.with_for_update()).first()


def _note(
    connection: Connection,
    session: Session,
    kind: str,
    *,
    ref: str,
    members: Sequence[int],
    why: str,
    frame_id: str = "",
) -> None:
    row = {
        "session_id": session.id,
        "at": now(connection),
        "kind": kind,
        "frame_id": frame_id,
        "ref": ref,
        "members": list(members),
        "why": why,
    }
    connection.execute(insert(SessionEventRow).values(row))
    own = SessionEventRow.session_id == session.id
    newest = select(SessionEventRow.id).where(own).order_by(SessionEventRow.id.desc())
    last = connection.execute(newest.offset(EVENTS_KEPT).limit(1)).scalar()
    if last is not None:
        connection.execute(delete(SessionEventRow).where(own, SessionEventRow.id <= last))


def _record(connection: Connection, session_id: int, frames: Sequence[AnsweredFrame]) -> None:
    known = select(SessionRow.state).where(SessionRow.id == session_id).with_for_update()
    row = connection.execute(known).first()
    if row is None:
        return
    counts = Counter(row.state.get("counts", {}))
    there = set(
        connection.execute(
            select(SessionFrameRow.frame_id).where(
                SessionFrameRow.session_id == session_id,
                SessionFrameRow.frame_id.in_([one.frame_id for one in frames]),
            )
        ).scalars()
    )
    new = {one.frame_id: one for one in reversed(frames) if one.frame_id not in there}
    if not new:
        return
    connection.execute(insert(SessionFrameRow), [_as_row(one) for one in new.values()])
    for one in new.values():
        counts.update({"frames": 1, **dict.fromkeys(one.values.get("counted", ()), 1)})
    state = {**row.state, "counts": dict(counts)}
    connection.execute(update(SessionRow).where(SessionRow.id == session_id).values(state=state))
    _bring_back(connection, session_id)
    _prune(connection, session_id)


def _forget_old(connection: Connection, instrument: str, before: datetime) -> None:
    ended = select(SessionRow.id).where(
        SessionRow.instrument_id == instrument, SessionRow.ended < before
    )
    for table in (SessionFrameRow, SessionEventRow):
        connection.execute(delete(table).where(table.session_id.in_(ended)))


def _bring_back(connection: Connection, session_id: int) -> None:
    """Let frames from the future be of now: the clock was set back since, or is wrong elsewhere.

    Else they would stay the newest, and those that follow would be removed first.
    """
    at = now(connection)
    early = (
        SessionFrameRow.session_id == session_id,
        SessionFrameRow.at > at + timedelta(seconds=AHEAD_S),
    )
    connection.execute(update(SessionFrameRow).where(*early).values(at=at))


def _prune(connection: Connection, session_id: int) -> None:
    own = SessionFrameRow.session_id == session_id
    count = connection.execute(
        select(func.count()).select_from(SessionFrameRow).where(own)
    ).scalar_one()
    if count > KEPT + SPARE:
        oldest_kept = connection.execute(
            select(SessionFrameRow.at)
            .where(own)
            .order_by(SessionFrameRow.at.desc())
            .offset(KEPT - 1)
        ).scalar()
        connection.execute(delete(SessionFrameRow).where(own, SessionFrameRow.at < oldest_kept))


def _as_row(one: AnsweredFrame) -> dict[str, Any]:
    return {
        "session_id": one.session_id,
        "frame_id": one.frame_id,
        "at": one.at,
        "digest": one.digest,
        "ref": one.ref,
        "members": list(one.members),
        "values": dict(one.values),
    }


def _as_frame(row: Row[*tuple[Any, ...]]) -> AnsweredFrame:
    return AnsweredFrame(
        row.session_id, row.frame_id, row.at, row.digest, row.ref, tuple(row.members), row.values
    )


def _as_session(row: Row[*tuple[Any, ...]]) -> Session:
    return Session(
        row.id,
        row.instrument_id,
        row.policy,
        row.ref,
        tuple(row.members),
        row.budget_ms,
        row.settings,
        row.state,
        row.revision,
        row.started,
        row.ended,
        row.stream,
    )

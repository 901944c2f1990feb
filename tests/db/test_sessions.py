"""db.serving.sessions: started, changed, switched and ended by several at once; the history."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from manybeam.db.audit import AuditLog
from manybeam.db.database import Database, now
from manybeam.db.serving import sessions as module
from manybeam.db.serving.sessions import AnsweredFrame, Session, Sessions
from manybeam.db.tables import InstrumentRow, SessionRow
from manybeam.db.tokens import Instruments
from manybeam.errors import Conflict, InvalidInput, NotFound

AT = datetime(2026, 3, 1, tzinfo=UTC)
CHOSEN = {"ref": "graphene@2", "members": [0, 2], "shares": [0.5, 0.5], "selection_ms": 300}


@pytest.fixture
def sessions(database: Database) -> Sessions:
    Instruments(database).add("STEM-1", who="ada")
    return Sessions(database)


@pytest.fixture
def session(sessions: Sessions) -> Session:
    return put(sessions)


def put(sessions: Sessions, instrument: str = "STEM-1", **more: Any) -> Session:
    given = {"policy": "auto", "ref": "auto", "who": "ada", **more}
    return sessions.put(instrument, **given)


def frame(session: Session, name: str, number: int = 0, **values: Any) -> AnsweredFrame:
    at = AT + timedelta(seconds=number)
    return AnsweredFrame(session.id, name, at, "d" * 32, "graphene@2", (0, 2), values)


def test_a_session_reads_back_as_it_was_put(sessions: Sessions) -> None:
    more = {"pixel_size_pm": 16.0, "order": "newest"}
    made = put(sessions, policy="pinned", ref="graphene@2", members=[2, 0], budget_ms=80,
               settings=more)  # fmt: skip
    assert sessions.running() == [made]
    assert (made.policy, made.ref, made.members, made.budget_ms) == (
        "pinned", "graphene@2", (2, 0), 80,
    )  # fmt: skip
    assert (dict(made.settings), made.revision, made.ended) == (more, 1, None)


def test_a_change_keeps_the_session_and_forgets_who_was_chosen(
    sessions: Sessions, session: Session
) -> None:
    switched = sessions.switch(session, CHOSEN, kind="switched", why="moved")
    sessions.record([frame(session, "a")])
    assert put(sessions).state["now"] == CHOSEN  # the same settings once more
    changed = put(sessions, budget_ms=50)
    assert (changed.id, changed.revision) == (session.id, switched.revision + 1)
    assert "now" not in changed.state
    assert changed.state["counts"] == {"frames": 1, "selections": 1, "selection_ms": 300}


def test_an_ended_session_is_followed_by_a_new_one(sessions: Sessions, session: Session) -> None:
    ended = sessions.end("STEM-1", who="ada")
    assert ended.ended is not None
    assert sessions.running() == []
    with pytest.raises(NotFound, match="no session"):
        sessions.end("STEM-1")
    assert put(sessions).id != session.id


def test_changes_are_in_the_audit_log_and_switches_among_the_events(
    sessions: Sessions, session: Session, database: Database
) -> None:
    sessions.switch(session, CHOSEN, kind="switched", why="it moved", frame_id="f7")
    put(sessions, budget_ms=50)
    sessions.end("STEM-1", who="grace")
    said = [(one.action, one.who) for one in AuditLog(database).entries()]
    assert said[2::-1] == [
        ("session started", "ada"), ("session changed", "ada"), ("session ended", "grace"),
    ]  # fmt: skip
    kinds = [(one.kind, one.frame_id, one.members) for one in sessions.events(session.id, 9)]
    assert kinds == [("changed", "", ()), ("switched", "f7", (0, 2)), ("started", "", ())]
    assert len(sessions.events(session.id, 1)) == 1


def test_who_saw_an_older_session_cannot_switch_it(sessions: Sessions, session: Session) -> None:
    newer = sessions.switch(session, CHOSEN, kind="switched", why="")
    for seen in (session, newer):
        if seen is newer:
            put(sessions, ref="mos2")
        with pytest.raises(Conflict, match="changed meanwhile"):
            sessions.switch(seen, {**CHOSEN, "members": [1]}, kind="switched", why="")
    assert "now" not in sessions.running()[0].state


def test_only_an_instrument_in_use_has_sessions(sessions: Sessions, database: Database) -> None:
    with pytest.raises(NotFound, match="no instrument 'STEM-2'"):
        put(sessions, "STEM-2")
    with database.writing() as connection:
        connection.execute(update(InstrumentRow).values(retired=now(connection)))
    with pytest.raises(NotFound, match="it was retired"):
        put(sessions, "STEM-1", is_new_welcome=True)


def test_on_an_open_service_a_new_instrument_is_added(
    sessions: Sessions, database: Database
) -> None:
    assert put(sessions, "STEM-2", is_new_welcome=True).instrument == "STEM-2"
    assert [one.id for one in Instruments(database).list()] == ["STEM-1", "STEM-2"]
    with pytest.raises(InvalidInput, match="cannot be the id"):
        put(sessions, "STEM 3", is_new_welcome=True)


def test_of_many_who_start_a_session_at_once_one_session_comes(sessions: Sessions) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda budget: put(sessions, budget_ms=budget), range(1, 9)))
    assert len({one.id for one in made}) == 1
    (left,) = sessions.running()
    assert left.revision == 8


def test_of_many_who_switch_at_once_one_wins(sessions: Sessions, session: Session) -> None:
    def switch(member: int) -> bool:
        try:
            sessions.switch(session, {**CHOSEN, "members": [member]}, kind="switched", why="")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(switch, range(8))) == 1


# -- the history ----------------------------------------------------------------------------------
def test_frames_read_back_the_newest_first(sessions: Sessions, session: Session) -> None:
    made = [frame(session, f"f{number}", number, why="so") for number in range(5)]
    sessions.record(made)
    assert sessions.history(session.id, 3) == made[:1:-1]
    names = ["f9", *map(str, range(1000)), "f1"]
    assert sessions.frames(session.id, names) == {"f1": made[1]}


def test_a_frame_counts_once_however_often_it_is_recorded(
    sessions: Sessions, session: Session
) -> None:
    first = frame(session, "a", counted=["late"])
    sessions.record([first, frame(session, "a", 1), frame(session, "b", counted=["late"])])
    sessions.record([frame(session, "a", 2)])
    assert sessions.frames(session.id, ["a"]) == {"a": first}
    assert sessions.running()[0].state["counts"] == {"frames": 2, "late": 2}


def test_counts_of_several_replicas_add_up(sessions: Sessions, session: Session) -> None:
    def record(replica: int) -> None:
        for number in range(5):
            sessions.record([frame(session, f"{replica}-{number}")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(record, range(4)))
    assert sessions.running()[0].state["counts"]["frames"] == 20
    assert sessions.running()[0].revision == session.revision


def test_a_switch_keeps_the_counts_and_counts_keep_the_switch(
    sessions: Sessions, session: Session
) -> None:
    sessions.record([frame(session, "a")])
    sessions.switch(session, CHOSEN, kind="switched", why="")
    sessions.record([frame(session, "b")])
    state = sessions.running()[0].state
    assert (state["counts"]["frames"], state["now"]) == (2, CHOSEN)


def test_the_history_is_bounded(
    sessions: Sessions, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 10)
    monkeypatch.setattr(module, "SPARE", 4)
    for number in range(30):
        sessions.record([frame(session, f"f{number}", number)])
    left = [one.frame_id for one in sessions.history(session.id, 100)]
    assert left == [f"f{number}" for number in range(29, 29 - len(left), -1)]
    assert 10 <= len(left) <= 14
    assert sessions.running()[0].state["counts"]["frames"] == 30


def test_the_changes_that_are_kept_are_bounded(
    sessions: Sessions, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS_KEPT", 5)
    for budget in range(1, 20):
        put(sessions, budget_ms=budget)
    assert len(sessions.events(session.id, 99)) == 5


def test_the_session_of_a_retired_instrument_is_not_running(
    sessions: Sessions, session: Session, database: Database
) -> None:
    assert sessions.running() == [session]
    Instruments(database).retire("STEM-1")
    assert sessions.running() == []


def test_frames_of_sessions_that_ended_long_ago_are_forgotten(
    sessions: Sessions, session: Session, database: Database
) -> None:
    sessions.record([frame(session, "a")])
    for days, left in ((module.KEPT_DAYS - 1, 1), (module.KEPT_DAYS + 1, 0)):
        sessions.end("STEM-1")
        with database.writing() as connection:
            ended = now(connection) - timedelta(days=days)
            own = SessionRow.id == session.id
            connection.execute(update(SessionRow).where(own).values(ended=ended))
        put(sessions)
        assert len(sessions.history(session.id, 9)) == left


def test_frames_of_a_session_that_is_gone_are_left_out(sessions: Sessions) -> None:
    gone = frame(put(sessions), "a")
    sessions.record([AnsweredFrame(gone.session_id + 1, "b", AT, "", "graphene@1", (0,), {})])
    assert sessions.history(gone.session_id + 1, 9) == []


def test_frames_of_a_clock_that_was_ahead_are_older_than_those_that_follow(
    sessions: Sessions, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    monkeypatch.setattr(module, "SPARE", 1)
    today = datetime.now(UTC)
    ahead = [replace(frame(session, f"ahead-{n}"), at=today + timedelta(days=1)) for n in range(4)]
    sessions.record(ahead)
    for number in range(4):
        sessions.record([replace(frame(session, f"f{number}"), at=datetime.now(UTC))])
    names = [one.frame_id for one in sessions.history(session.id, 9)]
    assert names[:3] == ["f3", "f2", "f1"]


def test_only_so_many_sessions_go_on_at_once(
    sessions: Sessions, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SESSIONS", 2)
    put(sessions, "STEM-2", is_new_welcome=True)
    with pytest.raises(Conflict, match="2 sessions go on already"):
        put(sessions, "STEM-3", is_new_welcome=True)
    put(sessions, budget_ms=50)  # those that are there may change
    sessions.end(session.instrument)
    assert put(sessions, "STEM-3", is_new_welcome=True).instrument == "STEM-3"
    Instruments(sessions._database).retire("STEM-3")  # its session is not running any more
    assert put(sessions, "STEM-4", is_new_welcome=True).instrument == "STEM-4"

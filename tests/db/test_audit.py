"""db.audit: records follow one another, writers take turns, and tampering is named."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from manybeam.db.audit import UNREADABLE, AuditLog
from manybeam.db.database import Database
from manybeam.db.tables import AuditHead, AuditRecord
from manybeam.errors import Conflict, Corrupt, DatabaseUnreachable, InvalidInput


@pytest.fixture
def log(database: Database) -> AuditLog:
    return AuditLog(database)


def write(log: AuditLog, count: int) -> None:
    for number in range(1, count + 1):
        log.append("promote asked", f"graphene@{number}", who="ada")


def test_a_record_reads_back_as_it_was_written(log: AuditLog) -> None:
    made = log.append(
        "promote done", "graphene@3", who="ada@node7", reason="better", details={"to": 3}
    )
    assert log.entries() == [made]
    assert (made.number, made.subject, made.reason, made.details) == (
        1, "graphene@3", "better", {"to": 3},
    )  # fmt: skip


def test_records_are_listed_newest_first_and_by_subject(log: AuditLog) -> None:
    subjects = ("graphene@1", "graphene-hard@1", "graphene@2", "graphene", "Graphene@1")
    for subject in subjects:
        log.append("archive done", subject, who="ada")
    assert [one.number for one in log.entries()] == [5, 4, 3, 2, 1]
    assert [one.subject for one in log.entries("graphene")] == [
        "graphene", "graphene@2", "graphene@1",
    ]  # fmt: skip
    assert [one.number for one in log.entries("graphene@2")] == [3]


def test_the_newest_are_listed_and_all_are_counted(log: AuditLog) -> None:
    write(log, 5)
    assert [one.number for one in log.entries(limit=2)] == [5, 4]
    assert (log.count(), log.count("graphene@2"), log.count("wse2")) == (5, 1, 0)


def test_a_log_sees_what_others_wrote_after_it_looked(log: AuditLog, database: Database) -> None:
    write(log, 2)
    AuditLog(database).append("archive done", "wse2@1", who="bob")
    assert [one.who for one in log.entries()] == ["bob", "ada", "ada"]


def test_an_empty_log_holds_nothing_and_verifies(log: AuditLog) -> None:
    assert (log.entries(), log.head(), log.verify().count) == ([], 0, 0)


WRITES = """
import sys
from manybeam.db.audit import AuditLog
from manybeam.db.deployment import open_database
log = AuditLog(open_database(sys.argv[1]))
for number in range(5):
    log.append("note", f"p{sys.argv[2]}@{number}", who="w")
"""


@pytest.mark.slow
def test_many_writers_at_once_lose_no_record_and_break_no_link(
    log: AuditLog, database: Database, database_url: str
) -> None:
    def append(writer: int) -> None:
        for number in range(5):
            AuditLog(database).append("note", f"t{writer}@{number}", who="w")

    started = [
        subprocess.Popen([sys.executable, "-c", WRITES, database_url, str(n)]) for n in range(2)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    assert [one.wait(60) for one in started] == [0, 0]
    assert log.verify().count == 30
    names = [f"t{n}" for n in range(4)] + ["p0", "p1"]
    assert {one.subject for one in log.entries()} == {f"{w}@{n}" for w in names for n in range(5)}


def test_a_record_is_refused_by_what_came_since_its_writer_looked(log: AuditLog) -> None:
    write(log, 1)
    seen = log.head()
    log.append("promote asked", "graphene@9", who="bob")
    with pytest.raises(Conflict, match=r"graphene@9: bob came first with 'promote asked'"):
        log.append(
            "promote asked",
            "graphene@2",
            who="ada",
            since=seen,
            unless=lambda one: one.who == "bob",
        )
    assert log.head() == 2


def test_of_writers_that_forbid_each_other_exactly_one_wins(database: Database) -> None:
    def append(_: int) -> bool:
        try:
            AuditLog(database).append("x", "a", who="ada", since=0, unless=lambda _: True)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(append, range(6))) == 1
    assert AuditLog(database).head() == 1


# -- tampering ------------------------------------------------------------------------------------
def content(connection: Connection, number: int) -> bytes:
    wanted = select(AuditRecord.content).where(AuditRecord.number == number)
    return bytes(connection.execute(wanted).scalar_one())


def put(connection: Connection, number: int, new: bytes) -> None:
    values = {"content": new, "sha256": hashlib.sha256(new).hexdigest()}
    own = AuditRecord.number == number
    connection.execute(update(AuditRecord).where(own).values(values))


def remove(connection: Connection, *numbers: int) -> None:
    connection.execute(delete(AuditRecord).where(AuditRecord.number.in_(numbers)))


def changed(connection: Connection) -> None:
    told = json.loads(content(connection, 2))
    put(connection, 2, json.dumps({**told, "who": "mallory"}, indent=1).encode())


def swapped(connection: Connection) -> None:
    second, third = content(connection, 2), content(connection, 3)
    put(connection, 2, third)
    put(connection, 3, second)


def moved(connection: Connection) -> None:
    own = AuditRecord.number == 2
    connection.execute(update(AuditRecord).where(own).values(ensemble="mos2"))


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        pytest.param(changed, "broken at record 3: record 2 is not the one", id="changed"),
        pytest.param(lambda c: remove(c, 2), "record 2: it is missing", id="removed"),
        pytest.param(swapped, "record 2: it says that it is record 3", id="swapped"),
        pytest.param(moved, "record 2: the columns beside it", id="hidden from its subject"),
        pytest.param(lambda c: put(c, 2, b'{"number": 2'), "record 2: it cannot", id="torn"),
        pytest.param(lambda c: put(c, 2, b""), "record 2: it cannot", id="empty"),
        pytest.param(lambda c: remove(c, 4), "record 4: it is missing", id="cut off the end"),
    ],
)
def test_a_record_that_was_tampered_with_is_named(
    log: AuditLog, database: Database, tamper: Callable[[Connection], None], told: str
) -> None:
    write(log, 4)
    with database.writing() as connection:
        tamper(connection)
    with pytest.raises(Corrupt, match=told):
        log.verify()


def test_records_cut_off_with_all_traces_are_found_by_an_anchor_kept_elsewhere(
    log: AuditLog, database: Database
) -> None:
    write(log, 3)
    anchor = log.verify().anchor
    log.append("note", "graphene", who="ada")
    assert log.verify(anchor).count == 4
    with database.writing() as connection:
        remove(connection, 3, 4)
        sha256 = hashlib.sha256(content(connection, 2)).hexdigest()
        connection.execute(update(AuditHead).values(number=2, sha256=sha256))
    assert log.verify().count == 2
    with pytest.raises(Corrupt, match="record 3: it is not the record the anchor was taken of"):
        log.verify(anchor)


def test_a_damaged_record_hides_no_other_and_stops_no_writer(
    log: AuditLog, database: Database
) -> None:
    write(log, 3)
    with database.writing() as connection:
        put(connection, 2, b"\xff\xfe not JSON")
    assert log.append("note", "graphene", who="ada").number == 4
    assert [one.action == UNREADABLE for one in log.entries()] == [False, False, True, False]


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        pytest.param(" \n", "", id="no name"),
        pytest.param("a" * 101, "", id="long name"),
        pytest.param("ada", "x" * 2001, id="long reason"),
    ],
)
def test_a_record_needs_a_name_and_bounded_words(log: AuditLog, who: str, reason: str) -> None:
    with pytest.raises(InvalidInput):
        log.append("note", "graphene", who=who, reason=reason)
    assert log.head() == 0


def test_an_anchor_of_another_form_is_refused(log: AuditLog) -> None:
    with pytest.raises(InvalidInput, match="is no anchor"):
        log.verify("yesterday")


# -- an older version's log -----------------------------------------------------------------------
def old_records(count: int) -> dict[int, bytes]:
    """Records as older versions wrote them, one object each."""
    found, before = {}, ""
    for number in range(1, count + 1):
        told = {"number": number, "when": "2026-03-01T10:00:00.000+00:00", "action": "archive done"}
        told |= {"subject": f"graphene@{number}", "who": "ada@node7", "reason": "old"}
        told |= {"details": {"claim": 1}, "previous": before, "writer": "node7 4711"}
        told |= {"id": "f" * 32, "format": "manybeam-audit-1"}
        found[number] = json.dumps(told, indent=1).encode()
        before = hashlib.sha256(found[number]).hexdigest()
    return found


def test_an_older_log_is_taken_over_byte_for_byte_and_goes_on(log: AuditLog) -> None:
    old = old_records(3)
    assert log.take_over(old, "s3://lab/audit") == 3
    assert log.append("note", "graphene", who="bob").number == 4
    assert log.verify(f"3:{hashlib.sha256(old[3]).hexdigest()}").count == 4
    assert [one.who for one in log.entries("graphene@2")] == ["ada@node7"]


def test_an_older_log_is_taken_over_once(log: AuditLog) -> None:
    assert [log.take_over(old_records(n), "s3://lab/audit") for n in (2, 3)] == [2, 0]
    assert log.head() == 2


def test_of_many_who_take_an_older_log_over_at_once_one_does(database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: AuditLog(database).take_over(old_records(5), "x"), "abcd"))
    assert sorted(taken) == [0, 0, 0, 5]
    assert AuditLog(database).verify().count == 5


@pytest.mark.parametrize(
    ("old", "told"),
    [
        pytest.param({**old_records(3), 2: b"{"}, "record 2: it cannot be read", id="damaged"),
        pytest.param({1: b"x", 3: old_records(3)[3]}, "record 1: it cannot", id="the first"),
        pytest.param(
            {n: one for n, one in old_records(3).items() if n != 2}, "record 2: it is missing",
            id="missing",
        ),
    ],
)  # fmt: skip
def test_a_damaged_record_of_an_older_log_is_kept_and_named(
    log: AuditLog, database: Database, old: dict[int, bytes], told: str
) -> None:
    log.take_over(old, "s3://lab/audit")
    with pytest.raises(Corrupt, match=told):
        log.verify()
    with database.reading() as connection:
        assert {n: content(connection, n) for n in old} == old
    assert log.append("note", "graphene", who="bob").number == 4


@pytest.mark.postgres
def test_a_database_that_is_down_is_said_to_be(new_services: Callable[[], Any]) -> None:
    from manybeam.db.deployment import open_database

    services = new_services()
    services.start("postgres")
    log = AuditLog(open_database(services.settings()["MANYBEAM_DATABASE_URL"]))
    log.append("note", "graphene", who="ada")
    services.stop("postgres")
    with pytest.raises(DatabaseUnreachable):
        log.append("note", "graphene", who="ada")

"""db.copies: rows out and back in, from one kind of database to the other and from older steps."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from manybeam.db.audit import AuditLog
from manybeam.db.copies import copy_sqlite, is_unused, read_rows, write_rows
from manybeam.db.database import Database
from manybeam.db.deployment import open_database
from manybeam.db.migrations import REVISION, migrate
from manybeam.db.predictions import Predictions
from manybeam.db.preference import Preference, Retraction
from manybeam.db.preferences import Preferences
from manybeam.db.tables import JobEventRow, JobRow, PersonRow
from manybeam.db.tokens import Tokens
from manybeam.errors import Conflict, Corrupt

NOW = datetime(2026, 3, 1, 12, 30, 0, 250_000, tzinfo=UTC)
ONE = Preference(
    "p", "Ada", NOW.isoformat(), "graphene", 2, (2,), (0,), "d", "a.tif", 1.5, None, {}
)


def fill(database: Database) -> str:
    """Write something of every kind, and return the text of a token."""
    log = AuditLog(database)
    log.append("promote done", "graphene@3", who="ada", details={"from": None, "to": 3})
    Preferences(database).take_over([ONE], {ONE.id: Retraction("Grace", NOW)}, "x", unreadable=0)
    Predictions(database).note("graphene@3", "s3://lab/a")
    person = {"name": "Ada", "email": "", "issuer": "", "subject": "", "created": NOW}
    job: dict[str, Any] = dict.fromkeys(
        ("kind", "state", "reason", "ensemble", "submitted_by", "engine", "engine_ref", "result"),
        "x",
    )
    job |= {"id": 7, "spec": {"steps": [1, 2.5]}, "priority": 0, "attempt": 1, "submitted": NOW}
    event = {"job_id": 7, "at": NOW, "kind": "log", "text": "wie geht’s\n", "values": {}}
    with database.writing() as connection:
        connection.execute(insert(PersonRow).values(person))
        connection.execute(insert(JobRow).values(job))
        connection.execute(insert(JobEventRow).values(event))
    return Tokens(database).create("scan", ["predict"], person="Ada")[0]


@pytest.fixture
def other(database: Database, tmp_path: Path, request: pytest.FixtureRequest) -> Database:
    """An empty database of the other kind."""
    if not database.is_sqlite:
        return open_database(f"sqlite:///{tmp_path}/other.db")
    make: Callable[[], str] = request.getfixturevalue("new_schema")
    return open_database(make())


@pytest.mark.needs("postgres_server")
def test_rows_of_one_kind_of_database_are_the_same_in_the_other(
    database: Database, other: Database, tmp_path: Path
) -> None:
    token, folder = fill(database), tmp_path / "rows"
    folder.mkdir()
    with database.at_rest() as connection:
        step = write_rows(connection, folder)
    read_rows(other, folder, step)
    assert AuditLog(other).verify() == AuditLog(database).verify()
    assert Preferences(other).retraction(ONE.id) == Retraction("Grace", NOW)
    assert Predictions(other).of("graphene@3") == ("s3://lab/a",)
    assert Tokens(other).verify(token) is not None
    with other.reading() as connection:
        assert connection.execute(select(JobRow.spec)).scalar_one() == {"steps": [1, 2.5]}
        row = connection.execute(select(JobEventRow.at, JobEventRow.text)).one()
    assert tuple(row) == (NOW, "wie geht’s\n")


def test_numbers_go_on_after_those_that_were_put_in(database: Database, tmp_path: Path) -> None:
    fill(database)
    with database.at_rest() as connection:
        step = write_rows(connection, tmp_path)
    read_rows(database, tmp_path, step)
    Predictions(database).note("graphene@3", "s3://lab/b")
    assert Predictions(database).of("graphene@3") == ("s3://lab/a", "s3://lab/b")
    assert AuditLog(database).append("note", "graphene", who="ada").number == 3  # after the token's


def test_rows_of_an_older_step_are_brought_up_to_date(database: Database, tmp_path: Path) -> None:
    AuditLog(database).append("note", "graphene", who="ada")
    migrate.move(database, "0001")
    with database.at_rest() as connection:
        step = write_rows(connection, tmp_path)
    migrate.move(database, "head")
    fill(database)
    read_rows(database, tmp_path, step)
    assert step == "0001"
    assert (AuditLog(database).verify().count, Tokens(database).list()) == (1, [])
    with database.reading() as connection:
        assert migrate.revision(connection) == REVISION


def test_a_line_that_is_no_row_leaves_the_database_as_it_was(
    database: Database, tmp_path: Path
) -> None:
    fill(database)
    with database.at_rest() as connection:
        step = write_rows(connection, tmp_path)
    (tmp_path / "tokens.jsonl").write_text('{"id": "t"')
    with pytest.raises(Corrupt, match=r"tokens\.jsonl"):
        read_rows(database, tmp_path, step)
    assert (len(Tokens(database).list()), AuditLog(database).head()) == (1, 2)


def test_rows_of_a_newer_manybeam_are_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="step 9999"):
        read_rows(database, tmp_path, "9999")


def test_a_database_is_unused_until_somebody_writes(database: Database) -> None:
    assert is_unused(database)
    Predictions(database).note("graphene@3", "s3://lab/a")
    assert not is_unused(database)


# -- MLflow's file --------------------------------------------------------------------------------
def test_a_copy_of_a_file_in_use_is_of_one_state(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as used:
        used.execute("CREATE TABLE t (x)")
        used.execute("INSERT INTO t VALUES (1)")
        used.commit()
        used.execute("INSERT INTO t VALUES (2)")  # not committed yet
        copy_sqlite(tmp_path / "a.db", tmp_path / "b.db")
    with closing(sqlite3.connect(tmp_path / "b.db")) as made:
        assert made.execute("SELECT x FROM t").fetchall() == [(1,)]

"""db.migrate: tables brought up and back from every released step, with what lies in them."""

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from manybeam.db.database import Database
from manybeam.db.migrations import REVISION, TABLE, migrate
from manybeam.db.tables import DatabaseTable

STEPS = [one.revision for one in ScriptDirectory(str(migrate.FOLDER)).walk_revisions()][::-1]
KEPT = "INSERT INTO locks VALUES ('ensemble a', 7, 'm', 1, 2.5, '', 'ada', 'x', :at, :at)"


@pytest.fixture
def empty(database_url: str) -> Any:
    """A database without tables."""
    found = Database(database_url)
    with found.changing_tables():
        pass
    yield found
    found.close()


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {TABLE}


def differences(connection: Connection) -> list[Any]:
    """What differs between the database and `tables`."""
    given = {"compare_type": True, "target_metadata": DatabaseTable.metadata}
    context = MigrationContext.configure(
        connection,
        opts={
            **given,
            "include_name": lambda name, kind, _: (kind, name) != ("table", TABLE),
        },
    )
    return list(compare_metadata(context, DatabaseTable.metadata))


def test_the_newest_step_is_the_one_that_is_named() -> None:
    assert STEPS[-1] == REVISION
    assert len({Path(one).name for one in map(str, STEPS)}) == len(STEPS)


def test_the_steps_make_the_tables_that_the_code_uses(empty: Database) -> None:
    migrate.move(empty, "head")
    with empty.reading() as connection:
        assert tables(connection) == set(DatabaseTable.metadata.tables)
        assert differences(connection) == []


@pytest.mark.parametrize("step", STEPS)
def test_every_released_step_goes_up_to_the_newest_and_back_with_its_rows(
    empty: Database, step: str
) -> None:
    migrate.move(empty, step)
    with empty.writing() as connection:
        connection.execute(text(KEPT), {"at": "2026-03-01 00:00:00+00:00"})
        before = tables(connection)
    migrate.move(empty, "head")
    with empty.reading() as connection:
        assert migrate.revision(connection) == REVISION
        assert connection.execute(text("SELECT fence FROM locks")).scalar() == 7
        assert differences(connection) == []
    migrate.move(empty, step)
    with empty.reading() as connection:
        assert (migrate.revision(connection), tables(connection)) == (step, before)
        assert connection.execute(text("SELECT fence FROM locks")).scalar() == 7


def test_all_steps_back_leave_no_table(empty: Database) -> None:
    migrate.move(empty, "head")
    migrate.move(empty, "base")
    with empty.reading() as connection:
        assert (migrate.revision(connection), tables(connection)) == ("", set())


def test_a_step_that_fails_leaves_the_database_as_it_was(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.move(empty, STEPS[0])
    with empty.writing() as connection:
        connection.execute(text("CREATE TABLE tokens (id TEXT)"))  # what a later step makes
        before = tables(connection)
    with pytest.raises(Exception, match="tokens"):
        migrate.move(empty, "head")
    with empty.reading() as connection:
        assert (migrate.revision(connection), tables(connection)) == (STEPS[0], before)


def test_moving_to_where_it_is_does_nothing(empty: Database) -> None:
    for _ in range(2):
        migrate.move(empty, "head")
    with empty.reading() as connection:
        assert migrate.revision(connection) == REVISION

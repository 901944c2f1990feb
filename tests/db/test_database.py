"""db.database and db.deployment: one state for readers, whole blocks for writers, refusals."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from manybeam.db.database import Database, now
from manybeam.db.deployment import open_database
from manybeam.db.migrations import REVISION, TABLE, migrate
from manybeam.db.tables import ImportRow, TokenRow
from manybeam.errors import (
    Conflict,
    Corrupt,
    DatabaseUnreachable,
    InvalidSetting,
    WriteFailed,
)
from manybeam.settings import settings

UseSettings = Callable[[dict[str, str]], None]
ROW = {"place": "", "count": 0, "unreadable": 0, "done": datetime(2026, 3, 1, tzinfo=UTC)}


def add(database: Database, kind: str) -> None:
    with database.writing() as connection:
        connection.execute(insert(ImportRow).values(kind=kind, **ROW))


def kinds(database: Database) -> list[str]:
    with database.reading() as connection:
        return sorted(connection.execute(select(ImportRow.kind)).scalars())


def test_a_time_reads_back_with_its_zone(database: Database) -> None:
    add(database, "a")
    with database.reading() as connection:
        assert connection.execute(select(ImportRow.done)).scalar_one() == ROW["done"]


def test_a_block_that_fails_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.writing() as connection:
            connection.execute(insert(ImportRow).values(kind="a", **ROW))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert kinds(database) == []


def test_a_reader_sees_one_state_while_others_write(database: Database) -> None:
    add(database, "a")
    with database.reading() as connection:
        assert len(connection.execute(select(ImportRow.kind)).all()) == 1
        add(database, "b")
        assert len(connection.execute(select(ImportRow.kind)).all()) == 1
    assert kinds(database) == ["a", "b"]


def test_what_breaks_a_foreign_key_is_refused(database: Database) -> None:
    row = {"id": "t", "name": "t", "sha256": "x", "scopes": [], "person_id": 7}
    with pytest.raises(Conflict), database.writing() as connection:
        connection.execute(insert(TokenRow).values(created=ROW["done"], **row))


def test_the_same_row_twice_is_a_conflict(database: Database) -> None:
    add(database, "a")
    with pytest.raises(Conflict, match="another process wrote first"):
        add(database, "a")


def test_the_clock_of_the_database_goes_on(database: Database) -> None:
    with database.reading() as connection:
        times = [now(connection) for _ in range(3)]
    assert times == sorted(times)
    assert abs((times[0] - datetime.now(UTC)).total_seconds()) < 60


def test_threads_share_one_database(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add(database, f"k{n:02d}"), range(24)))
    assert len(kinds(database)) == 24


OPENS = """
import sys
from manybeam.db.deployment import open_database
sys.stdin.readline()
open_database(sys.argv[1])
"""


@pytest.mark.slow
def test_processes_that_open_a_new_database_at_once_all_find_it(database_url: str) -> None:
    argv = [sys.executable, "-c", OPENS, database_url]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) for _ in range(4)]
    for one in started:
        one.communicate("\n")
    assert [one.returncode for one in started] == [0] * 4
    with open_database(database_url).reading() as connection:
        assert migrate.revision(connection) == REVISION


def test_a_database_of_a_newer_manybeam_is_refused_and_left_as_it_is(database_url: str) -> None:
    database = open_database(database_url)
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {TABLE} SET version_num = '9999'"))
    with pytest.raises(Conflict, match="newer Manybeam: step 9999"):
        migrate.bring_up_to_date(database)


def test_a_child_of_fork_speaks_on_connections_of_its_own(database: Database) -> None:
    add(database, "parent")
    pid = os.fork()
    if pid == 0:  # the child: no pytest from here on
        try:
            add(database, "child")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert kinds(database) == ["child", "parent"]


# -- SQLite ---------------------------------------------------------------------------------------
def test_the_default_is_a_file_below_home_with_a_log_written_ahead(
    tmp_path: Path, use_settings: UseSettings
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    database = open_database()
    assert database.path == tmp_path / "home" / "manybeam.db"
    with database.reading() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_a_writer_waits_for_another_and_one_that_waits_too_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manybeam.db.database.WAIT_S", 0.2)
    database = open_database(f"sqlite:///{tmp_path}/a.db")
    done = threading.Event()
    with database.writing() as connection:
        connection.execute(insert(ImportRow).values(kind="a", **ROW))
        with pytest.raises(DatabaseUnreachable, match="locked"):
            add(database, "b")
    done.set()
    add(database, "b")
    assert kinds(database) == ["a", "b"]


def test_a_file_that_is_no_database_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(Corrupt, match=r"a\.db is damaged"):
        open_database(f"sqlite:///{tmp_path}/a.db")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailed, match="cannot make the folder"):
        open_database(f"sqlite:///{tmp_path}/file/a.db")


# -- settings -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("manybeam", id="no URL"),
        pytest.param("mysql://u:secret@host/name", id="another kind"),
        pytest.param("sqlite://", id="in memory"),
        pytest.param("postgresql+psycopg://u:secret@host", id="no name"),
        pytest.param("postgresql+psycopg://u:secret@host:port/name", id="no port"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSetting, match="database_url") as refused:
        Database(url)
    assert "secret" not in str(refused.value)


def test_a_server_that_does_not_answer_is_said_without_its_password() -> None:
    with pytest.raises(DatabaseUnreachable, match="does not answer") as refused:
        open_database("postgresql://lab:secret@127.0.0.1:9/manybeam")
    assert "secret" not in str(refused.value)


@pytest.mark.postgres
def test_a_password_that_is_refused_is_said(postgres_server: Any) -> None:
    url = Database(postgres_server.settings()["MANYBEAM_DATABASE_URL"]).url
    wrong = url.set(password="wrong").render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnreachable, match="password authentication failed"):
        open_database(wrong)


@pytest.mark.postgres
def test_a_silent_connection_is_given_up_soon_unless_the_url_says_otherwise(
    new_schema: Callable[[], str],
) -> None:
    for more, timeout_ms in (("", "10000"), ("&tcp_user_timeout=70000", "70000")):
        with open_database(new_schema() + more).reading() as connection:
            told = connection.connection.driver_connection.info.get_parameters()
        assert told["tcp_user_timeout"] == timeout_ms
        assert told["keepalives_idle"] == "5"


@pytest.mark.postgres
def test_a_reading_with_a_limit_ends_in_time_and_leaves_no_limit_behind(
    new_schema: Callable[[], str],
) -> None:
    database = open_database(new_schema())
    with (
        pytest.raises(DatabaseUnreachable, match="timeout"),
        database.reading(0.1) as connection,
    ):
        connection.execute(text("SELECT pg_sleep(5)"))
    with database.reading() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "0"


@pytest.mark.postgres
def test_tables_lie_beside_those_of_mlflow_in_a_schema_of_their_own(postgres_server: Any) -> None:
    database = open_database(postgres_server.settings()["MANYBEAM_DATABASE_URL"])
    with database.reading() as connection:
        assert database.schema(connection) == "manybeam"
        found = connection.execute(text("SELECT to_regclass('public.audit_records')"))
        assert found.scalar() is None


@pytest.mark.parametrize("uri", ["https://mlflow.lab", "postgresql://mlflow.lab/zoo"])
def test_a_shared_zoo_needs_a_shared_database(uri: str, use_settings: UseSettings) -> None:
    use_settings({"MANYBEAM_TRACKING_URI": uri})
    with pytest.raises(InvalidSetting, match="export MANYBEAM_DATABASE_URL="):
        open_database()
    use_settings({"MANYBEAM_DATABASE_URL": "sqlite:////folder/manybeam.db"})
    assert settings().database_address == "sqlite:////folder/manybeam.db"


def test_the_password_of_the_database_is_not_shown(use_settings: UseSettings) -> None:
    use_settings({"MANYBEAM_DATABASE_URL": "postgresql://lab:hush@host/name"})
    assert "hush" not in repr(settings())
    assert "hush" not in repr(Database(settings().database_address))


def test_the_file_gets_the_modes_that_the_umask_allows(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/a.db")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.db").stat().st_mode) == 0o644 & ~mask

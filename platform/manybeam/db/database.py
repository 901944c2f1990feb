"""A database and its transactions: a SQLite file below MANYBEAM_HOME, or PostgreSQL.

A reader sees one state. A writer's block is one transaction; SQLite has one writer at a time.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Pool,
    QueuePool,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from manybeam.db.refusals import answering
from manybeam.db.tables import DatabaseTable
from manybeam.errors import InvalidSetting, MissingPackage, WriteFailed

SCHEMA = "manybeam"  # of PostgreSQL, so that MLflow's tables may lie in the same database
WAIT_S = 20  # for a lock of another writer, and for a connection
# When a connection that is silent counts as dead; without it, Linux waits a quarter of an hour. A
# server that works long on a statement is not silent: its system answers.
_SILENCE = {
    "tcp_user_timeout": 10_000,  # ms
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
_parents: list[Pool] = []  # connections of the process this one was forked from
_FORMS = "postgresql+psycopg://user:password@host/name, or sqlite:////folder/file.db"


class Database:
    """One database; shared by threads and made anew in each process; `deployment` opens it.

    Args:
        url: SQLAlchemy's URL of it, as `MANYBEAM_DATABASE_URL` has it.

    Raises:
        InvalidSetting: no URL, or one of another kind of database.
        MissingPackage: the driver of PostgreSQL is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)

    def __repr__(self) -> str:
        return f"Database({self.place!r})"

    @property
    def place(self) -> str:
        """Where it is, without the password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def path(self) -> Path | None:
        """The file of SQLite; None for PostgreSQL."""
        return Path(self.url.database or "") if self.is_sqlite else None

    @contextmanager
    def reading(self, limit_s: float | None = None) -> Iterator[Connection]:
        """Give a connection that sees one state, also if others write meanwhile.

        Args:
            limit_s: longest time of one statement; only PostgreSQL keeps it.

        Raises:
            DatabaseUnreachable: there is no answer, or none in time.
        """
        options = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._block(**options) as connection:
            if limit_s is not None and not self.is_sqlite:
                limit = f"SET LOCAL statement_timeout = {round(limit_s * 1000)}"
                connection.exec_driver_sql(limit)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection whose changes are committed if the block ends without an error.

        Raises:
            DatabaseUnreachable: there is no answer, or another writer took too long.
            WriteFailed: the disk is full, or the file cannot be written.
        """
        with self._block(manybeam_begin="IMMEDIATE") as connection:
            yield connection

    def at_rest(self) -> AbstractContextManager[Connection]:
        """Give a connection that sees one state, to copy it together with other data.

        On SQLite, writers wait meanwhile. PostgreSQL shows the same state to `pg_dump`.
        """
        return self.writing() if self.is_sqlite else self.reading()

    @contextmanager
    def changing_tables(self) -> Iterator[Connection]:
        """Give the only connection that may change tables now; foreign keys rest meanwhile."""
        if self.is_sqlite:
            self._make_file()
        with self._block(manybeam_begin="IMMEDIATE", manybeam_keys="OFF") as connection:
            if not self.is_sqlite:
                lock = func.pg_advisory_xact_lock(func.hashtext(text("'manybeam tables'")))
                connection.execute(select(lock))
                connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{self.schema(connection)}"'))
            yield connection

    def schema(self, connection: Connection) -> str:
        """Return the schema of PostgreSQL in which the tables lie."""
        path = str(connection.execute(text("SHOW search_path")).scalar_one())
        return path.split(",")[0].strip().strip('"')

    def close(self) -> None:
        """Close idle connections."""
        self._engine.dispose()

    @contextmanager
    def _block(self, **options: Any) -> Iterator[Connection]:
        begun = self._engine.execution_options(**options).begin()
        with answering(self.place), begun as connection:
            yield connection

    def _make_file(self) -> None:
        """Make the file and its folder, in a mode for many readers beside one writer."""
        path = self.path or Path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteFailed(f"cannot make the folder {path.parent}", str(error), "") from error
        with answering(self.place), closing(sqlite3.connect(path, timeout=WAIT_S)) as made:
            made.execute("PRAGMA journal_mode = WAL")


def now(connection: Connection) -> datetime:
    """Return the time by the database's clock, which all writers share."""
    if connection.dialect.name == "sqlite":
        utc = connection.execute(text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")).scalar_one()
        return datetime.fromisoformat(str(utc)).replace(tzinfo=UTC)
    found: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return found.astimezone(UTC)


def insert_if_new(
    connection: Connection, table: type[DatabaseTable], row: Mapping[str, Any]
) -> None:
    """Insert a row if there is none with its key; safe if several processes do so."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(dialect.insert(table).values(row).on_conflict_do_nothing())


def _checked_url(url: str) -> URL:
    try:
        found = make_url(url)
    except (ArgumentError, ValueError) as error:
        # SQLAlchemy's message repeats the URL, which may contain a password.
        raise InvalidSetting("database_url is no URL of a database", _FORMS, "") from error
    if found.drivername in ("postgres", "postgresql"):
        found = found.set(drivername="postgresql+psycopg")
    is_known = found.drivername in ("postgresql+psycopg", "sqlite")
    if not is_known or not found.database or found.database == ":memory:":
        raise InvalidSetting(
            f"database_url: {found.render_as_string(hide_password=True)!r} cannot be used",
            f"allowed: {_FORMS}",
            "set MANYBEAM_DATABASE_URL, or leave it away for a file below MANYBEAM_HOME",
        )
    return found


def _sqlite_engine(url: URL) -> Engine:
    """Return an engine that begins its transactions itself, because Python begins them late.

    It makes no file: one that is away, as while it is restored, is an error and no empty database.
    """
    file = f"file:{quote(url.database or '')}?mode=rw"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(file, uri=True, timeout=WAIT_S, check_same_thread=False)

    engine = create_engine(url, poolclass=QueuePool, pool_timeout=WAIT_S, creator=connect)

    @event.listens_for(engine, "connect")
    def connected(raw: Any, _: object) -> None:
        raw.isolation_level = None
        raw.execute("PRAGMA synchronous = FULL")  # what is recorded outlives a power cut

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA foreign_keys = {options.get('manybeam_keys', 'ON')}")
        connection.exec_driver_sql(f"BEGIN {options.get('manybeam_begin', 'DEFERRED')}")

    return _safe_to_fork(engine)


def _postgres_engine(url: URL) -> Engine:
    options = f"-c lock_timeout={WAIT_S * 1000} -c timezone=UTC"
    given = str(url.query.get("options", ""))
    if "search_path" not in given:
        options += f" -c search_path={SCHEMA}"
    wanted = url.difference_update_query(["options"])
    silence = {name: value for name, value in _SILENCE.items() if name not in url.query}
    try:
        engine = create_engine(
            wanted,
            poolclass=QueuePool,
            pool_pre_ping=True,
            pool_timeout=WAIT_S,
            connect_args={
                "options": f"{options} {given}".strip(),
                "connect_timeout": 10,
                **silence,
            },
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MissingPackage(
            "PostgreSQL needs the package psycopg", "", "pip install 'manybeam[facility]'"
        ) from error
    except SQLAlchemyError as error:
        raise InvalidSetting("database_url cannot be used", _FORMS, "") from error
    return _safe_to_fork(engine)


def _safe_to_fork(engine: Engine) -> Engine:
    """Return an engine whose connections a child of fork neither uses nor closes."""

    def leave() -> None:
        _parents.append(engine.pool)
        engine.dispose(close=False)

    os.register_at_fork(after_in_child=leave)
    return engine

"""Copies of databases: our own as lines of JSON, MLflow's by the tools of its database.

Our own rows are written table by table, each value as JSON, so that a copy from SQLite can be
restored into PostgreSQL and the other way round. MLflow's tables in SQLite are copied by SQLite,
those in PostgreSQL by `pg_dump` and `pg_restore`.
"""

import base64
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    Connection,
    DateTime,
    LargeBinary,
    MetaData,
    Table,
    delete,
    insert,
    inspect,
    make_url,
    select,
    text,
)

from manybeam.db.database import Database
from manybeam.db.migrations import TABLE, migrate
from manybeam.errors import Corrupt, MissingPackage, WorkFailed

_ROWS = 500  # of one statement
_MLFLOW = "registered_models"  # a table by which MLflow's are known
MLFLOW_SCHEMA = "public"  # of PostgreSQL


# -- our own --------------------------------------------------------------------------------------
def write_rows(connection: Connection, folder: Path) -> str:
    """Write every row of our own tables, one file a table; return the step of the tables.

    Args:
        connection: all are read in its block, so that they are of one state.
        folder: where to; it is there.
    """
    for table in _tables(connection):
        with (folder / f"{table.name}.jsonl").open("w") as out:
            for row in connection.execute(select(table)):
                plain = {name: _as_json(value) for name, value in row._mapping.items()}
                out.write(json.dumps(plain) + "\n")
    return migrate.revision(connection)


def read_rows(database: Database, folder: Path, step: str) -> None:
    """Put the rows of a folder in place of all rows of a database, then bring it up to date.

    Args:
        database: where to.
        folder: of the rows.
        step: of the tables that they came from.

    Raises:
        Conflict: a newer Manybeam wrote them.
        Corrupt: a line is not a row of its table.
    """
    migrate.move(database, step)
    with database.writing() as connection:
        tables = _tables(connection)
        for table in reversed(tables):
            connection.execute(delete(table))
        for table in tables:
            rows = [_row(table, line) for line in _lines(folder / f"{table.name}.jsonl")]
            for start in range(0, len(rows), _ROWS):
                connection.execute(insert(table), rows[start : start + _ROWS])
            if not database.is_sqlite and "id" in table.columns:
                _go_on_counting(connection, table.name)
    migrate.move(database, "head")


def is_unused(database: Database) -> bool:
    """Whether all tables are empty, except those that Manybeam fills itself."""
    with database.reading() as connection:
        own = [one for one in _tables(connection) if one.name not in ("audit_head", "imports")]
        return not any(connection.execute(select(one).limit(1)).first() for one in own)


def _tables(connection: Connection) -> list[Table]:
    """Return our tables as they are in a database, those that others refer to first."""
    found = MetaData()
    found.reflect(connection)
    return [one for one in found.sorted_tables if one.name != TABLE]


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):  # SQLite keeps no zone
        return value.replace(tzinfo=value.tzinfo or UTC).isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _row(table: Table, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        return {name: _from_json(table.c[name].type, value) for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"a line of {table.name}.jsonl is no row: {error}", "", "") from error


def _from_json(kind: object, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, DateTime):
        return datetime.fromisoformat(value)
    return base64.b64decode(value) if isinstance(kind, LargeBinary) else value


def _go_on_counting(connection: Connection, table: str) -> None:
    """Let PostgreSQL number new rows after those that were put in."""
    named = text("SELECT pg_get_serial_sequence(:table, 'id')")
    sequence = connection.execute(named, {"table": table}).scalar()
    if sequence is not None:
        last = f"(SELECT coalesce(max(id), 0) + 1 FROM {table})"  # noqa: S608 - a table of ours
        connection.execute(text(f"SELECT setval('{sequence}', {last}, false)"))


# -- MLflow's, in SQLite --------------------------------------------------------------------------
def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite database that may be in use; the copy is of one state."""
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as found,
        closing(sqlite3.connect(target)) as made,
    ):
        found.backup(made)


# -- MLflow's, in PostgreSQL ----------------------------------------------------------------------
def holds_mlflow(url: str) -> bool:
    """Whether a PostgreSQL database has MLflow's tables."""
    database = Database(url)
    try:
        if database.is_sqlite:
            return False
        with database.reading() as connection:
            return inspect(connection).has_table(_MLFLOW, schema=MLFLOW_SCHEMA)
    finally:
        database.close()


def snapshot(connection: Connection) -> str:
    """Return the name by which `pg_dump` sees the same state as this block, until it ends."""
    return str(connection.execute(text("SELECT pg_export_snapshot()")).scalar_one())


def dump_postgres(url: str, target: Path, *, state: str = "") -> None:
    """Write MLflow's tables of a PostgreSQL with `pg_dump`.

    Args:
        url: of the database.
        target: the file to make.
        state: the name of the state to write, see `snapshot`; the present one if left out.

    Raises:
        MissingPackage: there is no `pg_dump`.
        WorkFailed: it failed.
    """
    options = ["--format=custom", "--no-owner", "--table=public.*", f"--file={target}"]
    _run("pg_dump", url, [*options, *([f"--snapshot={state}"] if state else [])])


def restore_postgres(url: str, source: Path) -> None:
    """Put MLflow's tables in place of those of a PostgreSQL; all of them, or none.

    Raises:
        MissingPackage: there is no `pg_restore`.
        WorkFailed: it failed.
    """
    options = ["--clean", "--if-exists", "--no-owner", "--single-transaction", str(source)]
    _run("pg_restore", url, [f"--dbname={make_url(url).database}", *options])


def _run(program: str, url: str, options: list[str]) -> None:
    """Run one of PostgreSQL's programs; the password travels in the environment."""
    found = shutil.which(program)
    if found is None:
        hint = "apt-get install postgresql-client"
        raise MissingPackage(f"{program} is not on this machine", "PostgreSQL's own copies", hint)
    parts = make_url(url)
    given: Mapping[str, Any] = {
        "PGHOST": parts.host,
        "PGPORT": parts.port,
        "PGUSER": parts.username,
        "PGPASSWORD": parts.password,
        "PGDATABASE": parts.database,
    }
    known = {name: str(value) for name, value in given.items() if value is not None}
    done = subprocess.run(
        [found, "--no-password", *options],
        env={**os.environ, **known},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise WorkFailed(f"{program} failed: {lines[0][:200]}", " ".join(lines[1:])[:500], "")

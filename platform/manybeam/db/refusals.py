"""Errors of SQLite, PostgreSQL and SQLAlchemy, translated to our own."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from manybeam.errors import (
    Conflict,
    Corrupt,
    DatabaseUnreachable,
    ManybeamError,
    NotAllowed,
    WriteFailed,
)

_UNWRITABLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextmanager
def answering(place: str) -> Iterator[None]:
    """Turn what a database raises inside into our errors.

    Args:
        place: which database, without its password.

    Raises:
        DatabaseUnreachable: it did not answer, or a lock was not free in time.
        WriteFailed: the disk is full, or the file cannot be opened or written.
        Corrupt: the file is damaged.
        NotAllowed: this user may not do that.
        Conflict: another process wrote the same row first.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise _ours(error, place) from error


def _ours(error: SQLAlchemyError | sqlite3.Error, place: str) -> ManybeamError:
    raw = error.orig if isinstance(error, DBAPIError) else error
    said = (str(raw or error).strip().splitlines() or [type(error).__name__])[0][:200]
    code = getattr(raw, "sqlite_errorcode", 0) & 0xFF
    state = str(getattr(raw, "sqlstate", "") or "")
    if isinstance(error, IntegrityError):
        return Conflict(f"{place}: another process wrote first", said, "try again")
    if code in _DAMAGED:
        return Corrupt(f"{place} is damaged: {said}", "", "manybeam restore brings a backup back")
    if code in _UNWRITABLE or state.startswith("53"):
        return WriteFailed(
            f"{place} cannot be used: {said}",
            "the disk has to have room, and this user must be able to write there",
            "free some space, or mind the owner of the file and of its folder",
        )
    if state.startswith("42501"):
        return NotAllowed(f"{place}: {said}", "", "grant this user its schema in PostgreSQL")
    return DatabaseUnreachable(
        f"the database does not answer: {said}",
        f"it is {place}",
        "start it, or check MANYBEAM_DATABASE_URL; manybeam doctor",
    )

"""The searchable copy of the zoo: a SQLite file on each machine, which may be deleted at any time.

It is not a part of the database: it works while the database is down, it depends on the library
and the keys of its machine, and it needs no backup.

A strip contains all values of one score of one row, a float64 for each condition (NaN: not
measured). So a column of 10,000 rows is read at once. A condition gets its place in the strips when
it is first seen.
"""

import fcntl
import json
import logging
import math
import os
import re
import sqlite3
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from manybeam.errors import WriteFailed

logger = logging.getLogger(__name__)

SCHEMA = 2
TAKEN, FRAMES, SCORER = ":taken", ":frames", ":scorer"  # strips that hold no score
_BUSY_S = 20.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_SHORT_READ = 522  # SQLITE_IOERR_SHORT_READ
_TABLE = re.compile(r"TABLE (\w+)")
_TABLES = """
CREATE TABLE fact(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE version(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL,
    status TEXT NOT NULL, aliases TEXT NOT NULL, created REAL NOT NULL,
    first_subject INTEGER NOT NULL, last_subject INTEGER NOT NULL, UNIQUE(name, number));
CREATE TABLE subject(
    id INTEGER PRIMARY KEY, version_id INTEGER NOT NULL, member INTEGER NOT NULL,
    recipes TEXT NOT NULL, networks TEXT NOT NULL, policies TEXT NOT NULL);
CREATE TABLE condition(
    place INTEGER PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, UNIQUE(name, digest));
CREATE TABLE score(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE scorer(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE strip(
    score_id INTEGER NOT NULL, subject_id INTEGER NOT NULL, cells BLOB NOT NULL,
    PRIMARY KEY(score_id, subject_id)) WITHOUT ROWID;
CREATE VIRTUAL TABLE said USING fts5(words, tokenize='unicode61 remove_diacritics 2');
"""

T = TypeVar("T")
Place = tuple[str, int]


@dataclass(frozen=True)
class SubjectRows:
    """One row of the catalogue to write: an ensemble (member -1) or a member.

    Attributes:
        member: its index.
        facets: recipes, networks and policies.
        words: its words for the search.
        cells: score -> (condition, digest) -> value; TAKEN holds seconds since 1970.
        scorers: (condition, digest) -> version of the scorer.
    """

    member: int
    facets: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    words: str
    cells: Mapping[str, Mapping[tuple[str, str], float]]
    scorers: Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class VersionRows:
    """One version of an ensemble to write, with its rows; `created` in seconds since 1970."""

    place: Place
    state: str
    status: str
    aliases: tuple[str, ...]
    created: float
    subjects: tuple[SubjectRows, ...]


@dataclass(frozen=True)
class CatalogueFile:
    """One SQLite file that any number of processes read and write at once.

    A file that is damaged, or was written by another version of this module, is replaced by an
    empty one. A shared lock beside the file prevents this while another process reads it.
    """

    path: Path

    def read(self, action: Callable[["CatalogueReader"], T]) -> T:
        """Return the result of an action that reads; it sees one state of the file."""
        return self._do("BEGIN", lambda db: action(CatalogueReader(db)))

    def write(self, action: Callable[["CatalogueWriter"], T]) -> T:
        """Run an action that writes, in one transaction.

        Raises:
            WriteFailed: the disk is full, or another process has kept the file for 20 s.
        """
        return self._do("BEGIN IMMEDIATE", lambda db: action(CatalogueWriter(db)))

    def _do(self, begin: str, action: Callable[[sqlite3.Connection], T]) -> T:
        try:
            try:
                return self._attempt(begin, action)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                logger.warning("catalogue was damaged and is made anew", extra={"why": str(error)})
                self._replace()
                return self._attempt(begin, action)
        except (sqlite3.Error, OSError) as error:
            raise WriteFailed(
                f"the catalogue of the zoo cannot be used: {error}",
                f"it is kept in {self.path}",
                "see that the disk has room and the folder can be written; the file may be deleted",
            ) from error

    def _attempt(self, begin: str, action: Callable[[sqlite3.Connection], T]) -> T:
        with self._opened() as db:
            db.execute(begin)
            try:
                found = action(db)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
            return found

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        while True:
            with self._locked(fcntl.LOCK_SH), closing(_connect(self.path)) as db:
                if _schema(db) == SCHEMA:
                    yield db
                    return
            self._replace()

    def _replace(self) -> None:
        """Replace the file by an empty catalogue, unless another process has just done this."""
        with self._locked(fcntl.LOCK_EX):
            if _is_sound(self.path):
                return
            for ending in ("", "-wal", "-shm"):
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
            with closing(_connect(self.path)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)


class CatalogueReader:
    """One state of a catalogue; see `CatalogueFile.read`.

    Args:
        db: the open file.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def fact(self, name: str) -> str:
        """Return one fact about the catalogue; "" if it is not known."""
        found = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else ""

    def known_states(self) -> dict[Place, str]:
        """Return the last known state of every version."""
        found = self._db.execute("SELECT name, number, state FROM version")
        return {(name, number): state for name, number, state in found}

    def rows(self) -> list[tuple[Any, ...]]:
        """Return every row, by name, newest version first, the ensemble before its members.

        Of each: number, member, recipes, networks, policies; then name, number, status, aliases and
        time of creation of its version.
        """
        return self._db.execute(
            "SELECT s.id, s.member, s.recipes, s.networks, s.policies, "
            "v.name, v.number, v.status, v.aliases, v.created "
            "FROM subject s JOIN version v ON v.id = s.version_id "
            "ORDER BY v.name, v.number DESC, s.member"
        ).fetchall()

    def conditions(self) -> list[tuple[str, str, int]]:
        """Return id, digest and place in the strips of every condition, by place."""
        return self._db.execute(
            "SELECT name, digest, place FROM condition ORDER BY place"
        ).fetchall()

    def strips(self, score: str, rows: Sequence[int] | None = None) -> list[tuple[int, bytes]]:
        """Return the number of a row and its strip of one score, of some rows or of all."""
        asked = (
            "SELECT subject_id, cells FROM strip WHERE score_id = "
            "(SELECT id FROM score WHERE name = ?)"
        )
        if rows is None:
            return self._db.execute(asked, (score,)).fetchall()
        marks = ", ".join("?" * len(rows))
        among = f"{asked} AND subject_id IN ({marks})"
        return self._db.execute(among, (score, *rows)).fetchall()

    def holding(self, words: str) -> list[int]:
        """Return the numbers of the rows that contain words, by SQLite's full-text search.

        Args:
            words: see `zoo.catalogue.words.query_of`.
        """
        found = self._db.execute("SELECT rowid FROM said WHERE said MATCH ?", (words,))
        return [number for (number,) in found]

    def scorers(self) -> dict[int, str]:
        """Return the version of a scorer by its number in the strip of scorers."""
        return dict(self._db.execute("SELECT id, name FROM scorer"))

    def score_names(self) -> list[str]:
        """Return the names of all scores."""
        names = [name for (name,) in self._db.execute("SELECT name FROM score")]
        return sorted(name for name in names if not name.startswith(":"))


class CatalogueWriter(CatalogueReader):
    """A catalogue in a transaction that writes; see `CatalogueFile.write`."""

    def set_fact(self, name: str, value: str) -> None:
        """Store one fact about the catalogue."""
        self._db.execute("INSERT OR REPLACE INTO fact VALUES(?, ?)", (name, value))

    def write_versions(
        self, versions: Iterable[VersionRows], known: Mapping[Place, str]
    ) -> list[Place]:
        """Write versions and return those written.

        A version that another process wrote after `known` was read is not changed, because its
        data are at least as new.
        """
        now = self.known_states()
        fresh = [one for one in versions if now.get(one.place) == known.get(one.place)]
        self.drop_versions([one.place for one in fresh])
        numbered = _Numbered(self._db)
        for one in fresh:
            numbered.write(one)
        if fresh:
            self._is_another()
        return [one.place for one in fresh]

    def drop_versions(self, places: Iterable[Place]) -> None:
        """Remove versions from the catalogue; unknown ones are ignored."""
        found = [rows for place in places if (rows := self._drop(place)) is not None]
        for rows in found:
            self._db.execute("DELETE FROM subject WHERE id BETWEEN ? AND ?", rows)
            self._db.execute("DELETE FROM said WHERE rowid BETWEEN ? AND ?", rows)
            self._db.execute(
                "DELETE FROM strip WHERE score_id IN (SELECT id FROM score) "
                "AND subject_id BETWEEN ? AND ?",
                rows,
            )
        if found:
            self._is_another()

    def forget(self) -> None:
        """Empty the catalogue."""
        self.drop_versions(list(self.known_states()))
        for table in ("fact", "condition", "score", "scorer"):
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of ours, nobody's input
        self._is_another()

    def _drop(self, place: Place) -> tuple[int, int] | None:
        """Remove one version; return the first and the last of its rows, if it existed."""
        found: tuple[int, int] | None = self._db.execute(
            "DELETE FROM version WHERE name = ? AND number = ? "
            "RETURNING first_subject, last_subject",
            place,
        ).fetchone()
        return found

    def _is_another(self) -> None:
        """Mark the catalogue as changed, for caches of answers."""
        self.set_fact("state", uuid.uuid4().hex)


class _Numbered:
    """Writes versions in one transaction; numbers conditions, scores and scorers as they come."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._numbers: dict[str, dict[tuple[str, ...], int]] = {
            table: {
                tuple(rest): number
                for number, *rest in db.execute(f"SELECT * FROM {table}")  # noqa: S608 - ours
            }
            for table in ("condition", "score", "scorer")
        }
        self._next = db.execute(
            "SELECT coalesce(max(last_subject), 0) + 1 FROM version"
        ).fetchone()[0]

    def write(self, one: VersionRows) -> None:
        first, last = self._next, self._next + len(one.subjects) - 1
        self._next = last + 1
        aliases = json.dumps(one.aliases)
        row = (*one.place, one.state, one.status, aliases, one.created, first, last)
        version_id = self._db.execute(
            "INSERT INTO version VALUES(NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row
        ).lastrowid
        for number, subject in enumerate(one.subjects, first):
            facets = ["\n".join(values) for values in subject.facets]
            self._db.execute(
                "INSERT INTO subject VALUES(?, ?, ?, ?, ?, ?)",
                (number, version_id, subject.member, *facets),
            )
            self._db.execute("INSERT INTO said(rowid, words) VALUES(?, ?)", (number, subject.words))
            self._db.executemany("INSERT INTO strip VALUES(?, ?, ?)", self._strips(number, subject))

    def _strips(self, number: int, subject: SubjectRows) -> Iterator[tuple[int, int, bytes]]:
        places = {where: self._number("condition", *where) for where in subject.scorers}
        scorers = {where: self._number("scorer", name) for where, name in subject.scorers.items()}
        for score, cells in {**subject.cells, SCORER: scorers}.items():
            if cells:
                strip = array("d", [math.nan]) * (max(places[where] for where in cells) + 1)
                for where, value in cells.items():
                    strip[places[where]] = value
                yield self._number("score", score), number, strip.tobytes()

    def _number(self, table: str, *content: str) -> int:
        """Return the number of a condition, score or scorer, given at its first use."""
        numbers = self._numbers[table]
        if content not in numbers:
            numbers[content] = len(numbers)
            marks = ", ".join("?" * (1 + len(content)))
            self._db.execute(f"INSERT INTO {table} VALUES({marks})", (numbers[content], *content))
        return numbers[content]


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    db.execute("PRAGMA synchronous = NORMAL")
    return db


def _schema(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED or code == _SHORT_READ or "no such table" in str(error)


def _is_sound(path: Path) -> bool:
    """Tell whether a file is a whole catalogue of this schema; reads all of it."""
    try:
        with closing(_connect(path)) as db:
            if _schema(db) != SCHEMA or db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return False
            db.execute("INSERT INTO said(said) VALUES('integrity-check')")
            there = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
            return there >= set(_TABLE.findall(_TABLES))
    except sqlite3.DatabaseError as error:
        if _is_damage(error):
            return False
        raise

"""zoo.backend.known_entries: entries of an unchanged database are not read twice."""

import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manybeam.addresses import sqlite_url
from manybeam.errors import NotFound, ZooUnreachable
from manybeam.zoo.backend import known_entries
from manybeam.zoo.backend.known_entries import KnownEntries
from manybeam.zoo.records import VersionEntry

ENTRY = VersionEntry("graphene", 1, "run", {"manybeam.sha256": "0"}, ("serving",))


class Counted:
    """An answer of MLflow, with the number of times it was asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> VersionEntry:
        self.count += 1
        return ENTRY


@pytest.fixture
def known(tmp_path: Path) -> KnownEntries:
    path = tmp_path / "zoo.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t(x)")
    return KnownEntries(sqlite_url(path), tmp_path)


def test_an_entry_is_read_once_until_the_database_changes(known: KnownEntries) -> None:
    read = Counted()
    assert [known.one("graphene", read), known.one("graphene", read)] == [ENTRY, ENTRY]
    assert read.count == 1
    with closing(sqlite3.connect(known.cache / "zoo.db")) as db, db:
        db.execute("INSERT INTO t VALUES (1)")
    assert known.one("graphene", read) == ENTRY
    assert read.count == 2


def test_another_version_of_manybeam_reads_its_own_entries(
    known: KnownEntries, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counted()
    known.one("graphene", read)
    monkeypatch.setattr(known_entries, "__version__", "0.0.1")
    assert known.one("graphene", read) == ENTRY
    assert read.count == 2


@pytest.mark.parametrize(
    "damaged",
    [
        *(None, [], [None], [{}], [{"name": "graphene"}], [{"aliases": 3}], ["text"], 7),
        [{**vars(ENTRY), "color": "red"}],
    ],
)
def test_a_damaged_entry_is_read_again(known: KnownEntries, damaged: Any) -> None:
    read = Counted()
    known.one("graphene", read)
    (file,) = known.cache.glob("entries-*/*.json")
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "entries": damaged}))
    assert known.one("graphene", read) == ENTRY
    assert read.count == 2


@pytest.fixture
def of_server(tmp_path: Path) -> KnownEntries:
    return KnownEntries("http://mlflow.lab:5000", tmp_path)


def test_a_server_is_asked_each_time(of_server: KnownEntries) -> None:
    read = Counted()
    assert [of_server.one("graphene", read), of_server.one("graphene", read)] == [ENTRY, ENTRY]
    assert read.count == 2


def test_what_a_server_said_last_is_known_while_it_is_away(of_server: KnownEntries) -> None:
    later = replace(ENTRY, version=2)
    of_server.one("graphene", lambda: ENTRY)
    of_server.one("graphene", lambda: later)
    of_server.all("all of None", lambda: [ENTRY, later])
    away = replace(of_server, is_away=True)
    assert away.one("graphene", Counted()) == later
    assert away.all("all of None", list) == [ENTRY, later]


def _never(known: KnownEntries) -> None:
    known.one("mos2", Counted())


def _of_another_server(known: KnownEntries) -> None:
    KnownEntries("http://other.lab:5000", known.cache).one("graphene", Counted())


def _damaged(known: KnownEntries) -> None:
    known.one("graphene", Counted())
    (file,) = known.cache.glob("entries-*/*.json")
    file.write_text(file.read_text()[:-9])


@pytest.mark.parametrize("before", [_never, _of_another_server, _damaged])
def test_what_a_server_never_said_here_is_not_known_while_it_is_away(
    of_server: KnownEntries, before: Callable[[KnownEntries], None]
) -> None:
    before(of_server)
    with pytest.raises(ZooUnreachable, match="never read 'graphene'"):
        replace(of_server, is_away=True).one("graphene", Counted())


def _gone() -> VersionEntry:
    raise NotFound("no such version")


def test_what_was_removed_on_a_server_does_not_answer_while_it_is_away(
    of_server: KnownEntries,
) -> None:
    of_server.one("graphene@1", lambda: ENTRY)
    with pytest.raises(NotFound):
        of_server.one("graphene@1", _gone)
    with pytest.raises(ZooUnreachable, match="never read 'graphene@1'"):
        replace(of_server, is_away=True).one("graphene@1", Counted())


def test_what_a_whole_listing_does_not_hold_any_more_is_forgotten(of_server: KnownEntries) -> None:
    later = replace(ENTRY, version=2)
    of_server.one("graphene@1", lambda: ENTRY)
    of_server.one("graphene@2", lambda: later)
    of_server.all("all of graphene", lambda: [ENTRY, later])
    of_server.all("all of None", lambda: [later], is_whole=True)
    away = replace(of_server, is_away=True)
    assert away.one("graphene@2", Counted()) == later
    assert away.all("all of None", list) == [later]
    for question in ("graphene@1", "all of graphene"):
        with pytest.raises(ZooUnreachable):
            away.all(question, list)


def test_questions_asked_at_once_are_all_kept(of_server: KnownEntries) -> None:
    entries = [replace(ENTRY, version=number) for number in range(1, 33)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: of_server.one(one.ref, lambda: one), entries))
    away = replace(of_server, is_away=True)
    assert [away.one(one.ref, Counted()) for one in entries] == entries


def test_answers_of_a_database_that_changed_are_removed(known: KnownEntries) -> None:
    for name in ("graphene", "mos2"):
        known.one(name, Counted())
    with closing(sqlite3.connect(known.cache / "zoo.db")) as db, db:
        db.execute("INSERT INTO t VALUES (1)")
    known.one("graphene", Counted())
    assert len(list(known.cache.glob("entries-*/*.json"))) == 1

"""db.preferences, db.predictions, db.tokens: kept, listed, taken back, taken over."""

import json
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from manybeam.addresses import sqlite_url
from manybeam.db.audit import AuditLog
from manybeam.db.database import Database, now
from manybeam.db.imports import is_imported
from manybeam.db.migrations import TABLE
from manybeam.db.owner import whoami
from manybeam.db.predictions import Predictions
from manybeam.db.preference import (
    Preference,
    Retraction,
    listed_in_file,
    read_preference,
)
from manybeam.db.preferences import Preferences
from manybeam.db.tables import InstrumentRow, PersonRow, PreferenceRow, TokenRow
from manybeam.db.tokens import SCOPES, Tokens
from manybeam.errors import Conflict, InvalidInput, NotFound

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ONE = Preference(
    id="20260301T100000-a",
    who="Ada",
    when="2026-03-01T10:00:00.000+00:00",
    ensemble="graphene",
    version=2,
    members=(2, 0),
    proposed=(0, 1),
    frame_digest="d" * 32,
    file="scan_0142.npy",
    pixel_size_pm=16.0,
    condition={"optics.beam_kv": 60.0},
    features={0: {"forward": 0.1 + 0.2, "predicted_f1": 0.9}, 2: {}},
    summary=(0.5, None),
    note="keeps the silicon",
)


# -- preferences ----------------------------------------------------------------------------------
@pytest.fixture
def preferences(database: Database) -> Preferences:
    return Preferences(database)


def test_a_preference_reads_back_as_it_was_kept(preferences: Preferences) -> None:
    preferences.add(ONE)
    assert preferences.list("graphene") == [ONE]
    assert (preferences.list("mos2"), ONE.ref) == ([], "graphene@2")


def test_preferences_are_listed_oldest_first(preferences: Preferences) -> None:
    later = replace(ONE, id="b", when="2026-03-02T00:00:00.000+00:00")
    for one in (later, ONE, replace(later, id="c", ensemble="mos2")):
        preferences.add(one)
    assert [one.id for one in preferences.list()] == [ONE.id, "b", "c"]


def test_a_file_of_sqlite_is_listed_the_same_without_its_engine(
    preferences: Preferences, database: Database
) -> None:
    address = database.url.render_as_string(hide_password=False)
    assert listed_in_file(address) is None  # objects of an older version may wait
    preferences.take_over([], {}, "s3://lab/picks", unreadable=0)
    made = [replace(ONE, id=name, ensemble=of) for name, of in (("b", "mos2"), ("a", "mos2"))]
    for one in (*made, ONE, replace(ONE, id="gone")):
        preferences.add(one)
    preferences.retract("gone", "Grace")
    for ensemble in (None, "mos2", "graphene", "none"):
        expected = preferences.list(ensemble) if database.is_sqlite else None
        assert listed_in_file(address, ensemble) == expected


def test_a_file_of_sqlite_with_other_tables_is_left_to_its_engine(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a b?.db")) as file, file:
        file.execute(f"CREATE TABLE {TABLE} (version_num TEXT)")
        file.execute(f"INSERT INTO {TABLE} VALUES ('0001')")
        file.execute("CREATE TABLE imports (kind TEXT)")
    for name in ("a b?.db", "none.db"):
        assert listed_in_file(sqlite_url(tmp_path / name)) is None


def test_an_id_is_kept_once(preferences: Preferences) -> None:
    preferences.add(ONE)
    with pytest.raises(Conflict):
        preferences.add(ONE)


def test_a_preference_taken_back_keeps_its_row_with_who_did_it(
    preferences: Preferences, database: Database
) -> None:
    preferences.add(ONE)
    preferences.retract(ONE.id, "Grace")
    preferences.retract(ONE.id, "Ada")
    assert preferences.list() == []
    back = preferences.retraction(ONE.id)
    assert back is not None
    assert back.who == "Grace"
    assert abs((datetime.now(UTC) - back.when).total_seconds()) < 60
    with database.reading() as connection:
        kept = connection.execute(select(PreferenceRow.content)).scalar_one()
    assert read_preference(kept, "x") == ONE


def test_what_nobody_chose_cannot_be_taken_back(preferences: Preferences) -> None:
    with pytest.raises(NotFound, match="no preference 'x'"):
        preferences.retract("x", "Ada")
    assert preferences.retraction("x") is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("{", id="cut short"),
        pytest.param('{"id": "x"}', id="fields are missing"),
        pytest.param(json.dumps({"format": "manybeam-pick-9"}), id="a later format"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_and_hides_no_other(
    preferences: Preferences, database: Database, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    for one in (ONE, replace(ONE, id="strange")):
        preferences.add(one)
    with database.writing() as connection:
        own = PreferenceRow.id == "strange"
        connection.execute(update(PreferenceRow).where(own).values(content=content))
    with caplog.at_level(logging.WARNING):
        assert preferences.list() == [ONE]
    assert "preference strange cannot be read" in caplog.text


def test_what_an_older_version_kept_is_taken_over_once(
    preferences: Preferences, database: Database
) -> None:
    other, back = replace(ONE, id="b"), Retraction("Grace", NOW)
    assert not is_imported(database, "preferences")
    for _ in range(2):
        preferences.take_over([ONE, other], {"b": back}, "s3://lab/picks", unreadable=1)
    assert preferences.list() == [ONE]
    assert preferences.retraction("b") == back
    assert is_imported(database, "preferences")


# -- predictions ----------------------------------------------------------------------------------
def test_answers_of_a_version_are_listed_oldest_first(database: Database) -> None:
    predictions = Predictions(database)
    for ref, url in (("graphene@1", "b"), ("graphene@1", "a"), ("graphene@10", "c")):
        predictions.note(ref, url)
    assert predictions.of("graphene@1") == ("b", "a")
    assert predictions.of("graphene@2") == ()


def test_places_that_an_older_version_noted_are_taken_over_once(database: Database) -> None:
    predictions = Predictions(database)
    predictions.note("graphene@1", "new")
    old = [("graphene@1", "old", NOW)]
    taken = [predictions.take_over(old, "s3://lab", unreadable=0) for _ in range(2)]
    assert taken == [1, 0]
    assert predictions.of("graphene@1") == ("old", "new")


# -- tokens ---------------------------------------------------------------------------------------
@pytest.fixture
def tokens(database: Database) -> Tokens:
    """Tokens beside one person and one instrument."""
    with database.writing() as connection:
        named = {"name": "Ada", "email": "", "issuer": "", "subject": ""}
        connection.execute(insert(PersonRow).values(created=NOW, **named))
        connection.execute(insert(InstrumentRow).values(id="STEM-1", title="", created=NOW))
    return Tokens(database)


def test_a_token_opens_what_it_was_made_for(tokens: Tokens) -> None:
    text, made = tokens.create("scan", ["predict", "select"], person="Ada", instrument="STEM-1")
    found = tokens.verify(text)
    assert found is not None
    assert (found.id, found.scopes) == (made.id, ("predict", "select"))
    assert (found.person, found.instrument) == ("Ada", "STEM-1")
    assert tokens.verify(text + "x") is None


def test_a_token_that_cannot_be_recorded_is_not_created(tokens: Tokens, database: Database) -> None:
    with pytest.raises(InvalidInput, match="does not name a person"):
        tokens.create("scan", ["predict"], who=" x" * 200)
    assert tokens.list() == []
    _, made = tokens.create("scan", ["predict"], who="Ada")
    (entry,) = AuditLog(database).entries()
    assert (entry.action, entry.subject, entry.who) == ("token created", made.id, "Ada")


def test_only_the_hash_of_a_token_is_kept(tokens: Tokens, database: Database) -> None:
    text, _ = tokens.create("scan", ["predict"])
    with database.reading() as connection:
        row = connection.execute(select(*TokenRow.__table__.columns)).one()
    assert text not in str(tuple(row))


def test_a_token_revoked_opens_nothing_and_stays_listed(tokens: Tokens) -> None:
    text, made = tokens.create("scan", ["predict"])
    first = tokens.revoke(made.id).revoked
    assert first is not None
    assert tokens.revoke(made.id).revoked == first
    assert tokens.verify(text) is None
    assert [one.id for one in tokens.list()] == [made.id]


def test_the_audit_log_knows_who_made_and_revoked_a_token(
    tokens: Tokens, database: Database
) -> None:
    text, made = tokens.create("scan", ["predict"], person="Ada", who="grace")
    tokens.revoke(made.id)
    tokens.revoke(made.id)
    entries = AuditLog(database).entries()
    assert [(one.action, one.subject, one.who) for one in entries] == [
        ("token revoked", made.id, whoami()), ("token created", made.id, "grace"),
    ]  # fmt: skip
    assert entries[1].details["person"] == "Ada"
    assert text not in str(entries)


def test_a_token_opens_nothing_while_its_person_is_disabled(
    tokens: Tokens, database: Database
) -> None:
    text, made = tokens.create("scan", ["predict"], person="Ada")
    for disabled, listed in ((NOW, []), (None, [made.id])):
        with database.writing() as connection:
            connection.execute(update(PersonRow).values(disabled=disabled))
        assert [one.id for one in tokens.valid()[1]] == listed
        assert (tokens.verify(text) is None) == (not listed)


def test_a_token_expires_by_the_clock_of_the_database(tokens: Tokens, database: Database) -> None:
    text, _ = tokens.create("scan", ["predict"], lifetime=timedelta(hours=1))
    assert tokens.verify(text) is not None
    with database.writing() as connection:
        connection.execute(update(TokenRow).values(expires=now(connection)))
    assert tokens.verify(text) is None


def test_the_last_use_of_a_token_is_written_once_a_minute(
    tokens: Tokens, database: Database
) -> None:
    text, _ = tokens.create("scan", ["predict"])
    used = []
    for _ in range(2):
        tokens.verify(text)
        used.append(tokens.list()[0].last_used)
    assert used[0] is not None
    assert used[0] == used[1]
    with database.writing() as connection:
        connection.execute(update(TokenRow).values(last_used=used[0] - timedelta(minutes=2)))
    tokens.verify(text)
    latest = tokens.list()[0].last_used
    assert latest is not None
    assert latest >= used[0]


def test_a_token_that_lies_in_a_file_is_registered_once(tokens: Tokens) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: tokens.register("m" * 40, "admin", SCOPES).id, range(4)))
    assert len(made) == len(tokens.list()) == 1
    found = tokens.verify("m" * 40)
    assert found is not None
    assert found.scopes == SCOPES


def test_a_token_that_is_replaced_in_its_file_opens_nothing_any_more(tokens: Tokens) -> None:
    tokens.register("m" * 40, "a/admin-token", SCOPES)
    tokens.register("o" * 40, "b/admin-token", SCOPES)
    tokens.register("n" * 40, "a/admin-token", SCOPES)
    assert [tokens.verify(one * 40) is None for one in "mno"] == [True, False, False]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        pytest.param({"name": " \n"}, InvalidInput, id="no name"),
        pytest.param({"scopes": []}, InvalidInput, id="no scope"),
        pytest.param({"scopes": ["root"]}, InvalidInput, id="an unknown scope"),
        pytest.param({"person": "Bob"}, NotFound, id="an unknown person"),
        pytest.param({"instrument": "STEM-2"}, NotFound, id="an unknown instrument"),
        pytest.param({"lifetime": timedelta(0)}, InvalidInput, id="over at once"),
    ],
)
def test_a_token_that_means_nothing_is_refused(
    tokens: Tokens, given: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        tokens.create(**{"name": "scan", "scopes": ["predict"], **given})
    assert tokens.list() == []


def test_a_token_that_is_not_there_cannot_be_revoked(tokens: Tokens) -> None:
    with pytest.raises(NotFound, match="no token"):
        tokens.revoke("t-0")

"""zoo.older_objects: what version 0.1 kept as objects in the store is taken over once.

`tests/data/home-0.1` holds what its commands wrote: two promotions, two picks (one taken back) and
the place of one answer.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from manybeam.data.store import Store, open_store
from manybeam.db.audit import UNREADABLE
from manybeam.errors import Corrupt, StoreUnreachable
from manybeam.settings import settings
from manybeam.zoo.older_objects import audit_log, predictions_kept, preferences_kept

OLD = Path(__file__).parent / "data" / "home-0.1"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.needs("s3_server"))])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, use_settings: Callable[[dict[str, str]], None]
) -> Store:
    """The store of a platform that version 0.1 used: a folder, and a bucket of a real server."""
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    if request.param == "s3":
        use_settings({"MANYBEAM_STORE": request.getfixturevalue("s3_url")})
    made = open_store(settings().store_url)
    for path in OLD.rglob("*.json"):
        made.put(str(path.relative_to(OLD)), path.read_bytes())
    return made


def test_the_audit_log_goes_on_and_its_old_links_hold(store: Store) -> None:
    log = audit_log()
    old = [one.action for one in log.entries("graphene")][::-1]
    assert old == ["promote asked", "promote done"] * 2
    assert log.append("note", "graphene", who="bob").number == 5
    assert log.verify().count == 5


def test_preferences_that_count_are_the_same_as_before(store: Store) -> None:
    (kept,) = preferences_kept().list("graphene")
    assert (kept.who, kept.members, kept.note) == ("Ada", (2, 0), "keeps the silicon")
    (key,) = [one for one in store.list("picks") if one.endswith(".retracted.json")]
    back = preferences_kept().retraction(key.rpartition("/")[2].removesuffix(".retracted.json"))
    assert back is not None
    assert back.who == "Grace"


def test_places_of_answers_are_known(store: Store) -> None:
    assert predictions_kept().of("graphene@2") == ("s3://lab/answers.zarr",)


def test_what_was_taken_over_stays_in_the_store_and_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.list()
    audit_log(), preferences_kept(), predictions_kept()
    assert store.list() == before
    monkeypatch.setattr("manybeam.zoo.older_objects._done", set())  # as another process
    store.delete("audit")
    assert (audit_log().head(), len(preferences_kept().list())) == (4, 1)


def test_a_damaged_record_is_kept_and_named(store: Store) -> None:
    store.put("audit/000000002.json", b'{"number": 2')
    log = audit_log()
    assert [one.action == UNREADABLE for one in log.entries()] == [False, False, True, False]
    with pytest.raises(Corrupt, match="record 2: it cannot be read"):
        log.verify()


def test_a_record_that_is_missing_is_named(store: Store) -> None:
    store.delete("audit/000000002.json")
    with pytest.raises(Corrupt, match="record 2: it is missing"):
        audit_log().verify()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="cut short"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b'{"id": "x"}', id="fields are missing"),
        pytest.param(json.dumps({"format": "manybeam-pick-9"}).encode(), id="a later format"),
    ],
)
def test_an_object_that_cannot_be_read_is_named_and_hides_no_other(
    store: Store, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("picks/graphene/strange.json", content)
    store.put("predictions/graphene@2/strange.json", content)
    with caplog.at_level(logging.WARNING):
        assert len(preferences_kept().list()) == len(predictions_kept().of("graphene@2")) == 1
    assert "picks/graphene/strange.json" in caplog.text
    assert "predictions/graphene@2/strange.json" in caplog.text


def test_an_empty_store_leaves_an_empty_database(
    tmp_path: Path, use_settings: Callable[[dict[str, str]], None]
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    assert (audit_log().head(), preferences_kept().list()) == (0, [])


def test_a_store_that_does_not_answer_is_said_and_nothing_is_begun(
    tmp_path: Path, use_settings: Callable[[dict[str, str]], None]
) -> None:
    use_settings(
        {
            "MANYBEAM_HOME": str(tmp_path),
            "MANYBEAM_STORE": "s3://nobody/store",
            "MANYBEAM_S3_ENDPOINT": "http://127.0.0.1:9",
            "MANYBEAM_S3_TIMEOUT_S": "1",
        }
    )
    with pytest.raises(StoreUnreachable):
        audit_log()
    use_settings({"MANYBEAM_STORE": ""})
    assert audit_log().head() == 0

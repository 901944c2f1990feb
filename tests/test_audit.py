"""zoo.audit: records follow one another, one writer wins a number, and tampering is named."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from manybeam.data.store import Store, open_store
from manybeam.errors import Conflict, Corrupt, InvalidInput, StoreUnreachable
from manybeam.zoo.audit import UNREADABLE, AuditLog, is_gone, writer_id


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of its own: a folder, and a bucket of a real server."""
    return str(
        tmp_path / "store" if request.param == "folder" else request.getfixturevalue("s3_url")
    )


def written(url: str, count: int) -> AuditLog:
    log = AuditLog(url)
    for number in range(1, count + 1):
        log.append("promote asked", f"graphene@{number}", who="ada")
    return log


def kept(url: str) -> Store:
    return open_store(url).child("audit")


def test_a_record_reads_back_as_it_was_written(url: str) -> None:
    made = AuditLog(url).append(
        "promote done", "graphene@3", who="ada@node7", reason="better", details={"to": 3}
    )
    assert AuditLog(url).entries() == [made]
    assert (made.number, made.subject, made.reason, made.details) == (
        1, "graphene@3", "better", {"to": 3},
    )  # fmt: skip


def test_records_are_listed_newest_first_and_by_subject(url: str) -> None:
    log = AuditLog(url)
    for subject in ("graphene@1", "graphene-hard@1", "graphene@2", "graphene"):
        log.append("archive done", subject, who="ada")
    assert [one.number for one in log.entries()] == [4, 3, 2, 1]
    assert [one.subject for one in log.entries("graphene")] == [
        "graphene", "graphene@2", "graphene@1",
    ]  # fmt: skip
    assert [one.number for one in log.entries("graphene@2")] == [3]


def test_a_log_sees_what_others_wrote_after_it_looked(url: str) -> None:
    log = written(url, 2)
    AuditLog(url).append("archive done", "wse2@1", who="bob")
    assert [one.who for one in log.entries()] == ["bob", "ada", "ada"]


def test_an_empty_log_holds_nothing_and_verifies(url: str) -> None:
    log = AuditLog(url)
    assert (log.entries(), log.head(), log.verify().count) == ([], 0, 0)


def test_many_writers_at_once_lose_no_record_and_break_no_link(url: str) -> None:
    def write(writer: int) -> None:
        for number in range(5):
            AuditLog(url).append("note", f"e{writer}@{number}", who=f"w{writer}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    log = AuditLog(url)
    assert log.verify().count == 30
    assert {one.subject for one in log.entries()} == {
        f"e{w}@{n}" for w in range(6) for n in range(5)
    }


def test_a_record_is_refused_by_what_came_since_its_writer_looked(url: str) -> None:
    log, other = written(url, 1), AuditLog(url)
    seen = log.head()
    other.append("promote asked", "graphene@9", who="bob")
    with pytest.raises(Conflict, match=r"graphene@9: bob came first with 'promote asked'"):
        log.append(
            "promote asked",
            "graphene@2",
            who="ada",
            since=seen,
            unless=lambda one: one.who == "bob",
        )
    assert log.head() == 2


def test_of_writers_that_forbid_each_other_exactly_one_wins(url: str) -> None:
    def write(place: str) -> bool:
        try:
            AuditLog(place).append("x", "graphene", who="ada", since=0, unless=lambda _: True)
        except Conflict:
            return False
        return True

    for again in range(5):
        place = f"{url}/{again}"
        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(write, [place] * 6)) == 1
        assert AuditLog(place).head() == 1


def changed(store: Store) -> None:
    content = json.loads(store.get("000000002.json"))
    store.put("000000002.json", json.dumps({**content, "who": "mallory"}, indent=1).encode())


def swapped(store: Store) -> None:
    second, third = store.get("000000002.json"), store.get("000000003.json")
    store.put("000000002.json", third)
    store.put("000000003.json", second)


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        pytest.param(changed, "broken at record 3: record 2 is not the one", id="changed"),
        pytest.param(lambda s: s.delete("000000002.json"), "record 2: it is missing", id="removed"),
        pytest.param(swapped, "record 2: it says that it is record 3", id="swapped"),
        pytest.param(
            lambda s: s.put("000000002.json", b'{"number": 2'), "record 2: it cannot", id="torn"
        ),
        pytest.param(lambda s: s.put("000000002.json", b""), "record 2: it cannot", id="empty"),
    ],
)
def test_a_record_that_was_tampered_with_is_named(url: str, tamper: Any, told: str) -> None:
    log = written(url, 4)
    tamper(kept(url))
    with pytest.raises(Corrupt, match=told):
        log.verify()


def test_records_cut_off_the_end_are_found_by_an_anchor_kept_elsewhere(url: str) -> None:
    log = written(url, 3)
    anchor = log.verify().anchor
    log.append("note", "graphene", who="ada")
    assert log.verify(anchor).count == 4
    kept(url).delete_keys(["000000003.json", "000000004.json"])
    assert AuditLog(url).verify().count == 2
    with pytest.raises(Corrupt, match="record 3: it is not the record the anchor was taken of"):
        AuditLog(url).verify(anchor)


def test_a_damaged_record_hides_no_other_and_stops_no_writer(url: str) -> None:
    written(url, 3)
    kept(url).put("000000002.json", b"\xff\xfe not JSON")
    log = AuditLog(url)
    assert log.append("note", "graphene", who="ada").number == 4
    assert [one.action == UNREADABLE for one in log.entries()] == [False, False, True, False]


def test_the_store_tells_how_old_a_record_is(url: str) -> None:
    log = written(url, 1)
    assert -1 < log.age_s(log.entries()[0]) < 60
    assert log.head() == 1  # the probe of the store's clock is no record


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        pytest.param(" \n", "", id="no name"),
        pytest.param("a" * 101, "", id="long name"),
        pytest.param("ada", "x" * 2001, id="long reason"),
    ],
)
def test_a_record_needs_a_name_and_bounded_words(tmp_path: Path, who: str, reason: str) -> None:
    log = AuditLog(str(tmp_path))
    with pytest.raises(InvalidInput):
        log.append("note", "graphene", who=who, reason=reason)
    assert log.head() == 0


def test_an_anchor_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no anchor"):
        AuditLog(str(tmp_path)).verify("yesterday")


def test_a_writer_is_known_to_be_gone_only_on_this_host() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    host = writer_id().partition(" ")[0]
    assert is_gone(f"{host} {child.pid}")
    assert not is_gone(f"another-{host} {child.pid}")
    assert not is_gone(writer_id())


@pytest.mark.s3
def test_a_store_that_is_down_is_said_to_be(new_services: Any, use_settings: Any) -> None:
    services = new_services()
    services.start("seaweedfs")
    use_settings({**services.settings(), "MANYBEAM_S3_TIMEOUT_S": "2"})
    log = AuditLog()
    log.append("note", "graphene", who="ada")
    services.stop("seaweedfs")
    with pytest.raises(StoreUnreachable):
        log.append("note", "graphene", who="ada")

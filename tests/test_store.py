"""The object store behind one interface: the same rules on a folder, in memory and on S3."""

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manybeam.data.store import Store, arrow_filesystem, open_store
from manybeam.errors import Conflict, InvalidInput, NotFound, StoreUnreachable, WriteFailed

PLACES = ["folder", "memory", pytest.param("s3", marks=pytest.mark.needs("s3_server"))]


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_url"))
    return open_store(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}/a/b")


def test_what_is_put_is_got_back(store: Store) -> None:
    store.put("a/b", b"first")
    store.put("a/b", b"second")
    assert store.get("a/b") == b"second"


def test_an_object_is_created_once(store: Store) -> None:
    store.create("a", b"mine")
    with pytest.raises(Conflict, match="exists already"):
        store.create("a", b"yours")
    assert store.get("a") == b"mine"


def test_of_many_creators_at_once_exactly_one_gets_by(store: Store) -> None:
    winners, barrier = [], threading.Barrier(12)

    def create(number: int) -> None:
        barrier.wait()
        try:
            store.create("race", b"%d" % number)
        except Conflict:
            return
        winners.append(b"%d" % number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [store.get("race")]


def test_a_key_that_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="nothing at"):
        store.get("a")
    assert not store.exists("a")


def test_a_prefix_is_a_whole_segment_and_no_object(store: Store) -> None:
    for key in ("a/1", "a/2/3", "ab"):
        store.put(key, b"")
    assert store.list("a") == ["a/1", "a/2/3"]
    assert store.list("a", after="a/1") == ["a/2/3"]
    assert store.folders() == ["a"]
    assert store.exists("ab")
    assert not store.exists("a")


def test_more_keys_than_one_page_are_listed(store: Store) -> None:
    keys = [f"many/{number:04d}" for number in range(1100)]
    for key in keys:
        store.put(key, b"")
    assert store.list("many") == keys


def test_deleting_takes_the_object_and_all_below_it(store: Store) -> None:
    for key in ("a/1", "a/2/3", "ab"):
        store.put(key, b"")
    store.delete("a")
    store.delete("ab")
    store.delete("nothing")
    assert store.list() == []


def test_a_child_sees_its_part_under_its_own_names(store: Store) -> None:
    child = store.child("a")
    child.put("b", b"1")
    assert (child.list(), store.list(), child.url) == (["b"], ["a/b"], f"{store.url}/a")
    assert open_store(child.url).get("b") == b"1"


def test_the_age_of_an_object_is_told_by_the_stores_clock(store: Store) -> None:
    store.put("a", b"")
    assert 0 <= store.age_s("a") < 60
    assert store.list() == ["a"]


def test_a_pickled_store_is_the_same_place(store: Store) -> None:
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


def test_a_missing_folder_is_made_only_if_asked(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        open_store(tmp_path / "none", create=False)
    open_store(tmp_path / "none" / "deep")
    assert (tmp_path / "none" / "deep").is_dir()


def test_a_folder_is_named_by_path_or_url(tmp_path: Path) -> None:
    spaced = tmp_path / "with space"
    open_store(spaced).put("a", b"1")
    assert open_store(spaced.as_uri()).get("a") == b"1"
    assert open_store(str(spaced)).url == str(spaced)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="empty"),
        pytest.param("gs://bucket/a", id="scheme we do not read"),
        pytest.param("s3://", id="no bucket"),
        pytest.param("memory:///", id="no name"),
        pytest.param("file://host/a", id="file on another host"),
    ],
)
def test_a_url_that_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="is not a place for frames"):
        open_store(url)


def test_a_key_cannot_leave_its_store(store: Store) -> None:
    with pytest.raises((InvalidInput, ValueError)):
        store.put("../a", b"")


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(WriteFailed, match="cannot make the folder"):
        open_store(tmp_path / "a")
    with pytest.raises(WriteFailed, match="cannot write"):
        open_store(tmp_path).put("a/b", b"")


def test_a_server_nobody_answers_for_is_unreachable_in_time(
    use_settings: Callable[[dict[str, str]], None], monotonic: Callable[[], float]
) -> None:
    use_settings(
        {
            "MANYBEAM_S3_ENDPOINT": "http://127.0.0.1:9",
            "MANYBEAM_S3_ACCESS_KEY": "a",
            "MANYBEAM_S3_SECRET_KEY": "b",
            "MANYBEAM_S3_TIMEOUT_S": "2",
        }
    )
    with pytest.raises(StoreUnreachable, match="cannot list s3://bucket"):
        open_store("s3://bucket/a")
    assert monotonic() < 3


@pytest.fixture
def monotonic() -> Callable[[], float]:
    import time

    begin = time.monotonic()
    return lambda: time.monotonic() - begin


def test_arrow_is_given_a_folder_as_it_is(tmp_path: Path) -> None:
    assert arrow_filesystem(tmp_path) == (None, str(tmp_path))


def test_arrow_cannot_be_given_a_memory() -> None:
    with pytest.raises(InvalidInput, match="cannot be shared with workers"):
        arrow_filesystem("memory://a")


@pytest.mark.s3
def test_arrow_writes_where_the_store_reads(s3_url: str) -> None:
    filesystem, path = arrow_filesystem(s3_url)
    with filesystem.open_output_stream(f"{path}/a") as out:
        out.write(b"1")
    assert open_store(s3_url).get("a") == b"1"


def test_zarr_writes_below_the_prefix(store: Store) -> None:
    import numpy as np
    import zarr

    numbers: Any = np.arange(4)
    zarr.save_array(store.child("a").zarr("b"), numbers)
    assert "a/b/zarr.json" in store.list()
    assert (zarr.open_array(store.zarr("a/b", read_only=True), mode="r")[:] == numbers).all()

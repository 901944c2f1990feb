"""FrameSets: what is appended is read back, all of it or nothing, whoever else writes or dies."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy import ndarray

from manybeam.data import frames
from manybeam.data.commits import AppendLock, CommitLog
from manybeam.data.frames import FrameSet, list_framesets
from manybeam.data.making import Part
from manybeam.data.store import open_store
from manybeam.db.owner import Owner
from manybeam.errors import (
    Conflict,
    Corrupt,
    InvalidFrame,
    InvalidInput,
    NotFound,
    UnknownFrameSet,
    WriteFailed,
)
from manybeam.spec import Condition, Policy, Range

CONDITION = Condition(id="test", dose_e_per_a2=1e4)
SHAPE = (24, 20)
PLACES = ["folder", "memory", pytest.param("s3", marks=pytest.mark.needs("s3_server"))]


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    return str(tmp_path / "set") if request.param == "folder" else f"memory://{tmp_path.name}/set"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "set")


def _frames(count: int, shape: tuple[int, int] = SHAPE, seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def _truth(count: int) -> list[ndarray]:
    rng = np.random.default_rng(1)
    return [rng.uniform(0, 19, size=(i % 4, 3)).astype(np.float32) for i in range(count)]


def _made(url: str, count: int = 4) -> FrameSet:
    made = FrameSet.create(url, CONDITION, SHAPE)
    made.append(_frames(count), _truth(count), 20.0)
    return made


# -- what is kept ------------------------------------------------------------------------------
def test_what_is_appended_is_read_back_exactly(url: str) -> None:
    made = FrameSet.create(url, CONDITION, SHAPE)
    made.append(_frames(7)[:3], _truth(7)[:3], 20.0)
    made.append(_frames(7)[3:], _truth(7)[3:], np.array([1.0, 2.5, 29.3, np.nan]))
    read = FrameSet.open(url)
    assert (len(read), read.shape, read.has_truth, read.condition) == (7, SHAPE, True, CONDITION)
    assert (read.frames() == _frames(7)).all()
    assert all((read.truth(i) == _truth(7)[i]).all() for i in range(7))
    assert [read.pixel_size_pm(i) for i in range(7)] == [20, 20, 20, 1, 2.5, 29.3, None]
    read.verify()


def test_frames_come_in_the_order_asked_for(url: str) -> None:
    made, all_nyx = _made(url, 6), _frames(6)
    assert (made.frames([5, 0, -2]) == all_nyx[[5, 0, 4]]).all()
    assert (made.frames(slice(1, 4)) == all_nyx[1:4]).all()
    assert (made.frames(slice(None, None, -2)) == all_nyx[::-2]).all()
    assert (made.frame(-1) == all_nyx[5]).all()
    assert made.frames([]).shape == (0, *SHAPE)


def test_the_digest_does_not_depend_on_the_appends(url: str) -> None:
    whole = _made(f"{url}/whole", 6)
    parts = FrameSet.create(f"{url}/parts", CONDITION, SHAPE)
    for i in range(6):
        parts.append(_frames(6)[i : i + 1], _truth(6)[i : i + 1], 20.0)
    assert parts.digest == whole.digest
    assert len(whole.digest) == 32


def test_the_digest_tells_every_part_apart(tmp_path: Path) -> None:
    found = set()
    other_frames, other_truth = _frames(4), _truth(4)
    other_frames[1, 2, 3] += 1e-3
    other_truth[3] = other_truth[3] + np.float32(1e-3)
    for number, (condition, shown, truth, size) in enumerate(
        [
            (CONDITION, _frames(4), _truth(4), 20.0),
            (Condition(id="test", dose_e_per_a2=2e4), _frames(4), _truth(4), 20.0),
            (CONDITION, other_frames, _truth(4), 20.0),
            (CONDITION, _frames(4), other_truth, 20.0),
            (CONDITION, _frames(4), _truth(4), 20.1),
            (CONDITION, _frames(4), _truth(4), None),
            (CONDITION, _frames(4), None, 20.0),
            (CONDITION, _frames(4), [np.zeros((0, 3))] * 4, 20.0),
        ]
    ):
        made = FrameSet.create(tmp_path / str(number), condition, SHAPE)
        made.append(shown, truth, size)
        found.add(made.digest)
    assert len(found) == 8


def test_a_policy_is_kept_with_its_ranges(url: str) -> None:
    policy = Policy(id="wide", dose_e_per_a2=Range(low=1e3, high=1e5))
    FrameSet.create(url, policy, SHAPE)
    assert FrameSet.open(url).condition == policy


def test_a_frame_without_a_size_of_its_own_has_the_conditions(url: str) -> None:
    condition = Condition.model_validate({"id": "a", "scan": {"pixel_size_pm": 16}})
    made = FrameSet.create(url, condition, SHAPE)
    made.append(_frames(2), None, np.array([np.nan, 8.0]))
    assert [made.pixel_size_pm(i) for i in range(2)] == [16.0, 8.0]


def test_a_set_without_truth_says_so(url: str) -> None:
    made = FrameSet.create(url, CONDITION, SHAPE)
    made.append(_frames(2), None, None)
    assert not FrameSet.open(url).has_truth
    with pytest.raises(NotFound, match="has no truth"):
        made.truth(0)


def test_frames_without_atoms_are_truth_too(url: str) -> None:
    made = FrameSet.create(url, CONDITION, SHAPE)
    made.append(_frames(2), [np.zeros((0, 3)), []], None)  # type: ignore[list-item]
    assert FrameSet.open(url).has_truth
    assert FrameSet.open(url).truth(1).shape == (0, 3)
    made.verify()


def test_large_frames_lie_in_several_chunks(url: str) -> None:
    made = FrameSet.create(url, CONDITION, (601, 520))
    made.append(_frames(2, (601, 520)), None, None)
    assert len(open_store(url).list("0/c")) == 8
    assert (FrameSet.open(url).frames() == _frames(2, (601, 520))).all()


def test_more_truth_than_a_chunk_holds_is_split_where_frames_end(url: str) -> None:
    atoms = [np.full((5000, 3), i, np.float32) for i in range(4)]
    made = FrameSet.create(url, CONDITION, SHAPE)
    made.append(_frames(1), atoms[:1], None)
    made.append(_frames(3), atoms[1:], None)
    assert [len(made.truth(i)) for i in range(4)] == [5000] * 4
    assert (FrameSet.open(url).truth(2) == 2).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integers_are_stored_as_such_and_read_as_float(url: str, dtype: str) -> None:
    counts = np.arange(2 * 24 * 20).reshape(2, *SHAPE) % 251
    made = FrameSet.create(url, CONDITION, SHAPE, dtype)
    made.append(counts, None, None)
    read = FrameSet.open(url).frames()
    assert read.dtype == np.float32
    assert (read == counts).all()
    made.verify()


def test_an_empty_append_changes_nothing(url: str) -> None:
    made = _made(url)
    before = made.digest
    made.append(_frames(0), None, None)
    assert (len(FrameSet.open(url)), made.digest) == (4, before)


def test_a_set_is_opened_with_two_reads(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = _made(url), []
    for name in ("get", "list", "exists", "folders"):
        real = getattr(type(made._store), name)
        monkeypatch.setattr(
            type(made._store),
            name,
            lambda self, *a, _real=real, _name=name, **k: (
                calls.append(_name) or _real(self, *a, **k)
            ),
        )
    FrameSet.open(url)
    assert sorted(calls) == ["get", "list"]


def test_a_pickled_set_is_opened_where_it_is_used(folder: str) -> None:
    copy = pickle.loads(pickle.dumps(_made(folder)))
    assert (copy.frames() == _frames(4)).all()


def test_sets_are_found_below_a_url(url: str) -> None:
    for name in ("b", "a/deep/c", "a"):
        FrameSet.create(f"{url}/{name}", CONDITION, SHAPE)
    open_store(url).put("other/file", b"")
    assert list_framesets(url) == [f"{url}/a", f"{url}/b"]
    assert list_framesets(f"{url}/a/deep") == [f"{url}/a/deep/c"]
    assert list_framesets(f"{url}/a/none") == []


# -- what other readers see --------------------------------------------------------------------
def test_plain_zarr_reads_frames_and_truth(url: str) -> None:
    _made(url, 5)
    group = zarr.open_group(open_store(url).zarr(read_only=True), mode="r")
    truth: Any = group["truth"]
    shown: Any = group["0"]
    assert (shown[:] == _frames(5)).all()
    assert shown.metadata.dimension_names == ("n", "y", "x")
    assert (truth[:, 0] == np.repeat(np.arange(5), [0, 1, 2, 3, 0])).all()


def test_the_group_carries_ome_zarr_axes_and_scale(url: str) -> None:
    _made(url)
    attributes: Any = json.loads(open_store(url).get("zarr.json"))["attributes"]
    image = attributes["ome"]["multiscales"][0]
    assert attributes["ome"]["version"] == "0.5"
    assert [axis["name"] for axis in image["axes"]] == ["n", "y", "x"]
    assert [axis.get("unit") for axis in image["axes"]] == [None, "nanometer", "nanometer"]
    scale = image["datasets"][0]["coordinateTransformations"]
    assert scale == [{"type": "scale", "scale": [1.0, 0.02, 0.02]}]


@pytest.mark.parametrize("sizes", [[20.0, 21.0], [20.0, None], [None, None]])
def test_sizes_that_differ_leave_the_scale_in_pixels(folder: str, sizes: list[Any]) -> None:
    made = FrameSet.create(folder, CONDITION, SHAPE)
    for size in sizes:
        made.append(_frames(1), None, size)
    image = json.loads(open_store(folder).get("zarr.json"))["attributes"]["ome"]["multiscales"][0]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 1.0, 1.0]
    assert not any("unit" in axis for axis in image["axes"])


def test_our_reader_does_not_need_what_other_readers_go_by(url: str) -> None:
    _made(url)
    for key in ("zarr.json", "0/zarr.json", "truth/zarr.json", "pixel_size_pm/zarr.json"):
        open_store(url).delete_keys([key])
    FrameSet.open(url).verify()


# -- a whole set in one go ---------------------------------------------------------------------
def _parts(count: int, seed: int = 0, *, fails: bool = False) -> Iterator[Part]:
    """Two parts of one set; the second may fail."""
    frames_nyx, truth = _frames(count, seed=seed), _truth(count)
    yield frames_nyx[:3], truth[:3], 20.0
    if fails:
        raise RuntimeError("no more frames")
    yield frames_nyx[3:], truth[3:], 20.0


def test_a_set_written_in_parts_equals_one_appended_to(url: str) -> None:
    written = FrameSet.write(f"{url}/written", CONDITION, SHAPE, _parts(7))
    read = FrameSet.open(f"{url}/written")
    assert written.digest == read.digest == _made(f"{url}/appended", 7).digest
    assert (read.frames() == _frames(7)).all()
    assert all((read.truth(i) == _truth(7)[i]).all() for i in range(7))
    read.verify()


def test_a_set_written_in_parts_takes_more(url: str) -> None:
    FrameSet.write(url, CONDITION, SHAPE, _parts(5))
    FrameSet.open(url).append(_frames(8)[5:], _truth(8)[5:], 20.0)
    again = FrameSet.open(url)
    assert (again.frames() == _frames(8)).all()
    again.verify()


@pytest.mark.parametrize("is_written", [False, True], ids=["appended", "written"])
def test_a_set_is_lost_only_when_the_one_that_replaces_it_is_whole(
    url: str, *, is_written: bool
) -> None:
    old = FrameSet.write(url, CONDITION, SHAPE, _parts(6)) if is_written else _made(url, 6)
    keys = open_store(url).list()
    with pytest.raises(RuntimeError, match="no more frames"):
        FrameSet.write(url, CONDITION, SHAPE, _parts(9, 1, fails=True), overwrite=True)
    assert open_store(url).list() == keys
    new = FrameSet.write(url, CONDITION, SHAPE, _parts(9, 1), overwrite=True)
    assert old.digest != FrameSet.open(url).digest == new.digest
    FrameSet.open(url).verify()
    assert not set(keys) & {key for key in open_store(url).list() if "/c/" in key}


def test_a_set_that_is_there_is_written_over_only_if_asked(url: str) -> None:
    old = _made(url)
    with pytest.raises(Conflict, match="there is already a FrameSet"):
        FrameSet.write(url, CONDITION, SHAPE, _parts(6))
    assert FrameSet.open(url).digest == old.digest


def test_who_appends_to_a_set_that_was_replaced_is_told(url: str) -> None:
    old = _made(url)
    FrameSet.write(url, CONDITION, SHAPE, _parts(6), overwrite=True)
    with pytest.raises(Conflict, match="another writer"):
        old.append(_frames(1), _truth(1), 20.0)
    FrameSet.open(url).verify()


def test_other_readers_find_the_frames_of_a_written_set(folder: str) -> None:
    FrameSet.write(folder, CONDITION, SHAPE, _parts(6))
    group = zarr.open_group(folder, mode="r")
    ome: Any = group.attrs["ome"]
    path = ome["multiscales"][0]["datasets"][0]["path"]
    assert (np.asarray(group[path]) == _frames(6)).all()


def test_a_set_that_is_being_written_is_not_listed(tmp_path: Path) -> None:
    def look() -> Iterator[Part]:
        yield from _parts(6)
        assert list_framesets(tmp_path) == []

    FrameSet.write(str(tmp_path / "set"), CONDITION, SHAPE, look())
    assert list_framesets(tmp_path) == [str(tmp_path / "set")]


# -- what is refused ---------------------------------------------------------------------------
def test_a_url_without_a_set_is_unknown(url: str) -> None:
    with pytest.raises(UnknownFrameSet, match="no FrameSet at"):
        FrameSet.open(f"{url}/none")


def test_an_instrument_file_in_place_of_a_set_is_told_how_it_becomes_one(tmp_path: Path) -> None:
    (tmp_path / "scan.npy").write_bytes(b"")
    with pytest.raises(UnknownFrameSet, match=r"it is a file; manybeam data import .*scan\.npy"):
        FrameSet.open(str(tmp_path / "scan.npy"))


def test_a_set_is_not_made_twice_unless_overwritten(url: str) -> None:
    _made(url)
    open_store(url).put("notes.txt", b"mine")
    with pytest.raises(Conflict, match="there is already a FrameSet"):
        FrameSet.create(url, CONDITION, SHAPE)
    assert len(FrameSet.create(url, CONDITION, (8, 8), overwrite=True)) == 0
    assert (FrameSet.open(url).shape, open_store(url).get("notes.txt")) == ((8, 8), b"mine")


def test_a_set_made_in_place_of_another_leaves_no_moment_without_one(url: str) -> None:
    _made(url)
    records = open_store(url).list("commits")
    FrameSet.create(url, CONDITION, (8, 8), overwrite=True).append(_frames(2, (8, 8)), None, None)
    assert set(records) < set(open_store(url).list("commits"))
    again = FrameSet.open(url)
    assert (len(again), again.has_truth) == (2, False)
    again.verify()


NAN_FRAMES = np.full((2, *SHAPE), np.nan)
REFUSALS = [
    pytest.param(_frames(2)[0], None, None, InvalidFrame, "do not fit", id="one frame, no stack"),
    pytest.param(_frames(2, (8, 8)), None, None, InvalidFrame, "do not fit", id="another shape"),
    pytest.param(NAN_FRAMES, None, None, InvalidFrame, "not finite", id="NaN"),
    pytest.param(_frames(2) * 1j, None, None, InvalidFrame, "not finite", id="complex"),
    pytest.param(
        np.full((2, *SHAPE), 1e300), None, None, InvalidFrame, "lose value", id="overflow"
    ),
    pytest.param(_frames(2), _truth(3), None, InvalidInput, "truth of 3", id="truth of three"),
    pytest.param(_frames(2), [np.ones((1, 2))] * 2, None, InvalidInput, "truth.0.", id="pairs"),
    pytest.param(
        _frames(2), [np.full((1, 3), np.nan)] * 2, None, InvalidInput, "not a list", id="NaNs"
    ),
    pytest.param(_frames(2), None, None, InvalidInput, "has truth", id="no truth on these"),
    pytest.param(_frames(2), _truth(2), 0.0, InvalidInput, "is not > 0", id="pixel size 0"),
    pytest.param(_frames(2), _truth(2), np.inf, InvalidInput, "is not > 0", id="pixel size inf"),
    pytest.param(_frames(2), _truth(2), np.ones(3), InvalidInput, "pixel sizes", id="three sizes"),
]


@pytest.mark.parametrize(("shown", "truth", "size", "error", "says"), REFUSALS)
def test_a_refused_append_changes_nothing(
    folder: str, shown: ndarray, truth: Any, size: Any, error: type[Exception], says: str
) -> None:
    made = _made(folder)
    keys = open_store(folder).list()
    with pytest.raises(error, match=says):
        made.append(shown, truth, size)
    assert open_store(folder).list() == keys


def test_a_fraction_is_not_rounded_away(folder: str) -> None:
    made = FrameSet.create(folder, CONDITION, SHAPE, "uint16")
    with pytest.raises(InvalidFrame, match="lose values as uint16"):
        made.append(_frames(1), None, None)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param((0, 4), "float32", id="no rows"),
        pytest.param((4,), "float32", id="one side"),
        pytest.param((4, 4), "complex64", id="complex"),
    ],
)
def test_a_set_of_no_frames_is_refused(folder: str, shape: Any, dtype: str) -> None:
    with pytest.raises(InvalidInput):
        FrameSet.create(folder, CONDITION, shape, dtype)


@pytest.mark.parametrize("number", [4, -5])
def test_a_frame_beyond_the_last_is_not_found(folder: str, number: int) -> None:
    made = _made(folder)
    for read in (made.frame, made.truth, made.pixel_size_pm, lambda i: made.frames([i])):
        with pytest.raises(NotFound, match="it has 4"):
            read(number)


# -- bytes that changed ------------------------------------------------------------------------
def test_a_changed_byte_is_corrupt_at_the_first_reading(url: str) -> None:
    made, store = _made(url), open_store(url)
    chunk = bytearray(store.get("0/c/2/0/0"))
    chunk[len(chunk) // 2] ^= 1
    store.put("0/c/2/0/0", bytes(chunk))
    with pytest.raises(Corrupt, match=r"frame 2 of .* is corrupt"):
        made.frames()
    assert (made.frame(1) == _frames(4)[1]).all()


@pytest.mark.parametrize("data", [b"", b"\0" * 40], ids=["empty", "zeros"])
def test_a_chunk_cut_short_is_corrupt(folder: str, data: bytes) -> None:
    made = _made(folder)
    open_store(folder).put("0/c/1/0/0", data)
    with pytest.raises(Corrupt, match="frame 1 of"):
        made.frames()


def test_a_lost_chunk_is_corrupt_and_not_read_as_zeros(url: str) -> None:
    made = _made(url)
    open_store(url).delete_keys(["0/c/3/0/0"])
    with pytest.raises(Corrupt, match="frame 3 of"):
        made.frames([0, 3])


def test_chunks_that_were_exchanged_are_found_by_verify(url: str) -> None:
    made, store = _made(url), open_store(url)
    made.append(_frames(2, seed=9), _truth(2), 20.0)
    fourth, fifth = store.get("0/c/4/0/0"), store.get("0/c/5/0/0")
    store.put("0/c/4/0/0", fifth)
    store.put("0/c/5/0/0", fourth)
    with pytest.raises(Corrupt, match="frames 4 to 5 of"):
        FrameSet.open(url).verify()


@pytest.mark.parametrize("key", ["truth/c/0/0", "pixel_size_pm/c/0"])
def test_lost_truth_or_sizes_are_corrupt(folder: str, key: str) -> None:
    made = _made(folder)
    open_store(folder).delete_keys([key])
    with pytest.raises(Corrupt):
        FrameSet.open(made.url).verify()


def test_a_record_that_cannot_be_read_is_corrupt(url: str) -> None:
    _made(url)
    open_store(url).put("commits/00000001.json", b'{"format": 1,')
    with pytest.raises(Corrupt, match="is not a commit record"):
        FrameSet.open(url)


# -- writers that clash or die -----------------------------------------------------------------
def test_of_two_writers_the_later_is_told_and_loses_nothing(url: str) -> None:
    _made(url)
    first, second = FrameSet.open(url), FrameSet.open(url)
    first.append(_frames(2, seed=5), _truth(2), 20.0)
    with pytest.raises(Conflict, match="another writer has changed"):
        second.append(_frames(3, seed=6), _truth(3), 20.0)
    again = FrameSet.open(url)
    assert len(again) == 6
    again.append(_frames(3, seed=6), _truth(3), 20.0)
    assert (FrameSet.open(url).frames(slice(6, 9)) == _frames(3, seed=6)).all()
    again.verify()


def test_of_many_writers_at_once_exactly_one_wins(url: str) -> None:
    _made(url)
    writers = [FrameSet.open(url) for _ in range(8)]
    winners: list[int] = []
    barrier = threading.Barrier(8)

    def append(number: int) -> None:
        barrier.wait()
        try:
            writers[number].append(_frames(3 + number, seed=number), _truth(3 + number), 20.0)
        except Conflict:
            return
        winners.append(number)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    read = FrameSet.open(url)
    assert (read.frames(slice(4, None)) == _frames(3 + winner, seed=winner)).all()
    read.verify()


def test_a_writer_of_a_set_that_was_made_anew_is_told(url: str) -> None:
    old = _made(url)
    new = FrameSet.create(url, CONDITION, SHAPE, overwrite=True)
    new.append(_frames(1), None, None)
    with pytest.raises(Conflict):
        old.append(_frames(2), _truth(2), 20.0)
    FrameSet.open(url).verify()


def test_an_interrupted_append_leaves_the_set_and_the_next_works(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _made(url)

    def interrupt(_lock: AppendLock, _record: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AppendLock, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.append(_frames(3, seed=1), _truth(3), 20.0)
    assert len(open_store(url).list("0/c")) == 4
    made.append(_frames(2, seed=2), _truth(2), 20.0)
    assert (FrameSet.open(url).frames([4, 5]) == _frames(2, seed=2)).all()
    FrameSet.open(url).verify()


def test_an_interrupt_just_after_the_record_loses_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = _made(url), AppendLock.commit

    def commit_and_interrupt(lock: AppendLock, record: Any) -> None:
        real(lock, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(AppendLock, "commit", commit_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.append(_frames(3, seed=1), _truth(3), 20.0)
    assert (FrameSet.open(url).frames(slice(4, 7)) == _frames(3, seed=1)).all()
    FrameSet.open(url).verify()


def test_a_writer_that_was_taken_for_dead_cannot_commit(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _made(url)
    monkeypatch.setattr(Owner, "is_gone", lambda owner: True)
    log = CommitLog(open_store(url))
    with log.lock(log.head()) as lock:
        FrameSet.open(url).append(_frames(2, seed=2), _truth(2), 20.0)
        for step in (lock.check, lambda: lock.commit(lock.head.following(count=99))):
            with pytest.raises(Conflict, match="since it was opened"):
                step()
    assert (FrameSet.open(url).frames([4, 5]) == _frames(2, seed=2)).all()
    FrameSet.open(url).verify()


@pytest.mark.parametrize(("age_s", "gives_way"), [(60, False), (3600, True)])
def test_a_claim_from_another_machine_gives_way_when_it_is_old(
    folder: str, age_s: float, *, gives_way: bool
) -> None:
    made = _made(folder)
    open_store(folder).put("claims/00000002.json", b'{"machine": "another", "pid": 1}')
    then = time.time() - age_s
    os.utime(Path(folder, "claims", "00000002.json"), (then, then))
    if gives_way:
        made.append(_frames(2), _truth(2), 20.0)
        assert open_store(folder).list("claims") == []
        return
    with pytest.raises(Conflict, match="another writer is appending"):
        made.append(_frames(2), _truth(2), 20.0)


def test_a_living_writer_is_not_pushed_aside(url: str) -> None:
    made = _made(url)
    log = CommitLog(open_store(url))
    with log.lock(log.head()), pytest.raises(Conflict, match="another writer is appending"):
        made.append(_frames(2), _truth(2), 20.0)
    made.append(_frames(2), _truth(2), 20.0)


WRITER = """
import os, signal, sys
import numpy as np
from manybeam.data import frames
from manybeam.data.commits import AppendLock
frames.BATCH_BYTES = 1
made = frames.FrameSet.open(sys.argv[1])
if sys.argv[2] == "at the record":
    AppendLock.commit = lambda self, record: os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
made.append(np.ones((4000, 24, 20), np.float32), [np.ones((1, 3))] * 4000, 20.0)
"""


def _start_writer(folder: str, how: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", WRITER, folder, how]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=_path())


def _path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(frames.__file__).parents[2])}


@pytest.mark.faults
@pytest.mark.parametrize("how", ["at the record", "in the frames", "in the frames, later"])
@pytest.mark.slow
def test_a_killed_writer_leaves_the_set_and_the_next_append_works(folder: str, how: str) -> None:
    made = _made(folder)
    with _start_writer(folder, how) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        wanted = {"in the frames": 10, "in the frames, later": 150}.get(how, 10**9)
        while writer.poll() is None and len(open_store(folder).list("0/c")) < wanted:
            time.sleep(0.001)
        writer.kill()
    assert writer.returncode == -signal.SIGKILL
    assert len(open_store(folder).list("0/c")) > 4
    read = FrameSet.open(folder)
    assert (len(read), read.digest) == (4, made.digest)
    read.verify()
    made.append(_frames(2, seed=2), _truth(2), 20.0)
    assert (
        FrameSet.open(folder).frames() == np.concatenate([_frames(4), _frames(2, seed=2)])
    ).all()
    FrameSet.open(folder).verify()


FULL_DISK = """
import sys
import numpy as np
from pathlib import Path
from manybeam.data.frames import FrameSet
from manybeam.errors import WriteFailed
from manybeam.spec import Condition
place = sys.argv[1] + "/set"
rng = np.random.default_rng(0)
made = FrameSet.create(place, Condition(id="test"), (64, 64))
shown = rng.normal(size=(20, 64, 64)).astype(np.float32)
made.append(shown, [np.ones((1, 3))] * 20, 20.0)
{make_full}
try:
    more = rng.normal(size=(200, 64, 64)).astype(np.float32)
    made.append(more, [np.ones((1, 3))] * 200, 20.0)
except WriteFailed as error:
    print("refused:", error.what)
else:
    raise SystemExit("not full")
read = FrameSet.open(place)
assert len(read) == 20 and (read.frames() == shown).all()
read.verify()
left = [p for p in Path(place, "0", "c").rglob("*") if p.is_file()]
assert len(left) == 20, len(left)
{make_room}
made.append(shown[:2], [np.ones((1, 3))] * 2, 20.0)
FrameSet.open(place).verify()
assert len(FrameSet.open(place)) == 22
print("mended")
"""
BY_LIMIT = {
    "make_full": """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
""",
    "make_room": "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)",
}
BY_DISK = {
    "make_full": """
ballast = Path(sys.argv[1], "ballast")
try:
    with ballast.open("wb", buffering=0) as out:
        while out.write(bytes(65536)):
            pass
except OSError:
    pass
with ballast.open("r+b") as out:
    out.truncate(ballast.stat().st_size - 400_000)
""",
    "make_room": "ballast.unlink()",
}


def _run_full_disk(parts: dict[str, str], *, before: list[str], folder: Path) -> str:
    script = FULL_DISK.format(**parts)
    argv = [*before, sys.executable, "-c", script, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, env=_path(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_append_that_meets_a_file_limit_leaves_the_set_as_it_was(tmp_path: Path) -> None:
    said = _run_full_disk(BY_LIMIT, before=[], folder=tmp_path)
    assert "refused: cannot write" in said
    assert said.endswith("mended\n")


@pytest.mark.slow
def test_an_append_on_a_full_disk_leaves_the_set_as_it_was(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=2m tmpfs "{tmp_path}" && exec "$@"'
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*own, "sh", "-c", mount, "sh", "true"], check=False).returncode:
        pytest.skip("no user namespaces on this machine; the file limit stands for the full disk")
    said = _run_full_disk(BY_DISK, before=[*own, "sh", "-c", mount, "sh"], folder=tmp_path)
    assert "refused: cannot write" in said
    assert said.endswith("mended\n")


def test_a_disk_that_fills_at_the_record_leaves_the_set_as_it_was(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _made(folder)

    def fill(_lock: AppendLock, _record: Any) -> None:
        raise WriteFailed("no space left", "", "")

    with monkeypatch.context() as patch:
        patch.setattr(AppendLock, "commit", fill)
        with pytest.raises(WriteFailed):
            made.append(_frames(2), _truth(2), 20.0)
    assert (len(made), len(FrameSet.open(folder))) == (4, 4)
    made.append(_frames(2), _truth(2), 20.0)
    FrameSet.open(folder).verify()

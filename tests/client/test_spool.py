"""The spool: what waits, what is given up, and several processes with one folder."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam_client import spool as module
from manybeam_client.answer import Answer
from manybeam_client.errors import Problem
from manybeam_client.frame import FrameRequest, raw_body
from manybeam_client.network.outage import Outage
from manybeam_client.spool import MOST_FAILURES, ORPHAN_S, STALE_S, Spool, SpoolSender
from manybeam_client.stats import Stats

NAME = "20260101T000000000000-0123abcd"

Send = Callable[..., SpoolSender]
Until = Callable[..., None]


@pytest.fixture
def send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Send]:
    """Send the frames of the folder of a test, without long rests."""
    monkeypatch.setattr(module, "LONGEST_REST_S", 0.001)
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    made: list[SpoolSender] = []
    outage = Outage(lambda _: None, lambda: None, lambda: None)

    def start(ask: Callable[[FrameRequest], Answer]) -> SpoolSender:
        spool = Spool(tmp_path, 10, Stats())
        made.append(SpoolSender(spool, outage, ask, lambda: True))
        return made[-1]

    yield start
    for one in made:
        one.close()
    outage.close()


def filled(folder: Path, *names: str, limit_mb: float = 10) -> Spool:
    spool = Spool(folder, limit_mb, Stats())
    for name in names:
        body, dtype, shape = raw_body(np.zeros((8, 8), np.float32))
        assert spool.put(FrameRequest("auto", name, body, dtype=dtype, shape=shape))
    return spool


def answered(request: FrameRequest) -> Answer:
    return Answer(request.frame_id, arrays={"meta": np.zeros(1, np.uint8)})


def aged(path: Path, age_s: float) -> Path:
    time_s = path.stat().st_mtime - age_s - 10
    os.utime(path, (time_s, time_s))
    return path


@pytest.mark.parametrize("kind", ["unreadable", "failed", "connection"])
def test_a_frame_with_a_passing_problem_waits_and_holds_up_no_other(
    kind: str, tmp_path: Path, send: Send, until: Until
) -> None:
    spool, asked = filled(tmp_path, "bad", "b", "c"), []
    is_back = threading.Event()

    def ask(request: FrameRequest) -> Answer:
        asked.append(request.frame_id)
        is_bad = request.frame_id == "bad" and not is_back.is_set()
        if is_bad and asked.count("bad") == 2:
            is_back.set()
        return Answer("bad", error=Problem(kind, "passes")) if is_bad else answered(request)

    send(ask)
    until(lambda: spool.waiting == 0)
    assert asked == ["bad", "b", "c", "bad", "bad"]
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_a_frame_at_which_the_service_fails_each_time_is_set_aside(
    tmp_path: Path, send: Send, until: Until
) -> None:
    spool, asked = filled(tmp_path, "bad"), []

    def ask(request: FrameRequest) -> Answer:
        asked.append(request.frame_id)
        return Answer("bad", error=Problem("failed", "it failed", status=500))

    send(ask)
    until(lambda: spool.waiting == 0)
    assert len(asked) == MOST_FAILURES
    assert "it failed" in next(tmp_path.glob("*.error.txt")).read_text()


def test_two_senders_of_one_folder_send_each_frame_once(
    tmp_path: Path, send: Send, until: Until
) -> None:
    spool, asked = filled(tmp_path, *map(str, range(20))), []

    def ask(request: FrameRequest) -> Answer:
        asked.append(request.frame_id)
        return answered(request)

    for _ in range(2):
        send(ask)
    until(lambda: spool.waiting == 0)
    assert sorted(asked) == sorted(map(str, range(20)))
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}


def test_a_frame_is_locked_while_it_is_sent_and_a_stale_lock_is_none(tmp_path: Path) -> None:
    ours, theirs = filled(tmp_path, "a"), Spool(tmp_path, 10, Stats())
    taken = ours.take({})
    assert taken is not None
    assert theirs.take({}) is None
    aged(next(tmp_path.glob("*.lock")), STALE_S)
    assert theirs.take({}) is not None


def test_a_frame_that_another_process_took_does_not_switch_the_spool_off(tmp_path: Path) -> None:
    spool = filled(tmp_path, "a")
    spool.set_aside(tmp_path / f"{NAME}.json", "it has gone")
    filled(tmp_path, "b")
    body, dtype, shape = raw_body(np.zeros((8, 8), np.float32))
    assert spool.put(FrameRequest("auto", "c", body, dtype=dtype, shape=shape))


def test_refused_frames_leave_room(tmp_path: Path) -> None:
    spool = filled(tmp_path, "a", limit_mb=500 / 2**20)
    (entry,) = tmp_path.glob("*.json")
    spool.set_aside(entry, "refused")
    assert [path.name.partition(".")[2] for path in sorted(tmp_path.iterdir())] == [
        "error.txt", "refused", "refused.npy",
    ]  # fmt: skip
    filled(tmp_path, "b", limit_mb=500 / 2**20)


def test_what_killed_processes_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    kinds = ["npy", "npy.part", "npz.0123abcd.part", "json.lock"]
    old = [aged(_made(tmp_path / f"{NAME}.{kind}"), ORPHAN_S) for kind in kinds]
    young = _made(tmp_path / "20260101T000000000001-0123abcd.npy")
    strange = aged(_made(tmp_path / "theirs.npy.part"), ORPHAN_S)
    Spool(tmp_path, 10, Stats())
    assert [path for path in old if path.exists()] == []
    assert young.exists()
    assert strange.exists()


def _made(path: Path) -> Path:
    path.write_bytes(b"x")
    return path


def test_a_frame_with_damaged_facts_is_set_aside(tmp_path: Path) -> None:
    spool = filled(tmp_path, "a")
    (entry,) = tmp_path.glob("*.json")
    facts: dict[str, Any] = {**json.loads(entry.read_text()), "query": None}
    entry.write_text(json.dumps(facts))
    assert spool.take({}) is None
    assert (spool.waiting, entry.with_suffix(".error.txt").exists()) == (0, True)

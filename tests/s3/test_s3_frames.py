"""FrameSets on a real S3 server that refuses, freezes or dies in the middle of an append.

That what is appended is read back, and the refusals, are tested on S3 in `tests/test_frames.py`.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from manybeam.data import frames
from manybeam.data.commits import AppendLock
from manybeam.data.frames import FrameSet, list_framesets
from manybeam.data.store import open_store
from manybeam.errors import Conflict, NotFound, StoreUnreachable
from manybeam.spec import Condition

TIMEOUT_S = 3.0
UseSettings = Callable[[dict[str, str]], None]


def _frames(count: int, seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).normal(size=(count, 64, 64)).astype(np.float32)


def _made(url: str) -> FrameSet:
    made = FrameSet.create(url, Condition(id="test"), (64, 64))
    made.append(_frames(4), None, 20.0)
    return made


@pytest.fixture
def own_server(frail_s3: Any, use_settings: UseSettings) -> Any:
    """A server that a test may freeze and kill."""
    use_settings({**frail_s3.settings(), "MANYBEAM_S3_TIMEOUT_S": str(TIMEOUT_S)})
    return frail_s3


@pytest.fixture
def own_url(own_server: Any) -> str:
    """Where a test may keep a FrameSet on that server."""
    return f"s3://frames/{uuid.uuid4().hex}"


def test_a_wrong_secret_is_told_at_once(s3_url: str, use_settings: UseSettings) -> None:
    _made(s3_url)
    use_settings({"MANYBEAM_S3_SECRET_KEY": "wrong"})
    begin = time.monotonic()
    for refused in (FrameSet.open, open_store, list_framesets):
        with pytest.raises(StoreUnreachable, match="refuses the credentials"):
            refused(s3_url)
    assert time.monotonic() - begin < 5


def test_a_bucket_that_is_not_there_is_told(s3_url: str) -> None:
    with pytest.raises((NotFound, StoreUnreachable), match="no-such-bucket"):
        FrameSet.open("s3://no-such-bucket/a")


def test_a_server_that_dies_in_an_append_leaves_the_set_as_it_was(
    own_server: Any, own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _made(own_url)
    monkeypatch.setattr(frames, "BATCH_BYTES", 1)
    _at_check(monkeypatch, 3, lambda: os.kill(own_server.pid("seaweedfs"), signal.SIGKILL))
    begin = time.monotonic()
    with pytest.raises(StoreUnreachable):
        made.append(_frames(8, seed=1), None, 20.0)
    assert time.monotonic() - begin < 3 * TIMEOUT_S
    own_server.mend()
    assert (FrameSet.open(own_url).frames() == _frames(4)).all()
    made.append(_frames(2, seed=2), None, 20.0)
    assert (FrameSet.open(own_url).frames([4, 5]) == _frames(2, seed=2)).all()
    FrameSet.open(own_url).verify()


@pytest.mark.parametrize("at", ["frames", "record"])
def test_a_server_that_freezes_in_an_append_tears_nothing(
    own_server: Any, own_url: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    made, pid = _made(own_url), own_server.pid("seaweedfs")
    monkeypatch.setattr(frames, "BATCH_BYTES", 1)
    with monkeypatch.context() as patch:
        if at == "frames":
            _at_check(patch, 3, lambda: _freeze(pid))
        else:
            _before_commit(patch, lambda: _freeze(pid))
        begin = time.monotonic()
        with pytest.raises(StoreUnreachable):
            made.append(_frames(8, seed=1), None, 20.0)
        assert time.monotonic() - begin < 3 * TIMEOUT_S
    os.kill(pid, signal.SIGCONT)
    # A record that was on its way when the server froze may have arrived after all: then whole.
    seen = FrameSet.open(own_url)
    assert len(seen) in ((4,) if at == "frames" else (4, 12))
    seen.verify()
    _append_after_all(own_url, _frames(2, seed=2))
    assert (FrameSet.open(own_url).frames([-2, -1]) == _frames(2, seed=2)).all()
    FrameSet.open(own_url).verify()


def test_a_frozen_server_is_told_to_a_reader_in_time(own_server: Any, own_url: str) -> None:
    made, pid = _made(own_url), own_server.pid("seaweedfs")
    _freeze(pid)
    try:
        for read in (made.frames, lambda: FrameSet.open(own_url), made.verify):
            begin = time.monotonic()
            with pytest.raises(StoreUnreachable):
                read()
            assert time.monotonic() - begin < TIMEOUT_S + 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (made.frames() == _frames(4)).all()


WRITER = """
import sys
import numpy as np
from manybeam.data.frames import FrameSet
from manybeam.errors import Conflict
url, number = sys.argv[1], int(sys.argv[2])
conflicts, opened = 0, FrameSet.open(url)
print("opened", flush=True)
sys.stdin.readline()
for turn in range(4):
    shown = np.full((5, 64, 64), 10 * number + turn, np.float32)
    while True:
        try:
            opened.append(shown, None, 20.0)
            break
        except Conflict:
            conflicts += 1
            opened = FrameSet.open(url)
print(conflicts)
"""


def test_writers_in_many_processes_lose_no_frame(s3_url: str) -> None:
    _made(s3_url)
    source = {**os.environ, "PYTHONPATH": str(Path(frames.__file__).parents[2])}
    argv = [sys.executable, "-c", WRITER, s3_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": source}
    writers = [subprocess.Popen([*argv, str(number)], **pipes) for number in range(1, 4)]
    # All have opened the set before any appends: of the first three appends two are too late.
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "opened\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    conflicts = [int(writer.communicate(timeout=120)[0]) for writer in writers]
    read = FrameSet.open(s3_url)
    values = read.frames()[4:, 0, 0].reshape(12, 5)
    assert (values == values[:, :1]).all()
    assert sorted(values[:, 0]) == [10 * n + turn for n in range(1, 4) for turn in range(4)]
    assert sum(conflicts) >= 2
    read.verify()


def _freeze(pid: int) -> None:
    """Stop a process; its threads stop one after another, so wait until the last has."""
    os.kill(pid, signal.SIGSTOP)
    states = Path(f"/proc/{pid}/task").glob("*/stat")
    for state in states:
        while state.read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.001)


def _append_after_all(url: str, shown: ndarray) -> None:
    """Append; the record under way may arrive between opening and that, which is a Conflict."""
    try:
        FrameSet.open(url).append(shown, None, 20.0)
    except Conflict:
        FrameSet.open(url).append(shown, None, 20.0)


def _at_check(patch: pytest.MonkeyPatch, number: int, fault: Callable[[], None]) -> None:
    """Let a fault happen at the n-th look a writer takes between two batches."""
    real, seen = AppendLock.check, []

    def check(lock: AppendLock) -> None:
        seen.append(lock)
        real(lock)
        if len(seen) == number:
            fault()

    patch.setattr(AppendLock, "check", check)


def _before_commit(patch: pytest.MonkeyPatch, fault: Callable[[], None]) -> None:
    real = AppendLock.commit

    def commit(lock: AppendLock, record: Any) -> None:
        fault()
        real(lock, record)

    patch.setattr(AppendLock, "commit", commit)

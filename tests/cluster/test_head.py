"""The platform's own process: started once, found by its home, ended with all below it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from manybeam.cluster.head import _end, start_head, stop_head
from manybeam.cluster.joining import knock
from manybeam.cluster.running import head

pytestmark = pytest.mark.cluster

JOIN = """
import ray  # as another library might have done before
from manybeam.cluster.joining import connect, disconnect
connect()
print(ray.get(ray.remote(lambda: 6 * 7).options(num_cpus=0.1).remote()))
disconnect()
"""


def _running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that have not ended; the exit code of one may not be read yet."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def _addresses(processes: list[psutil.Process]) -> set[str]:
    """Where processes listen; one that has ended meanwhile listens nowhere."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"}
    return found


@pytest.fixture
def long_path(tmp_path: Path) -> str:
    """A folder whose path is too long for the sockets in it, as schedulers of jobs make them."""
    long = tmp_path / ("job" * 30)
    long.mkdir()
    return str(long)


def test_a_head_outlives_the_command_and_is_joined_by_the_next_also_where_rays_folder_is_long(
    home: Path, long_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", long_path)
    started = start_head(home, cpus=1)
    try:
        assert start_head(home) == started == head(home)
        environment = {**os.environ, "MANYBEAM_HOME": str(home)}
        done = subprocess.run(
            [sys.executable, "-c", JOIN],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == "42", done.stderr
        below = psutil.Process(started.pid).children(recursive=True)
        listening = _addresses(below)
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    finally:
        assert stop_head(home)
    assert head(home) is None
    assert not _running(below)


def test_a_head_that_does_not_end_by_itself_is_gone_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("manybeam.cluster.head.STOP_S", 1.0)
    # Neither ends when it is asked to; the child would go on for a minute.
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"import sys, time; {deaf}; print('deaf', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; {deaf}; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deaf\n"
        (below,) = psutil.Process(process.pid).children()
        _end(process.pid)
        assert not _running([below])
    assert process.returncode == -signal.SIGKILL


def test_a_signal_that_a_thread_of_ray_receives_ends_the_head(home: Path) -> None:
    started = start_head(home, cpus=1)
    try:
        below = psutil.Process(started.pid).children(recursive=True)
        thread = max(one.id for one in psutil.Process(started.pid).threads())
        assert thread != started.pid
        ctypes.CDLL(None).tgkill(started.pid, thread, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while (alive := _running(below)) and time.monotonic() < deadline:
            time.sleep(0.05)  # it ends by itself
        assert not alive
        assert head(home) is None
    finally:
        stop_head(home)


def test_a_killed_head_is_not_taken_for_a_running_one_also_where_the_folder_of_all_is_long(
    home: Path, long_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", long_path)
    started = start_head(home, cpus=1)
    knock(started.address)
    below = psutil.Process(started.pid).children(recursive=True)
    os.kill(started.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while head(home) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert head(home) is None
    assert not stop_head(home)
    for process in below:
        if process.is_running():
            process.kill()

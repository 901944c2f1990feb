"""A service that loses a replica, or is changed, while it answers: real Ray Serve, real HTTP."""

import csv
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import urllib3

from manybeam.cluster.identity import platform_id
from manybeam.errors import Conflict, NoCapacity, WorkFailed
from manybeam.serve.app import (
    APP,
    DEPLOYMENT,
    PLATFORM,
    _replica_variables,
    run_service,
    service_state,
    stop_service,
)
from manybeam.serve.deployed import forget_deployed
from manybeam.serve.haproxy import STATISTICS
from manybeam.settings import settings
from manybeam.zoo.registry import Zoo
from manybeam_client import Session

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy on Linux only"),
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]


class Load:
    """Two callers that send a frame again and again for a block; each on a kept connection."""

    def __init__(self, url: str) -> None:
        stream = io.BytesIO()
        np.save(stream, np.random.default_rng(0).random((48, 56), dtype=np.float32))
        self._target, self._body = f"{url}/v1/predict/graphene?pixel_size_pm=16", stream.getvalue()
        self.failures: list[str] = []
        self.answered_s: list[float] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(2)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def longest_gap_s(self) -> float:
        return float(np.diff(sorted(self.answered_s)).max())

    def _send(self) -> None:
        with urllib3.PoolManager(retries=False, timeout=60) as pool:
            while not self._ended.is_set():
                try:
                    answer = pool.request("POST", self._target, body=self._body)
                    if answer.status != 200:
                        self.failures.append(answer.data.decode())
                except urllib3.exceptions.HTTPError as error:
                    self.failures.append(repr(error))
                self.answered_s.append(time.monotonic())


@pytest.fixture(scope="module")
def home(
    cluster: str,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_members: Callable[[int], list[Any]],
) -> Iterator[Path]:
    """A platform with `graphene`, and `damaged`, whose weights are not those registered."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(folder))
        settings.cache_clear()
        one, other = tiny_members(2)
        Zoo().register("damaged", [one], job={"kind": "train"}, alias="serving")
        (weights,) = (folder / "weights").rglob("weights.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        Zoo().register("graphene", [other], job={"kind": "train"}, alias="serving")
        yield folder
    settings.cache_clear()


@pytest.fixture(scope="module")
def url(home: Path, free_port: Callable[[], int]) -> Iterator[str]:
    yield run_service(["graphene"], port=free_port(), replicas=2).url
    assert stop_service()


def _replicas() -> set[int]:
    """Return the processes of the replicas of this platform."""
    found = set()
    for one in psutil.process_iter(["cmdline"]):
        if " ".join(one.info["cmdline"] or ()).startswith(f"ray::ServeReplica:{APP}:{DEPLOYMENT}"):
            with suppress(psutil.Error):  # it has ended meanwhile
                if one.environ().get(PLATFORM) == platform_id():
                    found.add(one.pid)
    return found


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _settled(url: str, count: int) -> set[int]:
    """Return the processes of so many replicas, whatever an earlier test left.

    HAProxy learns of a replica some time after its start; until then others get its requests.
    """
    run_service(None, port=_port(url), replicas=count)
    statistics, deadline = _replica_variables()[STATISTICS], time.monotonic() + 60
    while len(_replicas()) != count or _known_to_haproxy(statistics) != count:
        assert time.monotonic() < deadline
        time.sleep(0.2)  # nobody tells when that changes
    return _replicas()


def _known_to_haproxy(port: str) -> int:
    """Return the number of replicas that get requests of HAProxy, by its statistics."""
    page = urllib3.request("GET", f"http://127.0.0.1:{port}/stats;csv").data.decode()
    rows = csv.DictReader(page.removeprefix("# ").splitlines())
    return sum("REPLICA" in row["svname"] and row["status"].startswith("UP") for row in rows)


def test_no_request_is_lost_when_a_replica_is_killed(url: str) -> None:
    before = _settled(url, 2)
    with Load(url) as load:
        time.sleep(2)
        os.kill(before.pop(), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(_replicas() - before) < 1 or len(service_state().hosts) < 2:  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert load.failures == []
    assert load.longest_gap_s < 3


def test_a_stream_whose_replica_is_killed_answers_each_frame_once(url: str) -> None:
    before, answered = _settled(url, 2), list[str]()
    frame = np.random.default_rng(0).random((48, 56))

    def frames() -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield frames; kill one replica after the other, so that of the stream too."""
        for number in range(20):
            if number in (5, 10):
                _settled(url, 2)
                os.kill(before.pop(), signal.SIGKILL)
            yield frame, {"frame_id": f"f{number}", "pixel_size_pm": 16}

    with Session(url, instrument="STEM-1") as stem:
        for answer in stem.stream(frames(), policy="all", transport="websocket"):
            answer.raise_for_error()
            answered.append(answer.frame_id)
    assert answered == [f"f{number}" for number in range(20)]
    told = urllib3.request("GET", f"{url}/v1/instruments/STEM-1/session?frames=1000").json()
    assert told["counts"]["frames"] == len(told["history"]) == 20


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_request_that_kills_its_replica_kills_two_and_no_more(url: str, replicas: int) -> None:
    before, marks, killed = _settled(url, replicas), settings().cache / "begun", set[int]()
    is_answered, left = threading.Event(), set(marks.glob("*.*"))  # by those killed before

    def kill_who_begins() -> None:
        """Be the frame that no process survives: a process that begins it is killed."""
        while not is_answered.wait(0.001):
            for path in set(marks.glob("*.*")) - left:
                with suppress(FileNotFoundError):  # it ended first
                    pid = int(path.read_text() or 0)
                    if pid and pid not in killed:
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)

    stream = io.BytesIO()
    # As much work as a body that is sent again can hold, so that none ends before it is killed.
    np.save(stream, np.random.default_rng(0).integers(0, 255, (1000, 1000), np.uint8))
    target = f"{url}/v1/predict/graphene?pixel_size_pm=32"
    killer = threading.Thread(target=kill_who_begins)
    killer.start()
    try:
        answer = urllib3.request("POST", target, body=stream.getvalue(), retries=False, timeout=60)
    finally:
        is_answered.set()
        killer.join()
    assert len(killed) == 2, answer.data
    assert killed >= before
    # Of both, a third replica knows; Ray's proxy knows of the one that it asked itself.
    assert (answer.status, answer.json()["type"]) == (500, "urn:manybeam:work-failed"), answer.data
    assert "ended" in answer.json()["detail"]


def test_another_number_of_replicas_restarts_none_and_loses_no_request(url: str) -> None:
    port, before = _port(url), _settled(url, 2)
    with Load(url) as load:
        assert run_service(None, port=port, replicas=1).hosts
    assert load.failures == []
    assert _replicas() < before


def test_a_service_that_an_older_version_started_loses_no_ensemble(url: str) -> None:
    port, before = _port(url), _settled(url, 1)
    forget_deployed()  # older versions kept nothing there
    with pytest.raises(Conflict, match="manybeam serve up REF"):
        run_service(None, port=port, replicas=1)
    assert _replicas() == before
    run_service(["graphene"], port=port, replicas=1)
    run_service(None, port=port, replicas=1)
    listed = urllib3.request("GET", f"{url}/v1/ensembles").json()["ensembles"]
    assert [one["name"] for one in listed] == ["graphene"]


def test_a_change_that_fails_leaves_the_service_as_it_was(url: str) -> None:
    port, before = _port(url), _settled(url, 1)
    with Load(url) as load:
        with pytest.raises(WorkFailed, match="the service goes on as it was"):
            run_service(["graphene", "damaged"], port=port)
        with pytest.raises(NoCapacity, match="room for 0 of 1 replicas with 0 cores and 64 GPUs"):
            run_service(None, port=port, gpus_per_replica=64)
    assert load.failures == []
    assert _replicas() == before
    assert service_state().status == "RUNNING"  # type: ignore[union-attr]

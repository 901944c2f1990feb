"""What the proxy tells of a request: the time that it waited, and how often it was begun."""

import io
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from manybeam.errors import WorkFailed
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.edge.proxied import LATELY_S, LONGEST_S, OLD_S, Arrivals, Marks, ProxyHeaders
from manybeam.serve.haproxy_rules import ARRIVED_HEADER, KEY_HEADER, REQUEST_HEADER
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.replica_addresses import ForProxyOnly
from manybeam.serve.routes import api

NAME, KEY = "0c9a", "k" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "begun"


def die(marks: Marks, name: str = NAME) -> None:
    """Begin a request and never end it, as a process that is killed."""
    marks._take([marks._folder / f"{name}.{one}" for one in range(2)])


def test_a_request_that_ended_two_replicas_is_not_begun_in_a_third(folder: Path) -> None:
    die(Marks(folder))
    die(Marks(folder))
    refused = pytest.raises(WorkFailed, match="2 processes of the service ended")
    with refused, Marks(folder).marking(NAME):
        pytest.fail("it was begun")
    with Marks(folder).marking("another"):
        pass


def test_a_second_try_that_ends_leaves_no_mark(folder: Path) -> None:
    die(Marks(folder))
    with Marks(folder).marking(NAME):
        assert len(list(folder.iterdir())) == 2
    assert not list(folder.iterdir())


def test_tries_in_one_process_share_a_mark(folder: Path) -> None:
    marks = Marks(folder)
    with marks.marking(NAME), marks.marking(NAME):
        with marks.marking(NAME):
            assert len(list(folder.iterdir())) == 1
        assert len(list(folder.iterdir())) == 1
    assert not list(folder.iterdir())


def test_an_answer_that_is_an_error_leaves_no_mark(folder: Path) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="of the frame"), Marks(folder).marking(NAME):
            raise ValueError("of the frame")
    assert not list(folder.iterdir())


def test_marks_of_long_ago_are_removed(folder: Path) -> None:
    for name in ("old", "new"):
        die(Marks(folder), name)
    long_ago = time.time() - OLD_S - 1
    os.utime(folder / "old.0", (long_ago, long_ago))
    Marks(folder).tidy()
    assert [one.name for one in folder.iterdir()] == ["new.0"]


def test_marks_of_long_ago_are_removed_while_the_replica_runs(folder: Path) -> None:
    clock, left = {"now_s": 0.0}, []
    marks = Marks(folder, lambda: clock["now_s"])
    for clock["now_s"] in (0.0, OLD_S / 2, OLD_S * 1.1):
        die(marks, "old")
        os.utime(folder / "old.0", (0, 0))
        with marks.marking(NAME):
            left.append((folder / "old.0").exists())
        (folder / "old.0").unlink(missing_ok=True)
    assert left == [False, True, False]


def test_a_full_disk_keeps_no_mark(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file may have any content
    try:
        with Marks(folder).marking(NAME):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(folder.iterdir())


def test_where_no_mark_can_be_made_requests_are_answered(folder: Path) -> None:
    folder.write_text("a file, not a folder")
    for _ in range(3):
        with Marks(folder).marking(NAME):
            pass


@pytest.mark.parametrize(
    ("host", "ahead_s", "waited_s"),
    [
        pytest.param("proxy's", 0.0, [0.0, 2.0, 0.5], id="one host"),
        pytest.param("other", 0.0, [0.0, 2.0, 0.5], id="two hosts, one time"),
        pytest.param("other", 100.0, [0.0, 2.0, 0.5], id="its clock is ahead"),
        pytest.param("other", -100.0, [0.0, 2.0, 0.5], id="its clock is behind"),
        pytest.param("proxy's", -100.0, [0.0, 0.0, 0.0], id="the clock was set back"),
    ],
)
def test_the_time_that_a_request_waited_is_known_on_every_host(
    host: str, ahead_s: float, waited_s: list[float]
) -> None:
    now_s = 1000.0
    clocks = {"wall": lambda: now_s + ahead_s, "monotonic": lambda: now_s - 77.0}
    arrivals = Arrivals(is_beside_proxy=host == "proxy's", **clocks)
    found = [arrivals.since_s(now_s - one) for one in (0.0, 2.0, 0.5)]
    assert found == pytest.approx(waited_s)


def test_a_replica_on_another_host_never_counts_too_much(folder: Path) -> None:
    now_s = 0.0
    too_fast = {"wall": lambda: now_s * 1.001, "monotonic": lambda: now_s * 1.001}
    arrivals = Arrivals(is_beside_proxy=False, **too_fast)
    for _ in range(10_000):
        now_s += 1.0
        assert arrivals.since_s(now_s) < 0.2
    assert Arrivals(is_beside_proxy=False).since_s(0.0) == 0.0  # nothing to compare with


class Hosts:
    """A proxy, and a replica on another host: each has a clock that can be set."""

    def __init__(self) -> None:
        self.now_s, self.ahead_s = 0.0, {"proxy": 1e9, "replica": 1e9}
        self.arrivals = Arrivals(
            is_beside_proxy=False,
            wall=lambda: self.now_s + self.ahead_s["replica"],
            monotonic=lambda: self.now_s + 123.0,
        )

    def counted(self, seconds: int, waited_s: float = 0.0) -> list[float]:
        """Return what is counted of requests, one a second."""
        found = []
        for _ in range(seconds):
            self.now_s += 1.0
            arrived_s = self.now_s - waited_s + self.ahead_s["proxy"]
            found.append(round(self.arrivals.since_s(arrived_s), 3))
        return found


@pytest.mark.parametrize("step_s", [-900.0, -5.0, 5.0, 900.0])
@pytest.mark.parametrize("whose", ["proxy", "replica"])
def test_a_clock_that_is_set_takes_no_deadline_for_long(whose: str, step_s: float) -> None:
    hosts = Hosts()
    assert set(hosts.counted(70)) == {0.0}
    hosts.ahead_s[whose] += step_s
    is_seen = whose == "proxy" and step_s < 0
    most = min(-step_s, LONGEST_S) if is_seen else 0.0
    assert set(hosts.counted(int(LATELY_S))) == {most}
    assert set(hosts.counted(30)) == {0.0}
    assert hosts.counted(1, waited_s=2.0) == [2.0]


def test_a_clock_that_is_set_while_a_request_comes_costs_it_little_beside_the_proxy() -> None:
    assert Arrivals(is_beside_proxy=True, wall=lambda: 900.0).since_s(0.0) == LONGEST_S


@pytest.fixture
def post(
    tiny_zoo: Any, serving: Callable[[Any], AbstractContextManager[str]], folder: Path
) -> Iterator[Callable[..., urllib3.BaseHTTPResponse]]:
    """Ask a replica as its proxy does."""
    app = api(Service(ZooVersions(tiny_zoo, ["graphene"])), ReplicaLimits(), Meter(), str)
    headers = ProxyHeaders(Marks(folder), Arrivals(is_beside_proxy=True))
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).random((48, 56), dtype=np.float32))
    with serving(ForProxyOnly(app, KEY, headers)) as url:

        def ask(key: str = KEY, waited_s: float = 0.0) -> urllib3.BaseHTTPResponse:
            headers = {
                "Content-Type": "application/x-npy",
                KEY_HEADER: key,
                REQUEST_HEADER: NAME,
                ARRIVED_HEADER: f"{(time.time() - waited_s) * 1000:.0f}",
            }
            query = "pixel_size_pm=16&deadline_ms=20000"
            target = f"{url}/v1/predict/graphene?{query}"
            return urllib3.request("POST", target, body=stream.getvalue(), headers=headers)

        yield ask


def test_a_deadline_counts_from_the_arrival_at_the_proxy(post: Any, folder: Path) -> None:
    assert [post().status, post(waited_s=21).status, post("forged").status] == [200, 504, 403]
    deadline = time.monotonic() + 10
    while list(folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the work of the late one ends a moment after its answer


def test_a_replica_refuses_what_ended_two_others(post: Any, folder: Path) -> None:
    die(Marks(folder))
    assert post().status == 200
    die(Marks(folder))
    die(Marks(folder))
    refused = post()
    assert refused.status == 500
    assert "2 processes of the service ended" in refused.json()["detail"]

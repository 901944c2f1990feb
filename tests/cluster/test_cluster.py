"""jobs.cluster: where a cluster listens, and how work, errors and settings travel on it."""

import ipaddress
import os
import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from manybeam.cluster import joining as jobs_cluster
from manybeam.errors import InvalidSpec, Unreachable, WorkFailed
from manybeam.settings import settings
from manybeam.spec import load_job

pytestmark = pytest.mark.cluster


def test_a_cluster_of_ones_own_listens_on_loopback_only(cluster: str) -> None:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    hosts = [cluster.rpartition(":")[0], *(node["NodeManagerAddress"] for node in nodes)]
    assert all(ipaddress.ip_address(host).is_loopback for host in hosts)


def test_connecting_again_stays_on_the_same_cluster(cluster: str) -> None:
    assert jobs_cluster.connect() == cluster


def test_each_piece_of_work_is_done_once_and_told_by_its_place(cluster: str) -> None:
    work = [partial(pow, 2, power) for power in range(6)]
    assert sorted(jobs_cluster.each(work)) == [(power, 2**power) for power in range(6)]


def test_work_gives_way_to_answers_however_often_a_worker_is_used(cluster: str) -> None:
    work = [partial(os.getpriority, os.PRIO_PROCESS, 0)] * 6
    assert {niceness for _, niceness in jobs_cluster.each(work)} == {jobs_cluster.GIVES_WAY}
    assert next(jobs_cluster.each([partial(os.sched_getscheduler, 0)]))[1] == os.SCHED_BATCH


def test_an_error_of_ours_comes_back_as_it_was_raised(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        list(jobs_cluster.each([partial(load_job, tmp_path / "none.yaml")]))
    assert type(caught.value) is InvalidSpec
    assert "cannot be read" in caught.value.what


def test_any_other_error_is_a_failed_task(cluster: str) -> None:
    with pytest.raises(WorkFailed, match="ZeroDivisionError"):
        list(jobs_cluster.each([partial(divmod, 1, 0)]))


def test_work_left_early_is_cancelled(cluster: str) -> None:
    started = time.monotonic()
    results = jobs_cluster.each([partial(time.sleep, seconds) for seconds in (0, 60, 60)])
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert list(jobs_cluster.each([partial(pow, 2, 3)] * 2)) != []
    assert time.monotonic() - started < 40


def test_what_is_shared_lies_in_the_cluster_once(cluster: str) -> None:
    shared = jobs_cluster.share({"weights": [1, 2, 3]})
    assert next(jobs_cluster.each([shared.value])) == (0, {"weights": [1, 2, 3]})


def test_workers_use_the_settings_of_the_process_that_sends_the_work(
    cluster: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYBEAM_S3_SECRET_KEY", "squirrel")
    monkeypatch.setenv("MANYBEAM_S3_TIMEOUT_S", "7.5")
    settings.cache_clear()
    (_, seen), *_ = jobs_cluster.each([settings])
    assert seen.s3_secret_key.get_secret_value() == "squirrel"
    assert seen.s3_timeout_s == 7.5
    assert seen.home == home.resolve()


def test_a_cluster_is_known_by_its_answer(cluster: str) -> None:
    jobs_cluster.knock(cluster)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        pytest.param("127.0.0.1:1", "refused", id="nobody"),
        pytest.param("[::1]:1", "refused", id="ipv6"),
        pytest.param("ray://127.0.0.1:1", "refused", id="client"),
        pytest.param("http://127.0.0.1:1", "host:port", id="http"),
        pytest.param("lab", "no host and port", id="no port"),
        pytest.param("lab:70000", "no host and port", id="large port"),
        pytest.param("HTTP", "another kind of server", id="other server"),
    ],
)
def test_what_is_no_cluster_is_told_at_once(address: str, told: str) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        place = f"127.0.0.1:{server.server_port}"
        with pytest.raises(Unreachable, match=told):
            jobs_cluster.knock(place if address == "HTTP" else address)
        socket.create_connection(("127.0.0.1", server.server_port)).close()  # ends the thread
        thread.join()


def test_an_address_where_no_cluster_answers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess
    import sys

    code = (
        "from manybeam.cluster.joining import connect\n"
        "from manybeam.errors import Unreachable\n"
        "try:\n    connect()\n"
        "except Unreachable as error:\n    print(error.what)\n"
    )
    monkeypatch.setenv("MANYBEAM_RAY_ADDRESS", "127.0.0.1:1")
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert said.stdout == "no Ray cluster answers at '127.0.0.1:1'\n", said.stderr[-500:]

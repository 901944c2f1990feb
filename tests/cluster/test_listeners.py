"""Two platforms of one machine: what listens where, and that neither answers for the other."""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3

from manybeam.addresses import is_loopback
from manybeam.asgi import PLATFORM_HEADER
from manybeam.cluster.joining import _attach, check_token_is_needed
from manybeam.errors import NotAllowed
from manybeam.serve.app import APP, DEPLOYMENT
from manybeam.serve.haproxy import STATISTICS

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy on Linux only"),
]
NAMED = {8404, 8500, 9101, 44217, 44227, 52365}  # ports that Ray has for itself
FIXED = NAMED | {*range(30000, 31000)}
OPEN_CLUSTER = """
import os, sys
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import ray
found = ray.init(num_cpus=0, include_dashboard=False, _node_ip_address="127.0.0.1")
print("at", found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Platform:
    """A platform that `manybeam serve up` started in a home of its own."""

    home: Path
    url: str

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        own = {"MANYBEAM_HOME": str(self.home), "MANYBEAM_SERVICE_URL": self.url}
        own["RAY_AUTH_MODE"] = "disabled"  # makes no difference
        return subprocess.run(
            [sys.executable, "-m", "manybeam", *words],
            env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    @property
    def id(self) -> str:
        return str(json.loads((self.home / "platform.json").read_text())["id"])

    def processes(self) -> list[psutil.Process]:
        pid = json.loads((self.home / "head.json").read_text())["pid"]
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]

    def listening(self) -> set[tuple[str, int]]:
        """Where its processes listen, as `ss -ltn` shows it."""
        found = set()
        for process in self.processes():
            with suppress(psutil.Error):
                sockets = process.net_connections("tcp")
                found |= {tuple(one.laddr) for one in sockets if one.status == psutil.CONN_LISTEN}
        return found

    def listed(self) -> list[dict[str, Any]]:
        """What `doctor` lists."""
        rows = json.loads(self.run("doctor", "-o", "json").stdout)
        return [row for row in rows if row["check"] == "listens"]


@pytest.fixture(scope="module")
def not_drawn() -> Iterator[None]:
    """Let the system draw no fixed port by chance; who asks for one can have it all the same."""
    with ExitStack() as held:
        for port in NAMED:
            one = held.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # somebody listens there, so it is not drawn either
                one.bind(("", port))
        yield


@pytest.fixture(scope="module")
def neighbours(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int], not_drawn: None
) -> Iterator[list[Platform]]:
    folder = tmp_path_factory.mktemp("neighbours")
    ports = {free_port() for _ in range(9)}
    found = [Platform(folder / f"p{one}", f"http://127.0.0.1:{ports.pop()}") for one in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        try:
            for done in pool.map(lambda one: one.run("serve", "up", "--cpus", "1"), found):
                assert done.returncode == 0, done.stderr
            yield found
        finally:
            list(pool.map(lambda one: one.run("down"), found))


def test_nothing_listens_beyond_loopback_and_doctor_lists_it_all(
    neighbours: list[Platform],
) -> None:
    one, _ = neighbours
    before, listed, after = one.listening(), one.listed(), one.listening()
    assert {row["state"] for row in listed} == {"ok"}
    assert all(row["what"] and row["reason"] and row["closed_by"] for row in listed)
    assert before & after <= {(row["address"], row["port"]) for row in listed} <= before | after
    assert not [address for address, _ in before if not is_loopback(address)]


def test_no_port_is_a_fixed_one_or_shared(neighbours: list[Platform]) -> None:
    first, second = ({port for _, port in one.listening()} for one in neighbours)
    assert first & second == set()
    assert (first | second) & FIXED == set()


def test_idle_sockets_on_the_statistics_do_not_stop_the_service(
    neighbours: list[Platform], idle_sockets: Callable[[int], int]
) -> None:
    one, _ = neighbours
    # One that read an older configuration may still end its connections.
    proxies = [process for process in one.processes() if process.name() == "haproxy"]
    proxy = max(proxies, key=lambda process: process.create_time())
    ports = {one.laddr.port for one in proxy.net_connections() if one.status == "LISTEN"}
    statistics = int(proxy.environ()[STATISTICS])
    assert statistics in ports
    assert idle_sockets(statistics) > 4096
    for path in ("/healthz", "/readyz", "/v1/ensembles"):
        assert urllib3.request("GET", one.url + path, retries=False, timeout=5).status == 200


def test_an_answer_of_ray_itself_names_the_platform_too(neighbours: list[Platform]) -> None:
    one, _ = neighbours
    (replica,) = [row for row in one.listed() if row["what"] == "a replica of the service"]
    url = f"http://127.0.0.1:{replica['port']}"
    health = urllib3.request("GET", f"{url}/-/healthz", retries=False)
    past_the_proxy = urllib3.request("GET", f"{url}/readyz", retries=False)
    assert (health.status, past_the_proxy.status) == (200, 403)
    for answer in (health, past_the_proxy):
        assert answer.headers.getlist(PLATFORM_HEADER) == [one.id]


def test_a_neighbour_is_not_taken_for_the_own_service(neighbours: list[Platform]) -> None:
    one, other = neighbours
    confused = Platform(one.home, other.url)
    rows = map(json.loads, confused.run("status", "-o", "jsonl").stdout.splitlines())
    states = {row["part"]: row["state"] for row in rows}
    assert states["service"] == "another platform answers"
    refused = confused.run("serve", "ls")
    assert refused.returncode == 6
    assert f"another platform answers at {other.url}: {other.id}" in refused.stderr


def test_while_a_replica_is_dead_no_answer_of_the_neighbour_comes(
    neighbours: list[Platform],
) -> None:
    one, other = neighbours
    (replica,) = [p for p in one.processes() if f"{APP}:{DEPLOYMENT}" in "".join(p.cmdline())]
    os.kill(replica.pid, signal.SIGKILL)
    seen: collections.Counter[str] = collections.Counter()
    deadline = time.monotonic() + 60
    while seen["whole"] < 20 and time.monotonic() < deadline:
        with suppress(urllib3.exceptions.HTTPError):
            answer = urllib3.request("GET", f"{one.url}/readyz", retries=False, timeout=2)
            assert answer.headers[PLATFORM_HEADER] == one.id
            seen["whole" if answer.status == 200 else "refused"] += 1
    assert seen["whole"] == 20, seen
    assert urllib3.request("GET", f"{other.url}/readyz").headers[PLATFORM_HEADER] == other.id


def test_a_cluster_that_asks_for_no_token_is_refused_unless_insecure(
    tmp_path: Path, use_settings: Callable[[dict[str, str]], None]
) -> None:
    argv = [sys.executable, "-c", OPEN_CLUSTER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ray:
        assert ray.stdout
        address = next(line for line in ray.stdout if line.startswith("at ")).split()[1]
        use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_RAY_ADDRESS": address})
        for ask in (check_token_is_needed, _attach):  # `status` and `doctor`; all that joins
            with pytest.raises(NotAllowed, match="asks for no token"):
                ask(address)
        use_settings({"MANYBEAM_RAY_INSECURE": "1"})
        check_token_is_needed(address)
        ray.communicate()


def test_a_cluster_of_ours_asks_for_its_token(
    neighbours: list[Platform], use_settings: Callable[[dict[str, str]], None]
) -> None:
    address = json.loads((neighbours[0].home / "head.json").read_text())["address"]
    use_settings({"MANYBEAM_RAY_ADDRESS": address})
    check_token_is_needed(address)

"""Three hosts on one machine, and a Ray cluster over them.

A host is a set of Linux namespaces: it has its own network, name, processes, shared memory and
temporary folder of Ray. The disk is shared, as in a facility. The namespaces live as long as their
first process, `cat`, which ends with the pipe from this process. So no process, mount or network
is left behind, whatever ends the tests.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
HEAD = "10.77.0.1:6379"
PRIVATE = ("--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


class Namespaces:
    """Namespaces that live until `end`; `pid` is their first process."""

    def __init__(self, setup: str) -> None:
        argv = ["unshare", *PRIVATE, "sh", "-ec", f"{setup}; echo ready; exec cat"]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n", f"namespaces failed at {setup!r}"
        (first,) = psutil.Process(self._holder.pid).children()
        self.pid = first.pid

    def end(self) -> None:
        """End every process in there at once, as a power cut does."""
        if self._holder.stdin and not self._holder.stdin.closed:
            self._holder.communicate()


@dataclass
class Host:
    """A host: `mb1` holds the head of Ray and has no core for work; the others have two cores."""

    number: int
    folder: Path
    switch: Namespaces
    namespaces: Namespaces = field(init=False)
    is_whole: bool = True

    @property
    def name(self) -> str:
        return f"mb{self.number}"

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"

    def start(self) -> None:
        """Switch the host on, plug it in and let it join the cluster of Ray."""
        own = self.folder / self.name
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        self.namespaces = Namespaces(
            f"hostname {self.name}; mount --bind {own} {self.folder}/ray; "
            "mount -t tmpfs tmpfs /dev/shm; ip link set lo up"
        )
        cable = f"{self.name} type veth peer name eth0 netns {self.namespaces.pid}"
        self._at_switch(f"ip link add {cable} && ip link set {self.name} master br0 up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        role = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
        if self.number > 1:
            role = [f"--address={HEAD}", "--num-cpus=2"]
        own_place = [f"--node-ip-address={self.address}", f"--temp-dir={self.folder}/ray"]
        self.run("ray", "start", *role, *own_place, "--object-store-memory=200000000")
        self.is_whole = True

    def run(self, *command: str, **settings: str) -> str:
        """Run a command on this host and return what it prints."""
        process = self.begin(*command, **settings)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"{command} on {self.name}: {out[-3000:]}"
        return out

    def begin(self, *command: str, **settings: str) -> "subprocess.Popen[str]":
        """Start a command on this host, as a user who holds the token of the cluster."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MANYBEAM_", "RAY_"))}
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "platform"),
            "OMP_NUM_THREADS": "1",
            "MANYBEAM_RAY_ADDRESS": HEAD,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A host that does not answer is lost after seconds; by default, after a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
        }
        return subprocess.Popen(
            _inside(self.namespaces, "--uts", "--mount", "--pid", *command),
            env={**inherited, **own, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def trains(self) -> bool:
        """Return whether a worker of Ray Train runs on this host."""
        titles = []
        for process in psutil.Process(self.namespaces.pid).children(recursive=True):
            with suppress(psutil.Error):
                titles += process.cmdline()
        return any("RayTrainWorker" in title for title in titles)

    def kill(self) -> None:
        """End every process of the host, as a power cut does."""
        self.is_whole = False
        self.namespaces.end()
        # Linux removes a network some time after its last process.
        self._at_switch(f"ip link delete {self.name} || true")

    def cut_off(self) -> None:
        """Pull the plug of the network; the processes of the host go on."""
        self.is_whole = False
        self._at_switch(f"ip link set {self.name} down")

    def _at_switch(self, command: str) -> None:
        subprocess.run(_inside(self.switch, "sh", "-c", command), check=True)


def _inside(place: Namespaces, *command: str) -> list[str]:
    return ["nsenter", f"--target={place.pid}", "--net", *command]


@pytest.fixture(scope="session")
def _all_hosts() -> Iterator[list[Host]]:
    assert os.geteuid() == 0, (
        "hosts are network namespaces, which need root; without: make cluster LANE=faults"
    )
    with tempfile.TemporaryDirectory(prefix="mb-hosts-") as name:  # short, for paths of sockets
        folder = Path(name)
        (folder / "ray").mkdir()
        (folder / "token").write_text(secrets.token_hex(32))
        switch = Namespaces("ip link add br0 type bridge; ip link set br0 up")
        hosts = [Host(number, folder, switch) for number in (1, 2, 3)]
        hosts[0].start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.start, hosts[1:]))
        yield hosts
        for namespaces in [*(host.namespaces for host in hosts), switch]:
            namespaces.end()


@pytest.fixture
def hosts(_all_hosts: list[Host]) -> Iterator[list[Host]]:
    """Head, worker and worker; after the test, what was killed or cut off joins again."""
    yield _all_hosts
    for host in _all_hosts:
        if not host.is_whole:
            host.kill()
            host.start()

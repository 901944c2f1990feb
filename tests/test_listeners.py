"""What doctor says about listeners: where, why, and which must not be."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from manybeam.cli import main
from manybeam.cluster.running import Head, head
from manybeam.db.owner import machine, since_boot_s
from manybeam.serve.listeners import listeners

LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1]
                              else socket.AF_INET)
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""
Start = Callable[[str], int]


@pytest.fixture
def head_on(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> Iterator[Start]:
    """Start a head of the test's home that listens at an address; return its port."""
    started = []

    def start(address: str) -> int:
        argv = [sys.executable, "-c", LISTEN, address]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        port = int(process.stdout.readline())
        state = Head(
            machine(), process.pid, since_boot_s(process.pid), address="127.0.0.1:1", cpus=1.0
        )
        (tmp_path / "head.json").write_text(json.dumps(asdict(state)))
        use_settings({"MANYBEAM_HOME": str(tmp_path)})
        return port

    yield start
    for process in started:
        process.communicate()


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        pytest.param("127.0.0.1", True, id="loopback"),
        pytest.param("::1", True, id="loopback of ipv6"),
        pytest.param("0.0.0.0", False, id="all"),
        pytest.param("::", False, id="all of ipv6"),
    ],
)
def test_a_listener_beyond_loopback_without_a_reason_is_a_failed_check(
    address: str, *, is_allowed: bool, head_on: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    port = head_on(address)
    (found,) = listeners()
    assert (found.address, found.port, found.is_allowed) == (address, port, is_allowed)
    assert main(["doctor", "-o", "json"]) == 1  # no cluster answers at that address
    said = capsys.readouterr()
    (row,) = [row for row in json.loads(said.out) if row["check"] == "listens"]
    assert row["state"] == ("ok" if is_allowed else "failed")
    assert ("listens" in said.err) is not is_allowed
    assert row["closed_by"].startswith("loopback") is is_allowed


def test_a_head_is_known_after_somebody_set_the_clock(
    head_on: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_on("127.0.0.1")
    before, boot = head(tmp_path), psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot - 3600)
    assert before == head(tmp_path) is not None


def test_a_table_of_doctor_has_the_listeners_below_the_checks(
    head_on: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    port = head_on("127.0.0.1")
    main(["doctor", "-o", "table"])
    said = capsys.readouterr().out
    assert said.index("Doctor") < said.index("Listens") < said.index(str(port))
    assert "closed_by" in said


@pytest.mark.usefixtures("home_without_anything")
def test_where_nothing_was_started_nothing_is_listed() -> None:
    assert listeners() == []


@pytest.fixture
def home_without_anything(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_CONTROL_URL": "http://127.0.0.1:1"})

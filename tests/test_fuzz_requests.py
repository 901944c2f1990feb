"""Malformed requests to a running service and running pages: a small part of the benchmark."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).parent / "benchmarks" / "fuzz_requests.py"
    spec = importlib.util.spec_from_file_location("fuzz_requests", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # its dataclass looks itself up there
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, script: Any) -> Iterator[Path]:
    from manybeam.settings import settings

    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(folder))
        settings.cache_clear()
        script.make_zoo()
    settings.cache_clear()
    return folder


@pytest.fixture(scope="module")
def servers(home: Path, script: Any) -> Iterator[tuple[dict[str, int], dict[str, Any]]]:
    """The ports and processes of service and pages."""
    with script.running(home) as started:
        yield started


Servers = tuple[dict[str, int], dict[str, Any]]


def test_no_request_of_a_thousand_ends_or_hangs_a_server(
    home: Path, script: Any, servers: Servers
) -> None:
    ports, processes = servers
    token = (home / "admin-token").read_text().strip()
    report = script.fuzz(ports, 1000, seed=int(os.environ.get("FUZZ_SEED", "7")), token=token)
    assert report.faults == []
    assert report.statuses[200] > 20
    assert all(process.is_running() for process in processes.values())


def test_the_service_answers_as_its_description_says(
    home: Path, script: Any, servers: Servers
) -> None:
    is_so, told = script.described(servers[0]["service"], 10, int(os.environ.get("FUZZ_SEED", "7")))
    assert is_so, told[-6000:]
    assert list(script.temporary(home).rglob("*")) == []


def test_a_fault_is_seen(script: Any) -> None:
    """A server that answers 500 is a fault; otherwise the test above would prove nothing."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        def do_POST(self) -> None:
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        report = script.fuzz({"service": server.server_port}, 20, seed=1)
        server.shutdown()
        thread.join()
    assert len(report.faults) >= 10

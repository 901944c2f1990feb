"""Fixtures that several test modules share."""

import json
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from manybeam.settings import settings

SERVICES = Path(__file__).parents[1] / "infra" / "services.py"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real frames beside the checkout; their absence is a failure, never a skip."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    assert folder.is_dir(), f"real frames expected in {folder}; put them there"
    return folder


@dataclass(frozen=True)
class Services:
    """Real services of `infra/services.py` in a folder of their own, on free ports."""

    folder: Path

    def start(self, *names: str, port: int = 0) -> None:
        """Start services; the reason is told if one does not come up. Port 0 is any that is free."""
        self._run("start", *names, *(f"--port={name}={port}" for name in names))

    def stop(self, *names: str) -> None:
        """Stop services by the pids they were started with."""
        self._run("stop", *names)

    def pid(self, name: str) -> int:
        """Return the process of a service."""
        return int(json.loads((self.folder / f"{name}.json").read_text())["pid"])

    def settings(self) -> dict[str, str]:
        """Return the environment that points Manybeam at them."""
        found = {}
        for path in self.folder.glob("*.json"):
            found.update(json.loads(path.read_text())["settings"])
        return found

    def _run(self, verb: str, *more: str) -> None:
        argv = [sys.executable, str(SERVICES), verb, *more, "--dir", str(self.folder)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def new_services() -> Iterator[Callable[[], Services]]:
    """Make folders for real services; all in them are stopped at the end.

    Not in pytest's own folder: PostgreSQL under root runs as another user, who must reach it.
    """
    made: list[Services] = []

    def make() -> Services:
        folder = Path(tempfile.mkdtemp(prefix="manybeam-services-"))
        folder.chmod(0o755)
        made.append(Services(folder))
        return made[-1]

    yield make
    for services in made:
        services.stop()
        shutil.rmtree(services.folder)


@pytest.fixture(scope="session")
def s3_server(new_services: Callable[[], Services]) -> Services:
    """One SeaweedFS for the session, started at the first use."""
    services = new_services()
    services.start("seaweedfs")
    return services


@pytest.fixture(scope="session")
def facility(new_services: Callable[[], Services]) -> Services:
    """One SeaweedFS, PostgreSQL and MLflow server for the session, started at the first use."""
    services = new_services()
    services.start("seaweedfs", "postgres", "mlflow")
    return services


@pytest.fixture
def use_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Set MANYBEAM_ variables for one test; `settings()` is read afresh, and again after it."""

    def use(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()

    yield use
    settings.cache_clear()


@pytest.fixture
def s3_url(s3_server: Services, use_settings: Callable[[dict[str, str]], None]) -> str:
    """A prefix of its own in the bucket of the session's S3 server, with the settings for it."""
    found = s3_server.settings()
    use_settings(found)
    return f"{found['MANYBEAM_STORE']}/{uuid.uuid4().hex}"

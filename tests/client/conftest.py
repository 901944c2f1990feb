"""The service, the network between, and frames for the tests of the client."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest

from manybeam.db.deployment import open_database
from manybeam.db.serving.sessions import Sessions
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import ReplicaLimits, api
from manybeam.serve.sessions import refresher
from manybeam.settings import settings

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def url(
    tiny_zoo: Any,
    tmp_path_factory: pytest.TempPathFactory,
    serving: Callable[[Any], AbstractContextManager[str]],
) -> Iterator[str]:
    """The real service with a small ensemble, without tokens; changes of sessions settle soon."""
    home = tmp_path_factory.mktemp("client-home")
    database_url = f"sqlite:///{home}/manybeam.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refresher, "READ_S", 0.02)
        patch.setenv("MANYBEAM_HOME", str(home))
        settings.cache_clear()
        found = Service(
            ZooVersions(tiny_zoo, ["graphene"]),
            sessions=lambda: Sessions(open_database(database_url)),
        )
        patch.delenv("MANYBEAM_HOME")  # other fixtures of the module look whether it is left
        settings.cache_clear()
        found.sessions.refresher.start()
        with serving(api(found, ReplicaLimits(), Meter(), lambda: "")) as address:
            yield address
        found.sessions.close()


@pytest.fixture
def wire(url: str, new_wire: Callable[[str], Any]) -> Any:
    """A network before the service that a test may cut."""
    return new_wire(url)


def _threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name.startswith("manybeam-")}


@pytest.fixture
def no_threads_left(until: Callable[..., None]) -> Callable[[], AbstractContextManager[None]]:
    """Check that a block leaves no thread behind."""

    @contextmanager
    def checked() -> Iterator[None]:
        before = _threads()
        yield
        until(lambda: not _threads() - before)

    return checked


@pytest.fixture
def frame() -> Any:
    return FRAME.copy()

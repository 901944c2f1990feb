"""The service, the network between, and frames for the tests of the client."""

import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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


class Wire:
    """A TCP proxy in front of a server: it can be cut, so that nothing passes, and mended.

    Attributes:
        url: where to connect.
    """

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._to, self._cut, self.is_silent = (host, int(port)), threading.Event(), False
        self._open: list[socket.socket] = []
        self._server: socketserver.ThreadingTCPServer | None = None
        self._port = 0
        self.mend()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def mend(self) -> None:
        """Let connections pass, from now on."""
        pump = self._pump

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                pump(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.is_silent = False
        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.reset()

    def reset(self) -> None:
        """Reset all connections; new ones pass."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        if self._server is not None:
            self.cut()

    def _pump(self, near: socket.socket) -> None:
        with socket.create_connection(self._to) as far, suppress(OSError):
            self._open += [near, far]
            while True:
                for one in select.select([near, far], [], [], 0.5)[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    while self.is_silent:
                        if not self._server:
                            return
                        time.sleep(0.01)
                    (far if one is near else near).sendall(data)


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
def wire(url: str) -> Iterator[Wire]:
    """A network before the service that a test may cut."""
    made = Wire(url)
    yield made
    made.close()


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

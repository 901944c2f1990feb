"""Story 10 on a real service: a drift is told on the stream, in the session, and to the webhook."""

import base64
import hashlib
import hmac
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from manybeam.serve.app import APP, _client, run_service, stop_service
from manybeam.serve.monitor.deployment import MONITOR
from manybeam.settings import settings
from manybeam.zoo.registry import Zoo
from manybeam_client import Session

pytestmark = [
    pytest.mark.cluster,
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]

SECRET = base64.b64encode(bytes(range(32))).decode()
RNG = np.random.default_rng(7)
PLAIN = RNG.normal(100, 10, size=(70, 64, 64)).astype(np.float32)
# The same with a slope: a drift that anybody can see.
SLOPED = PLAIN[:12] + np.linspace(0, 80, 64, dtype=np.float32)
SESSION = "/v1/instruments/STEM-1/session"


class Receiver:
    """A server of the facility that takes alerts."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, bytes]] = []
        self.came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with receiver.came:
                    receiver.messages.append((self.headers, body))
                    receiver.came.notify_all()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/alerts"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture(scope="module")
def url(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    tiny_members: Callable[[int], list[Any]],
    cluster: str,
    free_port: Callable[[], int],
    receiver: Receiver,
) -> Iterator[str]:
    """A service of a platform whose alerts go to the receiver."""
    home = tmp_path_factory.mktemp("watched") / "home"
    home.mkdir()
    shutil.copy(empty_database, home / "zoo.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(home))
        patch.setenv("MANYBEAM_ZOO", str(Path(__file__).parents[2] / "zoo"))
        patch.setenv("MANYBEAM_WEBHOOK_URL", receiver.url)
        patch.setenv("MANYBEAM_WEBHOOK_SECRET", SECRET)
        settings.cache_clear()
        Zoo().register("graphene", tiny_members(2), job={}, alias="serving")
        yield run_service(["graphene"], port=free_port()).url
        stop_service()
    settings.cache_clear()


def watched(url: str) -> dict[str, Any]:
    found = urllib3.request("GET", f"{url}{SESSION}?frames=0").json()["watch"]
    return dict(found or {"state": ""})


def metrics(url: str) -> str:
    return urllib3.request("GET", f"{url}/metrics").data.decode()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def monitor() -> int:
    """Return the process of the monitor; 0 if none runs now."""
    ours = _client().get_serve_details()["applications"][APP]["deployments"][MONITOR]
    return next((one["pid"] for one in ours["replicas"] if one["state"] == "RUNNING"), 0)


def test_story_10_a_drift_is_told_within_ten_frames_and_outlives_the_monitor(
    url: str, receiver: Receiver
) -> None:
    events: list[Any] = []
    with Session(url, instrument="STEM-1", pixel_size_pm=16, deadline_ms=60_000) as stem:
        for answer in stem.stream([*PLAIN, *SLOPED], policy="all", on_event=events.append):
            assert not answer.error
        until(lambda: bool(watched(url).get("drifted")), "the session is not drifted")
        (drifted,) = [one.facts for one in events if one.kind == "drifted"] or [{}]
        change = watched(url)["change"]
        assert drifted in ({}, {**change, "type": "event", "kind": "drifted"})

        until(lambda: 'instrument="STEM-1"' in metrics(url), "no drift score")

        process = monitor()
        os.kill(process, signal.SIGKILL)
        until(lambda: monitor() not in (0, process), "no new monitor")
        until(lambda: bool(stem.predict(SLOPED[3]) and watched(url)["state"]), "not watched")
        assert watched(url)["change"] == change

    with receiver.came:
        assert receiver.came.wait_for(lambda: bool(receiver.messages), 30)
    headers, body = receiver.messages[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = hmac.digest(base64.b64decode(SECRET), signed, hashlib.sha256)
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(mac).decode()}"
    data = json.loads(body)["data"]
    assert data["frames"]["before"]["frame_id"] != data["frames"]["now"]["frame_id"]

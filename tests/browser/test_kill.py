"""The server of the pages killed while it promotes: the alias is old or new, and the log whole."""

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from manybeam.zoo.lifecycle.changes import settled_state
from manybeam.zoo.lifecycle.life import promote
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

from .conftest import LOWDOSE, Server, serving

pytestmark = [pytest.mark.browser, pytest.mark.faults]


def zoo_in(home: Path) -> Zoo:
    return Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")


def ask_to_promote(server: Server, answers: list[int]) -> None:
    """Ask the server to force a promotion; it may die before it answers."""
    request = urllib.request.Request(
        f"{server.url}/api/v1/zoo/graphene@2/promote",
        data=json.dumps({"force": True, "reason": "the test kills the server"}).encode(),
        headers={
            "Authorization": f"Bearer {server.token}",
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answers.append(answer.status)
    except (urllib.error.URLError, ConnectionError):
        pass


def killed_while(server: Server, is_time: Callable[[], bool]) -> list[int]:
    """Ask for a promotion, kill the server when it is time, and return what it answered."""
    answers: list[int] = []
    asking = threading.Thread(target=ask_to_promote, args=(server, answers))
    asking.start()
    deadline = time.monotonic() + 60
    while not is_time() and asking.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    server.stop(signal.SIGKILL)
    asking.join(timeout=60)
    return answers


def records() -> int:
    return audit_log().head()


@pytest.mark.parametrize("count", [0, 1, 2], ids=["judging", "asked", "done"])
def test_a_server_killed_while_it_promotes_leaves_the_alias_old_or_new(
    make_home: Any, use_settings: Any, count: int
) -> None:
    home = make_home()
    use_settings({"MANYBEAM_HOME": str(home)})
    with serving(home) as server:
        # `judging` is a moment after the question, before anything is in the log.
        start = time.monotonic()
        answers = killed_while(
            server, lambda: records() >= count and time.monotonic() > start + 0.05
        )
    zoo, log = zoo_in(home), audit_log()
    serves = zoo.resolve("graphene@serving").version
    assert serves in (1, 2)
    assert answers in ([], [200])
    assert not answers or serves == 2
    log.verify()
    # The next who comes closes what was left open, by what MLflow says, and goes on.
    after = settled_state(zoo, log, "graphene")
    asked = [one for one in after.entries if one.action == "promote asked"]
    ended = [one for one in after.entries if one.action in ("promote done", "promote dropped")]
    assert len(asked) == len(ended) <= 1
    assert not ended or (ended[0].action == "promote done") == (serves == 2)
    other = 3 - serves
    promote(zoo, f"graphene@{other}", who="test", force=True, reason="the other one")
    assert zoo.resolve("graphene").version == other
    log.verify()
    with serving(home) as again:
        deadline = time.monotonic() + 20
        while version_shown(again) != other:  # it begins with what the one before it knew
            assert time.monotonic() < deadline
            time.sleep(0.1)


def version_shown(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/api/v1/zoo/graphene", timeout=60) as answer:
        return int(json.load(answer)["version"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_draws_for_the_pages_ends_with_their_server(
    make_home: Callable[[], Path], how: signal.Signals
) -> None:
    with serving(make_home()) as server:
        assert server.process is not None
        sample = f"{server.url}/zoo/graphene@2/example/{LOWDOSE}/sample"
        with urllib.request.urlopen(sample, timeout=60) as answer:
            assert answer.headers["content-type"] == "image/png"
        started = psutil.Process(server.process.pid).children(recursive=True)
        assert started
        server.stop(how)
        ended, left = psutil.wait_procs(started, timeout=10)
        assert left == [], [one.cmdline() for one in left]
        assert len(ended) == len(started)

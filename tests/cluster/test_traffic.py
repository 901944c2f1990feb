"""A new version under traffic on a real service: shadow, canary, swap and rollback under load."""

import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from manybeam.db.deployment import open_database
from manybeam.db.serving.comparison import Comparison
from manybeam.db.serving.rollouts import ROLLED_BACK, Rollouts
from manybeam.serve.app import run_service, stop_service
from manybeam.serve.traffic import changes
from manybeam.settings import settings
from manybeam.web.app import create_app, make_app_state
from manybeam.zoo.registry import Zoo
from manybeam_client import Session

pytestmark = [
    pytest.mark.cluster,
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]

DEADLINE_MS = 5000  # of every frame; other programs use these cores too
FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
HEADERS = {"Content-Type": "application/x-npy", "Accept": "application/json"}


class Load:
    """One instrument that sends a frame after the other, and what it was answered."""

    def __init__(self, url: str) -> None:
        self.url, self.answers = url, list[tuple[float, int, dict[str, Any]]]()
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._send)

    @contextmanager
    def going_on(self) -> Iterator["Load"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join()

    def refs(self) -> list[str]:
        return [str(content["meta"]["ref"]) for _, _, content in self.answers]

    def failed(self) -> list[Any]:
        """Return what was refused, failed or late."""
        return [(status, content) for _, status, content in self.answers if status != 200]

    def wait_for(self, ref: str, limit_s: float) -> float:
        """Return after how long only this version answers; 5 answers in a row count."""
        begun, first = time.monotonic(), len(self.answers)
        while self.refs()[first:][-5:] != [ref] * 5:
            assert time.monotonic() - begun < limit_s, self.refs()[first:]
            time.sleep(0.05)
        others = [at for at, _, content in self.answers[first:] if content["meta"]["ref"] != ref]
        return max(others, default=begun) - begun

    def _send(self) -> None:
        stream = io.BytesIO()
        np.save(stream, FRAME)
        query = f"pixel_size_pm=16&instrument=STEM-1&deadline_ms={DEADLINE_MS}"
        with urllib3.PoolManager(retries=False, timeout=60.0) as http:
            while not self._ended.wait(0.15):
                target = f"{self.url}/v1/predict/graphene?{query}&frame_id={len(self.answers)}"
                answer = http.request("POST", target, body=stream.getvalue(), headers=HEADERS)
                self.answers.append((time.monotonic(), answer.status, answer.json()))


class Stream:
    """Another instrument, with an open stream of frames, and what it was told."""

    def __init__(self, url: str) -> None:
        self._session = Session(
            url, instrument="STEM-2", ensemble="graphene", pixel_size_pm=16, deadline_ms=DEADLINE_MS
        )
        self.answers, self.events = list[Any](), list[Any]()
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._take)

    @contextmanager
    def going_on(self) -> Iterator["Stream"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join()
            self._session.close()

    def swaps(self) -> list[str]:
        """Return the versions that the service said it swapped to."""
        return [str(one.facts["ref"]) for one in self.events if one.kind == "swapped"]

    def failed(self) -> list[Any]:
        """Return what was refused, failed or late."""
        return [one.error for one in self.answers if one.error]

    def _scan(self) -> Iterator[Any]:
        while not self._ended.wait(0.15):
            yield FRAME

    def _take(self) -> None:
        with self._session as stem:
            told = self.events.append
            for answer in stem.stream(
                self._scan(), policy="all", on_event=told, transport="websocket"
            ):
                self.answers.append(answer)


@pytest.fixture(scope="module")
def port(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    tiny_members: Callable[[int], list[Any]],
    cluster: str,
    free_port: Callable[[], int],
) -> Iterator[int]:
    """Where a platform of its own serves: `graphene@1` serves, two versions are beside it."""
    home = tmp_path_factory.mktemp("traffic") / "home"
    home.mkdir()
    shutil.copy(empty_database, home / "zoo.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(home))
        patch.setenv("MANYBEAM_ZOO", str(Path(__file__).parents[2] / "zoo"))
        settings.cache_clear()
        for count, alias in ((2, "serving"), (3, None), (1, None)):
            Zoo().register("graphene", tiny_members(count), job={}, alias=alias)
        yield free_port()
        stop_service()
    settings.cache_clear()


@pytest.fixture
def url(port: int) -> Iterator[str]:
    """The service, started if no test before did so; no rollout runs, and none is left."""
    yield run_service(["graphene"], port=port).url
    stored = Rollouts(open_database())
    for one in stored.running():
        stored.end(one.id, ROLLED_BACK, who="ada")


def start(kind: Any, ref: str, **more: Any) -> int:
    return changes.start(Zoo(), kind, ref, who="ada", **{"share": 1.0, **more}).rollout.id


def compared(number: int, instrument: str = "STEM-1") -> Comparison:
    return Comparison.of(Rollouts(open_database()).comparisons(number).get(instrument, {}))


def test_story_11_a_version_goes_from_shadow_to_serving_and_back_without_a_failed_or_late_frame(
    url: str,
    until: Callable[..., None],
    serving: Callable[[Any], AbstractContextManager[str]],
) -> None:
    load, stream = Load(url), Stream(url)
    with load.going_on(), stream.going_on():
        shadow = start("shadow", "graphene@2")
        until(lambda: compared(shadow).new.frames >= 2, 60)
        until(lambda: compared(shadow, "STEM-2").new.frames >= 2, 60)
        assert set(load.refs()) == {"graphene@1"}

        canary = start("canary", "graphene@2", instruments=["STEM-1"])
        load.wait_for("graphene@2", limit_s=30)
        changes.rollback(Zoo(), "graphene", who="ada")
        assert load.wait_for("graphene@1", limit_s=30) <= 5
        assert {one.version for one in stream.answers} == {1}
        assert stream.swaps() == []

        start("canary", "graphene@2", share=0.5)
        changes.promote(Zoo(), "graphene", who="ada", force=True, reason="never measured")
        assert load.wait_for("graphene@2", limit_s=30) <= 10
        until(lambda: stream.swaps() == ["graphene@2"], 30)
        changes.rollback(Zoo(), "graphene", who="ada")
        assert load.wait_for("graphene@1", limit_s=30) <= 5
        until(lambda: stream.swaps() == ["graphene@2", "graphene@1"], 5)
    assert load.failed() == stream.failed() == []
    assert compared(canary).new.frames > 0
    assert compared(canary).failed == 0

    state = make_app_state(Zoo(), refresh_s=60)
    state.refresher.refresh()
    with serving(create_app(state)) as pages:
        page = urllib3.request("GET", f"{pages}/zoo/graphene@2").data.decode()
    assert "Shadow of graphene@2 with all frames beside graphene@1" in page
    for instrument in ("STEM-1", "STEM-2"):
        assert numbers(page, instrument)[-1] == shown(compared(shadow, instrument))


def shown(found: Comparison) -> list[str]:
    """Return what a page shows of the frames and agreement of both versions, and their times."""
    times = (found.base.p50_ms, found.new.p50_ms), (found.base.p99_ms, found.new.p99_ms)
    shares = [f"{one:.3f}" for one in (found.agreed, found.f1_between) if one is not None]
    assert len(shares) == 2
    written = [["–" if one is None else f"{one:.0f}" for one in both] for both in times]
    in_ms = [f"{base} → {new} ms" for base, new in written]
    return [str(found.new.frames), *shares, *in_ms, str(found.skipped), str(found.failed)]


def numbers(page: str, instrument: str) -> list[list[str]]:
    """Return the cells beside an instrument in each table of a page."""
    rows = re.findall(rf'<th scope="row">{instrument}</th>(.*?)</tr>', page)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_a_replica_that_ends_writes_what_it_compared_last(url: str) -> None:
    canary = start("canary", "graphene@3", instruments=["STEM-1"])
    load = Load(url)
    with load.going_on():
        load.wait_for("graphene@3", limit_s=30)
    answered = load.refs().count("graphene@3")
    stop_service()  # before the next writing
    assert compared(canary).new.frames == answered

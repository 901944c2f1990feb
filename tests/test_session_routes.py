"""The URLs of sessions through real HTTP: put, look, select, end, and what is refused."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from manybeam.db.deployment import open_database
from manybeam.db.serving.sessions import Sessions
from manybeam.db.tokens import Instruments, Tokens
from manybeam.errors import DatabaseUnreachable
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.access import TokenCache
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api
from manybeam.serve.sessions import refresher as keeping
from manybeam.serve.sessions import routes

# Ray Serve declares its own models the way pydantic wants to forget; only importing it warns.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

FRAME = np.random.default_rng(0).random((64, 64), dtype=np.float32)
PATH = "/v1/instruments/STEM-1/session"
Ask = Callable[..., Any]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture
def service(
    tiny_zoo: Any,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Service]:
    monkeypatch.setattr(keeping, "READ_S", 0.02)
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    found = Service(ZooVersions(tiny_zoo, ["graphene"]))
    found.sessions.refresher.start()
    yield found
    found.sessions.close()


@pytest.fixture
def ask(service: Service, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[Ask]:
    app = api(service, ReplicaLimits(), Meter(), lambda: "")
    with serving(app) as url, urllib3.PoolManager(retries=False) as pool:

        def request(method: str, path: str, body: Any = None, **headers: str) -> Any:
            if isinstance(body, dict):
                body = json.dumps(body).encode()
            content = "application/json" if method == "PUT" else "application/x-npy"
            given = {"Content-Type": content, "Accept": "application/json", **headers}
            return pool.request(method, url + path, body=body, headers=given)

        yield request


def frame(ask: Ask, more: str = "") -> Any:
    path = f"/v1/predict/auto?instrument=STEM-1&pixel_size_pm=16{more}"
    return ask("POST", path, npy(FRAME))


def test_a_session_is_put_looked_at_and_ended(ask: Ask) -> None:
    assert ask("GET", PATH).status == 404
    made = ask("PUT", PATH, {"budget_ms": 60_000, "pixel_size_pm": 16})
    assert made.status == 200
    assert (made.json()["policy"], made.json()["now"]) == ("auto", None)
    answer = frame(ask, "&frame_id=f1").json()["meta"]
    assert answer["session"]["frame_ids"] == ["f1"]
    assert answer["session"]["id"] == made.json()["id"]
    told = ask("GET", f"{PATH}?frames=5").json()
    assert [one["frame_id"] for one in told["history"]] == ["f1"]
    assert told["counts"]["frames"] == 1
    assert told["now"]["members"] == told["history"][0]["members"]
    ended = ask("DELETE", PATH)
    assert ended.json()["ended"] is not None
    assert ask("GET", PATH).status == 404
    assert ask("DELETE", PATH).status == 404
    assert "session" not in frame(ask).json()["meta"]


def test_a_pinned_session_answers_auto_and_a_named_ensemble_answers_itself(ask: Ask) -> None:
    ask("PUT", PATH, {"policy": "pinned", "ref": "graphene@1", "members": [1]})
    meta = frame(ask).json()["meta"]
    assert (meta["ref"], meta["members"]) == ("graphene@1", [1])
    named = "/v1/predict/graphene?instrument=STEM-1&pixel_size_pm=16"
    other = ask("POST", named, npy(FRAME)).json()["meta"]
    assert (other["ref"], "session" in other) == ("graphene@2", False)


def test_a_repeated_frame_says_so_and_another_one_of_its_name_is_refused(ask: Ask) -> None:
    ask("PUT", PATH, {"policy": "pinned", "ref": "graphene"})
    first = frame(ask, "&frame_id=a").json()
    again = frame(ask, "&frame_id=a").json()
    assert again["meta"]["session"]["repeated"] == ["a"]
    assert again["atoms"] == first["atoms"]
    path = "/v1/predict/auto?instrument=STEM-1&pixel_size_pm=16&frame_id=a"
    assert ask("POST", path, npy(FRAME[::-1])).status == 409


def test_a_session_answers_tensors_and_files_of_its_instrument(ask: Ask) -> None:
    ask("PUT", PATH, {"policy": "pinned", "ref": "graphene@1", "pixel_size_pm": 16})
    values = {
        "name": "FRAME",
        "datatype": "FP32",
        "shape": [64, 64],
        "data": FRAME.ravel().tolist(),
    }
    for where in ("body", "url"):
        asked = {"instrument": "STEM-1", "frame_id": where}
        message = {"inputs": [values], "outputs": [{"name": "ATOMS"}]}
        query = "&".join(f"{name}={value}" for name, value in asked.items())
        if where == "body":
            message, query = message | {"parameters": asked}, ""
        sent = {"Content-Type": "application/json"}
        answer = ask("POST", f"/v2/models/auto/infer?{query}", message, **sent).json()
        meta = json.loads(answer["parameters"]["meta"])
        assert meta["session"]["frame_ids"] == [where]
        assert (answer["model_version"], meta["pixel_size_pm"]) == ("1", 16)
    sent = {"Content-Type": "application/octet-stream"}
    path = "/v1/predict/auto?instrument=STEM-1&frame_id=file&filename=a.npy"
    meta = ask("POST", path, npy(FRAME), **sent).json()["meta"]
    assert meta["pixel_size_pm"] == 16  # that of the session: the file has none
    told = [one["frame_id"] for one in ask("GET", PATH).json()["history"]]
    assert told == ["file", "url", "body"]


def test_selection_for_an_instrument_switches_its_session(ask: Ask) -> None:
    path = "/v1/select/STEM-1?pixel_size_pm=16"
    assert ask("POST", path, npy(FRAME)).status == 404
    ask("PUT", PATH, {})
    ranked = ask("POST", path, npy(FRAME)).json()
    told = ask("GET", PATH).json()
    assert set(told["now"]["members"]) == set(ranked["chosen"])
    assert told["now"]["selected"] is True
    assert set(frame(ask).json()["meta"]["members"]) == set(ranked["chosen"])
    ask("PUT", PATH, {"policy": "pinned", "ref": "graphene"})
    assert ask("POST", path, npy(FRAME)).status == 409


@pytest.fixture
def _few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PLACES", routes.THREADS)


@pytest.mark.usefixtures("_few_places")
def test_requests_about_sessions_do_not_pile_up_while_the_database_hangs(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("PUT", PATH, {})
    may_go, begun = threading.Event(), threading.Semaphore(0)

    def hang(*_: object) -> list[Any]:
        begun.release()
        may_go.wait(60)
        return []

    monkeypatch.setattr(Sessions, "events", hang)
    monkeypatch.setattr(routes, "WAIT_S", 0.5)
    with ThreadPoolExecutor(routes.THREADS) as pool:
        waiting = [pool.submit(ask, "GET", PATH) for _ in range(routes.THREADS)]
        assert {one.result().status for one in waiting} == {503}
    for _ in waiting:
        assert begun.acquire(timeout=60)
    assert ask("GET", PATH).status == 429  # the threads are not back yet
    monkeypatch.setattr(routes, "WAIT_S", 60)
    may_go.set()
    end = time.monotonic() + 60
    while (status := ask("GET", PATH).status) == 429 and time.monotonic() < end:
        time.sleep(0.01)  # until a thread is back
    assert status == 200


def test_the_history_is_refused_at_once_while_the_database_is_away(
    ask: Ask, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    askers = set[str]()

    def away() -> None:
        askers.add(threading.current_thread().name)
        raise DatabaseUnreachable("the database does not answer")

    ask("PUT", PATH, {})
    # In this order: a reading that has begun counts as one of before.
    monkeypatch.setattr(service.sessions.refresher, "_sessions", away)
    monkeypatch.setattr(service.sessions.refresher, "_clock", lambda: time.monotonic() + 60)
    assert ask("GET", PATH).status == 503
    assert askers <= {"sessions"}  # its own threads; the request asked nobody


def test_a_frame_of_another_pixel_size_is_refused(ask: Ask) -> None:
    ask("PUT", PATH, {"pixel_size_pm": 8})
    answer = frame(ask)
    assert answer.status == 409
    assert "16 pm" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        pytest.param("PUT", PATH, b"[", 400, id="no JSON"),
        pytest.param("PUT", PATH, {"policy": "x"}, 422, id="setting"),
        pytest.param("PUT", PATH, {"policy": "pinned", "ref": "grafene"}, 404, id="REF"),
        pytest.param("PUT", PATH, b" " * 70_000, 413, id="large"),
        pytest.param("PUT", "/v1/instruments/a%20b/session", {}, 422, id="id"),
        pytest.param("DELETE", "/v1/instruments/a%00b/session", None, 422, id="NUL"),
        pytest.param("PUT", PATH, b"[" * 60_000, 400, id="nested"),
        pytest.param("PUT", "/v1/instruments/t-12345678/session", {}, 422, id="id like a token"),
        pytest.param("GET", f"{PATH}?frames=x", None, 422, id="count"),
        pytest.param("GET", f"{PATH}?frames=1&frames=2", None, 422, id="count twice"),
        pytest.param("POST", PATH, {}, 405, id="method"),
        pytest.param("POST", "/v1/select/STEM-1?instrument=STEM-2", b"", 403, id="other"),
    ],
)
def test_bad_requests_are_refused_as_problems(
    ask: Ask, method: str, path: str, body: Any, status: int
) -> None:
    answer = ask(method, path, body)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


def test_what_is_public_is_described(ask: Ask) -> None:
    paths = ask("GET", "/openapi.json").json()["paths"]
    described = paths["/v1/instruments/{instrument}/session"]
    assert set(described) == {"get", "put", "delete"}
    schema = described["put"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) >= {"policy", "ref", "members", "budget_ms"}
    assert "/v1/select/{instrument}" in paths


def test_a_token_of_an_instrument_opens_its_own_session_only(
    service: Service, serving: Callable[[Any], AbstractContextManager[str]], tmp_path: Path
) -> None:
    database = open_database()
    Instruments(database).add("STEM-1")
    Instruments(database).add("STEM-2")
    text, _ = Tokens(database).create("ours", ["predict"], instrument="STEM-1")
    cache = TokenCache(lambda: Tokens(open_database()), tmp_path / "tokens.json")
    cache.read()
    app = api(service, ReplicaLimits(is_local=False), Meter(), lambda: "", cache)
    with serving(app) as url, urllib3.PoolManager(retries=False) as pool:

        def put(instrument: str, token: str = text) -> int:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            path = f"{url}/v1/instruments/{instrument}/session"
            return pool.request("PUT", path, body=b"{}", headers=headers).status

        assert put("STEM-1") == 200
        assert put("STEM-2") == 403
        assert put("STEM-1", "mb-wrong") in (401, 503)

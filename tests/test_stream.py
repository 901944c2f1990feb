"""Streams through real WebSockets: answers in order, resumed, and how each of them ends."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from socket import AF_INET, SHUT_RDWR, SO_RCVBUF, SOL_SOCKET
from socket import socket as create_socket
from typing import Any

import numpy as np
import pytest
import urllib3
from urllib3.util import parse_url
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from manybeam.db.deployment import open_database
from manybeam.db.serving.sessions import Sessions
from manybeam.db.tokens import Instruments, Tokens
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.access import TokenCache
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api
from manybeam.serve.sessions import refresher as keeping
from manybeam.serve.stream import frame, messages, stream
from manybeam.serve.stream import routes as stream_routes

# Ray Serve declares its own models the way pydantic wants to forget; only importing it warns.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

FRAMES = np.random.default_rng(0).random((40, 64, 64), dtype=np.float32)
SESSION = "/v1/instruments/STEM-1/session"


def npy(array: Any) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


class Client:
    """One end of a stream, as simple as a client can be."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.events = socket, list[dict[str, Any]]()
        self.welcome = json.loads(socket.recv(timeout=30))

    def head(self, name: str, **more: Any) -> None:
        head = {"type": "frame", "frame_id": name, "content_type": "application/x-npy", **more}
        self.socket.send(json.dumps(head))

    def frame(self, name: str, body: bytes, **more: Any) -> None:
        self.head(name, bytes=len(body), **more)
        for first in range(0, len(body), 2**20):
            self.socket.send(body[first : first + 2**20])

    def heard(self) -> dict[str, Any]:
        """Return the next message that is no event and no beat; of an answer with its `body`."""
        while True:
            head = json.loads(self.socket.recv(timeout=30))
            if head["type"] == "event":
                self.events.append(head)
            elif head["type"] != "beat":
                break
        body = b""
        while len(body) < head.get("bytes", 0):
            part = self.socket.recv(timeout=30)
            assert isinstance(part, bytes)
            body += part
        return {**head, "body": body}

    def end(self) -> tuple[int, str]:
        """Return code and reason with which the service ends the stream."""
        with pytest.raises(ConnectionClosed) as closed:
            self._hear_on()
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code, closed.value.rcvd.reason

    def _hear_on(self) -> None:
        while True:
            self.heard()


@pytest.fixture
def service(
    tiny_zoo: Any,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Service]:
    monkeypatch.setattr(keeping, "READ_S", 0.02)
    monkeypatch.setattr(stream, "LOOK_S", 0.02)
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    found = Service(ZooVersions(tiny_zoo, ["graphene"]))
    found.sessions.refresher.start()
    yield found
    found.sessions.close()


@pytest.fixture
def url(service: Service, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[str]:
    with serving(api(service, ReplicaLimits(), Meter(), lambda: "")) as url:
        put(url, pixel_size_pm=16)
        yield url


def ask(method: str, url: str, body: Any = None, **headers: str) -> Any:
    return urllib3.request(method, url, body=body, headers=headers, retries=False)


def put(url: str, **settings: Any) -> dict[str, Any]:
    made = ask("PUT", url + SESSION, json.dumps(settings))
    assert made.status == 200, made.data
    return dict(made.json())


def opened(url: str, query: str = "", **more: Any) -> ClientConnection:
    address = f"ws{url.removeprefix('http')}/v1/stream/STEM-1{query}"
    return connect(address, max_size=None, compression=None, **more)


def test_answers_are_those_of_single_requests_bit_for_bit(url: str) -> None:
    put(url, policy="pinned", ref="graphene", pixel_size_pm=16)
    path = "/v1/predict/auto?instrument=STEM-1&want=atoms,mean,std,votes"
    with opened(url, "?want=atoms,mean,std,votes") as socket:
        client = Client(socket)
        for number in range(5):
            client.frame(f"f{number}", npy(FRAMES[number]))
        answers = [client.heard() for _ in range(5)]
    assert [one["frame_id"] for one in answers] == [f"f{number}" for number in range(5)]
    for number, answer in enumerate(answers):
        alone = ask("POST", url + path, npy(FRAMES[number])).data
        told, single = (np.load(io.BytesIO(one)) for one in (answer["body"], alone))
        assert set(told) == set(single)
        for name in set(told) - {"meta"}:
            assert told[name].tobytes() == single[name].tobytes(), name


def test_raw_frames_and_json_answers_are_those_of_requests_too(url: str) -> None:
    with opened(url) as socket:
        client = Client(socket)
        raw = {"content_type": "application/octet-stream", "dtype": "<f4", "shape": [64, 64]}
        client.frame("raw", FRAMES[0].tobytes(), accept="application/json", **raw)
        client.frame("npy", npy(FRAMES[0]), accept="application/json")
        first, second = client.heard(), client.heard()
    assert (first["status"], first["content_type"]) == (200, "application/json")
    assert json.loads(first["body"])["atoms"] == json.loads(second["body"])["atoms"]


def test_a_large_frame_comes_and_goes_in_parts(url: str) -> None:
    large = np.tile(FRAMES[0], (9, 9))  # more than a part; so is its map
    with opened(url) as socket:
        client = Client(socket)
        assert client.welcome["part_bytes"] == 2**20 < large.nbytes
        client.frame("large", npy(large), query={"want": "mean", "quick": True})
        answer = client.heard()
    assert answer["status"] == 200, answer["body"]
    assert np.load(io.BytesIO(answer["body"]))["mean"].shape == large.shape


def test_a_frame_that_is_none_gets_its_problem_and_the_next_one_its_answer(url: str) -> None:
    with opened(url) as socket:
        client = Client(socket)
        client.frame("lying", FRAMES[0].tobytes(), dtype="<f4", shape=[99, 99], content_type="")
        client.frame("unknown", npy(FRAMES[0]), query={"pixelsize": 3})
        client.frame("empty", b"")
        client.frame("good", npy(FRAMES[0]))
        answers = [client.heard() for _ in range(4)]
    assert [one["status"] for one in answers] == [400, 422, 400, 200]
    problem = json.loads(answers[0]["body"])
    assert "99" in problem["detail"]
    assert answers[0]["content_type"] == "application/problem+json"


def test_a_stream_resumed_after_a_cut_answers_each_frame_once(url: str) -> None:
    put(url, policy="pinned", ref="graphene", pixel_size_pm=16)
    with opened(url) as socket:
        first = Client(socket)
        for number in range(4):
            first.frame(f"f{number}", npy(FRAMES[number]))
        before = first.heard()
        socket.socket.shutdown(SHUT_RDWR)  # the connection is gone: no word to the service
    with opened(url) as socket:
        client = Client(socket)
        for number in range(4):
            client.frame(f"f{number}", npy(FRAMES[number]))
        answers = [client.heard() for _ in range(4)]
    told = ask("GET", f"{url}{SESSION}?frames=100").json()
    assert sorted(one["frame_id"] for one in told["history"]) == ["f0", "f1", "f2", "f3"]
    assert told["counts"]["frames"] == 4
    again, once = (np.load(io.BytesIO(one["body"])) for one in (answers[0], before))
    assert again["atoms"].tobytes() == once["atoms"].tobytes()
    assert json.loads(again["meta"].tobytes())["session"]["repeated"] == ["f0"]


# -- many frames at once -------------------------------------------------------------------------
class Held(Service):
    """Answers frames when the test says so."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.begun, self.may_go = threading.Semaphore(0), threading.Event()

    def predict(self, *parts: Any) -> Any:
        self.begun.release()
        assert self.may_go.wait(30)
        return super().predict(*parts)


@pytest.fixture
def held(tiny_zoo: Any, service: Service) -> Iterator[Held]:
    found = Held(ZooVersions(tiny_zoo, ["graphene"]))
    found.sessions.refresher.start()
    yield found
    found.may_go.set()
    found.sessions.close()


@pytest.fixture
def meter() -> "Counting":
    return Counting()


@pytest.fixture
def held_url(
    held: Held, meter: "Counting", serving: Callable[[Any], AbstractContextManager[str]]
) -> Iterator[str]:
    with serving(api(held, ReplicaLimits(threads=1), meter, lambda: "")) as url:
        put(url, pixel_size_pm=16)
        yield url


def test_of_a_newest_wins_stream_the_frames_that_wait_give_way(
    held: Held, held_url: str, meter: "Counting"
) -> None:
    with opened(held_url, "?order=newest") as socket:
        client = Client(socket)
        client.frame("f0", npy(FRAMES[0]))
        assert held.begun.acquire(timeout=30)
        for number in range(1, 4):
            client.frame(f"f{number}", npy(FRAMES[number]))
        while meter.refusals.count("newer") < 2:
            time.sleep(0.01)
        held.may_go.set()
        answers = {one["frame_id"]: one for one in (client.heard() for _ in range(4))}
    assert list(answers) == ["f0", "f1", "f2", "f3"]
    assert [one["status"] for one in answers.values()] == [200, 429, 429, 200]
    assert "newer" in json.loads(answers["f1"]["body"])["detail"]
    assert answers["f1"]["retry_after_s"] >= 1


def test_frames_above_the_limit_are_refused_and_the_others_answered(
    held: Held, held_url: str, meter: "Counting"
) -> None:
    most = messages.IN_FLIGHT
    with opened(held_url) as socket:
        client = Client(socket)
        assert client.welcome["in_flight"] == most
        for number in range(most + 2):
            client.frame(f"f{number}", npy(FRAMES[number]), query={"quick": True})
        while meter.refusals.count("full") < 2:
            time.sleep(0.01)
        held.may_go.set()
        answers = [client.heard() for _ in range(most + 2)]
    assert [one["frame_id"] for one in answers] == [f"f{number}" for number in range(most + 2)]
    assert [one["status"] for one in answers] == [200] * most + [429] * 2


def test_a_frame_whose_session_ends_meanwhile_is_not_answered_without_one(
    held: Held, held_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LOOK_S", 60.0)  # else the stream ends before the answer
    with opened(held_url) as socket:
        client = Client(socket)
        client.frame("f0", npy(FRAMES[0]))
        assert held.begun.acquire(timeout=30)
        assert ask("DELETE", held_url + SESSION).status == 200
        held.may_go.set()
        answer = client.heard()
    assert (answer["status"], "no session" in str(answer["body"])) == (404, True)


def test_the_work_for_a_client_that_has_gone_ends(held: Held, held_url: str) -> None:
    with opened(held_url) as socket:
        client = Client(socket)
        for number in range(3):
            client.frame(f"f{number}", npy(FRAMES[number]))
        assert held.begun.acquire(timeout=30)
        socket.socket.shutdown(SHUT_RDWR)
    while not held.sessions.is_quiet():
        time.sleep(0.01)
    held.may_go.set()
    told = ask("GET", f"{held_url}{SESSION}?frames=100").json()
    assert told["history"] == []
    assert not held.begun.acquire(timeout=0.1)  # the two that waited never began


# -- how a stream ends ---------------------------------------------------------------------------
def _half(client: Client) -> None:
    client.socket.send(json.dumps({"type": "frame", "frame_id": "a", "bytes": 100}))
    client.socket.send(b"0" * 60)


def _two_heads(client: Client) -> None:
    _half(client)
    client.socket.send('{"type": "beat"}')


def _too_many_bytes(client: Client) -> None:
    _half(client)
    client.socket.send(b"0" * 60)


@pytest.mark.parametrize(
    ("send", "words"),
    [
        pytest.param(lambda it: it.socket.send("frame"), "cannot be read", id="no-json"),
        pytest.param(lambda it: it.socket.send("[" * 9999), "cannot be read", id="deep-json"),
        pytest.param(lambda it: it.socket.send('{"type": "stop"}'), "cannot be read", id="type"),
        pytest.param(lambda it: it.head("", bytes=1), "frame_id", id="no-name"),
        pytest.param(lambda it: it.head("a", bytes=-1), "bytes", id="negative"),
        pytest.param(lambda it: it.head("a", bytes=1, pixel=3), "pixel", id="unknown-field"),
        pytest.param(
            lambda it: it.head("a", bytes=1, query={"instrument": "STEM-2"}), "path", id="other"
        ),
        pytest.param(lambda it: it.socket.send("9" * 20_000), "20000 characters", id="long-head"),
        pytest.param(lambda it: it.socket.send(b"123"), "without a head", id="no-head"),
        pytest.param(_two_heads, "before the body", id="half-a-frame"),
        pytest.param(_too_many_bytes, "120 bytes or more", id="more-than-announced"),
    ],
)
def test_a_stream_that_breaks_the_protocol_ends_with_a_reason(
    url: str, send: Callable[[Client], None], words: str
) -> None:
    with opened(url) as socket:
        client = Client(socket)
        send(client)
        said = client.heard()
        while said["type"] != "closing":
            said = client.heard()
        assert words in said["problem"]["detail"]
        assert said["problem"]["hint"]
        code, reason = client.end()
    assert code == said["code"] == 4400
    assert reason


def test_no_sequence_of_messages_makes_the_service_fail(url: str) -> None:
    rng, ends = np.random.default_rng(7), set[int]()
    head = json.dumps({"type": "frame", "frame_id": "a", "bytes": 3, "query": {"want": "atoms"}})
    for _ in range(60):
        with opened(url) as socket:
            client = Client(socket)
            with suppress(ConnectionClosed):  # it was ended while this was being sent
                for _ in range(rng.integers(1, 6)):
                    socket.send(_noise(rng, head))
                socket.send("the end")
            ends.add(client.end()[0])
    assert ends == {4400}
    with opened(url) as socket:
        client = Client(socket)
        client.frame("good", npy(FRAMES[0]))
        assert client.heard()["status"] == 200


def _noise(rng: np.random.Generator, head: str) -> str | bytes:
    """Return a part of a body, or a head of which some characters are others."""
    if rng.random() < 0.4:
        return rng.bytes(int(rng.integers(0, 4)))
    text = list(head)
    for place in rng.integers(0, len(text), rng.integers(0, 3)):
        text[place] = str(rng.choice(list('{}[]":,9eE-+. \x00é\\')))
    return "".join(text)


def test_half_a_frame_that_does_not_go_on_ends_the_stream(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame, "GRACE_S", 0.2)
    with opened(url) as socket:
        client = Client(socket)
        _half(client)
        code, reason = client.end()
    assert (code, reason.startswith("60 of 100 bytes arrived")) == (4408, True)


def test_a_client_that_never_reads_is_cut(
    service: Service,
    serving: Callable[[Any], AbstractContextManager[str]],
    meter: "Counting",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "SEND_S", 0.3)
    monkeypatch.setattr(stream, "CLOSE_S", 0.1)
    large = np.tile(FRAMES[0], (16, 16))
    with serving(api(service, ReplicaLimits(), meter, lambda: "")) as url:
        put(url, pixel_size_pm=16)
        narrow = create_socket(AF_INET)
        narrow.setsockopt(SOL_SOCKET, SO_RCVBUF, 2**16)
        narrow.connect((parse_url(url).host, parse_url(url).port))
        with opened(url, "?want=mean,std&quick=true", max_queue=1, sock=narrow) as socket:
            client = Client(socket)
            for number in range(4):  # 4 MiB each: more than a connection holds
                client.frame(f"f{number}", npy(large))
            while meter.open:
                time.sleep(0.01)
            socket.socket.shutdown(SHUT_RDWR)


class Counting(Meter):
    """A meter of which a test reads open streams and refusals."""

    open = 1  # until the first stream was opened and has ended

    def __init__(self) -> None:
        super().__init__()
        self.refusals = list[str]()

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)
        super().refused(reason)

    def streams(self, count: int) -> None:
        self.open = count
        super().streams(count)


def test_a_session_that_ends_ends_its_stream(url: str) -> None:
    with opened(url) as socket:
        client = Client(socket)
        client.frame("f0", npy(FRAMES[0]))
        assert client.heard()["status"] == 200
        assert ask("DELETE", url + SESSION).status == 200
        code, reason = client.end()
    assert (code, "no session" in reason) == (4404, True)


def test_a_newer_client_of_the_instrument_ends_the_older_one(url: str) -> None:
    with opened(url) as one, opened(url) as two:
        older, newer = Client(one), Client(two)
        code, reason = older.end()
        newer.frame("f0", npy(FRAMES[0]))
        assert newer.heard()["status"] == 200
    assert (code, "another client" in reason) == (4409, True)


def test_so_does_one_of_another_replica(
    url: str, tiny_zoo: Any, serving: Callable[[Any], AbstractContextManager[str]]
) -> None:
    other = Service(ZooVersions(tiny_zoo, ["graphene"]))
    other.sessions.refresher.start()
    app = api(other, ReplicaLimits(), Meter(), lambda: "")
    with serving(app) as other_url, opened(url) as one:
        older = Client(one)
        with opened(other_url) as two:
            Client(two)
            assert older.end()[0] == 4409
    other.sessions.close()


def test_a_stream_of_a_later_session_counts_as_newer(url: str) -> None:
    with opened(url) as one:
        Client(one)
        ask("DELETE", url + SESSION)
        put(url, pixel_size_pm=16)
        with opened(url) as two:
            newer = Client(two)
            newer.frame("f0", npy(FRAMES[0]))
            assert newer.heard()["status"] == 200


def test_a_database_that_is_slow_ends_no_stream(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_routes, "NUMBER_S", 0.05)
    real, may_go = Sessions.take_stream, threading.Event()

    def slowly(*parts: Any) -> Any:
        assert may_go.wait(30)
        return real(*parts)

    monkeypatch.setattr(Sessions, "take_stream", slowly)
    with opened(url) as socket:
        client = Client(socket)
        may_go.set()  # it is written when nobody waits for it any more
        while not Sessions(open_database()).running()[0].stream:
            time.sleep(0.01)
        for number in range(3):
            client.frame(f"f{number}", npy(FRAMES[number]))
            assert client.heard()["status"] == 200


def test_a_silent_stream_hears_beats(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "BEAT_S", 0.05)
    with opened(url) as socket:
        client = Client(socket)
        assert client.welcome["beat_s"] == 0.05
        client.socket.send('{"type": "beat"}')
        assert json.loads(socket.recv(timeout=30)) == {"type": "beat"}


def test_a_change_of_members_is_told_before_the_answer_that_they_give(url: str) -> None:
    put(url, policy="pinned", ref="graphene@2", pixel_size_pm=16)
    with opened(url) as socket:
        client = Client(socket)
        client.frame("f0", npy(FRAMES[0]))
        client.heard()
        assert not client.events
        put(url, policy="pinned", ref="graphene@2", members=[1], pixel_size_pm=16)
        client.frame("f1", npy(FRAMES[1]))
        client.heard()
    ((event),) = client.events
    assert (event["kind"], event["frame_id"], event["members"]) == ("switched", "f1", [1])


# -- what is refused before a stream begins ------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        pytest.param("STEM-9", {}, 404, "has no session", id="no-session"),
        pytest.param("-", {}, 422, "cannot be the id", id="no-name"),
        pytest.param("STEM-1?order=last", {}, 422, "all, newest", id="order"),
        pytest.param("STEM-1?wants=mean", {}, 422, "did you mean 'want'", id="query"),
        pytest.param("STEM-1?frame_id=a", {}, 422, "frame_id", id="name-of-a-frame"),
        pytest.param("STEM-1", {"Origin": "http://evil.example"}, 403, "another site", id="page"),
        pytest.param("STEM-1", {"Host": "evil.example"}, 403, "own machine", id="rebinding"),
        pytest.param("STEM-1", {"X-Request-Id": "a b"}, 400, "X-Request-Id", id="bad-id"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_as_a_request_is(
    url: str, path: str, headers: dict[str, str], status: int, words: str
) -> None:
    refused = ask("GET", f"{url}/v1/stream/{path}", None, **UPGRADE, **headers)
    assert (refused.status, refused.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert words in f"{refused.json()['detail']} {refused.json()['hint']}"


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


def test_a_wrong_path_of_a_stream_is_told_in_a_problem(url: str) -> None:
    refused = ask("GET", f"{url}/v1/streams/STEM-1", None, **UPGRADE)
    assert (refused.status, "/v1/stream/" in refused.json()["detail"]) == (404, True)
    assert refused.headers["x-request-id"] == refused.json()["request_id"]


def test_a_request_that_asks_for_no_upgrade_is_told_so(url: str) -> None:
    told = ask("GET", f"{url}/v1/stream/STEM-1")
    assert (told.status, told.headers["upgrade"]) == (426, "websocket")
    assert "WebSocket" in told.json()["detail"]


def test_a_token_opens_the_stream_of_its_instrument_until_it_is_revoked(
    service: Service, serving: Callable[[Any], AbstractContextManager[str]], tmp_path: Path
) -> None:
    instruments, tokens = Instruments(open_database()), Tokens(open_database())
    for name in ("STEM-1", "STEM-2"):
        instruments.add(name)
    known = {
        name: tokens.create(name, ["predict"], instrument=name) for name in ("STEM-1", "STEM-2")
    }
    cache = TokenCache(lambda: tokens, tmp_path / "tokens.json")
    cache.start()
    app = api(service, ReplicaLimits(), Meter(), lambda: "", cache)
    with serving(app) as url:
        shown = {name: {"Authorization": f"Bearer {one[0]}"} for name, one in known.items()}
        ask("PUT", url + SESSION, b"{}", **shown["STEM-1"])
        statuses = []
        for headers in ({}, shown["STEM-2"]):
            with pytest.raises(InvalidStatus) as refused, opened(url, additional_headers=headers):
                pass
            statuses.append(refused.value.response.status_code)
        assert statuses == [401, 403]
        with opened(url, additional_headers=shown["STEM-1"]) as socket:
            client = Client(socket)
            client.frame("f0", npy(FRAMES[0]), query={"pixel_size_pm": 16})
            assert client.heard()["status"] == 200
            tokens.revoke(known["STEM-1"][1].id)
            cache.read()
            assert client.end()[0] == 4401
    cache.close()

"""Admission: places before bodies, a bound on bytes, slow senders and those who leave."""

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import urllib3
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.requests import Request

from manybeam.addresses import place_of
from manybeam.db.deployment import open_database
from manybeam.db.tokens import Tokens
from manybeam.errors import DeadlineExceeded
from manybeam.learn.nets.inference.graphs import CompiledNetwork
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge import admission, fair_queue
from manybeam.serve.edge.access import TokenCache
from manybeam.serve.edge.guard import RayGuard
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api

pytestmark = [
    pytest.mark.slow,
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]

Serving = Callable[[Any], AbstractContextManager[str]]
MIB = 2**20
JSON = "application/json"
NPY = {"Content-Type": "application/x-npy"}
PREDICT = "/v1/predict/graphene?pixel_size_pm=16"


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


GOOD = npy(np.random.default_rng(0).random((48, 56), dtype=np.float32))


class Sender:
    """A connection that sends the head of a request, and of its body what a test says."""

    def __init__(
        self, url: str, length: int | str, more: str = "", of: str = "", body: bytes = b""
    ) -> None:
        host, port = place_of(url) or ("", None)
        self.socket = socket.create_connection((host, port), timeout=30)
        path = f"{PREDICT}&instrument={of}"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-npy\r\n"
        said = f"Content-Length: {length}\r\n" if length != "" else ""
        self.socket.sendall(f"{head}{said}{more}\r\n".encode() + body)

    def send(self, body: bytes) -> None:
        self.socket.sendall(body)

    def answer(self) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return response.status, json.loads(response.read()), response.headers

    def close(self) -> None:
        self.socket.close()


class Watched(Meter):
    """Counts, and lets a test wait until so many requests have a place."""

    inside = 0

    def waiting(self, count: int) -> None:
        super().waiting(count)
        self.inside = count

    def until(self, count: int) -> None:
        _until(lambda: self.inside == count)


def _until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)  # between two looks at what another thread does


@pytest.fixture
def meter() -> Watched:
    return Watched()


Connect = Callable[..., Sender]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make senders; after the test all are closed."""
    with ExitStack() as stack:

        def make(
            url: str, length: int | str, more: str = "", of: str = "", body: bytes = b""
        ) -> Sender:
            made = Sender(url, length, more, of, body)
            stack.callback(made.close)
            return made

        yield make


Enter = Callable[..., list[Sender]]


@pytest.fixture
def enter(connect: Connect, meter: Watched) -> Enter:
    """Make senders that have the first places, in their order."""

    def make(count: int, url: str, length: int, of: str = "") -> list[Sender]:
        made = []
        for number in range(count):
            made.append(connect(url, length, of=of))
            meter.until(number + 1)
        return made

    return make


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine pause in a test that is not about slow senders."""
    monkeypatch.setattr(admission, "GRACE_S", 60.0)
    monkeypatch.setattr(fair_queue, "SLOW_S", 60.0)


@pytest.fixture
def quick(_patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the limits of a sender come soon."""
    monkeypatch.setattr(admission, "GRACE_S", 0.4)


@pytest.fixture
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=30.0, maxsize=4) as made:
        yield made


@pytest.fixture
def replica(
    tiny_zoo: Any, serving: Serving, meter: Watched
) -> Callable[..., AbstractContextManager[str]]:
    """Start a replica with limits, of a zoo that has loaded or of one that answers when told."""

    def start(slow: Any = None, **limits: int) -> AbstractContextManager[str]:
        versions = ZooVersions(slow) if slow else ZooVersions(tiny_zoo, ["graphene"])
        return serving(api(Service(versions), ReplicaLimits(**limits), meter, str))

    return start


Replica = Callable[..., AbstractContextManager[str]]


def test_a_place_is_taken_before_the_body_is_read(
    replica: Replica, pool: urllib3.PoolManager, connect: Connect, enter: Enter
) -> None:
    with replica(waiting=2) as url:
        inside = enter(2, url, 1000)
        refused = connect(url, len(GOOD), "Expect: 100-continue\r\n")
        status, problem, headers = refused.answer()  # nothing of its body was sent
        assert (status, problem["type"]) == (429, "urn:manybeam:busy")
        assert int(headers["retry-after"]) >= 1
        assert pool.request("GET", f"{url}/healthz").status == 200
        for one in inside:
            one.close()


def test_ten_slow_senders_harm_nobody_and_are_cut(
    replica: Replica, pool: urllib3.PoolManager, quick: None, connect: Connect
) -> None:
    with replica() as url:
        pool.request("POST", url + PREDICT, body=GOOD, headers=NPY)
        before = psutil.Process().memory_info().rss
        slow = [connect(url, 400 * 10**6, body=b"\x93NUMPY") for _ in range(10)]
        good = pool.request("POST", url + PREDICT, body=GOOD, headers=NPY)
        answers = [one.answer() for one in slow]
        assert psutil.Process().memory_info().rss - before < 30 * MIB
    assert good.status == 200
    assert sorted({status for status, _, _ in answers}) == [408, 429]
    late = next(problem for status, problem, _ in answers if status == 408)
    assert "6 of 400000000 bytes arrived" in late["detail"]


def test_bodies_that_do_not_end_share_a_bounded_memory(
    replica: Replica, pool: urllib3.PoolManager, connect: Connect
) -> None:
    side_mib, found = 60, list[int]()
    with replica(max_frame_px=8 * MIB) as url:  # bodies of up to 64 MiB
        pool.request("POST", url + PREDICT, body=GOOD, headers=NPY)
        before = psutil.Process().memory_info().rss

        def fill() -> None:
            sender = connect(url, "", "Transfer-Encoding: chunked\r\n")
            piece = b"100000\r\n" + b"\0" * MIB + b"\r\n"
            with suppress(OSError):  # cut while it is sending, or nothing said within a second
                for _ in range(side_mib):
                    sender.send(piece)
                sender.socket.settimeout(1.0)
                found.append(sender.answer()[0])
            sender.close()

        threads = [threading.Thread(target=fill) for _ in range(10)]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, psutil.Process().memory_info().rss - before)
            time.sleep(0.05)
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 200
    assert set(found) == {429}
    assert most < 300 * MIB  # two large bodies and 8 MiB of each other, of ten times 60 MiB


@pytest.mark.parametrize("length", ["", "3000000"], ids=["chunked", "announced"])
def test_a_sender_of_drops_is_cut(
    replica: Replica, quick: None, length: str, connect: Connect
) -> None:
    with replica() as url:
        sender = connect(url, length, "" if length else "Transfer-Encoding: chunked\r\n")
        begun = time.monotonic()
        stop = threading.Event()

        def drip() -> None:
            with suppress(OSError):  # cut while it is sending
                while not stop.wait(0.1):
                    sender.send(b"1\r\nx\r\n")

        thread = threading.Thread(target=drip)
        thread.start()
        status, problem, headers = sender.answer()
        stop.set()
        thread.join()
    assert (status, problem["type"], headers["connection"]) == (
        408,
        "urn:manybeam:too-slow",
        "close",
    )
    assert time.monotonic() - begun < 5


def test_a_deadline_counts_while_the_body_arrives(replica: Replica) -> None:
    with replica() as url:
        host, port = place_of(url) or ("", None)
        with socket.create_connection((host, port), timeout=30) as connection:
            begun = time.monotonic()
            connection.sendall(
                b"POST /v1/predict/graphene?deadline_ms=200 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: application/x-npy\r\nContent-Length: 5000\r\n\r\n\x93NUMPY"
            )
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 504
            assert time.monotonic() - begun < 1


class EarlyLoop(asyncio.SelectorEventLoop):
    """Calls early, as uvloop does by up to half a millisecond."""

    def call_at(self, when: float, *args: Any, **more: Any) -> asyncio.TimerHandle:
        return super().call_at(when - 0.05, *args, **more)


def test_a_deadline_is_told_as_one_also_if_its_timer_is_early() -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    queue = fair_queue.FairQueue(1, 1, MIB)
    place, due_s = queue.take(fair_queue.Share()), time.monotonic() + 0.2
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with asyncio.Runner(loop_factory=EarlyLoop) as runner, pytest.raises(DeadlineExceeded):
        runner.run(admission.read_body(request, queue, place, due_s))


def test_who_leaves_while_sending_gives_the_place_back(
    replica: Replica, pool: urllib3.PoolManager, enter: Enter, meter: Watched
) -> None:
    with replica(waiting=1) as url:
        (sender,) = enter(1, url, 1000)
        sender.send(b"\x93NUMPY")
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 429
        sender.close()
        meter.until(0)
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 200


class Slow:
    """A zoo that answers when told: it holds requests inside for as long as a test likes."""

    def __init__(self, zoo: Any) -> None:
        self.zoo, self.go, self.asked = zoo, threading.Event(), 0
        self.matrix, self.ls, self.ensemble = zoo.matrix, zoo.ls, zoo.ensemble
        self.attached = zoo.attached

    def resolve(self, ref: str) -> Any:
        self.asked += 1
        self.go.wait(30)
        return self.zoo.resolve(ref)

    def until_asked(self) -> None:
        _until(lambda: bool(self.asked))


def test_more_requests_than_there_is_room_for_are_told_when_to_come_back(
    tiny_zoo: Any, replica: Replica, pool: urllib3.PoolManager, meter: Watched
) -> None:
    slow, found = Slow(tiny_zoo), list[int]()
    with replica(slow, threads=1, waiting=2) as url:

        def post() -> None:
            found.append(pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status)

        inside = [threading.Thread(target=post) for _ in range(2)]
        for thread in inside:
            thread.start()
        meter.until(2)
        refused = pool.request("POST", url + PREDICT, body=GOOD, headers=NPY)
        assert pool.request("GET", f"{url}/healthz").status == 200
        slow.go.set()
        for thread in inside:
            thread.join()
        again = pool.request("POST", url + PREDICT, body=GOOD, headers=NPY)
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert (found, again.status) == ([200, 200], 200)


def test_who_leaves_while_waiting_gives_the_place_back_and_is_not_answered(
    tiny_zoo: Any, replica: Replica, pool: urllib3.PoolManager, enter: Enter, meter: Watched
) -> None:
    slow = Slow(tiny_zoo)
    with replica(slow, threads=1, waiting=2) as url:
        inside, waiting = enter(2, url, len(GOOD))
        inside.send(GOOD)
        slow.until_asked()
        waiting.send(GOOD)
        time.sleep(0.2)  # until its body is read, which nobody tells
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 429
        waiting.close()
        meter.until(1)
        last = threading.Thread(target=slow.go.set)
        threading.Timer(0.3, last.start).start()
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 200
        last.join()
        inside.close()
    assert slow.asked <= 3  # what nobody waits for was not begun


def test_a_flood_waits_behind_a_newcomer_and_gives_it_a_place(
    tiny_zoo: Any, replica: Replica, pool: urllib3.PoolManager, enter: Enter, meter: Watched
) -> None:
    slow, answers = Slow(tiny_zoo), list[int]()
    with replica(slow, threads=1, waiting=3) as url:
        flood = enter(3, url, len(GOOD), of="flood")
        for one in flood:
            one.send(GOOD)
            slow.until_asked()

        def polite() -> None:
            own = f"{url}{PREDICT}&instrument=polite"
            answers.append(pool.request("POST", own, body=GOOD, headers=NPY).status)

        thread = threading.Thread(target=polite)
        thread.start()
        status, problem, headers = flood[2].answer()
        assert (status, problem["type"]) == (429, "urn:manybeam:busy")
        assert "share them by their weights" in problem["detail"]
        assert 1 <= int(headers["retry-after"]) <= 60
        slow.go.set()
        thread.join()
    assert answers == [200]
    assert slow.asked <= 3


def test_a_body_that_is_read_gives_its_place_to_a_newcomer(
    replica: Replica, pool: urllib3.PoolManager, enter: Enter
) -> None:
    with replica(waiting=2) as url:
        flood = enter(2, url, len(GOOD), of="flood")
        own = f"{url}{PREDICT}&instrument=polite"
        assert pool.request("POST", own, body=GOOD, headers=NPY).status == 200
        status, problem, headers = flood[1].answer()
        assert (status, headers["connection"]) == (429, "close")
        assert "its place went to another request" in problem["detail"]
        flood[0].send(GOOD)
        response = http.client.HTTPResponse(flood[0].socket)
        response.begin()
        assert response.status == 200


def test_slow_senders_leave_room_for_others_of_the_same_caller(
    replica: Replica, pool: urllib3.PoolManager, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica(waiting=4) as url:
        slow = enter(4, url, 10**6)
        monkeypatch.setattr(fair_queue, "SLOW_S", 0.1)
        time.sleep(0.2)  # all are slow then
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 200
        status, problem, _ = slow[0].answer()
        for one in slow:
            one.close()  # else the server waits for their bodies before it ends
    assert status == 429
    assert "too many slow bodies" in problem["detail"]


def test_who_leaves_while_being_answered_gives_the_place_back(
    tiny_zoo: Any, replica: Replica, pool: urllib3.PoolManager, connect: Connect, meter: Watched
) -> None:
    slow = Slow(tiny_zoo)
    with replica(slow, threads=2, waiting=1) as url:
        inside = connect(url, len(GOOD))
        inside.send(GOOD)
        slow.until_asked()
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 429
        inside.close()
        meter.until(0)
        late = pool.request("POST", f"{url}{PREDICT}&deadline_ms=200", body=GOOD, headers=NPY)
        slow.go.set()
        assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 200
    assert late.status == 504  # it had a place, and gave it back


def test_no_network_runs_for_who_left(
    tiny_zoo: Any,
    replica: Replica,
    pool: urllib3.PoolManager,
    connect: Connect,
    meter: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[int] = []
    call = CompiledNetwork.__call__
    monkeypatch.setattr(
        CompiledNetwork, "__call__", lambda self, tile: ran.append(id(self)) or call(self, tile)
    )
    slow = Slow(tiny_zoo)
    with replica(slow, threads=1) as url:
        inside = connect(url, len(GOOD))
        inside.send(GOOD)
        slow.until_asked()
        inside.close()
        meter.until(0)
        slow.go.set()
        for _ in range(2):
            assert pool.request("POST", url + PREDICT, body=GOOD, headers=NPY).status == 200
    assert ran
    assert all(count % 2 == 0 for count in Counter(ran).values())


@pytest.mark.parametrize("size", [100_000, 8 * MIB])
def test_who_sends_all_before_it_listens_is_told_why_it_was_refused(
    replica: Replica, pool: urllib3.PoolManager, size: int, enter: Enter
) -> None:
    body = b"\0" * size
    with replica(waiting=1) as url:
        (inside,) = enter(1, url, 1000)
        busy = pool.request("POST", url + PREDICT, body=body, headers=NPY)
        wrong = pool.request("POST", f"{url}/v1/predict/graphene?want=x", body=body, headers=NPY)
        lost = pool.request("POST", f"{url}/nothing", body=body, headers=NPY)
        inside.close()
    assert [one.status for one in (busy, wrong, lost)] == [429, 422, 404]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(GOOD[:-100], "holds 10652 bytes of values", id="shorter than its own header"),
        pytest.param(GOOD + b"xx", "holds 10754 bytes of values", id="longer than its own header"),
    ],
)
def test_a_body_that_contradicts_its_header_is_a_bad_request(
    replica: Replica, pool: urllib3.PoolManager, body: bytes, told: str
) -> None:
    with replica() as url:
        answer = pool.request("POST", url + PREDICT, body=body, headers=NPY)
    assert answer.status == 400
    assert told in answer.json()["detail"]


def test_a_body_shorter_than_its_length_is_told_so(
    replica: Replica, quick: None, connect: Connect
) -> None:
    with replica() as url:
        sender = connect(url, len(GOOD) + 7)
        sender.send(GOOD)
        status, problem, _ = sender.answer()
    assert status == 408
    assert f"{len(GOOD)} of {len(GOOD) + 7} bytes arrived" in problem["detail"]
    assert "Content-Length" in problem["hint"]


def test_a_body_longer_than_its_length_is_cut_there(replica: Replica, connect: Connect) -> None:
    with replica() as url:
        sender = connect(url, len(GOOD) - 7, "Accept: application/json\r\n")
        sender.send(GOOD)
        response = http.client.HTTPResponse(sender.socket)
        response.begin()
    assert response.status == 400


class AsRay:
    """Receives a whole body at once, by Ray's own class, as Ray does around an application."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        own = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        task = own.fetch_until_disconnect_task()
        try:
            await self._app(scope, own, send)
        finally:
            task.cancel()


def test_a_body_stays_outside_while_its_token_is_looked_up(
    tiny_zoo: Any, serving: Serving, tmp_path: Path, connect: Connect
) -> None:
    database = open_database(f"sqlite:///{tmp_path}/manybeam.db")
    text, _ = Tokens(database).create("scan", ["predict"])
    is_slow = threading.Event()

    def tokens() -> Tokens:
        if is_slow.is_set():
            time.sleep(1.5)
        return Tokens(database)

    cache = TokenCache(tokens, tmp_path / "tokens.json")
    cache.start()
    limits = ReplicaLimits(is_local=False)
    app = api(Service(ZooVersions(tiny_zoo, ["graphene"])), limits, Meter(), str, cache)
    with serving(RayGuard(AsRay(app), is_replica=True)) as url:
        frame = npy(np.random.default_rng(0).random((700, 700), dtype=np.float32))
        known = connect(url, len(frame), f"Authorization: Bearer {text}\r\nAccept: {JSON}\r\n")
        known.send(frame)  # larger than what passes a closed gate
        assert known.answer()[0] == 200
        is_slow.set()
        before, most = psutil.Process().memory_info().rss, 0
        strangers = [connect(url, 40 * MIB, "Authorization: Bearer x\r\n") for _ in range(5)]
        threads = [threading.Thread(target=_fill, args=(one, 40)) for one in strangers]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            most = max(most, psutil.Process().memory_info().rss - before)
            time.sleep(0.02)
        # Whose token is looked up for too long is told that it cannot be checked now.
        assert {one.answer()[0] for one in strangers} <= {401, 503}
        for thread in threads:
            thread.join()
    cache.close()
    assert most < 40 * MIB  # of 200


def _fill(sender: Sender, side_mib: int) -> None:
    with suppress(OSError):  # cut
        for _ in range(side_mib):
            sender.send(b"\0" * MIB)


# -- the head of a request ------------------------------------------------------------------------
EVERYWHERE = ["/healthz", "/readyz", "/openapi.json", "/v1/ensembles", "/metrics", "/nothing"]


@pytest.fixture(scope="module")
def url(tiny_zoo: Any, serving: Serving) -> Iterator[str]:
    service = Service(ZooVersions(tiny_zoo, ["graphene"]))
    with serving(api(service, ReplicaLimits(), Meter(), str)) as address:
        yield address


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize("host", ["evil.org", "localhost.evil.org", "[::"])
def test_another_hosts_name_is_refused_on_every_path(
    url: str, pool: urllib3.PoolManager, path: str, host: str
) -> None:
    answer = pool.request("GET", url + path, headers={"Host": host})
    assert answer.status == 403
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "\xff\xfe", "a\tb"])
def test_a_bad_request_id_is_told_on_every_path(url: str, path: str, given: str) -> None:
    host, port = place_of(url) or ("", None)
    with socket.create_connection((host, port), timeout=10) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {given}\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 400
        assert json.loads(response.read())["type"] == "urn:manybeam:malformed-request"


CROSS = [
    pytest.param({"Origin": "https://evil.org"}, id="origin"),
    pytest.param({"Origin": "null"}, id="null origin"),
    pytest.param({"Origin": "http://127.0.0.1:1"}, id="another port"),
    pytest.param({"Sec-Fetch-Site": "cross-site"}, id="cross-site"),
    pytest.param({"Sec-Fetch-Site": "same-site"}, id="same-site"),
]


@pytest.mark.parametrize("headers", CROSS)
@pytest.mark.parametrize("media", ["", "text/plain", "application/x-npy"])
def test_a_page_of_another_site_cannot_ask(
    url: str, pool: urllib3.PoolManager, headers: dict[str, str], media: str
) -> None:
    named = {**headers, **({"Content-Type": media} if media else {})}
    answer = pool.request("POST", url + PREDICT, body=GOOD, headers=named)
    assert (answer.status, answer.json()["type"]) == (403, "urn:manybeam:not-allowed")


def test_a_refusal_without_a_body_keeps_the_connection(url: str) -> None:
    host, port = place_of(url) or ("", None)
    connection = http.client.HTTPConnection(host, port, timeout=10)
    for path in ("/v1/ensembles?all=1", "/nothing"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert (answer.status >= 400, answer.headers["connection"]) == (True, None)
    connection.close()


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "none"}, {"Origin": "own"}])
def test_a_program_without_a_content_type_is_answered(
    url: str, pool: urllib3.PoolManager, headers: dict[str, str]
) -> None:
    own = {name: url if value == "own" else value for name, value in headers.items()}
    assert pool.request("POST", url + PREDICT, body=GOOD, headers=own).status == 200

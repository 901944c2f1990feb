"""A stream over a WebSocket, against the other end of the protocol as the test scripts it.

Decision 0041 is the protocol. The double answers in the order of the frames and keeps what it saw.
"""

import io
import json
import logging
import socket
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from manybeam_client import Event, Session

WELCOME = {
    "type": "welcome",
    "version": "0.14.0",
    "session": 7,
    "in_flight": 16,
    "part_bytes": 1000,
    "beat_s": 5,
}


class Double:
    """The service's end of streams.

    Attributes:
        received: frame ids in the order of their arrival, over all connections.
        heads: what was said of them.
        bodies: of the frames, by id.
        connections: how many there were.
        cut_after: ends each connection without a word after so many answers.
        before_answer: is called before each answer; may send or close.
        refusals: HTTP statuses with which the next connections are refused.
        elsewhere: where refusals send to.
    """

    def __init__(self) -> None:
        self.received: list[str] = []
        self.heads: list[dict[str, Any]] = []
        self.bodies: dict[str, bytes] = {}
        self.connections, self.cut_after = 0, 0
        self.welcome = dict(WELCOME)
        self.before_answer: Callable[[ServerConnection, str], None] = lambda _, __: None
        self.status: Callable[[str], dict[str, Any]] = lambda _: {"status": 200}
        self.refusals: list[tuple[int, str]] = []
        self.upgrades: list[str] = []
        self.elsewhere = ""

    def refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        self.upgrades.append(request.path)
        if request.path == "/healthz":
            return connection.respond(200, '{"status": "ok", "version": "0.1.0"}')
        if not request.path.startswith("/v1/stream/"):
            return connection.respond(404, '{"type": "urn:manybeam:not-found", "detail": "no"}')
        if not self.refusals:
            return None
        status, kind = self.refusals.pop(0)
        said = {"type": f"urn:manybeam:{kind}", "detail": f"{kind} of the test"}
        response = connection.respond(status, json.dumps(said))
        if self.elsewhere:
            response.headers["Location"] = self.elsewhere
        return response

    def talk(self, connection: ServerConnection) -> None:
        self.connections += 1
        connection.send(json.dumps(self.welcome))
        with suppress(ConnectionClosed):
            for answered in range(10**6):
                if self.cut_after and answered == self.cut_after:
                    connection.socket.shutdown(socket.SHUT_RDWR)
                    return
                self._answer(connection, *self._frame(connection))

    def _frame(self, connection: ServerConnection) -> tuple[str, bytes]:
        head = json.loads(connection.recv())
        while head["type"] == "beat":
            head = json.loads(connection.recv())
        body = b""
        while len(body) < head["bytes"]:
            part = connection.recv()
            assert isinstance(part, bytes)
            assert len(part) <= self.welcome["part_bytes"]
            body += part
        self.heads.append(head)
        self.received.append(head["frame_id"])
        self.bodies[head["frame_id"]] = body
        return head["frame_id"], body

    def _answer(self, connection: ServerConnection, frame_id: str, body: bytes) -> None:
        self.before_answer(connection, frame_id)
        status = self.status(frame_id)
        data, media = npz(frame_id, body), "application/x-npz"
        if status["status"] != 200:
            said = {"type": "urn:manybeam:busy", "detail": "of the test"}
            data, media = json.dumps(said).encode(), "application/problem+json"
        head = {"type": "answer", "frame_id": frame_id, "content_type": media, "bytes": len(data)}
        connection.send(json.dumps({**head, **status}))
        for start in range(0, len(data), 700):
            connection.send(data[start : start + 700])


def npz(frame_id: str, body: bytes) -> bytes:
    stream = io.BytesIO()
    meta = json.dumps({"frame_id": frame_id, "bytes": len(body)}).encode()
    np.savez(stream, atoms=np.ones((2, 7)), meta=np.frombuffer(meta, np.uint8))
    return stream.getvalue()


@contextmanager
def served(double: Double, port: int = 0) -> Iterator[str]:
    made: Server = serve(
        double.talk, "127.0.0.1", port, process_request=double.refuse, close_timeout=0.1
    )
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.socket.getsockname()[1]}"
    finally:
        made.shutdown()
        thread.join()


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
def session(double: Double) -> Iterator[Session]:
    with served(double) as url:
        made = Session(url, instrument="STEM-1", pixel_size_pm=16, token="secret")
        yield made
        made.close()


def named(frame: Any, count: int) -> Iterator[Any]:
    for number in range(count):
        yield frame + number, {"frame_id": f"f{number}"}


def ids(count: int) -> list[str]:
    return [f"f{number}" for number in range(count)]


def streamed(session: Session, source: Any, **more: Any) -> list[Any]:
    return list(session.stream(source, policy="all", transport="websocket", **more))


def test_frames_go_in_parts_and_answers_come_in_order(
    session: Session, double: Double, frame: Any
) -> None:
    answers = streamed(session, named(frame, 20), in_flight=4)
    assert [one.meta["frame_id"] for one in answers] == ids(20) == double.received
    assert double.bodies["f3"] == (frame + 3).tobytes()
    head = double.heads[0]
    assert (head["dtype"], head["shape"], head["bytes"]) == ("<f4", [48, 56], frame.nbytes)
    assert head["query"]["pixel_size_pm"] == "16"
    assert (session.stats.sent, session.stats.answered) == (20, 20)
    assert double.connections == 1


@pytest.mark.parametrize("part_bytes", [1, 3, 125, 126, 127, 65_535, 65_536, 100_001])
def test_parts_of_any_length_arrive_as_they_were_sent(
    session: Session, double: Double, part_bytes: int
) -> None:
    double.welcome["part_bytes"] = part_bytes
    made = np.random.default_rng(0).random((1 + part_bytes // 200, 61), dtype=np.float32)
    assert all(streamed(session, [(made, {"frame_id": "f"})]))
    assert double.bodies["f"] == made.tobytes()


def test_a_hundred_cuts_lose_no_answer_and_give_none_twice(
    session: Session, double: Double, frame: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manybeam_client.stream.socket.jitter_s", lambda *_: 0.001)
    double.cut_after = 2
    answers = streamed(session, named(frame, 202), in_flight=3)
    assert [one.meta.get("frame_id") for one in answers] == ids(202)
    assert session.stats.reconnections >= 100
    assert set(Counter(double.received)) == set(ids(202))


def test_events_come_between_the_answers(session: Session, double: Double, frame: Any) -> None:
    said = {"type": "event", "kind": "switched", "frame_id": "f1", "why": "moved", "ref": "g@2"}

    def tell(connection: ServerConnection, frame_id: str) -> None:
        if frame_id == "f1":
            connection.send(json.dumps({"type": "beat"}))
            connection.send(json.dumps({"type": "of a newer service"}))
            connection.send(json.dumps(said))

    double.before_answer = tell
    events: list[Event] = []
    answers = streamed(session, named(frame, 3), on_event=events.append)
    assert all(answers)
    (event,) = events
    assert (event.kind, event.frame_id, event.why) == ("switched", "f1", "moved")
    assert event.facts["ref"] == "g@2"


def test_another_client_ends_the_stream_for_good(
    session: Session, double: Double, frame: Any
) -> None:
    def take_over(connection: ServerConnection, frame_id: str) -> None:
        if frame_id == "f2":
            connection.close(4409, "another client of STEM-1")

    double.before_answer = take_over
    answers = streamed(session, named(frame, 50))
    assert [bool(one) for one in answers] == [True, True, False]
    assert answers[-1].error.kind == "taken-over"
    assert "another client of STEM-1" in str(answers[-1].error)
    assert double.connections == 1


def test_a_service_that_starts_anew_is_found_again(
    session: Session, double: Double, frame: Any
) -> None:
    def restart(connection: ServerConnection, frame_id: str) -> None:
        if double.connections == 1:
            connection.close(1012, "the service starts anew")

    double.before_answer = restart
    assert all(streamed(session, named(frame, 5)))
    assert (double.connections, session.stats.reconnections) == (2, 1)


def test_events_do_not_overtake_answers_that_nobody_has_taken_yet(
    session: Session, double: Double, frame: Any, until: Callable[..., None]
) -> None:
    def tell(connection: ServerConnection, frame_id: str) -> None:
        if frame_id == "f3":
            connection.send('{"type": "event", "kind": "drifted", "frame_id": "f3"}')

    double.before_answer = tell
    seen: list[str] = []
    answers = session.stream(
        named(frame, 5),
        policy="all",
        transport="websocket",
        in_flight=5,
        on_event=lambda event: seen.append(event.kind),
    )
    for answer in answers:
        seen.append(answer.frame_id)
        until(lambda: session.stats.answered == 5)
    assert seen == ["f0", "f1", "f2", "drifted", "f3", "f4"]


def test_a_redirect_does_not_get_the_token(double: Double, frame: Any) -> None:
    other = Double()
    double.refusals = [(307, "moved")]
    with served(other) as elsewhere, served(double) as url:
        double.elsewhere = elsewhere.replace("http", "ws") + "/v1/stream/STEM-1"
        with Session(url, instrument="STEM-1", token="secret", deadline_ms=300) as session:
            (answer,) = session.stream([frame], policy="all", transport="websocket")
    assert not answer
    assert [path for path in double.upgrades if path.startswith("/v1/stream/")]
    assert other.upgrades == []


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_that_pass_do_not_end_the_websocket(
    session: Session,
    double: Double,
    frame: Any,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("manybeam_client.stream.socket.jitter_s", lambda *_: 0.001)
    monkeypatch.setattr("manybeam_client.stream.socket.GRACE_S", 0.2)
    monkeypatch.setattr("manybeam_client.stream.socket.MOST_HEALTHY", 1)
    double.refusals = [(status, "no-capacity")] * 150  # for longer than that
    assert all(streamed(session, named(frame, 3)))
    assert not [one.message for one in caplog.records if "uses HTTP" in one.message]


def test_a_websocket_is_tried_again_while_http_is_used(
    double: Double, frame: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manybeam_client.stream.socket.AGAIN_S", 0.05)
    double.refusals = [(426, "upgrade")] * 3
    with served(double) as url, Session(url, instrument="STEM-1", deadline_ms=1500) as session:

        def source() -> Iterator[Any]:
            yield frame
            until(lambda: double.connections)
            while not double.received:  # one more may go over HTTP
                yield frame

        assert any(streamed(session, source()))  # this double answers no POST


def test_a_stream_that_is_closed_while_it_connects_leaves_no_thread(
    frame: Any, monkeypatch: pytest.MonkeyPatch, no_threads_left: Callable[[], Any]
) -> None:
    monkeypatch.setattr("manybeam_client.stream.socket.CLOSING_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server, no_threads_left():
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        session = Session(url, instrument="STEM-1", deadline_ms=50)
        answers = session.stream([frame] * 9, policy="all", transport="websocket")
        assert not next(answers)
        answers.close()
        with server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 501 no\r\nContent-Length: 0\r\n\r\n")
            session.close()


def test_another_package_of_that_name_is_no_websocket(
    frame: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "websocket", types.ModuleType("websocket"))
    session = Session("http://127.0.0.1:9", instrument="STEM-1")
    with pytest.raises(ImportError, match="websocket-client"):
        session.stream([frame], transport="websocket")
    session.close()


def test_a_stream_taken_over_in_the_middle_of_an_answer_does_not_come_back(
    session: Session, double: Double, frame: Any
) -> None:
    def take_over(connection: ServerConnection, frame_id: str) -> None:
        if frame_id == "f1":
            connection.send('{"type": "answer", "frame_id": "f1", "status": 200, "bytes": 9}')
            problem = {"detail": "another client of STEM-1"}
            connection.send(json.dumps({"type": "closing", "code": 4409, "problem": problem}))
            connection.close(4409)

    double.before_answer = take_over
    answers = streamed(session, named(frame, 3))
    assert [bool(one) for one in answers][:2] == [True, False]
    assert answers[-1].error.kind == "taken-over"
    assert double.connections == 1


def test_a_connection_without_beats_is_dead(session: Session, double: Double, frame: Any) -> None:
    double.welcome["beat_s"] = 0.1
    may_end = threading.Event()

    def fall_silent(connection: ServerConnection, frame_id: str) -> None:
        if double.connections == 1:
            may_end.wait(30)

    double.before_answer = fall_silent
    answers = session.stream(named(frame, 3), policy="all", transport="websocket")
    assert next(answers).frame_id == "f0"
    assert double.connections == 2
    may_end.set()
    assert all(answers)


def test_a_network_that_swallows_a_stream_costs_few_deadlines(
    double: Double, frame: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manybeam_client.stream.socket.GRACE_S", 0.3)
    may_end = threading.Event()

    def fall_silent(connection: ServerConnection, frame_id: str) -> None:
        if double.connections == 1:
            may_end.wait(30)

    double.before_answer = fall_silent
    with served(double) as url:
        session = Session(url, instrument="STEM-1", deadline_ms=150)
        answers = session.stream([frame] * 10**6, policy="all", transport="websocket")
        before = [one.error.kind for one in takewhile(lambda one: not one, answers)]
        assert double.connections == 2
        assert set(before) == {"deadline"}
        assert len(before) < 20  # three beats would be a hundred
        may_end.set()
        answers.close()
        session.close()


def test_a_deadline_holds_in_a_stream_and_the_late_answer_is_counted(
    double: Double, frame: Any, until: Callable[..., None]
) -> None:
    may_answer = threading.Event()

    def wait(connection: ServerConnection, frame_id: str) -> None:
        if frame_id == "f0":
            may_answer.wait(30)

    double.before_answer = wait
    with served(double) as url, Session(url, instrument="STEM-1", deadline_ms=300) as session:

        def source() -> Iterator[Any]:
            yield from named(frame, 1)
            until(lambda: session.stats.late)

        answers = session.stream(source(), policy="all", transport="websocket")
        error = next(answers).error
        may_answer.set()
        assert list(answers) == []
    assert error is not None
    assert error.kind == "deadline"
    assert 200 <= int(double.heads[0]["query"]["deadline_ms"]) <= 300


@pytest.mark.parametrize(
    ("retry_after_s", "answered"),
    [
        pytest.param(0.01, ["f0", "f1", "f2", "f3"], id="soon"),
        pytest.param(None, ["f0", "f2", "f3"], id="never"),
    ],
)
def test_a_frame_that_found_no_place_is_sent_again_in_its_place_of_the_order(
    session: Session,
    double: Double,
    frame: Any,
    retry_after_s: float | None,
    answered: list[str],
) -> None:
    def full(frame_id: str) -> dict[str, Any]:
        is_full = frame_id == "f1" and double.received.count("f1") == 1
        return {"status": 429, "retry_after_s": retry_after_s} if is_full else {"status": 200}

    double.status = full
    answers = streamed(session, named(frame, 4))
    assert [one.frame_id for one in answers] == ids(4)
    assert [one.frame_id for one in answers if one] == answered


def test_a_revoked_token_is_told_for_each_frame_until_there_is_another(
    session: Session, double: Double, frame: Any
) -> None:
    double.refusals = [(401, "not-authenticated"), (403, "not-allowed")]
    kinds = []
    for answer in session.stream([frame] * 10**6, policy="all", transport="websocket"):
        kinds.append(answer.error and answer.error.kind)
        if answer:
            break
    assert set(kinds) == {"not-allowed", None}


def test_a_source_is_answered_offline_while_the_service_is_away(
    double: Double, frame: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "manybeam_client")
    with served(double) as url:
        session, pace = Session(url, instrument="STEM-1"), threading.Event()

        def camera() -> Iterator[Any]:
            while True:
                yield frame
                pace.wait(0.001)

        answers = session.stream(camera(), policy="latest", transport="websocket")
        assert next(answers)
    # The window lets at most two frames wait for the connection; then all are answered at once.
    lost = [one for one, _ in zip(answers, range(300), strict=False) if not one]
    assert {one.error.kind for one in lost} == {"offline"}
    assert session.stats.offline >= 290
    with served(double, int(url.rsplit(":", 1)[1])):
        back_s = time.monotonic()
        until(lambda: bool(next(answers)))
        assert time.monotonic() - back_s < 5
        answers.close()
        session.close()
    assert [one for one in caplog.records if "is back" in one.message]


@pytest.mark.parametrize("refusal", [(404, "no path"), (426, "upgrade"), (501, "none")])
def test_a_refused_upgrade_is_no_reason_to_lose_frames(
    double: Double, frame: Any, refusal: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    double.refusals = [refusal]
    # This double answers no POST, so each frame waits until its deadline.
    with served(double) as url, Session(url, instrument="STEM-1", deadline_ms=300) as session:
        answers = streamed(session, named(frame, 3))
    assert [one.frame_id for one in answers] == ids(3)
    assert [one.message for one in caplog.records if "uses HTTP" in one.message]

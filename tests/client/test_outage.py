"""A service that is away: frames do not wait for it, and it is found again soon."""

import http.server
import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manybeam_client import Session
from manybeam_client.errors import Problem
from manybeam_client.network.outage import FIRST_S, Outage

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


def test_while_the_network_is_cut_frames_return_at_once_and_the_gap_is_logged(
    wire: Any, frame: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "manybeam_client")
    with Session(wire.url, ensemble="graphene", pixel_size_pm=16) as session:
        assert session.predict(frame)
        wire.cut()
        kinds = {session.predict(frame).error.kind for _ in range(50)}
        assert "offline" in kinds <= {"offline", "connection"}
        assert session.stats.offline >= 49 - session.stats.retried
        mended_s = time.monotonic()
        wire.mend()
        until(lambda: not session.is_offline)
        assert time.monotonic() - mended_s < 5  # 2 s on a quiet machine
        assert session.predict(frame)
        assert session.stats.reconnections == 1
    (gap,) = [one for one in caplog.records if "is back" in one.message]
    assert gap.frames == 50
    assert gap.began < gap.ended


def test_a_network_that_swallows_frames_costs_few_deadlines(
    wire: Any, frame: Any, until: Callable[..., None]
) -> None:
    with Session(wire.url, ensemble="graphene", pixel_size_pm=16) as session:
        assert session.predict(frame)
        wire.is_silent = True
        assert session.predict(frame, deadline_ms=100).error.kind == "deadline"
        until(lambda: session.is_offline)  # the question of one frame is enough
        errors = [session.predict(frame, deadline_ms=100).error for _ in range(3)]
        assert [one.kind for one in errors] == ["offline"] * 3
        wire.is_silent = False
        until(lambda: not session.is_offline)
        assert session.predict(frame)


@contextmanager
def odd(post: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve a health that is good, and to each POST what a test says."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                if self.request.recv(65536).startswith(b"GET"):
                    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 16\r\n\r\n"
                    self.request.sendall(head + b'{"status": "ok"}')
                else:
                    post(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["connection", "deadline"])
def test_a_service_that_is_only_slow_or_resets_frames_is_not_away(
    frame: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    may_end = threading.Event()

    def post(_: socket.socket) -> None:
        if kind == "deadline":
            may_end.wait(30)

    with odd(post) as url, Session(url, deadline_ms=60) as session:
        errors = [session.predict(frame).error for _ in range(8)]
        may_end.set()
    assert {one.kind for one in errors if one} <= {kind, "deadline"}
    assert session.stats.offline == session.stats.reconnections == 0
    assert not caplog.records


def test_an_outage_that_comes_again_at_once_has_to_wait_and_is_not_announced(
    until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    backs: list[float] = []
    outage = Outage(lambda _: None, lambda: None, lambda: backs.append(time.monotonic()))
    cause = Problem("connection", "of the test", is_away=True)
    for count in range(3):
        until(lambda count=count: outage.begin(cause) or len(backs) > count)
    outage.close()
    assert [one.message.split(":")[0] for one in caplog.records] == [
        "the service went away",
        "the service is back",
    ]
    assert backs[2] - backs[1] > FIRST_S


def test_a_server_that_never_ends_its_reply_holds_no_threads(
    frame: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manybeam_client.network.bounded.LATE_S", 0.0)
    may_end = threading.Event()

    def trickle(way: socket.socket) -> None:
        way.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not may_end.wait(0.01):
            way.sendall(b"a")

    with odd(trickle) as url, Session(url) as session:
        kinds = [session.predict(frame, deadline_ms=50).error.kind for _ in range(40)]
        assert set(kinds) == {"deadline"}
        waiting = [one for one in threading.enumerate() if one.name == "manybeam-request"]
        assert len(waiting) < 10
        may_end.set()


def certificate() -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    built = x509.CertificateBuilder().issuer_name(name).subject_name(name)
    built = built.public_key(key.public_key()).serial_number(x509.random_serial_number())
    built = built.not_valid_before(now).not_valid_after(now + timedelta(days=2))
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_an_authority_that_has_gone_is_told(frame: Any, tmp_path: Path, transport: str) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificate())
    session = Session("HTTPS://127.0.0.1:9", instrument="STEM-1", ca=ca, deadline_ms=300)
    ca.unlink()
    answers = [session.predict(frame)]
    answers += session.stream([frame] * 2, policy="all", transport=transport)
    session.close()
    assert [bool(one) for one in answers] == [False] * 3


def test_a_connection_that_was_reset_is_made_anew_for_the_same_frame(wire: Any, frame: Any) -> None:
    with Session(wire.url, instrument="reset", pixel_size_pm=16) as session:
        for number in range(10):
            wire.reset()
            answer = session.predict(frame, frame_id=f"f{number}")
            assert answer.meta["session"]["frame_ids"] == [f"f{number}"]
        assert session.stats.answered == 10
        assert session.stats.offline == 0


@contextmanager
def scripted(replies: list[tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve these replies in turn, and the last one for ever; give the URL and the paths."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            status, headers, body = replies.pop(0) if len(replies) > 1 else replies[0]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def busy(after_s: int) -> tuple[int, dict[str, str], bytes]:
    said = {"type": "urn:manybeam:busy", "detail": "32 requests wait", "hint": "send it again"}
    return 429, {"Retry-After": str(after_s)}, json.dumps(said).encode()


@pytest.mark.parametrize(
    ("after_s", "deadline_ms", "sent"),
    [
        pytest.param(0, 20_000, 2, id="fits"),
        pytest.param(30, 20_000, 1, id="does-not-fit"),
    ],
)
def test_a_busy_service_is_asked_again_if_its_pause_fits(
    frame: Any, after_s: int, deadline_ms: int, sent: int
) -> None:
    with scripted([busy(after_s), (404, {}, b"")]) as (url, asked), Session(url) as session:
        answer = session.predict(frame, frame_id="f1", deadline_ms=deadline_ms)
    assert answer.error is not None
    assert len(asked) == sent == session.stats.retried + 1
    assert all("frame_id=f1" in path for path in asked)
    assert answer.error.kind == ("busy" if sent == 1 else "unreadable")


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        pytest.param((200, {}, b"<html>log in</html>"), "unreadable", "log in", id="portal"),
        pytest.param(
            (302, {"Location": "http://portal/"}, b""), "unreadable", "portal", id="moved"
        ),
        pytest.param((503, {}, b"<html>haproxy</html>"), "unavailable", "haproxy", id="proxy-503"),
        pytest.param((413, {}, b"too large"), "unreadable", "too large", id="other-413"),
        pytest.param(
            (200, {"Content-Type": "application/x-npz"}, b"PK\3\4"), "unreadable", "", id="cut-npz"
        ),
    ],
)
def test_what_is_no_manybeam_is_told_in_words(
    frame: Any, reply: tuple[int, dict[str, str], bytes], kind: str, words: str
) -> None:
    with scripted([reply]) as (url, _), Session(url) as session:
        error = session.predict(frame).error
    assert error is not None
    assert error.kind == kind
    assert words in str(error)


def test_an_older_and_a_newer_service_are_read(frame: Any) -> None:
    def npz(columns: int, meta: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        import io

        stream = io.BytesIO()
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        np.savez(stream, atoms=np.ones((3, columns)), meta=text, curvature=np.ones((2, 2)))
        return 200, {"Content-Type": "application/x-npz; v=2"}, stream.getvalue()

    replies = [npz(7, {}), npz(9, {"version": 4, "colour": "blue"})]
    with scripted(replies) as (url, _), Session(url) as session:
        older, newer = session.predict(frame), session.predict(frame)
    assert (older.version, older.drifted, older.spread_pm, older.why) == (None,) * 4
    assert (newer.version, newer.atoms.shape, newer.meta["colour"]) == (4, (3, 7), "blue")
    assert "curvature" in newer.maps


# -- the spool ------------------------------------------------------------------------------------
def test_frames_of_an_outage_are_answered_later_and_lie_beside_their_answers(
    wire: Any, frame: Any, tmp_path: Path, until: Callable[..., None]
) -> None:
    folder = tmp_path / "spool"
    wire.cut()
    with Session(wire.url, ensemble="graphene", pixel_size_pm=16, spool=folder) as session:
        errors = [session.predict(frame, frame_id=f"a:{n}/x").error for n in range(3)]
        assert all(one is not None and one.is_away for one in errors)
        assert (session.spooled, session.stats.spooled) == (3, 3)
    wire.mend()
    (folder / "20260101T000000000000-0123abcd.npy").write_bytes(b"\x93NUMPY")
    (folder / "half.npy.part").write_bytes(b"\x93NUMPY")
    (folder / "other.json").write_text("{}")
    # Another process takes them up.
    with Session(wire.url, ensemble="graphene", pixel_size_pm=16, spool=folder) as session:
        until(lambda: session.spooled == 0)
        live = session.predict(frame)
    found = sorted(folder.glob("*.npz"))
    assert len(found) == 3
    with np.load(found[0]) as answer:
        assert np.array_equal(answer["atoms"], live.atoms, equal_nan=True)
        assert json.loads(answer["meta"].tobytes())["frame_id"] == "a:0/x"
    kinds = sorted(path.suffix for path in folder.iterdir())
    assert kinds == [".json", ".npy", *[".npz"] * 3, ".part"]
    assert not {*':*?"<>|'} & {letter for path in folder.iterdir() for letter in path.name}


def test_a_gap_counts_a_frame_once_although_the_spool_tries_it_again(
    wire: Any,
    frame: Any,
    tmp_path: Path,
    until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Session(wire.url, ensemble="graphene", pixel_size_pm=16, spool=tmp_path) as session:
        assert session.predict(frame)
        wire.cut()
        session.predict(frame)
        until(lambda: session.is_offline)
        for _ in range(4):
            session.predict(frame)
        wire.mend()
        until(lambda: session.spooled == 0)
    assert [one.frames for one in caplog.records if "is back" in one.message] == [5]


def test_a_full_spool_keeps_the_oldest_frames(wire: Any, frame: Any, tmp_path: Path) -> None:
    wire.cut()
    limit_mb = 2.5 * frame.nbytes / 2**20
    with Session(wire.url, spool=tmp_path, spool_limit_mb=limit_mb) as session:
        for number in range(4):
            session.predict(frame, frame_id=str(number))
        kept = [
            json.loads(path.read_text())["frame_id"] for path in sorted(tmp_path.glob("*.json"))
        ]
        assert kept == ["0", "1"]
        assert (session.stats.spooled, session.stats.not_spooled) == (2, 2)


def test_a_spool_that_cannot_be_written_costs_no_answer(
    wire: Any, frame: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with Session(
        wire.url, ensemble="graphene", pixel_size_pm=16, spool=tmp_path / "file"
    ) as session:
        assert session.predict(frame)
        wire.cut()
        assert session.predict(frame).error is not None
        assert (session.stats.not_spooled, session.spooled) == (1, 0)


def test_a_frame_that_the_service_refuses_later_is_set_aside_with_the_reason(
    wire: Any, frame: Any, tmp_path: Path, until: Callable[..., None]
) -> None:
    wire.cut()
    with Session(wire.url, ensemble="graphite", pixel_size_pm=16, spool=tmp_path) as session:
        session.predict(frame)
        wire.mend()
        until(lambda: session.spooled == 0)
        (why,) = tmp_path.glob("*.error.txt")
        assert "graphite" in why.read_text()

"""The webhook: what is sent, how it is signed, and what happens if nobody takes it."""

import base64
import hashlib
import hmac
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from manybeam.db.database import Database
from manybeam.db.deployment import open_database
from manybeam.db.serving.alerts import Alert, Alerts
from manybeam.errors import InvalidSetting
from manybeam.serve.monitor import webhook as module
from manybeam.serve.monitor.webhook import Webhook, message, message_id, signed_headers
from manybeam.settings import Settings, settings, webhook_key

SECRET = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
CONTENT = {"instrument": "STEM-1", "since": "f7"}


class Receiver(ThreadingHTTPServer):
    """Keeps what comes, and answers with the statuses it is given, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses, self.got = list(statuses), queue.Queue[tuple[str, dict[str, str], bytes]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?team=tem"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.put((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        waiting = self.server.statuses
        self.send_response(waiting.pop(0) if len(waiting) > 1 else waiting[0])
        self.send_header("Location", self.server.url)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.got.put(("redirected", {}, b""))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    """Start receivers that answer with given statuses."""
    begun: list[tuple[Receiver, threading.Thread]] = []

    def begin(*statuses: int) -> Receiver:
        server = Receiver(*statuses)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        begun.append((server, thread))
        return server

    yield begin
    for server, thread in begun:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def alerts(tmp_path: Any) -> Alerts:
    return Alerts(open_database(f"sqlite:///{tmp_path}/manybeam.db"))


def add(alerts: Alerts) -> Alert:
    return alerts.add("drifted", text="it drifted", content=CONTENT, is_sent=True)


def verify(headers: dict[str, str], body: bytes) -> None:
    """Verify a message as a receiver does, after the specification."""
    key = base64.b64decode(SECRET.get_secret_value().partition("_")[2])
    signed = b".".join(
        [headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body]
    )
    made = hmac.new(key, signed, hashlib.sha256).digest()
    version, _, given = headers["webhook-signature"].partition(",")
    assert (version, base64.b64decode(given)) == ("v1", made)


def test_the_signature_is_that_of_the_example_of_the_specification() -> None:
    given = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    assert signed_headers(webhook_key(SECRET), *given) == {
        "webhook-id": given[0],
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_an_alert_is_sent_once_it_is_added_and_its_signature_verifies(
    alerts: Alerts, receiver: Callable[..., Receiver]
) -> None:
    taker = receiver(204)
    webhook = Webhook(lambda: alerts, taker.url, SECRET)
    webhook.start()
    made = add(alerts)
    webhook.wake()
    path, headers, body = taker.got.get(timeout=30)
    webhook.close()
    verify(headers, body)
    assert (path, headers["content-type"]) == ("/hook?team=tem", "application/json")
    assert headers["webhook-id"] == message_id(made)
    assert json.loads(body) == {
        "type": "manybeam.drifted", "timestamp": made.at.isoformat(), "data": CONTENT,
    }  # fmt: skip
    assert alerts.recent()[0].delivered is not None


def test_an_alert_that_is_not_taken_is_sent_again_under_the_same_id(
    alerts: Alerts, receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(Webhook, "_pause_s", lambda *_: 0.0)
    taker = receiver(500, 503, 200)
    add(alerts)
    assert Webhook(lambda: alerts, taker.url, SECRET).send_due() == 3
    sent = [taker.got.get(timeout=30) for _ in range(3)]
    assert len({(headers["webhook-id"], body) for _, headers, body in sent}) == 1
    (found,) = alerts.recent()
    assert (found.tries, found.delivered is not None) == (2, True)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        pytest.param(500, "the receiver answered 500 Internal Server Error", id="fault"),
        pytest.param(302, "the receiver answered 302 Found", id="redirect"),
        pytest.param(404, "the receiver answered 404 Not Found", id="wrong address"),
    ],
)
def test_an_answer_that_is_no_success_is_kept_as_the_reason(
    status: int, told: str, alerts: Alerts, receiver: Callable[..., Receiver]
) -> None:
    taker = receiver(status)
    made = add(alerts)
    assert Webhook(lambda: alerts, taker.url, SECRET).send_due() == 1
    assert taker.got.qsize() == 1  # a redirect is not followed
    (found,) = alerts.recent()
    assert (found.tries, found.last_error, found.delivered) == (1, told, None)
    assert found.next_try is not None
    assert 4 <= (found.next_try - made.at).total_seconds() <= 60


def test_a_receiver_that_is_gone_ends_the_sending(
    alerts: Alerts, receiver: Callable[..., Receiver]
) -> None:
    taker = receiver(410)
    add(alerts), add(alerts)
    webhook = Webhook(lambda: alerts, taker.url, SECRET)
    assert (webhook.send_due(), webhook.send_due(), taker.got.qsize()) == (1, 0, 1)
    second, first = alerts.recent()
    assert (first.next_try, first.last_error) == (None, "the receiver answered 410 Gone")
    assert second.next_try is not None


def test_nobody_at_the_address_is_a_failure_that_is_tried_again(
    alerts: Alerts, receiver: Callable[..., Receiver]
) -> None:
    taker = receiver(200)
    taker.shutdown()
    taker.server_close()
    add(alerts)
    Webhook(lambda: alerts, taker.url, SECRET).send_due()
    assert alerts.recent()[0].last_error.startswith("no answer: ")
    assert alerts.recent()[0].next_try is not None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_receiver_that_answers_byte_by_byte_is_cut_off(
    alerts: Alerts, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(module, "TRY_S", 0.3)
    # The head of a long record of TLS, or of an answer; then it goes on and on.
    head = b"\x16\x03\x03\x3f\xff\x02" if scheme == "https" else b"HTTP/1.1 200 OK\r\nX-Slow: "
    is_cut = threading.Event()

    def drip() -> None:
        taker, _ = listener.accept()
        with taker, suppress(OSError):
            taker.sendall(head)
            while not is_cut.wait(0.02):
                taker.sendall(b"\x00")
        is_cut.set()

    add(alerts)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        slow = threading.Thread(target=drip)
        slow.start()
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/"
        assert Webhook(lambda: alerts, url, SECRET).send_due() == 1
        slow.join(30)
    assert is_cut.is_set()
    assert alerts.recent()[0].last_error.startswith("no answer: ")


def test_an_unforeseen_fault_does_not_end_the_sending(
    alerts: Alerts, receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    faults, taker = [KeyError("an odd row")], receiver(200)

    def found() -> Alerts:
        if faults:
            raise faults.pop()
        return alerts

    add(alerts)
    webhook = Webhook(found, taker.url, SECRET)
    webhook.start()
    assert taker.got.get(timeout=30)[2]
    webhook.close()


def test_two_processes_send_each_alert_once(
    alerts: Alerts, receiver: Callable[..., Receiver]
) -> None:
    taker = receiver(200)
    ids = {message_id(add(alerts)) for _ in range(6)}
    both = [Webhook(lambda: alerts, taker.url, SECRET) for _ in range(2)]
    for one in both:
        one.start()
    sent = [taker.got.get(timeout=30)[1]["webhook-id"] for _ in range(6)]
    for one in both:
        one.close()
    assert (set(sent), taker.got.qsize()) == (ids, 0)


def test_while_the_database_is_away_the_sender_waits(
    alerts: Alerts,
    receiver: Callable[..., Receiver],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    until: Callable[..., None],
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    database: Database = alerts._database
    path, taker = database.path, receiver(200)
    assert path is not None
    add(alerts)
    away = path.rename(path.with_suffix(".away"))
    database.close()
    webhook = Webhook(lambda: alerts, taker.url, SECRET)
    webhook.start()
    until(lambda: "alerts cannot be read" in caplog.text)
    assert not path.exists()
    away.rename(path)
    assert taker.got.get(timeout=30)[2]
    webhook.close()


def test_pauses_grow_to_an_hour(alerts: Alerts) -> None:
    webhook = Webhook(lambda: alerts, "http://127.0.0.1:1/", SECRET, seed=1)
    wanted = [5, 15, 45, 135, 405, 1215, 3600, 3600]
    for tries, pause_s in [*enumerate(wanted), (10_000, 3600)]:
        assert 0.8 * pause_s <= webhook._pause_s(tries) <= 1.2 * pause_s


def test_the_kind_of_an_alert_is_the_type_of_its_message() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    body = message(Alert(1, at, "back in control", "", None, "", {}))
    assert json.loads(body)["type"] == "manybeam.back_in_control"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param({"url": "ftp://lab/x"}, "no url that begins with", id="scheme"),
        pytest.param({"url": "https:///x"}, "no host and port|no url", id="no host"),
        pytest.param({"url": "https://ada:pw@lab/x"}, "use webhook_secret", id="password"),
        pytest.param({"url": "https://lab/x"}, "messages are always signed", id="unsigned"),
        pytest.param({"secret": "hush-hush"}, "no base64 of 24 to 64 bytes", id="no base64"),
        pytest.param({"secret": "aHVzaA=="}, "no base64 of 24 to 64 bytes", id="short"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    given: dict[str, str], told: str, use_settings: Callable[[dict[str, str]], None]
) -> None:
    use_settings({f"MANYBEAM_WEBHOOK_{name.upper()}": text for name, text in given.items()})
    with pytest.raises(InvalidSetting, match=told) as caught:
        settings()
    assert not {"hush-hush", "aHVzaA", "pw@"} & set(str(caught.value).replace("'", " ").split())


def test_a_secret_may_come_without_its_prefix() -> None:
    bare = SecretStr(SECRET.get_secret_value().removeprefix("whsec_"))
    given = Settings(webhook_url="https://lab.example/x", webhook_secret=bare)
    assert webhook_key(given.webhook_secret) == webhook_key(SECRET)

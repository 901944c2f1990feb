"""`manybeam-check`: what is wrong between here and the service, with real TLS, proxies, tokens."""

import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manybeam.db.deployment import open_database
from manybeam.db.tokens import Tokens
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.access import TokenCache
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import ReplicaLimits, api
from manybeam_client import Session, check
from manybeam_client.checking import Report
from manybeam_client.network.place import find_place

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private authority's certificate, with those of a good, an old and a strange server."""
    folder = tmp_path_factory.mktemp("authority")
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    own = signed(issuer, issuer, key, key, 2, x509.BasicConstraints(ca=True, path_length=0))
    (folder / "authority.pem").write_bytes(own)
    for name, host, days in (("good", "localhost", 2), ("old", "localhost", -1), ("other", "x", 2)):
        its_key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        (folder / f"{name}.crt").write_bytes(signed(issuer, subject, key, its_key, days, names))
        plain = serialization.PrivateFormat.PKCS8
        private = its_key.private_bytes(PEM, plain, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(private)
    return folder / "authority.pem"


def signed(issuer: Any, subject: Any, key: Any, its_key: Any, days: int, more: Any) -> bytes:
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().issuer_name(issuer).subject_name(subject)
    built = built.public_key(its_key.public_key()).serial_number(x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(days=3))
    built = built.not_valid_after(now + timedelta(days=days))
    made = built.add_extension(more, critical=True).sign(key, hashes.SHA256())
    return made.public_bytes(PEM)


def pumped(near: socket.socket, far: socket.socket) -> None:
    """Pass bytes in both directions until one side ends."""

    def back() -> None:
        with suppress(OSError):  # one end was closed while bytes were under way
            while data := far.recv(65536):
                near.sendall(data)

    thread = threading.Thread(target=back, daemon=True)
    thread.start()
    with suppress(OSError):
        while data := near.recv(65536):
            far.sendall(data)
    with suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@contextmanager
def behind_tls(url: str, authority: Path, name: str) -> Iterator[str]:
    """Serve a server once more, with a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.parent / f"{name}.crt", authority.parent / f"{name}.key")
    host, port = url.removeprefix("http://").split(":")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(plain: socket.socket) -> None:
        try:
            near, far = context.wrap_socket(plain, server_side=True), (host, int(port))
            with near, socket.create_connection(far) as behind:
                pumped(near, behind)
        except (OSError, ssl.SSLError):  # the client did not accept the certificate
            plain.close()

    def accept() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"https://localhost:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@contextmanager
def forward_proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy of a facility; give its URL and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            host, port = self.path.split(":")
            with socket.create_connection((host, int(port))) as far:
                self.send_response(200)
                self.end_headers()
                pumped(self.connection, far)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def steps(report: Report) -> dict[str, str]:
    return {step.name: step.state for step in report.steps}


def last(report: Report) -> str:
    return str(report.steps[-1])


def test_a_good_way_is_told_step_by_step(url: str) -> None:
    report = check(url, instrument="STEM-of-check")
    names = ["client", "name", "tcp", "http", "version", "token", "session", "frame", "stream"]
    assert list(steps(report)) == names
    assert set(steps(report).values()) == {"ok", "note"}
    assert steps(report)["stream"] == "ok"
    assert (bool(report), report.exit_code) == (True, 0)


@pytest.mark.parametrize(
    ("url", "step", "words"),
    [
        pytest.param("manybeam.lab", "settings", "https://manybeam.lab", id="no-url"),
        pytest.param("http://nowhere.invalid", "name", "DNS", id="name"),
        pytest.param("http://127.0.0.1:9", "tcp", "firewall", id="port"),
    ],
)
def test_what_cannot_be_reached_ends_the_check_with_a_hint(url: str, step: str, words: str) -> None:
    report = check(url)
    assert (report.steps[-1].name, report.exit_code) == (step, 3)
    assert words in last(report)


@pytest.mark.parametrize(
    ("name", "is_known", "words"),
    [
        pytest.param("good", "", "ca='authority.pem'", id="unknown-authority"),
        pytest.param("old", "yes", "expired", id="expired"),
        pytest.param("other", "yes", "another name", id="other-name"),
    ],
)
def test_a_certificate_is_refused_with_what_helps(
    url: str, authority: Path, name: str, is_known: str, words: str, frame: Any
) -> None:
    ca = authority if is_known else None
    with behind_tls(url, authority, name) as https:
        report = check(https, ca=ca)
        with Session(https, ca=ca) as session:
            error = session.predict(frame).error
    assert (report.steps[-1].name, report.exit_code) == ("tls", 3)
    assert words in last(report)
    assert error is not None
    assert (error.kind, words in error.hint) == ("tls", True)


def test_a_private_authority_and_a_proxy_are_on_the_way(
    url: str, authority: Path, frame: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind_tls(url, authority, "good") as https, forward_proxy() as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("MANYBEAM_CA", str(authority))
        monkeypatch.setenv("MANYBEAM_URL", https)
        report = check()
        assert report, str(report)
        assert steps(report)["proxy"] == steps(report)["stream"] == "ok"
        with Session(instrument="by-proxy", pixel_size_pm=16) as session:
            assert session.predict(frame)
            assert all(session.stream([frame] * 3, policy="all", transport="websocket"))
        assert set(asked) == {https.removeprefix("https://")}
        count = len(asked)
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert "proxy" not in steps(check())
        assert len(asked) == count


def test_a_proxy_that_is_away_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    report = check(url)
    assert (report.steps[-1].name, report.exit_code) == ("proxy", 3)
    assert "NO_PROXY" in last(report)


def test_a_page_of_something_else_is_no_service() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        report = check(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()
    assert (report.steps[-1].name, report.exit_code) == ("http", 3)
    assert "please log in" in last(report)


@pytest.fixture
def guarded(
    tiny_zoo: Any,
    tmp_path: Path,
    serving: Callable[[Any], AbstractContextManager[str]],
    use_settings: Callable[[dict[str, str]], None],
) -> Iterator[tuple[str, Tokens]]:
    """The real service, which wants tokens."""
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    tokens = Tokens(open_database())
    cache = TokenCache(lambda: Tokens(open_database()), tmp_path / "tokens.json")
    cache.start()
    service = Service(ZooVersions(tiny_zoo, ["graphene"]))
    with serving(api(service, ReplicaLimits(), Meter(), lambda: "", cache)) as url:
        yield url, tokens
    cache.close()


def test_a_token_opens_the_service_and_its_absence_is_told(
    guarded: tuple[str, Tokens], frame: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, tokens = guarded
    report = check(url)
    assert (report.steps[-1].name, report.exit_code) == ("token", 5)
    assert "manybeam instrument token" in last(report)
    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        error = session.predict(frame).error
        assert error is not None
        assert (error.kind, error.status, session.is_offline) == ("not-allowed", 401, False)
    monkeypatch.setenv("MANYBEAM_TOKEN", tokens.create("scan", ["predict"])[0])
    assert check(url)
    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        assert session.predict(frame)


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform" / "client")}
    argv = [sys.executable, "-m", "manybeam_client", *words]
    return subprocess.run(argv, env=known, capture_output=True, text=True, check=False)


def test_the_command_prints_the_steps_and_ends_with_a_code(url: str) -> None:
    good, bad = command("check", url), command("check", "http://127.0.0.1:9")
    assert (good.returncode, bad.returncode) == (0, 3)
    assert good.stdout.rstrip().endswith("frames can be sent")
    assert "fail tcp" in bad.stdout
    assert (good.stderr, bad.stderr) == ("", "")
    assert (command().returncode, command("look").returncode) == (2, 2)


@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param("http://me:secret@proxy.lab:port", id="odd-port"),
        pytest.param("socks5h://me:secret@proxy.lab:1080", id="socks"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    report = check("http://manybeam.lab")
    assert (report.steps[-1].name, report.exit_code) == ("settings", 3)
    with pytest.raises(ValueError, match=r"^proxy: '?.*proxy\.lab") as error:
        Session("http://manybeam.lab")
    assert "secret" not in last(report) + str(error.value)


def test_an_exception_of_the_proxy_may_name_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.lab:8080")
    monkeypatch.setenv("NO_PROXY", "lab:8443")
    assert find_place("http://lab:8443").proxy == ""
    assert find_place("http://lab:8444").proxy == "http://proxy.lab:8080"


def test_a_label_that_no_name_has_is_a_step() -> None:
    report = check(f"http://{'a' * 70}.lab")
    assert (report.steps[-1].name, report.exit_code) == ("name", 3)


def test_what_nobody_thought_of_is_a_step_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: 1 / 0)
    report = check("http://manybeam.lab")
    assert (report.steps[-1].name, report.exit_code) == ("name", 3)
    assert "ZeroDivisionError" in last(report)


def test_secrets_are_shown_nowhere() -> None:
    assert "secret" not in repr(find_place("http://manybeam.lab", "secret"))
    with pytest.raises(ValueError, match="with a password") as error:
        find_place("http://me:secret@manybeam.lab")
    assert "secret" not in str(error.value)

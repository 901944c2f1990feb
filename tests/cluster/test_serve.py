"""The service on real Ray Serve through real HTTP: started, asked, scraped, refused, stopped."""

import http.client
import io
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import urllib3
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from manybeam.addresses import place_of
from manybeam.errors import Conflict
from manybeam.serve.app import run_service, service_state, stop_service
from manybeam.serve.metrics import series_names
from manybeam.settings import settings

Ports = Callable[[], int]

pytestmark = [
    pytest.mark.usefixtures("served_home"),
    pytest.mark.cluster,
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
NPY = {"Content-Type": "application/x-npy"}
ROOT = Path(__file__).parents[2]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module", params=[True, False], ids=["haproxy", "python-proxy on ipv6"])
def url(request: pytest.FixtureRequest, cluster: str, free_port: Ports) -> Iterator[str]:
    """The service, once behind HAProxy, and once behind Ray's own proxy and on IPv6."""
    host = "127.0.0.1" if request.param else "::1"
    state = run_service(["graphene"], host=host, port=free_port())
    assert (_listening(state.url) == "haproxy") == (request.param and sys.platform == "linux")
    folders = settings().home / "haproxy.json"  # tests between here and there change the settings
    yield state.url
    assert stop_service()
    assert not folders.exists() or json.loads(folders.read_text()) == {}


def _listening(url: str) -> str:
    """Return the name of the program that listens at a URL."""
    port = int(url.rpartition(":")[2])
    pids = [one.pid for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port]  # fmt: skip
    return psutil.Process(pids[0]).name()


@pytest.fixture(scope="module")
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=60.0) as made:
        yield made


def test_a_replica_does_not_give_way_to_other_processes(url: str) -> None:
    below = psutil.Process().children(recursive=True)
    replicas = [one for one in below if one.name().startswith("ray::ServeRepli")]
    assert {one.nice() for one in replicas if one.status() != psutil.STATUS_ZOMBIE} == {0}


def test_the_services_answer_equals_the_in_process_answer(
    url: str, pool: urllib3.PoolManager, tiny_zoo: Any
) -> None:
    query = "pixel_size_pm=16&want=atoms,mean,std,members"
    target = f"{url}/v1/predict/graphene?{query}"
    answer = pool.request("POST", target, body=npy(FRAME), headers=NPY)
    own = tiny_zoo.ensemble("graphene").predict(FRAME, 16.0)
    with np.load(io.BytesIO(answer.data), allow_pickle=False) as arrays:
        assert len(own.atoms) > 0
        assert np.array_equal(arrays["atoms"], own.atoms, equal_nan=True)
        assert np.array_equal(arrays["mean"], own.mean_yx.astype(np.float16))
        assert np.array_equal(arrays["std"], own.std_yx.astype(np.float16))
        assert len(arrays["members"]) == sum(map(len, own.member_atoms))


def test_selection_and_auto_answer(url: str, pool: urllib3.PoolManager) -> None:
    body, headers = npy(FRAME), {**NPY, "Accept": "application/json"}
    ranked = pool.request("POST", f"{url}/v1/select?pixel_size_pm=16", body=body, headers=headers)
    auto = pool.request(
        "POST", f"{url}/v1/predict/auto?pixel_size_pm=16", body=body, headers=headers
    )
    assert ranked.json()["candidates"][0]["ref"].startswith("graphene@2/")
    assert auto.json()["meta"]["members"] == ranked.json()["chosen"]


def test_a_stream_answers_as_requests_do_and_says_that_it_is_there(
    url: str, pool: urllib3.PoolManager
) -> None:
    session = f"{url}/v1/instruments/STEM-7/session"
    settings = {"policy": "pinned", "ref": "graphene", "pixel_size_pm": 16}
    assert pool.request("PUT", session, body=json.dumps(settings)).status == 200
    alone = pool.request(
        "POST", f"{url}/v1/predict/auto?instrument=STEM-7", body=npy(FRAME), headers=NPY
    )
    body = npy(FRAME)
    head = {"type": "frame", "frame_id": "a", "content_type": NPY["Content-Type"]}
    with connect(f"ws{url.removeprefix('http')}/v1/stream/STEM-7") as stream:
        assert json.loads(stream.recv(30))["type"] == "welcome"
        assert not (stream.protocol.extensions and _listening(url) == "haproxy")  # no compression
        stream.send(json.dumps({**head, "bytes": len(body)}))
        stream.send(body)
        told = json.loads(stream.recv(30))
        assert told["status"] == 200
        with np.load(io.BytesIO(stream.recv(30))) as one, np.load(io.BytesIO(alone.data)) as two:
            assert one["atoms"].tobytes() == two["atoms"].tobytes()
        assert json.loads(stream.recv(30)) == {"type": "beat"}
        assert pool.request("DELETE", session).status == 200
        assert json.loads(stream.recv(30))["code"] == 4404


def test_a_stream_without_a_session_gets_a_problem(url: str) -> None:
    address = f"ws{url.removeprefix('http')}/v1/stream/STEM-8"
    with pytest.raises(InvalidStatus) as refused, connect(address):
        pass
    answer = refused.value.response
    assert answer.status_code == 404
    assert "has no session" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        pytest.param("POST", "/v1/predict/graphene", b"", 400, id="empty"),
        pytest.param("POST", "/v1/predict/graphene", npy(FRAME)[:-1], 400, id="cut"),
        pytest.param("POST", "/v1/predict/graphene", npy(FRAME[0]), 422, id="1-D"),
        pytest.param("POST", "/v1/predict/grafene", npy(FRAME), 404, id="ref"),
        pytest.param("POST", "/v1/predict/graphene?want=x", npy(FRAME), 422, id="want"),
        pytest.param("GET", "/v1/predict/graphene", None, 405, id="method"),
        pytest.param("GET", "/nothing/here", None, 404, id="route"),
    ],
)
def test_a_bad_request_gets_a_problem_with_the_id_of_the_request(
    url: str, pool: urllib3.PoolManager, method: str, path: str, body: bytes | None, status: int
) -> None:
    answer = pool.request(method, url + path, body=body, headers=NPY if body is not None else {})
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_a_body_too_large_is_refused_by_its_header(url: str) -> None:
    host, port = place_of(url) or ("", None)
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.putrequest("POST", "/v1/predict/graphene")
    connection.putheader("Content-Type", "application/x-npy")
    connection.putheader("Content-Length", str(10**11))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["type"]) == (413, "urn:manybeam:too-large")
    connection.close()


def test_a_hundred_bad_requests_leave_the_replica_alive(
    url: str, pool: urllib3.PoolManager
) -> None:
    random = np.random.default_rng(3)
    for _ in range(100):
        junk = npy(FRAME)[: random.integers(200)] + random.bytes(random.integers(200))
        assert (
            pool.request("POST", f"{url}/v1/predict/graphene", body=junk, headers=NPY).status == 400
        )
    before = service_state()
    answer = pool.request("POST", f"{url}/v1/predict/graphene", body=npy(FRAME), headers=NPY)
    assert answer.status == 200
    assert before is not None
    assert (before.status, before.replicas) == ("RUNNING", 1)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/ensembles"])
def test_a_balancer_that_asks_for_the_head_is_answered(
    url: str, pool: urllib3.PoolManager, path: str
) -> None:
    answer = pool.request("HEAD", url + path, headers={"Host": "LOCALHOST."})
    assert (answer.status, answer.data) == (200, b"")


def test_only_this_machine_is_answered(url: str, pool: urllib3.PoolManager) -> None:
    refused = pool.request("GET", f"{url}/v1/ensembles", headers={"Host": "lab.example.org"})
    assert refused.status == 403
    outer = socket.gethostbyname(socket.gethostname())
    if not outer.startswith("127."):
        with pytest.raises(ConnectionError):
            socket.create_connection((outer, int(url.rpartition(":")[2])), timeout=5).close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"X-Request-Id: \xff\xfe", 400, id="id of bytes"),
        pytest.param(b"X-Request-Id: a b", 400, id="id of words"),
        pytest.param(b"X-Request-Id: scan-7", 200, id="good id"),
        pytest.param(b"X-Session-Id: \xff", 200, id="session of Ray"),
        pytest.param(b"Serve_Multiplexed_Model_Id: \xff", 200, id="model of Ray"),
        pytest.param(b"X-Request-Timeout-Seconds: 0.000001", 200, id="time of Ray"),
    ],
)
@pytest.mark.parametrize("path", ["/readyz", "/openapi.json", "/v1/ensembles"])
def test_no_header_of_a_caller_makes_ray_fail(
    url: str, path: str, head: bytes, status: int
) -> None:
    host, port = place_of(url) or ("", None)
    with socket.create_connection((host, port), timeout=30) as connection:
        connection.sendall(
            b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n" % (path.encode(), head)
        )
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == status
        assert len(response.headers.get_all("x-request-id", [])) == 1


def test_prometheus_finds_what_was_counted(url: str, pool: urllib3.PoolManager) -> None:
    pool.request("POST", f"{url}/v1/predict/graphene", body=npy(FRAME), headers=NPY)
    deadline = time.monotonic() + 40  # Ray's processes report every ten seconds
    page = ""
    while time.monotonic() < deadline and "manybeam_frames_total{" not in page:
        time.sleep(0.5)
        page = pool.request("GET", f"{url}/metrics").data.decode()
    found = {line.partition("{")[0] for line in page.splitlines() if not line.startswith("#")}
    assert "manybeam_frames_total" in found
    assert found <= series_names()


def test_the_running_service_takes_further_ensembles(url: str, pool: urllib3.PoolManager) -> None:
    host, port = place_of(url) or ("", None)
    state = run_service(["graphene", "graphene@1"], host=host, port=port or 0)
    assert state.url == url
    listed = pool.request("GET", f"{url}/v1/ensembles").json()["ensembles"]
    assert {"graphene@1", "graphene@2"} <= {row["ref"] for row in listed}


def test_a_second_service_elsewhere_is_refused(url: str, free_port: Ports) -> None:
    with pytest.raises(Conflict, match="runs at"):
        run_service([], port=free_port())

"""The URLs of the service through real HTTP, in this process: answers, problems, limits."""

import http.client
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import urllib3

from manybeam.errors import MemberDiverged
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.openapi import ALWAYS, ERROR, OF_FRAMES, PROBLEM
from manybeam.serve.predict import Service
from manybeam.serve.query import PREDICT_NAMES, WANTS
from manybeam.serve.routes import PATHS, api

# Ray Serve declares its own models the way pydantic wants to forget; only importing it warns.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
NPY = {"Content-Type": "application/x-npy"}


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


Running = Callable[[Service, ReplicaLimits], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def running(serving: Callable[[Any], AbstractContextManager[str]]) -> Running:
    """Serve one replica's application until a block ends."""

    def serve(service: Service, limits: ReplicaLimits) -> AbstractContextManager[str]:
        return serving(api(service, limits, Meter(), lambda: "manybeam_frames_total 1.0\n"))

    return serve


@pytest.fixture(scope="module")
def url(tiny_zoo: Any, running: Running) -> Iterator[str]:
    limits = ReplicaLimits(max_frame_px=100_000)
    with running(Service(ZooVersions(tiny_zoo, ["graphene"])), limits) as address:
        yield address


@pytest.fixture(scope="module")
def ask(url: str) -> Iterator[Callable[..., Any]]:
    with urllib3.PoolManager(retries=False) as pool:

        def request(method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return pool.request(method, url + path, body=body, headers={**NPY, **named})

        yield request


def test_the_answer_over_http_is_the_ensembles_own(ask: Callable[..., Any], tiny_zoo: Any) -> None:
    answer = ask("POST", "/v1/predict/graphene?pixel_size_pm=16&want=atoms,mean", npy(FRAME))
    own = tiny_zoo.ensemble("graphene").predict(FRAME, 16.0)
    assert answer.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(answer.data), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["atoms"], own.atoms, equal_nan=True)
        assert np.array_equal(arrays["mean"], own.mean_yx.astype(np.float16))
        meta = json.loads(arrays["meta"].tobytes())
    assert meta["ref"] == "graphene@2"
    assert set(meta["timings_ms"]) == {"wait", "read", "load", "predict", "select"}


def test_raw_bytes_with_their_shape_mean_the_same_as_npy(ask: Callable[..., Any]) -> None:
    path = "/v1/predict/graphene?pixel_size_pm=16"
    as_npy = ask("POST", path, npy(FRAME), Accept="application/json").json()
    raw = {"Content_Type": "application/octet-stream", "X_Dtype": ">f4", "X_Shape": "48,56"}
    body = FRAME.astype(">f4").tobytes()
    as_raw = ask("POST", path, body, Accept="application/json", **raw).json()
    assert as_raw["atoms"] == as_npy["atoms"]
    assert len(as_npy["atoms"]) > 0


@pytest.mark.parametrize("ref", ["graphene@2", "graphene@2/01", "auto"])
def test_a_reference_of_any_form_fits_into_the_path(ask: Callable[..., Any], ref: str) -> None:
    assert ask("POST", f"/v1/predict/{ref}", npy(FRAME)).status == 200


def test_selection_answers_in_json(ask: Callable[..., Any]) -> None:
    ranked = ask("POST", "/v1/select?pixel_size_pm=16&ensemble=graphene@1", npy(FRAME)).json()
    assert ranked["verdict"] in ("ok", "out-of-distribution", "unknown")
    assert {row["ref"] for row in ranked["candidates"]} == {"graphene@1/00", "graphene@1/01"}


def test_health_readiness_ensembles_and_metrics_answer(ask: Callable[..., Any]) -> None:
    assert ask("GET", "/healthz").json()["status"] == "ok"
    assert ask("GET", "/readyz").json()["ensembles"] == ["graphene"]
    assert "graphene@2" in [row["ref"] for row in ask("GET", "/v1/ensembles").json()["ensembles"]]
    assert ask("GET", "/metrics").data == b"manybeam_frames_total 1.0\n"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/ensembles", "/metrics"])
def test_what_answers_get_answers_head(ask: Callable[..., Any], path: str) -> None:
    answer, whole = ask("HEAD", path), ask("GET", path)
    assert (answer.status, answer.data) == (200, b"")
    assert answer.headers["content-type"] == whole.headers["content-type"]


def test_head_of_what_takes_frames_is_refused(ask: Callable[..., Any]) -> None:
    assert ask("HEAD", "/v1/select").status == 405


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("Host", "LOCALHOST:8100", id="host"),
        pytest.param("Host", "localhost.", id="host with a dot"),
        pytest.param("Host", "[::1]:8100", id="ipv6"),
        pytest.param("Content_Encoding", "Identity", id="coding"),
        pytest.param("Content_Encoding", " identity , IDENTITY", id="codings"),
        pytest.param("Content_Type", "Application/X-NPY; Charset=UTF-8", id="type"),
        pytest.param("Accept", "Application/JSON", id="accept"),
    ],
)
def test_names_that_http_spells_in_any_case_are_read_so(
    ask: Callable[..., Any], name: str, value: str
) -> None:
    assert ask("POST", PREDICT, npy(FRAME), **{name: value}).status == 200


@pytest.mark.parametrize(
    "host", ["lab.example.org", "localhost.lab", "[::1", "me@localhost", "localhost/x", "a b"]
)
def test_another_host_name_is_refused(ask: Callable[..., Any], host: str) -> None:
    assert ask("GET", "/v1/ensembles", Host=host).status == 403


@pytest.mark.parametrize("length", [101, 300, 5000, 50_000])
@pytest.mark.parametrize("form", ["{}", "graphene@{}", "graphene@2/{}", "%FF{}", "{}/{}"])
def test_a_reference_of_any_length_is_answered(
    ask: Callable[..., Any], form: str, length: int
) -> None:
    answer = ask("POST", f"/v1/predict/{form.format('r' * length, '9' * 99)}", npy(FRAME))
    assert answer.status == 404
    assert len(answer.data) < 1000


GOOD, PREDICT = npy(FRAME), "/v1/predict/graphene"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "told"),
    [
        pytest.param("POST", PREDICT, b"", {}, 400, "empty", id="empty"),
        pytest.param("POST", PREDICT, GOOD[:-9], {}, 400, "cut short", id="cut"),
        pytest.param(
            "POST", PREDICT, npy(np.full((9, 9), np.nan)), {}, 400, "finite", id="nan"
        ),
        pytest.param("POST", PREDICT, npy(FRAME[0]), {}, 422, "ax|dim", id="1-D"),
        pytest.param("POST", PREDICT, npy(FRAME * 1j), {}, 422, "type", id="complex"),
        pytest.param(
            "POST", PREDICT, npy(np.ones((9, 9))), {}, 422, "contrast", id="flat"
        ),
        pytest.param(
            "POST", PREDICT, b"{}", {"Content_Type": "text/plain"}, 415, "x-npy",
            id="media",
        ),
        pytest.param("POST", "/v1/predict/grafene", GOOD, {}, 404, "grafene", id="ref"),
        pytest.param("POST", "/v1/predict/", GOOD, {}, 404, "", id="no-ref"),
        pytest.param("POST", "/v1/predict/a%00%2F..%2Fb", GOOD, {}, 404, "reference", id="odd-ref"),
        pytest.param("POST", "/v1/predict/graphene?want=x", GOOD, {}, 422, "want", id="want"),
        pytest.param(
            "POST", "/v1/predict/graphene?false_atoms=.05", GOOD, {}, 422, "manybeam calibrate",
            id="bound-unrehearsed",
        ),
        pytest.param(
            "POST", "/v1/predict/auto?false_atoms=.05", GOOD, {}, 422, "manybeam calibrate",
            id="bound-auto",
        ),
        pytest.param(
            "POST", "/v1/predict/graphene?false_atoms=1", GOOD, {}, 422, "share", id="bound-of-one"
        ),
        pytest.param(
            "POST", "/v1/predict/graphene?false_atoms=0", GOOD, {}, 422, "share", id="bound-of-0"
        ),
        pytest.param(
            "POST", "/v1/predict/graphene?false_atoms=few", GOOD, {}, 422, "number", id="bound-text"
        ),
        pytest.param(
            "POST", "/v1/select", npy(FRAME[:40]), {}, 422, "too small to select", id="small-select"
        ),
        pytest.param(
            "POST", "/v1/predict/graphene?want=mean", GOOD, {"Accept": "application/json"}, 422,
            "JSON", id="map-as-json",
        ),
        pytest.param("POST", "/v1/select?want=mean", GOOD, {}, 422, "want", id="select-want"),
        pytest.param("GET", "/v1/ensembles?all=1", None, {}, 422, "all", id="ensembles-query"),
        pytest.param("GET", "/v1/predict/graphene", None, {}, 405, "GET", id="method"),
        pytest.param("POST", "/healthz", GOOD, {}, 405, "POST", id="method-of-health"),
        pytest.param("GET", "/v3/predict", None, {}, 404, "/v1/predict/{REF}", id="route"),
        pytest.param("GET", "/", None, {}, 404, "there are", id="root"),
        pytest.param("GET", "/v1/ensembles", None, {"Host": "evil.org"}, 403, "evil", id="host"),
        pytest.param("GET", "/v1/ensembles", None, {"Host": "[::"}, 403, "machine", id="odd-host"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_a_problem_that_says_what_and_why(
    ask: Callable[..., Any],
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    told: str,
) -> None:
    answer = ask(method, path, body, **headers)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "hint", "request_id"}
    assert problem["status"] == status
    assert any(word in problem["detail"] + problem["hint"] for word in told.split("|"))
    assert answer.headers["x-request-id"] == problem["request_id"]


def test_a_bad_request_leaves_the_service_as_good_as_before(ask: Callable[..., Any]) -> None:
    before = ask("POST", PREDICT, GOOD, Accept="application/json").json()["atoms"]
    for junk in (b"", b"\x93NUMPY", GOOD[:100], GOOD + GOOD, b"\xff" * 1000):
        assert ask("POST", PREDICT, junk).status == 400
    after = ask("POST", PREDICT, GOOD, Accept="application/json").json()["atoms"]
    assert after == before


def test_the_callers_request_id_is_used(ask: Callable[..., Any]) -> None:
    answer = ask("POST", "/v1/predict/nothing", GOOD, X_Request_Id="scan-7")
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "scan-7"


def test_a_body_too_large_is_refused_by_its_header_before_it_is_sent(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/predict/graphene")
    connection.putheader("Content-Type", "application/x-npy")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["type"] == "urn:manybeam:too-large"
    connection.close()


def test_a_body_that_does_not_say_its_length_is_counted(ask: Callable[..., Any]) -> None:
    chunks = iter([b"\0" * 100_000] * 20)
    answer = ask("POST", PREDICT, chunks)
    assert answer.status == 413


def test_an_answer_that_comes_too_late_is_a_problem(ask: Callable[..., Any]) -> None:
    big = npy(np.random.default_rng(1).random((300, 300), dtype=np.float32))
    answer = ask("POST", "/v1/predict/graphene?deadline_ms=1", big)
    assert answer.status == 504
    assert "deadline" in answer.json()["detail"]


def test_openapi_describes_every_parameter_and_form(ask: Callable[..., Any]) -> None:
    told = ask("GET", "/openapi.json").json()["paths"]["/v1/predict/{ref}"]["post"]
    named = {one["name"]: one for one in told["parameters"]}
    assert set(named) == {"ref", *PREDICT_NAMES, "X-Dtype", "X-Shape", "X-Request-Id"}
    assert all(one.get("description") for one in named.values())
    assert named["want"]["schema"]["items"]["enum"] == list(WANTS)
    arrays = {"application/x-npy", "application/octet-stream"}
    assert set(told["requestBody"]["content"]) == {*arrays, "image/tiff", "image/png", "image/jpeg"}
    assert {"application/x-npz", "application/json"} <= set(told["responses"]["200"]["content"])


def test_openapi_describes_every_path_status_and_problem(ask: Callable[..., Any]) -> None:
    paths = ask("GET", "/openapi.json").json()["paths"]
    told = {
        f"{verb.upper()} {path}".replace("{ref}", "{REF}")
        .replace("{instrument}", "{ID}")
        .replace("{model}", "{MODEL}")
        .replace("{version}", "{VERSION}")
        for path in paths
        for verb in paths[path]
    }
    assert told == set(PATHS)
    for path, verbs in paths.items():
        for verb in verbs.values():
            problems = {status: one for status, one in verb["responses"].items() if status != "200"}
            assert {str(status) for status in ALWAYS} <= set(problems)
            for one in problems.values():
                (schema,) = (form["schema"] for form in one["content"].values())
                form = ERROR if path.startswith("/v2") else PROBLEM
                assert schema["required"] == form["required"]
            assert verb["responses"]["200"]["content"]
            if path.startswith(("/v1/predict", "/v1/select")):
                assert set(problems) == {str(status) for status in OF_FRAMES}


class Faulty:
    """A zoo with an error of ours for two references."""

    def __init__(self, zoo: Any) -> None:
        self.zoo, self.matrix, self.ls, self.ensemble = zoo, zoo.matrix, zoo.ls, zoo.ensemble
        self.attached = zoo.attached

    def resolve(self, ref: str) -> Any:
        if ref == "diverged":
            raise MemberDiverged("not one of the errors a caller makes")
        if ref == "secret":
            raise RuntimeError("secret detail")
        return self.zoo.resolve(ref)


@pytest.mark.parametrize("ref", ["diverged", "secret"])
def test_a_fault_of_ours_is_told_without_its_inside_and_harms_no_one_else(
    tiny_zoo: Any, running: Running, ref: str
) -> None:
    faulty: Any = Faulty(tiny_zoo)
    with (
        running(Service(ZooVersions(faulty)), ReplicaLimits()) as address,
        urllib3.PoolManager(retries=False) as pool,
    ):
        answer = pool.request("POST", f"{address}/v1/predict/{ref}", body=GOOD, headers=NPY)
        fine = pool.request("POST", f"{address}/v1/predict/graphene", body=GOOD, headers=NPY)
    assert (answer.status, fine.status) == (500, 200)
    assert "secret" not in answer.data.decode()

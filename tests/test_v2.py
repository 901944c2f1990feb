"""The Open Inference Protocol v2: NVIDIA's client unchanged, and requests that lie."""

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import urllib3
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from manybeam.errors import InvalidInput
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.protocol.request import MOST_JSON
from manybeam.serve.protocol.tensors import SentTensor
from manybeam.serve.routes import api

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
INFER = "/v2/models/graphene/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def url(tiny_zoo: Any, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[str]:
    limits = ReplicaLimits(max_frame_px=100_000)
    service = Service(ZooVersions(tiny_zoo, ["graphene"]))
    with serving(api(service, limits, Meter(), lambda: "")) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as found:
        yield found


@pytest.fixture(scope="module")
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as found:
        yield found


@pytest.fixture(scope="module")
def infer(url: str, pool: urllib3.PoolManager) -> Callable[..., Any]:
    """Send JSON and the bytes behind it."""

    def send(message: Any, rest: bytes = b"", path: str = INFER, **headers: str) -> Any:
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        named = {LENGTH: str(len(text))} if rest else {}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        return pool.request("POST", url + path, body=text + rest, headers=named)

    return send


def by_v1(url: str, pool: urllib3.PoolManager, array: np.ndarray, query: str) -> Any:
    body = io.BytesIO()
    np.save(body, array)
    headers = {"Content-Type": "application/x-npy"}
    answer = pool.request("POST", url + query, body=body.getvalue(), headers=headers)
    assert answer.status == 200, answer.data
    return np.load(io.BytesIO(answer.data), allow_pickle=False)


def tensor(name: str, array: np.ndarray, *, binary: bool = True) -> Any:
    found = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def wanted(*names: str, binary: bool = True) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def json_frame(array: np.ndarray = FRAME, **more: Any) -> dict[str, Any]:
    values = {"name": "FRAME", "datatype": "FP32", "shape": list(array.shape)}
    return {**values, "data": array.ravel().tolist(), **more}


SMALL = json_frame(FRAME[:8, :8])


def test_tritonclient_sees_a_live_server_and_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    listed = client.get_model_repository_index()
    assert {"name": "graphene", "version": "2", "state": "READY", "reason": ""} in listed
    assert listed[0]["name"] == "auto"


@pytest.mark.parametrize(("model", "version"), [("graphene", ""), ("graphene", "1"), ("auto", "")])
def test_a_model_is_described(client: Any, model: str, version: str) -> None:
    assert client.is_model_ready(model, version)
    told = client.get_model_metadata(model, version)
    assert {one["name"]: one["datatype"] for one in told["outputs"]} == {
        "ATOMS": "FP32", "ATOMS_FRAME": "INT32", "MEAN": "FP32", "STD": "FP32",
    }  # fmt: skip
    config = client.get_model_config(model, version)
    assert [one["dims"] for one in config["input"]] == [[-1, -1], [1]]


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("binary", [True, False], ids=["bytes", "json"])
def test_atoms_and_maps_are_those_of_v1(
    client: Any, url: str, pool: Any, version: str, *, binary: bool
) -> None:
    size = np.array([16.1], np.float32)
    inputs = [tensor("FRAME", FRAME, binary=binary), tensor("PIXEL_SIZE_PM", size, binary=binary)]
    outputs = wanted("ATOMS", "MEAN", "STD", binary=binary)
    answer = client.infer("graphene", inputs, version, outputs)
    ref = f"graphene@{version}" if version else "graphene"
    own = by_v1(url, pool, FRAME, f"/v1/predict/{ref}?pixel_size_pm=16.1&want=atoms,mean,std")
    assert len(own["atoms"])
    for name in ("atoms", "mean", "std"):
        np.testing.assert_array_equal(answer.as_numpy(name.upper()), own[name])
    assert answer.get_response()["model_version"] == (version or "2")


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u8", "f2", "f8"])
def test_a_frame_of_any_datatype_is_read(client: Any, url: str, pool: Any, dtype: str) -> None:
    array = np.round(FRAME * 100).astype(dtype)
    answer = client.infer("graphene", [tensor("FRAME", array)], outputs=wanted("ATOMS"))
    own = by_v1(url, pool, array, "/v1/predict/graphene")
    np.testing.assert_array_equal(answer.as_numpy("ATOMS"), own["atoms"])


def test_a_missing_pixel_is_filled_in_bytes_and_in_json(client: Any) -> None:
    holed = FRAME.copy()
    holed[3, 4] = np.nan
    ways = [[tensor("FRAME", holed, binary=binary)] for binary in (True, False)]
    both = [client.infer("graphene", one, outputs=wanted("MEAN")) for one in ways]
    np.testing.assert_array_equal(both[0].as_numpy("MEAN"), both[1].as_numpy("MEAN"))
    notes = json.loads(both[1].get_response()["parameters"]["meta"])["notes"]
    assert notes[0].startswith("1 pixels were NaN")


def test_a_batch_is_a_stack_whose_atoms_name_their_frame(client: Any, url: str, pool: Any) -> None:
    batch = np.stack([FRAME, FRAME[::-1].copy()])
    answer = client.infer("graphene", [tensor("FRAME", batch)])
    own = by_v1(url, pool, batch, "/v1/predict/graphene?want=atoms,mean")
    np.testing.assert_array_equal(answer.as_numpy("ATOMS"), own["atoms"])
    np.testing.assert_array_equal(answer.as_numpy("ATOMS_FRAME"), own["atoms_frame"])
    assert answer.as_numpy("MEAN").shape == batch.shape


def test_facts_of_the_answer_are_parameters(client: Any) -> None:
    asked = {"instrument": "STEM-1", "frame_id": "scan-1", "quick": True, "pixel_size_pm": 16}
    inputs = [tensor("FRAME", FRAME)]
    answer = client.infer("graphene", inputs, request_id="42", parameters=asked).get_response()
    assert answer["id"] == "42"
    facts = answer["parameters"]
    assert {
        "ref": "graphene@2",
        "frame_id": "scan-1",
        "pixel_size_pm": 16.0,
    }.items() <= facts.items()
    meta = json.loads(facts["meta"])
    assert (meta["instrument"], meta["ref"]) == ("STEM-1", "graphene@2")


def test_a_timeout_is_a_deadline(client: Any) -> None:
    big = np.random.default_rng(1).random((300, 300), dtype=np.float32)
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer("graphene", [tensor("FRAME", big)], timeout=1000)
    assert caught.value.status() == "504"


def test_unknown_spreads_are_null_in_json(infer: Callable[..., Any]) -> None:
    message = {"inputs": [json_frame()], "outputs": [{"name": "ATOMS"}]}
    answer = infer(message, path="/v2/models/graphene@2/infer?members=0").json()
    rows = np.array(answer["outputs"][0]["data"], float).reshape(-1, 7)
    assert len(rows)
    assert np.isnan(rows[:, 4:6]).all()  # one member has nobody to disagree with


def of(**more: Any) -> dict[str, Any]:
    return {"inputs": [SMALL], **more}


def sized(count: int, **more: Any) -> dict[str, Any]:
    frame = {"name": "FRAME", "datatype": "FP32", "shape": [8, 8], **more}
    return {"inputs": [{**frame, "parameters": {"binary_data_size": count}}]}


def size(datatype: str, shape: list[int], values: list[Any]) -> dict[str, Any]:
    pixel = {"name": "PIXEL_SIZE_PM", "datatype": datatype, "shape": shape, "data": values}
    return {"inputs": [SMALL, pixel]}


def wants(name: str, **parameters: Any) -> dict[str, Any]:
    return of(outputs=[{"name": name, "parameters": parameters}])


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else [1]


BYTES = FRAME[:8, :8].tobytes()


@pytest.mark.parametrize(
    ("message", "rest", "headers", "status", "told"),
    [
        pytest.param(b"", b"", {}, 400, "empty", id="no body"),
        pytest.param(b"{", b"", {}, 400, "not JSON", id="no json"),
        pytest.param(b"[" * 100_000, b"", {}, 400, "not JSON", id="deep"),
        pytest.param(b'{"inputs": NaN}', b"", {}, 422, "array", id="nan"),
        pytest.param(b"\xff\xfe", b"", {}, 400, "not JSON", id="no utf-8"),
        pytest.param([], b"", {}, 422, "an object", id="a list"),
        pytest.param({}, b"", {}, 422, "inputs", id="no inputs"),
        pytest.param({"inputs": []}, b"", {}, 422, "FRAME lacks", id="no frame"),
        pytest.param(of(model="x"), b"", {}, 422, "model", id="unknown field"),
        pytest.param({"inputs": [SMALL] * 2}, b"", {}, 422, "twice", id="two frames"),
        pytest.param({"inputs": [SMALL] * 17}, b"", {}, 422, "16", id="many inputs"),
        pytest.param({"inputs": [SMALL | {"name": "frame"}]}, b"", {}, 422, "'FRAME'", id="name"),
        pytest.param({"inputs": [SMALL | {"datatype": "BYTES"}]}, b"", {}, 422, "FP32", id="bytes"),
        pytest.param({"inputs": [SMALL | {"datatype": "BF16"}]}, b"", {}, 422, "FP32", id="bf16"),
        pytest.param({"inputs": [SMALL | {"shape": [8, 9]}]}, b"", {}, 400, "64", id="shape"),
        pytest.param({"inputs": [SMALL | {"shape": [64]}]}, b"", {}, 422, "axes", id="one axis"),
        pytest.param({"inputs": [SMALL | {"shape": [-8, -8]}]}, b"", {}, 422, "negative", id="-1"),
        pytest.param({"inputs": [SMALL | {"shape": [8.5, 8]}]}, b"", {}, 422, "integer", id="part"),
        pytest.param({"inputs": [SMALL | {"shape": [1] * 9}]}, b"", {}, 422, "at most 8", id="9-D"),
        pytest.param(
            {"inputs": [SMALL | {"shape": [2**53] * 8}]}, b"", {}, 400, "64 values", id="huge"
        ),
        pytest.param(
            {"inputs": [SMALL | {"shape": [10**4000, 8]}]}, b"", {}, 422, "less than", id="huger"
        ),
        pytest.param(
            {"inputs": [SMALL | {"data": nested(100)}]}, b"", {}, 422, "too deep", id="nested"
        ),
        pytest.param({"inputs": [SMALL | {"data": ["1"]}]}, b"", {}, 422, "numbers", id="text"),
        pytest.param({"inputs": [SMALL | {"data": [None]}]}, b"", {}, 422, "numbers", id="null"),
        pytest.param({"inputs": [SMALL | {"data": [[1], 2]}]}, b"", {}, 422, "equal", id="ragged"),
        pytest.param({"inputs": [SMALL | {"data": 7}]}, b"", {}, 422, "no list", id="a number"),
        pytest.param({"inputs": [SMALL | {"data": None}]}, b"", {}, 422, "no data", id="no data"),
        pytest.param({"inputs": [SMALL | {"datatype": "UINT8"}]}, b"", {}, 422, "255", id="u8"),
        pytest.param(sized(256), BYTES[:-1], {}, 400, "255 bytes are left", id="short"),
        pytest.param(sized(200), BYTES, {}, 400, "belong to no input", id="size lies"),
        pytest.param(sized(256, shape=[8, 9]), BYTES, {}, 400, "is 288", id="binary shape"),
        pytest.param(sized(256, datatype="FP64"), BYTES, {}, 400, "is 512", id="binary type"),
        pytest.param(sized(-1), BYTES, {}, 400, "number of bytes", id="negative size"),
        pytest.param(sized(10**30), BYTES, {}, 400, "256 bytes are left", id="huge size"),
        pytest.param(sized(256, data=[1]), BYTES, {}, 422, "one of both", id="both"),
        pytest.param(of(), b"", {LENGTH: "x"}, 400, "number of bytes", id="length no number"),
        pytest.param(of(), b"", {LENGTH: "99999"}, 400, "length of the body", id="length too long"),
        pytest.param(of(), b"", {LENGTH: "0"}, 400, "from 1", id="length 0"),
        pytest.param(of(), b"", {LENGTH: "20"}, 400, "not JSON", id="length cuts"),
        pytest.param(size("FP32", [1], ["x"]), b"", {}, 422, "numbers", id="size no number"),
        pytest.param(size("FP32", [2], [8, 8]), b"", {}, 422, "one number", id="two sizes"),
        pytest.param(size("INT32", [1], [8]), b"", {}, 422, "one number", id="size of int"),
        pytest.param(size("FP32", [1], [0]), b"", {}, 422, "from 1 to 500", id="size 0"),
        pytest.param(size("FP32", [1], [1e300]), b"", {}, 422, "finite", id="size inf"),
        pytest.param(
            {**size("FP32", [1], [8]), "parameters": {"pixel_size_pm": 8}}, b"", {}, 422, "twice",
            id="size twice",
        ),
        pytest.param(wants("atoms"), b"", {}, 422, "'ATOMS'", id="unknown output"),
        pytest.param(of(outputs=[{"name": "STD"}] * 2), b"", {}, 422, "twice", id="output twice"),
        pytest.param(wants("STD", classification=3), b"", {}, 400, "classification", id="classes"),
        pytest.param(wants("STD", shared_memory_region="x"), b"", {}, 400, "memory", id="shared"),
        pytest.param(wants("STD", binary_data="yes"), b"", {}, 422, "true or false", id="flag"),
        pytest.param(wants("STD", compress=True), b"", {}, 422, "compress", id="output option"),
        pytest.param(of(parameters={"sequence_id": 7}), b"", {}, 400, "sequence", id="sequence"),
        pytest.param(of(parameters={"priority": 1}), b"", {}, 400, "priority", id="priority"),
        pytest.param(of(parameters={"timeout": "1"}), b"", {}, 422, "micro", id="timeout"),
        pytest.param(of(parameters={"conditions": "x"}), b"", {}, 422, "'condition'", id="typo"),
        pytest.param(of(parameters={"want": "mi"}), b"", {}, 422, "'want'", id="want"),
        pytest.param(of(parameters={"members": [1]}), b"", {}, 422, "no text", id="list"),
        pytest.param(of(parameters={"false_atoms": 2}), b"", {}, 422, "share", id="bound"),
        pytest.param(of(), b"", {"Content_Encoding": "gzip"}, 415, "compressed", id="gzip"),
        pytest.param(of(), b"", {"Content_Type": "text/plain"}, 415, "json", id="media"),
        pytest.param(of(), b"", {"Host": "evil.org"}, 403, "evil", id="host"),
        pytest.param(
            {"inputs": [json_frame(np.full((8, 8), np.float32(1)))]}, b"", {}, 422, "contrast",
            id="flat",
        ),
    ],
)  # fmt: skip
def test_a_request_that_lies_gets_an_error_that_says_so(
    infer: Callable[..., Any], message: Any, rest: bytes, headers: dict[str, str], status: int,
    told: str,
) -> None:  # fmt: skip
    answer = infer(message, rest, **headers)
    assert (answer.status, list(answer.json())) == (status, ["error"])
    assert answer.headers["content-type"] == "application/json"
    assert told in answer.json()["error"]
    assert len(answer.data) < 1500


def test_a_nan_pixel_size_in_bytes_is_refused(client: Any) -> None:
    inputs = [tensor("FRAME", FRAME), tensor("PIXEL_SIZE_PM", np.array([np.nan], np.float32))]
    with pytest.raises(InferenceServerException, match="not finite"):
        client.infer("graphene", inputs)


@pytest.mark.parametrize(
    ("model", "version", "told"),
    [
        pytest.param("grafene", "", "graphene", id="name"),
        pytest.param("graphene", "99", "99", id="version"),
        pytest.param("graphene", "new", "numbers", id="no number"),
        pytest.param("auto", "1", "has none", id="auto"),
        pytest.param("a/b", "", "/v2/models/{MODEL}", id="slash"),
    ],
)
def test_an_unknown_model_is_told_with_what_there_is(
    client: Any, model: str, version: str, told: str
) -> None:
    for ask in (
        lambda: client.infer(model, [tensor("FRAME", FRAME)], version),
        lambda: client.get_model_metadata(model, version),
    ):
        with pytest.raises(InferenceServerException, match=told) as caught:
            ask()
        assert caught.value.status() == "404"
    assert not client.is_model_ready(model, version)


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda one: one.get_system_shared_memory_status(), id="system"),
        pytest.param(lambda one: one.register_system_shared_memory("a", "/b", 4), id="register"),
        pytest.param(lambda one: one.get_cuda_shared_memory_status(), id="cuda"),
        pytest.param(lambda one: one.load_model("graphene"), id="load"),
        pytest.param(lambda one: one.get_log_settings(), id="logging"),
    ],
)
def test_extensions_that_are_not_offered_say_so(client: Any, ask: Callable[[Any], Any]) -> None:
    with pytest.raises(InferenceServerException, match="not offered") as caught:
        ask(client)
    assert caught.value.status() == "400"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_body_is_refused_and_a_compressed_answer_not_needed(
    client: Any, algorithm: str
) -> None:
    inputs = [tensor("FRAME", FRAME)]
    with pytest.raises(InferenceServerException, match="must not be compressed"):
        client.infer("graphene", inputs, request_compression_algorithm=algorithm)
    answer = client.infer("graphene", inputs, response_compression_algorithm=algorithm)
    assert answer.as_numpy("MEAN").shape == FRAME.shape


def test_json_that_would_fill_the_memory_is_refused(infer: Callable[..., Any]) -> None:
    """The body may be larger; of this service 816 kB, so the bound is asked of the reader."""
    from manybeam.errors import TooLarge
    from manybeam.serve.protocol.request import read_request

    with pytest.raises(TooLarge, match="binary data"):
        read_request(bytes(MOST_JSON + 1), {})


def test_maps_too_large_for_json_are_refused_before_they_are_made() -> None:
    from manybeam.errors import InvalidInput
    from manybeam.serve.protocol.request import read_request

    wide = np.random.default_rng(2).random((1500, 1500), dtype=np.float32)
    message = {"inputs": [{"name": "FRAME", "datatype": "FP32", "shape": [1500, 1500],
               "parameters": {"binary_data_size": wide.nbytes}}]}  # fmt: skip
    text = json.dumps(message).encode()
    asked = read_request(text + wide.tobytes(), {LENGTH.lower(): str(len(text))})
    with pytest.raises(InvalidInput, match="binary_data"):
        asked.frames(10**7)


def test_a_long_text_among_numbers_takes_no_memory() -> None:
    values = ["x" * 5_000, *[1] * 99_999]  # as one type of numpy: 2 GB
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="not only numbers"):
        SentTensor("FRAME", "FP32", (100, 1000), values).as_bytes()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24

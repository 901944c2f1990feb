"""Instrument files as bodies of requests: known by name or type, and answered as arrays are."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
import urllib3

from manybeam.data.io.reading import read_frames
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
PREDICT = "/v1/predict/graphene"


def tif(array: Any = FRAME) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array)
    return stream.getvalue()


def npy(array: Any = FRAME) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


TIF = tif()


@pytest.fixture(scope="module")
def mrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says its pixel size: 16 pm."""
    path = tmp_path_factory.mktemp("mrc") / "scan.mrc"
    with mrcfile.new(path, FRAME) as file:
        file.voxel_size = 0.16
    return path


class Counting(Meter):
    """Outside of Ray nothing is counted; this one keeps what it was told of files."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def file(self, what: str) -> None:
        super().file(what)
        self.files.append(what)


@pytest.fixture(scope="module")
def meter() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def ask(
    tiny_zoo: Any, serving: Callable[[Any], AbstractContextManager[str]], meter: Counting
) -> Iterator[Callable[..., Any]]:
    service = Service(ZooVersions(tiny_zoo, ["graphene"]))
    app = api(service, ReplicaLimits(max_frame_px=100_000), meter, lambda: "")
    with serving(app) as url, urllib3.PoolManager(retries=False) as pool:

        def post(path: str, body: bytes, **headers: str) -> Any:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            form = {"Accept": "application/json", "Content-Type": "application/octet-stream"}
            return pool.request("POST", url + path, body=body, headers={**form, **named})

        yield post


def test_a_file_gets_the_answer_of_its_array_and_pixel_size(
    ask: Callable[..., Any], mrc: Path
) -> None:
    answer = ask(f"{PREDICT}?filename=scan.mrc", mrc.read_bytes()).json()
    size_pm = read_frames(mrc).pixel_size_pm
    own = ask(f"{PREDICT}?pixel_size_pm={size_pm!r}", npy(), Content_Type="application/x-npy")
    assert answer["atoms"] == own.json()["atoms"]
    assert answer["atoms"]
    meta = answer["meta"]
    assert meta["pixel_size_pm"] == size_pm
    told = {"name": "scan.mrc", "format": "MRC", "pixel_size_pm": size_pm, "recorded": {}}
    assert meta["file"] == told
    assert own.json()["meta"]["file"] is None


def test_the_pixel_size_of_the_query_wins_and_is_noted(ask: Callable[..., Any], mrc: Path) -> None:
    path = f"{PREDICT}?filename=scan.mrc&pixel_size_pm=20"
    meta = ask(path, mrc.read_bytes()).json()["meta"]
    assert meta["pixel_size_pm"] == 20
    assert "the file says 16 pm a pixel, the caller 20: 20 was taken" in meta["notes"]


@pytest.mark.parametrize(
    ("query", "media"),
    [
        pytest.param("?filename=scan.tif", "application/octet-stream", id="name"),
        pytest.param("?filename=SCAN.TIFF", "application/x-www-form-urlencoded", id="curl"),
        pytest.param("?filename=scan%201.tif", "image/tiff", id="name and type"),
        pytest.param("", "Image/TIFF; q=1", id="type"),
    ],
)
def test_a_file_is_known_by_name_or_type(ask: Callable[..., Any], query: str, media: str) -> None:
    answer = ask(f"{PREDICT}{query}", TIF, Content_Type=media)
    assert answer.status == 200
    assert answer.json()["meta"]["file"]["format"] == "TIFF"


def test_selection_reads_files_too(ask: Callable[..., Any], mrc: Path) -> None:
    answer = ask("/v1/select?filename=scan.mrc&ensemble=graphene", mrc.read_bytes())
    assert answer.json()["meta"]["pixel_size_pm"] == pytest.approx(16)


def test_a_stack_is_answered_frame_by_frame(ask: Callable[..., Any]) -> None:
    body = tif(np.stack([FRAME, FRAME[::-1]]))
    answer = ask(f"{PREDICT}?filename=scan.tif", body).json()
    assert {row["frame"] for row in answer["atoms"]} == {0, 1}


def test_files_are_counted_by_what_became_of_them(ask: Callable[..., Any], meter: Counting) -> None:
    meter.files.clear()
    ask(f"{PREDICT}?filename=a.tif", TIF)
    ask(f"{PREDICT}?filename=a.tif", TIF[:-900])
    ask(f"{PREDICT}?filename=a.docx", TIF)  # refused by its name: it never was a file
    assert meter.files == ["read", "refused"]


@pytest.mark.parametrize(
    ("query", "body", "headers", "status", "told"),
    [
        pytest.param("?filename=a.docx", TIF, {}, 415, ".dm3, .dm4, .emd, .ser", id="ending"),
        pytest.param("?filename=a.emi", TIF, {}, 415, ".ser that belongs", id="emi"),
        pytest.param("?filename=../a.tif", TIF, {}, 422, "folder", id="path"),
        pytest.param(f"?filename={'a' * 10_000}.tif", TIF, {}, 422, "200 bytes", id="long"),
        pytest.param("?filename=a.tif&filename=b.tif", TIF, {}, 422, "twice", id="two names"),
        pytest.param("?filename=a.tif", b"", {}, 400, "empty", id="empty"),
        pytest.param("?filename=a.tif", TIF[:-900], {}, 400, "a.tif", id="cut"),
        pytest.param("?filename=a.dm4", TIF, {}, 400, "looks like .tif: rename", id="other"),
        pytest.param("?filename=a.tif", tif(FRAME[0]), {}, 400, "no page with", id="profile"),
        pytest.param("?filename=a.tif", tif(np.ones((9, 9))), {}, 422, "contrast", id="flat"),
        pytest.param(
            "?filename=a.tif", tif(np.ones((400, 400), "u1")), {}, 413, "400 x 400", id="large"
        ),
        pytest.param("?filename=a.tif", TIF, {"X_Dtype": "float32"}, 422, "X-Dtype", id="dtype"),
        pytest.param(
            "?filename=a.dm4", TIF, {"Content_Type": "image/tiff"}, 415, "image/tiff", id="types"
        ),
        pytest.param(
            "?filename=a.tif", TIF, {"Content_Type": "multipart/form-data"}, 415, "octet", id="form"
        ),
        pytest.param(
            "?filename=a.tif", TIF, {"Content_Encoding": "gzip"}, 415, "compressed", id="gzip"
        ),
        pytest.param("", TIF, {}, 422, "filename", id="no name"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_that_says_why(
    ask: Callable[..., Any], query: str, body: bytes, headers: dict[str, str], status: int,
    told: str,
) -> None:  # fmt: skip
    answer = ask(PREDICT + query, body, **headers)
    problem = answer.json()
    assert (answer.status, problem["status"]) == (status, status)
    assert told in json.dumps(problem)
    assert len(answer.data) < 1000
    assert "manybeam-file" not in answer.data.decode()

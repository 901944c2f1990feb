"""/predict without a browser: forms, refusals, kept results, tiles and downloads."""

import asyncio
import io
import itertools
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zarr
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from zarr.storage import ZipStore

from manybeam.errors import Busy, NotAllowed, NotAuthenticated, NotFound, TooSlow
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api
from manybeam.web.app import create_app, make_app_state
from manybeam.web.predict import routes
from manybeam.web.predict.results import Facts, Results
from manybeam.web.predict.tiles import Pyramid, frame_tile, spread_tile
from manybeam.web.service import PredictionService, Sent, refusal

pytestmark = pytest.mark.slow

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
FIELD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.npy"\r\n\r\n'
NOWHERE = "http://127.0.0.1:9"
Serving = Callable[[Any], AbstractContextManager[str]]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def service(tiny_zoo: Any, serving: Serving) -> Iterator[str]:
    answering = Service(ZooVersions(tiny_zoo, ["graphene"]))
    app = api(answering, ReplicaLimits(max_frame_px=100_000), Meter(), lambda: "")
    with serving(app) as url:
        yield url


@pytest.fixture
def web(
    request: pytest.FixtureRequest,
    service: str,
    tiny_zoo: Any,
    serving: Serving,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
) -> Iterator[httpx.Client]:
    """The control plane; with the parameter it asks a service that does not run."""
    url = getattr(request, "param", service)
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_SERVICE_URL": url})
    state = make_app_state(tiny_zoo)
    with (
        serving(create_app(state)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client
    state.predicting.close()


def send(web: httpx.Client, name: str, content: bytes, **fields: str) -> httpx.Response:
    files = {"file": (name, content)}
    return web.post("/predict", data={"ref": "graphene", **fields}, files=files)


def test_a_result_holds_the_answer_of_the_service_bit_for_bit(
    web: httpx.Client, service: str
) -> None:
    sent = send(web, "scan.npy", npy(FRAME), pixel_size_pm="16")
    assert sent.status_code == 303
    kept = np.load(io.BytesIO(web.get(f"{sent.headers['location']}/answer.npz").content))
    query = "pixel_size_pm=16&want=atoms,mean,std,mi,members"
    headers = {"content-type": "application/x-npy"}
    url = f"{service}/v1/predict/graphene?{query}"
    own = np.load(io.BytesIO(httpx.post(url, content=npy(FRAME), headers=headers).content))
    for name in ("atoms", "mean", "std", "mi", "members"):
        np.testing.assert_array_equal(kept[name], own[name])
    assert len(own["atoms"])


def test_downloads_hold_the_arrays_of_the_answer(web: httpx.Client, tmp_path: Path) -> None:
    address = send(web, "scan.npy", npy(FRAME), pixel_size_pm="16").headers["location"]
    kept = np.load(io.BytesIO(web.get(f"{address}/answer.npz").content))
    path = tmp_path / "answer.zip"
    path.write_bytes(web.get(f"{address}/answer.zarr.zip").content)
    assert zipfile.is_zipfile(path)
    group: Any = zarr.open_group(ZipStore(path, mode="r"), mode="r")["00000"]
    np.testing.assert_array_equal(group["atoms"][:], kept["atoms"])
    np.testing.assert_array_equal(group["std"][:], kept["std"].astype(np.float32))
    np.testing.assert_array_equal(group["frame"][:], FRAME)
    lines = web.get(f"{address}/atoms.csv").text.splitlines()
    assert len(lines) == 1 + len(kept["atoms"])
    assert web.get(f"{address}/figure.png").content.startswith(b"\x89PNG")
    shown = np.frombuffer(web.get(f"{address}/atoms.f32").content, "<f4").reshape(-1, 5)
    np.testing.assert_array_equal(shown[:, :2], kept["atoms"][:, :2])


@pytest.mark.parametrize(
    ("name", "content", "fields", "status", "words"),
    [
        pytest.param("notes.txt", b"hello", {}, 415, "cannot be read", id="wrong kind"),
        pytest.param("scan.tif", b"II*\0broken", {}, 400, "scan.tif", id="damaged"),
        pytest.param("scan.npy", npy(FRAME[0]), {}, 400, "scan.npy", id="spectrum"),
        pytest.param("", b"", {}, 422, "No file was chosen", id="nothing"),
        pytest.param("a.npy", npy(FRAME), {"pixel_size_pm": "0"}, 422, "500 pm", id="size"),
        pytest.param("a.npy", npy(FRAME), {"pixel_size_pm": "x"}, 422, "no number", id="words"),
        pytest.param(
            "a.npy", npy(np.stack([FRAME] * 2)), {"frame": "2"}, 422, "from 0 to 1", id="no frame"
        ),
        pytest.param("", b"", {"again": "x" * 22}, 404, "gone", id="gone"),
        pytest.param("", b"", {"frameset": "no/such"}, 404, "no FrameSet", id="no FrameSet"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(
    web: httpx.Client, name: str, content: bytes, fields: dict[str, str], status: int, words: str
) -> None:
    page = send(web, name, content, **fields)
    assert page.status_code == status
    assert words in page.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"origin": "http://elsewhere"}, 403, id="other site"),
        pytest.param({"sec-fetch-site": "cross-site"}, 403, id="cross-site"),
        pytest.param({"content-type": "text/plain"}, 400, id="no form"),
        pytest.param({"content-type": "multipart/form-data"}, 400, id="no boundary"),
        pytest.param({"content-type": "multipart/form-data; boundary=b"}, 400, id="no parts"),
    ],
)
def test_a_request_that_is_not_of_our_form_is_refused(
    web: httpx.Client, headers: dict[str, str], status: int
) -> None:
    assert web.post("/predict", content=b"x", headers=headers).status_code == status


def test_a_form_with_two_files_is_refused(web: httpx.Client) -> None:
    files = [("file", (f"{number}.npy", npy(FRAME))) for number in range(2)]
    answer = web.post("/predict", files=files)
    assert answer.status_code == 400
    assert "Too many files" in answer.text


def test_a_body_without_a_length_is_read_up_to_its_bound(web: httpx.Client) -> None:
    parts = itertools.chain([FIELD], itertools.repeat(bytes(1 << 20), 400))
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = web.post("/predict", content=parts, headers=headers)
    assert answer.status_code == 413


def test_of_a_stack_one_frame_is_asked_about(web: httpx.Client) -> None:
    content = npy(np.stack([FRAME, FRAME.T[:48, :48].repeat(2, 1)[:, :56]]))
    address = send(web, "stack.npy", content, frame="1", pixel_size_pm="16").headers["location"]
    assert "The file holds 2 frames. This is frame 1" in web.get(address).text
    first = web.post("/predict", files={"again": (None, address[9:]), "frame": (None, "0")})
    kept = np.load(io.BytesIO(web.get(f"{first.headers['location']}/frame.npy").content))
    np.testing.assert_array_equal(kept, FRAME)


@pytest.mark.parametrize("web", [NOWHERE], indirect=True)
def test_without_a_service_the_frame_is_kept_and_the_command_is_told(web: httpx.Client) -> None:
    assert "manybeam serve up" in web.get("/predict").text
    address = send(web, "scan.npy", npy(FRAME)).headers["location"]
    page = web.get(address).text
    assert "No prediction service answers" in page
    assert "manybeam serve up" in page
    assert "Ask again" in page
    assert web.get(f"{address}/frame.npy").status_code == 200
    assert web.get(f"{address}/atoms.csv").status_code == 404


def test_the_oldest_results_make_room(tmp_path: Path) -> None:
    results = Results(tmp_path, most=2)
    facts = Facts("a.npy", is_stored=False, frame=None, frame_count=1, shape=(48, 56), ref="auto")
    made = [results.keep(facts, FRAME, b"", b"") for _ in range(3)]
    assert results.look(made[2].id).facts.name == "a.npy"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(NotFound, match="gone"):
        results.look("../" + made[2].id)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (513, 1024)])
def test_each_level_of_a_pyramid_halves_the_next_by_means(shape: tuple[int, int]) -> None:
    pyramid = Pyramid.of(np.full(shape, 3.0))
    assert pyramid.levels[-1].shape == shape
    assert pyramid.levels[0].shape == (1, 1)
    assert {float(level.max()) for level in pyramid.levels} == {3.0}
    with pytest.raises(NotFound):
        pyramid.tile(len(pyramid.levels), 0, 0)


def test_tiles_are_pictures() -> None:
    assert frame_tile(FRAME, 0.0, 1.0, 0.5).startswith(b"\xff\xd8")
    assert spread_tile(FRAME, 1.0).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(401, b'{"type": "x", "detail": "d"}', "NotAuthenticated", id="token"),
        pytest.param(429, b'{"type": "x", "detail": "d"}', "Busy", id="busy"),
        pytest.param(502, b"<html>", "WorkFailed", id="no problem"),
        pytest.param(
            422, b'{"type": "urn:manybeam:missing-pixel-size", "detail": "d"}',
            "MissingPixelSize", id="ours",
        ),
    ],
)  # fmt: skip
def test_a_refusal_of_the_service_becomes_the_same_error(
    status: int, body: bytes, kind: str
) -> None:
    assert type(refusal(status, body, {})).__name__ == kind


def test_a_contrast_that_is_no_number_is_refused(web: httpx.Client) -> None:
    address = send(web, "a.npy", npy(FRAME), pixel_size_pm="16").headers["location"]
    for query in ("low=nan", "high=101", "gamma=0", "gamma=inf"):
        assert web.get(f"{address}/frame/0/0_0.jpg?{query}").status_code == 422
    assert web.get(f"{address}/frame/0/0_0.jpg?gamma=0.5").status_code == 200


def test_uploads_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    places = threading.BoundedSemaphore(1)

    async def receive(*, at_once: int) -> None:
        async with routes._receiving(places):
            if at_once > 1:
                await receive(at_once=at_once - 1)
            await asyncio.Event().wait()  # an upload that never ends

    with pytest.raises(Busy):
        asyncio.run(receive(at_once=2))
    monkeypatch.setattr(routes, "UPLOAD_S", 0.01)
    with pytest.raises(TooSlow):
        asyncio.run(receive(at_once=1))


def test_asking_again_keeps_the_stated_pixel_size(web: httpx.Client) -> None:
    address = send(web, "a.npy", npy(FRAME), pixel_size_pm="16").headers["location"]
    assert 'name="pixel_size_pm" value="16"' in web.get(address).text


def test_a_quick_answer_makes_room_for_the_one_with_frame_analysis(web: httpx.Client) -> None:
    stated = {"pixel_size_pm": "16", "quick": "1"}
    first = send(web, "a.npy", npy(FRAME), **stated).headers["location"]
    page = web.get(first).text
    assert 'name="analyse"' in page
    assert 'value="graphene"' in page
    again = {"again": (None, first[9:]), "analyse": (None, "1"), "ref": (None, "typed-meanwhile")}
    analysed = web.post("/predict", files=again).headers["location"]
    assert web.get(first).headers["location"] == analysed
    page = web.get(analysed).text
    assert 'name="analyse"' not in page
    assert "16 pm, given by you" in page
    for address, limits in ((first, True), (analysed, False)):
        kept = np.load(io.BytesIO(web.get(f"{address}/answer.npz").content))
        told = json.loads(kept["meta"].tobytes())["degraded"]
        assert any("was not analysed" in one for one in told) is limits


def test_a_page_that_asks_whether_its_result_is_there_is_told(web: httpx.Client) -> None:
    address = send(web, "a.npy", npy(FRAME), pixel_size_pm="16").headers["location"]
    assert web.head(address).status_code == 200
    assert web.head(f"/predict/{'x' * 22}").status_code == 404


def test_what_a_file_says_out_of_bounds_is_told_as_not_used(
    web: httpx.Client, shared_data: Path
) -> None:
    content = (shared_data / "vendor" / "128x128-TEM_search_1.ser").read_bytes()
    page = web.get(send(web, "search_1.ser", content).headers["location"]).text
    assert "5261.21 is outside 1 to 500 pm: left unknown" in page
    assert "<dd>not in the file</dd>" in page


def test_the_pixel_size_of_a_file_may_be_trusted_as_a_stated_one() -> None:
    assert Sent(b"", "scan.dm3", is_size_trusted=True).query == {
        "filename": "scan.dm3",
        "trust_pixel_size": "true",
    }


def test_a_server_without_a_token_says_who_can_give_it_one(
    serving: Serving, use_settings: Callable[[dict[str, str]], None]
) -> None:
    app = FastAPI()

    @app.post("/v1/predict/{ref}")
    def refuse() -> Response:
        return JSONResponse({"type": "urn:x", "detail": "no token"}, 401)

    use_settings({})
    with serving(app) as url:
        with pytest.raises(NotAllowed, match="is not set"):
            PredictionService(url).predict("auto", Sent(b""), has_token=True)
        with pytest.raises(NotAuthenticated, match="log in"):
            PredictionService(url).predict("auto", Sent(b""), has_token=False)

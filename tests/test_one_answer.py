"""One answer: the same question gets the same arrays on every road, bit by bit.

Roads: the predictor itself, the command line, the service over HTTP (arrays, instrument files, the
Open Inference Protocol v2), and Python. The version was
calibrated; frames differ in condition, size, pixel size and number; questions in who may answer,
in the members named and in the bound on false atoms.
"""

import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tritonclient.http as triton
import urllib3
import uvicorn
import zarr
from tritonclient.utils import np_to_triton_dtype as triton_type

import manybeam as mb
from manybeam.cli import main
from manybeam.data.io.frame import frame_of, frames_of
from manybeam.data.io.reading import read_frames
from manybeam.predictor.answer import Question
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.query import WANTS
from manybeam.serve.routes import api

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What is compared is in the answer too; the warning of `mb.predict` would end a test.
    pytest.mark.filterwarnings("ignore::manybeam.public.OutOfDistributionWarning"),
]

NAMES = ("nominal", "dirty", "coarse", "defocus", "lowdose")
ARRAYS = ("atoms", "mean", "std", "mi")


@dataclass(frozen=True)
class Asked:
    """A question, as every road asks it."""

    ref: str = "graphene"
    members: str = ""
    false_atoms: float = 0.0

    @property
    def question(self) -> Question:
        members = tuple(int(one) for one in self.members.split(",") if one)
        return Question(self.ref, members, self.false_atoms)

    def words(self) -> list[str]:
        more = ["--members", self.members] if self.members else []
        more += ["--false-atoms", str(self.false_atoms)] if self.false_atoms else []
        return ["-e", self.ref, *more]

    def query(self, size_pm: float) -> str:
        more = {"members": self.members, "false_atoms": self.false_atoms}
        given = {name: value for name, value in more.items() if value}
        given |= {"pixel_size_pm": size_pm, "want": ",".join(WANTS)}
        return "&".join(f"{name}={value}" for name, value in given.items())


QUESTIONS = [
    pytest.param(Asked(), id="named"),
    pytest.param(Asked("auto"), id="auto"),
    pytest.param(Asked("graphene@2/01"), id="one member"),
    pytest.param(Asked(members="2,0"), id="members"),
    pytest.param(Asked(false_atoms=0.2), id="bound"),
    pytest.param(Asked("auto", false_atoms=0.2), id="auto, bound"),
    pytest.param(Asked("graphene@1"), id="never calibrated"),
]


@pytest.fixture
def home(rehearsed_home: Path, use_settings: Callable[[dict[str, str]], None]) -> Iterator[Path]:
    zoo = Path(__file__).parents[1] / "zoo"
    use_settings({"MANYBEAM_HOME": str(rehearsed_home), "MANYBEAM_ZOO": str(zoo)})
    return rehearsed_home


@pytest.fixture(scope="module")
def stacks(rehearsed: Any) -> list[tuple[np.ndarray, float]]:
    """Twenty frames: alone and in stacks, square and not, of five pixel sizes."""
    made = [rehearsed.drawn(number) for number in range(8)]
    alone = [(one.frames_nyx[0], float(one.pixel_size_pm[0])) for one in made]
    frame, size = alone[0]
    wide = [
        (np.ascontiguousarray(frame[:96, :]), size),
        (np.ascontiguousarray(frame[:, :80]), size),
    ]
    scaled = [(frame, size * factor) for factor in (0.8, 1.3)]
    twins = [(np.stack([one, one.T.copy()]), size_pm) for one, size_pm in alone[1:5]]
    return [*alone, *wide, *scaled, *twins]


def by_predictor(
    array: np.ndarray, size_pm: float, asked: Asked, predictor: Predictor
) -> list[dict[str, Any]]:
    frames = array if array.ndim == 3 else array[None]
    answers = [predictor.answer(frame_of(one, size_pm), asked.question) for one in frames]
    return [
        {"atoms": one.atoms, "mean": one.mean_yx, "std": one.std_yx, "mi": one.mi_yx}
        for one in answers
    ]


def by_command_line(
    array: np.ndarray, size_pm: float, asked: Asked, folder: Path
) -> list[dict[str, Any]]:
    np.save(folder / "frame.npy", array)
    words = [str(folder / "frame.npy"), "--pixel-size-pm", str(size_pm), *asked.words()]
    assert main(["predict", *words, "--zarr", str(folder / "answer.zarr"), "-o", "id"]) == 0
    root = zarr.open_group(folder / "answer.zarr", mode="r")
    return [
        {name: root[f"{key}/{name}"][:] for name in ARRAYS} for key in sorted(root.group_keys())
    ]


def post(url: str, path: str, array: np.ndarray, accept: str = "application/x-npz") -> bytes:
    body = io.BytesIO()
    np.save(body, array)
    headers = {"content-type": "application/x-npy", "accept": accept}
    content = body.getvalue()
    answer = urllib3.request("POST", url + path, body=content, headers=headers, timeout=120)
    assert answer.status == 200, answer.data
    return answer.data


def by_service(url: str, array: np.ndarray, size_pm: float, asked: Asked) -> list[dict[str, Any]]:
    content = post(url, f"/v1/predict/{asked.ref}?{asked.query(size_pm)}", array)
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if array.ndim == 2:
        return [{name: found[name] for name in ARRAYS}]
    return [
        {name: found[name][n] for name in ARRAYS[1:]}
        | {"atoms": found["atoms"][found["atoms_frame"] == n]}
        for n in range(len(array))
    ]


@pytest.fixture(scope="module")
def service(rehearsed_zoo: Any) -> Iterator[str]:
    """The service's application, served on a free port of this machine."""
    app = api(Service(ZooVersions(rehearsed_zoo)), ReplicaLimits(), Meter(), lambda: "")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def same(one: dict[str, Any], other: dict[str, Any], dtype: type = np.float32) -> None:
    np.testing.assert_array_equal(one["atoms"], other["atoms"])
    for name in ARRAYS[1:]:
        np.testing.assert_array_equal(one[name].astype(dtype), other[name].astype(dtype))


@pytest.mark.parametrize("asked", QUESTIONS)
def test_every_road_gives_the_same_arrays(
    home: Path, stacks: list[Any], service: str, tmp_path: Path, asked: Asked
) -> None:
    predictor = Predictor.of_zoo(mb.zoo())
    for number, (array, size_pm) in enumerate(stacks):
        folder = tmp_path / str(number)
        folder.mkdir()
        expected = by_predictor(array, size_pm, asked, predictor)
        roads = (
            (by_command_line(array, size_pm, asked, folder), np.float32),
            (by_service(service, array, size_pm, asked), np.float16),  # maps travel halved
        )
        for answers, dtype in roads:
            assert len(answers) == len(expected)
            for one, other in zip(answers, expected, strict=True):
                same(one, other, dtype)


def by_protocol(url: str, array: np.ndarray, size_pm: float, ref: str) -> dict[str, Any]:
    """Ask with NVIDIA's client, unchanged."""
    inputs = []
    for name, values in (("FRAME", array), ("PIXEL_SIZE_PM", np.array([size_pm]))):
        datatype = triton_type(values.dtype)
        inputs.append(triton.InferInput(name, list(values.shape), datatype))
        inputs[-1].set_data_from_numpy(values)
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        answer = client.infer(ref, inputs)
    return {name: answer.as_numpy(name) for name in ("ATOMS", "ATOMS_FRAME", "MEAN", "STD")}


@pytest.mark.parametrize("ref", ["graphene", "auto"])
def test_the_open_inference_protocol_gives_the_same_arrays(
    home: Path, stacks: list[Any], service: str, ref: str
) -> None:
    for array, size_pm in (stacks[0], stacks[8], stacks[-1]):
        found = by_protocol(service, array, size_pm, ref)
        for number, own in enumerate(by_service(service, array, size_pm, Asked(ref))):
            atoms = found["ATOMS"][found["ATOMS_FRAME"] == number]
            np.testing.assert_array_equal(atoms, own["atoms"])
            maps = found if array.ndim == 2 else {n: found[n][number] for n in ("MEAN", "STD")}
            np.testing.assert_array_equal(maps["MEAN"], own["mean"].astype(np.float32))
            np.testing.assert_array_equal(maps["STD"], own["std"].astype(np.float32))


@pytest.mark.parametrize("given", ["", "16"], ids=["size of the file", "size of the caller"])
def test_an_instrument_file_gets_the_same_arrays_over_http(
    home: Path, stacks: list[Any], service: str, tmp_path: Path, given: str
) -> None:
    for number, place in enumerate((0, -1)):
        array, size_pm = stacks[place]
        folder = tmp_path / str(number)
        folder.mkdir()
        with mrcfile.new(folder / "scan.mrc", array) as file:
            file.voxel_size = size_pm / 100
        words = ["--pixel-size-pm", given] if given else []
        path, target = str(folder / "scan.mrc"), str(folder / "answer.zarr")
        assert main(["predict", path, "-e", "auto", *words, "--zarr", target, "-o", "id"]) == 0
        root = zarr.open_group(target, mode="r")
        query = "filename=scan.mrc&want=atoms,mean" + (f"&pixel_size_pm={given}" if given else "")
        answer = urllib3.request(
            "POST", f"{service}/v1/predict/auto?{query}", body=Path(path).read_bytes(), timeout=120
        )
        found = np.load(io.BytesIO(answer.data), allow_pickle=False)
        of_frame = found["atoms_frame"] if array.ndim == 3 else np.zeros(len(found["atoms"]))
        for n, key in enumerate(sorted(root.group_keys())):
            np.testing.assert_array_equal(found["atoms"][of_frame == n], root[f"{key}/atoms"][:])
            mean = found["mean"] if array.ndim == 2 else found["mean"][n]
            np.testing.assert_array_equal(mean, root[f"{key}/mean"][:].astype(np.float16))


@pytest.mark.filterwarnings("ignore::manybeam.public.OutOfDistributionWarning")
def test_python_gives_the_same_arrays(home: Path, stacks: list[Any]) -> None:
    predictor = Predictor.of_zoo(mb.zoo())
    for array, size_pm in stacks[:6]:
        for asked in (Asked(), Asked("auto"), Asked(false_atoms=0.2)):
            answer = mb.predict(
                array, asked.ref, pixel_size_pm=size_pm, false_atoms=asked.false_atoms
            )
            own = {"atoms": answer.atoms, "mean": answer.mean_yx, "std": answer.std_yx}
            same(own | {"mi": answer.mi_yx}, by_predictor(array, size_pm, asked, predictor)[0])


@pytest.mark.parametrize("name", NAMES[:3])
def test_what_is_known_of_the_recording_counts_alike_on_every_road(
    home: Path, stacks: list[Any], service: str, tmp_path: Path, name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    array, size_pm = stacks[0]
    np.save(tmp_path / "frame.npy", array)
    words = ["-e", "graphene@1", "--pixel-size-pm", str(size_pm)]
    condition = f"graphene-60kv-{name}"
    said = [str(tmp_path / "frame.npy"), *words, "--condition", condition, "-o", "json"]
    assert main(["predict", *said]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    query = f"pixel_size_pm={size_pm}&condition={condition}"
    content = post(service, f"/v1/predict/graphene@1?{query}", array, "application/json")
    answer = json.loads(content)["meta"]
    python = mb.predict(array, "graphene@1", pixel_size_pm=size_pm, condition=condition)
    assert row["why"] == answer["why"] == python.why
    assert row["verdict"] == answer["verdict"] == python.verdict
    assert row["predicted_f1"] == answer["predicted_f1"]["f1"] == python.predicted_f1.f1


@pytest.mark.parametrize("ref", ["graphene", "graphene@2/01", "graphene@1"])
def test_a_named_ensemble_says_the_same_of_drift_and_calibration_on_every_road(
    home: Path, stacks: list[Any], service: str, tmp_path: Path, ref: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    array, size_pm = stacks[0]
    np.save(tmp_path / "frame.npy", array)
    words = [str(tmp_path / "frame.npy"), "-e", ref, "--pixel-size-pm", str(size_pm)]
    assert main(["predict", *words, "-o", "json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    path = f"/v1/predict/{ref}?pixel_size_pm={size_pm}"
    meta = json.loads(post(service, path, array, "application/json"))["meta"]
    answer = mb.predict(array, ref, pixel_size_pm=size_pm)
    assert meta["drift"] == {"score": answer.drift_score, "flag": answer.is_drifted}
    assert (row["verdict"] or None) == meta["verdict"]
    found = meta["calibration"] or {"position_pm": None}
    assert row["position_90_pm"] == found["position_pm"]
    low_high = meta["predicted_f1"] and (meta["predicted_f1"]["low"], meta["predicted_f1"]["high"])
    assert (low_high or (None, None)) == (row["low"], row["high"])
    if ref == "graphene":  # it was calibrated
        assert meta["drift"]["score"] is not None
        assert meta["calibration"]["atom_count"] >= 100


def test_each_network_runs_once_on_the_frame_and_once_on_its_turned_view(
    home: Path, stacks: list[Any], rehearsed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manybeam.learn.nets.inference.graphs import CompiledNetwork

    asked: list[int] = []
    call = CompiledNetwork.__call__
    monkeypatch.setattr(
        CompiledNetwork, "__call__", lambda self, tile: asked.append(id(self)) or call(self, tile)
    )
    array, size_pm = stacks[0]
    Predictor.of_zoo(mb.zoo()).answer(frame_of(array, size_pm), Question("auto"))
    assert sorted(Counter(asked).values()) == [2, 2, 2]


def test_a_file_and_its_array_are_one_frame(home: Path, stacks: list[Any], tmp_path: Path) -> None:
    array, size_pm = stacks[-1]
    np.save(tmp_path / "frame.npy", array)
    read = frames_of(read_frames(tmp_path / "frame.npy", pixel_size_pm=size_pm))
    for number, frame in enumerate(read):
        own = frame_of(array[number], size_pm)
        np.testing.assert_array_equal(frame.pixels_yx, own.pixels_yx)
        assert frame.index == number
        assert dict(frame.condition.quantities()) == dict(own.condition.quantities())

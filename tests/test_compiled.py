"""learn.nets.inference: compiled networks answer as torch does, and are kept on this machine."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from manybeam.errors import WorkFailed
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference import graphs as module
from manybeam.learn.nets.inference.graph_conversion import TOLERANCE, to_graph
from manybeam.learn.nets.inference.graphs import CompiledNetwork, Graphs
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = Path(__file__).parent / "data" / "atomai"
SIDES = [(64, 64), (40, 100), (97, 131), (256, 192)]
NETWORKS = [
    Network(levels=3, filters=4),
    Network(levels=1, filters=2),
    Network(levels=3, filters=4, classes=3),
    Network(name="bandpass"),
    Network(name="atomai1223bilinearNorm", filters=4, levels=4),
    Network(name="atomai1223nearestNormDilated", filters=4, levels=4),
    Network(name="atomai1223bilinearNormBackground", filters=4, levels=4, classes=2),
    Network(name="BasicUNet", filters=4),
    Network(name="SegResNet", filters=8),
]


def member_of(network: Network, index: int = 0) -> Member:
    """Return a member of drawn weights, its batch norms far from doing nothing."""
    recipe = Recipe(
        id="test",
        network=network,
        tiles=TileSpec(elements=(6, 14, 7)[: network.classes] if network.classes > 1 else ()),
        members=(MemberPlan(seed=0, policy="any"),),
    )
    with torch.random.fork_rng():
        torch.manual_seed(index)
        made = build(network)
        for layer in made.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_()  # type: ignore[union-attr]
                layer.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return Member(index, index, "any", recipe, made.state_dict(), (), 0.0, "")


def noise(shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: f"{one.name}-{one.classes}")
def test_compiled_members_answer_as_torch_does(network: Network, tmp_path: Path) -> None:
    members = [member_of(network, index) for index in range(2)]
    compiled, eager = Ensemble(members, graphs=Graphs(tmp_path)), Ensemble(members, device="cpu")
    assert (compiled.device, eager.device) == ("cpu, compiled", "cpu")
    for shape in SIDES:
        answer, expected = (one.predict(noise(shape), None) for one in (compiled, eager))
        np.testing.assert_allclose(answer.prob_myx, expected.prob_myx, rtol=0, atol=TOLERANCE)


def test_tiles_are_answered_alike(tmp_path: Path) -> None:
    members = [member_of(Network(levels=3, filters=4))]
    compiled = Ensemble(members, graphs=Graphs(tmp_path), tile_px=256)
    expected = Ensemble(members, device="cpu", tile_px=256).predict(noise((700, 500)), None)
    answer = compiled.predict(noise((700, 500)), None)
    np.testing.assert_allclose(answer.prob_myx, expected.prob_myx, rtol=0, atol=TOLERANCE)


class _Noted:
    """What is compiled, with the number of times that its memory was given back."""

    def __init__(self, compiled: Any) -> None:
        self.compiled, self.given_back = compiled, 0

    def create_infer_request(self) -> Any:
        return self.compiled.create_infer_request()

    def release_memory(self) -> None:
        self.given_back += 1
        self.compiled.release_memory()


@pytest.mark.parametrize(
    ("shape", "times"), [((300, 300), 1), ((700, 500), 1), ((64, 64), 0)], ids=str
)
def test_memory_is_kept_between_the_tiles_of_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], times: int
) -> None:
    monkeypatch.setattr(module, "KEPT_PX", 128 * 128)
    ensemble = Ensemble([member_of(Network())], graphs=Graphs(tmp_path), tile_px=320)
    (network,) = ensemble._engine.networks
    assert isinstance(network, CompiledNetwork)
    network._compiled = noted = _Noted(network._compiled)
    ensemble.predict(noise(shape), None)
    assert noted.given_back == times


def test_memory_is_given_back_when_a_deadline_ends_a_frame_between_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_PX", 128 * 128)
    ensemble, checks = Ensemble([member_of(Network())], graphs=Graphs(tmp_path), tile_px=320), []
    (network,) = ensemble._engine.networks
    assert isinstance(network, CompiledNetwork)
    network._compiled = noted = _Noted(network._compiled)

    def check() -> None:
        checks.append(noted.given_back)
        if len(checks) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        ensemble.predict(noise((700, 500)), None, check=check)
    assert (checks, noted.given_back) == ([0, 0, 0], 1)


def test_a_graph_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member_of(Network(levels=2, filters=2), index) for index in range(2)]
    Ensemble(members, graphs=Graphs(tmp_path))
    before = _files(tmp_path)
    assert len(before) == 2
    Ensemble(members, graphs=Graphs(tmp_path))
    assert _files(tmp_path) == before
    monkeypatch.setattr(module, "GRAPH", module.GRAPH + 1)
    Ensemble(members[:1], graphs=Graphs(tmp_path))
    assert len(_files(tmp_path)) == 3


def test_the_settings_name_the_folder(
    use_settings: Callable[[dict[str, str]], None], tmp_path: Path
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_GRAPHS": ""})
    assert Graphs.here().folder == tmp_path / "cache" / "graphs"
    use_settings({"MANYBEAM_GRAPHS": str(tmp_path / "fast")})
    assert Graphs.here().folder == tmp_path / "fast"


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


@pytest.mark.parametrize("damage", ["one bit", "half", "nothing left"])
def test_a_damaged_graph_is_made_again(tmp_path: Path, damage: str) -> None:
    members = [member_of(Network(levels=2, filters=2))]
    expected = Ensemble(members, graphs=Graphs(tmp_path)).predict(noise((64, 64)), None)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    kept = {"one bit": len(content), "half": len(content) // 2, "nothing left": 0}[damage]
    path.write_bytes(content[:kept])
    answer = Ensemble(members, graphs=Graphs(tmp_path)).predict(noise((64, 64)), None)
    np.testing.assert_array_equal(answer.prob_myx, expected.prob_myx)


def test_a_folder_that_cannot_be_written_leaves_the_answer_to_torch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    ensemble = Ensemble([member_of(Network())], graphs=Graphs(tmp_path / "file" / "graphs"))
    assert ensemble.device == "cpu"
    assert "without being compiled, more slowly" in caplog.text


class _Drawn(torch.nn.Module):
    """Answers noise, so that no graph of it can be right."""

    def forward(self, tile_ncyx: torch.Tensor) -> torch.Tensor:
        return torch.rand_like(tile_ncyx)


def test_a_graph_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "network", lambda _: _Drawn())
    with pytest.raises(WorkFailed, match="differs by"):
        to_graph(member_of(Network()))


def test_the_least_used_graphs_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    members = [member_of(Network(levels=1, filters=2), index) for index in range(3)]
    for age, member in enumerate(members):
        before = set(tmp_path.iterdir())
        Ensemble([member], graphs=Graphs(tmp_path))
        for path in set(tmp_path.iterdir()) - before:
            os.utime(path, (age, age))
    assert len(list(tmp_path.iterdir())) == 2
    first = Graphs(tmp_path)._path(members[0])
    assert not first.exists()


def test_a_graph_that_openvino_does_not_read_is_made_again(tmp_path: Path) -> None:
    members = [member_of(Network(levels=2, filters=2))]
    expected = Ensemble(members, graphs=Graphs(tmp_path)).predict(noise((64, 64)), None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(hashlib.sha256(b"of another build").digest() + b"of another build")
    found = Ensemble(members, graphs=Graphs(tmp_path))
    assert found.device == "cpu, compiled"
    np.testing.assert_array_equal(found.predict(noise((64, 64)), None).prob_myx, expected.prob_myx)


@pytest.mark.parametrize("kept_px", [0, 1 << 30], ids=["memory given back", "kept"])
def test_many_threads_get_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_px: int
) -> None:
    monkeypatch.setattr(module, "KEPT_PX", kept_px)
    ensemble = Ensemble(
        [member_of(Network(), index) for index in range(3)], graphs=Graphs(tmp_path)
    )
    frames = [noise((64 + 8 * place, 96)) for place in range(6)]
    expected = [ensemble.predict(frame, None).prob_myx for frame in frames]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda frame: ensemble.predict(frame, None).prob_myx, frames * 3))
    for place, prob_myx in enumerate(found):
        np.testing.assert_array_equal(prob_myx, expected[place % len(frames)])


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """A process that compiles and answers opens no connection and loads no telemetry."""
    script = f"""
import socket, sys
def refused(*_):
    raise SystemExit("a connection was opened")
socket.socket.connect = socket.create_connection = refused
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_compiled import Ensemble, Graphs, Network, Path, member_of, noise
ensemble = Ensemble([member_of(Network())], graphs=Graphs(Path({str(tmp_path)!r})))
ensemble.predict(noise((64, 64)), None)
assert not any(name.startswith("openvino_telemetry.") for name in sys.modules)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip().endswith("done"), done.stderr

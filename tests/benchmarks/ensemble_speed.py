"""The whole answer of an ensemble on a CPU: compiled, with torch, and AtomAI's own predictor.

    python tests/benchmarks/ensemble_speed.py --out bench/speed --atomai atomai/bin/python

Eight members of AtomAI's default network are trained by AtomAI itself and read by our importer, so
both have the same weights (without `--atomai` they are drawn at random, and no rival answers).
Eight of our U-Nets and eight band-passes answer too. All ways answer the same frames in turn, frame
by frame, so that a busy machine slows all alike; given is the median, and ratios are medians of
ratios of the same round.

`maps` is mean and standard deviation of the frame, `atoms` the whole answer: the atoms of every
member, their clusters, and maps. `rest` is `atoms` without the networks. The floor is the time of
the convolutions of these networks at the best rate that a convolution reaches on this machine.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import simulate, simulate_into
from manybeam.data.tiles import normalise, stage_tiles
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.runtime import core, cores
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.learn.training.fitted import fit_bandpass
from manybeam.learn.training.member import train_member
from manybeam.spec import Library
from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec, Training
from manybeam.zoo.exchange.atomai import AtomAIFrames, read_atomai

ROOT = Path(__file__).parents[2]
PIXEL_PM = 12.6  # so that 256 x 256 pixels of graphene are about 400 atoms
SIDES = (256, 512)
FRAMES = 4
MEMBERS = 8
CHANGE = 0.02  # of each weight, that makes further members of one that was trained
Map = NDArray[np.float32]
Way = Callable[[int, int], float]  # side, number of the frame -> seconds


def recipe_of(network: Network, normal: str) -> Recipe:
    """Return the recipe of the members of one network."""
    return Recipe(
        id=network.name.lower(),
        network=network,
        tiles=TileSpec(pixel_size_pm=PIXEL_PM, normalise=normal),
        training=Training(steps=150, batch=8),
        members=(MemberPlan(seed=0, policy="graphene-nominal"),),
    )


def learned(out: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8], Path]:
    """Return tiles of simulated graphene, their masks, and the folder of its frames."""
    policy = Library(ROOT / "zoo").policies["graphene-nominal"]
    url = out / "frames"
    simulate_into(str(url), policy, 48, seed=1, overwrite=True)
    spec = TileSpec(pixel_size_pm=PIXEL_PM, normalise="range")
    tiles = stage_tiles([FrameSet.open(str(url))], spec, out / "tiles", seed=1)
    return np.array(tiles.input_nyx), (np.array(tiles.target_nyx) > 0).astype(np.uint8), url


def changed(member: Member) -> list[Member]:
    """Return members that differ from one that was trained by noise on its weights."""
    members = [member]
    for index in range(1, MEMBERS):
        torch.manual_seed(index)
        weights = {
            name: tensor * (1 + CHANGE * torch.randn_like(tensor))
            if tensor.is_floating_point() and tensor.ndim > 1
            else tensor
            for name, tensor in member.weights.items()
        }
        members.append(replace(member, index=index, weights=weights))
    return members


def unets(url: Path, out: Path) -> list[Member]:
    """Return U-Nets of our own."""
    recipe = recipe_of(Network(filters=16, levels=4), "frame")
    tiles = stage_tiles([FrameSet.open(str(url))], recipe.tiles, out / "tiles", seed=1)
    return changed(train_member(recipe, recipe.members[0], 0, tiles))


def bandpasses(url: Path) -> list[Member]:
    """Return band-passes."""
    recipe = recipe_of(Network(name="bandpass"), "frame")
    frames = FrameSet.open(str(url))
    labelled = [(frames.frame(n), frames.truth(n), frames.pixel_size_pm(n)) for n in range(8)]
    member = fit_bandpass(recipe, recipe.members[0], 0, labelled, frames.digest)
    return changed(member)


def atomai_members(out: Path, python: str) -> list[Member]:
    """Return members that AtomAI trained; random ones of its network without it."""
    if python:
        return read_atomai(
            out / "atomai_ensemble_metadict.tar", AtomAIFrames(pixel_size_pm=PIXEL_PM)
        ).members
    recipe = recipe_of(Network(name="atomai1223bilinearNorm", filters=16, levels=4), "range")
    torch.manual_seed(0)
    weights = build(recipe.network).state_dict()
    return changed(Member(0, 0, "none", recipe, weights, (), 0.0, ""))


class Rival:
    """AtomAI's predictor in a process of its own environment."""

    def __init__(self, python: str, out: Path, tiles: Map, masks: NDArray[np.uint8]) -> None:
        script = str(Path(__file__).with_name("atomai_serving.py"))
        # Nothing of this environment may reach that one.
        plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        plain["MPLBACKEND"], model = "Agg", str(out / "atomai")
        np.savez(out / "given.npz", tiles=tiles, masks=masks)
        command = [python, script, "train", str(out / "given.npz"), model]
        if not Path(f"{model}_ensemble_metadict.tar").is_file():
            subprocess.run([*command, "--members", str(MEMBERS)], check=True, env=plain)
        self._process = subprocess.Popen(
            [python, script, "answer", model, str(out / "asked.npz")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=plain,
        )
        self.words = self._line()

    def way(self, what: str) -> Way:
        """Return its maps or its atoms as a way to answer."""

        def ask(side: int, number: int) -> float:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{what} f{side} {number}\n")
            self._process.stdin.flush()
            return float(self._line().split()[0]) / 1000

        return ask

    def end(self) -> None:
        """End its process."""
        self._process.terminate()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def ways_of(ensemble: Ensemble, frames: dict[int, Map]) -> dict[str, Way]:
    """Return how an ensemble of ours answers: networks alone, maps, atoms."""
    from manybeam.learn.nets.inference.tiled import TILE_PX, probabilities

    recipe = ensemble.members[0].recipe

    def networks(side: int, number: int) -> NDArray[np.float32]:
        seen_yx = normalise(frames[side][number], recipe.tiles.normalise, 1.0)
        runs = ensemble._engine.networks
        return probabilities(runs, seen_yx, recipe.network, TILE_PX)

    def maps(side: int, number: int) -> None:
        prob_myx = networks(side, number)[:, 0]
        np.stack([prob_myx.mean(axis=0), prob_myx.std(axis=0, ddof=1)])

    def atoms(side: int, number: int) -> None:
        found = ensemble.predict(frames[side][number], PIXEL_PM)
        np.stack([found.mean_yx, found.std_yx])

    return {one.__name__: timed(one) for one in (networks, maps, atoms)}


def timed(call: Callable[[int, int], object]) -> Way:
    """Return a call that returns its seconds instead of its result."""

    def way(side: int, number: int) -> float:
        begun = time.perf_counter()
        call(side, number)
        return time.perf_counter() - begun

    return way


def floor_s(members: Sequence[Member], side: int) -> float:
    """Return the time of the convolutions of members at the best rate of a convolution here."""
    total = 0.0
    for member in members:
        network = member.network()
        work: list[float] = []

        def count(module: torch.nn.Module, _: object, out: torch.Tensor, to: list = work) -> None:
            to.append(2.0 * out.numel() * module.weight[0].numel())

        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        with torch.inference_mode():
            network(torch.zeros(1, 1, side, side))
        total += sum(work)
    return total / best_rate()


def best_rate() -> float:
    """Return operations a second of the best convolution: 64 to 64 maps, several sizes."""
    import openvino

    best = 0.0
    for side in (64, 128, 256):
        layers = torch.nn.Sequential(
            *(torch.nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(8))
        )
        with torch.no_grad():
            example = torch.rand(1, 64, side, side)
            traced = torch.jit.trace(layers, example)
            graph = openvino.convert_model(traced, input=[1, 64, side, side])
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores()}
        request = core().compile_model(graph, "CPU", hints).create_infer_request()
        given = example.numpy()
        for _ in range(12):
            begun = time.perf_counter()
            request.infer([given])
            rate = 8 * 2.0 * 64 * 64 * 9 * side**2 / (time.perf_counter() - begun)
            best = max(best, rate)
    return best


def measure(ways: dict[str, Way], rounds: int, beside: str) -> dict[str, dict[int, list[float]]]:
    """Return median seconds of each way and size, and the median ratio of `beside` to it."""
    table: dict[str, dict[int, list[float]]] = {name: {} for name in ways}
    for side in SIDES:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for one in range(rounds + 1):
            for name, way in ways.items():
                taken = way(side, one % FRAMES)
                if one:  # the first round warms up
                    seconds[name].append(taken)
        for name, taken_n in seconds.items():
            ratio = np.median(np.array(seconds[beside]) / taken_n)
            table[name][side] = [float(np.median(taken_n)), float(ratio)]
    return table


def main() -> None:
    """Train, measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/speed"))
    parser.add_argument("--atomai", default=os.environ.get("ATOMAI_PYTHON", ""))
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    out = chosen.out
    out.mkdir(parents=True, exist_ok=True)
    condition = Library(ROOT / "zoo").condition("graphene-60kv-nominal")
    scan = condition.scan.model_copy(update={"pixel_size_pm": PIXEL_PM})
    condition = condition.model_copy(update={"scan": scan})
    frames = {
        side: simulate(condition, FRAMES, seed=5, shape=(side, side)).frames_nyx for side in SIDES
    }
    np.savez(out / "asked.npz", **{f"f{side}": stack for side, stack in frames.items()})
    tiles, masks, url = learned(out)
    rival = Rival(chosen.atomai, out, tiles, masks) if chosen.atomai else None
    graphs = Graphs(out / "graphs")
    report: dict[str, object] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": cores(),
        "rival": rival.words if rival else "none",
        "openvino": core().get_versions("CPU")["CPU"].build_number,
    }
    groups = {
        "atomai": atomai_members(out, chosen.atomai),
        "unet": unets(url, out),
        "bandpass": bandpasses(url),
    }
    for name, members in groups.items():
        compiled, eager = Ensemble(members, graphs=graphs), Ensemble(members, device="cpu")
        reduced = Ensemble(members, graphs=graphs.reduced())
        found = compiled.predict(frames[256][0], PIXEL_PM)
        beside = eager.predict(frames[256][0], PIXEL_PM)
        difference = float(np.abs(found.prob_myx - beside.prob_myx).max())
        ways = {f"compiled {key}": way for key, way in ways_of(compiled, frames).items()}
        if reduced.is_reduced:
            ways |= {f"bf16 {key}": way for key, way in ways_of(reduced, frames).items()}
        ways |= {f"torch {key}": way for key, way in ways_of(eager, frames).items()}
        if rival and name == "atomai":
            ways |= {f"AtomAI {key}": rival.way(key) for key in ("maps", "atoms")}
        table = measure(ways, chosen.rounds, "compiled atoms")
        floor = {side: floor_s(members, side) for side in SIDES}
        report[name] = {"difference": difference, "floor_s": floor, "ways": table}
        counts = {side: len(compiled.predict(frames[side][0], PIXEL_PM).atoms) for side in SIDES}
        print(f"\n{MEMBERS} x {name}: atoms {counts}, largest difference {difference:.1e}")
        print("floor, ms  " + "  ".join(f"{side}: {1000 * floor[side]:.0f}" for side in SIDES))
        print(
            f"{'way':22s}" + "".join(f"{side:>8d} ms" for side in SIDES) + "   compiled atoms to it"
        )
        for way, by_side in table.items():
            text = "".join(f"{1000 * by_side[side][0]:11.1f}" for side in SIDES)
            print(f"{way:22s}{text}   " + "  ".join(f"{by_side[side][1]:.2f}" for side in SIDES))
    if rival:
        rival.end()
    (out / "ensemble.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

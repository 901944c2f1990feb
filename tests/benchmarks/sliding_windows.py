"""Our tiles of large frames beside MONAI's sliding windows: time, seams, memory.

    python tests/benchmarks/sliding_windows.py --steps 400

One member is trained on simulated graphene. Then each way answers the same frames, in turn and in
one process, so that a busy machine slows all of them alike. A seam is the largest difference from
the network's answer to the whole frame at once. Memory is the peak of a process of its own.

Axis letters: n frame, c kind of atom, y row, x column.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import simulate, simulate_into
from manybeam.data.tiles import normalise, stage_tiles
from manybeam.learn.nets.card import MemberCard
from manybeam.learn.nets.inference.tiled import TILE_PX, probabilities
from manybeam.learn.nets.inference.torch_network import TorchNetwork, prepare
from manybeam.learn.nets.member import Member, load_weights, save_weights
from manybeam.learn.training.member import train_member
from manybeam.spec import Library
from manybeam.spec.recipe import MemberPlan, Network, Recipe, Training

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SIDES = (256, 512, 1024, 1536, 2048)
MARGIN_PX = 64  # as ours was for a U-Net of three levels; now it is 24 (decision 0040)
SMALL = 1e-6  # weight of what MONAI may not throw away: a weight of 0 is not allowed
Map = NDArray[np.float32]
Way = Callable[[nn.Module, Map, Recipe, int], Map]


def ours(network: nn.Module, frame_yx: Map, recipe: Recipe, tile_px: int) -> Map:
    """Return probabilities (c, y, x) as the ensemble computes them."""
    (prob_cyx,) = probabilities([TorchNetwork(network, CPU)], frame_yx, recipe.network, tile_px)
    return prob_cyx


def gaussian(network: nn.Module, frame_yx: Map, recipe: Recipe, tile_px: int) -> Map:
    """Return the same by MONAI's windows, blended by its Gaussian, a quarter overlapping."""
    return _monai(network, frame_yx, tile_px, overlap=0.25, mode="gaussian")


def cropped(network: nn.Module, frame_yx: Map, recipe: Recipe, tile_px: int) -> Map:
    """Return the same by MONAI's windows with weights like ours."""
    tile = min(tile_px, len(frame_yx))
    from_edge = (np.arange(tile) + 0.5 - MARGIN_PX) / MARGIN_PX
    ramp = np.clip(np.minimum(from_edge, from_edge[::-1]), SMALL, 1)
    weight = torch.from_numpy((ramp[:, None] * ramp).astype(np.float32))
    return _monai(network, frame_yx, tile_px, overlap=3 * MARGIN_PX / tile_px, weight=weight)


def _monai(
    network: nn.Module,
    frame_yx: Map,
    tile_px: int,
    *,
    overlap: float,
    mode: str = "constant",
    weight: torch.Tensor | None = None,
) -> Map:
    from monai.inferers.utils import sliding_window_inference

    def answer(batch: torch.Tensor) -> torch.Tensor:
        logits = network(batch.contiguous(memory_format=torch.channels_last))
        return logits.float().sigmoid()

    tile = min(tile_px, len(frame_yx))
    with torch.inference_mode():
        prob = sliding_window_inference(
            torch.from_numpy(frame_yx)[None, None],
            (tile, tile),
            1,
            answer,
            overlap=overlap if tile < len(frame_yx) else 0.0,
            mode=mode,
            roi_weight_map=weight if tile < len(frame_yx) else None,
        )
    assert isinstance(prob, torch.Tensor)
    return prob[0].numpy()


WAYS: dict[str, Way] = {"ours": ours, "gaussian": gaussian, "cropped": cropped}


def trained(path: Path, steps: int) -> Member:
    """Return a member trained on simulated graphene, from a file if it is there."""
    card, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if not card.is_file():
        policy = Library(ROOT / "zoo").policies["graphene-nominal"]
        frames = simulate_into(str(path / "frames"), policy, 48, seed=1)
        plan = MemberPlan(seed=1, policy=policy.id)
        recipe = Recipe(
            id="windows",
            network=Network(filters=12, levels=3),
            training=Training(steps=steps),
            members=(plan,),
        )
        tiles = stage_tiles([FrameSet.open(frames.url)], recipe.tiles, path / "tiles", seed=1)
        member = train_member(recipe, plan, 0, tiles)
        weights.write_bytes(save_weights(member.weights))
        card.write_bytes(MemberCard.of(member).to_json())
    return MemberCard.read(card.read_bytes()).to_member(load_weights(weights.read_bytes()))


def drawn(side: int) -> Map:
    """Return a simulated frame as the member sees it."""
    condition = Library(ROOT / "zoo").condition("graphene-60kv-nominal")
    made = simulate(condition, 1, seed=5, shape=(side, side))
    return np.ascontiguousarray(normalise(made.frames_nyx[0], "frame", 94.0), np.float32)


def measure(member: Member, tile_px: int, repeats: int) -> None:
    """Print seconds and seams of each way, frame by frame."""
    network = prepare(member.network(), CPU)
    print(f"\ntiles of {tile_px} px\nside px  way        median s   of ours   seam")
    for side in SIDES:
        frame_yx = drawn(side)
        whole_cyx = ours(network, frame_yx, member.recipe, side)
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        seam = {}
        for _ in range(repeats):
            for name, way in WAYS.items():
                begun = time.perf_counter()
                prob_cyx = way(network, frame_yx, member.recipe, tile_px)
                seconds[name].append(time.perf_counter() - begun)
                seam[name] = float(np.abs(prob_cyx - whole_cyx).max())
        of_ours = np.array(seconds["ours"])
        for name, taken in seconds.items():
            share = float(np.median(np.array(taken) / of_ours))
            print(f"{side:7d}  {name:9s} {np.median(taken):8.2f} {share:9.2f}   {seam[name]:.1e}")


def peak_mb(arguments: list[str]) -> float:
    """Return the peak memory of this script in a process of its own, in MB."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Train, then measure; or, with `--one`, print the peak memory of one way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/sliding-windows"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", choices=[*WAYS, "nothing"])
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    member = trained(chosen.out / "member", chosen.steps)
    if chosen.one:
        network = prepare(member.network(), CPU)
        noise_yx = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
        if chosen.one != "nothing":
            WAYS[chosen.one](network, noise_yx, member.recipe, TILE_PX)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
        return
    for tile_px in (512, TILE_PX):
        measure(member, tile_px, chosen.repeats)
    print("\npeak memory of a frame of 2048 px in tiles of 1024, with the libraries, MB")
    for name in (*WAYS, "nothing"):
        print(f"{name:9s} {peak_mb(['--out', str(chosen.out), '--one', name]):8.0f}")


if __name__ == "__main__":
    main()

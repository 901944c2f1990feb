"""Large frames in tiles: the difference from the whole frame at once, and what they cost.

    python tests/benchmarks/large_frames.py --home HOME

HOME is the folder of a platform with the version REF. The first table is made with members of drawn
weights, one of each kind of network, on simulated graphene: how many times the pixels of the frame
networks see, the largest and mean difference of a probability from the answer in one piece, and
what becomes of the atoms above the 90 % quantile of the map. The second is made with the members
of REF, and copies of them with noise on their weights: an answer without frame analysis, each
side in a process of its own. Seconds of processor time are given too, because other programs
change them less.

Axis letters: c kind of atom, y row, x column.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manybeam.learn.nets.atoms import find_atoms
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.tiled import TILE_PX, Run, probabilities
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.learn.scoring.scores import match
from manybeam.spec.recipe import MemberPlan, Network, Recipe

WHOLE_PX = 10_000  # tiles so large that there is one
SHAPES = ((1030, 1030), (1537, 1411), (300, 5000), (2500, 2300))
SIDES = (1024, 1536, 2048, 3000)
NETWORKS = (
    *(Network(levels=levels, filters=4) for levels in (1, 2, 3, 4, 5)),
    Network(name="atomai1223bilinearNorm", filters=4, levels=4),
    Network(name="atomai1223nearestNorm", filters=4, levels=4),
    Network(name="atomai1223bilinearNormDilated", filters=4, levels=4),
    Network(name="bandpass"),
    Network(name="AttentionUnet", filters=4),
    Network(name="BasicUNet", filters=4),
    Network(name="SegResNet", filters=8),
)
CONDITION = "graphene-60kv-nominal"


def drawn(network: Network) -> Member:
    """Return a member of drawn weights, its batch norms far from doing nothing."""
    recipe = Recipe(id="drawn", network=network, members=(MemberPlan(seed=0, policy="any"),))
    torch.manual_seed(0)
    made = build(network)
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return Member(0, 0, "any", recipe, made.state_dict(), (), 0.0, "")


def compare(member: Member, run: Run, frame_yx: NDArray[np.float32]) -> str:
    """Return a row: pixels seen, differences of probability, atoms."""
    seen = []

    def noted(tile_yx: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(tile_yx.size)
        return run(tile_yx)

    network = member.recipe.network
    (whole_yx,), (tiled_yx,) = (
        probabilities([one], frame_yx, network, side)[0]
        for one, side in ((run, WHOLE_PX), (noted, TILE_PX))
    )
    far_yx = np.abs(whole_yx - tiled_yx)
    threshold = float(np.quantile(whole_yx, 0.9))
    whole, tiled = (find_atoms(one, threshold) for one in (whole_yx, tiled_yx))
    pairs = match(tiled[:, :2], whole[:, :2], 1.5)
    sides = " x ".join(map(str, frame_yx.shape))
    lost, new = len(whole) - len(pairs), len(tiled) - len(pairs)
    moved = int((pairs.distance_px > 0.01).sum())
    return (
        f"| {network.name} {network.levels} | {sides} | {len(seen)} | "
        f"{sum(seen) / frame_yx.size:.2f} | {far_yx.max():.1e} | {far_yx.mean():.1e} | "
        f"{len(whole)} | {lost} | {new} | {moved} |"
    )


def differences() -> None:
    """Print the first table."""
    from select_cost import simulated  # of this folder, which only a script has in its path

    titles = "network | frame px | tiles | seen | max | mean | atoms | lost | new | moved > .01 px"
    print(f"| {titles} |\n{'|---' * 10}|")
    large_yx = simulated(CONDITION, max(map(max, SHAPES))).pixels_yx
    large_yx = (large_yx - large_yx.mean()) / large_yx.std()
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            member = drawn(network)
            (run,) = Graphs(Path(folder)).networks([member]) or (None,)
            assert run is not None, f"{network.name} cannot be compiled"
            for rows, columns in SHAPES:
                frame_yx = np.ascontiguousarray(large_yx[:rows, :columns])
                print(compare(member, run, frame_yx), flush=True)


def cost(ref: str, count: int, side: int, rounds: int) -> None:
    """Print a row of the second table."""
    from select_cost import made, simulated

    from manybeam.predictor.answer import Question
    from manybeam.predictor.predictor import Predictor

    ((_, versions),) = made(ref, [count])
    predictor, question = Predictor(versions), Question(ref, is_quick=True)
    predictor.answer(simulated(CONDITION, 256), question)
    frame, before_mb = simulated(CONDITION, side), peak_mb()
    taken: list[tuple[float, float]] = []
    answer: Any = None
    for _ in range(rounds):
        begun = time.perf_counter(), time.process_time()
        answer = predictor.answer(frame, question)
        taken.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    wall_s, processor_s = np.median(taken, axis=0)
    print(
        f"| {side} | {len(answer.atoms)} | {wall_s:.1f} | {processor_s:.1f} | "
        f"{processor_s / side**2 * 1e6:.2f} | {before_mb:.0f} | {peak_mb():.0f} |"
    )


def peak_mb() -> float:
    """Return the largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Print both tables; or, with `--side`, one row of the second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ref", default="graphene")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--sides", type=int, nargs="*", default=SIDES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["differences", "cost"])
    parser.add_argument("--side", type=int)
    given = parser.parse_args()
    os.environ["MANYBEAM_HOME"] = str(given.home)
    if given.side:
        cost(given.ref, given.members, given.side, given.rounds)
        return
    if given.only != "cost":
        differences()
    if given.only != "differences":
        print("| side px | atoms | s | processor s | of it per Mpx | MB before | peak MB |")
        print("|---" * 7 + "|", flush=True)
        for side in given.sides:
            subprocess.run([sys.executable, *sys.argv, "--side", str(side)], check=True)


if __name__ == "__main__":
    main()

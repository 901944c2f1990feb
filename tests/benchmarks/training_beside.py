"""How long answers take beside a training on the same cores, before and after it gives way.

    python tests/benchmarks/training_beside.py --rounds 6

Two real trainings of U-Nets and one process that answers frames of 256 x 256 px run in each of two
groups: `as before`, where Ray gave all of them a niceness of 15, and `gives way`, where the answers
have 0 and the trainings called `give_way`. By turns, one group is stopped (SIGSTOP), so other
programs on the machine slow both alike. `alone` are answers while both trainings are stopped, and
trainings while the answers are.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from manybeam.spec.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAUSE_S = 0.1  # between two answers
RAYS_NICENESS = 15


def recipe_of(steps: int) -> "Recipe":
    """Return a recipe of two small U-Nets."""
    from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec, Training

    return Recipe(
        id="beside",
        network=Network(filters=8, levels=4),
        tiles=TileSpec(tile_px=96, pixel_size_pm=16.0),
        training=Training(steps=steps, batch=8),
        members=tuple(MemberPlan(seed=seed, policy="graphene-nominal") for seed in range(4)),
    )


def set_priority(group: str, role: str) -> None:
    """Take the priority that a process of a group has."""
    from manybeam.cluster.joining import give_way

    if group == "before":
        os.setpriority(os.PRIO_PROCESS, 0, RAYS_NICENESS)
    elif role == "train":
        give_way()


def answer(folder: Path) -> None:
    """Answer one frame after another; write a line with the milliseconds of each."""
    import torch

    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.learn.nets.inference.graphs import Graphs
    from manybeam.learn.nets.member import Member
    from manybeam.learn.nets.networks import build

    torch.manual_seed(0)
    recipe = recipe_of(1)
    weights = build(recipe.network).state_dict()
    members = [Member(n, n, "none", recipe, weights, (), 0.0, "") for n in range(4)]
    ensemble = Ensemble(members, graphs=Graphs(folder / "graphs"))
    frame_yx = np.zeros((256, 256), np.float32)
    frame_yx[::16, ::16] = 1.0
    while True:
        begun = time.perf_counter()
        ensemble.predict(frame_yx, 16.0)
        print(1000 * (time.perf_counter() - begun), flush=True)
        time.sleep(PAUSE_S)


def train(folder: Path) -> None:
    """Train until killed; write a line after each step."""
    import torch

    from manybeam.data.frames import FrameSet
    from manybeam.data.tiles import stage_tiles
    from manybeam.learn.training.member import train_member

    torch.set_num_threads(1)
    recipe = recipe_of(100_000)
    frames = FrameSet.open(str(folder / "frames"))
    tiles = stage_tiles([frames], recipe.tiles, folder / f"tiles-{os.getpid()}", seed=1)
    train_member(recipe, recipe.members[0], 0, tiles, on_step=lambda *_: print(1, flush=True))


class Worker:
    """A process of one group, which is stopped until its turn."""

    def __init__(self, group: str, role: str, number: int, folder: Path) -> None:
        self.out = folder / f"{group}-{role}-{number}.txt"
        command = [sys.executable, __file__, "--work", group, role, str(folder)]
        with self.out.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out)

    def lines(self) -> list[float]:
        """Return what it wrote."""
        return [float(line) for line in self.out.read_text().splitlines()]

    def go(self, *, on: bool) -> None:
        """Let it go on, or stop it."""
        self._process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def measure(workers: dict[str, list[Worker]], rounds: int, seconds: float) -> None:
    """Let the groups take turns, and print the table."""
    everyone = [one for own in workers.values() for one in own]
    turns = {
        "answers alone": workers["after"][:1],
        "as before": workers["before"],
        "gives way": workers["after"],
        "training alone": workers["after"][1:],
    }
    times: dict[str, list[float]] = {name: [] for name in turns}
    steps = dict.fromkeys(turns, 0)
    for _ in range(rounds):
        for name, own in turns.items():
            before = [len(one.lines()) for one in own]
            for one in own:
                one.go(on=True)
            time.sleep(seconds)
            for one in own:
                one.go(on=False)
            for one, count in zip(own, before, strict=True):
                new = one.lines()[count:]
                if "answer" in one.out.name:
                    times[name] += new[1:]  # the first was stopped meanwhile
                else:
                    steps[name] += len(new)
    print(f"{'':18s}{'p50 ms':>8s}{'p99 ms':>8s}{'answers':>9s}{'steps/s':>9s}")
    for name, found in times.items():
        p50, p99 = np.percentile(found, [50, 99]) if found else (np.nan, np.nan)
        rate = steps[name] / (rounds * seconds)
        print(f"{name:18s}{p50:8.0f}{p99:8.0f}{len(found):9d}{rate:9.2f}", flush=True)
    for one in everyone:
        one.end()


def main() -> None:
    """Start all, wait until they work, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        group, role, place = given.work
        set_priority(group, role)
        {"answer": answer, "train": train}[role](Path(place))
        return
    from manybeam.data.simulation.simulate import simulate_into
    from manybeam.spec import Library

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        policy = Library(ROOT / "zoo").policies["graphene-nominal"]
        simulate_into(str(folder / "frames"), policy, 16, seed=1)
        roles = (("answer", 0), ("train", 0), ("train", 1))
        workers: dict[str, list[Worker]] = {"before": [], "after": []}
        for group, own in workers.items():
            for role, number in roles:
                own.append(Worker(group, role, number, folder))
                while len(own[-1].lines()) < 3:
                    time.sleep(0.2)
                own[-1].go(on=False)
        measure(workers, given.rounds, given.seconds)


if __name__ == "__main__":
    main()

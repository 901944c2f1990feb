"""Speed and memory of the simulator against frame size and atoms, one thread: prints a table.

    python tests/benchmarks/simulator_reach.py            # about two minutes
    python tests/benchmarks/simulator_reach.py speed      # frames a second of the zoo's policies

Each size runs in a process of its own, so that its peak of memory is its own.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

ZOO = Path(__file__).parents[2] / "zoo"
SIZES = (128, 256, 512, 1024, 2048, 4096)
CONDITIONS = ("graphene-60kv-nominal", "mos2-60kv-nominal", "lsmo-200kv-110", "ptnc-sim-nominal")
POLICIES = ("graphene-general", "mos2-general", "lsmo-general", "gold-general", "pt-nominal")


def _reach(condition: str, side_px: int) -> None:
    """Print one row: a frame of one size, after a small one has warmed everything up."""
    import torch

    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec import Library

    torch.set_num_threads(1)
    imaging = Library(ZOO).condition(condition)
    simulate(imaging, 1, seed=0, shape=(64, 64))
    before = _peak_gb()
    start = time.process_time()
    made = simulate(imaging, 1, seed=0, shape=(side_px, side_px))
    wall_s = time.process_time() - start
    row = f"| {condition} | {side_px} | {len(made.truth[0])} | {wall_s:.3f} |"
    print(f"{row} {_peak_gb():.2f} | {_peak_gb() - before:.2f} |", flush=True)


def _speed(policy: str, count: int = 96) -> None:
    import torch

    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec import Library

    torch.set_num_threads(1)
    imaging = Library(ZOO).policy(policy)
    simulate(imaging, 16, seed=0, shape=(128, 128))
    start = time.process_time()
    simulate(imaging, count, seed=1, shape=(128, 128))
    print(f"| {policy} | {count / (time.process_time() - start):.0f} |", flush=True)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _main(words: list[str]) -> None:
    if words == ["speed"]:
        print("| policy | frames of 128 x 128 a second of processor time |\n|---|---|")
        for policy in POLICIES:
            _speed(policy)
    elif words:
        _reach(words[0], int(words[1]))
    else:
        print("| condition | side [px] | told atoms | processor [s] | peak [GiB] | of it [GiB] |")
        print("|---|---|---|---|---|---|", flush=True)
        for condition in CONDITIONS:
            for side_px in SIZES:
                subprocess.run([sys.executable, __file__, condition, str(side_px)], check=True)


if __name__ == "__main__":
    _main(sys.argv[1:])

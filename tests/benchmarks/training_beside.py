"""How long answers take while a training runs on the same cores, and how long the training takes.

    python tests/benchmarks/training_beside.py --steps 120

The service of `fair_share.py` answers one frame of 256 x 256 px after another: alone, then while
the six members of a shortened recipe `quickstart` are trained by two workers, then that alone.
"""

import argparse
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from fair_share import Sender, running_service, token_of

ROOT = Path(__file__).parents[2]


def shortened(folder: Path, steps: int) -> Path:
    """Return a copy of the project's zoo whose recipe `quickstart` has so many steps."""
    copy = Path(shutil.copytree(ROOT / "zoo", folder / "zoo"))
    recipe = copy / "recipes" / "quickstart.yaml"
    text = re.sub(r"steps: \d+", f"steps: {steps}", recipe.read_text())
    recipe.write_text(re.sub(r"frames_per_policy: \d+", "frames_per_policy: 24", text))
    return copy


def train_once(zoo: Path, store: Path) -> float:
    """Train on the cluster of the service; return the seconds."""
    from manybeam.jobs.train import train
    from manybeam.spec import Job, Library

    job = Job.model_validate(
        {
            "kind": "train",
            "name": "beside",
            "recipe": "quickstart",
            "frames": ["simulate:"],
            "resources": {"workers": 2, "cpus_per_worker": 1},
        }
    )
    begun = time.monotonic()
    train(job, Library(zoo), str(store))
    return time.monotonic() - begun


def answers(sender: Sender, until: threading.Event) -> list[float]:
    """Return the times of answers, one after the other with pauses of 0.2 s."""
    times = []
    while not until.wait(0.2):
        status, taken_s = sender.send()
        assert status == 200
        times.append(1000 * taken_s)
    return times


def told(name: str, times: list[float], training_s: float) -> None:
    """Print a line of the table."""
    shown = np.percentile(times, [50, 99]) if times else (np.nan, np.nan)
    print(f"{name:24s}{shown[0]:8.0f}{shown[1]:8.0f}{len(times):8d}{training_s:12.1f}", flush=True)


def main() -> None:
    """Start a service, measure, and end it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--port", type=int, default=8179)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service(folder, given.port) as url:
        from manybeam.cluster import joining

        zoo = shortened(Path(folder), given.steps)
        joining.connect()
        sender = Sender(url, token_of("STEM-1"))
        time.sleep(5.0)  # until the replica has read the token
        for _ in range(5):
            sender.send()
        stop = threading.Event()
        threading.Timer(20.0, stop.set).start()
        print(f"{'':24s}  p50, p99 [ms], answers, training [s]")
        told("answers alone", answers(sender, stop), np.nan)
        ended, taken = threading.Event(), list[float]()

        def training() -> None:
            try:
                taken.append(train_once(zoo, Path(folder) / "beside"))
            finally:
                ended.set()

        thread = threading.Thread(target=training)
        thread.start()
        times = answers(sender, ended)
        thread.join()
        told("beside a training", times, taken[0])
        told("training alone", [], train_once(zoo, Path(folder) / "alone"))
        joining.disconnect()


if __name__ == "__main__":
    main()

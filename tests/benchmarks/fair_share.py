"""How long a polite instrument waits while its neighbour floods the service.

    python tests/benchmarks/fair_share.py --seconds 60 --flood 16

It registers an ensemble of four U-Nets with drawn weights in a home of its own, starts the service
with tokens on a cluster of its own, and sends frames of 256 x 256 px: STEM-1 one each second, alone
and then beside STEM-2, which has `--flood` connections and sends again as soon as it is answered or
refused. Printed are the times of STEM-1's answers, and what each was refused.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import urllib3

ROOT = Path(__file__).parents[2]
MEMBERS = 4
REFUSED_PAUSE_S = 0.02  # of the flood, after a refusal; Retry-After is not obeyed
COLUMNS = "p50, p99, largest [ms]"


def register() -> None:
    """Register the ensemble `fair` in the zoo of the settings."""
    import torch

    from manybeam.learn.nets.member import Member
    from manybeam.learn.nets.networks import build
    from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec
    from manybeam.zoo.registry import Zoo

    plans = tuple(MemberPlan(seed=seed, policy="graphene-nominal") for seed in range(MEMBERS))
    network, tiles = Network(filters=16, levels=4), TileSpec(pixel_size_pm=16.0)
    recipe = Recipe(id="fair", network=network, tiles=tiles, members=plans)
    torch.manual_seed(0)
    members = [
        Member(p.seed, p.seed, p.policy, recipe, build(network).state_dict(), (), 0.1, "0")
        for p in plans
    ]
    Zoo().register("fair", members, job={"kind": "train"}, alias="serving")


def token_of(instrument: str) -> str:
    """Return a token of a new instrument."""
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Instruments, Tokens

    Instruments(open_database()).add(instrument)
    return Tokens(open_database()).create(instrument, ["predict"], instrument=instrument)[0]


class Sender:
    """Sends one frame again and again with the token of an instrument."""

    def __init__(self, url: str, token: str) -> None:
        stream = io.BytesIO()
        np.save(stream, np.random.default_rng(0).random((256, 256), dtype=np.float32))
        self._url, self._body = f"{url}/v1/predict/fair?pixel_size_pm=16", stream.getvalue()
        self._headers = {"Content-Type": "application/x-npy", "Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(retries=False, timeout=120.0, maxsize=64)
        self.statuses: Counter[int] = Counter()

    def send(self) -> tuple[int, float]:
        """Send it; return the status and the seconds until the answer."""
        begun = time.monotonic()
        answer = self._pool.request("POST", self._url, body=self._body, headers=self._headers)
        self.statuses[answer.status] += 1
        return answer.status, time.monotonic() - begun


def polite(sender: Sender, seconds: float) -> list[float]:
    """Send one frame each second; return the times of those that were answered."""
    times, begun = [], time.monotonic()
    for number in range(int(seconds)):
        time.sleep(max(0.0, begun + number - time.monotonic()))
        status, taken_s = sender.send()
        if status == 200:
            times.append(1000 * taken_s)
    return times


def flooding(sender: Sender, connections: int, stop: threading.Event) -> list[threading.Thread]:
    """Start connections that send until `stop`."""

    def flood() -> None:
        while not stop.is_set():
            if sender.send()[0] != 200:
                time.sleep(REFUSED_PAUSE_S)

    threads = [threading.Thread(target=flood) for _ in range(connections)]
    for thread in threads:
        thread.start()
    return threads


def row(name: str, times: list[float], statuses: Counter[int]) -> str:
    """Return a line of the table."""
    p50, p99 = np.percentile(times, [50, 99]) if times else (np.nan, np.nan)
    return f"{name:24s}{p50:8.0f}{p99:8.0f}{max(times, default=np.nan):8.0f}   {dict(statuses)}"


@contextmanager
def running_service(home: str, port: int) -> Iterator[str]:
    """Start a platform with a service that requires tokens; return its URL; end both."""
    os.environ["MANYBEAM_HOME"], os.environ["MANYBEAM_ZOO"] = home, str(ROOT / "zoo")
    register()
    command = [sys.executable, "-m", "manybeam"]
    try:
        subprocess.run(
            [*command, "serve", "up", "fair", "--tokens", "--port", str(port)], check=True
        )
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "serve", "stop"], check=False)
        subprocess.run([*command, "down"], check=False)


def measure(url: str, seconds: float, floods: list[int]) -> None:
    """Print the table."""
    texts = {name: token_of(name) for name in ("STEM-1", "STEM-2")}
    time.sleep(5.0)  # until the replica has read the tokens
    warm = Sender(url, texts["STEM-1"])
    for _ in range(5):
        warm.send()
    print(f"{'STEM-1 beside':24s}{COLUMNS}, statuses of STEM-1; of the flood")
    for count in floods:
        own, other = Sender(url, texts["STEM-1"]), Sender(url, texts["STEM-2"])
        stop = threading.Event()
        threads = flooding(other, count, stop)
        time.sleep(3.0 if count else 0.0)
        times = polite(own, seconds)
        stop.set()
        for thread in threads:
            thread.join()
        name = f"{count} flooding" if count else "nobody"
        print(row(name, times, own.statuses), dict(other.statuses), flush=True)


def main() -> None:
    """Start a service, measure, and end it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--flood", type=int, nargs="+", default=[0, 16, 64])
    parser.add_argument("--port", type=int, default=8177)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service(folder, given.port) as url:
        measure(url, given.seconds, given.flood)


if __name__ == "__main__":
    main()

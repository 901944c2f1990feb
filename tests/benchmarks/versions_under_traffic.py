"""What a new version under traffic costs the live answers, on a real service with trained versions.

    python tests/benchmarks/versions_under_traffic.py HOME NEW [--rate 2] [--seconds 20]

HOME is the folder of a platform where a version of an ensemble serves; NEW is another version of
it, as graphene@2. A copy of HOME is used. One instrument sends frames at a steady rate, in turn
without and with a shadow; then NEW is promoted from a canary and rolled back under the same load.
"""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from manybeam.data.simulation.simulate import simulate
from manybeam.spec import Library

ROOT = Path(__file__).parents[2]
SIDE_PX, PIXEL_PM = 256, 16.0
HEADERS = {"Content-Type": "application/x-npy", "Accept": "application/json"}


@dataclass
class Platform:
    """A platform that this script starts in a copy of a home."""

    home: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *words: str) -> str:
        own = {"MANYBEAM_HOME": str(self.home), "MANYBEAM_SERVICE_URL": self.url}
        done = subprocess.run(
            [sys.executable, "-m", "manybeam", *words],
            env={**os.environ, **own}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"manybeam {' '.join(words)}: {done.stderr}")
        return done.stdout

    def rows(self, *words: str) -> list[dict[str, Any]]:
        return list(json.loads(self.run(*words, "-o", "json")))


@dataclass
class Load:
    """An instrument that sends frames at a steady rate."""

    platform: Platform
    name: str
    bodies: list[bytes]
    rate: float
    deadline_ms: int
    rows: list[tuple[float, float, int, str]] = field(default_factory=list)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._send, args=(ended,))
        thread.start()
        yield
        ended.set()
        thread.join()

    def _send(self, ended: threading.Event) -> None:
        query = f"pixel_size_pm={PIXEL_PM:g}&instrument=STEM-1&deadline_ms={self.deadline_ms}"
        with urllib3.PoolManager(retries=False, timeout=60.0) as http:
            begun, number = time.monotonic(), 0
            while not ended.wait(max(0.0, begun + number / self.rate - time.monotonic())):
                target = f"{self.platform.url}/v1/predict/{self.name}?{query}&frame_id=f{number}"
                body, at = self.bodies[number % len(self.bodies)], time.time()
                answer = http.request("POST", target, body=body, headers=HEADERS)
                took_ms = (time.time() - at) * 1000
                ref = answer.json()["meta"]["ref"] if answer.status == 200 else ""
                self.rows.append((at, took_ms, answer.status, ref))
                number += 1


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("home", type=Path)
    words.add_argument("new")
    words.add_argument("--rate", type=float, default=2.0)
    words.add_argument("--seconds", type=float, default=20.0)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--deadline-ms", type=int, default=2000)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        home = Path(folder) / "home"
        shutil.copytree(asked.home, home)
        platform = Platform(home, port)
        name = asked.new.partition("@")[0]
        try:
            platform.run("serve", "up", name)
            load = Load(platform, name, _bodies(), asked.rate, asked.deadline_ms)
            _shadow(platform, load, asked.new, asked.seconds, asked.rounds)
            _swap(platform, load, asked.new)
        finally:
            platform.run("down")


def _bodies() -> list[bytes]:
    condition = Library(ROOT / "zoo").condition("graphene-60kv-nominal")
    made = simulate(condition, 8, seed=5, shape=(SIDE_PX, SIDE_PX))
    streams = [io.BytesIO() for _ in made.frames_nyx]
    for stream, frame_yx in zip(streams, made.frames_nyx, strict=True):
        np.save(stream, frame_yx.astype(np.float32))
    return [stream.getvalue() for stream in streams]


def _shadow(platform: Platform, load: Load, new: str, seconds: float, rounds: int) -> None:
    """Print the times of live answers without and with a shadow, in turn."""
    took: dict[str, list[float]] = {"without": [], "with": []}
    bad = 0
    _while_sending(load, 5.0)
    for _ in range(rounds):
        took["without"] += _while_sending(load, seconds)
        bad += _bad(load)
        platform.run("serve", "shadow", new)
        time.sleep(8)  # until it is loaded
        took["with"] += _while_sending(load, seconds)
        bad += _bad(load)
        rows = platform.rows("serve", "shadow")
        print("shadow:", {key: rows[0][key] for key in ("frames", "agreed", "skipped", "failed")})
        platform.run("serve", "rollback", load.name)
        time.sleep(3)
    for name, ms in took.items():
        p50, p90, p99 = np.percentile(ms, [50, 90, 99])
        print(f"{name:>8} a shadow: n {len(ms)}, p50 {p50:.0f} ms, p90 {p90:.0f}, p99 {p99:.0f}")
    print(f"failed or late: {bad}")


def _swap(platform: Platform, load: Load, new: str) -> None:
    """Print how fast a promotion and a rollback take effect under load, and what failed."""
    load.rows.clear()
    platform.run("serve", "canary", new, "--share", "0.5")
    with load.going_on():
        time.sleep(10)
        platform.run("serve", "promote", load.name, "--force", "--reason", "benchmark")
        time.sleep(15)
        platform.run("serve", "rollback", load.name)
        time.sleep(15)
    done = {one["action"]: one["when"] for one in platform.rows("zoo", "audit", load.name)[::-1]}
    promoted, back = (
        datetime.fromisoformat(done[f"{verb} done"]).timestamp() for verb in ("promote", "rollback")
    )
    last_old = [at for at, _, _, ref in load.rows if promoted < at < back and ref not in ("", new)]
    last_new = [at for at, _, _, ref in load.rows if at > back and ref == new]
    print(f"promotion: only {new} after {max(last_old, default=promoted) - promoted:.1f} s")
    print(f"rollback: none of {new} after {max(last_new, default=back) - back:.1f} s")
    p50, p99 = np.percentile([ms for _, ms, _, _ in load.rows], [50, 99])
    print(
        f"{len(load.rows)} frames, p50 {p50:.0f} ms, p99 {p99:.0f} ms; failed or late: {_bad(load)}"
    )


def _while_sending(load: Load, seconds: float) -> list[float]:
    load.rows.clear()
    with load.going_on():
        time.sleep(seconds)
    return [ms for _, ms, _, _ in load.rows]


def _bad(load: Load) -> int:
    return sum(status != 200 for _, _, status, _ in load.rows)


if __name__ == "__main__":
    main()

"""Several instruments with sessions on a real service, for minutes: nothing lost, memory flat.

    python tests/benchmarks/soak.py --home HOME --instruments 8 --minutes 10

HOME is the folder of a platform where a calibrated version serves; a copy of it is used. Each
instrument has a session and sends simulated frames of a condition that changes now and then, one
at a time. A short ramp without pauses finds the rate that the machine sustains; then they send at
80 % of it. A frame that cannot be sent in time, because the one before it is not answered, is
dropped by the instrument, as a camera does; it is counted, and it is no frame that was sent.

Goals: lost (sent, but neither answered nor refused with a reason) 0, and the memory of the
service's processes at the end within 5 % of that at minute 2. The exit code is 1 if one is missed.
"""

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import urllib3

CONDITIONS = ("nominal", "dirty", "lowdose", "coarse", "defocus", "mix-b", "16k", "source")
SIDE_PX, FRAMES = 256, 6  # of each condition
BLOCK = 60  # frames of one condition, then the next one
SHARE = 0.8  # of the rate that is sustained
DEADLINE_MS = 5000
EVERY_S = 30.0  # between two looks at the memory
FLAT = 1.05
HEADERS = {"Content-Type": "application/x-npy", "Accept": "application/json"}


@dataclass
class Instrument:
    """One instrument, and what it saw."""

    name: str
    url: str
    frames: Sequence[tuple[bytes, float]]
    sent: int = 0
    dropped: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    repeated: int = 0
    took_ms: list[float] = field(default_factory=list)

    def send(self, rate: float, end_s: float) -> None:
        """Send frames until a time; at no rate, each as soon as the one before is answered."""
        with urllib3.PoolManager(retries=False, timeout=60.0) as http:
            due_s = time.monotonic()
            while (now := time.monotonic()) < end_s:
                if rate:
                    late = int((now - due_s) * rate)
                    self.dropped, due_s = self.dropped + max(late, 0), due_s + max(late, 0) / rate
                    time.sleep(max(0.0, due_s - now))  # an instrument sends at a steady rate
                    due_s += 1 / rate
                self._one(http)

    def _one(self, http: urllib3.PoolManager) -> None:
        number, self.sent = self.sent, self.sent + 1
        body, size_pm = self.frames[(number // BLOCK * FRAMES + number % FRAMES) % len(self.frames)]
        query = f"instrument={self.name}&frame_id=f{number}&pixel_size_pm={size_pm:g}"
        url, begun = (
            f"{self.url}/v1/predict/auto?{query}&deadline_ms={DEADLINE_MS}",
            time.monotonic(),
        )
        try:
            answer = http.request("POST", url, body=body, headers=HEADERS)
            content = answer.json()
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            self.statuses[f"lost: {type(error).__name__}"] += 1
            return
        if answer.status == 200:
            self.statuses["answered"] += 1
            self.took_ms.append(1000 * (time.monotonic() - begun))
            self.degraded += bool(content["meta"]["degraded"])
            self.repeated += bool(content["meta"]["session"]["repeated"])
        elif content.get("detail"):
            self.statuses[f"{answer.status} {content['title']}"] += 1
        else:
            self.statuses[f"lost: {answer.status} without a reason"] += 1

    @property
    def lost(self) -> int:
        """Frames that were sent and got neither an answer nor a reason."""
        refused = sum(n for name, n in self.statuses.items() if not name.startswith("lost"))
        return self.sent - refused


class Memory:
    """The resident memory of a platform's processes, looked at every half minute."""

    def __init__(self, home: Path, begun_s: float) -> None:
        self._home, self._begun_s = str(home), begun_s
        self.rows: list[tuple[float, dict[str, float]]] = []

    def watch(self, is_over: threading.Event) -> None:
        """Look until it is over, and once more then."""
        while True:
            self.look()
            if is_over.wait(EVERY_S):
                return

    def look(self) -> None:
        """Note the memory now, in MB, by kind of process."""
        found: dict[str, float] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it ended meanwhile, or belongs to another user
                if process.environ().get("MANYBEAM_HOME") == self._home:
                    name = kind_of(process)
                    found[name] = found.get(name, 0.0) + process.memory_info().rss / 1e6
        at = time.monotonic() - self._begun_s
        found["all"] = sum(found.values())
        self.rows.append((at, found))
        print(f"{at:6.0f} s " + ", ".join(f"{k} {v:.0f}" for k, v in sorted(found.items())) + " MB",
              flush=True)  # fmt: skip

    def growth(self) -> dict[str, float]:
        """Return how many times its size at minute 2 (or at the first look after it) each has."""
        begun = next((row for at, row in self.rows if at >= 120), self.rows[0][1])
        end = self.rows[-1][1]
        return {name: end[name] / begun[name] for name in end if name in begun}


def kind_of(process: psutil.Process) -> str:
    """Return what a process of the platform is, in a word."""
    title = " ".join(process.cmdline())
    for word, name in (
        ("ServeReplica", "replica"), ("ProxyActor", "proxy"), ("haproxy", "haproxy"),
        ("ServeController", "controller"), ("raylet", "raylet"), ("gcs_server", "gcs"),
    ):  # fmt: skip
        if word in title:
            return name
    return "other"


def frames_of(place: int) -> list[tuple[bytes, float]]:
    """Return frames of all conditions, each instrument beginning with another one."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec.facility import facility_library

    found, library = [], facility_library()
    for number in range(len(CONDITIONS)):
        name = f"graphene-60kv-{CONDITIONS[(place + number) % len(CONDITIONS)]}"
        made = simulate(
            library.condition(name), FRAMES, seed=77_000 + place, shape=(SIDE_PX, SIDE_PX)
        )
        for pixels_yx, size_pm in zip(made.frames_nyx, made.pixel_size_pm, strict=True):
            stream = io.BytesIO()
            np.save(stream, pixels_yx.astype(np.float32))
            found.append((stream.getvalue(), float(size_pm)))
    return found


def during(instruments: Sequence[Instrument], rate: float, seconds: float) -> float:
    """Let all send for some seconds; return how many were answered in a second."""
    before = sum(one.statuses["answered"] for one in instruments)
    begun = time.monotonic()
    threads = [
        threading.Thread(target=one.send, args=(rate, begun + seconds)) for one in instruments
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = sum(one.statuses["answered"] for one in instruments)
    return (after - before) / (time.monotonic() - begun)


def soaked(url: str, home: Path, given: argparse.Namespace) -> bool:
    """Put sessions, find the rate, send; print all, and return whether the goals are kept."""
    instruments = [
        Instrument(f"SOAK-{place}", url, frames_of(place)) for place in range(given.instruments)
    ]
    with urllib3.PoolManager() as http:
        for one in instruments:
            answer = http.request("PUT", f"{url}/v1/instruments/{one.name}/session", body=b"{}")
            assert answer.status == 200, answer.data
    ramp = during(instruments, 0.0, given.ramp_s)
    ramp = during(instruments, 0.0, given.ramp_s)  # now the pace is known, and what is lazy is done
    rate = SHARE * ramp / len(instruments)
    print(f"the machine sustains {ramp:.1f} frames a second; each instrument sends {rate:.2f}")
    for one in instruments:
        one.took_ms.clear()
    is_over, memory = threading.Event(), Memory(home, time.monotonic())
    watching = threading.Thread(target=memory.watch, args=(is_over,))
    watching.start()
    got = during(instruments, rate, 60 * given.minutes)
    is_over.set()
    watching.join()
    memory.look()
    return told(instruments, memory, got)


def told(instruments: Sequence[Instrument], memory: Memory, got: float) -> bool:
    """Print what the instruments saw; return whether the goals are kept."""
    print(f"{got:.1f} frames a second were answered")
    print("| instrument | sent | answered | degraded | dropped | p50 ms | p99 ms | lost | other |")
    print("|---" * 9 + "|")
    for one in instruments:
        p50, p99 = np.percentile(one.took_ms or [np.nan], [50, 99])
        others = {name: n for name, n in one.statuses.items() if name != "answered"}
        print(f"| {one.name} | {one.sent} | {one.statuses['answered']} | {one.degraded} | "
              f"{one.dropped} | {p50:.0f} | {p99:.0f} | {one.lost} | {others or ''} |")  # fmt: skip
    with urllib3.PoolManager() as http:
        for one in instruments:
            url = f"{one.url}/v1/instruments/{one.name}/session?frames=1"
            counts = http.request("GET", url).json()["counts"]
            print(f"{one.name}: {counts}, repeated {one.repeated}")
            if counts["frames"] != one.statuses["answered"]:
                print(f"  the history holds {counts['frames']}, not {one.statuses['answered']}")
    growth, lost = memory.growth(), sum(one.lost for one in instruments)
    print("memory, end to minute 2:", {name: round(value, 3) for name, value in growth.items()})
    is_flat = growth["all"] <= FLAT
    print(f"lost {lost} (goal 0); memory {'flat' if is_flat else f'GROWN (goal {FLAT:g})'}")
    return lost == 0 and is_flat


def main() -> int:
    """Start a service on a copy of the home, soak it, and end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ref", default="graphene")
    parser.add_argument("--instruments", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--ramp-s", type=float, default=15.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        home = Path(folder) / "home"
        shutil.copytree(given.home, home)
        os.environ |= {"MANYBEAM_HOME": str(home), "MANYBEAM_SERVICE_URL": url}
        manybeam = [sys.executable, "-m", "manybeam"]
        try:
            subprocess.run([*manybeam, "serve", "up", given.ref], check=True)
            is_kept = soaked(url, home, given)
        finally:
            subprocess.run([*manybeam, "down"], check=True)
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())

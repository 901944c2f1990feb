"""A stream beside single requests, through cuts of the network and an outage, and for a long time.

    manybeam serve up graphene --port 8100
    python tests/benchmarks/streams.py --url http://127.0.0.1:8100 --out bench/streams

`rate`: frames a second of single requests, and of streams over a WebSocket and over HTTP with one
to four frames in flight, in turn. `cuts`: the connection is reset again and again while frames
stream; every frame must be answered once, and stand once in the history of the session. `outage`:
the network is gone for a while; the loop goes on, and the time until the first answer after it is
told. `memory`: of this process, while frames are streamed.
"""

import argparse
import json
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import urllib3
from urllib3.util import parse_url

from manybeam_client import Session

CONDITION, PIXEL_PM = "graphene-60kv-nominal", 16.0
WAYS = (("websocket", 1), ("websocket", 2), ("websocket", 4), ("http", 2), ("http", 4))
EVERY = 20  # frames of which the memory is read


def main() -> None:
    """Run the parts that were asked for, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8100")
    parser.add_argument("--parts", default="rate,cuts,outage")
    parser.add_argument("--frames", type=int, default=200, help="of a turn, and of memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--outage-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("bench/streams"))
    given = parser.parse_args()
    frames = _frames()
    found: dict[str, Any] = {}
    for part in given.parts.split(","):
        found[part] = PARTS[part](given, frames)
        print(json.dumps({part: found[part]}, indent=1), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "streams.json").write_text(json.dumps(found, indent=1) + "\n")


def _frames() -> np.ndarray:
    """Return frames of 256 x 256 px under one condition, in the pixel type of a detector."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec.facility import facility_library

    drawn = simulate(facility_library().condition(CONDITION), 16, seed=90_114, shape=(256, 256))
    return np.asarray(drawn.frames_nyx, np.float32)


def _endless(frames: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Yield frames in turn, each another one than those before."""
    for number in range(count):
        yield np.roll(frames[number % len(frames)], number, 0)


def rate(given: Any, frames: np.ndarray) -> list[dict[str, Any]]:
    """Return the median rate of each way, and its ratio to single requests of the same round."""
    rates: dict[str, list[float]] = {}
    with Session(given.url, instrument="bench-rate", pixel_size_pm=PIXEL_PM) as stem:
        for frame in _endless(frames, 20):
            stem.predict(frame).raise_for_error()
        for _ in range(given.rounds):
            begun_s = time.perf_counter()
            for frame in _endless(frames, given.frames):
                stem.predict(frame).raise_for_error()
            single = given.frames / (time.perf_counter() - begun_s)
            rates.setdefault("single requests", []).append(single)
            for transport, in_flight in WAYS:
                begun_s = time.perf_counter()
                source = _endless(frames, given.frames)
                for answer in stem.stream(source, "all", in_flight, transport=transport):
                    answer.raise_for_error()
                took_s = time.perf_counter() - begun_s
                name = f"{transport}, {in_flight} in flight"
                rates.setdefault(name, []).append(given.frames / took_s)
    single = rates["single requests"]
    return [
        {
            "way": name,
            "frames_per_s": round(statistics.median(found), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(found, single, strict=True)), 2),
        }
        for name, found in rates.items()
    ]


def cuts(given: Any, frames: np.ndarray) -> dict[str, Any]:
    """Reset the connection again and again; return what became of the frames."""
    network, rng = Network(given.url), random.Random(1)
    heard: Counter[str] = Counter()
    answered = 0
    with Session(network.url, instrument=_new_name(), pixel_size_pm=PIXEL_PM) as stem:
        stop = threading.Event()

        def source() -> Iterator[Any]:
            for number, frame in enumerate(_endless(frames, 1_000_000)):
                if stop.is_set():
                    return
                yield frame, {"frame_id": f"f{number}"}

        for answer in stem.stream(source(), "all", in_flight=4, transport="websocket"):
            heard[answer.frame_id] += 1
            answered += bool(answer)
            if network.cuts >= given.cuts:
                stop.set()
            elif rng.random() < 0.3:
                network.reset()
        name, reconnections = stem.instrument, stem.stats.reconnections
    session = urllib3.request("GET", f"{given.url}/v1/instruments/{name}/session?frames=1000")
    recorded = Counter(one["frame_id"] for one in session.json()["history"])
    network.close()
    return {
        "cuts": network.cuts,
        "reconnections": reconnections,
        "frames": len(heard),
        "answered": answered,
        "answered_twice": sum(count > 1 for count in heard.values()),
        "in_history": len(recorded),
        "in_history_twice": sum(count > 1 for count in recorded.values()),
        "counted": session.json()["counts"]["frames"],
    }


def outage(given: Any, frames: np.ndarray) -> dict[str, Any]:
    """Take the network away for a while; return how the loop went on and when it was back."""
    network = Network(given.url)
    turns: list[tuple[float, bool]] = []
    with Session(
        network.url, instrument=_new_name(), pixel_size_pm=PIXEL_PM, deadline_ms=2000
    ) as stem:
        begun_s = time.monotonic()
        is_cut, ends_s = False, begun_s + given.outage_s + 15
        for frame in _endless(frames, 1_000_000):
            now_s = time.monotonic()
            if not is_cut and now_s > begun_s + 5:
                network.cut()
                is_cut, cut_s = True, now_s
            if is_cut and network.is_down and now_s > cut_s + given.outage_s:
                network.mend()
                mended_s = now_s
            if now_s > ends_s:
                break
            turns.append((time.monotonic(), bool(stem.predict(frame))))
            time.sleep(0.05)  # the scan
        stats = stem.stats
        back_s = next(at_s for at_s, is_answered in turns if is_answered and at_s > mended_s)
        gaps = np.diff([at_s for at_s, _ in turns])
        during = [
            gap for (at_s, _), gap in zip(turns, gaps, strict=False) if cut_s < at_s < mended_s
        ]
    network.close()
    return {
        "outage_s": given.outage_s,
        "turns_during_it": len(during),
        "longest_turn_ms": round(1000 * max(during)),
        "back_after_s": round(back_s - mended_s, 2),
        "not_answered": stats.offline,
    }


def memory(given: Any, frames: np.ndarray) -> list[dict[str, Any]]:
    """Return the memory of this process after so many streamed frames."""
    own, rows = psutil.Process(), []
    marks = {max(given.frames * part // EVERY, 1) for part in range(1, EVERY + 1)}
    with Session(given.url, instrument="bench-memory", pixel_size_pm=PIXEL_PM) as stem:
        source = _endless(frames, given.frames)
        for number, answer in enumerate(stem.stream(source, "all", in_flight=4), 1):
            answer.raise_for_error()
            if number in marks:
                rows.append({"frames": number, "mib": round(own.memory_info().rss / 2**20, 1)})
    return rows


def _new_name() -> str:
    return f"bench-{random.SystemRandom().randrange(10**9)}"


class Network:
    """The way to the service, which can be cut: a port that passes bytes on.

    Attributes:
        url: of the service by this way.
        cuts: how often connections were reset.
    """

    def __init__(self, url: str) -> None:
        place = parse_url(url)
        self._to = (str(place.host), place.port or 80)
        self._open: list[socket.socket] = []
        self._listening: socket.socket | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.url, self.cuts = f"http://127.0.0.1:{self._port}", 0
        self.mend()

    @property
    def is_down(self) -> bool:
        """Whether it passes nothing."""
        return self._listening is None

    def mend(self) -> None:
        """Pass bytes on again."""
        self._listening = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def reset(self) -> None:
        """Reset the connections that are open, if any."""
        gone, self._open = self._open, []
        self.cuts += bool(gone)
        for one in gone:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        assert self._listening is not None
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._listening = None
        self.reset()

    def close(self) -> None:
        """Cut it for good."""
        if not self.is_down:
            self.cut()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near = listening.accept()[0]
                far = socket.create_connection(self._to)
                self._open += [near, far]
                for one, two in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, two), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, two: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(2**16):
                two.sendall(data)
        for end in (one, two):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


PARTS = {"rate": rate, "cuts": cuts, "outage": outage, "memory": memory}

if __name__ == "__main__":
    main()

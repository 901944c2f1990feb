"""What the client adds to a bare request of urllib3, and its memory over many frames.

    python tests/benchmarks/client_overhead.py --frames 100000

A server in a process of its own answers every frame with the same npz, so the time is that of the
client and the loopback alone. Bare requests and those of the client take turns. Goals: 1 ms more
(median) at 256 x 256 px; memory at the end within 5 % of that after 1,000 frames.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import urllib3
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_streams

from manybeam_client import Session

SIDE_PX, ATOMS, TURNS = 256, 150, 2000
GOAL_MS, FLAT = 1.0, 1.05
LOOKS = (1_000, 50_000, 100_000)


def answer() -> bytes:
    """Return the npz that the server gives."""
    meta = {"version": 3, "members": [0, 1, 2], "pixel_size_pm": 16.0, "why": "of a benchmark"}
    stream = io.BytesIO()
    atoms = np.random.default_rng(0).random((ATOMS, 7), dtype=np.float32)
    np.savez(stream, atoms=atoms, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    return stream.getvalue()


def stream(connection: ServerConnection) -> None:
    """Answer every frame of a stream with the same bytes."""
    content = answer()
    connection.send(json.dumps({"type": "welcome", "in_flight": 16, "beat_s": 5}))
    for text in connection:
        head = json.loads(text)
        count = 0
        while count < head.get("bytes", 0):
            count += len(connection.recv())
        if head["type"] == "frame":
            said = {"type": "answer", "frame_id": head["frame_id"], "status": 200}
            connection.send(json.dumps({**said, "bytes": len(content)}))
            connection.send(content)


def serve() -> None:
    """Answer every request with the same bytes, and every frame of a stream."""
    content = answer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-npz")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    streams = serve_streams(stream, "127.0.0.1", 0, compression=None)
    threading.Thread(target=streams.serve_forever, daemon=True).start()
    print(server.server_address[1], streams.socket.getsockname()[1], flush=True)
    server.serve_forever()


def rss_mib() -> float:
    """Return the memory of this process [MiB]."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - no file, a look into the kernel
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def overhead(url: str) -> dict[str, float]:
    """Return the median times [ms] of a bare request and of the client, which take turns."""
    frame_yx = np.random.default_rng(1).random((SIDE_PX, SIDE_PX), dtype=np.float32)
    body, bare_ms, own_ms = frame_yx.tobytes(), [], []
    path = f"{url}/v1/predict/auto?pixel_size_pm=16"
    with Session(url, pixel_size_pm=16) as session, urllib3.PoolManager(retries=False) as pool:
        for _ in range(TURNS):
            begun = time.perf_counter()
            reply = pool.request("POST", path, body=body)
            assert reply.status == 200
            bare_ms.append((time.perf_counter() - begun) * 1000)
            begun = time.perf_counter()
            assert session.predict(frame_yx, deadline_ms=5000)
            own_ms.append((time.perf_counter() - begun) * 1000)
    bare, own = statistics.median(bare_ms), statistics.median(own_ms)
    return {"bare_p50_ms": bare, "client_p50_ms": own, "more_p50_ms": own - bare}


def memory(url: str, count: int, transport: str) -> dict[int, float]:
    """Return the memory [MiB] after so many frames."""
    frame_yx = np.zeros((SIDE_PX, SIDE_PX), np.uint16)
    found = {}
    session = Session(url, instrument="STEM-1", pixel_size_pm=16)
    with closing(session):
        for number, one in enumerate(_answers(session, frame_yx, count, transport), 1):
            assert one, one.error
            if number in (*LOOKS, count):
                found[number] = rss_mib()
    return found


def _answers(
    session: Session, frame_yx: np.ndarray, count: int, transport: str
) -> Iterator[object]:
    if transport == "predict":
        return (session.predict(frame_yx) for _ in range(count))
    frames = (frame_yx for _ in range(count))
    return session.stream(frames, policy="all", in_flight=2, transport=transport)


def main() -> int:
    """Run the benchmark; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--way", choices=["predict", "http", "websocket"], default="predict")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.serve:
        serve()
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        http, websocket = server.stdout.readline().split()
        took = overhead(f"http://127.0.0.1:{http}")
        url = f"http://127.0.0.1:{websocket if known.way == 'websocket' else http}"
        begun = time.perf_counter()
        held = memory(url, known.frames, known.way)
        rate = known.frames / (time.perf_counter() - begun)
    finally:
        server.kill()
        server.wait()
    print(", ".join(f"{name} {value:.3f}" for name, value in took.items()))
    print(
        f"{known.way}: {rate:.0f} frames/s; RSS "
        + ", ".join(f"{n}: {m:.1f} MiB" for n, m in held.items())
    )
    values = list(held.values())
    return int(took["more_p50_ms"] > GOAL_MS or values[-1] > FLAT * values[0])


if __name__ == "__main__":
    sys.exit(main())

"""Malformed requests to a running service and running pages: none may end, hang or fill a server.

    python tests/benchmarks/fuzz_requests.py --count 100000 --seed 1

It makes a zoo of tiny networks, starts both servers as processes of their own, and sends mutated
methods, paths, queries, headers and bodies over raw sockets. It reports every answer of 5xx but a
full queue, every answer slower than 10 s, and the memory of each server. Then schemathesis sends
requests made from `/openapi.json` of the service (`--described`, for each path) and compares the
answers with it. The exit code is 1 if there was one, if a temporary file was left, or if a server's
memory grew by more than 10 % after the first tenth.
"""

import argparse
import gzip
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

SLOW_S = 10.0
GROWTH = 1.10
ALLOWED = (503,)  # a full queue, or a deadline that was asked for: 504
ROOT = Path(__file__).parents[2]

SERVICE = """
import sys, uvicorn
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.routes import api
from manybeam.serve.sessions import refresher
from manybeam.zoo.registry import Zoo
limits = ReplicaLimits(max_frame_px=20_000)
refresher.READ_S = 0.05  # else each change of a session waits a second for other replicas
service = Service(ZooVersions(Zoo(), ["tiny"]))
service.sessions.refresher.start()
app = api(service, limits, Meter(), lambda: "")
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical", ws="none", lifespan="off")
"""
PAGES = """
import sys
from manybeam.web.app import run
run(port=int(sys.argv[1]), refresh_s=60.0)
"""
WORDS = [
    "tiny", "tiny@1", "tiny@serving", "tiny@1/00", "auto", "TINY", "tiny@99999999999", "..", ".",
    "%00", "%ff", "%2e%2e%2f", "[::1", "\u96fb", "'", '"', "<script>", "{}", "a" * 300, "9" * 400,
    "-1", "nan", "inf", "1e999", "true", "", " ", "\\", "tiny@1/9999999", "@", "/", "a/b@c",
]  # fmt: skip
PATHS = {
    "service": [
        "/v1/predict/{}", "/v1/predict/tiny", "/v1/predict/auto", "/v1/select", "/v1/ensembles",
        "/healthz", "/readyz", "/metrics", "/openapi.json", "/{}",
        *("/v1/instruments/STEM-1/session",) * 3, "/v1/instruments/{}/session", "/v1/select/STEM-1",
        "/v1/select/{}", *("/v2/models/tiny/infer",) * 3, "/v2/models/{}/infer", "/v2/models/tiny",
        "/v2/models/tiny/versions/{}/infer", "/v2/models/{}/ready", "/v2/models/auto/config", "/v2",
        "/v2/repository/index", "/v2/health/ready", "/v2/systemsharedmemory/{}", "/v2/{}",
    ],
    "pages": [
        "/", "/zoo", "/zoo/{}", "/zoo/tiny@1", "/compare", "/datasets", "/conditions", "/login",
        "/logout", "/docs", "/healthz", "/api/v1/zoo", "/api/v1/zoo/{}", "/api/v1/zoo/{}/matrix",
        "/api/v1/compare", "/api/v1/conditions", "/api/v1/datasets", "/api/v1/audit",
        "/api/v1/zoo/tiny@1/promote", "/api/v1/zoo/{}/archive", "/zoo/{}/promote", "/static/{}",
        "/zoo/tiny@1/card.html", "/zoo/{}/card.{}", "/zoo/tiny@1/reliability.svg", "/theme/{}",
        "/zoo/tiny@1/example/{}", "/zoo/{}/example/{}/picture.png", "/conditions/{}",
        "/datasets/{}/preview.png", "/zoo/tiny@1/rollback", "/openapi.json", "/{}",
    ],
}  # fmt: skip
QUERY = [
    "pixel_size_pm", "want", "deadline_ms", "instrument", "frame_id", "false_atoms", "members",
    "ensemble", "condition", "q", "page", "kind", "order", "score", "status", "ids", "back",
    "limit", "subject", "name", "recipe", "policy", "beam_kv", "dose_e_per_a2", "member", "number",
    "frames", "instrument", "frame_id", "quick", "trust_pixel_size", "filename", "filename",
]  # fmt: skip
VALUES = [
    *WORDS, "16", "atoms,mean", "mean,std", "0,1", "0.05", "1", "2", "f1", "-score", "STEM-1",
    "STEM-1", "STEM-2", "f1", "f1/0", "f2", "a.tif", "a.emd", "a.dm4", "../a.tif",
]  # fmt: skip
METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "X" * 30]
SESSION = ["GET", "GET", "PUT", "PUT", "PUT", "DELETE"]  # methods of a session's path
SETTINGS = {  # of a session: values that are allowed, and some that are not
    "policy": ("auto", "auto", "pinned", "x", 1), "ref": ("auto", "tiny", "tiny@1", "\ud800", 7),
    "members": ([], [0], [1, 0], [0, 0], [99], [-1], {}), "order": ("all", "newest", None),
    "budget_ms": (None, 1, 50, 60_000, 0, 1e300, True, 10**30), "condition": ("", "none", "a\0b"),
    "pixel_size_pm": (None, 16, 16.5, 0, float("nan")), "select_every": (1, 2, 100, 0, "1"),
    "false_atoms": (0, 0.05, 1, float("inf")), "color": ("red",), "": (None,),
}  # fmt: skip
HEADERS = [
    "Host", "Content-Type", "Content-Encoding", "Accept", "Authorization", "Origin", "Referer",
    "Cookie", "X-Dtype", "X-Shape", "X-Request-Id", "Transfer-Encoding", "Range", "Expect",
    "If-None-Match", "Sec-Fetch-Site", "Accept-Encoding", "X-Csrf-Token", "X-Forwarded-For",
    "Inference-Header-Content-Length",
]  # fmt: skip
HEADER_VALUES = [
    *WORDS, "http://[::1", "http://localhost:x", "[::1]:99999", "LOCALHOST", "localhost.",
    "Bearer", "Bearer x", "bearer " + "y" * 500, "Basic Og==", "application/json", "gzip", "zstd",
    "Identity", "gzip, identity", "text/html;q=0", "*/*;q=x", "application/x-www-form-urlencoded",
    "float32", ">f4", "complex128", "<U9", "4,4", "0,0", "1,1,1,1,1,1,1,1", "99999999,99999999",
    "bytes=0-", "bytes=-1,5-2", "100-continue", "manybeam-session=a.b.c", "theme=\xff", "\xb2",
    "chunked", "null", "cross-site", "image/tiff", "64", "99999999",
]  # fmt: skip


def npy(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def messages(frame: np.ndarray) -> list[bytes]:
    """Return requests of the Open Inference Protocol v2, good and bad; one with bytes behind it."""
    one = {"name": "FRAME", "datatype": "FP32", "shape": frame.shape, "data": frame.tolist()}
    size = {"name": "PIXEL_SIZE_PM", "datatype": "FP32", "shape": [1], "data": [16]}
    known = {"parameters": {"binary_data_size": frame.nbytes}}
    behind = {name: value for name, value in one.items() if name != "data"} | known
    huge = {**one, "shape": [10**9, 10**9], "data": [1]}
    outputs = [{"name": "ATOMS", "parameters": {"binary_data": True}}, {"name": "STD"}]
    return [
        *(json.dumps({"inputs": inputs, "outputs": outputs}).encode()
          for inputs in ([one], [one, size], [size], [huge], [one, one], [])),
        json.dumps({"inputs": [behind], "parameters": {"quick": True}}).encode() + frame.tobytes(),
    ]  # fmt: skip


def files(frame: np.ndarray) -> list[bytes]:
    """Return instrument files."""
    import h5py
    import tifffile

    stream, packed, other = io.BytesIO(), io.BytesIO(), io.BytesIO()
    tifffile.imwrite(stream, frame)
    tifffile.imwrite(packed, np.zeros((3000, 3000), np.uint8), compression="zlib")
    with h5py.File(other, "w") as file:
        group = file.create_group("data/frame")
        group.attrs["emd_group_type"] = 1
        group["data"] = frame
    return [stream.getvalue(), packed.getvalue(), other.getvalue()]


def bodies() -> list[bytes]:
    """Return bodies to start from: good ones, other formats, and bombs."""
    frame = np.random.default_rng(0).random((48, 48), dtype=np.float32)
    stated = npy(frame).replace(b"(48, 48)", b"(99999, 99999)")
    zeros = bytes(4_000_000)
    form, text = b"reason=x&to=serving&force=true", json.dumps({"reason": "x", "token": "y"})
    return [
        b"", npy(frame), npy(np.zeros((9, 9))), npy(frame.astype(">u2")), stated,
        npy(np.full((8, 8), np.nan)), npy(frame[0]), npy(np.stack([frame, frame])), form,
        text.encode(), b'{"reason": "\\ud800"}', b'{"reason": "a\\u0000"}', b"[" * 20_000,
        frame.tobytes(), gzip.compress(zeros), zlib.compress(zeros), bytes(100_000),
        b"\x28\xb5\x2f\xfd" + bytes(2_000), b"PK\x03\x04" + bytes(500),
        b'{"zarr_format": 3, "node_type": "array", "shape": [1000000000]}', b"\xff" * 1_000,
        b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 65_000, *messages(frame), *files(frame),
    ]  # fmt: skip


@dataclass
class Report:
    """What was sent and seen.

    Attributes:
        statuses: how often each status came; 0 for a connection that was closed.
        faults: requests that were answered by 5xx or too late, as text.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


class Fuzzer:
    """Draws requests from a seed."""

    def __init__(self, seed: int) -> None:
        self._random, self._bodies = random.Random(seed), bodies()

    def request(self, server: str, port: int, token: str) -> tuple[bytes, bool]:
        """Return one request for a server, and whether all that it announces is in it."""
        draw = self._random
        form = draw.choice(PATHS[server])
        path = form.replace("{}", self._word(draw.choice(WORDS)))
        usual = SESSION if form.endswith("/session") else METHODS[:2]
        method = draw.choice(usual if draw.random() < 0.8 else METHODS)
        pairs = [
            f"{draw.choice(QUERY)}={self._word(draw.choice(VALUES))}"
            for _ in range(draw.choice((0, 0, 1, 1, 2, 5)))
        ]
        target = path + ("?" + "&".join(pairs) if pairs else "")
        start = self._settings() if method == "PUT" else draw.choice(self._bodies)
        body = b"" if method in ("GET", "HEAD") else self._mutated(start)
        headers = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/x-npy"}
        if body or method == "POST":
            headers["Content-Length"] = str(len(body))
        for _ in range(draw.choice((0, 0, 1, 1, 2, 4))):
            headers[draw.choice(HEADERS)] = draw.choice(HEADER_VALUES)
        if draw.random() < 0.1:
            headers["Content-Type"] = "application/octet-stream"
            headers["X-Dtype"] = draw.choice(("float32", ">f4", "uint8", "complex128", "<U9"))
            headers["X-Shape"] = draw.choice(("48,48", "1,48,48", "0,0", "48", "-1,4", "9" * 30))
        if "/v2/" in path and draw.random() < 0.8:
            headers["Content-Type"] = "application/octet-stream"
            head = body.find(b"true}}") + 6  # where the JSON of one ends
            headers["Inference-Header-Content-Length"] = str(draw.choice((len(body), head, head)))
        if draw.random() < 0.1:
            headers["Authorization"] = f"Bearer {token}"
        if draw.random() < 0.02:
            headers["Content-Length"] = draw.choice(("-1", "\xb2", "9" * 30, "0", "x"))
        headers["Connection"] = "close"
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        head = "\r\n".join(lines).encode("latin-1", "replace")
        sent = self._mutated(head) if draw.random() < 0.05 else head
        odd = {"Transfer-Encoding", "Expect"} & set(headers)
        is_whole = sent == head and not odd and headers.get("Content-Length", "0") == str(len(body))
        return sent + body, is_whole

    def _settings(self) -> bytes:
        """Return the settings of a session, or any body."""
        draw = self._random
        if draw.random() < 0.1:
            return draw.choice(self._bodies)
        names = draw.sample(list(SETTINGS), draw.choice((0, 1, 1, 2, 4)))
        return json.dumps({name: draw.choice(SETTINGS[name]) for name in names}).encode()

    def _word(self, word: str) -> str:
        word = word.replace(" ", "%20").encode().decode("latin-1")
        return word * self._random.choice((1, 1, 1, 1, 200))

    def _mutated(self, content: bytes) -> bytes:
        draw = self._random
        if not content or draw.random() < 0.5:
            return content
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 3, 20))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.2 else changed)


def send(port: int, request: bytes, patience_s: float = SLOW_S + 2) -> tuple[int, float]:
    """Send one request; return the status, 0 for none, and the time to the end of the answer."""
    begun, answer = time.monotonic(), b""
    try:
        with socket.create_connection(("127.0.0.1", port), SLOW_S) as connection:
            connection.settimeout(patience_s)
            connection.sendall(request)
            while piece := connection.recv(65_536):
                answer = answer or piece
    except (ConnectionError, BrokenPipeError):
        pass  # a server may close the connection on what it will not read
    except TimeoutError:
        if not answer:
            return 0, patience_s
    words = answer[:40].split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, time.monotonic() - begun


def fuzz(
    servers: dict[str, int],
    count: int,
    seed: int,
    token: str = "",
    each: Callable[[int], None] = lambda _: None,
) -> Report:
    """Send so many requests to servers by turns, each with its port.

    A server waits for what a request announces and does not hold; then so does nobody here.
    """
    fuzzer, report, names = Fuzzer(seed), Report(), list(servers)
    for number in range(count):
        name = names[number % len(names)]
        request, is_whole = fuzzer.request(name, servers[name], token)
        status, seconds = send(servers[name], request, SLOW_S + 2 if is_whole else 0.3)
        report.statuses[status] += 1
        report.slowest_s = max(report.slowest_s, seconds)
        is_late = b"deadline_ms" in request and status == 504
        if (status >= 500 and status not in ALLOWED and not is_late) or seconds > SLOW_S:
            report.faults.append(f"{number} {name} {status} {seconds:.1f} s {request[:300]!r}")
        each(number)
    return report


@contextmanager
def running(home: Path) -> Iterator[tuple[dict[str, int], dict[str, psutil.Process]]]:
    """Start service and pages on free ports, and end them after the block."""
    ports, children = {}, {}
    for name, code in (("service", SERVICE), ("pages", PAGES)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports[name] = int(probe.getsockname()[1])
        argv = [sys.executable, "-c", code, str(ports[name])]
        path = os.pathsep.join((str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")))
        own = {"MANYBEAM_HOME": str(home), "MANYBEAM_ZOO": str(ROOT / "zoo"), "PYTHONPATH": path}
        own["TMPDIR"] = str(temporary(home))
        with (home / f"{name}.log").open("wb") as log:
            children[name] = subprocess.Popen(argv, env=os.environ | own, stdout=log, stderr=log)
    try:
        for port in ports.values():
            while send(port, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")[0] != 200:
                assert all(child.poll() is None for child in children.values()), "no server"
                time.sleep(0.2)
        yield ports, {name: psutil.Process(child.pid) for name, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def temporary(home: Path) -> Path:
    """Return the folder for temporary files of the servers."""
    folder = home / "temporary"
    folder.mkdir(exist_ok=True)
    return folder


def described(port: int, examples: int, seed: int) -> tuple[bool, str]:
    """Let schemathesis send requests of the description; return whether all is as it says.

    Args:
        port: of the service.
        examples: requests for each path, about.
        seed: what they are drawn from.
    """
    options = ["--phases", "coverage,fuzzing", "--max-examples", str(examples), "--no-color"]
    options += ["--seed", str(seed), "--suppress-health-check", "all", "--workers", "1"]
    program = Path(sys.executable).with_name("st")
    config = Path(__file__).with_name("schemathesis.toml")
    url = f"http://127.0.0.1:{port}/openapi.json"
    command = [str(program), "--config-file", str(config), "run", url, *options]
    with tempfile.TemporaryDirectory() as folder:  # it keeps its examples where it runs
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def make_zoo() -> None:
    """Register `tiny`, two networks with drawn weights, in the zoo of the settings."""
    import torch

    from manybeam.learn.nets.member import Member
    from manybeam.learn.nets.networks import build
    from manybeam.spec.recipe import MemberPlan, Network, Recipe
    from manybeam.zoo.registry import Zoo

    plans = tuple(MemberPlan(seed=seed, policy="graphene-nominal") for seed in range(2))
    recipe = Recipe(id="tiny", network=Network(filters=2, levels=2), members=plans)
    torch.manual_seed(0)
    members = [
        Member(p.seed, p.seed, p.policy, recipe, build(recipe.network).state_dict(), (), 0.1, "0")
        for p in plans
    ]
    Zoo().register("tiny", members, job={"kind": "train"}, alias="serving")


def main() -> int:
    """Run; return 1 if a server failed, hung or grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--described", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MANYBEAM_HOME"] = folder
        make_zoo()
        sizes: dict[str, list[float]] = {"service": [], "pages": []}
        begun = time.monotonic()
        with running(Path(folder)) as (ports, processes):

            def look(number: int) -> None:
                if number % max(given.count // 10, 1) == 0:
                    for name, process in processes.items():
                        sizes[name].append(process.memory_info().rss / 1e6)
                    last = {name: round(found[-1]) for name, found in sizes.items()}
                    print(f"{number} {last} MB {time.monotonic() - begun:.0f} s", flush=True)

            token = (Path(folder) / "admin-token").read_text().strip()
            report = fuzz(ports, given.count, given.seed, token, look)
            look(0)
            is_described, told = described(ports["service"], given.described, given.seed)
            look(0)
            left = [str(path) for path in temporary(Path(folder)).rglob("*")]
    grown = [name for name, found in sizes.items() if found[-1] > GROWTH * found[1]]
    print(f"statuses: {dict(sorted(report.statuses.items()))}; slowest {report.slowest_s:.1f} s")
    print("\n".join(report.faults[:50]))
    print(told[-3000:])
    print(f"{len(report.faults)} faults; grown: {grown or 'none'}; files left: {left or 'none'}")
    return 1 if report.faults or grown or left or not is_described else 0


if __name__ == "__main__":
    raise SystemExit(main())

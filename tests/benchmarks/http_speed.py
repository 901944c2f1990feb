"""What HTTP costs, and the same ensemble behind other servers, side by side.

    LITSERVE_PYTHON=... BENTOML_PYTHON=... python tests/benchmarks/http_speed.py --out bench/http

First, a null ensemble, whose answer is a map of zeros: the whole service (HAProxy, Ray Serve, the
edge, a thread), our application alone, and uvicorn with FastAPI that reads the same array and
writes the same map. Then eight trained U-Nets and a frame of 256 x 256 px: the service, and those
servers of `http_rival.py` that are there. LitServe and BentoML have virtual environments of their
own, which must see the packages of the project (a .pth file); MLflow and plain Ray Serve are in
that of the project. All take turns, with one client and with eight, or with as many as `--clients`
says; a refused client (429) waits as long as it was told. `quick` is an answer without frame
analysis; the ensemble was not calibrated, so nothing is said of its summary.
"""

import argparse
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from http_rival import PIXEL_PM

HERE = Path(__file__).parent
START_S = 120.0
REF = "speed"
ROUNDS = 3


@dataclass(frozen=True)
class Way:
    """A server, and how it is asked."""

    name: str
    url: str
    body: bytes
    headers: dict[str, str]


# -- the servers ----------------------------------------------------------------------------------
def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def rival(name: str, python: str, folder: Path) -> Iterator[str]:
    """Start a rival in a process group of its own; return its URL."""
    port = free_port()
    command = [python, str(HERE / "http_rival.py"), name, str(folder), str(port)]
    path = os.pathsep.join((str(HERE.parents[1] / "platform"), str(HERE)))
    with (folder / f"{name}.log").open("wb") as log:
        # MLflow looks for the program `uvicorn`.
        programs = os.pathsep.join((str(Path(python).parent), os.environ.get("PATH", "")))
        environment = os.environ | {"PYTHONPATH": path, "PATH": programs}
        child = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextmanager
def service(*, is_null: bool) -> Iterator[str]:
    """Start the service on a cluster of this process; return its URL."""
    from manybeam.cluster import joining
    from manybeam.serve import app

    builder, port = app._builder, free_port()
    if is_null:
        app._builder = null_builder
    joining.connect()
    try:
        app.run_service([] if is_null else [REF], port=port)
        yield f"http://127.0.0.1:{port}"
    finally:
        app.stop_service()
        joining.disconnect()
        app._builder = builder


def null_builder(plan: Any) -> Callable[[], Any]:
    """Return the function that makes a replica whose ensemble costs nothing."""
    here = str(HERE)

    def build() -> Any:
        sys.path.insert(0, here)  # of the replica
        from http_speed import null_replica

        return null_replica(plan)

    return build


def null_replica(plan: Any) -> Any:
    """Return the application of a replica whose ensemble costs nothing."""
    import manybeam.serve.predict
    from manybeam.serve.app import replica_api

    manybeam.serve.predict.Service = null_service()  # type: ignore[misc]
    return replica_api(plan)


def null_service() -> type:
    """Return a Service whose answer is a map of zeros."""
    import numpy as np

    from manybeam.serve.predict import Service, WireAnswer

    class NullService(Service):
        def predict(self, ref: str, frames: Any, query: Any, deadline: Any = None) -> WireAnswer:
            meta = {"ensemble": ref, "frames": 1, "members": [], "degraded": []}
            return WireAnswer(
                {"mean": np.zeros((256, 256), np.float16)}, meta, {}, is_drifted=False
            )

    return NullService


@contextmanager
def replica_alone() -> Iterator[str]:
    """Start our application with the null ensemble on uvicorn, in a process of its own."""
    port = free_port()
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import uvicorn\nfrom http_speed import null_service\n"
        "from manybeam.predictor.versions.of_zoo import ZooVersions\n"
        "from manybeam.serve.metrics import Meter\n"
        "from manybeam.serve.routes import ReplicaLimits, api\n"
        "from manybeam.zoo.registry import Zoo\n"
        "app = api(null_service()(ZooVersions(Zoo())), ReplicaLimits(), Meter(), str)\n"
        f"uvicorn.run(app, port={port}, log_level='critical')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL) as child:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            child.terminate()


# -- the ensemble ---------------------------------------------------------------------------------
def frame() -> np.ndarray:
    """Return simulated graphene of 256 x 256 px, about 400 atoms."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec import Library

    condition = Library(HERE.parents[1] / "zoo").condition("graphene-60kv-nominal")
    scan = condition.scan.model_copy(update={"pixel_size_pm": PIXEL_PM})
    condition = condition.model_copy(update={"scan": scan})
    return np.asarray(simulate(condition, 1, seed=5, shape=(256, 256)).frames_nyx[0])


def prepare(out: Path) -> None:
    """Train the ensemble, register it in the zoo of the settings, and store it for the rivals."""
    if (out / "recipe.json").exists():
        return
    from ensemble_speed import learned, unets

    from manybeam.learn.nets.member import save_weights
    from manybeam.zoo.registry import Zoo

    members = unets(learned(out)[2], out)
    Zoo().register(REF, members, job={"kind": "train"}, alias="serving")
    for one in members:
        (out / f"member-{one.index:02d}.safetensors").write_bytes(save_weights(one.weights))
    (out / "recipe.json").write_text(members[0].recipe.model_dump_json())


# -- the clients ----------------------------------------------------------------------------------
def asked(way: Way, pool: urllib3.PoolManager) -> bytes | None:
    """Return the answer of a way, None if it is refused; raises RuntimeError if it is no answer."""
    answer = pool.request("POST", way.url, body=way.body, headers=way.headers)
    if answer.status == 429:
        time.sleep(int(answer.headers["Retry-After"]))  # as an instrument would
        return None
    if answer.status != 200:
        raise RuntimeError(f"{way.name} answered {answer.status}: {answer.data[:300]!r}")
    return bytes(answer.data)


def wait_for(way: Way) -> bytes:
    """Return the first answer of a server that starts."""
    end = time.monotonic() + START_S
    with urllib3.PoolManager(retries=False, timeout=60.0) as pool:
        while True:
            try:
                return asked(way, pool) or b""
            except (urllib3.exceptions.HTTPError, RuntimeError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


def loaded(way: Way, clients: int, seconds: float) -> tuple[list[float], float, int]:
    """Return milliseconds of each answer to some clients, answers per second, refused requests."""
    times: list[float] = []
    refused: list[int] = []
    begun = time.monotonic()

    def ask() -> None:
        with urllib3.PoolManager(retries=False, timeout=60.0) as pool:
            while time.monotonic() < begun + seconds:
                sent = time.perf_counter()
                answer = asked(way, pool)
                if answer is None:
                    refused.append(1)
                else:
                    times.append(1000 * (time.perf_counter() - sent))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, len(times) / (time.monotonic() - begun), len(refused)


def compare(ways: Sequence[Way], clients: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Return and print a row for each way and number of clients; ways take turns."""
    rows = []
    print(f"{'':34s}{'clients':>8s}{'p50 ms':>10s}{'p99 ms':>10s}{'answers/s':>11s}{'429':>6s}")
    for count in clients:
        times: dict[str, list[float]] = {way.name: [] for way in ways}
        rates: dict[str, list[float]] = {way.name: [] for way in ways}
        refused: Counter[str] = Counter()
        for _ in range(ROUNDS):
            for way in ways:
                found, rate, refusals = loaded(way, count, seconds)
                refused[way.name] += refusals
                times[way.name] += found
                rates[way.name].append(rate)
        for name, found in times.items():
            p50, p99 = np.percentile(found, [50, 99])
            rate = float(np.median(rates[name]))
            row = {"way": name, "clients": count, "p50": p50, "p99": p99, "rate": rate}
            rows.append(row | {"refused": refused[name]})
            numbers = f"{count:8d}{p50:10.2f}{p99:10.2f}{rate:11.1f}{refused[name]:6d}"
            print(f"{name:34s}{numbers}", flush=True)
    return rows


def overhead(
    body: bytes, folder: Path, seconds: float, clients: Sequence[int]
) -> list[dict[str, Any]]:
    """Compare what the null ensemble costs by HTTP."""
    query, headers = f"?pixel_size_pm={PIXEL_PM}", {"Content-Type": "application/x-npy"}
    with (
        rival("fastapi", sys.executable, folder) as plain,
        replica_alone() as alone,
        service(is_null=True) as whole,
    ):
        ours = f"/v1/predict/{REF}{query}&want=mean"
        ways = [
            Way("uvicorn + FastAPI", f"{plain}/predict/{REF}{query}", body, headers),
            Way("our application on uvicorn", f"{alone}{ours}", body, headers),
            Way("the service", f"{whole}{ours}", body, headers),
        ]
        for way in ways:
            wait_for(way)
            loaded(way, 1, 1.0)
        return compare(ways, clients, seconds)


def beside(
    body: bytes, folder: Path, seconds: float, clients: Sequence[int], rivals: Sequence[str]
) -> list[dict[str, Any]]:
    """Compare the servers of one ensemble."""
    own, octets = sys.executable, {"Content-Type": "application/octet-stream"}
    form, of_form = urllib3.encode_multipart_formdata({"frame": ("frame.npy", body)})
    text = base64.b64encode(body).decode()
    table = json.dumps({"dataframe_split": {"columns": ["frame"], "data": [[text]]}}).encode()
    json_headers = {"Content-Type": "application/json"}
    pythons = {
        "litserve": (
            os.environ.get("LITSERVE_PYTHON"),
            "/predict",
            form,
            {"Content-Type": of_form},
        ),
        "bentoml": (os.environ.get("BENTOML_PYTHON"), "/predict", body, octets),
        "mlflow": (own, "/invocations", table, json_headers),
        "ray": (own, "/", body, octets),
    }
    with ExitStack() as stack:
        url = stack.enter_context(service(is_null=False))
        headers = {"Content-Type": "application/x-npy", "Accept": "application/json"}
        asked_of_us = f"{url}/v1/predict/{REF}?pixel_size_pm={PIXEL_PM}"
        ways = [
            Way("the service", asked_of_us, body, headers),
            Way("the service, quick", f"{asked_of_us}&quick=true", body, headers),
        ]
        for name, (python, path, sent, told) in pythons.items():
            if python and name in rivals:
                place = stack.enter_context(rival(name, python, folder))
                ways.append(Way(f"{name} {version(name, python)}", place + path, sent, told))
        there = []
        for way in ways:
            try:
                print(way.name, len(wait_for(way)), "bytes", flush=True)
                there.append(way)
            except (urllib3.exceptions.HTTPError, RuntimeError) as error:
                print(f"{way.name} is left out: {error}", flush=True)
        return compare(there, clients, seconds)


def version(name: str, python: str) -> str:
    """Return the version of a package in the environment of a Python."""
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("bench/http"))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--only", choices=("null", "rivals"))
    parser.add_argument("--rivals", nargs="*", default=["litserve", "bentoml", "mlflow", "ray"])
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MANYBEAM_HOME"] = str(out / "home")
    stream = io.BytesIO()
    np.save(stream, frame())
    body, report = stream.getvalue(), {}
    if given.only != "rivals":
        report["null"] = overhead(body, out, given.seconds, given.clients)
    if given.only != "null":
        prepare(out)
        report["ensemble"] = beside(body, out, given.seconds, given.clients, given.rivals)
    (out / "http.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

"""The platform's own process on one machine: a Ray head on loopback that outlives a command.

`manybeam up` starts it, `manybeam down` ends it and everything below it, by process id. Its state
is one JSON file in the platform's home, written when Ray answers and removed when it has gone.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from manybeam.cluster.running import Head, head, state_file
from manybeam.data.disk import alone, write_files
from manybeam.errors import WorkFailed

START_S = 90.0
# Python warns of a child that is forgotten while it runs, which is what this one is for.
_started: list[subprocess.Popen[bytes]] = []
STOP_S = 30.0


def start_head(home: Path, cpus: int | None = None) -> Head:
    """Start a head, or return the one that runs.

    Args:
        home: folder of the platform; state and log are kept there.
        cpus: cores Ray may use; all of the machine's if None.

    Raises:
        WorkFailed: Ray did not come up; the log is named.
    """
    with alone(home / "head.lock"):  # two starts at once: the second finds the first's
        return head(home) or _start(home, cpus)


def stop_head(home: Path) -> bool:
    """End the head and every process below it; return whether there was one."""
    running = head(home)
    if running is None:
        return False
    _end(running.pid)
    state_file(home).unlink(missing_ok=True)
    return True


def _start(home: Path, cpus: int | None) -> Head:
    log = home / "head.log"
    command = [sys.executable, "-m", "manybeam.cluster.head", str(home.resolve()), str(cpus or "")]
    with log.open("ab") as sink:
        child = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
    _started.append(child)
    deadline = time.monotonic() + START_S
    try:
        while time.monotonic() < deadline and child.poll() is None:
            running = head(home)
            if running:
                return running
            time.sleep(0.1)  # the child tells by a file; there is nothing to wait on
    except KeyboardInterrupt:
        _end(child.pid)
        raise
    _end(child.pid)
    raise WorkFailed("Ray did not start", f"its log ends: {_tail(log)}", f"less {log}")


def _end(pid: int) -> None:
    """End a process and all below it: asked first, made to after a while."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        below = process.children(recursive=True)
        process.terminate()
        _, alive = psutil.wait_procs([process, *below], timeout=STOP_S)
        for left in alive:
            with suppress(psutil.NoSuchProcess):
                left.kill()
    for child in _started:
        child.poll()


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:])


def _serve_until_told(home: Path, cpus: int | None) -> None:
    """Run the head in this process until SIGTERM or SIGINT."""
    import psutil

    from manybeam.cluster.joining import start_local

    told = threading.Event()
    address = start_local(cpus)
    import ray  # not before: Ray reads its environment when it is imported

    # Ray installs its own handlers while it starts, so ours come after.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's
    born = psutil.Process().create_time()
    state = Head(os.getpid(), born, address, resources.get("CPU", 0.0))
    write_files({state_file(home): json.dumps(asdict(state)).encode()})
    told.wait()
    state_file(home).unlink(missing_ok=True)
    ray.shutdown()


if __name__ == "__main__":
    _serve_until_told(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] and sys.argv[2] else None)

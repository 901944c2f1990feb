"""A Ray head on loopback, in a process that continues after the command that started it.

`manybeam up` starts it. `manybeam down` ends it and all its child processes, by process id. Its
state is one JSON file in the home of the platform. The file is written when Ray answers and
removed when the head ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.cluster.joining import LONGEST_TEMPORARY, start_local
from manybeam.cluster.running import Head, head, state_file
from manybeam.data.disk import alone, short_temporary, write_files
from manybeam.errors import WorkFailed

if TYPE_CHECKING:
    import psutil

START_S = 90.0
# Python warns about a child process that is dropped while it runs; so the head is kept here.
_started: list[subprocess.Popen[bytes]] = []
STOP_S = 30.0
WAKE_S = 1.0


def start_head(home: Path, cpus: int | None = None) -> Head:
    """Start a head, or return the running one.

    Args:
        home: folder of the platform, for state and log.
        cpus: cores for Ray; None for all cores of the machine.

    Raises:
        WorkFailed: Ray did not start; the error names the log.
    """
    with starting_head(home, cpus) as ready:
        return ready()


@contextmanager
def starting_head(home: Path, cpus: int | None = None) -> Iterator[Callable[[], Head]]:
    """Start a head beside the block; the block gets a function that waits for the head.

    Args and Raises are those of `start_head`. If the block ends by an error, so does the new head.
    """
    with alone(home / "head.lock"):  # of two starts at once, the second finds the first head
        running = head(home)
        if running:
            yield lambda: running
            return
        child = _launch(home, cpus)
        try:
            yield lambda: _ready(home, child)
        except BaseException:
            _end(child.pid)
            raise


def stop_head(home: Path) -> bool:
    """End the head and all its child processes; return whether there was one.

    Raises:
        Unreachable: the file of the head cannot be read.
    """
    running = head(home)
    if running is None:
        return False
    _end(running.pid)
    state_file(home).unlink(missing_ok=True)
    return True


def _launch(home: Path, cpus: int | None) -> "subprocess.Popen[bytes]":
    short_temporary(LONGEST_TEMPORARY)  # here its error is seen, not in a log
    command = [sys.executable, "-m", "manybeam.cluster.head", str(home.resolve()), str(cpus or "")]
    with _log(home).open("ab") as sink:
        # Not the terminal's stdin: whoever waits for its end would wait for that of the head.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    _started.append(child)
    return child


def _ready(home: Path, child: "subprocess.Popen[bytes]") -> Head:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and child.poll() is None:
        running = head(home)
        if running:
            return running
        time.sleep(0.05)  # the child writes a file when it is ready
    log = _log(home)
    said = _tail(log)
    raise WorkFailed(
        "Ray did not start",
        f"end of its log: {said}" if said else "its log is empty",
        f"manybeam doctor checks disk and memory; the log is {log}",
    )


def _log(home: Path) -> Path:
    return home / "head.log"


def _end(pid: int) -> None:
    """End a process and all its children: first by a request, after a wait by force."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        below = process.children(recursive=True)
        process.terminate()
        alive = _running_after(STOP_S, [process, *below])
        for left in alive:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        _running_after(STOP_S, alive)
    for child in _started:
        child.poll()


def _running_after(within_s: float, processes: list["psutil.Process"]) -> list["psutil.Process"]:
    """Wait until all processes have ended; return those that have not.

    `psutil.wait_procs` would also wait until somebody reads their exit codes, and the first process
    of a container may never do so.
    """
    deadline = time.monotonic() + within_s
    while (alive := list(filter(_is_running, processes))) and time.monotonic() < deadline:
        time.sleep(0.02)  # the system tells only a parent that a process has ended
    return alive


def _is_running(process: "psutil.Process") -> bool:
    import psutil

    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:])


def _serve_until_stopped(home: Path, cpus: int | None) -> None:
    """Run the head in this process until SIGTERM or SIGINT."""
    from manybeam.db.owner import machine, since_boot_s

    stop = threading.Event()
    address = start_local(cpus)
    import ray  # not earlier: Ray reads its environment at import

    # Ray installs signal handlers while it starts, so ours are installed later.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's
    own = os.getpid()
    state = Head(machine(), own, since_boot_s(own), address, resources.get("CPU", 0.0))
    write_files({state_file(home): json.dumps(asdict(state)).encode()})
    # A signal that arrives in a thread of Ray wakes nobody: this thread sees it when it wakes.
    while not stop.wait(WAKE_S):
        pass
    state_file(home).unlink(missing_ok=True)
    ray.shutdown()


if __name__ == "__main__":
    _serve_until_stopped(
        Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] and sys.argv[2] else None
    )

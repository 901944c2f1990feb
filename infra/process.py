"""One server process of this machine: started in the background, stopped by its process id.

A file beside the log has the process id, the start time (because ids are used again), and what
clients need to know.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

DRAWN = range(10_000, 20_000)  # below those of connections, and of the parts of Manybeam's service


class ServiceError(Exception):
    """A server could not be started or stopped; the message says what, why and what to do."""


@dataclass(frozen=True)
class Running:
    """A server that was started: its file, its process and its address."""

    name: str
    folder: Path
    pid: int
    started: float
    url: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether this process still runs."""
        return _process(self.pid, self.started) is not None


def read(name: str, folder: Path) -> Running | None:
    """Return the server of a folder if one was started there and not stopped."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    return Running(**{**json.loads(path.read_text()), "folder": folder})


def start(
    name: str,
    folder: Path,
    argv: Sequence[str],
    *,
    url: str,
    port: int,
    environment: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    user: str | None = None,
    timeout_s: float = 60.0,
) -> Running:
    """Start a server and return once it listens on its port.

    Raises:
        ServiceError: it ended, or does not listen on the port; the message has the end of its log.
    """
    log = folder / f"{name}.log"
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=True,
            user=user,
            extra_groups=[] if user else None,
        )
    started = psutil.Process(child.pid).create_time()
    running = Running(name, folder, child.pid, started, url, dict(settings or {}))
    _save(running)
    deadline = time.monotonic() + timeout_s
    while child.poll() is None and time.monotonic() < deadline:
        if _listens(child.pid, port):
            return running
        time.sleep(0.1)  # a server does not report that it listens
    tail = log.read_text(errors="replace")[-1500:]
    stop(running)
    raise ServiceError(f"{name} does not listen on port {port}\n{tail}\nlog: {log}")


def stop(running: Running, *, patience_s: float = 5.0, how: int = signal.SIGTERM) -> None:
    """End a server and its children, by force after `patience_s`, and remove its file."""
    process = _process(running.pid, running.started)
    family = [process, *process.children(recursive=True)] if process else []
    for member in family[:1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(how)
    _, left = psutil.wait_procs(family, timeout=patience_s)
    for member in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(left, timeout=10.0)
    (running.folder / f"{running.name}.json").unlink(missing_ok=True)


def wait_for_end(pid: int) -> None:
    """Return once a process has ended; at once if there is none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(pid)])


def free_ports(count: int) -> list[int]:
    """Return free ports that the system gives to no connection, so that they stay free.

    Raises:
        ServiceError: there are too few.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(DRAWN, len(DRAWN)):
        if len(found) == count:
            return found
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
    raise ServiceError(
        f"of the ports {DRAWN[0]} to {DRAWN[-1]} too few are free\ngive some: --port"
    )


def check_free(port: int) -> None:
    """Raise ServiceError if a process listens on a port of the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServiceError(
                f"port {port} is taken: {error}\ngive another with --port, or stop its holder"
            ) from error


def _save(running: Running) -> None:
    """Write the file of a server, readable only by its owner: it may contain a secret."""
    path = running.folder / f"{running.name}.json"
    content = {**asdict(running), "folder": ""}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump(content, out, indent=1)


def _process(pid: int, started: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        is_it = abs(process.create_time() - started) < 1.0
        return process if is_it and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _listens(pid: int, port: int) -> bool:
    """Return whether only this process or a child of it listens on a port."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
        found = [link for member in family for link in member.net_connections(kind="tcp")]
    except psutil.NoSuchProcess:
        return False
    return any(link.status == psutil.CONN_LISTEN and link.laddr.port == port for link in found)

"""What of this platform listens on this machine: where, why, and what keeps others out.

Its processes are those below its head or, on a facility's cluster, those of Ray on this machine
that belong to it; and the pages.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from manybeam.addresses import is_loopback, place_of
from manybeam.cluster.running import head
from manybeam.serve.haproxy import FALLBACK, METRICS, STATISTICS, URL
from manybeam.settings import Settings, settings

TOKEN = "Ray's token"  # noqa: S105 - what closes, in words
KEY = "the key of the service's proxy"
PAGES = "manybeam web"
_BETWEEN = "processes of the cluster call each other"
_PROMETHEUS = "Prometheus may read it"
# The name of a process -> what it is, why it listens, what keeps others out beside the address.
_OF_RAY: Mapping[str, tuple[str, str, str]] = {
    "gcs_server": ("Ray: directory of the cluster", "every process of it asks there", TOKEN),
    "raylet": ("Ray: tasks and objects of this host", _BETWEEN, TOKEN),
    "monitor.py": ("Ray: counters of its autoscaler", _PROMETHEUS, ""),
    "dashboard.py": ("Ray: counters of its head", _PROMETHEUS, ""),
    "ray::DashboardAgent": (
        "Ray: agent and counters of this host",
        "/metrics of the service reads the counters",
        f"{TOKEN}, except for the counters",
    ),
    "ray::RuntimeEnvAgent": ("Ray: starts workers", "the raylet of this host asks it", TOKEN),
}


@dataclass(frozen=True)
class Listener:
    """One listening socket.

    Args:
        address: where; `::` and `0.0.0.0` are all addresses of the machine.
        port: of TCP.
        pid: the process.
        process: its name.
        what: what the process is.
        reason: why it listens; why it does so for other machines, if it does.
        closed_by: what keeps others out.
        is_allowed: whether it listens on loopback, or for other machines with a reason.
    """

    address: str
    port: int
    pid: int
    process: str
    what: str
    reason: str
    closed_by: str
    is_allowed: bool


def listeners() -> list[Listener]:
    """Return all listeners of this platform that this user may see, by port."""
    processes = {one.pid: one for one in _processes()}
    variables = _service_variables(processes.values())
    found: list[Listener] = []
    for process in processes.values():
        with suppress(psutil.Error):  # it has ended meanwhile, or is another user's
            found += _of_process(process, variables)
    return sorted(found, key=lambda one: (one.port, one.address, one.pid))


def _processes() -> Iterator[psutil.Process]:
    for root in _roots():
        yield root
        with suppress(psutil.Error):
            yield from root.children(recursive=True)


def _roots() -> Iterator[psutil.Process]:
    """Yield the processes under which those of this platform are."""
    home, address = settings().home, settings().ray_address
    if running := head(home):
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(running.pid)
    _, port = place_of(address) or ("", None)
    of_cluster = {f"--gcs-address={address}", f"--gcs_server_port={port}"} if port else set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        are_our_pages = _are_pages(words) and _home_of(process) == home.resolve()
        if are_our_pages or of_cluster & set(words):
            yield process


def _are_pages(words: list[str]) -> bool:
    return any(Path(word).name == "manybeam" for word in words) and "web" in words


def _home_of(process: psutil.Process) -> Path | None:
    """Return the home of a process of ours, if this user may know it."""
    with suppress(psutil.Error):
        named = process.environ().get("MANYBEAM_HOME", Settings.model_fields["home"].default)
        return Path(process.cwd(), named).resolve()
    return None


def _service_variables(processes: Any) -> dict[str, str]:
    """Return the variables of HAProxy, which has those of the service; the others hide theirs."""
    for process in processes:
        with suppress(psutil.Error):
            if process.name() == "haproxy":
                return dict(process.environ())
    return {URL: settings().service_url}


def _listening(process: psutil.Process) -> list[Any]:
    found: list[Any] = process.net_connections("tcp")
    return [one for one in found if one.status == psutil.CONN_LISTEN]


def _of_process(process: psutil.Process, variables: Mapping[str, str]) -> Iterator[Listener]:
    words = process.cmdline()
    name = _name(words, process.name())
    for one in _listening(process):
        address, port = str(one.laddr.ip), int(one.laddr.port)
        what, reason, closed_by = _described(name, address, port, variables)
        is_inside = is_loopback(address)
        if is_inside:
            closed_by = f"loopback; {closed_by}".removesuffix("; ")
        closed_by = closed_by or "nothing; a firewall, if others must not read it"
        is_allowed = is_inside or _may_leave(name, words, port, variables)
        yield Listener(address, port, process.pid, name, what, reason, closed_by, is_allowed)


def _name(words: list[str], otherwise: str) -> str:
    """Return a short name: of a worker of Ray its kind, of a program in Python its script."""
    title = words[0] if words else otherwise
    if _are_pages(words):
        return PAGES
    if title.startswith("ray::"):
        return ":".join(title.split(":")[:3])
    scripts = [Path(word).name for word in words[1:] if word.endswith(".py")]
    modules = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "-m"]
    return (scripts or modules or [Path(title).name])[0]


def _described(
    name: str, address: str, port: int, variables: Mapping[str, str]
) -> tuple[str, str, str]:
    """Return what a listener is, why it listens, and what keeps others out."""
    if name == "haproxy" or (name == "ray::ProxyActor" and _is_front(port, variables)):
        watchers = {variables.get(METRICS): "counters", variables.get(STATISTICS): "statistics"}
        if kind := watchers.get(str(port)):
            return f"{kind} of the service's proxy", _PROMETHEUS, ""
        return "the service", "callers ask it", "tokens, if the service asks for them"
    if name == "ray::ProxyActor" and str(port) == variables.get(FALLBACK):
        return "the service's second proxy", "HAProxy asks it while no replica answers", KEY
    if name == "ray::ServeReplica" and ":" not in address:  # those of gRPC are IPv6, mapped
        return "a replica of the service", "HAProxy asks it", KEY
    if name == PAGES:
        return "the pages", "browsers ask them", "the admin token, for changes"
    return _OF_RAY.get(name, ("a process of the cluster", _BETWEEN, TOKEN))


def _is_front(port: int, variables: Mapping[str, str]) -> bool:
    _, front = place_of(variables.get(URL, "")) or ("", None)
    return port == front


def _may_leave(name: str, words: list[str], port: int, variables: Mapping[str, str]) -> bool:
    """Return whether a listener may be reached from other machines."""
    if name in ("haproxy", "ray::ProxyActor") and _is_front(port, variables):
        return not _is_local(variables.get(URL, ""))
    if name == PAGES:
        return "--expose" in words
    return bool(settings().ray_address)  # for the other hosts of a facility's cluster


def _is_local(url: str) -> bool:
    host, _ = place_of(url) or ("", None)
    return is_loopback(host)

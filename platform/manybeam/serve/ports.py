"""Ports of this machine: who uses them, and which are free."""

import errno
import logging
import random
import socket

from manybeam.addresses import url_of
from manybeam.errors import InvalidInput, NoCapacity, NotAllowed, PortInUse

logger = logging.getLogger(__name__)

BLOCK = 128  # a replica that starts again takes the next port for some minutes
BLOCKS = (20_096, 29_952)  # the first port, and the one after the last


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


def free_block() -> tuple[list[int], socket.socket]:
    """Return the neighbouring ports of a block that nobody uses, for the parts of one service.

    Blocks begin at multiples of their size. So two services have the same ports or none in common,
    and the first of them shows the second that the block is taken. They lie below the ports that
    the system gives to connections.

    Returns:
        The ports but the last, and a socket on the last. It keeps the block for whoever starts the
        service; close it when its parts listen.

    Raises:
        NoCapacity: no block is free.
    """
    blocks = [range(start, start + BLOCK) for start in range(*BLOCKS, BLOCK)]
    for *ports, last in random.SystemRandom().sample(blocks, len(blocks)):
        if guard := _bound(last):  # before the others, so that of two starts at once one has it
            if all(map(_is_unused, ports)):
                return ports, guard
            guard.close()
    raise NoCapacity(
        f"no {BLOCK} neighbouring ports are free",
        f"the parts of a service listen on ports from {BLOCKS[0]} to {BLOCKS[1] - 1}",
        "manybeam doctor lists what of this platform listens; stop services that nobody needs",
    )


def _is_unused(port: int) -> bool:
    probe = _bound(port)
    if probe:
        probe.close()
    return probe is not None


def _bound(port: int) -> socket.socket | None:
    """Return a socket on a port of all addresses; None if somebody uses the port on one of them."""
    probe = socket.socket()
    try:
        probe.bind(("", port))
    except OSError:
        probe.close()
        return None
    return probe

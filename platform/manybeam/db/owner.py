"""Owners: the process that holds a lock or appends, and whether it is gone.

A host name and a process id are not enough: two hosts can have one name, and process ids are used
again. So an owner has the boot of a machine (with its process namespace), the process, its start
since that boot and a random token, which distinguishes two owners of one process.
"""

import getpass
import os
import platform
import socket
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import psutil

_at_work: set[str] = set()  # tokens of this process whose work has not ended


@dataclass(frozen=True)
class Owner:
    """One holder of a lock; `Owner.new()` makes one for this process.

    Attributes:
        machine: identifies the kernel and process namespace.
        pid: the process.
        started: start of that process, in seconds since the boot.
        token: random; distinguishes owners of one process.
    """

    machine: str
    pid: int
    started: float
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def new(cls) -> "Owner":
        """Return an owner for this process; it works until `end`."""
        owner = cls(machine(), os.getpid(), since_boot_s(os.getpid()))
        _at_work.add(owner.token)
        return owner

    def end(self) -> None:
        """Mark the work of this owner as ended, also if that could not be recorded."""
        _at_work.discard(self.token)

    def is_gone(self) -> bool:
        """Whether this owner has ended; False if that is unknown.

        This is only known for owners on this machine. For others, the lease decides.
        """
        if self.machine != machine():
            return False
        if self.pid == os.getpid():
            return self.token not in _at_work
        try:
            started = since_boot_s(self.pid)
        except psutil.NoSuchProcess:
            return True
        return abs(started - self.started) >= 1.0


def whoami() -> str:
    """Return the login and the host of this process: `ada@node7`."""
    return f"{login()}@{socket.gethostname()}"


def login() -> str:
    """Return the login of this process, as the system knows it.

    `LOGNAME` and `USER` do not count on Unix, because anybody can set them.
    """
    if os.name != "posix":
        return getpass.getuser()
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # no such user
        return str(os.getuid())


def process_name() -> str:
    """Return the host and the number of this process, for people: `node7 4711`."""
    return f"{socket.gethostname()} {os.getpid()}"


def since_boot_s(pid: int) -> float:
    """Return the start of a process, in seconds since the boot.

    Its time of day would change when somebody sets the clock, because Linux keeps only this.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """
    return float(psutil.Process(pid).create_time() - psutil.boot_time())


@lru_cache(maxsize=1)
def machine() -> str:
    """Return an identifier of this boot of the kernel, and of the process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and namespace.exists():
        return f"{boot.read_text().strip()} {namespace.readlink()}"
    return f"{platform.node()} {uuid.getnode():x} {psutil.boot_time():.0f}"

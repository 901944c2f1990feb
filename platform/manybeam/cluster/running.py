"""The head that runs on this machine, according to a file in the home folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from manybeam.errors import Unreachable


@dataclass(frozen=True)
class Head:
    """A running head: its process as `db.owner` tells it from others, address and cores."""

    machine: str
    pid: int
    started: float
    address: str
    cpus: float


def head(home: Path) -> Head | None:
    """Return the head of a home folder if its process runs, else None.

    Raises:
        Unreachable: its file cannot be read.
    """
    import psutil

    from manybeam.db.owner import machine, since_boot_s

    try:
        found = Head(**json.loads(state_file(home).read_text()))
        is_same = machine() == found.machine and abs(since_boot_s(found.pid) - found.started) < 1.0
        is_ended = psutil.Process(found.pid).status() == psutil.STATUS_ZOMBIE
    except (FileNotFoundError, ValueError, TypeError, psutil.NoSuchProcess):
        return None
    except OSError as error:
        raise Unreachable(
            f"{state_file(home)} cannot be read: {error.strerror or error}",
            "it names the head that `manybeam up` started",
            f"log in as the user who started it, or: chmod u+r {state_file(home)}",
        ) from error
    return found if is_same and not is_ended else None


def state_file(home: Path) -> Path:
    """Return the path of the state file of a head."""
    return home / "head.json"

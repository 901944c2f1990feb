"""Which head runs on this machine, as its home folder tells."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Head:
    """A running head: its process, when that started (ids are used again), and its address."""

    pid: int
    started: float
    address: str
    cpus: float


def head(home: Path) -> Head | None:
    """Return the head of a platform's home if its process lives, else None."""
    import psutil

    try:
        found = Head(**json.loads(state_file(home).read_text()))
        process = psutil.Process(found.pid)
    except (FileNotFoundError, ValueError, TypeError, psutil.NoSuchProcess):
        return None
    same = abs(process.create_time() - found.started) < 1.0
    return found if same and process.status() != psutil.STATUS_ZOMBIE else None


def state_file(home: Path) -> Path:
    """Return where a head writes its state."""
    return home / "head.json"

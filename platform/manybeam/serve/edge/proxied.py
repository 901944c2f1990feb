"""What the proxy tells a replica of a request: when it arrived, and which one it is.

So a deadline counts from the arrival, also in the second replica that gets the request; and a
request that ended two replicas is not begun in a third.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from manybeam.errors import WorkFailed
from manybeam.serve.haproxy_rules import ARRIVED_HEADER, REQUEST_HEADER

logger = logging.getLogger(__name__)

PROXIED = "manybeam.proxied"  # of a request, in its ASGI scope
TRIES = 2  # replicas that may begin one request
OLD_S = 3600.0  # marks of requests that ended so long ago are removed
LAST = 100  # requests by which the clock of another host is compared


@dataclass(frozen=True)
class Proxied:
    """What is known of one request.

    Attributes:
        waited_s: since its arrival at the proxy, also in a replica that died.
        begun: marks its work as begun, as long as the work goes on.
    """

    waited_s: float = 0.0
    begun: Callable[[], AbstractContextManager[None]] = nullcontext


def proxied(scope: Mapping[str, Any]) -> Proxied:
    """Return what the proxy told of a request; nothing if it came without one."""
    found: Proxied = scope.get(PROXIED, Proxied())
    return found


class ProxiedRequests:
    """Reads what the proxy tells a replica of its requests.

    Args:
        marks: where requests that are at work are marked.
        arrivals: the clock of their arrival.
    """

    def __init__(self, marks: "Marks", arrivals: "Arrivals") -> None:
        self._marks, self._arrivals = marks, arrivals

    def told(self, headers: Mapping[bytes, bytes]) -> Proxied:
        """Return what is known of a request of the proxy.

        Args:
            headers: of the request, with names in lower case; only the proxy may have set them.
        """
        at, name = (headers.get(one.encode(), b"") for one in (ARRIVED_HEADER, REQUEST_HEADER))
        if not at or not name:  # a proxy that an older version started
            return Proxied()
        waited_s = self._arrivals.since_s(int(at) / 1000)
        return Proxied(waited_s, partial(self._marks.begun, name.decode()))


class Arrivals:
    """How long ago a request arrived, by the wall clock of the proxy.

    Clocks of two hosts differ. By the requests that came with the least delay lately, a replica on
    another host knows the difference, at most too large; so it counts too little time, never too
    much.

    Args:
        is_beside_proxy: whether the replica is on the host of the proxy, so that both have one
            clock.
        wall: seconds since 1970.
    """

    def __init__(self, *, is_beside_proxy: bool, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lately: deque[float] | None = None if is_beside_proxy else deque(maxlen=LAST)

    def since_s(self, arrived_s: float) -> float:
        """Return the seconds since an arrival, in seconds since 1970; at least 0."""
        seen_s = self._wall() - arrived_s
        if self._lately is None:
            return max(seen_s, 0.0)
        self._lately.append(seen_s)
        return seen_s - min(self._lately)


class Marks:
    """Marks requests while a replica works on them; a mark stays only if the replica dies.

    HAProxy sends a request again when its replica dies, and a frame may be the reason. Marks are
    files, so that the other replicas see them: on this host, and on others that share the home.

    Args:
        folder: of the marks; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._is_told = folder, False

    def tidy(self) -> None:
        """Remove the marks of requests that ended long ago."""
        before = time.time() - OLD_S
        for path in self._folder.glob("*.*"):
            with suppress(OSError):  # another replica removed it, or it stays
                if path.stat().st_mtime < before:
                    path.unlink()

    @contextmanager
    def begun(self, name: str) -> Iterator[None]:
        """Mark a request as long as the block runs.

        Args:
            name: of the request, the same at each try.

        Raises:
            WorkFailed: as many replicas began it as may, and did not end it.
        """
        paths = [self._folder / f"{name}.{one}" for one in range(TRIES)]
        taken = self._take(paths)
        try:
            yield
        finally:
            with suppress(OSError):  # a disk that is gone takes no answer with it
                for path in paths[: taken + 1]:
                    path.unlink(missing_ok=True)

    def _take(self, paths: list[Path]) -> int:
        """Make the first mark that is not there; return its number, -1 if none can be made."""
        for place, path in enumerate(paths):
            try:
                with _new(path) as stream:
                    stream.write(str(os.getpid()))
                return place
            except FileExistsError:
                continue
            except OSError as error:  # the disk is full or gone; an answer needs none
                if not self._is_told:
                    self._is_told = True
                    logger.warning("requests at work are not marked: %s", error)
                return -1
        raise WorkFailed(
            f"{len(paths)} processes of the service ended while they answered this request",
            "its frame may be the reason, so no other process tries",
            "report this request id, and keep the frame",
        )


def _new(path: Path) -> TextIO:
    """Open a file that nobody made before."""
    try:
        return path.open("x")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("x")

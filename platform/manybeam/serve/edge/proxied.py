"""What the proxy tells a replica of a request: when it arrived, and which one it is.

So a deadline counts from the arrival, also in the second replica that gets the request; and a
request that ended two replicas is not begun in a third.
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from manybeam.errors import WorkFailed
from manybeam.serve.haproxy_rules import ARRIVED_HEADER, REQUEST_HEADER

logger = logging.getLogger(__name__)

SCOPE_KEY = "manybeam.proxied"  # of what is known of a request, in its ASGI scope
TRIES = 2  # replicas that may begin one request
OLD_S = 3600.0  # marks of requests that ended so long ago are removed
LAST, LATELY_S = 100, 60.0  # requests by which the clock of another host is compared
# More is counted of no wait, because it is rather a clock that was set: HAProxy takes 22 s at most
# for a body, and 3 s for a host that is lost. Only work that ended with its replica takes longer.
LONGEST_S = 30.0
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY


@dataclass(frozen=True)
class ProxiedRequest:
    """What is known of one request.

    Attributes:
        waited_s: since its arrival at the proxy, also in a replica that died.
        marking: marks its work as begun, as long as the work goes on.
        marking_of: does so for work of that name, which is a part of the request.
    """

    waited_s: float = 0.0
    marking: Callable[[], AbstractContextManager[None]] = nullcontext
    marking_of: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()


def proxied_request(scope: Mapping[str, Any]) -> ProxiedRequest:
    """Return what the proxy told of a request; nothing if it came without one."""
    found: ProxiedRequest = scope.get(SCOPE_KEY, ProxiedRequest())
    return found


class ProxyHeaders:
    """Reads what the proxy tells a replica of its requests.

    Args:
        marks: where requests that are at work are marked.
        arrivals: the clock of their arrival.
    """

    def __init__(self, marks: "Marks", arrivals: "Arrivals") -> None:
        self._marks, self._arrivals = marks, arrivals

    def read(self, headers: Mapping[bytes, bytes]) -> ProxiedRequest:
        """Return what is known of a request of the proxy.

        Args:
            headers: of the request, with names in lower case; only the proxy may have set them.
        """
        at, name = (headers.get(one.encode(), b"") for one in (ARRIVED_HEADER, REQUEST_HEADER))
        if not at or not name:  # a proxy that an older version started
            return ProxiedRequest()
        waited_s = self._arrivals.since_s(int(at) / 1000)
        marking = self._marks.marking
        return ProxiedRequest(waited_s, partial(marking, name.decode()), marking)


class Arrivals:
    """How long ago a request arrived, by the wall clock of the proxy.

    A replica on another host does not know that clock. It takes the request that came with the
    least delay lately for one that came at once, so it counts too little time rather than too much.
    It compares with its monotonic clock, which nobody sets. If the clock of the proxy is set back,
    requests seem to have waited by that much longer, at most `LONGEST_S`, for a minute or 100
    requests; if it is set forward, for none.

    Args:
        is_beside_proxy: whether the replica is on the host of the proxy, so that both have one
            clock.
        wall: seconds since 1970.
        monotonic: seconds since any time.
    """

    def __init__(
        self,
        *,
        is_beside_proxy: bool,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = wall if is_beside_proxy else monotonic
        self._is_beside_proxy = is_beside_proxy
        self._lately: deque[tuple[float, float]] = deque(maxlen=LAST)  # (now_s, since_s) of each

    def since_s(self, arrived_s: float) -> float:
        """Return the seconds since an arrival, in seconds since 1970; 0 to `LONGEST_S`."""
        now_s = self._clock()
        since_s = now_s - arrived_s
        if not self._is_beside_proxy:
            since_s -= self._at_once_s(now_s, since_s)
        return min(max(since_s, 0.0), LONGEST_S)

    def _at_once_s(self, now_s: float, since_s: float) -> float:
        """Return the difference of the two clocks for a request that came at once."""
        while self._lately and self._lately[0][0] < now_s - LATELY_S:
            self._lately.popleft()
        self._lately.append((now_s, since_s))
        return min(one for _, one in self._lately)


@dataclass
class _Marked:
    """The marks of a request, and how many tries of it are at work in this process."""

    paths: list[Path]
    count: int = 0


class Marks:
    """Marks requests while a replica works on them; a mark stays only if the replica dies.

    HAProxy sends a request again when its replica dies, and a frame may be the reason. Marks are
    files, so that the other replicas see them: on this host, and on others that share the home.

    Args:
        folder: of the marks; it need not be there.
        monotonic: seconds since any time.
    """

    def __init__(self, folder: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._monotonic = folder, monotonic
        self._at_work: dict[str, _Marked] = {}
        self._lock = threading.Lock()
        self._is_told, self._tidied_s = False, -math.inf

    def tidy(self) -> None:
        """Remove the marks of requests that ended long ago."""
        self._tidied_s = self._monotonic()
        before = time.time() - OLD_S
        with suppress(OSError):  # there is no folder yet, or its disk is gone
            for path in self._folder.iterdir():
                with suppress(OSError):  # another replica removed it, or it stays
                    if path.stat().st_mtime < before:
                        path.unlink()

    @contextmanager
    def marking(self, name: str) -> Iterator[None]:
        """Mark a request as long as the block runs; several tries in one process share a mark.

        Args:
            name: of the request, the same at each try.

        Raises:
            WorkFailed: as many replicas began it as may, and did not end it.
        """
        if self._monotonic() > self._tidied_s + OLD_S:
            self.tidy()
        with self._lock:
            marked = self._at_work.get(name)
            if marked is None:
                paths = [self._folder / f"{name}.{one}" for one in range(TRIES)]
                marked = _Marked(paths[: self._take(paths) + 1])
                self._at_work[name] = marked
            marked.count += 1
        try:
            yield
        finally:
            with self._lock:
                marked.count -= 1
                if not marked.count:
                    del self._at_work[name]
                    _remove(marked.paths)

    def _take(self, paths: list[Path]) -> int:
        """Make the first mark that is not there; return its number, -1 if none can be made."""
        for place, path in enumerate(paths):
            try:
                _make_new(path)
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


def _remove(paths: list[Path]) -> None:
    with suppress(OSError):  # a disk that is gone takes no answer with it
        for path in paths:
            path.unlink(missing_ok=True)


def _make_new(path: Path) -> None:
    """Make a file that nobody made before, with the id of this process if the disk has room."""
    try:
        made = os.open(path, _NEW, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = os.open(path, _NEW, 0o600)
    with suppress(OSError):  # that it is there is the mark; its content only tells who made it
        try:
            os.write(made, str(os.getpid()).encode())
        finally:
            os.close(made)

"""The monitor on Ray Serve: a process of its own beside the replicas, and how they reach it."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from manybeam.errors import ManybeamError, Unreachable
from manybeam.serve.monitor.report import FrameReport, Seen, WatchState

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

T = TypeVar("T")

MONITOR = "monitor"
SEE_S, STATE_S = 10.0, 1.0  # for a reply
THREADS = 4  # reports, and questions of sessions
LIVE_THREADS = 64  # live pages that wait, at most 48 of them, and marks


class MonitorReplica:
    """The process of the monitor.

    Args:
        variables: settings of the process that started the service.
        platform: the id of the platform.
    """

    def __init__(self, variables: Mapping[str, str], platform: str) -> None:
        from manybeam.cluster import joining as cluster
        from manybeam.serve.logs import log_to_serve
        from manybeam.serve.monitor.parts import make_monitor
        from manybeam.serve.replica_addresses import listen_inside

        log_to_serve()
        listen_inside(platform)
        cluster.adopt(dict(variables))
        self._monitor, self._close = make_monitor()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="monitor")
        self._pages = ThreadPoolExecutor(LIVE_THREADS, thread_name_prefix="live")

    async def see(self, reports: list[FrameReport]) -> Seen:
        """Take reports."""
        return await _done(self._threads, partial(self._monitor.see, reports))

    async def state(self, session_id: int) -> WatchState | None:
        """Return the state of a session."""
        return await _done(self._threads, partial(self._monitor.state, session_id))

    async def live(self, session_id: int, after: int, wait_s: float) -> dict[str, Any]:
        """Return what a live page shows."""
        return await _done(self._pages, partial(self._monitor.live, session_id, after, wait_s))

    async def keep(self, session_id: int, frame_id: str, who: str) -> dict[str, Any]:
        """Keep a frame that is on a live page."""
        # Not in a thread of those for reports: a slow store must not end the watch.
        return await _done(self._pages, partial(self._monitor.keep, session_id, frame_id, who))

    def __del__(self) -> None:
        """End the threads; Ray Serve calls it when the process shall end."""
        close = getattr(self, "_close", None)
        if close is not None:
            close()


async def _done(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, call)


class RemoteMonitor:
    """The monitor of the service, for one of its replicas; its calls block.

    Args:
        handle: returns Ray's handle of the deployment.
    """

    def __init__(self, handle: "Callable[[], DeploymentHandle[Any]]") -> None:
        self._handle_of = handle
        self._handle: DeploymentHandle[Any] | None = None
        self._lock = threading.Lock()

    def see(self, reports: list[FrameReport]) -> Seen:
        """Take reports; raises Unreachable."""
        found: Seen = self._asked("see", SEE_S, reports)
        return found

    def state(self, session_id: int) -> WatchState | None:
        """Return the state of a session; raises Unreachable."""
        found: WatchState | None = self._asked("state", STATE_S, session_id)
        return found

    def live(self, session_id: int, after: int, wait_s: float) -> dict[str, Any]:
        """Return what a live page shows; raises Unreachable or Busy."""
        found: dict[str, Any] = self._asked("live", SEE_S + wait_s, session_id, after, wait_s)
        return found

    def keep(self, session_id: int, frame_id: str, who: str) -> dict[str, Any]:
        """Keep a frame that is on a live page; raises Unreachable or NotFound."""
        found: dict[str, Any] = self._asked("keep", SEE_S, session_id, frame_id, who)
        return found

    def _asked(self, name: str, timeout_s: float, *arguments: Any) -> Any:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            response = getattr(self._initialized(), name).remote(*arguments)
            try:
                return response.result(timeout_s=timeout_s)
            except TimeoutError:
                response.cancel()
                raise
        except ManybeamError:
            raise
        except (RayError, RayServeException, TimeoutError) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ManybeamError):
                raise cause from error
            raise Unreachable(
                "the monitor does not answer",
                str(error).partition("\n")[0][:300],
                "ask again in some seconds; frames are answered meanwhile",
            ) from error

    def _initialized(self) -> "DeploymentHandle[Any]":
        with self._lock:
            if self._handle is None:
                handle = self._handle_of()
                # Its calls come from threads; otherwise it works in an event loop only.
                begin: Any = handle._init  # Ray's lacks types
                begin(_run_router_in_separate_loop=True)
                self._handle = handle
            return self._handle

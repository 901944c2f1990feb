"""Example frames are made and drawn in a process of their own, one after another.

A frame needs torch and seconds of processor time. In the process of the pages, that would slow down
every other page and keep the memory. The process ends after some time without work. The pool is
that of loky, because those of Python keep idle processes, and their memory, for ever.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

import psutil
from loky.process_executor import BrokenProcessPool, ProcessPoolExecutor
from starlette.concurrency import run_in_threadpool

from manybeam.errors import Busy
from manybeam.web.pages.drawn import Drawn

IDLE_S = 120.0  # then the process ends; the next frame starts it again, in some seconds
WAITING = 64  # different frames, not readers: all who ask for one frame wait for it together
WAIT_S = 60.0


class Drawing:
    """Draws frames in another process, each once, however many ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Drawn]] = {}
        self._executor: ProcessPoolExecutor | None = None

    async def draw(self, digest: str, make: Callable[[], Drawn]) -> Drawn:
        """Return the description of a picture once it is in the cache.

        Args:
            digest: name of the picture.
            make: makes it in the other process, to which it is pickled; called again if that ends.

        Raises:
            Busy: too many frames wait, it took too long, or the process ended.
            ManybeamError: as `make` raises.
        """
        try:
            return await asyncio.wait_for(self._drawn(digest, make), WAIT_S)
        except TimeoutError:
            raise _busy(f"it is not drawn after {WAIT_S:.0f} s") from None
        except BrokenProcessPool as error:
            raise _busy("the process that draws ended; perhaps memory is short") from error

    async def _drawn(
        self, digest: str, make: Callable[[], Drawn], *, is_again: bool = False
    ) -> Drawn:
        """Wait for a picture; it is begun once more if the process ended meanwhile."""
        executor = await run_in_threadpool(self._running)
        try:
            drawing = await run_in_threadpool(self._begin, executor, digest, make)
            # Shielded: others wait for the same picture when this reader goes away.
            return await asyncio.shield(asyncio.wrap_future(drawing))
        except BrokenProcessPool:
            with self._lock:
                if self._executor is executor:
                    self._executor = None
            if is_again:
                raise
        return await self._drawn(digest, make, is_again=True)

    def _running(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ProcessPoolExecutor(
                    1, timeout=IDLE_S, initializer=_end_with_parent
                )
            return self._executor

    def _begin(
        self, executor: ProcessPoolExecutor, digest: str, make: Callable[[], Drawn]
    ) -> "Future[Drawn]":
        with self._lock:
            if (known := self._under_way.get(digest)) is not None:
                return known
            if len(self._under_way) >= WAITING:
                raise _busy(f"{WAITING} other frames wait to be drawn")
            drawing: Future[Drawn] = executor.submit(make)
            self._under_way[digest] = drawing
        drawing.add_done_callback(lambda _: self._under_way.pop(digest, None))
        return drawing

    def close(self) -> None:
        """End the process."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(kill_workers=True)


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even if that was killed."""

    def wait() -> None:
        if (parent := psutil.Process().parent()) is not None:
            parent.wait()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _busy(why: str) -> Busy:
    return Busy("this example frame is not drawn yet", why, "reload the page soon")

"""Calls that take no longer than their caller waits.

A socket's time-out bounds one read, not a request; and a look-up of a name knows no time-out at
all. So requests run in daemon threads, and who waits for one leaves when the time is up.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Callable

MOST_LEFT = 32  # threads that nobody waits for any more; then calls are refused at once
_SLICE_S = 0.5  # Windows hears Ctrl-C only between two waits


class TimeIsUp(Exception):
    """The call takes longer than its caller may wait."""


class _Call:
    """One call and its result."""

    def __init__(self, work: Callable[[], Any], when_late: Callable[[Any], None]) -> None:
        self.work, self.when_late = work, when_late
        self.lock, self.done = threading.Lock(), threading.Event()
        self.is_left = False
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        """Do the work, and tell who waits."""
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            self.error = error
        with self.lock:
            self.done.set()
            is_left = self.is_left
        if is_left and self.error is None:
            self.when_late(self.result)


class BoundedCalls:
    """Runs calls in threads that are used again; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[queue.Queue[_Call | None]] = []
        self._left, self._is_closed = 0, False

    def run(self, work: Callable[[], Any], due_s: float, when_late: Callable[[Any], None]) -> Any:
        """Return the result of a call, or raise its error.

        Args:
            work: the call.
            due_s: until when to wait, in monotonic seconds.
            when_late: is given a result that nobody waits for any more.

        Raises:
            TimeIsUp: it takes longer.
        """
        call = _Call(work, when_late)
        self._start(call)
        while not call.done.wait(max(min(due_s - time.monotonic(), _SLICE_S), 0)):
            if time.monotonic() >= due_s:
                self._leave(call)
                break
        if not call.done.is_set():
            raise TimeIsUp
        if call.error is not None:
            raise call.error
        return call.result

    def close(self) -> None:
        """End the threads that have nothing to do; others end after their call."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for calls in idle:
            calls.put(None)

    def _start(self, call: _Call) -> None:
        with self._lock:
            if self._left >= MOST_LEFT:
                raise TimeIsUp
            calls = self._idle.pop() if self._idle else None
        if calls is None:
            calls = queue.Queue()
            threading.Thread(
                target=self._work, args=(calls,), name="manybeam-request", daemon=True
            ).start()
        calls.put(call)

    def _leave(self, call: _Call) -> None:
        with call.lock:
            if call.done.is_set():
                return
            call.is_left = True
        with self._lock:
            self._left += 1

    def _work(self, calls: queue.Queue[_Call | None]) -> None:
        while True:
            call = calls.get()
            if call is None:
                return
            call.make()
            with self._lock:
                self._left -= call.is_left
                if self._is_closed:
                    return
                self._idle.append(calls)
            del call  # its frame is large, and the next one may be long in coming

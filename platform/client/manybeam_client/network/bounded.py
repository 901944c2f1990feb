"""Calls that take no longer than their caller waits.

A socket's time-out bounds one read, not a request; and a look-up of a name knows no time-out at
all. So requests run in daemon threads, and who waits for one leaves when the time is up.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from typing import Any, Callable

MOST_LEFT = 32  # threads that nobody waits for any more; then calls are refused at once
LATE_S = 1.0  # that a call goes on alone, because its result may be counted; then it is cut
_here = threading.local()
_SLICE_S = 0.5  # Windows hears Ctrl-C only between two waits


class TimeIsUp(Exception):
    """The call takes longer than its caller may wait."""


class _Call:
    """One call and its result."""

    def __init__(self, work: Callable[[], Any], when_late: Callable[[Any], None]) -> None:
        self.work, self.when_late = work, when_late
        self.lock, self.done = threading.Lock(), threading.Event()
        self.is_left, self.left_s = False, math.inf
        self.cut: Callable[[], None] | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        """Do the work, and tell who waits."""
        _here.call = self
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            self.error = error
        with self.lock:
            self.done.set()
            self.cut = None
            is_left = self.is_left
        if is_left and self.error is None:
            self.when_late(self.result)


def may_be_cut(cut: Callable[[], None] | None) -> None:
    """Say what ends the call of this thread from outside, as long as it does not end by itself."""
    call: _Call | None = getattr(_here, "call", None)
    if call is not None:
        with call.lock:
            call.cut = cut


class BoundedCalls:
    """Runs calls in threads that are used again; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[queue.Queue[_Call | None]] = []
        self._left: set[_Call] = set()
        self._is_closed = False

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
        self._cut_left(LATE_S)
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
        self._cut_left(0)

    def _cut_left(self, after_s: float) -> None:
        """Cut calls that nobody has waited for so long: their threads would fill the limit."""
        before_s = time.monotonic() - after_s
        with self._lock:
            old = [one for one in self._left if one.left_s <= before_s]
        for call in old:
            with call.lock:  # a call that is done may have passed its connection on
                if call.cut is not None:
                    call.cut()

    def _start(self, call: _Call) -> None:
        with self._lock:
            if len(self._left) >= MOST_LEFT:
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
            call.is_left, call.left_s = True, time.monotonic()
            with self._lock:
                self._left.add(call)

    def _work(self, calls: queue.Queue[_Call | None]) -> None:
        while True:
            call = calls.get()
            if call is None:
                return
            call.make()
            with self._lock:
                self._left.discard(call)
                if self._is_closed:
                    return
                self._idle.append(calls)
            del call  # its frame is large, and the next one may be long in coming

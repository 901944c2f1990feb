"""Signals: SIGTERM and a closed terminal end a command as Ctrl-C does, so drafts are removed.

An exception that a handler raises can get lost: where Python calls back from C, as at the end of
an import, it is only printed. So the signal is sent again until the command is ending.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128  # plus the number of the signal: the exit code by the custom of shells
_AGAIN_S = 1.0


class Ended(SystemExit):
    """A signal ended the command.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(_SIGNALLED + number)
        self.exit_code, self.name = _SIGNALLED + number, signal.Signals(number).name


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let signals raise `Ended` inside; nothing is printed meanwhile, because that may wait."""
    changed = []
    if threading.current_thread() is threading.main_thread():  # others cannot
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
                signal.signal(number, _end)
                changed.append(number)
    try:
        yield
    finally:
        _insistence.stop()
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def leave_to_server() -> None:
    """Let a server end as its library does, with the status that its supervisor expects."""
    for number in _ENDING:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


class _Insistence:
    """Sends a signal to the main thread again and again, from a thread of its own."""

    def __init__(self) -> None:
        # Held while a signal is sent, so that none comes after `stop`.
        self._lock = threading.Lock()
        self._stopped: threading.Event | None = None

    def begin(self, number: int) -> None:
        if self._stopped is None:
            self._stopped = threading.Event()
            threading.Thread(target=self._run, args=(number, self._stopped), daemon=True).start()

    def stop(self) -> None:
        if self._stopped is not None:
            with self._lock:
                self._stopped.set()
            self._stopped = None

    def _run(self, number: int, stopped: threading.Event) -> None:
        main = threading.main_thread().ident
        while main is not None and not stopped.wait(_AGAIN_S):
            with self._lock:
                if not stopped.is_set():
                    signal.pthread_kill(main, number)


_insistence = _Insistence()


def _end(number: int, _: object) -> None:
    if _is_ending():
        return  # drafts are being removed, which no signal disturbs
    _insistence.begin(number)
    raise Ended(number)


def _is_ending() -> bool:
    """Return whether the interrupted code handles an `Ended`, as what removes drafts does."""
    handled = sys.exception()
    while handled is not None:
        if isinstance(handled, Ended):
            return True
        handled = handled.__context__
    return False

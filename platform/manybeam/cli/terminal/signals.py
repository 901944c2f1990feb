"""Signals: SIGTERM and a closed terminal end a command as Ctrl-C does, so drafts are removed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128  # plus the number of the signal: the exit code by the custom of shells


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
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def leave_to_server() -> None:
    """Let a server end as its library does, with the status that its supervisor expects."""
    for number in _ENDING:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: object) -> None:
    raise Ended(number)

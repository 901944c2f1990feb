"""Progress of long work on stderr: bars on a terminal, else a line for each tenth.

The first sign comes at once, before anything heavy is imported or started. Without a terminal, no
silence is longer than `SILENCE_S`.
"""

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from manybeam.cli.terminal.output import bars, first_sign, say

SILENCE_S = 15.0


class Progress:
    """Tasks with a name and a total; used as a context, and from several threads.

    Args:
        start: what happens before the first task, in a few words.
        lines: lines of a task without a terminal; 1 prints only its end.
    """

    def __init__(self, start: str = "starting", lines: int = 10) -> None:
        self._start = start
        self._shown = _Bars() if sys.stderr.isatty() else _Lines(lines)

    def __enter__(self) -> Self:
        first_sign.end()
        self._shown.begin(self._start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.end()

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Show that `done` of `total` of a task is finished."""
        self._shown.update(task, done, total, note)


class _Bars:
    """A bar for each task, with time spent and time left."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description} {task.fields[note]}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(show_speed=True),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._ids: dict[str, Any] = {}

    def begin(self, what: str) -> None:
        bars.append(self._bars.console)
        self._bars.start()
        self._first = self._bars.add_task(what, total=None, note="")

    def end(self) -> None:
        bars.remove(self._bars.console)
        with suppress(OSError):  # the terminal was closed
            self._bars.stop()

    def update(self, task: str, done: float, total: float, note: str) -> None:
        if task not in self._ids:
            self._bars.update(self._first, visible=False)
            self._ids[task] = self._bars.add_task(task, total=total, note="")
        self._bars.update(self._ids[task], completed=done, note=note)


class _Lines:
    """A line for each part of a task, with rate and time left, and one after each silence."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._parts: dict[str, int] = {}  # of each task that are done, of `lines`
        self._begun: dict[str, float] = {}  # time of the first update of each task [s]
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._watch = threading.Thread(target=self._break_silence, daemon=True)

    def begin(self, what: str) -> None:
        self._first = time.monotonic()
        self._print(what, "")
        self._watch.start()

    def end(self) -> None:
        self._ended.set()
        self._watch.join()

    def update(self, task: str, done: float, total: float, note: str) -> None:
        with self._lock:
            self._task, now = task, time.monotonic()
            spent_s = now - self._begun.setdefault(task, now)
            part = int(self._lines * done / total) if total else self._lines
            if part <= self._parts.get(task, 0):
                return
            self._parts[task] = part
            words = [f"{100 * part // self._lines} %", note]
            if done < total and spent_s > 0:
                words += [
                    f"{done / spent_s:.3g}/s",
                    f"{spent_s * (total - done) / done:.0f} s left",
                ]
            words.append(f"{now - self._first:.0f} s in all")
            self._print(task, ", ".join(word for word in words if word))

    def _print(self, task: str, text: str) -> None:
        self._task, self._last = task, time.monotonic()
        say(f"   {task}: {text}" if text else f"   {task} ...")

    def _break_silence(self) -> None:
        while not self._ended.wait(0.2):
            with self._lock:
                if time.monotonic() - self._last > SILENCE_S:
                    self._print(self._task, f"at work, {time.monotonic() - self._first:.0f} s")

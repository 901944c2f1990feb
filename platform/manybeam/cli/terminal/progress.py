"""Progress of long work on stderr: bars on a terminal, else a line for each tenth."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from manybeam.cli.terminal.output import say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


class Progress:
    """Tasks with a name and a total; used as a context.

    On a terminal every task is a bar with its ETA. Elsewhere a task prints a line for each tenth,
    so that a log stays short.

    Args:
        lines: lines of a task without a terminal; 1 prints only its end.
    """

    def __init__(self, lines: int = 10) -> None:
        self._lines = lines
        self._passed: dict[str, int] = {}
        self._ids: dict[str, Any] = {}
        self._started = time.monotonic()
        self._bars: Bars | None = None
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bars = progress.Progress(console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Show that `done` of `total` of a task is finished."""
        if self._bars:
            self._draw(self._bars, task, done, total, note)
            return
        part = int(self._lines * done / total) if total else self._lines
        if part > self._passed.get(task, 0):
            self._passed[task] = part
            elapsed_s = time.monotonic() - self._started
            share = 100 * part // self._lines
            say(f"   {task}: {share} % {note} ({elapsed_s:.0f} s)")

    def _draw(self, bars: "Bars", task: str, done: float, total: float, note: str) -> None:
        if task not in self._ids:
            self._ids[task] = bars.add_task(task, total=total)
        bars.update(self._ids[task], completed=done, description=f"{task} {note}".strip())

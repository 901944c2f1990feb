"""The deadline of one answer, and the time of its stages."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from manybeam.errors import DeadlineExceeded


@dataclass
class Deadline:
    """Times the stages of one answer and keeps its deadline.

    Attributes:
        due_s: the deadline, by the same clock; None for no deadline.
        clock: monotonic seconds.
        seconds: time spent in each stage so far.
    """

    due_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; after the deadline it is not begun.

        Raises:
            DeadlineExceeded: the time is up.
        """
        begun = self.clock()
        if self.due_s is not None and begun >= self.due_s:
            raise DeadlineExceeded(
                f"the deadline passed before {name}", "", "raise deadline_ms, or want less"
            )
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - begun

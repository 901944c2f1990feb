"""The deadline of one answer, and the time of its stages."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from manybeam.errors import CallerGone, DeadlineExceeded


@dataclass
class Deadline:
    """Times the stages of one answer and ends its work when nobody waits for it any more.

    Attributes:
        due_s: the deadline, by the same clock; None for no deadline.
        begun_s: when the question arrived, by the same clock; None if nobody knows.
        aim_s: when the answer should be ready; a later one is given all the same. None for never.
        frames_left: frames of the request that are not answered yet; they share the time left.
        clock: monotonic seconds.
        seconds: time spent in each stage so far.
        is_cancelled: whether the caller has gone; another thread may set it.
    """

    due_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    seconds: dict[str, float] = field(default_factory=dict)
    is_cancelled: bool = False
    begun_s: float | None = None
    aim_s: float | None = None
    frames_left: int = 1

    @property
    def left_s(self) -> float | None:
        """The time left for a frame, until the earlier of aim and deadline; None without both."""
        ends = [one for one in (self.due_s, self.aim_s) if one is not None]
        return self._share(min(ends)) if ends else None

    @property
    def due_left_s(self) -> float | None:
        """The time left for a frame until the deadline; None if there is none."""
        return None if self.due_s is None else self._share(self.due_s)

    def _share(self, end_s: float) -> float:
        return (end_s - self.clock()) / self.frames_left

    def check(self, what: str = "the answer was ready") -> None:
        """Return if somebody still waits; long work asks between its parts.

        Raises:
            DeadlineExceeded: the time is up.
            CallerGone: the caller has gone.
        """
        self._check(self.clock(), what)

    def _check(self, now_s: float, what: str) -> None:
        if self.is_cancelled:
            raise CallerGone(f"the caller had gone before {what}")
        if self.due_s is not None and now_s >= self.due_s:
            raise DeadlineExceeded(
                f"the deadline passed before {what}", "", "raise deadline_ms, or want less"
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; after the deadline it is not begun.

        Raises:
            DeadlineExceeded: the time is up.
            CallerGone: the caller has gone.
        """
        begun = self.clock()
        self._check(begun, name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - begun

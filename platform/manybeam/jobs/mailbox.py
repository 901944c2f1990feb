"""How workers tell the driver how far they are, and how it tells them to stop.

One small actor that needs no core. Workers post to it a few times a second, the driver empties it;
the answer to a post says whether to go on. It is started again if its node dies: what is lost then
is a moment of progress, never a result.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from manybeam.errors import ManybeamError
from manybeam.jobs.run import Event

POST_S = 0.25  # between two posts of one worker

Mailbox = Any  # a handle of the actor `_Mailbox`


class Stopped(BaseException):
    """The driver wants no more work; not an Exception, so that nothing on the way swallows it."""


class _Mailbox:
    def __init__(self) -> None:
        self._events: list[Event] = []
        self._faults: list[ManybeamError] = []
        self._stopped = False

    def post(self, events: list[Event]) -> bool:
        """Keep events and return whether the worker should go on."""
        self._events += events
        return not (self._stopped or self._faults)

    def fault(self, error: ManybeamError) -> None:
        """Keep what ended a worker's part; the others are stopped by it too."""
        self._faults.append(error)

    def take(self) -> tuple[list[Event], list[ManybeamError]]:
        """Return what has come since the last call."""
        events, self._events = self._events, []
        return events, self._faults

    def stop(self) -> None:
        """Tell every worker, at its next post, to stop."""
        self._stopped = True


def open_mailbox() -> Mailbox:
    """Return a new mailbox on the cluster this process is on."""
    import ray

    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Mailbox)
    return actor.remote()


class Sender:
    """A worker's end of the mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._kept: dict[int, Event] = {}
        self._last_s = 0.0

    def tell(self, event: Event) -> None:
        """Post an event soon; raises Stopped if the driver wants no more."""
        self._kept[event.member] = event
        if event.step == event.steps or time.monotonic() - self._last_s >= POST_S:
            self.check()

    def check(self) -> None:
        """Post now what is kept; raises Stopped if the driver wants no more."""
        import ray

        events, self._kept = list(self._kept.values()), {}
        go_on = ray.get(self._mailbox.post.remote(events))
        self._last_s = time.monotonic()
        if not go_on:
            raise Stopped

    @contextmanager
    def reporting_faults(self) -> Iterator[None]:
        """Post an error of ours and end quietly: Ray would start the worker again in vain."""
        import ray

        try:
            yield
        except Stopped:
            pass
        except ManybeamError as error:
            ray.get(self._mailbox.fault.remote(error))

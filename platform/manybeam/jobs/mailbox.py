"""Messages between workers and driver: workers report progress, the driver can stop them.

The mailbox is one small actor that needs no CPU core. Workers post to it a few times a second and
the driver empties it. The answer to a post says whether to continue. If the node of the mailbox
fails, the mailbox is started again: some progress messages are lost, but no results. The function
that workers run is here too, because the controller of Ray Train imports the module of it.

Actors of Ray import this module, so it imports nothing heavy: a process starts in a second, and
not in four.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from manybeam.errors import ManybeamError

POST_S = 0.25  # between two posts of one worker

Mailbox = Any  # a handle of the actor `_Mailbox`


@dataclass(frozen=True)
class Event:
    """Progress of one member: steps done, all steps, and the last loss."""

    member: int
    step: int
    steps: int
    loss: float


OnEvent = Callable[[Event], None]


class Stopped(BaseException):
    """The driver stops the work. It is no Exception, so that `except Exception` lets it pass."""


class _Mailbox:
    def __init__(self) -> None:
        self._events: list[Event] = []
        self._faults: list[ManybeamError] = []
        self._stopped = False

    def post(self, events: list[Event]) -> bool:
        """Keep events and return whether the worker should continue."""
        self._events += events
        return not (self._stopped or self._faults)

    def fault(self, error: ManybeamError) -> None:
        """Keep the error that ended a worker; the other workers are stopped too."""
        self._faults.append(error)

    def take(self) -> tuple[list[Event], list[ManybeamError]]:
        """Return the messages since the last call."""
        events, self._events = self._events, []
        return events, self._faults

    def stop(self) -> None:
        """Stop every worker at its next post."""
        self._stopped = True


def open_mailbox() -> Mailbox:
    """Return a new mailbox on the cluster of this process."""
    import ray

    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Mailbox)
    return actor.remote()


def work_in_worker(config: dict[str, Any]) -> None:
    """Run the function and the arguments of `config["work"]`, a reference to an object of Ray.

    The controller of Ray Train also reads the config, but it does not fetch objects behind
    references. So it need not import torch.
    """
    import ray

    work, arguments = ray.get(config["work"])
    work(**arguments)


class Sender:
    """The side of the mailbox in a worker."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._kept: dict[int, Event] = {}
        self._last_s = 0.0

    def report(self, event: Event) -> None:
        """Post an event soon; raises Stopped if the driver stops the work."""
        self._kept[event.member] = event
        if event.step == event.steps or time.monotonic() - self._last_s >= POST_S:
            self.check()

    def check(self) -> None:
        """Post all kept events now; raises Stopped if the driver stops the work."""
        import ray

        events, self._kept = list(self._kept.values()), {}
        go_on = ray.get(self._mailbox.post.remote(events))
        self._last_s = time.monotonic()
        if not go_on:
            raise Stopped

    @contextmanager
    def reporting_faults(self) -> Iterator[None]:
        """Post a ManybeamError and end without it: Ray would start the worker again."""
        import ray

        try:
            yield
        except Stopped:
            pass
        except ManybeamError as error:
            ray.get(self._mailbox.fault.remote(error))

"""The frames of a stream between their source and who reads the answers.

A frame waits, is handed to a transport, is settled with an answer, and is taken, in this order.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from itertools import takewhile
from typing import TYPE_CHECKING, Callable

from manybeam_client.answer import Answer
from manybeam_client.errors import Problem

if TYPE_CHECKING:
    from manybeam_client.frame import FrameRequest
    from manybeam_client.stats import Stats
    from manybeam_client.stream.event import Event

_SLICE_S = 0.5  # Windows hears Ctrl-C only between two waits


class Ticket:
    """One frame of a stream.

    Attributes:
        request: the frame.
        begun_s: when it was handed on, in monotonic seconds.
        due_s: until when its answer is waited for; infinity if the transport cares for that.
        answer: its answer, when it is settled.
        sent_count: how often it was sent.
        events: what the service said after its answer and before the next one.
    """

    def __init__(self, request: FrameRequest) -> None:
        self.request = request
        self.begun_s, self.due_s = time.monotonic(), math.inf
        self.answer: Answer | None = None
        self.sent_count = 0
        self.events: list[Event] = []

    @property
    def took_ms(self) -> float:
        """Time since it was handed on."""
        return (time.monotonic() - self.begun_s) * 1000


class Window:
    """Bounds how many frames are between source and reader; safe to use from several threads.

    Args:
        hand: takes a ticket to be sent; must not block.
        in_flight: most tickets that are handed on and not taken.
        is_latest: drop a frame that waits when a newer one comes, instead of letting its source
            wait.
        stats: counts dropped frames.
    """

    def __init__(
        self, hand: Callable[[Ticket], None], in_flight: int, stats: Stats, *, is_latest: bool
    ) -> None:
        self._hand, self._in_flight, self._stats = hand, in_flight, stats
        self.is_latest, self._changed = is_latest, threading.Condition()
        self._waiting: Ticket | None = None
        self._handed: deque[Ticket] = deque()
        self._events: deque[Event] = deque()
        self._is_ended = self.is_closed = False
        self._failure: BaseException | None = None

    # -- for the source ---------------------------------------------------------------------
    def wait_for_room(self) -> bool:
        """Wait until the source may be read; return False if nobody reads on."""
        with self._changed:
            while not (self.is_closed or self.is_latest or len(self._handed) < self._in_flight):
                self._changed.wait()
            return not self.is_closed

    def offer(self, ticket: Ticket) -> None:
        """Take the next frame of the source."""
        with self._changed:
            if self.is_closed:
                return
            if self._waiting is not None:
                self._stats.count("dropped")
            self._waiting = ticket
            self._refill()

    def end(self, failure: BaseException | None = None) -> None:
        """Take note that the source has ended, or failed."""
        with self._changed:
            self._is_ended, self._failure = True, failure
            self._changed.notify_all()

    # -- for the transport ------------------------------------------------------------------
    def settle(self, ticket: Ticket, answer: Answer) -> bool:
        """Give a ticket its answer; return False if it had one."""
        with self._changed:
            if ticket.answer is not None:
                return False
            ticket.answer = answer
            self._changed.notify_all()
            return True

    def tell(self, event: Event) -> None:
        """Pass on an event, after the answers that came before it."""
        with self._changed:
            before = list(takewhile(lambda one: one.answer is not None, self._handed))
            (before[-1].events if before else self._events).append(event)
            self._changed.notify_all()

    # -- for the reader ---------------------------------------------------------------------
    def take(self, when_overdue: Callable[[Ticket], None]) -> Ticket | Event | None:
        """Return the next event or settled ticket, in order; None after the last one.

        Args:
            when_overdue: is called with a ticket whose time is up, and must settle it.

        Raises:
            BaseException: what the source raised.
        """
        while True:
            with self._changed:
                if self.is_closed:  # by the end of the session
                    return None
                if self._events:
                    return self._events.popleft()
                head = self._handed[0] if self._handed else None
                if head is not None and head.answer is not None:
                    self._handed.popleft()
                    self._events.extend(head.events)
                    self._refill()
                    self._changed.notify_all()
                    return head
                if head is None and self._is_ended:
                    if self._failure is not None:
                        raise self._failure
                    return None
                left_s = math.inf if head is None else head.due_s - time.monotonic()
                if left_s > 0:
                    self._changed.wait(min(left_s, _SLICE_S))
                    continue
            if head is not None:
                when_overdue(head)

    def close(self) -> None:
        """Let the source end."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def _refill(self) -> None:
        if self._waiting is None or len(self._handed) >= self._in_flight:
            return
        ticket, self._waiting = self._waiting, None
        ticket.begun_s = time.monotonic()
        self._handed.append(ticket)
        if ticket.answer is None:
            self._hand(ticket)


def overdue(ticket: Ticket, *, is_away: bool) -> Answer:
    """Return the answer of a ticket whose time is up."""
    problem = Problem(
        "deadline",
        "there was no answer before the deadline",
        hint="raise deadline_ms, or send a smaller frame",
        is_away=is_away,
    )
    return Answer(ticket.request.frame_id, error=problem, took_ms=ticket.took_ms)

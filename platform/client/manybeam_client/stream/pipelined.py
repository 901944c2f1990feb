"""A stream as requests over HTTP, several at once; it needs nothing but the bare client."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from manybeam_client.answer import Answer
from manybeam_client.errors import Problem
from manybeam_client.network.outage import left_s

if TYPE_CHECKING:
    from manybeam_client.link import Link
    from manybeam_client.stream.window import Ticket, Window


class PipelinedTransport:
    """Sends each frame as a request, in as many threads as frames may be in flight.

    Args:
        link: to the service.
        window: where answers go.
        in_flight: number of threads.
        deadline_ms: for each frame [ms].
    """

    def __init__(
        self, link: Link, window: Window, in_flight: int, deadline_ms: float | None
    ) -> None:
        self._link, self._window, self._deadline_ms = link, window, deadline_ms
        self._tickets: queue.Queue[Ticket | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._work, name="manybeam-stream", daemon=True)
            for _ in range(in_flight)
        ]
        for thread in self._threads:
            thread.start()

    def hand(self, ticket: Ticket) -> None:
        """Take a ticket to be sent."""
        self._tickets.put(ticket)

    def close(self) -> None:
        """End the threads; one that waits for an answer ends with it."""
        for _ in self._threads:
            self._tickets.put(None)

    def _work(self) -> None:
        while True:
            ticket = self._tickets.get()
            if ticket is None:
                return
            if not self._window.is_closed:
                self._window.settle(ticket, self._answer(ticket))
            del ticket  # its frame is large, and the next one may be long in coming

    def _answer(self, ticket: Ticket) -> Answer:
        request = ticket.request
        try:
            found = self._link.answer(request, ticket.begun_s, self._deadline_ms)
            while self._may_wait(ticket, found):
                found = self._link.answer(request, ticket.begun_s, self._deadline_ms)
            return found
        except Exception as error:  # noqa: BLE001 - a frame without an answer stops the loop for ever
            problem = Problem("failed", "this client failed", f"{type(error).__name__}: {error}")
            return Answer(request.frame_id, error=problem, took_ms=ticket.took_ms)

    def _may_wait(self, ticket: Ticket, found: Answer) -> bool:
        """With `all`, wait for the service as long as the frame has time; return whether to ask."""
        if self._window.is_latest or found.error is None or not found.error.is_away:
            return False
        due_s = ticket.begun_s + (self._deadline_ms or 0) / 1000
        while not (self._window.is_closed or self._link.is_closed) and left_s(due_s):
            if self._link.outage.wait_until_back(min(left_s(due_s), 0.5)):
                return True
        return False

"""A stream as requests over HTTP, several at once; it needs nothing but the bare client."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

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
                answer = self._link.answer(ticket.request, ticket.begun_s, self._deadline_ms)
                self._window.settle(ticket, answer)
            del ticket  # its frame is large, and the next one may be long in coming

"""A stream over a WebSocket: it comes back by itself, and no frame is answered twice.

One thread does all: it sends frames while the service may take more, and reads messages. Frames
without an answer are sent again over the next connection, under their names.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable

from manybeam_client.answer import Answer, read_answer
from manybeam_client.errors import Problem, problem_of
from manybeam_client.network.outage import jitter_s
from manybeam_client.stream.event import Event
from manybeam_client.stream.wire import PASSING, NoWebSocket, Wire, WireEnded

if TYPE_CHECKING:
    from manybeam_client.link import Link
    from manybeam_client.stream.pipelined import PipelinedTransport
    from manybeam_client.stream.window import Ticket, Window

logger = logging.getLogger("manybeam_client")

GRACE_S = 2.0  # without a connection; then frames no longer wait for one
REFUSED_S = 1.0  # between two tries after the service refused the stream
WAIT_S = 0.25  # at most, for a message
SILENT = 2  # frames without any sign: then the connection is dead
MOST_SENT = 4  # of one frame, if the service asks for it again or ends the stream because of it
MOST_HEALTHY = 3  # failures to connect while the service answers HTTP
AGAIN_S = 60.0  # over HTTP, until a WebSocket is tried again
MOST_MISSING = 2  # refusals because there is no session, although it was started
CLOSING_S = 2.0
TAKEN_OVER, SESSION_ENDED, TOKEN_REVOKED, UNREADABLE = 4409, 4404, 4401, 4400


class SocketTransport:
    """Sends frames over a WebSocket.

    Args:
        link: to the service; it has a session of an instrument.
        window: where answers go.
        deadline_ms: for each frame [ms].
        fall_back: makes the transport that is used while no WebSocket can be had.
    """

    def __init__(
        self,
        link: Link,
        window: Window,
        deadline_ms: float | None,
        fall_back: Callable[[], PipelinedTransport],
    ) -> None:
        self._link, self._window, self._deadline_ms = link, window, deadline_ms
        self._fall_back = fall_back
        self._instead: PipelinedTransport | None = None
        self._end: Problem | None = None  # what frames are told after the stream
        self._refusal: Problem | None = None  # what they are told while it is refused
        self._lock, self._has_ended = threading.Lock(), False
        self._waiting: deque[Ticket] = deque()
        self._sent: deque[Ticket] = deque()
        self._later: list[tuple[float, Ticket]] = []
        self._away_s: float | None = None  # since when there is no connection
        self._healthy = self._missing = self._connections = 0
        self._wake, self._woken = socket.socketpair()
        self._wake.settimeout(0)  # `hand` must not block; a thread with bytes to hear will wake
        self._thread = threading.Thread(target=self._run, name="manybeam-stream", daemon=True)
        self._thread.start()

    def hand(self, ticket: Ticket) -> None:
        """Take a ticket to be sent."""
        with self._lock:
            instead, end = self._instead, self._end
            if instead is None and end is None:
                if self._deadline_ms is not None:
                    ticket.due_s = ticket.begun_s + self._deadline_ms / 1000
                self._link.add_live(1)
                self._waiting.append(ticket)
        if instead is not None:
            instead.hand(ticket)
        elif end is not None:
            self._tell(ticket, end)
        else:
            self._rouse()

    @property
    def is_closed(self) -> bool:
        """Whether nobody reads the answers."""
        return self._has_ended or self._window.is_closed

    def close(self) -> None:
        """End the connection and the thread."""
        with self._lock:
            self._has_ended = True
        self._rouse()
        self._thread.join(CLOSING_S)
        self._use_http(None)

    def _rouse(self) -> None:
        try:
            self._wake.send(b"\0")
        except OSError:  # the thread has ended, or has enough to hear
            return

    # -- from connection to connection ------------------------------------------------------
    def _run(self) -> None:
        try:
            while not self.is_closed and self._end is None:
                try:
                    self._come_back_always()
                except NoWebSocket as error:
                    self._give_over(str(error))
                    self._pause(AGAIN_S)
        except Exception as error:  # noqa: BLE001 - frames must not hang on a fault of this thread
            self._give_over(f"{type(error).__name__}: {str(error)[:160]}")
        finally:
            self._finish()

    def _come_back_always(self) -> None:
        attempt = 0
        while not self.is_closed:
            before = self._connections
            try:
                self._connect_and_serve()
            except WireEnded as error:
                if self._instead is not None:  # HTTP goes on meanwhile
                    raise NoWebSocket(error.why) from error
                attempt = 0 if self._connections > before else attempt + 1
                if not self._goes_on(error):
                    return
                self._pause(jitter_s(attempt, 0.1, 0.5))

    def _connect_and_serve(self) -> None:
        assert self._link.session is not None  # noqa: S101 - see `link` above
        with Wire(self._link.place, self._link.session.instrument) as wire:
            if self._connections:
                self._link.stats.count("reconnections")
            self._connections += 1
            self._use_http(None)
            self._refusal = self._away_s = None
            self._healthy = self._missing = 0
            self._serve(wire)

    def _goes_on(self, error: WireEnded) -> bool:
        """Return whether to connect again, after what the end of a connection asks for."""
        if self.is_closed:
            return False
        logger.info("the stream ended: %s (%d)", error.why, error.code)
        self._take_back()
        if error.code == TAKEN_OVER:
            self._end = _taken_over(error.why)
            return False
        if error.code in (SESSION_ENDED, 404):
            self._start_session(error)
        elif error.code in (TOKEN_REVOKED, 401, 403):
            self._refusal = Problem("not-allowed", error.why, status=error.code % 4000)
            self._pause(REFUSED_S)
        elif error.code == UNREADABLE:
            self._refuse_often_sent(error.why)
        else:
            self._wait_out(error)
        return True

    def _start_session(self, error: WireEnded) -> None:
        """Start the service's session anew; if that does not help, there are no streams."""
        self._missing += 1
        if self._missing > MOST_MISSING:
            raise NoWebSocket(error.why)
        self._link.open()

    def _wait_out(self, error: WireEnded) -> None:
        """Answer frames at once while the service is away for longer, until it is back."""
        now_s = time.monotonic()
        self._away_s = now_s if self._away_s is None else self._away_s
        is_known = self._link.outage.is_open
        if now_s - self._away_s < GRACE_S and not is_known:
            return
        if not is_known and self._link.health(GRACE_S) is None:
            self._healthy += error.code not in PASSING  # it may have come back just now
            if self._healthy >= MOST_HEALTHY:
                raise NoWebSocket(error.why)
            return
        why = "the stream cannot be connected"
        cause = Problem("connection", why, error.why, is_away=True)
        self._link.outage.begin(cause, frame_count=0)
        while self._link.outage.is_open and not self.is_closed:
            # With `all` a frame waits for the service as long as it has time.
            for ticket in self._drain() if self._window.is_latest else ():
                if ticket.answer is None:
                    self._link.stats.count("offline")
                    self._settle(ticket, self._link.outage.offline())
                else:
                    self._link.add_live(-1)
            self._hear(0.05)

    def _pause(self, pause_s: float) -> None:
        """Wait; frames are refused meanwhile if the service refuses the stream."""
        end_s = time.monotonic() + pause_s
        while not self.is_closed and time.monotonic() < end_s:
            if self._refusal is not None:
                self._refuse_all(self._refusal)
            self._hear(min(max(end_s - time.monotonic(), 0.001), WAIT_S))

    def _hear(self, wait_s: float = 0.0) -> None:
        """Take the bytes that were sent to wake this thread; wait for one if there is none."""
        self._woken.settimeout(wait_s)
        try:
            self._woken.recv(4096)
        except OSError:  # nobody called
            return

    # -- over one connection ----------------------------------------------------------------
    def _serve(self, wire: Wire) -> None:
        while not self.is_closed:
            while len(self._sent) < wire.in_flight:
                ticket = self._next()
                if ticket is None:
                    break
                self._send(wire, ticket)
            if wire.wait(self._woken, WAIT_S):
                self._receive(wire)
            else:
                self._hear()
            wire.beat()
            self._check_silence(wire)

    def _check_silence(self, wire: Wire) -> None:
        """End a connection that gave no sign while frames missed their deadlines.

        The service tells each late frame, so silence means that the network is cut; to wait for
        three beats would cost the deadline of every frame until then.
        """
        now_s = time.monotonic()
        if now_s - wire.heard_s < GRACE_S:
            return
        late = [one for one in self._sent if wire.heard_s < one.begun_s and one.due_s < now_s]
        if len(late) >= SILENT:
            self._away_s = wire.heard_s
            raise WireEnded(f"nothing was heard for {now_s - wire.heard_s:.1f} s")

    def _next(self) -> Ticket | None:
        """Return the next frame to be sent; those whose time is up are left out."""
        now_s = time.monotonic()
        with self._lock:
            ready = [one for one in self._later if one[0] <= now_s]
            self._later = [one for one in self._later if one[0] > now_s]
            self._waiting.extendleft(ticket for _, ticket in reversed(ready))
            while self._waiting:
                ticket = self._waiting.popleft()
                if ticket.answer is None and ticket.due_s > now_s:
                    return ticket
                self._link.add_live(-1)
        return None

    def _send(self, wire: Wire, ticket: Ticket) -> None:
        self._sent.append(ticket)
        self._link.stats.count("retried" if ticket.sent_count else "sent")
        ticket.sent_count += 1
        wire.send(ticket)

    def _receive(self, wire: Wire) -> None:
        found = wire.receive()
        head, data = found if found is not None else ({}, b"")
        if head.get("type") == "event":
            self._window.tell(Event.of_head(head))
        if head.get("type") != "answer":
            return
        for ticket in self._sent:
            if ticket.request.frame_id == head.get("frame_id"):
                self._sent.remove(ticket)
                self._answer(ticket, head, data)
                return

    def _answer(self, ticket: Ticket, head: dict[str, Any], data: bytes) -> None:
        self._link.outage.note_reply()
        if head.get("status") == 200:
            self._link.add_live(-1)
            found = read_answer(data, ticket.request.frame_id, ticket.took_ms)
            is_first = self._window.settle(ticket, found)
            if found.error is None:
                self._link.stats.count("answered" if is_first else "late")
            return
        wait_s = head.get("retry_after_s")
        headers = {} if wait_s is None else {"retry-after": str(math.ceil(wait_s))}
        problem = problem_of(int(head.get("status") or 0), headers, data)
        if wait_s is not None and _may_wait(ticket, float(wait_s)):
            with self._lock:
                self._later.append((time.monotonic() + wait_s + jitter_s(1), ticket))
            return
        self._settle(ticket, problem)

    # -- frames without an answer -----------------------------------------------------------
    def _settle(self, ticket: Ticket, problem: Problem) -> None:
        self._link.add_live(-1)
        self._tell(ticket, problem)

    def _tell(self, ticket: Ticket, problem: Problem) -> None:
        answer = Answer(ticket.request.frame_id, error=problem, took_ms=ticket.took_ms)
        if self._window.settle(ticket, answer):
            self._link.keep(ticket.request, answer)

    def _take_back(self) -> None:
        """Put frames without an answer before those that wait, in their order."""
        with self._lock:
            self._waiting.extendleft(reversed(self._sent))
            self._sent.clear()

    def _drain(self) -> list[Ticket]:
        with self._lock:
            found = [*self._sent, *(ticket for _, ticket in self._later), *self._waiting]
            self._sent.clear()
            self._later.clear()
            self._waiting.clear()
        return found

    def _refuse_all(self, problem: Problem) -> None:
        for ticket in self._drain():
            self._settle(ticket, problem)

    def _refuse_often_sent(self, why: str) -> None:
        """Give up frames that the service could not read again and again."""
        for ticket in self._drain():
            if ticket.sent_count >= MOST_SENT:
                self._settle(ticket, Problem("refused", "the service ended the stream", why))
            else:
                with self._lock:
                    self._waiting.append(ticket)

    def _give_over(self, why: str) -> None:
        """Hand all frames to HTTP, now and until a WebSocket can be had."""
        if self._instead is not None:
            return
        self._take_back()
        with self._lock:
            if self.is_closed:  # nobody would end the threads
                return
            logger.warning("the stream uses HTTP, because no WebSocket can be had: %s", why)
            self._instead = self._fall_back()
            waiting = [*(ticket for _, ticket in self._later), *self._waiting]
            self._later.clear()
            self._waiting.clear()
            for ticket in waiting:  # before any newer one
                ticket.due_s = math.inf
                self._link.add_live(-1)
                self._instead.hand(ticket)

    def _use_http(self, instead: PipelinedTransport | None) -> None:
        """Set what sends frames instead of a WebSocket; what did so ends with its last frame."""
        with self._lock:
            before, self._instead = self._instead, instead
        if before is not None:
            before.close()

    def _finish(self) -> None:
        """Leave nothing open, and no frame without an answer."""
        with self._lock:
            if self._end is None:
                self._end = Problem("closed", "the stream has ended")
            end = self._end
        if self._instead is None:
            self._refuse_all(end)
        self._wake.close()
        self._woken.close()


def _may_wait(ticket: Ticket, wait_s: float) -> bool:
    is_in_time = time.monotonic() + wait_s < ticket.due_s
    return ticket.answer is None and is_in_time and ticket.sent_count < MOST_SENT


def _taken_over(why: str) -> Problem:
    return Problem(
        "taken-over",
        "another client has taken over the stream of this instrument",
        why,
        "one program sends the frames of an instrument; end the other one, or use its own name",
        status=TAKEN_OVER,
    )

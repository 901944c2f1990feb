"""The loop over a stream: a thread reads frames, a transport sends, the caller takes answers."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Generator, Iterator

from manybeam_client.answer import Answer
from manybeam_client.errors import Problem
from manybeam_client.frame import FrameRequest
from manybeam_client.stream.event import Event
from manybeam_client.stream.pipelined import PipelinedTransport
from manybeam_client.stream.window import Ticket, Window, overdue

if TYPE_CHECKING:
    from manybeam_client.link import Link
    from manybeam_client.stream.socket import SocketTransport

logger = logging.getLogger("manybeam_client")

POLICIES = ("latest", "all")
TRANSPORTS = ("auto", "websocket", "http")
CLOSING_S = 2.0  # that the end of a stream waits for a source which reads its next frame


def answers_of(
    link: Link,
    frames: Iterator[Any],
    request_of: Callable[[Any], FrameRequest],
    *,
    is_latest: bool,
    in_flight: int,
    deadline_ms: float | None,
    on_event: Callable[[Event], None] | None,
    transport: str,
) -> Iterator[Answer]:
    """Return the answers of a stream; see `Session.stream`.

    Raises:
        ImportError: a WebSocket is asked for by name, and the extra is not installed.
    """
    is_socket = _is_socket(link, transport)

    def taken() -> Iterator[Answer]:
        # Nothing runs before the first answer is asked for: a loop that never begins has no end.
        def hand(ticket: Ticket) -> None:
            sender.hand(ticket)

        window = Window(hand, in_flight, link.stats, is_latest=is_latest)
        is_open = is_socket and not link.is_closed
        sender = _transport(link, window, in_flight, deadline_ms, is_socket=is_open)
        answers = _Answers(link, window, sender, _Source(frames, request_of, window), on_event)
        link.streams.add(answers)
        yield from answers.taken()

    return taken()


def _is_socket(link: Link, transport: str) -> bool:
    if transport == "http" or link.session is None:
        return False
    has_extra = has_websocket()
    if transport == "websocket" and not has_extra:
        raise ImportError(
            "a WebSocket needs the package websocket-client; "
            "pip install 'manybeam-client[stream]', or transport='http'"
        )
    if not has_extra:
        logger.info("the stream uses HTTP: pip install 'manybeam-client[stream]' for a WebSocket")
    return has_extra


def has_websocket() -> bool:
    """Return whether the extra for WebSockets is installed."""
    try:
        import websocket
    except ImportError:
        return False
    return hasattr(websocket, "create_connection")  # another package has the same name


def _transport(
    link: Link, window: Window, in_flight: int, deadline_ms: float | None, *, is_socket: bool
) -> PipelinedTransport | SocketTransport:
    if not is_socket:
        return PipelinedTransport(link, window, in_flight, deadline_ms)
    from manybeam_client.stream.socket import SocketTransport

    return SocketTransport(
        link, window, deadline_ms, lambda: PipelinedTransport(link, window, in_flight, deadline_ms)
    )


class _Answers:
    """Takes the answers out of the window, and ends all threads when nobody reads on."""

    def __init__(
        self,
        link: Link,
        window: Window,
        sender: PipelinedTransport | SocketTransport,
        source: _Source,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self._link, self._window, self._sender, self._source = link, window, sender, source
        self._on_event = on_event

    def taken(self) -> Iterator[Answer]:
        """Yield the answers."""
        self._source.start()
        try:
            while True:
                found = self._window.take(self._overdue)
                if found is None:
                    return
                if isinstance(found, Event):
                    if self._on_event is not None:
                        self._on_event(found)
                    continue
                assert found.answer is not None  # noqa: S101 - the window gives settled ones
                yield found.answer
                if found.answer.error is not None and found.answer.error.kind == "taken-over":
                    return
        finally:
            # When Python ends, other threads stand still, maybe with a lock in their hands.
            if not sys.is_finalizing():
                self.close()
                self._source.join()

    def close(self) -> None:
        """End the threads, also if nobody asks for the next answer."""
        self._window.close()
        self._sender.close()

    def _overdue(self, ticket: Ticket) -> None:
        answer = overdue(ticket, is_away=self._link.outage.is_open)
        if self._window.settle(ticket, answer):
            self._link.keep(ticket.request, answer)


class _Source:
    """Reads frames in a thread, so that answers come while the next frame is recorded."""

    def __init__(
        self, frames: Iterator[Any], request_of: Callable[[Any], FrameRequest], window: Window
    ) -> None:
        self._frames, self._request_of, self._window = frames, request_of, window
        self._thread = threading.Thread(target=self._read, name="manybeam-source", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread; a source that waits for its next frame ends with that frame."""
        self._thread.join(CLOSING_S)

    def _read(self) -> None:
        try:
            while self._window.wait_for_room():
                for item in self._frames:
                    self._window.offer(self._ticket(item))
                    break
                else:
                    break
            self._window.end()
        except BaseException as error:  # noqa: BLE001 - it is raised again for who reads
            self._window.end(error)
        finally:
            if isinstance(self._frames, Generator):  # a camera that is its own iterator goes on
                self._frames.close()

    def _ticket(self, item: Any) -> Ticket:
        """Return the ticket of a frame; what is no frame has its answer at once."""
        try:
            return Ticket(self._request_of(item))
        except Exception as error:  # noqa: BLE001 - what is no frame may raise anything when read
            facts = item[1] if isinstance(item, tuple) and len(item) == 2 else {}
            name = str(facts.get("frame_id") or "") if isinstance(facts, dict) else ""
            ticket = Ticket(FrameRequest("", name, b""))
            why = str(error) or type(error).__name__
            ticket.answer = Answer(name, error=Problem("refused", "this is no frame", why))
            return ticket

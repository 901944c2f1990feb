"""One WebSocket connection of a stream: its messages, its beats, its end.

The protocol: JSON heads as text; the parts of a body follow as binary messages.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import ssl
import struct
import time
import uuid
from typing import TYPE_CHECKING, Any, Mapping
from urllib.parse import quote, urlsplit

import numpy as np
import websocket

from manybeam_client.errors import problem_of
from manybeam_client.version import USER_AGENT

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from manybeam_client.network.place import Place
    from manybeam_client.stream.window import Ticket

CONNECT_S = 5.0
BEAT_S, BEATS = 5.0, 3  # without anything for so many beats the connection is dead
PART_BYTES = 2**20
WAY_S = 0.003  # of the deadline, for the way of the answer
PASSING = (429, 502, 503, 504)  # refusals that may not last
_BROKEN = (websocket.WebSocketException, OSError, ssl.SSLError)


class WireEnded(Exception):
    """The connection ended, or could not be made.

    Attributes:
        why: in words.
        code: of the WebSocket, or the status of the refusal; 0 if the connection broke.
    """

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.why, self.code = why, code


class NoWebSocket(Exception):
    """Something answers here, but no WebSocket can be had."""


class _Part:
    """A binary message of a client, masked by numpy: pure Python takes four times as long.

    Args:
        data: the bytes.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def format(self) -> bytes:
        """Return it as it goes over the wire (RFC 6455, 5.2)."""
        size, key = len(self._data), os.urandom(4)
        if size < 126:
            head = struct.pack("!BB", 0x82, 0x80 | size)
        elif size < 2**16:
            head = struct.pack("!BBH", 0x82, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x82, 0x80 | 127, size)
        whole = size // 4 * 4
        values, masked = np.frombuffer(self._data, np.uint8), np.empty(size, np.uint8)
        np.bitwise_xor(
            values[:whole].view(np.uint32),
            np.frombuffer(key, np.uint32),
            out=masked[:whole].view(np.uint32),
        )
        masked[whole:] = values[whole:] ^ np.frombuffer(key, np.uint8)[: size - whole]
        return head + key + masked.tobytes()


class Wire:
    """One connection, for the thread that made it; a context manager.

    Args:
        place: where the service is.
        instrument: whose stream it is.

    Attributes:
        in_flight: frames that the service takes before it answers the first.
        heard_s: when the service said something last, in monotonic seconds.
    """

    def __init__(self, place: Place, instrument: str) -> None:
        self._place = place
        self._path = "/v1/stream/{}?order=all".format(quote(instrument, safe=""))
        self._socket: Any = None
        self.in_flight, self._part_bytes, self._beat_s = 1, PART_BYTES, BEAT_S
        self._sent_s = self.heard_s = time.monotonic()

    def __enter__(self) -> Wire:
        """Connect, and read what the service says first."""
        self._socket = self._connected()
        try:
            self._read_welcome()
        except BaseException:
            self._socket.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the connection; nobody waits for the other end."""
        try:
            if error is None:
                self._socket.send_close()
        except _BROKEN:
            pass
        finally:
            self._socket.shutdown()

    def send(self, ticket: Ticket) -> None:
        """Send one frame."""
        left_s = ticket.due_s - time.monotonic() - WAY_S
        deadline_ms = None if left_s == float("inf") else max(int(left_s * 1000), 1)
        body = ticket.request.body
        try:
            self._socket.send(ticket.request.head(deadline_ms))
            for start in range(0, len(body), self._part_bytes):
                self._socket.send_frame(_Part(body[start : start + self._part_bytes]))
        except _BROKEN as error:
            raise _ended(error) from error
        self._sent_s = time.monotonic()

    def beat(self) -> None:
        """Show that this end lives, if nothing was sent for a while; raise if the other is dead."""
        now_s = time.monotonic()
        if now_s - self.heard_s > BEATS * self._beat_s:
            raise WireEnded(f"nothing was heard for {BEATS * self._beat_s:g} s")
        if now_s - self._sent_s < self._beat_s:
            return
        try:
            self._socket.send('{"type":"beat"}')
        except _BROKEN as error:
            raise _ended(error) from error
        self._sent_s = now_s

    def wait(self, woken: socket.socket, longest_s: float) -> bool:
        """Wait for a message, or for a byte of `woken`; return whether there is a message."""
        own = self._socket.sock
        if own is None:
            raise WireEnded("the connection broke")
        if getattr(own, "pending", int)():  # TLS has read more than was asked for
            return True
        with selectors.DefaultSelector() as both:
            both.register(own, selectors.EVENT_READ)
            both.register(woken, selectors.EVENT_READ)
            return any(key.fileobj is own for key, _ in both.select(longest_s))

    def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """Return one head and its body; None for a message that says nothing."""
        text = self._message()
        if text is None:
            return None
        head = _head(text)
        if head.get("type") == "closing":  # in more words than the end of a WebSocket may have
            raise _closed(head)
        size = head.get("bytes")
        return head, self._body(size if isinstance(size, int) else 0)

    def _connected(self) -> Any:
        place = self._place
        proxy = urlsplit(place.proxy) if place.proxy else None
        options: dict[str, Any] = {"http_no_proxy": ["*"]}
        if proxy is not None:
            options = {
                "http_proxy_host": proxy.hostname,
                "http_proxy_port": proxy.port or 8080,
                "http_proxy_auth": (proxy.username, proxy.password) if proxy.username else None,
                "proxy_type": "http",
            }
        headers = {"User-Agent": USER_AGENT, **place.headers()}
        try:
            made: Any = websocket.create_connection(
                place.websocket_url(self._path),
                timeout=CONNECT_S,
                header=["{}: {}".format(*one) for one in headers.items()],
                sslopt={"context": place.context()} if place.is_tls else {},
                redirect_limit=0,  # the token is for this service only
                suppress_origin=True,  # an Origin is what pages of other sites have
                enable_multithread=False,
                skip_utf8_validation=True,
                **options,
            )
        except websocket.WebSocketBadStatusException as error:
            raise _refused(error) from error
        except (
            OSError,
            websocket.WebSocketAddressException,
            websocket.WebSocketConnectionClosedException,
            websocket.WebSocketTimeoutException,
        ) as error:
            raise _ended(error) from error
        except websocket.WebSocketException as error:
            raise _not_made(error) from error
        if made.getstatus() != 101:  # older versions take a redirect for a connection
            made.shutdown()
            raise NoWebSocket(f"the service sends elsewhere ({made.getstatus()})")
        return made

    def _read_welcome(self) -> None:
        found = self.receive()
        head = found[0] if found else {}
        if head.get("type") != "welcome":
            raise NoWebSocket("what answers the WebSocket is no Manybeam")
        self.in_flight = max(int(head.get("in_flight") or 1), 1)
        self._part_bytes = max(int(head.get("part_bytes") or PART_BYTES), 1)
        self._beat_s = float(head.get("beat_s") or BEAT_S)
        self._socket.settimeout(BEATS * self._beat_s)

    def _body(self, size: int) -> bytes:
        parts, count = [], 0
        while count < size:
            part = self._message()
            if isinstance(part, str):  # the service ends the stream and says why, or it is broken
                head = _head(part)
                is_closing = head.get("type") == "closing"
                raise _closed(head) if is_closing else WireEnded("a head came inside of a body")
            if part is not None:
                parts.append(part)
                count += len(part)
        return b"".join(parts)

    def _message(self) -> str | bytes | None:
        """Return text or bytes; None for what the WebSocket says itself."""
        try:
            code, frame = self._socket.recv_data_frame(control_frame=True)
        except _BROKEN as error:
            raise _ended(error) from error
        self.heard_s = time.monotonic()
        data = bytes(frame.data if hasattr(frame, "data") else frame)
        if code == websocket.ABNF.OPCODE_CLOSE:
            number = struct.unpack("!H", data[:2])[0] if len(data) >= 2 else 0
            raise WireEnded(data[2:].decode("utf-8", "replace"), number)
        if code == websocket.ABNF.OPCODE_TEXT:
            return data.decode("utf-8", "replace")
        return data if code == websocket.ABNF.OPCODE_BINARY else None


def _head(text: str | bytes) -> dict[str, Any]:
    try:
        head = json.loads(text)
    except ValueError:
        head = None
    if not isinstance(head, dict) or isinstance(text, bytes):
        raise WireEnded("the service sent a head that cannot be read")
    return head


def _closed(head: Mapping[str, Any]) -> WireEnded:
    problem = head.get("problem")
    told = problem if isinstance(problem, dict) else {}
    why = "; ".join(str(told[name]) for name in ("detail", "hint") if told.get(name))
    code = head.get("code")
    return WireEnded(why, code if isinstance(code, int) else 0)


def _ended(error: Exception) -> WireEnded:
    return WireEnded(f"{type(error).__name__}: {str(error)[:160]}")


def _not_made(error: Exception) -> Exception:
    """Return what it means that no connection can be prepared: a proxy may only be busy."""
    status = re.search(r"status: (\d{3})", str(error))
    if isinstance(error, websocket.WebSocketProxyException) and status:
        code = int(status.group(1))
        if code in PASSING:
            return WireEnded(str(error), code)
    return NoWebSocket(str(error))


def _refused(error: Any) -> Exception:
    """Return what a refusal of the WebSocket means."""
    status = int(error.status_code)
    body = getattr(error, "resp_body", None) or b""
    problem = problem_of(status, error.resp_headers or {}, bytes(body))
    said = str(problem)[:200]
    if "no path" in problem.what:  # an older service
        return NoWebSocket(said)
    if status in (401, 403, 404, *PASSING):
        return WireEnded(said, status)
    return NoWebSocket(said)


def probe(place: Place) -> str:
    """Return in words that a WebSocket can be had, without touching any instrument's stream.

    To connect as an instrument would end the stream that it may have. So this asks for the stream
    of a made-up instrument; its refusal in the words of the stream says that upgrades get through.

    Raises:
        NoWebSocket: none can be had.
        WireEnded: the connection broke.
    """
    try:
        with Wire(place, "check-" + uuid.uuid4().hex[:12]):
            return "a WebSocket can be had"
    except WireEnded as error:
        if error.code not in (403, 404):
            raise
        if not error.why.startswith(("not-found", "not-allowed")):
            raise NoWebSocket(error.why) from error
    return "a WebSocket can be had"

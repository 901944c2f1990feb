"""Requests that end after a set time, however slowly the other side sends.

A timeout of the standard library is for each wait, so a server that sends a byte now and then can
hold a request for ever.
"""

import socket
import threading
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import IO, Any, Self
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    build_opener,
)


def short_opener(longest_s: float) -> OpenerDirector:
    """Return what sends requests, each for at most so many seconds until the answer's headers.

    It goes by the proxies of the environment, with the authorities of `ca_bundle`: `settings` puts
    these into the environment, where Python's TLS looks for them. It follows no redirect. To look
    up the name of the host is not part of the time.

    Args:
        longest_s: from when a connection begins.
    """
    return build_opener(_NoRedirects(), _Http(longest_s), _Https(longest_s))


class _Short(HTTPConnection):
    """A connection that is cut when its time is over."""

    _is_late = False
    _wire: socket.socket | None = None
    _timer: threading.Timer

    def limit(self, longest_s: float) -> Self:
        """Set the time, before it connects."""
        self._timer = threading.Timer(longest_s, self._cut)
        self._timer.daemon = True
        return self

    def connect(self) -> None:
        self._timer.start()
        super().connect()
        # TLS begins only now, and hides this socket. To end it, a copy is enough.
        self._wire = self.sock.dup()
        if self._is_late:
            self._cut()

    def getresponse(self) -> HTTPResponse:
        try:
            answer = super().getresponse()
        finally:
            self._end()
        if self._is_late:  # else what came of the headers would pass for all of them
            answer.close()
            raise TimeoutError("the answer came too slowly")
        return answer

    def close(self) -> None:
        super().close()
        self._end()

    def _cut(self) -> None:
        self._is_late = True
        wire = self._wire or self.sock  # before TLS, a proxy may be slow
        if wire is not None:
            with suppress(OSError):  # it has ended by itself
                wire.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        self._timer.cancel()
        if self._wire is not None:
            self._wire.close()


class _ShortTls(HTTPSConnection, _Short):
    """The same with TLS, which begins after `_Short.connect`."""


class _Http(HTTPHandler):
    def __init__(self, longest_s: float) -> None:
        super().__init__()
        self._longest_s = longest_s

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_made, _Short, self._longest_s), req)


class _Https(HTTPSHandler):
    def __init__(self, longest_s: float) -> None:
        super().__init__()
        self._longest_s = longest_s

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_made, _ShortTls, self._longest_s), req)


def _made(kind: type[_Short], longest_s: float, host: str, **more: Any) -> _Short:
    return kind(host, **more).limit(longest_s)


class _NoRedirects(HTTPRedirectHandler):
    """An answer that points elsewhere is a failure: the request is for this URL only."""

    def redirect_request(
        self,
        req: Request,  # noqa: ARG002 - the names are those of the standard library
        fp: IO[bytes],  # noqa: ARG002
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: HTTPMessage,  # noqa: ARG002
        newurl: str,  # noqa: ARG002
    ) -> None:
        return None

"""What both web servers do with requests: HEAD is answered as GET; other sites are known."""

import asyncio
from collections.abc import Mapping
from typing import Any

from manybeam.addresses import place_of


def is_cross_site(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sent a request for a page of another site; programs send no origin.

    Args:
        headers: of the request, with names in lower case.

    Example:
        >>> is_cross_site({"host": "lab:8100", "origin": "http://lab:8100"}), is_cross_site({})
        (False, False)
        >>> is_cross_site({"host": "lab", "origin": "null"})
        True
    """
    if headers.get("sec-fetch-site", "none").lower() not in ("same-origin", "none"):
        return True
    origin = headers.get("origin", "")
    return bool(origin) and place_of(origin) != place_of(headers.get("host", ""))


class HeadAsGet:
    """Answers HEAD on every path that answers GET, because monitors and balancers ask so.

    Args:
        app: the ASGI application that answers GET.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        is_sent = asyncio.Event()

        async def only_head(message: Any) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                is_sent.set()

        async def until_sent() -> Any:
            """Give the body of the request; then say that nobody waits, which ends a stream."""
            if not is_sent.is_set():
                return await receive()
            return {"type": "http.disconnect"}

        await self._app({**scope, "method": "GET"}, until_sent, only_head)


PLATFORM_HEADER = "x-manybeam-platform"
# The messages of ASGI that hold the head of an answer: of HTTP, of a WebSocket, of one refused.
_STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class NamesPlatform:
    """Names the platform in every answer, so that nobody takes the answer of another one.

    Args:
        app: the ASGI application.
        platform: the id of the platform.
    """

    def __init__(self, app: Any, platform: str) -> None:
        self._app, self._name = app, (PLATFORM_HEADER.encode(), platform.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""

        async def named(message: Any) -> None:
            if message["type"] in _STARTS:
                others = [one for one in message.get("headers", ()) if one[0] != self._name[0]]
                message = {**message, "headers": [*others, self._name]}
            await send(message)

        await self._app(scope, receive, named)

"""What both web servers do with every request: HEAD is answered as GET, without the body."""

import asyncio
from typing import Any


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
            if message["type"] == "http.response.start":
                others = [one for one in message.get("headers", ()) if one[0] != self._name[0]]
                message = {**message, "headers": [*others, self._name]}
            await send(message)

        await self._app(scope, receive, named)

"""Server-sent events: one stream for each tab reports changes of the zoo."""

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from manybeam.web.refresher import News, Refresher

LOOK_S = 0.25  # pause between two checks for news; a check is one comparison
ALIVE_S = 15.0  # proxies end a stream that is silent for long


def events_router(refresher: Refresher, boot: str) -> APIRouter:
    """Return the route of the stream.

    Args:
        refresher: the source of the news.
        boot: differs at every start, so that a page recognises a new process.
    """
    router = APIRouter()

    @router.get("/api/v1/events")
    async def events() -> StreamingResponse:
        """Stream `state` events: the state of the zoo now, and at every change."""
        return StreamingResponse(
            stream(refresher, boot),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    return router


async def stream(refresher: Refresher, boot: str) -> AsyncIterator[str]:
    """Yield the events of one tab until it leaves or the server stops."""
    sent, silent_s = (-1, False), 0.0
    yield "retry: 1000\n\n"
    while not refresher.is_closed:
        news = refresher.news
        if (news.number, news.is_fresh) != sent:
            yield event(news, boot)
            sent, silent_s = (news.number, news.is_fresh), 0.0
        elif silent_s >= ALIVE_S:
            yield ": alive\n\n"
            silent_s = 0.0
        await asyncio.sleep(LOOK_S)
        silent_s += LOOK_S


def event(news: News, boot: str) -> str:
    """Return the text of one event."""
    content = {
        "state": news.state,
        "message": news.message,
        "is_fresh": news.is_fresh,
        "as_of": news.as_of.isoformat() if news.as_of else None,
        "boot": boot,
    }
    return f"event: state\nid: {news.number}\ndata: {json.dumps(content)}\n\n"

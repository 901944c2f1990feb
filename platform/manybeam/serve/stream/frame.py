"""One frame of a stream, whose body arrives in parts; the service answers it as a request."""

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from manybeam.errors import Busy, DeadlineExceeded, MalformedRequest, TooSlow
from manybeam.serve import wire
from manybeam.serve.edge.access import Caller
from manybeam.serve.edge.admission import GRACE_S, LEAST_RATE, LONGEST_S, late_body
from manybeam.serve.edge.fair_queue import FairQueue, Place
from manybeam.serve.stream.messages import FrameHead


class StreamedFrame:
    """A frame of a stream (`edge.admission.Incoming`).

    Args:
        head: its head.
        query: the query of the request that it stands for.
        caller: who sends it.
        marking: marks the work for it.
    """

    def __init__(
        self,
        head: FrameHead,
        query: Mapping[str, str],
        caller: Caller,
        marking: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.frame_id, self.headers = head.frame_id, head.headers
        self.query, self.caller, self.marking = query, caller, marking
        self.request_id, self.begun_s = uuid.uuid4().hex, time.monotonic()
        self.meta: Mapping[str, Any] | None = None  # the facts of its answer
        self._byte_count, self._arrived, self._body = head.byte_count, 0, bytearray()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_wanted = True
        self._end_if_whole()

    def hear(self, meta: Mapping[str, Any]) -> None:
        """Keep the facts of the answer, for events."""
        self.meta = meta

    @property
    def is_whole(self) -> bool:
        """Whether all of its body was sent."""
        return self._arrived == self._byte_count

    @property
    def part_due_s(self) -> float:
        """When its next part is late, in monotonic seconds, as for the body of a request."""
        least_s = self.begun_s + GRACE_S + self._arrived / LEAST_RATE
        return min(time.monotonic() + GRACE_S, least_s, self.begun_s + LONGEST_S)

    def add(self, part: bytes) -> None:
        """Take a part of the body; it is forgotten if nobody wants the frame any more.

        Raises:
            MalformedRequest: there are more bytes than announced.
        """
        self._arrived += len(part)
        if self._arrived > self._byte_count:
            raise MalformedRequest(
                f"the body of frame {self.frame_id!r} has {self._arrived} bytes or more",
                f"its head says {self._byte_count}",
                "count the bytes of all parts",
            )
        if self._is_wanted:
            self._body += part
        self._end_if_whole()

    async def read(self, queue: FairQueue, place: Place, due_s: float) -> bytearray:
        """Return the body, when all parts are here.

        Raises:
            TooLarge: it is above the limit.
            Busy: there are too many bytes in the replica, or another request has got the place.
            DeadlineExceeded: the deadline came first.
        """
        try:
            wire.check_length(self._byte_count, queue.byte_limit)
            queue.hold(place, self._byte_count)
            place.refused = partial(_refuse, self._ended)
            async with asyncio.timeout(max(due_s - time.monotonic(), 0)):
                await self._ended
            return self._body
        except TimeoutError as error:
            since_s = time.monotonic() - self.begun_s
            raise late_body(self._arrived, self._byte_count, since_s, is_due=True) from error
        finally:
            self.forget()

    def is_late(self) -> TooSlow | DeadlineExceeded:
        """Return the error of parts that do not come."""
        since_s = time.monotonic() - self.begun_s
        return late_body(self._arrived, self._byte_count, since_s, is_due=False)

    def forget(self) -> None:
        """Keep no more of the body, because nobody will read it."""
        self._is_wanted, self._body = False, bytearray()

    async def gone(self) -> None:
        """Wait for ever: the stream ends the work for its frames when its client has gone."""
        await asyncio.sleep(math.inf)

    def _end_if_whole(self) -> None:
        if self.is_whole and not self._ended.done():
            self._ended.set_result(None)


def _refuse(ended: "asyncio.Future[None]", refusal: Busy) -> None:
    if not ended.done():
        ended.set_exception(refusal)

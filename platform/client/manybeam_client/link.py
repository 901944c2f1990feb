"""What the parts of a session share: connection, outage, counts, the service's session, spool."""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Iterator

from manybeam_client.answer import Answer
from manybeam_client.asking import Asker
from manybeam_client.errors import Problem, problem_of
from manybeam_client.instrument import InstrumentSession
from manybeam_client.network.connection import Connection, NotReached
from manybeam_client.network.outage import Outage
from manybeam_client.stats import Stats

if TYPE_CHECKING:
    from pathlib import Path

    from manybeam_client.frame import FrameRequest
    from manybeam_client.network.place import Place
    from manybeam_client.spool import Spool, SpoolSender

logger = logging.getLogger("manybeam_client")


class Link:
    """The way of one session to its service; safe to use from several threads.

    Args:
        place: where the service is.
        instrument: id of the instrument; empty for none.
        ensemble: REF that answers.
        pixel_size_pm: of all frames [pm], if known.
        size: connections that stay open.
    """

    def __init__(
        self,
        place: Place,
        instrument: str = "",
        ensemble: str = "auto",
        pixel_size_pm: float | None = None,
        size: int = 8,
    ) -> None:
        self.place, self.stats = place, Stats()
        self.connection = Connection(place, self._note_late, size)
        self.outage = Outage(self.health, self.connection.forget, self._came_back)
        self._asker = Asker(self.connection, self.outage, self.stats)
        self.session = None
        if instrument:
            self.session = InstrumentSession(self.connection, instrument, ensemble, pixel_size_pm)
        self.spool: Spool | None = None
        self._sender: SpoolSender | None = None
        self._lock, self._live, self.is_closed = threading.Lock(), 0, False
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()  # what ends with the session

    def spool_to(self, folder: Path, limit_mb: float) -> None:
        """Keep frames in a folder while the service is away."""
        from manybeam_client.spool import Spool, SpoolSender

        self.spool = Spool(folder, limit_mb, self.stats)
        self._sender = SpoolSender(self.spool, self.outage, self._ask_later, self._is_quiet)

    def open(self) -> None:
        """Have the service's session of the instrument go on; a failure is only logged."""
        if self.session is None or self.outage.is_open:
            return
        problem = self.session.ensure()
        if problem is None:
            return
        if problem.is_away or problem.kind == "tls":
            self.outage.doubt(problem, frame_count=0)
        else:
            logger.warning("the session of %s is not ready: %s", self.session.instrument, problem)

    def answer(self, request: FrameRequest, begun_s: float, deadline_ms: float | None) -> Answer:
        """Return the answer for a live frame; one that cannot be sent goes to the spool."""
        if self.is_closed:
            return Answer(request.frame_id, error=closed_problem())
        with self.live():
            found = self._asker.answer(request, begun_s, deadline_ms)
        self.keep(request, found)
        return found

    def keep(self, request: FrameRequest, answer: Answer) -> None:
        """Spool a frame if its answer says that nobody was reached."""
        if self.spool is not None and answer.error is not None and answer.error.is_away:
            self.spool.put(request)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Hold the spool back for the block, because a live frame waits."""
        self.add_live(1)
        try:
            yield
        finally:
            self.add_live(-1)

    def add_live(self, count: int) -> None:
        """Count live frames that wait."""
        with self._lock:
            self._live += count

    def close(self) -> None:
        """End all threads and connections; frames that wait in the spool stay there."""
        self.is_closed = True
        for stream in list(self.streams):
            stream.close()
        if self._sender is not None:
            self._sender.close()
        self.outage.close()
        self.connection.close()

    def _is_quiet(self) -> bool:
        return self._live == 0

    def _ask_later(self, request: FrameRequest) -> Answer:
        # The outage counted it when it was live.
        return self._asker.answer(request, time.monotonic(), None, frame_count=0)

    def health(self, patience_s: float) -> Problem | None:
        """Return why the service is away; None if it answers."""
        try:
            reply = self.connection.ask("GET", "/healthz", time.monotonic() + patience_s)
        except NotReached as error:
            return error.problem
        if reply.status == 200 and healthy(reply.data) is not None:
            return None
        return problem_of(reply.status, reply.headers, reply.data)

    def _note_late(self) -> None:
        self.stats.count("late")
        self.outage.note_reply()

    def _came_back(self) -> None:
        self.stats.count("reconnections")
        self.open()


def healthy(data: bytes) -> dict[str, object] | None:
    """Return what a Manybeam service says of its health; None if it is another program."""
    try:
        content = json.loads(data.decode("utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("status") == "ok" else None


def closed_problem() -> Problem:
    """Return the problem of a frame that comes after the end of its session."""
    return Problem("closed", "this session was closed", hint="make a new Session")

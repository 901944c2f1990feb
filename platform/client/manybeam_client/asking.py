"""One frame there and one answer back: deadlines, retries, and when to stop asking."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from manybeam_client.answer import NPZ, Answer, read_answer
from manybeam_client.errors import Problem, problem_of
from manybeam_client.network.connection import NotReached, Reply
from manybeam_client.network.outage import jitter_s, left_s

if TYPE_CHECKING:
    from manybeam_client.frame import FrameRequest
    from manybeam_client.network.connection import Connection
    from manybeam_client.network.outage import Outage
    from manybeam_client.stats import Stats

ATTEMPTS = 4
PATIENCE_S = 60.0  # without a deadline of the caller
_WAY_S, _MOST_WAY = 0.003, 0.4  # first guess of the time on the way, and its largest share
_REPEATED = (429, 503)


class Asker:
    """Sends frames and returns answers; safe to use from several threads.

    Args:
        connection: to the service.
        outage: whether the service is away.
        stats: counts.
    """

    def __init__(self, connection: Connection, outage: Outage, stats: Stats) -> None:
        self._connection, self._outage, self._stats = connection, outage, stats
        self._way_s = _WAY_S

    def answer(
        self,
        request: FrameRequest,
        begun_s: float,
        deadline_ms: float | None,
        frame_count: int = 1,
    ) -> Answer:
        """Return the answer for one frame; it never raises.

        Args:
            request: the frame.
            begun_s: when the caller asked, in monotonic seconds.
            deadline_ms: time that the caller waits, from then on.
            frame_count: what it adds to the frames of an outage; 0 if it is counted already.
        """
        patience_s = PATIENCE_S if deadline_ms is None else deadline_ms / 1000
        if self._outage.is_open:
            self._stats.count("offline")
            return self._failed(request, self._outage.offline(frame_count), begun_s)
        self._stats.count("sent")
        reply = self._reply(request, begun_s + patience_s, frame_count)
        took_ms = (time.monotonic() - begun_s) * 1000
        if isinstance(reply, Problem):
            return self._failed(request, reply, begun_s)
        found = read_answer(reply.data, request.frame_id, took_ms)
        if found.error is None:
            self._stats.count("answered")
            self._learn_way(found)
        return found

    def _failed(self, request: FrameRequest, problem: Problem, begun_s: float) -> Answer:
        took_ms = (time.monotonic() - begun_s) * 1000
        return Answer(request.frame_id, error=problem, took_ms=took_ms)

    def _reply(self, request: FrameRequest, due_s: float, frame_count: int) -> Reply | Problem:
        """Return the reply with the answer, or the last problem, after as many tries as fit."""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._stats.count("retried")
            try:
                reply = self._sent(request, due_s)
            except NotReached as error:
                problem, pause_s = error.problem, jitter_s(attempt)
                if error.is_silent:
                    return replace(problem, is_away=self._outage.doubt(problem, frame_count))
                if not error.may_repeat:
                    break
            else:
                self._outage.note_reply()
                if reply.status == 200 and _media(reply) == NPZ:
                    return reply
                problem = problem_of(reply.status, reply.headers, reply.data)
                if reply.status not in _REPEATED or problem.retry_after_s is None:
                    break
                pause_s = problem.retry_after_s + jitter_s(attempt)
            if attempt + 1 == ATTEMPTS or pause_s >= left_s(due_s):
                break
            time.sleep(pause_s)
        if problem.is_away or problem.kind == "tls":
            self._outage.doubt(problem, frame_count)
        return problem

    def _sent(self, request: FrameRequest, due_s: float) -> Reply:
        left = left_s(due_s)
        # The service counts from the arrival; what it says at the last moment must still get here.
        for_service_s = left - min(self._way_s, _MOST_WAY * left)
        path = request.path(max(int(for_service_s * 1000), 1))
        return self._connection.ask(
            "POST", path, due_s, body=request.body, headers=request.headers()
        )

    def _learn_way(self, answer: Answer) -> None:
        """Learn how much of the time is not the service's, from its own times."""
        timings = answer.meta.get("timings_ms")
        if isinstance(timings, dict):
            inside = sum(one for one in timings.values() if isinstance(one, (int, float)))
            way_s = max(answer.took_ms - inside, 0.0) / 1000
            self._way_s += 0.1 * (min(way_s, 0.5) - self._way_s)


def _media(reply: Reply) -> str:
    return reply.headers.get("content-type", "").partition(";")[0].strip()

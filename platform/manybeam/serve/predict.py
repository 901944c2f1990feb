"""Answers of the service: arrays and JSON for the frames of a request.

It needs no Ray and no web, so it gives the same answers in any process. All answers come from
`predictor.predictor.Predictor`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.frame import Frame, frames_of, stack_of
from manybeam.data.io.reading import settled
from manybeam.predictor.answer import AUTO, Answer, Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor, Ranked
from manybeam.predictor.versions.live import LiveVersions
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.content import answer_meta, arrays, selection_content
from manybeam.serve.query import MAPS, RequestQuery
from manybeam.serve.sessions.answering import SessionAnswer, SessionAnswers
from manybeam.serve.sessions.content import answer_content
from manybeam.serve.sessions.refresher import LiveSession, SessionRefresher, no_session
from manybeam.serve.sessions.session_copy import SessionCopy
from manybeam.serve.wire import Frames
from manybeam.settings import settings
from manybeam.spec.facility import facility_library

if TYPE_CHECKING:
    from manybeam.db.serving.sessions import Sessions
    from manybeam.serve.monitor.reporter import FrameReporter
    from manybeam.serve.traffic.traffic import Route, Traffic
    from manybeam.spec import Condition

T = TypeVar("T")


@dataclass(frozen=True)
class WireAnswer:
    """An answer as arrays and JSON data.

    Args:
        arrays: by the names of `query.WANTS`; for a stack also `atoms_frame`, `members_frame`.
        meta: version, members, reasons and other facts, as JSON data.
        seconds: time of each stage.
        is_drifted: whether a frame is out of distribution; None if that is unknown.
    """

    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    seconds: dict[str, float]
    is_drifted: bool | None = None


def stored_sessions() -> "Sessions":
    """Return the sessions of the settings' database; raises an error if it is away."""
    from manybeam.db.deployment import open_database
    from manybeam.db.serving.sessions import Sessions

    return Sessions(open_database())


class Service:
    """Answers requests with the versions of one zoo; safe to use from several threads.

    Args:
        versions: the versions that may answer.
        traffic: routes requests between the versions of a rollout; no rollouts if left out.
        sessions: returns the sessions of instruments; those of the settings' database if left
            out. They are known after `sessions.refresher.start()`.
        reporter: reports their frames to the monitor; they are not watched if left out.
    """

    def __init__(
        self,
        versions: ZooVersions | LiveVersions,
        traffic: "Traffic | None" = None,
        sessions: "Callable[[], Sessions]" = stored_sessions,
        reporter: "FrameReporter | None" = None,
    ) -> None:
        self.versions, self.traffic = versions, traffic
        self._predictor = Predictor(versions)
        copy = SessionCopy(settings().cache / "sessions.json")
        refresher = SessionRefresher(sessions, copy=copy, hold=self._hold)
        self.sessions = SessionAnswers(self._predictor, refresher, reporter=reporter)

    def _hold(self, refs: Sequence[str]) -> None:
        """Have the versions of sessions loaded beside the requests, if versions are live."""
        if isinstance(self.versions, LiveVersions):
            self.versions.hold("sessions", refs)

    def degraded(self) -> list[str]:
        """Return what limits the service now, in words."""
        versions = self.versions
        said = versions.degraded() if isinstance(versions, LiveVersions) else []
        of_traffic = self.traffic.degraded() if self.traffic else []
        return [*said, *self.sessions.refresher.degraded(), *of_traffic]

    def listing(self) -> list[dict[str, Any]]:
        """Return one row for each ensemble in memory, for a table or JSON."""
        return [
            {
                "ref": record.ref,
                "name": record.name,
                "version": record.version,
                "aliases": list(record.aliases),
                "members": list(ensemble.indices),
                "failed": list(record.failed),
                "created": record.created.isoformat(),
            }
            for record, ensemble in self.versions.held()
        ]

    def predict(
        self, ref: str, frames: Frames, query: RequestQuery, deadline: Deadline | None = None
    ) -> WireAnswer:
        """Return the answer to one request; each frame of a stack is answered by itself.

        Args:
            ref: a REF, or `auto`; then selection chooses an ensemble for each frame.
            frames: the frames.
            query: the query.
            deadline: times the stages; it is checked between frames.

        Raises:
            DeadlineExceeded: the time is up.
            NotFound: no such ensemble, member or condition.
        """
        deadline = deadline or Deadline()
        live = self._session(ref, query)
        if live is not None:
            query = self.sessions.query(live, query)
        question = Question(
            live.settings.ref if live else ref,
            query.members,
            query.false_atoms,
            is_size_trusted=query.trust_pixel_size,
            is_quick=live is not None or query.quick,
        )
        asked, begun_s = _frames(frames, query), time.monotonic()
        has_maps = bool({*MAPS} & {*query.want})
        in_session: list[SessionAnswer] = []

        def answers(predictor: Predictor) -> list[Answer]:
            if live is None:
                found = predictor.answers(asked, question, deadline)
            else:
                in_session[:] = self.sessions.answers(live, asked, query, deadline, predictor)
                found = (one.answer for one in in_session)
            return [one.lean(has_maps=has_maps) if frames.is_stack else one for one in found]

        found, route = self._asked(question, asked, query, answers)
        took_s = time.monotonic() - begun_s
        wanted = arrays(found, query.want, is_stack=frames.is_stack)
        meta = answer_meta(found, frames, query) | {"rollout": None}
        if live is not None:
            meta["session"] = answer_content(live, in_session, self.sessions.watch_state(live))
        if self.traffic and route:
            meta["rollout"] = self.traffic.meta(route, found[0])
            self.traffic.note(route, found, question, took_s)
        return WireAnswer(wanted, meta, deadline.seconds, meta["drift"]["flag"])

    def newest_stream(self, ref: str, query: RequestQuery, order: str = "") -> str:
        """Return whose frames that still wait are replaced by this one: its session, or "".

        Args:
            ref: a REF or `auto`.
            query: the query.
            order: as in the settings of a session; "" for that of the session.
        """
        live = self._session(ref, query)
        is_replacing = live is not None and (order or live.settings.order) == "newest"
        return query.instrument if is_replacing else ""

    def _session(self, ref: str, query: RequestQuery) -> LiveSession | None:
        """Return the session that answers a request; it does so for `auto` of its instrument."""
        if ref != AUTO or not query.instrument or query.members:
            return None
        return self.sessions.refresher.of(query.instrument)

    def select(
        self, frames: Frames, query: RequestQuery, deadline: Deadline | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Return the members ranked for the first frame as JSON data, and whether it drifted.

        The candidates of all ensembles are in one ranking, best first.
        """
        ranked = self._ranked(query.ensemble, frames, query, deadline or Deadline())
        return selection_content(ranked, frames, query)

    def select_for(
        self, instrument: str, frames: Frames, query: RequestQuery, deadline: Deadline
    ) -> tuple[dict[str, Any], bool]:
        """Return what `select` does; the chosen members answer the session of an instrument.

        Raises:
            NotFound: it has no session.
            Conflict: the session is pinned, or its frames are others.
        """
        live = self.sessions.refresher.of(instrument)
        if live is None:
            raise no_session(instrument)
        self.sessions.check_selects(live)
        query = self.sessions.query(live, query)
        begun_s, seen = deadline.clock(), live.stored
        question = Question(
            live.settings.ref, is_selecting=True, is_size_trusted=query.trust_pixel_size
        )
        # By the versions that serve, not by those of a rollout, as its other frames are. A shadow
        # waits for it all the same.
        with self.traffic.live.one() if self.traffic else nullcontext():
            ranked = self._predictor.rank(_frames(frames, query)[0], question, deadline)
        self.sessions.adopt(live, seen, ranked[0], query.frame_id, deadline.clock() - begun_s)
        return selection_content(ranked, frames, query)

    def _ranked(
        self, ref: str, frames: Frames, query: RequestQuery, deadline: Deadline
    ) -> list[Ranked]:
        question = Question(ref, is_selecting=True, is_size_trusted=query.trust_pixel_size)
        frame = _frames(frames, query)[0]
        ranked, _ = self._asked(
            question, [frame], query, lambda predictor: predictor.rank(frame, question, deadline)
        )
        return ranked

    def _asked(
        self,
        question: Question,
        frames: Sequence[Frame],
        query: RequestQuery,
        work: Callable[[Predictor], T],
    ) -> "tuple[T, Route | None]":
        """Return the result of work with the versions that answer this request."""
        if self.traffic is None:
            return work(self._predictor), None
        route = self.traffic.route(question, frames, query.instrument, query.frame_id)
        return self.traffic.ask(route, self._predictor, work)


def _frames(frames: Frames, query: RequestQuery) -> tuple[Frame, ...]:
    """Return the frames of a request with pixel size and condition from its query."""
    condition: Condition | None = None
    if query.condition:
        condition = facility_library().condition(query.condition)
    if frames.file:
        path, raw = Path(frames.file.name), frames.file.raw
        return frames_of(settled(raw, path, query.pixel_size_pm, condition))
    pixels_nyx: list[NDArray[np.float32]] = list(frames.frames)
    return stack_of(
        pixels_nyx, query.pixel_size_pm, condition, origin="request", is_stack=frames.is_stack
    )

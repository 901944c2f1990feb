"""Answers of sessions: the members that were chosen answer, until the condition moves.

Only their networks run. Selection runs beside the frames: for the first one, when the monitor says
that the condition moved, and after `select_every` frames. What it chooses answers from the next
frame on.
"""

import hashlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from manybeam.data.io.frame import Frame
from manybeam.db.serving.sessions import AnsweredFrame, Session
from manybeam.errors import Conflict, InvalidFrame, ManybeamError, Unreachable
from manybeam.predictor.answer import AUTO, Answer, Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor, Ranked, check_members
from manybeam.predictor.quick import SummarisedFrame
from manybeam.serve.monitor.report import WatchState
from manybeam.serve.monitor.reporter import FrameReporter
from manybeam.serve.query import RequestQuery
from manybeam.serve.sessions.monitor import ConditionMonitor
from manybeam.serve.sessions.refresher import Chosen, LiveSession, SessionRefresher
from manybeam.serve.sessions.settings import SessionSettings
from manybeam.serve.wire import plain
from manybeam.spec.facility import facility_library

logger = logging.getLogger(__name__)

SAME_SIZE = 0.005  # pixel sizes closer than this share are one
RESERVED = 4  # a selection is followed by so many times its duration without another one
SELECTIONS = 4  # that wait or are under way, each with its frame in memory; others are tried later
QUIET_S = 1.0  # a selection waits at most so long for a moment without requests


@dataclass(frozen=True, eq=False)
class SessionAnswer:
    """The answer for one frame of a session.

    Attributes:
        answer: the answer.
        frame_id: the name of the frame in the history.
        is_repeat: whether the frame was answered before; then the same members answered again.
        is_late: whether it was ready after the budget of the session.
        recorded: what the history keeps of it; None of a repeat.
    """

    answer: Answer
    frame_id: str
    is_repeat: bool = False
    is_late: bool = False
    recorded: AnsweredFrame | None = None


@dataclass(frozen=True, eq=False)
class _Request:
    """What the frames of one request have in common.

    Attributes:
        live: the session.
        query: with what the session says of its frames.
        deadline: of the request.
        predictor: gives the answers.
    """

    live: LiveSession
    query: RequestQuery
    deadline: Deadline
    predictor: Predictor

    def question(self, chosen: Chosen | None) -> Question:
        """Return the question about a frame."""
        return _question(self.live.settings, self.query, chosen)


class SessionAnswers:
    """Answers frames of sessions; safe to use from several threads.

    Args:
        predictor: gives the answers.
        refresher: the sessions.
        is_quiet: returns whether no request waits; selections prefer such moments.
        reporter: reports answered frames to the monitor; nobody does if left out.
    """

    def __init__(
        self,
        predictor: Predictor,
        refresher: SessionRefresher,
        is_quiet: Callable[[], bool] = lambda: True,
        reporter: FrameReporter | None = None,
    ) -> None:
        self._predictor, self.refresher, self.is_quiet = predictor, refresher, is_quiet
        self.reporter = reporter
        self._selecting = ThreadPoolExecutor(1, thread_name_prefix="selection")
        self._room = threading.BoundedSemaphore(SELECTIONS)
        self._closed, self._at_work = threading.Event(), Deadline()

    def close(self) -> None:
        """End the selections, then the refresher of the sessions."""
        self._closed.set()
        self._at_work.is_cancelled = True
        self._selecting.shutdown(wait=True, cancel_futures=True)
        if self.reporter is not None:
            self.reporter.close()
        self.refresher.close()

    def watch_state(self, live: LiveSession) -> WatchState | None:
        """Return what the drift watch said of a session last; None if that is not known here."""
        return self.reporter.state(live.stored.id) if self.reporter else None

    def watch_now(self, live: LiveSession) -> WatchState | None:
        """Ask what the drift watch says of a session; None if the monitor does not answer."""
        if self.reporter is None:
            return None
        try:
            return self.reporter.monitor.state(live.stored.id)
        except Unreachable:
            return self.watch_state(live)

    def put(
        self, instrument: str, settings: SessionSettings, *, is_new_welcome: bool, who: str
    ) -> LiveSession:
        """Start or change a session; a pinned REF becomes the version that it means now.

        Raises:
            UnknownRef: there is no such version or member.
            NotFound: there is no such instrument or condition.
            DatabaseUnreachable: nothing was changed.
        """
        if settings.condition:
            facility_library().condition(settings.condition)
        if settings.ref != AUTO:
            version = self._predictor.versions.get(settings.ref)
            check_members(version, settings.members)
            if settings.policy == "pinned":
                settings = settings.model_copy(update={"ref": version.ref})
        return self.refresher.put(instrument, settings, is_new_welcome=is_new_welcome, who=who)

    def query(self, live: LiveSession, asked: RequestQuery) -> RequestQuery:
        """Return a query with what the session says of its frames.

        Raises:
            Conflict: the query says something else.
        """
        settings = live.settings
        size_pm, known_pm = asked.pixel_size_pm, settings.pixel_size_pm
        if size_pm and known_pm and abs(math.log(size_pm / known_pm)) > SAME_SIZE:
            raise Conflict(
                f"the frame has pixels of {size_pm:g} pm, its session of {known_pm:g} pm",
                "all frames of a session have one pixel size",
                "PUT the session with the new one, or leave pixel_size_pm out there",
            )
        if asked.condition and settings.condition not in ("", asked.condition):
            raise Conflict(
                f"the frame is of condition {asked.condition!r}, its session of "
                f"{settings.condition!r}",
                "",
                "PUT the session with the new one, or leave condition out there",
            )
        return replace(
            asked,
            pixel_size_pm=size_pm or known_pm,
            condition=asked.condition or settings.condition,
            false_atoms=asked.false_atoms or settings.false_atoms,
        )

    def answers(
        self,
        live: LiveSession,
        frames: Sequence[Frame],
        query: RequestQuery,
        deadline: Deadline,
        predictor: Predictor | None = None,
    ) -> list[SessionAnswer]:
        """Return the answers for the frames of one request, in order.

        Args:
            live: the session.
            frames: the frames.
            query: as `query` returns it.
            deadline: of the request; the budget of the session is added.
            predictor: gives the answers, if a rollout has its own. Members that another version
                answers with are chosen by the summary of each frame, and the session keeps its own.

        Raises:
            Conflict: a frame of the same name was another one.
        """
        if live.settings.budget_ms is not None and deadline.begun_s is not None:
            deadline.aim_s = deadline.begun_s + live.settings.budget_ms / 1000
        self.refresher.used(live)
        request = _Request(live, query, deadline, predictor or self._predictor)
        sized = request.predictor.sized_or_not(frames, request.question(None), deadline)
        names, session_id = _names(query.frame_id, len(sized)), live.stored.id
        known = self.refresher.names.answered(session_id, [one for one in names if one])
        found: list[SessionAnswer] = []
        with ExitStack() as locked:
            for number, (name, frame) in enumerate(zip(names, sized, strict=True)):
                deadline.frames_left = len(sized) - number
                digest, before = _digest(frame) if name else "", None
                if name:
                    before = locked.enter_context(
                        self.refresher.names.lock(session_id, name, digest, deadline.check, known)
                    )
                if before is not None:
                    found.append(self._again(request, frame, before))
                else:
                    found.append(self._answer(request, frame, name or uuid.uuid4().hex, digest))
            # Only now: if a frame fails, the caller gets no answer for those before it either. Nor
            # does it if it is gone by now.
            deadline.check()
            for one in found:
                if one.recorded is not None:
                    self.refresher.note(one.recorded)
                    if self.reporter is not None:
                        named, its = live.stored.instrument, live.settings
                        self.reporter.report(named, its, one.answer, one.recorded)
        return found

    def check_selects(self, live: LiveSession) -> None:
        """Refuse to select members for a session that is pinned; raises Conflict."""
        if live.settings.policy == "pinned":
            raise Conflict(
                f"the session of {live.stored.instrument!r} is pinned to {live.settings.ref}",
                "selection does not change it",
                'PUT it with {"policy": "auto"}',
            )

    def adopt(
        self, live: LiveSession, seen: Session, best: Ranked, frame_id: str, took_s: float
    ) -> None:
        """Let the members that a caller's selection chose answer from the next frame on.

        The choice counts although a selection beside the frames made another one meanwhile.

        Raises:
            Conflict: the session is pinned, or it was changed or ended meanwhile.
        """
        self.check_selects(live)
        chosen = _selected(live, best)
        values = {"frame_id": frame_id, "selection_ms": round(1000 * took_s)}
        while (
            self.refresher.switch(live, seen, chosen, kind="switched", values=values) == "refused"
        ):
            instrument, before = live.stored.instrument, seen
            seen = live.stored
            # Of the same revision: somebody changed it, and the database did not say how.
            if self.refresher.of(instrument) is not live or seen.revision == before.revision:
                raise Conflict(
                    f"the session of {instrument!r} was changed or ended meanwhile",
                    "the members were selected for the session as it was",
                    "send the frame again",
                )

    # -- one frame ------------------------------------------------------------------------------
    def _again(self, request: _Request, frame: Frame, before: AnsweredFrame) -> SessionAnswer:
        """Answer a frame once more, by the version and members that answered it."""
        chosen = Chosen(before.ref, before.members, tuple(before.values["shares"]), "repeated")
        question = replace(request.question(chosen), keeps_members=True)
        # Not by the predictor of the request: a rollout may put another version in the place.
        answer = self._predictor.answer_sized(frame, question, request.deadline)
        return SessionAnswer(answer, before.frame_id, is_repeat=True)

    def _answer(self, request: _Request, frame: Frame, name: str, digest: str) -> SessionAnswer:
        live, deadline = request.live, request.deadline
        with live.lock:
            seen = live.chosen
        chosen = self._usable(live.settings, seen, request.predictor)
        answer = request.predictor.answer_sized(frame, request.question(chosen), deadline)
        is_late = deadline.aim_s is not None and deadline.clock() > deadline.aim_s
        recorded = _record(live, answer, name, digest, is_late=is_late)
        try:
            if self._has_own_versions(request):
                self._watch(request, answer, name, seen, chosen)
            live.why_unwatched = ""
        except ManybeamError as error:  # a version was removed meanwhile; the frame is answered
            if live.why_unwatched != str(error):  # once, until it changes: frames are many
                logger.warning("%s is not watched: %s", live.stored.instrument, error)
            live.why_unwatched = str(error)
        return SessionAnswer(answer, name, is_late=is_late, recorded=recorded)

    def _usable(
        self, settings: SessionSettings, chosen: Chosen | None, predictor: Predictor
    ) -> Chosen | None:
        """Return who was chosen to answer; None if nobody was, or it serves no longer."""
        if settings.policy == "pinned" or chosen is None:
            return None
        serving = _refs(settings.ref, predictor)
        return chosen if any(one == chosen.ref for one in serving) else None

    def _has_own_versions(self, request: _Request) -> bool:
        """Return whether the versions that may answer a request are those of the session."""
        ref, predictor = request.live.settings.ref, request.predictor
        return predictor is self._predictor or {*_refs(ref, predictor)} == {
            *_refs(ref, self._predictor)
        }

    def _watch(
        self,
        request: _Request,
        answer: Answer,
        name: str,
        seen: Chosen | None,
        chosen: Chosen | None,
    ) -> None:
        """Let the monitor see a frame, and choose members anew if it says so.

        Args:
            request: of the frame.
            answer: the answer.
            name: of the frame.
            seen: who was chosen when the frame began.
            chosen: the same, if it could answer.
        """
        live, is_pinned = request.live, request.live.settings.policy == "pinned"
        answering = chosen or _chosen(answer)
        # Before the lock: nobody must wait for what may take a while.
        summarised = None if is_pinned else self._summarised(answer)
        gain = 0.0 if summarised is None else _gain(summarised, answering)
        with live.lock:
            live.frames += 1
            if is_pinned or live.chosen is not seen:
                return  # others answer already
            if chosen is None:
                answering = live.chosen = replace(answering, frame=live.frames)
                live.monitor = None
            why = _why_anew(live, answering, answer, summarised, gain)
            is_resting = time.monotonic() < live.rests_until_s
            if not why or live.is_selecting or is_resting or not self._room.acquire(blocking=False):
                return
            live.is_selecting, stored = True, live.stored
        try:
            self._selecting.submit(self._anew, request, stored, answer.frame, name, why)
        except RuntimeError:  # the replica ends
            live.is_selecting = False
            self._room.release()

    def _summarised(self, answer: Answer) -> SummarisedFrame | None:
        """Return the summary of an answered frame, which is not made again."""
        known = self._predictor.versions.get(answer.ref).performance if answer.ref else None
        if known is None or answer.selection is None:
            return None
        table = known.by_summary.table
        return SummarisedFrame(
            known.by_summary, np.array(answer.selection.summary), table.structure
        )

    # -- selection beside the frames --------------------------------------------------------------
    def _anew(self, request: _Request, seen: Session, frame: Frame, name: str, why: str) -> None:
        """Select members for a frame; they answer from the next frame on."""
        live, begun = request.live, time.monotonic()
        try:
            while not (self.is_quiet() or time.monotonic() > begun + QUIET_S):
                self._closed.wait(0.01)
            before, begun = live.chosen, time.monotonic()
            chosen = _selected(live, self._ranked(request, frame))
            is_same = before is not None and (before.ref, before.members) == (
                chosen.ref,
                chosen.members,
            )
            values = {
                "frame_id": name,
                "why": f"{why}: {chosen.why}",
                "selection_ms": round(1000 * (time.monotonic() - begun)),
            }
            kind = "confirmed" if is_same else "switched"
            self.refresher.switch(live, seen, chosen, kind=kind, values=values)
        except ManybeamError as error:
            if not self._closed.is_set():
                logger.warning("no selection for %s: %s", live.stored.instrument, error)
            begun -= QUIET_S
        except Exception:  # the thread must go on for other sessions
            logger.exception("no selection for %s", live.stored.instrument)
            begun -= QUIET_S
        finally:
            now = time.monotonic()
            live.rests_until_s = now + RESERVED * (now - begun)
            live.is_selecting = False
            self._room.release()

    def _ranked(self, request: _Request, frame: Frame) -> Ranked:
        question = Question(
            request.live.settings.ref,
            is_selecting=True,
            is_size_trusted=request.query.trust_pixel_size,
        )
        self._at_work = Deadline()
        self._at_work.is_cancelled = self._closed.is_set()
        return self._predictor.rank(frame, question, self._at_work)[0]


def _gain(summarised: SummarisedFrame, chosen: Chosen) -> float:
    """Return the predicted F1 that the best members have more than those that answer."""
    shares = dict(zip(chosen.members, chosen.shares, strict=True))
    return summarised.best[1].f1 - summarised.predicted(shares).f1


def _why_anew(
    live: LiveSession,
    chosen: Chosen,
    answer: Answer,
    summarised: SummarisedFrame | None,
    gain: float,
) -> str:
    """Return why members should be selected, or nothing; the monitor sees the frame."""
    moved = ""
    if summarised is not None:
        live.monitor = live.monitor or ConditionMonitor(summarised.known.apart)
        moved = live.monitor.see(summarised.summary_s, gain, is_drifted=bool(answer.is_drifted))
    if not chosen.is_selected:
        return "the first frame"
    if live.frames - chosen.frame >= live.settings.select_every:
        return f"{live.settings.select_every} frames passed"
    return moved


def _refs(ref: str, predictor: Predictor) -> Iterator[str]:
    """Yield the versions that may answer now for a REF or `auto`."""
    return (one.ref for one in predictor.loadable(ref))


def _question(settings: SessionSettings, query: RequestQuery, chosen: Chosen | None) -> Question:
    """Return the question about a frame of a session."""
    is_pinned = settings.policy == "pinned"
    now = chosen or Chosen(
        settings.ref,
        tuple(settings.members),
        (),
        "as pinned by the session" if is_pinned else "",
    )
    return Question(
        now.ref,
        now.members,
        query.false_atoms,
        is_selecting=chosen is None and not is_pinned,
        is_size_trusted=query.trust_pixel_size,
        shares=now.shares,
        is_quick=True,
        why=now.why,
    )


def _selected(live: LiveSession, best: Ranked) -> Chosen:
    """Return the members that a selection chose as those that answer from now on."""
    selection = best.selection
    if selection is None:
        raise InvalidFrame("the frame is too small to select members for it")
    return Chosen(
        best.version.ref,
        tuple(selection.weights),
        tuple(selection.weights.values()),
        selection.reasons[0],
        frame=live.frames,
        is_selected=True,
    )


def _chosen(answer: Answer) -> Chosen:
    """Return the members of an answer as those that answer from now on; the dropped ones too."""
    weights = answer.selection.weights if answer.selection else {}
    if answer.dropped or not weights:
        weights = dict.fromkeys((*answer.members, *answer.dropped), 1.0)
    return Chosen(
        answer.ref,
        tuple(weights),
        tuple(weights.values()),
        answer.reasons[0] if answer.reasons else "all members",
    )


def _record(
    live: LiveSession, answer: Answer, name: str, digest: str, *, is_late: bool
) -> AnsweredFrame:
    known, selection = answer.predicted_f1, answer.selection
    weights = selection.weights if selection else dict.fromkeys(answer.members, 1.0)
    flags = {
        "late": is_late,
        "dropped": bool(answer.dropped),
        "drifted": bool(answer.is_drifted),
        "degraded": bool(answer.notes),
    }
    values: dict[str, Any] = {
        "shares": [float(weights.get(member, 1.0)) for member in answer.members],
        "why": answer.why,
        "verdict": answer.verdict,
        "drift_score": plain(answer.drift_score),
        "predicted_f1": known and [plain(one) for one in (known.f1, known.low, known.high)],
        "atoms": len(answer.atoms),
        "dropped": list(answer.dropped),
        "degraded": list(answer.notes),
        "timings_ms": {key: round(1000 * value, 1) for key, value in answer.seconds.items()},
        "counted": [key for key, is_so in flags.items() if is_so],
    }
    return AnsweredFrame(
        live.stored.id, name, datetime.now(UTC), digest, answer.ref, answer.members, values
    )


def _names(frame_id: str, count: int) -> list[str]:
    """Return the names of the frames of a request; "" for those without one."""
    is_stack = bool(frame_id) and count > 1
    return [f"{frame_id}/{number}" if is_stack else frame_id for number in range(count)]


def _digest(frame: Frame) -> str:
    """Return what tells a frame from all others: its pixels, their size and their type."""
    pixels = frame.pixels_yx
    known = hashlib.blake2b(digest_size=16)
    known.update(repr((pixels.shape, pixels.dtype.str, frame.pixel_size_pm)).encode())
    known.update(np.ascontiguousarray(pixels).data)
    return known.hexdigest()

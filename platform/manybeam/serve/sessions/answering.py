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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from manybeam.data.io.frame import Frame
from manybeam.db.serving.sessions import AnsweredFrame, Session
from manybeam.errors import Conflict, ManybeamError
from manybeam.predictor.answer import AUTO, Answer, Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor, Ranked, check_members
from manybeam.predictor.quick import Look
from manybeam.serve.query import RequestQuery
from manybeam.serve.sessions.keeper import Chosen, LiveSession, SessionKeeper
from manybeam.serve.sessions.monitor import ConditionMonitor
from manybeam.serve.sessions.settings import SessionSettings
from manybeam.serve.wire import plain
from manybeam.spec.facility import facility_library

logger = logging.getLogger(__name__)

SAME_SIZE = 0.005  # pixel sizes closer than this share are one
RESERVED = 4  # a selection is followed by so many times its duration without another one
QUIET_S = 1.0  # a selection waits at most so long for a moment without requests


@dataclass(frozen=True, eq=False)
class SessionAnswer:
    """The answer for one frame of a session.

    Attributes:
        answer: the answer.
        frame_id: the name of the frame in the history.
        is_repeat: whether the frame was answered before; then the same members answered again.
        is_late: whether it was ready after the budget of the session.
    """

    answer: Answer
    frame_id: str
    is_repeat: bool = False
    is_late: bool = False


class SessionAnswers:
    """Answers frames of sessions; safe to use from several threads.

    Args:
        predictor: gives the answers.
        keeper: the sessions.
        is_quiet: returns whether no request waits; selections prefer such moments.
    """

    def __init__(
        self,
        predictor: Predictor,
        keeper: SessionKeeper,
        is_quiet: Callable[[], bool] = lambda: True,
    ) -> None:
        self._predictor, self.keeper, self.is_quiet = predictor, keeper, is_quiet
        self._selecting = ThreadPoolExecutor(1, thread_name_prefix="selection")
        self._not_before: dict[int, float] = {}
        self._closed = threading.Event()

    def close(self) -> None:
        """End selections that have not begun, then the keeper of the sessions."""
        self._closed.set()
        self._selecting.shutdown(wait=True, cancel_futures=True)
        self.keeper.close()

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
        return self.keeper.put(instrument, settings, is_new_welcome=is_new_welcome, who=who)

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
                answers with are chosen by the look of each frame, and the session keeps its own.

        Raises:
            Conflict: a frame of the same name was another one.
        """
        if live.settings.budget_ms is not None and deadline.begun_s is not None:
            deadline.aim_s = deadline.begun_s + live.settings.budget_ms / 1000
        predictor = predictor or self._predictor
        sized = predictor.sized_or_not(frames, _question(live.settings, query, None), deadline)
        found = []
        for number, frame in enumerate(sized):
            name = query.frame_id and query.frame_id + (f"/{number}" if len(sized) > 1 else "")
            found.append(self._answer(live, frame, name, query, deadline, predictor))
        return found

    def adopt(
        self, live: LiveSession, seen: Session, best: Ranked, frame_id: str, took_s: float
    ) -> None:
        """Let the members that a caller's selection chose answer from the next frame on.

        Raises:
            Conflict: the session is pinned.
        """
        if live.settings.policy == "pinned":
            raise Conflict(
                f"the session of {live.stored.instrument!r} is pinned to {live.settings.ref}",
                "selection does not change it",
                'PUT it with {"policy": "auto"}',
            )
        assert best.selection is not None  # noqa: S101 - a frame too small is refused
        weights = best.selection.weights
        chosen = Chosen(
            best.version.ref,
            tuple(weights),
            tuple(weights.values()),
            best.selection.reasons[0],
            live.frames,
            is_selected=True,
        )
        values = {"frame_id": frame_id, "selection_ms": round(1000 * took_s)}
        if not self.keeper.switch(live, seen, chosen, kind="switched", values=values):
            logger.info("the choice for %s is not recorded", live.stored.instrument)

    # -- one frame ------------------------------------------------------------------------------
    def _answer(
        self,
        live: LiveSession,
        frame: Frame,
        name: str,
        query: RequestQuery,
        deadline: Deadline,
        predictor: Predictor,
    ) -> SessionAnswer:
        digest = _digest(frame) if name else ""
        before = self.keeper.frame(live, name) if name else None
        if before is not None:
            if before.digest != digest:
                raise Conflict(
                    f"frame_id {name!r} names another frame of this session",
                    f"that one was answered at {before.at:%H:%M:%S} UTC",
                    "give each frame a name of its own",
                )
            chosen = Chosen(before.ref, before.members, tuple(before.values["shares"]), "repeated")
            question = _question(live.settings, query, chosen)
            exact = replace(deadline, aim_s=None)  # the same members, whatever time it takes
            answer = predictor.answer_sized(frame, question, exact)
            return SessionAnswer(answer, name, is_repeat=True)
        with live.lock:  # a change of the session is between two frames
            settings, chosen_now = live.settings, self._current(live, predictor)
        question = _question(settings, query, chosen_now)
        answer = predictor.answer_sized(frame, question, deadline)
        is_late = deadline.aim_s is not None and deadline.clock() > deadline.aim_s
        name = name or uuid.uuid4().hex
        self.keeper.note(_record(live, answer, name, digest, is_late=is_late))
        if _refs(settings, predictor) == _refs(settings, self._predictor):
            self._watch(live, chosen_now, answer, name, query)
        return SessionAnswer(answer, name, is_late=is_late)

    def _current(self, live: LiveSession, predictor: Predictor) -> Chosen | None:
        """Return who was chosen to answer now; None if nobody was, or it serves no longer."""
        if live.settings.policy == "pinned" or live.chosen is None:
            return None
        return live.chosen if live.chosen.ref in _refs(live.settings, predictor) else None

    def _watch(
        self,
        live: LiveSession,
        chosen: Chosen | None,
        answer: Answer,
        name: str,
        query: RequestQuery,
    ) -> None:
        """Let the monitor see a frame, and choose members anew if it says so."""
        with live.lock:
            live.frames += 1
            if live.settings.policy == "pinned":
                return
            if chosen is None:
                chosen = live.chosen = _chosen(answer, live, is_selected=False)
                live.monitor = None
            elif live.chosen is not chosen:
                return  # others answer already
            why = self._why_anew(live, chosen, answer)
            now = time.monotonic()
            if not why or live.is_selecting or now < self._not_before.get(live.stored.id, 0):
                return
            live.is_selecting, seen = True, live.stored
        with suppress(RuntimeError):  # the replica ends
            self._selecting.submit(self._anew, live, seen, answer.frame, name, query, why)

    def _why_anew(self, live: LiveSession, chosen: Chosen, answer: Answer) -> str:
        """Return why members should be selected, or nothing; the monitor sees the frame."""
        look = self._look(answer)
        moved = ""
        if look is not None:
            live.monitor = live.monitor or ConditionMonitor(look.looks.apart)
            shares = dict(zip(chosen.members, chosen.shares, strict=True))
            gain = look.best[1].f1 - look.predicted(shares).f1
            is_drifted = bool(answer.is_drifted)
            moved = live.monitor.see(look.summary_s, gain, is_drifted=is_drifted)
        if not chosen.is_selected:
            return "the first frame"
        if live.frames - chosen.frame >= live.settings.select_every:
            return f"{live.settings.select_every} frames passed"
        return moved

    def _look(self, answer: Answer) -> Look | None:
        """Return the look of an answered frame, without looking again."""
        known = self._predictor.versions.get(answer.ref).performance if answer.ref else None
        if known is None or answer.selection is None:
            return None
        table = known.looks.table
        return Look(known.looks, np.array(answer.selection.summary), table.structure)

    # -- selection beside the frames --------------------------------------------------------------
    def _anew(
        self,
        live: LiveSession,
        seen: Session,
        frame: Frame,
        name: str,
        query: RequestQuery,
        why: str,
    ) -> None:
        """Select members for a frame; they answer from the next frame on."""
        try:
            end = time.monotonic() + QUIET_S
            while not self.is_quiet() and time.monotonic() < end:
                self._closed.wait(0.01)
            before = live.chosen
            answer, took_s = self._selected(live, frame, query)
            chosen = _chosen(answer, live, is_selected=True)
            is_same = before is not None and (before.ref, before.members) == (
                chosen.ref,
                chosen.members,
            )
            values = {
                "frame_id": name,
                "why": f"{why}: {chosen.why}",
                "selection_ms": round(1000 * took_s),
            }
            kind = "confirmed" if is_same else "switched"
            self.keeper.switch(live, seen, chosen, kind=kind, values=values)
        except ManybeamError as error:
            logger.warning("no selection for %s: %s", live.stored.instrument, error)
            took_s = QUIET_S
        except Exception:  # the thread must go on for other sessions
            logger.exception("no selection for %s", live.stored.instrument)
            took_s = QUIET_S
        finally:
            self._not_before[live.stored.id] = time.monotonic() + RESERVED * took_s
            live.is_selecting = False

    def _selected(
        self, live: LiveSession, frame: Frame, query: RequestQuery
    ) -> tuple[Answer, float]:
        begun = time.monotonic()
        question = Question(
            live.settings.ref, is_selecting=True, is_size_trusted=query.trust_pixel_size
        )
        answer = self._predictor.answer(frame, question)
        return answer, time.monotonic() - begun


def _refs(settings: SessionSettings, predictor: Predictor) -> set[str]:
    """Return the versions that may answer now."""
    versions = predictor.versions
    refs = versions.serving() if settings.ref == AUTO else (settings.ref,)
    return {versions.get(ref).ref for ref in refs}


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


def _chosen(answer: Answer, live: LiveSession, *, is_selected: bool) -> Chosen:
    """Return the members of an answer as those that answer from now on; the dropped ones too."""
    weights = answer.selection.weights if answer.selection else {}
    if answer.dropped or not weights:
        weights = dict.fromkeys((*answer.members, *answer.dropped), 1.0)
    return Chosen(
        answer.ref,
        tuple(weights),
        tuple(weights.values()),
        answer.reasons[0] if answer.reasons else "all members",
        frame=live.frames,
        is_selected=is_selected,
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


def _digest(frame: Frame) -> str:
    """Return what tells a frame from all others: its pixels, their size and their type."""
    pixels = frame.pixels_yx
    known = hashlib.blake2b(digest_size=16)
    known.update(repr((pixels.shape, pixels.dtype.str, frame.pixel_size_pm)).encode())
    known.update(pixels.tobytes())
    return known.hexdigest()

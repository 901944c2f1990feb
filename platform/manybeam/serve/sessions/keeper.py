"""The sessions in the memory of a replica, brought in line with the database beside the requests.

No frame waits for the database: sessions are read twice a second, and the history is written in
batches. While the database is away, sessions go on as they were; what was answered is recorded
when it is back, as much as fits in memory.
"""

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from manybeam.db.serving.sessions import AnsweredFrame, Session, SessionEvent, Sessions
from manybeam.errors import Conflict, ManybeamError, NotFound
from manybeam.serve.sessions.monitor import ConditionMonitor
from manybeam.serve.sessions.settings import SessionSettings

logger = logging.getLogger(__name__)

READ_S = 0.5  # pause between two readings: how soon a change is in the other replicas
PATIENCE_S = 0.25  # of a frame that asks whether it is a repeat
AWAY_S = 2.0  # age from which no frame asks the database whether it is a repeat
STALE_S = 10.0  # age from which what is known is said to be old
WAITING = 20_000  # answered frames that wait for the database
RECENT = 4_096  # answered frames whose repeats are known without a query
BATCH = 500  # of one transaction


@dataclass(frozen=True)
class Chosen:
    """The version and members that answer the frames of a session now.

    Attributes:
        ref: the version, as `graphene@3`.
        members: its members that answer.
        shares: the share of each of them.
        why: why these.
        frame: number of the frame of the session from which they answer.
        is_selected: whether frame analysis chose them, or only the look of a frame.
    """

    ref: str
    members: tuple[int, ...]
    shares: tuple[float, ...]
    why: str
    frame: int = 0
    is_selected: bool = False

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Chosen | None":
        """Return what a stored session says; None if nothing was chosen yet."""
        now = state.get("now")
        if not now:
            return None
        return cls(
            now["ref"],
            tuple(now["members"]),
            tuple(now["shares"]),
            now["why"],
            now.get("frame", 0),
            now.get("is_selected", False),
        )


@dataclass(eq=False)
class LiveSession:
    """A session in memory; what a frame needs of it is read once, so a switch is between frames.

    Attributes:
        stored: as it is in the database.
        settings: its settings.
        chosen: who answers now; None before the first frame.
        taken_s: when it came into memory, by the keeper's clock.
        monitor: watches the frames since the last choice.
        frames: frames of the session so far, those of other replicas too.
        is_selecting: whether a selection is under way here.
    """

    stored: Session
    settings: SessionSettings
    chosen: Chosen | None
    taken_s: float = 0.0
    monitor: ConditionMonitor | None = None
    frames: int = 0
    is_selecting: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, stored: Session, taken_s: float = 0.0) -> "LiveSession":
        """Return a stored session, taken into memory at a time."""
        settings = SessionSettings.model_validate(
            {
                "policy": stored.policy,
                "ref": stored.ref,
                "members": list(stored.members),
                "budget_ms": stored.budget_ms,
                **stored.settings,
            }
        )
        counts = stored.state.get("counts", {})
        frames = counts.get("frames", 0)
        return cls(stored, settings, Chosen.of_state(stored.state), taken_s, frames=frames)


def no_session(instrument: str) -> NotFound:
    """Return the error of an instrument without a session."""
    return NotFound(
        f"instrument {instrument[:80]!r} has no session",
        "",
        "PUT /v1/instruments/ID/session starts one",
    )


class SessionKeeper:
    """The sessions of one replica; safe to use from several threads.

    Args:
        sessions: returns the sessions of the database, or raises an error if it is away.
        clock: monotonic seconds.
    """

    def __init__(
        self, sessions: Callable[[], Sessions], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sessions, self._clock = sessions, clock
        self._live: dict[str, LiveSession] = {}
        # By session and name; what is recorded stays for a while, to know repeats without a query.
        self._answered: OrderedDict[tuple[int, str], AnsweredFrame] = OrderedDict()
        self._pending: deque[AnsweredFrame] = deque()
        self._lost = 0
        self._read_s = -math.inf
        self._is_logged = self._is_started = False
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._writing = threading.Lock()
        self._asking = ThreadPoolExecutor(2, thread_name_prefix="repeats")
        # Two of them: a writer may wait long for others, and readings must not wait for it.
        self._threads = [
            threading.Thread(target=one, name="sessions", daemon=True)
            for one in (self._go_on_reading, self._go_on_writing)
        ]

    def start(self) -> None:
        """Read the sessions, then keep them in line in threads until `close`."""
        self._is_started = True
        self.read()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads, and record what is not recorded yet."""
        self._closed.set()
        self._asking.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            if thread.ident:  # it was started
                thread.join()
        self.write()

    def of(self, instrument: str) -> LiveSession | None:
        """Return the session of an instrument; None if it has none."""
        return self._live.get(instrument)

    def degraded(self) -> list[str]:
        """Return what limits the sessions, in words; nothing while the database answers."""
        said: list[str] = []
        age_s = self._clock() - self._read_s
        if math.isinf(age_s) and self._is_started:
            said.append("sessions are not known: the database does not answer")
        elif STALE_S < age_s < math.inf:
            said.append(f"sessions are those of {age_s:.0f} s ago")
        if self._lost:
            said.append(f"{self._lost} answered frames are missing in the history of sessions")
        return said

    # -- changes ------------------------------------------------------------------------------
    def put(
        self, instrument: str, settings: SessionSettings, *, is_new_welcome: bool, who: str
    ) -> LiveSession:
        """Start or change a session; it returns when other replicas had the time to read it.

        Raises:
            NotFound: there is no such instrument.
            DatabaseUnreachable: nothing was changed.
        """
        stored = self._sessions().put(
            instrument,
            policy=settings.policy,
            ref=settings.ref,
            members=settings.members,
            budget_ms=settings.budget_ms,
            settings=settings.more,
            is_new_welcome=is_new_welcome,
            who=who,
        )
        live = self._take(stored)
        self._closed.wait(2 * READ_S)
        return live

    def end(self, instrument: str, *, who: str) -> Session:
        """End a session, as `put` does."""
        ended = self._sessions().end(instrument, who=who)
        with self._lock:
            self._live.pop(instrument, None)
        self._closed.wait(2 * READ_S)
        return ended

    def switch(
        self, live: LiveSession, seen: Session, chosen: Chosen, *, kind: str, values: Any
    ) -> bool:
        """Let others answer from the next frame on; return whether that is recorded.

        Without the database they answer all the same. If the session was changed since it was
        seen, nothing is done.

        Args:
            live: the session.
            seen: as it was when the choice began.
            chosen: who answers.
            kind: of the event.
            values: `why`, `frame_id`, `selection_ms` of the event.
        """
        content = {
            "ref": chosen.ref,
            "members": list(chosen.members),
            "shares": list(chosen.shares),
            "why": chosen.why,
            "frame": chosen.frame,
            "is_selected": chosen.is_selected,
            "selection_ms": values.get("selection_ms", 0),
        }
        try:
            stored = self._sessions().switch(
                seen,
                content,
                kind=kind,
                why=values.get("why", chosen.why),
                frame_id=values.get("frame_id", ""),
            )
        except ManybeamError as error:
            logger.info("session of %s: %s", live.stored.instrument, error)
            with live.lock:
                is_same = live.stored.revision == seen.revision
                if is_same and not isinstance(error, Conflict):
                    live.chosen, live.monitor = chosen, None
            return False
        self._take(stored)
        return True

    def note(self, frame: AnsweredFrame) -> None:
        """Record an answered frame soon."""
        with self._lock:
            self._answered[frame.session_id, frame.frame_id] = frame
            while len(self._answered) > RECENT:
                self._answered.popitem(last=False)
            if len(self._pending) >= WAITING:
                self._lost += 1
            else:
                self._pending.append(frame)

    def frame(self, live: LiveSession, frame_id: str) -> AnsweredFrame | None:
        """Return an answered frame by the caller's name of it; None if it is not known."""
        session_id = live.stored.id
        with self._lock:
            known = self._answered.get((session_id, frame_id))
        if known is not None:
            return known
        if self._clock() - self._read_s > AWAY_S:  # a frame does not wait for what is away
            return None
        asking = self._asking.submit(lambda: self._sessions().frame(session_id, frame_id))
        try:
            return asking.result(timeout=PATIENCE_S)
        except (ManybeamError, TimeoutError) as error:
            logger.info("it is not known whether a frame is a repeat: %s", error)
            return None

    def told(
        self, live: LiveSession, frames: int, events: int
    ) -> tuple[list[SessionEvent], list[AnsweredFrame]]:
        """Return the last changes and the last frames of a session, the newest first.

        Raises:
            DatabaseUnreachable: it is not known now.
        """
        self.write()
        sessions, session_id = self._sessions(), live.stored.id
        found = sessions.events(session_id, events), sessions.history(session_id, frames)
        self.read()  # counts
        return found

    # -- the database -------------------------------------------------------------------------
    def read(self) -> None:
        """Bring the sessions in line; without an answer, keep those that are known."""
        begun = self._clock()
        try:
            running = self._sessions().running()
        except Exception as error:  # the thread must go on
            if not self._is_logged:
                strange = not isinstance(error, ManybeamError)
                logger.warning("sessions are not read: %s", error, exc_info=strange)
            self._is_logged = True
            return
        self._is_logged, self._read_s = False, begun
        for stored in running:
            self._take(stored)
        known = {one.id for one in running}
        with self._lock:
            self._live = {
                instrument: live
                for instrument, live in self._live.items()
                if live.stored.id in known or live.taken_s >= begun  # started after the reading
            }

    def write(self) -> None:
        """Record the answered frames that wait; without an answer, the next time."""
        with self._writing:
            while True:
                with self._lock:
                    batch = list(islice(self._pending, BATCH))
                if not batch:
                    return
                try:
                    self._sessions().record(batch)
                except Exception as error:  # the thread must go on
                    strange = not isinstance(error, ManybeamError)
                    logger.info("answered frames are recorded later: %s", error, exc_info=strange)
                    return
                with self._lock:
                    for _ in batch:
                        self._pending.popleft()

    def _take(self, stored: Session) -> LiveSession:
        """Use a stored session, unless a newer one is known."""
        with self._lock:
            live = self._live.get(stored.instrument)
            if live is None or live.stored.id != stored.id:
                if live is not None and live.stored.id > stored.id:
                    return live
                live = self._live[stored.instrument] = LiveSession.of(stored, self._clock())
                return live
        with live.lock:
            if stored.revision > live.stored.revision:
                new = LiveSession.of(stored)
                live.stored, live.settings = stored, new.settings
                live.chosen, live.monitor = new.chosen, None
            elif stored.revision == live.stored.revision:
                live.stored = stored  # its counts
            live.frames = max(live.frames, stored.state.get("counts", {}).get("frames", 0))
        return live

    def _go_on_reading(self) -> None:
        while not self._closed.wait(READ_S):
            self.read()

    def _go_on_writing(self) -> None:
        while not self._closed.wait(READ_S):
            self.write()

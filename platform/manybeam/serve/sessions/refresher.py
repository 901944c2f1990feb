"""The sessions in the memory of a replica, brought in line with the database beside the requests.

Sessions are read twice a second, and the history is written in batches, so no frame waits for that.
A request whose frames have names asks once whether they are repeats, for 0.25 s at most. While the
database is away, sessions go on as they were; what was answered is recorded when it is back, as
much as fits in memory. A copy in a file is for a replica that starts then.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from manybeam.db.serving.sessions import AnsweredFrame, Session, SessionEvent, Sessions
from manybeam.errors import Conflict, DatabaseUnreachable, ManybeamError, NotFound
from manybeam.predictor.answer import AUTO
from manybeam.serve.sessions.frame_names import FrameNames
from manybeam.serve.sessions.monitor import ConditionMonitor
from manybeam.serve.sessions.patience import result_within
from manybeam.serve.sessions.session_copy import SessionCopy
from manybeam.serve.sessions.settings import SessionSettings

logger = logging.getLogger(__name__)

READ_S = 0.5  # pause between two readings: how soon a change is in the other replicas
PATIENCE_S = 0.25  # of who asks for the history while answered frames are written
SWITCH_S = 2.0  # of a choice of members that is recorded
AWAY_S = 2.0  # age of the last reading from which the database counts as away
STALE_S = 10.0  # age from which what is known is said to be old
WAITING = 20_000  # answered frames that wait for the database
BATCH = 500  # of one transaction
HELD = 8  # versions that are kept in memory for sessions: on an open service callers choose them

# What became of a choice of members: it is in the database; it is in the memory of this replica
# only; or nothing was done, because somebody changed the session.
Choice = Literal["recorded", "kept", "refused"]


@dataclass(frozen=True)
class Chosen:
    """The version and members that answer the frames of a session now.

    Attributes:
        ref: the version, as `graphene@3`.
        members: its members that answer.
        shares: the share of each of them.
        why: why these.
        frame: number of the frame of the session from which they answer.
        is_selected: whether frame analysis chose them, or only the summary of a frame.
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
    """A session with certain settings in memory; a change of settings makes another one.

    So a request is answered by the settings it began with, and who answers a frame is read once.

    Attributes:
        stored: as it is in the database.
        settings: its settings.
        chosen: who answers now; None before the first frame.
        taken_s: when it came into memory, by the refresher's clock.
        used_s: when it was taken or a frame of it was answered last, here or elsewhere.
        monitor: watches the frames since the last choice.
        frames: frames of the session so far, those of other replicas too.
        is_selecting: whether a selection is under way here.
        rests_until_s: before that, by the same clock, no selection begins.
        why_unwatched: why the monitor did not see the last frame, as it was logged.
    """

    stored: Session
    settings: SessionSettings
    chosen: Chosen | None
    taken_s: float = 0.0
    used_s: float = 0.0
    monitor: ConditionMonitor | None = None
    frames: int = 0
    is_selecting: bool = False
    rests_until_s: float = 0.0
    why_unwatched: str = ""
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
        chosen = Chosen.of_state(stored.state)
        return cls(stored, settings, chosen, taken_s, taken_s, frames=frames)

    @property
    def refs(self) -> tuple[str, ...]:
        """The versions that its next frames need."""
        named = () if self.settings.ref == AUTO else (self.settings.ref,)
        chosen = self.chosen
        return named if chosen is None else (*named, chosen.ref)


def no_session(instrument: str) -> NotFound:
    """Return the error of an instrument without a session."""
    return NotFound(
        f"instrument {instrument[:80]!r} has no session",
        "",
        "PUT /v1/instruments/ID/session starts one",
    )


class SessionRefresher:
    """The sessions of one replica; safe to use from several threads.

    Args:
        sessions: returns the sessions of the database, or raises an error if it is away.
        clock: monotonic seconds.
        copy: is for a start without the database; no copy if left out.
        hold: is told which versions the sessions need, so that no frame waits for one to load.
    """

    def __init__(
        self,
        sessions: Callable[[], Sessions],
        clock: Callable[[], float] = time.monotonic,
        copy: SessionCopy | None = None,
        hold: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self._sessions, self._clock, self._copy, self._hold = sessions, clock, copy, hold
        self._held: frozenset[str] = frozenset()
        self._copied_s: float | None = None  # of which time the copy was that is used
        self._live: dict[str, LiveSession] = {}
        # By instrument: the session that ended here, and when. An earlier reading still shows it.
        self._ended: dict[str, tuple[int, float]] = {}
        self._unreadable: set[tuple[int, int]] = set()  # id and revision, as they were logged
        self.names = FrameNames(
            lambda session_id, names: self._sessions().frames(session_id, names),
            lambda: not self._is_away,
        )
        self._pending: deque[AnsweredFrame] = deque()
        self._lost = 0
        self._read_s = -math.inf
        self._is_logged = self._is_started = False
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._switching = ThreadPoolExecutor(1, thread_name_prefix="switches")
        # Two of them: a writer may wait long for others, and readings must not wait for it.
        self._threads = [
            threading.Thread(target=one, name="sessions", daemon=True)
            for one in (self._go_on_reading, self._go_on_writing)
        ]

    def start(self) -> None:
        """Read the sessions, then keep them in line in threads until `close`."""
        self._is_started = True
        self.read()
        if math.isinf(self._read_s):
            self._load()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads, and record what is not recorded yet."""
        self._closed.set()
        self.names.close()
        self._switching.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            if thread.ident:  # it was started
                thread.join()
        self.write()
        if self._pending:
            logger.warning(
                "%d answered frames of sessions were not recorded, because the database does "
                "not answer",
                len(self._pending),
            )

    @property
    def _is_away(self) -> bool:
        """Whether the database did not answer lately; then nobody waits for it."""
        return self._clock() - self._read_s > AWAY_S

    @property
    def settle_s(self) -> float:
        """How long other replicas take to read a change."""
        return 2 * READ_S

    def of(self, instrument: str) -> LiveSession | None:
        """Return the session of an instrument; None if it has none."""
        return self._live.get(instrument)

    def used(self, live: LiveSession) -> None:
        """Note that a session is in use now."""
        live.used_s = self._clock()

    def degraded(self) -> list[str]:
        """Return what limits the sessions, in words; nothing while the database answers."""
        said: list[str] = []
        age_s = self._clock() - self._read_s
        if math.isinf(age_s) and self._is_started:
            said.append(
                "sessions are not known: the database does not answer"
                if self._copied_s is None
                else "sessions are those that this machine read last, "
                f"{(self._clock() - self._copied_s) / 60:.0f} min ago: the database does not answer"
            )
        elif STALE_S < age_s < math.inf:
            said.append(f"sessions are those of {age_s:.0f} s ago")
        if self._lost:
            said.append(f"{self._lost} answered frames are missing in the history of sessions")
        return said

    # -- changes ------------------------------------------------------------------------------
    def put(
        self, instrument: str, settings: SessionSettings, *, is_new_welcome: bool, who: str
    ) -> LiveSession:
        """Start or change a session; the other replicas have read it after `settle_s`.

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
        return self._take(stored)

    def end(self, instrument: str, *, who: str) -> Session:
        """End a session, as `put` does."""
        ended = self._sessions().end(instrument, who=who)
        with self._lock:
            self._live.pop(instrument, None)
            self._ended[instrument] = ended.id, self._clock()
        return ended

    def switch(
        self, live: LiveSession, seen: Session, chosen: Chosen, *, kind: str, values: Any
    ) -> Choice:
        """Let others answer from the next frame on; return what became of the choice.

        Without the database they answer all the same, and so they do if it hangs. If the session
        was changed since it was seen, nothing is done but to read it.

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
        why, frame_id = values.get("why", chosen.why), values.get("frame_id", "")
        try:
            stored = result_within(
                SWITCH_S,
                self._switching,
                lambda: self._sessions().switch(
                    seen, content, kind=kind, why=why, frame_id=frame_id
                ),
            )
        except Conflict as error:
            logger.info("session of %s: %s", live.stored.instrument, error)
            self.read()
            return "refused"
        except ManybeamError as error:
            logger.info("session of %s: %s", live.stored.instrument, error)
            with live.lock:
                if live.stored.revision == seen.revision:
                    live.chosen, live.monitor = chosen, None
                    return "kept"
                # A write that came late was read meanwhile; else somebody changed the session.
                return "recorded" if live.chosen == chosen else "refused"
        self._take(stored)
        return "recorded"

    def take_stream(self, live: LiveSession, number: int) -> int:
        """Return the largest number of the streams of a session, this one among them.

        Older streams end when they read it.

        Raises:
            DatabaseUnreachable: it is not known.
        """
        stored = self._sessions().take_stream(live.stored.id, number)
        self._take(stored)
        return stored.stream

    def note(self, frame: AnsweredFrame) -> None:
        """Record an answered frame soon."""
        self.names.note(frame)
        with self._lock:
            if len(self._pending) >= WAITING:
                self._lost += 1
            else:
                self._pending.append(frame)

    def history(
        self, live: LiveSession, frames: int, events: int
    ) -> tuple[list[SessionEvent], list[AnsweredFrame]]:
        """Return the last changes and the last frames of a session, the newest first.

        Raises:
            DatabaseUnreachable: it is not known now.
        """
        if self._clock() - self._read_s > STALE_S:
            raise DatabaseUnreachable(
                "the history of sessions is not known: the database does not answer",
                "",
                "ask again when it does; frames are answered meanwhile",
            )
        self.write(PATIENCE_S)
        sessions, session_id = self._sessions(), live.stored.id
        found = sessions.events(session_id, events), sessions.history(session_id, frames)
        self.read()  # counts
        return found

    # -- the database -------------------------------------------------------------------------
    def read(self) -> None:
        """Bring the sessions in line; without an answer, keep those that are known."""
        with self._reading:  # else an earlier one could end last
            self._read(self._clock())

    def _read(self, begun: float) -> None:
        try:
            running = self._sessions().running()
        except Exception as error:  # the thread must go on
            if not self._is_logged:
                strange = not isinstance(error, ManybeamError)
                logger.warning("sessions are not read: %s", error, exc_info=strange)
            self._is_logged = True
            return
        self._is_logged, self._read_s = False, begun
        with self._lock:
            # What began after that end knows of it.
            self._ended = {key: one for key, one in self._ended.items() if one[1] >= begun}
        for stored in running:
            self._take_if_readable(stored)
        known = {one.id for one in running}
        with self._lock:
            self._live = {
                instrument: live
                for instrument, live in self._live.items()
                if live.stored.id in known or live.taken_s >= begun  # started after the reading
            }
        self._hold_versions()
        if self._copy is not None:
            self._copy.write(running)

    def _hold_versions(self) -> None:
        """Have the versions loaded that sessions need, of those used last."""
        with self._lock:
            lives = sorted(self._live.values(), key=lambda one: one.used_s, reverse=True)
        refs = list(dict.fromkeys(ref for live in lives for ref in live.refs))[:HELD]
        if self._held != frozenset(refs):
            self._held = frozenset(refs)
            self._hold(refs)

    def _take_if_readable(self, stored: Session) -> None:
        """Use a stored session; one that another version of Manybeam wrote may not be readable."""
        try:
            self._take(stored)
        except Exception:  # one session must not keep the others from being read
            key = stored.id, stored.revision
            if key not in self._unreadable:
                logger.exception("the session of %s cannot be used", stored.instrument)
            self._unreadable.add(key)

    def _load(self) -> None:
        """Take the copy, because the database did not answer yet."""
        found = self._copy and self._copy.read()
        if not found:
            return
        sessions, age_s = found
        for one in sessions:
            self._take_if_readable(one)
        self._copied_s = self._clock() - age_s
        self._hold_versions()

    def write(self, patience_s: float = -1) -> None:
        """Record the answered frames that wait; without an answer, the next time.

        Args:
            patience_s: how long to wait while others write; -1 for as long as it takes.
        """
        if not self._writing.acquire(timeout=patience_s):
            return
        try:
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
        finally:
            self._writing.release()

    def _take(self, stored: Session) -> LiveSession:
        """Use a stored session, unless a newer one is known."""
        new = LiveSession.of(stored, self._clock())
        with self._lock:
            live = self._live.get(stored.instrument)
            if live is None:
                ended, _ = self._ended.get(stored.instrument, (0, 0.0))
                if stored.id > ended:
                    self._live[stored.instrument] = new
                return new
            if (stored.id, stored.revision) < (live.stored.id, live.stored.revision):
                return live
            if stored.id != live.stored.id or new.settings != live.settings:
                new.frames = max(new.frames, live.frames if stored.id == live.stored.id else 0)
                self._live[stored.instrument] = new
                return new
            with live.lock:
                if stored.revision > live.stored.revision:
                    live.chosen, live.monitor = new.chosen, None
                live.stored = stored  # its counts too
                if new.frames > live.frames:  # another replica answered some
                    live.used_s = new.used_s
                live.frames = max(live.frames, new.frames)
            return live

    def _go_on_reading(self) -> None:
        while not self._closed.wait(READ_S):
            self.read()

    def _go_on_writing(self) -> None:
        while not self._closed.wait(READ_S):
            self.write()

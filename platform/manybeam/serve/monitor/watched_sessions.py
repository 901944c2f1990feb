"""The sessions under watch, which a new process of the monitor goes on with.

Axis letters: n crop, y row, x column.
"""

import json
import logging
import time
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from manybeam.data.disk import write_files
from manybeam.errors import Corrupt, WriteFailed
from manybeam.predictor.stream.drift import DriftWatch
from manybeam.predictor.stream.in_control import WINDOW
from manybeam.predictor.stream.session_watch import SessionWatch, WatchChange
from manybeam.serve.monitor.report import FrameReport, WatchState

logger = logging.getLogger(__name__)

SESSIONS = 300  # under watch; the one without frames for longest gives way
FILES = 2 * SESSIONS
SAVE_S = 5.0  # between two writings of a session
PATIENCE_S = 60.0  # for the known frames with which a session was watched before
PREVIEWS = 2 * WINDOW  # frames of which a small picture can be made


class KnownSource(Protocol):
    """What knows the frames of the conditions of a version (`known_watches.KnownWatches`)."""

    def get(self, ref: str, *, has_pixel_size: bool) -> DriftWatch | None:
        """Return a watch of a version; None while it is made, or if it knows no condition."""


@dataclass(eq=False)
class WatchedSession:
    """A session under watch.

    Attributes:
        session_id: its id.
        watch: its drift watch.
        previews: name and first crop of the last frames.
        changes: how many changes were found.
        change: the last one, as JSON data.
        saved_s: when it was written last, monotonic.
    """

    session_id: int
    watch: SessionWatch
    previews: deque[tuple[str, NDArray[Any]]] = field(
        default_factory=lambda: deque(maxlen=PREVIEWS)
    )
    changes: int = 0
    change: dict[str, Any] | None = None
    saved_s: float = 0.0

    @property
    def state(self) -> WatchState:
        """What it says now."""
        watch = self.watch
        return WatchState(
            self.session_id, watch.state, watch.is_drifted, watch.score, self.changes, self.change
        )

    def found(self, change: WatchChange) -> dict[str, Any]:
        """Note a change, and return it as JSON data."""
        content = asdict(change)
        self.change = {"drifted": content.pop("is_drifted"), **content}
        self.changes += 1
        return self.change


class WatchedSessions:
    """The sessions under watch of one monitor; for one thread at a time.

    Args:
        known: knows the frames of the conditions of a version.
        folder: where they are kept for a new process.
    """

    def __init__(self, known: KnownSource, folder: Path) -> None:
        self._known, self._folder = known, folder
        self._sessions: OrderedDict[int, WatchedSession] = OrderedDict()
        self._waiting: dict[int, float] = {}  # sessions whose known frames are waited for, since

    def get(self, session_id: int) -> WatchedSession | None:
        """Return a session; None if no frame of it was seen here."""
        return self._sessions.get(session_id)

    def drifted_count(self) -> int:
        """Return how many sessions drifted."""
        return sum(one.watch.is_drifted for one in self._sessions.values())

    def of(self, report: FrameReport) -> WatchedSession | None:
        """Return the session of a frame; None if it goes on only when known frames are ready."""
        known = self._known.get(report.ref, has_pixel_size=report.pixel_size_pm is not None)
        session = self._sessions.get(report.session_id)
        if session is None:
            session = self._begun(report.session_id, known)
        elif known is not None:
            session.watch.watch_by(known)
        if session is None:
            return None
        self._sessions[report.session_id] = session
        self._sessions.move_to_end(report.session_id)
        while len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def save(self, session: WatchedSession, *, is_new: bool) -> None:
        """Keep a session for a new process: with each change, and every few seconds."""
        now_s = time.monotonic()
        if not is_new and now_s < session.saved_s + SAVE_S:
            return
        session.saved_s = now_s
        content = {
            "watch": session.watch.to_json(),
            "changes": session.changes,
            "change": session.change,
        }
        try:
            write_files({self._path(session.session_id): json.dumps(content).encode()})
            self._prune()
        except (OSError, WriteFailed) as error:
            logger.warning("the watch of session %d was not kept: %s", session.session_id, error)

    def _begun(self, session_id: int, known: DriftWatch | None) -> WatchedSession | None:
        """Return a session that is new here, as the process before left it."""
        path = self._path(session_id)
        try:
            kept = json.loads(path.read_text())
            watch = SessionWatch.restore(known, kept["watch"])
            self._waiting.pop(session_id, None)
            changes, change = int(kept["changes"]), kept["change"]
            return WatchedSession(session_id, watch, changes=changes, change=change)
        except FileNotFoundError:
            return WatchedSession(session_id, SessionWatch(known))
        except (Corrupt, OSError, ValueError, KeyError, TypeError) as error:
            since_s = self._waiting.setdefault(session_id, time.monotonic())
            if known is None and time.monotonic() < since_s + PATIENCE_S:
                return None
            del self._waiting[session_id]
            logger.warning("the watch of session %d begins anew: %s", session_id, error)
            return WatchedSession(session_id, SessionWatch(known))

    def _path(self, session_id: int) -> Path:
        return self._folder / f"session-{session_id}.json"

    def _prune(self) -> None:
        files = list(self._folder.glob("session-*.json"))
        if len(files) > FILES:
            for path in sorted(files, key=lambda one: one.stat().st_mtime)[: len(files) - SESSIONS]:
                path.unlink(missing_ok=True)

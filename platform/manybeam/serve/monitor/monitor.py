"""The monitor: it watches the sessions of a service, and shows their newest frames.

There is one, because frames of a session may be answered by several replicas, and a drift shows in
their order.
Axis letters: n crop, y row, x column.
"""

import base64
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.frame import Frame
from manybeam.data.markup import small_png
from manybeam.errors import Busy, ManybeamError, NotFound
from manybeam.predictor.stream.drift import DriftWatch, crop_features
from manybeam.predictor.stream.in_control import WINDOW
from manybeam.predictor.stream.session_watch import SessionWatch, WatchChange
from manybeam.serve.monitor.live_view import LiveView
from manybeam.serve.monitor.report import FrameReport, Seen, WatchState

if TYPE_CHECKING:
    from manybeam.db.serving.alerts import Alerts
    from manybeam.serve.monitor.doubtful import DoubtfulFrames

logger = logging.getLogger(__name__)

SESSIONS = 300  # that are watched; the one without frames for longest gives way
PREVIEWS = 2 * WINDOW  # frames of which a small picture can be told
PREVIEW_PX = 128
LIVE_REQUESTS = 64  # of live pages that wait at once


class KnownSource(Protocol):
    """What knows the frames of the conditions of a version (`known_watches.KnownWatches`)."""

    def get(self, ref: str, *, has_pixel_size: bool) -> DriftWatch | None:
        """Return a watch of a version; None while it is made, or if it knows no condition."""


class MonitorMeter(Protocol):
    """What the monitor counts (`metrics.Meter`)."""

    def drift(self, instrument: str, score: float) -> None:
        """Set the drift score of an instrument."""

    def drift_change(self, kind: str) -> None:
        """Count a change that a drift watch found."""

    def drifted_sessions(self, count: int) -> None:
        """Set the number of sessions that drifted."""


@dataclass(eq=False)
class _Watched:
    """A session under watch.

    Attributes:
        instrument: its id.
        watch: its drift watch.
        has_known: whether the watch knows the conditions of the version.
        previews: name and crop of the last frames.
        found: how many changes were found.
        last: the last one, as JSON data.
    """

    instrument: str
    watch: SessionWatch
    has_known: bool
    previews: deque[tuple[str, NDArray[Any]]] = field(
        default_factory=lambda: deque(maxlen=PREVIEWS)
    )
    found: int = 0
    last: dict[str, Any] | None = None


class Monitor:
    """Watches the sessions of a service; safe to use from several threads.

    Args:
        known: knows the frames of the conditions of a version.
        alerts: returns the alerts of the database, or raises an error if it is away.
        doubtful: keeps doubtful frames.
        meter: counts.
        notify: is called after an alert was added.
    """

    def __init__(
        self,
        known: KnownSource,
        alerts: "Callable[[], Alerts]",
        doubtful: "DoubtfulFrames",
        meter: MonitorMeter,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self._known, self._alerts, self._doubtful = known, alerts, doubtful
        self._meter, self._notify = meter, notify
        self._sessions: OrderedDict[int, _Watched] = OrderedDict()
        self._views: OrderedDict[int, LiveView] = OrderedDict()
        self._news = threading.Condition()
        self._watching = threading.Lock()
        self._asking = threading.BoundedSemaphore(LIVE_REQUESTS)

    # -- frames -----------------------------------------------------------------------------------
    def see(self, reports: list[FrameReport]) -> Seen:
        """Take reports in the order of their answers; return what the watch says of them."""
        ordered = sorted(reports, key=lambda one: one.at)
        watched = self._show(ordered)  # first, because the features of a frame take a while
        states: dict[int, WatchState] = {}
        for report in ordered:
            with self._watching:
                states[report.session_id] = state = self._see(report)
            self._keep_doubtful(report, state)
        return Seen(states, watched)

    def _show(self, reports: list[FrameReport]) -> frozenset[int]:
        """Let live pages have frames; return the sessions that somebody looks at."""
        known = {one.session_id: self.state(one.session_id) for one in reports}
        with self._news:
            for report in reports:
                state = known[report.session_id] or WatchState(report.session_id, "not begun")
                self._view(report.session_id).add(report, state)
            self._news.notify_all()
            for view in self._views.values():
                view.forget_unseen()
            return frozenset(one for one, view in self._views.items() if view.is_watched)

    def state(self, session_id: int) -> WatchState | None:
        """Return the state of a session; None if no frame of it was seen."""
        with self._watching:
            session = self._sessions.get(session_id)
            return None if session is None else _state(session_id, session)

    def _see(self, report: FrameReport) -> WatchState:
        session = self._session(report)
        if report.crops_nyx is not None:
            session.previews.append((report.frame_id, report.crops_nyx[0]))
            features_s = crop_features(report.crops_nyx, report.pixel_size_pm)
            change = session.watch.see(report.frame_id, features_s)
            if change is not None:
                self._changed(session, report, change)
            self._meter.drift(report.instrument, session.watch.score)
        return _state(report.session_id, session)

    def _session(self, report: FrameReport) -> _Watched:
        """Return the session of a report; it gets the known frames as soon as there are some."""
        session = self._sessions.get(report.session_id)
        if session is None or not (session.has_known or session.found):
            known = self._known.get(report.ref, has_pixel_size=report.pixel_size_pm is not None)
            if session is None:
                session = _Watched(report.instrument, SessionWatch(known), known is not None)
            elif known is not None:
                session.watch, session.has_known = SessionWatch(known), True
        self._sessions[report.session_id] = session
        self._sessions.move_to_end(report.session_id)
        while len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def _changed(self, session: _Watched, report: FrameReport, change: WatchChange) -> None:
        session.found, session.last = session.found + 1, change.content
        kind = "drifted" if change.is_drifted else "back in control"
        self._meter.drift_change(kind.partition(" ")[0])
        self._meter.drifted_sessions(sum(one.watch.is_drifted for one in self._sessions.values()))
        logger.info("%s %s: %s", report.instrument, kind, change.why)
        content = {
            **change.content,
            "ref": report.ref,
            "members": list(report.members),
            "frames": {"before": _picture(session, change.before), "now": _picture(session)},
        }
        try:
            self._alerts().add(kind, report.instrument, report.session_id, content)
        except ManybeamError as error:
            logger.warning("an alert of %s was not kept: %s", report.instrument, error)
        self._notify()

    def _keep_doubtful(self, report: FrameReport, state: WatchState) -> None:
        if report.most_kept and report.pixels_yx is not None:
            self._doubtful.add(
                report.instrument, _frame(report), _facts(report, state), most=report.most_kept
            )

    # -- live pages -------------------------------------------------------------------------------
    def live(self, session_id: int, after: int, wait_s: float) -> dict[str, Any]:
        """Return what a live page shows of a session.

        Args:
            session_id: of the session.
            after: number of the frame that the page has.
            wait_s: for a newer one; without one, the picture of the present frame is left out.

        Raises:
            Busy: too many pages wait.
        """
        if not self._asking.acquire(blocking=False):
            raise Busy(f"{LIVE_REQUESTS} live pages wait already", "that is the limit", "")
        try:
            with self._news:
                view = self._view(session_id)
                view.asked_s = time.monotonic()
                self._news.wait_for(lambda: view.number > after, wait_s)
                view.asked_s = time.monotonic()
                content, shown = view.facts(after), view.newest()
        finally:
            self._asking.release()
        is_new = shown is not None and shown.number > after
        return {**content, "picture": view.picture(shown) if shown and is_new else ""}

    def keep(self, session_id: int, frame_id: str, who: str) -> dict[str, Any]:
        """Keep a frame that is on a live page.

        Raises:
            NotFound: it is not in memory any more.
        """
        with self._news:
            report = self._view(session_id).held(frame_id)
        if report is None:
            raise NotFound(
                f"frame {frame_id[:80]!r} is not in memory",
                "only frames that a live page showed during the last seconds are",
                "mark a newer frame",
            )
        state = self.state(report.session_id) or WatchState(report.session_id, "")
        facts = {**_facts(report, state), "marked_by": who}
        return {"kept": self._doubtful.add(report.instrument, _frame(report), facts)}

    def _view(self, session_id: int) -> LiveView:
        """Return the view of a session; the one without frames and pages for longest gives way."""
        view = self._views.setdefault(session_id, LiveView())
        self._views.move_to_end(session_id)
        while len(self._views) > SESSIONS:
            self._views.popitem(last=False)
        return view


def _state(session_id: int, session: _Watched) -> WatchState:
    watch = session.watch
    return WatchState(
        session_id, watch.state, watch.is_drifted, watch.score, session.found, session.last
    )


def _picture(session: _Watched, frame_id: str | None = None) -> dict[str, str] | None:
    """Return a frame of the last ones by its name as a small picture; the newest if left out."""
    for name, crop_yx in reversed(session.previews):
        if frame_id in (None, name):
            png = base64.b64encode(small_png(np.asarray(crop_yx), PREVIEW_PX)).decode()
            return {"frame_id": name, "png": png}
    return None


def _frame(report: FrameReport) -> Frame:
    assert report.pixels_yx is not None  # noqa: S101 - the caller looked
    origin = f"{report.instrument}/{report.frame_id}"
    return Frame(report.pixels_yx, report.pixel_size_pm, origin=origin)


def _facts(report: FrameReport, state: WatchState) -> dict[str, Any]:
    """Return what is kept with a frame."""
    return {
        "session": report.session_id,
        "frame_id": report.frame_id,
        "at": report.at.isoformat(),
        "ref": report.ref,
        "drift_score": state.score,
        "predicted_f1": report.facts.get("predicted_f1"),
    }

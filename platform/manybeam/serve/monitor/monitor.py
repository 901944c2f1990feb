"""The monitor: it watches the sessions of a service, and shows their newest frames.

There is one, because frames of a session may be answered by several replicas, and a drift shows in
their order.
Axis letters: n crop, y row, x column.
"""

import base64
import logging
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from manybeam.data.io.frame import Frame
from manybeam.data.markup import small_png
from manybeam.errors import Busy, NotFound
from manybeam.predictor.stream.drift import crop_features
from manybeam.serve.monitor.alert_writer import AlertWriter
from manybeam.serve.monitor.live_view import LiveView
from manybeam.serve.monitor.report import FrameReport, Seen, WatchState
from manybeam.serve.monitor.watched_sessions import WatchedSession, WatchedSessions

if TYPE_CHECKING:
    from manybeam.serve.monitor.doubtful import DoubtfulFrames

logger = logging.getLogger(__name__)

VIEWS = 300  # sessions that live pages can show
HELD_BYTES = 256 * 2**20  # of frames in memory for live pages, over all sessions
PREVIEW_PX = 128
LIVE_REQUESTS = 48  # of live pages that wait at once; each has a thread of the process


class MonitorMeter(Protocol):
    """What the monitor counts (`metrics.Meter`)."""

    def drift(self, instrument: str, score: float) -> None:
        """Set the drift score of an instrument."""

    def drift_change(self, kind: str) -> None:
        """Count a change that a drift watch found."""

    def drifted_sessions(self, count: int) -> None:
        """Set the number of sessions that drifted."""


class Monitor:
    """Watches the sessions of a service; safe to use from several threads.

    Args:
        sessions: the sessions under watch.
        alerts: writes alerts.
        doubtful: keeps doubtful frames.
        meter: counts.
    """

    def __init__(
        self,
        sessions: WatchedSessions,
        alerts: AlertWriter,
        doubtful: "DoubtfulFrames",
        meter: MonitorMeter,
    ) -> None:
        self._sessions, self._alerts, self._doubtful = sessions, alerts, doubtful
        self._meter = meter
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
            try:
                with self._watching:
                    states[report.session_id] = state = self._see(report)
                self._keep_doubtful(report, state)
            except Exception:  # one odd frame must not take the others of the call with it
                logger.exception("a frame of %s was not watched", report.instrument)
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
            self._bound_held()
            return frozenset(one for one, view in self._views.items() if view.is_watched)

    def _bound_held(self) -> None:
        """Hold no more than `HELD_BYTES`: the session with the most frees its oldest frames."""
        views = self._views.values()
        while sum(view.held_bytes for view in views) > HELD_BYTES:
            max(views, key=lambda view: view.held_bytes).forget_oldest()

    def state(self, session_id: int) -> WatchState | None:
        """Return the state of a session; None if no frame of it was seen."""
        with self._watching:
            session = self._sessions.get(session_id)
        return None if session is None else session.state

    def _see(self, report: FrameReport) -> WatchState:
        session = self._sessions.of(report)
        if session is None:
            return WatchState(report.session_id, "waits for the known frames")
        crops_nyx, features_s = report.crops_nyx, None
        if crops_nyx is not None:
            session.previews.append((report.frame_id, crops_nyx[0]))
            features_s = crop_features(crops_nyx, report.pixel_size_pm)
        change = session.watch.see(report.frame_id, features_s)
        if change is not None:
            self._changed(session, report, session.found(change))
        self._sessions.save(session, is_new=change is not None)
        self._meter.drift(report.instrument, session.watch.score)
        return session.state

    def _changed(self, session: WatchedSession, report: FrameReport, change: Any) -> None:
        kind = "drifted" if change["drifted"] else "back in control"
        self._meter.drift_change(kind.partition(" ")[0])
        self._meter.drifted_sessions(self._sessions.drifted_count())
        logger.info("%s %s: %s", report.instrument, kind, change["why"])
        content = {
            **change,
            "instrument": report.instrument,
            "session": report.session_id,
            "ref": report.ref,
            "members": list(report.members),
            "frames": {
                "before": _picture(session, change["before"]),
                "now": _picture(session, change["frame_id"]),
            },
        }
        self._alerts.add(
            kind=kind,
            text=change["why"],
            content=content,
            instrument=report.instrument,
            session_id=report.session_id,
        )

    def _keep_doubtful(self, report: FrameReport, state: WatchState) -> None:
        if report.most_kept and report.pixels_yx is not None:
            self._doubtful.add(
                report.instrument,
                report.session_id,
                _frame(report),
                _facts(report, state),
                report.most_kept,
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
        kept = self._doubtful.mark(report.instrument, session_id, _frame(report), facts)
        return {"kept": kept}

    def _view(self, session_id: int) -> LiveView:
        """Return the view of a session; the one without frames and pages for longest gives way."""
        view = self._views.setdefault(session_id, LiveView())
        self._views.move_to_end(session_id)
        while len(self._views) > VIEWS:
            self._views.popitem(last=False)
        return view


def _picture(session: WatchedSession, frame_id: str) -> dict[str, str] | None:
    """Return a frame of the last ones as a small picture; None if it is not held any more."""
    for name, crop_yx in reversed(session.previews):
        if name == frame_id:
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

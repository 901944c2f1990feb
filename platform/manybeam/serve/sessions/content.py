"""The JSON of a session: its settings, who answers now and why, what it cost, its history."""

from collections.abc import Sequence
from typing import Any

from manybeam.db.serving.sessions import AnsweredFrame, Session, SessionEvent
from manybeam.serve.monitor.report import WatchState
from manybeam.serve.sessions.answering import SessionAnswer
from manybeam.serve.sessions.refresher import LiveSession

COUNTS = ("frames", "late", "dropped", "drifted", "degraded", "selections", "selection_ms")


def session_content(
    live: LiveSession,
    events: Sequence[SessionEvent],
    history: Sequence[AnsweredFrame],
    watch: WatchState | None = None,
) -> dict[str, Any]:
    """Return a session as JSON data, with its last changes and frames, the newest first."""
    return {
        **stored_content(live.stored),
        "now": _now(live),
        "watch": None if watch is None else watch.content,
        "events": [
            {
                "at": one.at.isoformat(),
                "kind": one.kind,
                "frame_id": one.frame_id,
                "ref": one.ref,
                "members": list(one.members),
                "why": one.why,
            }
            for one in events
        ],
        "history": [_frame(one) for one in history],
    }


def stored_content(stored: Session) -> dict[str, Any]:
    """Return the settings and the counts of a session as JSON data."""
    counts = {name: stored.state.get("counts", {}).get(name, 0) for name in COUNTS}
    frames = max(counts["frames"], 1)
    return {
        "id": stored.id,
        "instrument": stored.instrument,
        "policy": stored.policy,
        "ref": stored.ref,
        "members": list(stored.members),
        "budget_ms": stored.budget_ms,
        **stored.settings,
        "revision": stored.revision,
        "started": stored.started.isoformat(),
        "ended": stored.ended and stored.ended.isoformat(),
        "counts": counts,
        "selection_ms_per_frame": round(counts["selection_ms"] / frames, 1),
    }


def answer_content(
    live: LiveSession, found: Sequence[SessionAnswer], watch: WatchState | None
) -> dict[str, Any]:
    """Return what the answers of a request say of their session.

    The drift watch runs beside the answers, so what it says is of the frames before.
    """
    return {
        "id": live.stored.id,
        "policy": live.settings.policy,
        "frame_ids": [one.frame_id for one in found],
        "repeated": [one.frame_id for one in found if one.is_repeat],
        "late": any(one.is_late for one in found),
        "budget_ms": live.settings.budget_ms,
        "watch": None if watch is None else watch.content | {"changes": watch.changes},
    }


def _now(live: LiveSession) -> dict[str, Any] | None:
    """Return who answers now; null before the first frame."""
    chosen = live.chosen
    if chosen is None:
        return None
    return {
        "ref": chosen.ref,
        "members": list(chosen.members),
        "shares": list(chosen.shares),
        "why": chosen.why,
        "since_frame": chosen.frame,
        "selected": chosen.is_selected,
    }


def _frame(one: AnsweredFrame) -> dict[str, Any]:
    values = {name: value for name, value in one.values.items() if name != "counted"}
    return {
        "frame_id": one.frame_id,
        "at": one.at.isoformat(),
        "ref": one.ref,
        "members": list(one.members),
        **values,
    }

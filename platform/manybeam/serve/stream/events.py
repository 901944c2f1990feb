"""What a stream tells its client beside the answers: that something changed between two frames.

All of it is read from the facts of the answers, in their order, so it is as true as they are. The
drift watch runs beside the answers: what it found is told with the next answer, or soon without.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manybeam.serve.monitor.report import WatchState

SETTLED = 3  # frames in a row that say the same; a single odd frame is no news


@dataclass(frozen=True)
class _Answering:
    """Who was to answer a frame; members that were left out for want of time count too."""

    ensemble: str
    version: int | None
    members: tuple[int, ...]

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "_Answering":
        members = sorted({*meta["members"], *meta["dropped"]})
        return cls(meta["ensemble"], meta["version"], tuple(members))


class _Settled:
    """A value that counts as changed when the last frames agree on another one."""

    def __init__(self, first: Any) -> None:
        self._value, self._last = first, deque[Any](maxlen=SETTLED)

    def changed(self, value: Any) -> bool:
        """Take the value of a frame; return whether it has become the value now."""
        self._last.append(value)
        is_settled = len(self._last) == SETTLED and len(set(self._last)) == 1
        if not is_settled or value == self._value:
            return False
        self._value = value
        return True


class StreamEvents:
    """Finds what changed, from the facts of one answer after the other.

    `swapped`: another version of the ensemble answers, as after a promotion. `switched`: other
    members or another ensemble. `drifted`: the drift watch of the session found a change.
    `budget`: members are left out to keep the budget, answers are late, or neither any longer.
    """

    def __init__(self) -> None:
        self._answering: _Answering | None = None
        self._changes: int | None = None  # of the drift watch that were told, or came before
        self._budget = _Settled("kept")

    def after(self, meta: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a frame, as JSON data.

        A frame that was answered before, one that a canary takes, and one for which the caller
        named the members, are no news of the session.

        Args:
            meta: the facts of its answer.
        """
        session, rollout = meta.get("session"), meta.get("rollout") or {}
        if not session or session["repeated"] or rollout.get("version") == "new":
            return []
        found = [*self._answerers(meta), *self._within(meta, session)]
        return [{"type": "event", "frame_id": meta["frame_id"], **one} for one in found]

    def _answerers(self, meta: Mapping[str, Any]) -> list[dict[str, Any]]:
        now, before = _Answering.of(meta), self._answering
        self._answering = now
        if before is None or now == before:
            return []
        is_swap = now.ensemble == before.ensemble and now.version != before.version
        known = {"ref": meta["ref"], "members": list(now.members), "why": meta.get("why", "")}
        return [{"kind": "swapped" if is_swap else "switched", **known}]

    def watched(self, state: WatchState | None) -> list[dict[str, Any]]:
        """Return the events of the drift watch.

        What it found before the stream began is no news; of several changes the last one is told.

        Args:
            state: what it said last of the session; None if that is not known.
        """
        if state is None:
            return []
        before, self._changes = self._changes, state.changes
        if before in (None, state.changes) or state.change is None:
            return []
        return [{"type": "event", "kind": "drifted", **state.change}]

    def _within(self, meta: Mapping[str, Any], session: Mapping[str, Any]) -> list[dict[str, Any]]:
        dropped = list(meta["dropped"])
        state = "late" if session.get("late") else "members left out" if dropped else "kept"
        if not self._budget.changed(state):
            return []
        why = f"of the last {SETTLED} answers, each: {_BUDGET[state]}"
        known = {"state": state, "budget_ms": session.get("budget_ms"), "dropped": dropped}
        return [{"kind": "budget", **known, "why": why}]


_BUDGET = {
    "late": "ready after the budget of the session",
    "members left out": "members were left out to keep the time",
    "kept": "all members within the time",
}

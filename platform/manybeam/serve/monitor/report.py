"""What replicas and the monitor tell each other.

Axis letters: n crop, y row, x column, k atom, 4 the numbers of an atom.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from numpy.typing import NDArray

ATOM = ("y", "x", "probability", "spread_px")  # the numbers of an atom in a report


@dataclass(frozen=True, eq=False)
class FrameReport:
    """An answered frame of a session.

    Attributes:
        instrument: its id.
        session_id: of its session.
        frame_id: the name of the frame.
        at: when it was answered, UTC.
        ref: the version that answered.
        members: its members that answered.
        facts: of the answer, as the history keeps them.
        shape: rows and columns of the frame.
        pixel_size_pm: edge of a pixel; None if unknown.
        crops_nyx: crops for the drift watch; None if the frame has none.
        atoms_k4: float32, see `ATOM`; None if nobody sees the frame.
        pixels_yx: the frame; None if nobody sees it and it is not kept.
        most_kept: how many doubtful frames of the session may be kept; 0 if this one is not.
    """

    instrument: str
    session_id: int
    frame_id: str
    at: datetime
    ref: str
    members: tuple[int, ...]
    facts: Mapping[str, Any]
    shape: tuple[int, int]
    pixel_size_pm: float | None
    crops_nyx: NDArray[Any] | None = field(repr=False)
    atoms_k4: NDArray[Any] | None = field(default=None, repr=False)
    pixels_yx: NDArray[Any] | None = field(default=None, repr=False)
    most_kept: int = 0


@dataclass(frozen=True)
class WatchState:
    """What the drift watch of a session says now.

    Attributes:
        session_id: of the session.
        state: in words.
        is_drifted: whether the frames have left what is known.
        score: 1 is the threshold; None while the watch learns.
        changes: how many changes were found so far.
        change: the last one, as JSON data; None if there was none.
    """

    session_id: int
    state: str
    is_drifted: bool = False
    score: float | None = None
    changes: int = 0
    change: Mapping[str, Any] | None = None

    @property
    def content(self) -> dict[str, Any]:
        """It as JSON data."""
        known = {"state": self.state, "drifted": self.is_drifted, "score": self.score}
        return {**known, "change": None if self.change is None else dict(self.change)}


@dataclass(frozen=True)
class Seen:
    """The monitor's reply to reports.

    Attributes:
        states: of the reported sessions, by their ids.
        watched: ids of sessions that somebody looks at now.
    """

    states: Mapping[int, WatchState]
    watched: frozenset[int] = frozenset()


class MonitorPort(Protocol):
    """The monitor as a replica sees it; its calls may block, and raise Unreachable."""

    def see(self, reports: "list[FrameReport]") -> Seen:
        """Take reports in the order of their answers."""

    def state(self, session_id: int) -> WatchState | None:
        """Return the state of a session; None if no frame of it was seen."""

    def live(self, session_id: int, after: int, wait_s: float) -> dict[str, Any]:
        """Return what a live page shows: the newest frame, as soon as its number is above."""

    def keep(self, session_id: int, frame_id: str, who: str) -> dict[str, Any]:
        """Keep a frame that is on a live page, and return where."""

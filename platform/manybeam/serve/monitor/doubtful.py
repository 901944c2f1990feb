"""Doubtful and marked frames of instruments, kept in the store for adaptation.

A FrameSet is for one session and one shape. Frames are only added, and none once it is full, so an
adaptation that reads it keeps what it opened. Beside it is a list of what is known of each frame.
Axis letters: n frame, y row, x column.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from manybeam.data.frames import FrameSet, list_framesets
from manybeam.data.io.frame import Frame
from manybeam.data.store import Store, open_store
from manybeam.errors import Busy, Conflict, ManybeamError, NotFound, UnknownFrameSet
from manybeam.spec import Condition

logger = logging.getLogger(__name__)

Kind = Literal["doubtful", "marked"]
WAITING = 8  # frames in memory that wait for the store
MOST_MARKED = 500  # of one session
WAIT_S = 8.0  # for a marked frame; below that for which a replica waits for the monitor
CLOSE_S = 5.0  # for a frame that is being kept


@dataclass(frozen=True, eq=False)
class _Kept:
    """A frame that waits to be kept."""

    path: str
    condition: str
    frame: Frame
    facts: Mapping[str, Any]
    most: int
    session: str
    is_marked: bool
    done: "Future[str]" = field(default_factory=Future)


class DoubtfulFrames:
    """Keeps frames in a thread of its own; safe to use from several threads.

    Args:
        url: the store.
        count: is told what became of a doubtful frame: `kept` or `left-out`.
    """

    def __init__(self, url: str, count: Callable[[str], None] = lambda _: None) -> None:
        self._url, self._count = url.rstrip("/"), count
        self._waiting: deque[_Kept] = deque()
        self._room, self._is_closed = threading.Condition(), False
        self._counts: dict[str, int] = {}  # frames of each session, in sets of all shapes
        self._full: dict[str, int] = {}  # sessions that had so many, which was the most
        self._thread = threading.Thread(target=self._go_on, name="doubtful", daemon=True)
        self._thread.start()

    def add(
        self, instrument: str, session_id: int, frame: Frame, facts: Mapping[str, Any], most: int
    ) -> None:
        """Keep a doubtful frame soon, if there is room.

        Args:
            instrument: its id.
            session_id: of its session.
            frame: the frame.
            facts: what is known of it, as JSON data.
            most: frames of the session that may be kept.
        """
        kept = _kept("doubtful", instrument, session_id, frame, facts, most)
        if kept.most <= self._full.get(kept.session, -1) or not self._put(kept):
            self._count("left-out")

    def mark(self, instrument: str, session_id: int, frame: Frame, facts: Mapping[str, Any]) -> str:
        """Keep a frame that somebody marked, and return the FrameSet that has it.

        A frame is kept once: `facts["frame_id"]` names it within its session, for a new process
        too.

        Raises:
            Busy: others wait, or the store is slow; the frame may be kept all the same.
            ManybeamError: it cannot be kept.
        """
        kept = _kept("marked", instrument, session_id, frame, facts, MOST_MARKED)
        if not self._put(kept):
            raise Busy("frames wait to be kept", "the store is slow", "mark it again")
        try:
            return kept.done.result(WAIT_S)
        except TimeoutError:
            raise Busy(
                f"the frame is not kept after {WAIT_S:g} s",
                "the store is slow",
                "mark it again; it is kept once",
            ) from None

    def close(self) -> None:
        """End; frames that wait are left out."""
        with self._room:
            self._is_closed = True
            for kept in self._waiting:
                kept.done.set_exception(Busy("the monitor ends", "", "mark the frame again"))
            self._waiting.clear()
            self._room.notify_all()
        self._thread.join(CLOSE_S)

    def _put(self, kept: _Kept) -> bool:
        with self._room:
            if self._is_closed or len(self._waiting) >= WAITING:
                return False
            self._waiting.append(kept)
            self._room.notify_all()
        return True

    def _go_on(self) -> None:
        while True:
            with self._room:
                self._room.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                kept = self._waiting.popleft()
            try:
                url = self._keep(kept)
            except Exception as error:  # noqa: BLE001 - the thread must go on, and who waits is told
                logger.warning("a frame was not kept in %s: %s", kept.path, error)
                kept.done.set_exception(error)
                self._count("left-out")
            else:
                kept.done.set_result(url)
                self._count("kept")

    def _keep(self, kept: _Kept) -> str:
        url = f"{self._url}/{kept.path}"
        if kept.is_marked and self._has(kept):
            return url
        if kept.session not in self._counts:
            self._counts[kept.session] = self._stored(kept)
        count = self._counts[kept.session]
        if count >= kept.most:
            self._full[kept.session] = kept.most
            raise Conflict(f"{kept.session} has {count} frames", f"at most {kept.most}", "")
        found = self._opened(url, kept)
        found.append(kept.frame.pixels_yx[None], None, kept.frame.pixel_size_pm)
        self._counts[kept.session] += 1
        try:
            self._note(kept, len(found))
        except ManybeamError as error:  # the frame itself is kept
            logger.warning("a frame of %s has no facts: %s", kept.path, error)
        return url

    def _has(self, kept: _Kept) -> bool:
        """Return whether a frame of that name is in the set of its session and shape."""
        name = kept.facts.get("frame_id")
        return name is not None and any(one.get("frame_id") == name for one in self._notes(kept))

    def _stored(self, kept: _Kept) -> int:
        """Return how many frames of a session were kept by a process before this one."""
        folder, _, name = kept.session.rpartition("/")
        named = (one for one in list_framesets(f"{self._url}/{folder}") if f"/{name}" in one)
        return sum(len(FrameSet.open(url)) for url in named)

    def _opened(self, url: str, kept: _Kept) -> FrameSet:
        try:
            return FrameSet.open(url)
        except UnknownFrameSet:
            rows, columns = kept.frame.pixels_yx.shape
            condition = Condition.model_validate({"id": kept.condition, "origin": "measured"})
            return FrameSet.create(url, condition, (rows, columns))

    def _note(self, kept: _Kept, count: int) -> None:
        """Add what is known of the last frame of a set to the list beside it."""
        store, key = self._list(kept)
        known = self._notes(kept)
        # One line a frame, also if a process ended before it noted its last one.
        known = [*known[: count - 1], *[{}] * (count - 1 - len(known)), dict(kept.facts)]
        store.put(key, json.dumps(known, indent=1, default=_plain).encode())

    def _notes(self, kept: _Kept) -> list[dict[str, Any]]:
        store, key = self._list(kept)
        try:
            found = json.loads(store.get(key))
        except (NotFound, ValueError):
            return []
        # The list is for people too, who may have changed it.
        rows = found if isinstance(found, list) else []
        return [one if isinstance(one, dict) else {} for one in rows]

    def _list(self, kept: _Kept) -> tuple[Store, str]:
        folder, _, name = kept.path.rpartition("/")
        return open_store(f"{self._url}/{folder}"), f"{name}.json"


def _kept(
    kind: Kind,
    instrument: str,
    session_id: int,
    frame: Frame,
    facts: Mapping[str, Any],
    most: int,
) -> _Kept:
    rows, columns = frame.pixels_yx.shape
    session = f"frames/{kind}/{instrument}/session-{session_id}-"
    path = f"{session}{rows}x{columns}"
    return _Kept(path, f"{kind}-frames", frame, facts, most, session, kind == "marked")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)

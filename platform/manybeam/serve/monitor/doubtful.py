"""Doubtful frames of instruments, kept for adaptation as FrameSets.

Each FrameSet is written once, whole, and never changed: an adaptation pins its digest. So frames
wait in memory until there are enough for one; a round of adaptation uses as many. When an
instrument has all that its session allows, further frames are left out, and a person decides what
to delete: to delete the oldest could take the frames of a running adaptation away.
"""

import json
import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from manybeam.data.frames import FrameSet, list_framesets
from manybeam.data.io.frame import Frame
from manybeam.data.store import open_store
from manybeam.db.tokens import check_instrument_id
from manybeam.errors import Conflict, ManybeamError
from manybeam.settings import settings

logger = logging.getLogger(__name__)

FOLDER = "frames/doubtful"
AT_ONCE = 16  # frames of a FrameSet
WAITING = 64  # frames in the queue
MOST_GROUPS = 32  # of frames that wait for their FrameSet; each has fewer than 16
FACTS = "doubtful.json"  # beside the frames: which frame each is
Group = tuple[str, tuple[int, int], float | None, str]


@dataclass(frozen=True, eq=False)
class _Doubtful:
    """One frame that waits."""

    instrument: str
    frame: Frame
    facts: Mapping[str, Any]
    most: int


class DoubtfulFrames:
    """Keeps frames in a thread of its own; `add` never waits and never fails for the store.

    Attributes:
        dropped: frames that were left out: too many wait, no condition, full, or no store.
        kept: frames that were written.
    """

    def __init__(self) -> None:
        self.dropped, self.kept = 0, 0
        self._queue: queue.Queue[_Doubtful | None] = queue.Queue(WAITING)
        self._groups: dict[Group, list[_Doubtful]] = {}
        self._counts: dict[str, int] = {}  # frames of an instrument in the store
        self._thread = threading.Thread(target=self._run, name="doubtful", daemon=True)
        self._thread.start()

    def add(self, instrument: str, frame: Frame, facts: Mapping[str, Any], *, most: int) -> None:
        """Keep a frame, for which the session of the instrument has consent.

        Args:
            instrument: its id.
            frame: the frame, with its known condition.
            facts: session, frame_id, time, version, drift score; JSON.
            most: frames of the instrument that are kept at most; see `keep_doubtful`.

        Raises:
            InvalidInput: this cannot be the id of an instrument.
        """
        check_instrument_id(instrument)
        if most <= 0:
            return
        try:
            self._queue.put_nowait(_Doubtful(instrument, frame, facts, most))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write the frames that wait, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (one := self._queue.get()) is not None:
            self._take(one)
        for group in list(self._groups):
            self._write(group)

    def _take(self, one: _Doubtful) -> None:
        frame = one.frame
        if frame.condition is None:
            self.dropped += 1
            return
        rows, columns = frame.pixels_yx.shape
        size = frame.pixel_size_pm
        group = (one.instrument, (rows, columns), size, frame.condition.digest)
        if group not in self._groups and len(self._groups) >= MOST_GROUPS:
            self._write(next(iter(self._groups)))
        waiting = self._groups.setdefault(group, [])
        waiting.append(one)
        if len(waiting) >= min(AT_ONCE, one.most):
            self._write(group)

    def _write(self, group: Group) -> None:
        many = self._groups.pop(group)
        try:
            written = self._written(group, many)
        except (ManybeamError, TypeError, ValueError) as error:
            logger.warning("doubtful frames were not kept", extra={"why": str(error)})
            self._counts.pop(group[0], None)
            written = 0
        self.kept += written
        self.dropped += len(many) - written

    def _written(self, group: Group, many: list[_Doubtful]) -> int:
        instrument, shape, size, _ = group
        if instrument not in self._counts:
            self._counts[instrument] = _stored(instrument)
        room = max(many[-1].most - self._counts[instrument], 0)
        many, condition = many[:room], many[0].frame.condition
        if not many or condition is None:
            return 0
        facts = json.dumps([dict(one.facts) for one in many]).encode()
        frames_nyx = np.stack([one.frame.pixels_yx for one in many])
        number = self._counts[instrument]
        while True:
            try:
                url = f"{_folder(instrument)}/{number:06d}"
                made = FrameSet.write(url, condition, shape, [(frames_nyx, None, size)])
                break
            except Conflict:  # another process wrote one of that number
                number += 1
        open_store(made.url).put(FACTS, facts)
        self._counts[instrument] += len(many)
        return len(many)


def _folder(instrument: str) -> str:
    return f"{settings().store_url}/{FOLDER}/{instrument}"


def _stored(instrument: str) -> int:
    return sum(len(FrameSet.open(url)) for url in list_framesets(_folder(instrument)))

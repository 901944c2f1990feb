"""Frames kept on disk while the service is away, and their answers beside them.

A frame is `NAME.npy` with `NAME.json`; its answer is `NAME.npz`. The json is written last, so a
frame without one is half-written and is ignored. Names hold only letters, digits and `-`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, cast

import numpy as np

from manybeam_client.frame import FrameRequest, checked_frame, raw_body

if TYPE_CHECKING:
    from manybeam_client.answer import Answer
    from manybeam_client.network.outage import Outage
    from manybeam_client.stats import Stats

logger = logging.getLogger("manybeam_client")

OWN = "[0-9]*T[0-9]*-????????"  # names of ours; the folder may hold other files
OFF_S = 30.0  # without spooling after a write that failed
REST_S = 0.05  # at least, between two frames of the spool
LONGEST_REST_S = 30.0  # if the service cannot take them
# The service may answer these frames later; all other problems will be the same next time.
_LATER = (
    "offline", "connection", "tls", "deadline", "busy", "unavailable", "not-allowed", "unreadable",
    "failed",
)  # fmt: skip


class Spool:
    """A folder of frames that wait; safe to use from several threads.

    Frames of an earlier process are taken up. A disk that is full or cannot be written only
    switches the spool off for a while.

    Args:
        folder: where; it is made.
        limit_mb: largest size of the waiting frames; later ones are not spooled.
        stats: counts.
    """

    def __init__(self, folder: Path, limit_mb: float, stats: Stats) -> None:
        self._folder, self._stats = folder, stats
        self._limit = int(limit_mb * 2**20)
        self._lock, self.filled = threading.Lock(), threading.Event()
        self._off_until_s = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._used = sum(_size(path) for path in folder.glob(OWN + ".npy"))
        except OSError as error:
            self._used = 0
            self._switch_off(error)
        self.filled.set()

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return len(self._entries())

    def put(self, request: FrameRequest) -> bool:
        """Write a frame; return whether that was possible."""
        with self._lock:
            is_on = time.monotonic() >= self._off_until_s
            is_written = is_on and self._has_room(request) and self._written(request)
        self._stats.count("spooled" if is_written else "not_spooled")
        if is_written:
            self.filled.set()
        return is_written

    def oldest(self) -> tuple[Path, FrameRequest] | None:
        """Return the frame that waits longest; None if none does. Unreadable ones are set aside."""
        for entry in self._entries():
            try:
                return entry, _read(entry)
            except FileNotFoundError:  # another process of this folder was faster
                continue
            except OSError as error:  # a network drive; the next look may read it
                logger.warning("%s of the spool is tried again: %s", entry.stem, error)
            except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
                self.set_aside(entry, f"the frame cannot be read: {error}")
        return None

    def settle(self, entry: Path, answer: Answer) -> None:
        """Write an answer beside its frame, then remove the frame."""
        temporary = entry.with_suffix(".npz.part")
        with temporary.open("wb") as file:
            np.savez(file, **cast("dict[str, Any]", answer.arrays))
        temporary.replace(entry.with_suffix(".npz"))
        self._remove(entry)

    def set_aside(self, entry: Path, why: str) -> None:
        """Keep a frame that will never be answered, with the reason beside it."""
        logger.warning("%s of the spool is set aside: %s", entry.stem, why)
        try:
            entry.with_suffix(".error.txt").write_text(why + "\n", encoding="utf-8")
            entry.replace(entry.with_suffix(".refused"))
        except OSError as error:
            self._switch_off(error)

    def _entries(self) -> list[Path]:
        try:
            return sorted(self._folder.glob(OWN + ".json"))
        except OSError:  # a network drive that is away
            return []

    def _has_room(self, request: FrameRequest) -> bool:
        return self._used + request.byte_count <= self._limit

    def _written(self, request: FrameRequest) -> bool:
        now = datetime.now(timezone.utc)
        name = f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
        entry = self._folder / (name + ".json")
        facts = {
            "ref": request.ref,
            "frame_id": request.frame_id,
            "query": dict(request.query),
            "spooled": now.isoformat(),
        }
        try:
            _write_array(entry.with_suffix(".npy"), request)
            temporary = entry.with_suffix(".json.part")
            temporary.write_text(json.dumps(facts), encoding="utf-8")
            temporary.replace(entry)
        except OSError as error:
            _drop(entry.with_suffix(".npy.part"), entry.with_suffix(".json.part"))
            _drop(entry.with_suffix(".npy"))
            self._switch_off(error)
            return False
        self._used += _size(entry.with_suffix(".npy"))
        return True

    def _switch_off(self, error: OSError) -> None:
        self._off_until_s = time.monotonic() + OFF_S
        logger.warning("nothing is spooled to %s for %d s: %s", self._folder, OFF_S, error)

    def _remove(self, entry: Path) -> None:
        array = entry.with_suffix(".npy")
        size = _size(array)
        _drop(entry, array)  # the json first: without it the array counts as half-written
        with self._lock:
            self._used = max(self._used - size, 0)


class SpoolSender:
    """Sends the frames of a spool one at a time in a thread, while no other frame waits.

    Args:
        spool: the frames.
        outage: whether the service is away.
        ask: returns the answer for a frame.
        is_quiet: returns whether no live frame waits.
    """

    def __init__(
        self,
        spool: Spool,
        outage: Outage,
        ask: Callable[[FrameRequest], Answer],
        is_quiet: Callable[[], bool],
    ) -> None:
        self._spool, self._outage, self._ask, self._is_quiet = spool, outage, ask, is_quiet
        self._ended, self._rest_s = threading.Event(), REST_S
        self._thread = threading.Thread(target=self._run, name="manybeam-spool", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the frame that is under way."""
        self._ended.set()
        self._spool.filled.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._spool.filled.wait()
            if not self._outage.wait_until_back(1.0) or not self._is_quiet():
                self._ended.wait(REST_S)
                continue
            self._spool.filled.clear()
            found = self._spool.oldest()
            if found is not None and not self._ended.is_set():
                self._spool.filled.set()
                self._one(*found)

    def _one(self, entry: Path, request: FrameRequest) -> None:
        begun_s = time.monotonic()
        answer = self._ask(request)
        try:
            if answer:
                self._spool.settle(entry, answer)
                self._rest_s = REST_S
            elif answer.error is not None and answer.error.kind not in _LATER:
                self._spool.set_aside(entry, str(answer.error))
            else:
                self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
        except OSError as error:
            logger.warning("an answer could not be written to the spool: %s", error)
            self._rest_s = LONGEST_REST_S
        # Half of the time is for others.
        self._ended.wait(max(self._rest_s, time.monotonic() - begun_s))


def _write_array(path: Path, request: FrameRequest) -> None:
    shape = [int(side) for side in request.shape.split(",")]
    array = np.frombuffer(request.body, np.dtype(request.dtype)).reshape(shape)
    temporary = path.with_suffix(".npy.part")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)


def _read(entry: Path) -> FrameRequest:
    facts: dict[str, Any] = json.loads(entry.read_text(encoding="utf-8"))
    frame_yx = checked_frame(np.load(str(entry.with_suffix(".npy")), allow_pickle=False))
    body, dtype, shape = raw_body(frame_yx)
    query = {str(name): str(value) for name, value in facts["query"].items()}
    names = str(facts["ref"]), str(facts["frame_id"])
    return FrameRequest(*names, body=body, dtype=dtype, shape=shape, query=query)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _drop(*paths: Path) -> None:
    for path in paths:
        try:
            path.unlink()
        except OSError:  # it is not there, or another process of this folder was faster
            continue

"""Frames kept on disk while the service is away, and their answers beside them.

A frame is `NAME.npy` with `NAME.json`; its answer is `NAME.npz`. The json is written last, so a
frame without one is half-written and is ignored. Names hold only letters, digits and `-`.
Several processes may use one folder: who sends a frame holds `NAME.json.lock` meanwhile.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, cast

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
LOOK_S = 5.0  # at most, until a frame is found that another process left
STALE_S = 120.0  # then who holds a lock was killed: one frame takes 60 s at most
ORPHAN_S = 3600.0  # then a half-written file is not under way
MOST_FAILURES = 10  # of the service at one frame
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
            self._remove_orphans()
        except OSError as error:
            self._switch_off(error)
        self._used, self._counted_s = self._counted(), time.monotonic()
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

    def take(self, tries: Mapping[Path, int]) -> tuple[Path, FrameRequest] | None:
        """Return a frame and lock it, until `release`; None if none is free.

        It is the one that was tried least, and of these the one that waits longest: a frame that
        fails each time does not hold up the others. Unreadable ones are set aside.

        Args:
            tries: how often each one was tried; 0 if left out.

        Raises:
            OSError: no file can be made in the folder.
        """
        entries = sorted(self._entries(), key=lambda one: (tries.get(one, 0), one.name))
        for entry in entries:
            if not _is_locked_now(entry):
                continue
            request = self._request(entry)
            if request is not None:
                return entry, request
            self.release(entry)
        return None

    def release(self, entry: Path) -> None:
        """Let other processes have a frame."""
        _drop(_lock(entry))

    def _request(self, entry: Path) -> FrameRequest | None:
        try:
            return _read(entry)
        except FileNotFoundError:  # another process of this folder was faster
            return None
        except OSError as error:  # a network drive; the next look may read it
            logger.warning("%s of the spool is tried again: %s", entry.stem, error)
        except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            self.set_aside(entry, f"the frame cannot be read: {error}")
        return None

    def settle(self, entry: Path, answer: Answer) -> None:
        """Write an answer beside its frame, then remove the frame."""
        path = entry.with_suffix(".npz")
        temporary = _part(path)
        try:
            with temporary.open("wb") as file:
                np.savez(file, **cast("dict[str, Any]", answer.arrays))
            temporary.replace(path)
        except OSError:
            _drop(temporary)
            raise
        size = _size(entry.with_suffix(".npy"))
        # The json last: who sees no entry finds nothing else of it either.
        _drop(entry.with_suffix(".npy"), _lock(entry), entry)
        self._free(size)

    def set_aside(self, entry: Path, why: str) -> None:
        """Keep a frame that will never be answered, with the reason beside it."""
        logger.warning("%s of the spool is set aside: %s", entry.stem, why)
        array = entry.with_suffix(".npy")
        size = _size(array)
        try:
            entry.with_suffix(".error.txt").write_text(why + "\n", encoding="utf-8")
            if array.exists():
                array.replace(entry.with_suffix(".refused.npy"))
            self._free(size)
            _drop(_lock(entry))
            entry.replace(entry.with_suffix(".refused"))
        except FileNotFoundError:  # another process of this folder was faster
            return
        except OSError as error:
            self._switch_off(error)

    def _entries(self) -> list[Path]:
        try:
            return sorted(self._folder.glob(OWN + ".json"))
        except OSError:  # a network drive that is away
            return []

    def _has_room(self, request: FrameRequest) -> bool:
        # Other processes of this folder send frames too, so count again; that takes a while.
        is_full = self._used + request.byte_count > self._limit
        if is_full and time.monotonic() > self._counted_s + LOOK_S:
            self._used, self._counted_s = self._counted(), time.monotonic()
        return self._used + request.byte_count <= self._limit

    def _counted(self) -> int:
        return sum(_size(entry.with_suffix(".npy")) for entry in self._entries())

    def _remove_orphans(self) -> None:
        """Remove what killed processes left behind; what is younger may be under way."""
        for path in list(self._folder.glob(OWN + ".*")):
            name, _, kind = path.name.partition(".")
            entry = self._folder / (name + ".json")
            is_alone = kind in ("npy", "json.lock") and not entry.exists()
            is_alone = is_alone or (kind == "json" and not entry.with_suffix(".npy").exists())
            if (is_alone or kind.endswith("part")) and _age_s(path) > ORPHAN_S:
                _drop(path)

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
            temporary = _part(entry)
            try:
                temporary.write_text(json.dumps(facts), encoding="utf-8")
                temporary.replace(entry)
            except OSError:
                _drop(temporary)
                raise
        except OSError as error:
            _drop(entry.with_suffix(".npy"))
            self._switch_off(error)
            return False
        self._used += _size(entry.with_suffix(".npy"))
        return True

    def _switch_off(self, error: OSError) -> None:
        self._off_until_s = time.monotonic() + OFF_S
        logger.warning("nothing is spooled to %s for %d s: %s", self._folder, OFF_S, error)

    def _free(self, size: int) -> None:
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
        self._tries: Counter[Path] = Counter()
        self._failures: Counter[Path] = Counter()
        self._thread = threading.Thread(target=self._run, name="manybeam-spool", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the frame that is under way."""
        self._ended.set()
        self._spool.filled.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._spool.filled.wait(LOOK_S)
            if not self._outage.wait_until_back(1.0) or not self._is_quiet():
                self._ended.wait(REST_S)
                continue
            self._spool.filled.clear()
            found = None if self._ended.is_set() else self._taken()
            if found is not None:
                self._spool.filled.set()
                self._one(*found)

    def _taken(self) -> tuple[Path, FrameRequest] | None:
        try:
            return self._spool.take(self._tries)
        except OSError as error:
            logger.warning("no frame of the spool can be sent now: %s", error)
            return None

    def _one(self, entry: Path, request: FrameRequest) -> None:
        begun_s = time.monotonic()
        try:
            self._settle(entry, self._ask(request))
        except OSError as error:
            logger.warning("an answer could not be written to the spool: %s", error)
            self._rest_s = LONGEST_REST_S
        finally:
            self._spool.release(entry)
        # Half of the time is for others.
        self._ended.wait(max(self._rest_s, time.monotonic() - begun_s))

    def _settle(self, entry: Path, answer: Answer) -> None:
        """Write an answer, or decide what a frame without one waits for."""
        error = answer.error
        if error is None:
            self._spool.settle(entry, answer)
            self._rest_s = REST_S
            self._forget(entry)
            return
        self._failures[entry] += error.kind == "failed"
        if error.kind in _LATER and self._failures[entry] < MOST_FAILURES:
            self._tries[entry] += 1
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
        else:
            self._spool.set_aside(entry, str(error))
            self._forget(entry)

    def _forget(self, entry: Path) -> None:
        self._tries.pop(entry, None)
        self._failures.pop(entry, None)


def _write_array(path: Path, request: FrameRequest) -> None:
    shape = [int(side) for side in request.shape.split(",")]
    array = np.frombuffer(request.body, np.dtype(request.dtype)).reshape(shape)
    temporary = _part(path)
    try:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        temporary.replace(path)
    except OSError:
        _drop(temporary)
        raise


def _read(entry: Path) -> FrameRequest:
    facts: dict[str, Any] = json.loads(entry.read_text(encoding="utf-8"))
    frame_yx = checked_frame(np.load(str(entry.with_suffix(".npy")), allow_pickle=False))
    body, dtype, shape = raw_body(frame_yx)
    query = {str(name): str(value) for name, value in facts["query"].items()}
    names = str(facts["ref"]), str(facts["frame_id"])
    return FrameRequest(*names, body=body, dtype=dtype, shape=shape, query=query)


def _part(path: Path) -> Path:
    """Return where to write a file first; no other process writes there."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")


def _lock(entry: Path) -> Path:
    return entry.with_name(entry.name + ".lock")


def _is_locked_now(entry: Path) -> bool:
    """Lock an entry; return whether that was possible.

    Two processes that find the same stale lock may both have it. Then the frame is sent twice,
    under one name, and counts once.
    """
    lock = _lock(entry)
    if _age_s(lock) > STALE_S:
        _drop(lock)
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _age_s(path: Path) -> float:
    """Return the time since a file was changed [s]; 0 if it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


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

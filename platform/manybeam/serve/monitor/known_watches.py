"""Drift watches by the conditions that versions know, made once in a process of their own.

Simulating the frames needs torch and many seconds of processor time; the process of the monitor
must not wait, nor keep that memory. The process ends after some time without work.
"""

import hashlib
import json
import logging
import os
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loky.process_executor import ProcessPoolExecutor

from manybeam.data.disk import write_files
from manybeam.errors import Corrupt, InvalidInput
from manybeam.predictor.stream.drift import FORMAT, DriftWatch
from manybeam.settings import settings

if TYPE_CHECKING:
    from manybeam.spec import Library
    from manybeam.zoo.matrix import Matrix

logger = logging.getLogger(__name__)

COUNT = 400  # frames over all conditions, as `manybeam watch` takes
SHAPE = (128, 128)
IDLE_S = 120.0  # then the process ends
AGAIN_S = 300.0  # after a failure
MOST_KEPT = 50  # watches on the disk, of 0.3 MB each
Key = tuple[str, bool]


class KnownWatches:
    """The watches of all versions; `get` never waits.

    Args:
        count: simulated frames over all conditions.
    """

    def __init__(self, count: int = COUNT) -> None:
        self._count, self._lock = count, threading.Lock()
        self._made: dict[Key, DriftWatch | None] = {}
        self._under_way: dict[Key, Future[str]] = {}
        self._again_at: dict[Key, float] = {}
        self._executor: ProcessPoolExecutor | None = None

    def get(self, ref: str, *, has_pixel_size: bool) -> DriftWatch | None:
        """Return the watch of a version, which sessions share; None while there is none.

        It is None while the watch is being made, after a failure, and if the version knows no
        condition that can be simulated.

        Args:
            ref: the version, as `graphene@3`.
            has_pixel_size: whether the watched frames have a pixel size.
        """
        key = (ref, has_pixel_size)
        with self._lock:
            if key in self._made:
                return self._made[key]
            if key not in self._under_way and time.monotonic() >= self._again_at.get(key, 0.0):
                self._begin(key)
        return None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(kill_workers=True)

    def _begin(self, key: Key) -> None:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(1, timeout=IDLE_S, initializer=_be_humble)
        folder = settings().cache / "watches"
        try:
            making = self._executor.submit(make_state, *key, str(folder), self._count)
        except RuntimeError as error:  # its process died while it had nothing to do
            logger.warning("known conditions of %s wait: %s", key[0], error)
            self._executor, self._again_at[key] = None, time.monotonic() + AGAIN_S
            return
        self._under_way[key] = making
        # In a thread of its own: the callback may come at once, while the lock is held.
        name = f"watch of {key[0]}"
        threading.Thread(target=self._wait, args=(key, making), name=name, daemon=True).start()

    def _wait(self, key: Key, making: "Future[str]") -> None:
        try:
            state = making.result()
            found = DriftWatch.restore(state) if state else None
        except Exception as error:  # noqa: BLE001 - of another process; counted as a failure
            self._note_failure(key, error)
            return
        with self._lock:
            self._made[key] = found
            self._under_way.pop(key, None)

    def _note_failure(self, key: Key, error: Exception) -> None:
        with self._lock:
            is_first = key not in self._again_at
            self._again_at[key] = time.monotonic() + AGAIN_S
            self._under_way.pop(key, None)
            # The process may have died; one that lives ends by itself when it is idle.
            self._executor = None
        if is_first:
            logger.warning("known conditions of %s could not be simulated: %s", key[0], error)


def make_state(ref: str, has_pixel_size: bool, folder: str, count: int) -> str:  # noqa: FBT001 - loky passes it by place
    """Return the state of the watch of a version: kept on the disk, or made now.

    It is empty if the version knows no condition that can be simulated.

    Raises:
        ManybeamError: the zoo cannot be read, or the file cannot be written.
    """
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

    matrix, library = Zoo().matrix(ref), Library(settings().zoo)
    name = _digest(matrix, library, count, has_pixel_size=has_pixel_size)
    path = Path(folder) / f"{name}.json"
    with suppress(OSError, UnicodeDecodeError, Corrupt):
        state = path.read_text()
        DriftWatch.restore(state)
        path.touch()
        return state
    return _made(matrix, library, path, count, has_pixel_size=has_pixel_size)


def _made(
    matrix: "Matrix", library: "Library", path: Path, count: int, *, has_pixel_size: bool
) -> str:
    from manybeam.predictor.stream.advice import known_frames

    try:
        known = known_frames(matrix, library, SHAPE, has_pixel_size=has_pixel_size, count=count)
    except InvalidInput:
        return ""
    state = DriftWatch(known.features_ns, known.condition_n.tolist()).state()
    write_files({path: state.encode()})
    _prune(path.parent)
    return state


def _digest(matrix: "Matrix", library: "Library", count: int, *, has_pixel_size: bool) -> str:
    """Return the name of all that decides a watch: conditions, their F1, simulator, features."""
    from manybeam.data.simulation import SIMULATOR
    from manybeam.learn.analysis.frame_features import FEATURES
    from manybeam.predictor.condition_distance import comparable
    from manybeam.zoo.matrix import ENSEMBLE

    rows = [
        [one.id, one.digest, *(matrix.value(m, one.id) for m in (ENSEMBLE, *matrix.members))]
        for one in comparable(matrix, library)
    ]
    content = [FORMAT, FEATURES, SIMULATOR, count, SHAPE, has_pixel_size, rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _prune(folder: Path) -> None:
    with suppress(FileNotFoundError):  # another process may delete them too
        oldest_last = sorted(folder.glob("*.json"), key=lambda one: -one.stat().st_mtime)
        for path in oldest_last[MOST_KEPT:]:
            path.unlink()


def _be_humble() -> None:
    """Give way to everything else, and end with the process that started this one."""
    import psutil

    os.nice(19)

    def wait() -> None:
        if (parent := psutil.Process().parent()) is not None:
            parent.wait()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()

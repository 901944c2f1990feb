"""Drift watches of the conditions that versions know, made once and kept on this machine."""

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from manybeam.data.simulation import SIMULATOR
from manybeam.errors import Corrupt
from manybeam.predictor.stream.drift import FORMAT, DriftWatch

logger = logging.getLogger(__name__)

FRAMES = 400  # simulated for a watch, over all conditions
HELD = 32  # watches in memory, of 0.3 MB each
FILES = 100  # on disk
FRESH_S = 24 * 3600.0  # then it is made anew: the version may have been measured elsewhere since
AGAIN_S = 60.0  # before it is tried again, after it failed
LIMIT_S = 600.0  # for one
_Key = tuple[str, bool]


class KnownWatches:
    """Watches by version; safe to use from several threads.

    Args:
        folder: where they are kept.
        frames: simulated frames for each, at least 60 for each condition.
        clock: seconds since 1970, as files have them.
    """

    def __init__(
        self, folder: Path, frames: int = FRAMES, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._frames, self._clock = folder, frames, clock
        self._held: OrderedDict[_Key, DriftWatch | None] = OrderedDict()
        self._due: dict[_Key, float] = {}  # when one that is not held is tried again
        self._lock, self._is_closed = threading.Lock(), False
        self._making = ThreadPoolExecutor(1, thread_name_prefix="known-frames")
        self._process: subprocess.Popen[bytes] | None = None

    def get(self, ref: str, *, has_pixel_size: bool) -> DriftWatch | None:
        """Return the watch of a version; None while it is made, or if it knows no condition.

        Args:
            ref: the version, as `graphene@3`.
            has_pixel_size: whether the frames to be watched have a pixel size.
        """
        key = ref, has_pixel_size
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            if self._is_closed or self._clock() < self._due.get(key, 0.0):
                return None
            self._due[key] = self._clock() + LIMIT_S + AGAIN_S
            self._making.submit(self._find, key)
        return None

    def close(self) -> None:
        """End the process that makes one."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()
        self._making.shutdown(wait=True, cancel_futures=True)

    def _find(self, key: _Key) -> None:
        """Read a watch from disk, or have it made."""
        path = self._path(key)
        try:
            found = self._read(path)
            if found is None:
                self._make(key, path)
                found = self._read(path)
        except Exception:  # the thread must go on for other versions
            logger.exception("the known frames of %s were not made", key[0])
            found = None
        with self._lock:
            if found is None:
                self._due[key] = self._clock() + AGAIN_S
                return
            self._held[key] = found[0]
            self._due.pop(key, None)
            while len(self._held) > HELD:
                self._held.popitem(last=False)

    def _read(self, path: Path) -> tuple[DriftWatch | None] | None:
        """Return what a file says; None if there is none, or it is old or broken."""
        try:
            if self._clock() > path.stat().st_mtime + FRESH_S:
                return None
            state = json.loads(path.read_text())["state"]
            return (None if state is None else DriftWatch.restore(state),)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, Corrupt) as error:
            logger.warning("%s is made anew: %s", path.name, error)
            return None

    def _make(self, key: _Key, path: Path) -> None:
        """Have a watch made by another process."""
        ref, has_pixel_size = key
        size = "sized" if has_pixel_size else "unsized"
        argv = [sys.executable, "-m", "manybeam.serve.monitor.known_frames"]
        argv += [ref, size, str(self._frames), str(path)]
        begun_s = time.monotonic()
        with tempfile.TemporaryFile() as said:
            with self._lock:
                if self._is_closed:
                    return
                self._process = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
                )
            code = self._ended()
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
        if code == 0:
            logger.info("known frames of %s made in %.0f s", ref, time.monotonic() - begun_s)
            self._prune()
        elif not self._is_closed:
            logger.warning("the known frames of %s were not made: %s", ref, last[:500])

    def _ended(self) -> int:
        """Wait for the process, and return its exit code; one that takes too long is killed."""
        process = self._process
        assert process is not None  # noqa: S101 - it was just started
        with process:  # closes its input
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        with self._lock:
            self._process = None
        return process.returncode

    def _path(self, key: _Key) -> Path:
        named = json.dumps([*key, self._frames, SIMULATOR, FORMAT])
        return self._folder / f"known-{hashlib.sha256(named.encode()).hexdigest()[:24]}.json"

    def _prune(self) -> None:
        files = list(self._folder.glob("known-*.json"))
        if len(files) > FILES:
            with suppress(FileNotFoundError):  # another process may delete them too
                for path in sorted(files, key=lambda one: one.stat().st_mtime)[:-FILES]:
                    path.unlink()

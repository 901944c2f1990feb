"""Limits on what reading a file may cost, and the faults of files in plain words.

A reader compares the header with the size of the file before it allocates memory. Its time is
bounded too, because a damaged file may lead a library in circles.
"""

import ctypes
import errno
import math
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manybeam.errors import TooLarge
from manybeam.settings import settings

STACK_FRAMES = 16  # most pixels of a stack, in largest frames
RATIO = 1100  # deflate, the best compression of usual files, reaches about 1030 at most
JPEG_RATIO = 512  # of the best JPEG, one bit for the 64 pixels of a block
STACK_RATIO = 100  # most for more pixels than one largest frame; only sparse counts exceed it
PATIENCE_S = 8.0  # for the smallest file, on a busy machine
BYTES_PER_S = 5e6  # of the slowest disk
BUSY = 8  # times longer reading may take where it gets no processor time
_OF_THE_DISK = {errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ESTALE, errno.ETIMEDOUT}
_AGAIN_S = 1.0  # a library may swallow the first request to stop


class FileFault(ValueError):
    """What is wrong with a file, in words for its owner."""


class _Stopped(BaseException):
    """Stops a reader; not an Exception, because libraries catch those."""


def patience_s(path: Path) -> float:
    """Return the time that reading a file may take."""
    return PATIENCE_S + path.stat().st_size / BYTES_PER_S


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Stop the body with a FileFault if it is still running after some seconds, in any thread.

    It stops Python code between two instructions. So it cannot stop one call of a C library: what
    reads HDF5, the only one that never returned, runs in a process of its own.
    """
    lock, done, reader = threading.Lock(), threading.Event(), threading.get_ident()
    was_stopped = threading.Event()

    began, clock = time.monotonic(), _clock_of(reader)
    used = time.clock_gettime(clock)

    def stop() -> None:
        pause = seconds
        while not done.wait(pause):
            pause = _AGAIN_S
            with lock:
                if done.is_set():  # the thread may have ended, and its clock with it
                    return
                is_waiting = time.clock_gettime(clock) - used < seconds / 2
                if not is_waiting or time.monotonic() - began >= BUSY * seconds:
                    was_stopped.set()
                    _raise_in(reader, _Stopped)

    try:
        try:
            threading.Thread(target=stop, daemon=True, name="deadline of a reader").start()
            yield
        finally:
            with lock:
                done.set()
            if was_stopped.is_set():
                _take_back()
    except _Stopped:
        done.set()
        _take_back()
        raise FileFault(f"reading does not end within {seconds:.0f} s: it is damaged") from None


def _clock_of(thread: int) -> int:
    """Return the clock of the processor time of a thread; of the process where there is none."""
    if sys.platform == "linux":
        return time.pthread_getcpuclockid(thread)
    return time.CLOCK_PROCESS_CPUTIME_ID


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Let a thread raise an error at its next instruction, instead of one that it has not yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _take_back() -> None:
    """Let nothing be raised in this thread any more.

    Python can take an error back (NULL), but then it looks for one before each instruction for
    ever, which is slow, and endless under a debugger or a profiler. So the error is received.
    """
    try:
        _raise_in(threading.get_ident(), _Stopped)
        while True:
            pass
    except _Stopped:
        return


def cause_of(error: Exception) -> str:
    """Return an error of a library in words for the owner of the file.

    The words of libraries are about their own code; they stay in the traceback.
    """
    if isinstance(error, FileFault):
        return str(error)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK and error.strerror:
        return error.strerror.lower()
    if isinstance(error, MemoryError):
        return "it needs more memory than this machine can give"
    if isinstance(error, EOFError | OSError | struct.error):
        return "it is cut short or damaged"
    return "it is damaged: its parts contradict each other"


def check_declared(
    shape: tuple[int, ...], itemsize: float, stored_bytes: int, ratio: int = 1
) -> None:
    """Refuse an array that its file cannot hold, before memory is allocated.

    Args:
        shape: shape in the header.
        itemsize: bytes of one pixel.
        stored_bytes: bytes of the array in the file.
        ratio: greatest possible ratio of compression.

    Raises:
        FileFault: it is empty, or the file is too short for it.
        TooLarge: it has more pixels than the settings allow.
    """
    if not shape or min(shape) < 1:
        raise FileFault(f"it declares an empty image of shape {tuple(shape)}")
    most, count = settings().max_frame_px, math.prod(shape)
    if count * itemsize > stored_bytes * ratio:
        raise FileFault(
            f"it declares {' x '.join(map(str, shape))} pixels, "
            f"which {stored_bytes} bytes cannot hold: cut short or damaged"
        )
    if math.prod(shape[-2:]) > most or count > STACK_FRAMES * most:
        raise TooLarge(
            f"{' x '.join(map(str, shape))} pixels",
            f"at most {most} px in a frame and {STACK_FRAMES} times that in a stack (max_frame_px)",
            "crop the frame, split the stack, or raise MANYBEAM_MAX_FRAME_PX",
        )
    if count > most and count * itemsize > stored_bytes * STACK_RATIO:
        raise TooLarge(
            f"{' x '.join(map(str, shape))} pixels packed into {stored_bytes} bytes",
            f"above {most} px (max_frame_px) at most {STACK_RATIO} bytes may unfold from one",
            "if the file is right, as sparse counts are, raise MANYBEAM_MAX_FRAME_PX to its pixels",
        )

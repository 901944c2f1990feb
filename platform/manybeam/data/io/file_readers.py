"""Instrument files of strangers, read in processes that may be killed.

A damaged file may crash a library, hold it for ever or fill the memory, where no exception reaches.
So each reader is a process of its own that has nothing but the readers of `data.io`: no networks,
no secrets of the environment, limits of memory and processor time. A file that ends its process is
refused; the next file gets a new one. Readers stay, because a start takes longer than a file.

While it is read, a file lies under its own name in a folder of its own. A reader is asked by a
line of JSON on its standard input. It answers by a line of JSON, then the pixels: nothing that it
says is believed before it is checked, and nothing is unpickled.
"""

import json
import math
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from manybeam import errors
from manybeam.data.io.emd import read_here
from manybeam.data.io.formats import Raw
from manybeam.data.io.limits import cause_of, patience_s
from manybeam.data.io.reading import READERS, read_raw
from manybeam.errors import (
    InvalidInput,
    NoCapacity,
    TooLarge,
    UnreadableFile,
    UnsupportedMedia,
    WorkFailed,
)
from manybeam.spec.imaging import quantity_bounds

# A .emi is read with the .ser beside it, and a body comes alone.
ALONE = tuple(suffix for suffix in READERS if suffix != ".emi")
MEMORY_BYTES = 1 << 30  # of a reader, beside the frames
FRAME_BYTES = 32  # of memory for each pixel of the largest frame: the file, its values, copies
PATIENCE = 2.0  # times the patience of readers, which end what is in Python; by the clock
START_S = 60.0  # for a process to start on a busy machine
LOOK_S = 0.1  # between two looks whether anybody still waits
HEAD_BYTES = 1 << 20
PREFIX = "manybeam-file-"
PIPE_BYTES = 1 << 20  # of the pipe for pixels, instead of 64 KiB
# Of the environment; a reader has no use for tokens and keys.
_KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_AGAIN = "copy it again, or open it in the program that recorded it and export it as .tif"
# What a reader may say of a file.
_SAID = ("InvalidFrame", "InvalidInput", "TooLarge", "UnreadableFile", "UnsupportedMedia")


@dataclass(frozen=True)
class _Head:
    """What a reader says of a file before its pixels, or why it cannot be read."""

    shape: tuple[int, ...] = ()
    pixel_size_pm: float | None = None
    values: dict[str, float] | None = None
    modality: str = ""
    material: str = ""
    notes: tuple[str, ...] = ()
    implied: dict[str, float] | None = None
    error: str = ""
    parts: tuple[str, ...] = ()


_HEAD: TypeAdapter[_Head] = TypeAdapter(_Head)


class ReaderEnded(UnreadableFile):
    """The process that read a file had to be ended, or ended itself."""


class FileReaders:
    """Processes that read instrument files, one for each thread that reads at the same time.

    Args:
        max_frame_px: largest number of pixels in one file.
        patience: time for one file, as a multiple of what its reader allows itself.
        memory_bytes: of one process, beside the frames.
    """

    def __init__(
        self,
        max_frame_px: int,
        *,
        patience: float = PATIENCE,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._most, self._patience = max_frame_px, patience
        self._memory = memory_bytes + FRAME_BYTES * max_frame_px
        self._idle: list[_Reader] = []
        self._lock, self._all = threading.Lock(), set[_Reader]()
        # Readers see for themselves that this process is gone, but not at once.
        self._end = weakref.finalize(self, _end_all, self._all)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run."""
        with self._lock:
            return tuple(one.pid for one in self._all)

    def read(
        self,
        name: str,
        content: bytes | bytearray,
        check: Callable[[], None] = lambda: None,
    ) -> Raw:
        """Return what `reading.read_raw` makes of a file.

        Args:
            name: of the file, without a folder; its suffix says the format.
            content: the bytes of the file.
            check: raises an error if nobody waits for the answer any more.

        Raises:
            UnsupportedMedia: the suffix is not supported.
            UnreadableFile, InvalidFrame, TooLarge: as `reading.read_frames` raises.
            ReaderEnded: reading crashed, did not end, or took too much memory.
            WorkFailed: the process does not start.
        """
        check_name(name)
        if not content:
            raise UnreadableFile(f"{name} cannot be read as a frame", "it is empty", _AGAIN)
        reader = self._take()
        try:
            with _folder_of(name, content) as folder:
                return reader.read(folder / name, self._patience, self._most, check)
        finally:
            self._give_back(reader)

    def close(self) -> None:
        """End all processes."""
        self._end()

    def _take(self) -> "_Reader":
        with self._lock:
            while self._idle:
                reader = self._idle.pop()
                if reader.is_running:
                    return reader
                reader.end()
                self._all.discard(reader)
        reader = _Reader(self._most, self._memory)
        with self._lock:
            self._all.add(reader)
        return reader

    def _give_back(self, reader: "_Reader") -> None:
        with self._lock:
            if not reader.is_busy:
                self._idle.append(reader)
                return
            self._all.discard(reader)
        reader.end()


def check_name(name: str) -> None:
    """Refuse what is no name of a file that can be read alone.

    Raises:
        InvalidInput: it has parts of a path, control characters, or is too long.
        UnsupportedMedia: its ending is not known.
    """
    is_plain = name.isprintable() and not {"/", "\\"} & set(name) and Path(name).name == name
    if not is_plain or len(name.encode(errors="replace")) > 200:
        raise InvalidInput(
            f"{name[:40]!r} is not the name of a file",
            "a name without a folder, of at most 200 bytes",
            "give the last part of its path, such as scan_0142.dm4",
        )
    suffix = Path(name).suffix.lower()
    if suffix not in ALONE:
        raise UnsupportedMedia(
            f"{name}: files {suffix[:40] or 'without suffix'} cannot be read",
            f"supported are {', '.join(ALONE)}",
            "send the .ser that belongs to it" if suffix == ".emi" else "export it as .tif",
        )


@contextmanager
def _folder_of(name: str, content: bytes | bytearray) -> Iterator[Path]:
    """Write a file into a folder of its own until a block ends."""
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            (folder / name).write_bytes(content)
        except OSError as error:
            raise NoCapacity(
                f"{name} cannot be kept while it is read",
                (error.strerror or "the disk does not take it").lower(),
                f"make room in {tempfile.gettempdir()} of the service",
            ) from error
        yield folder


class _Reader:
    """One process, and what it is asked.

    Attributes:
        is_busy: whether it was asked and has not answered; then it cannot be asked again.
    """

    def __init__(self, max_frame_px: int, memory_bytes: int) -> None:
        code = "from manybeam.data.io.file_readers import answer; answer()"
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "MANYBEAM_MAX_FRAME_PX": str(max_frame_px),
        }
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(os.getpid()), str(memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=kept | _ONE_THREAD | own,
                bufsize=0,
                start_new_session=True,  # so that a signal reaches what it starts, too
            )
        except OSError as error:
            raise _no_reader(str(error)) from error
        self.pid, self._is_ready, self.is_busy = self._child.pid, False, False

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def read(self, path: Path, patience: float, most_px: int, check: Callable[[], None]) -> Raw:
        """Return the content of a file; afterwards it can be asked again unless it is busy."""
        self._start(check)
        own_s = patience_s(path)
        seconds = math.ceil(own_s * patience)
        self.is_busy = True
        try:
            self._ask(
                {"folder": str(path.parent), "name": path.name, "cpu_s": math.ceil(own_s) + 1}
            )
            answer = _Answer(self._output, time.monotonic() + seconds, check)
            found = _raw(answer, most_px)
        except _OutOfTime:
            raise _ended(path, f"reading does not end within {seconds} s") from None
        except _Silent:
            raise _ended(path, self._last_words()) from None
        self.is_busy = False
        if isinstance(found, errors.ManybeamError):
            raise found
        return found

    def end(self) -> None:
        """End the process and what it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    @property
    def _output(self) -> int:
        assert self._child.stdout is not None  # noqa: S101 - it was asked for
        return self._child.stdout.fileno()

    def _start(self, check: Callable[[], None]) -> None:
        """Wait until the process is ready; what fails before that is no fault of a file."""
        if self._is_ready:
            return
        try:
            _Answer(self._output, time.monotonic() + START_S, check).line()
        except (_OutOfTime, _Silent) as error:
            raise _no_reader(f"exit code {self._child.poll()}") from error
        self._is_ready = True

    def _ask(self, question: dict[str, Any]) -> None:
        assert self._child.stdin is not None  # noqa: S101 - it was asked for
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
        except BrokenPipeError:
            raise _Silent from None

    def _last_words(self) -> str:
        """Return why a process that ended, or says nothing that can be understood, did so."""
        with suppress(subprocess.TimeoutExpired):
            code = self._child.wait(1.0)
            if code == -signal.SIGXCPU:
                return "reading does not end"
            if code < 0:
                return "the library that reads it crashed"
            return "it needs more memory than reading a file may take"
        return "what its reader says contradicts itself"


class _OutOfTime(Exception):
    """A reader took too long."""


class _Silent(Exception):
    """A reader ended, or said what cannot be understood."""


class _Answer:
    """The bytes that a reader sends, within a time."""

    def __init__(self, pipe: int, due_s: float, check: Callable[[], None]) -> None:
        self._pipe, self._due_s, self._check = pipe, due_s, check
        self._poll, self._left = select.poll(), bytearray()
        self._poll.register(pipe, select.POLLIN)

    def line(self) -> bytes:
        """Return the next line."""
        while b"\n" not in self._left:
            if len(self._left) > HEAD_BYTES:
                raise _Silent
            self._left += self._more(65_536)
        line, _, rest = bytes(self._left).partition(b"\n")
        self._left = bytearray(rest)
        return line

    def fill(self, target: memoryview) -> None:
        """Read as many bytes as the target has."""
        count = min(len(self._left), len(target))
        target[:count] = self._left[:count]
        del self._left[:count]
        while count < len(target):
            self._wait()
            got = os.readv(self._pipe, [target[count:]])
            if not got:
                raise _Silent
            count += got

    def _more(self, most: int) -> bytes:
        self._wait()
        found = os.read(self._pipe, most)
        if not found:
            raise _Silent
        return found

    def _wait(self) -> None:
        is_there = False
        while not is_there:
            is_there = bool(self._poll.poll(LOOK_S * 1000))
            if time.monotonic() >= self._due_s:  # also of one that sends little, or for ever
                raise _OutOfTime
            if not is_there:
                self._check()


def _raw(answer: _Answer, most_px: int) -> Raw | errors.ManybeamError:
    """Return what a reader says of a file, checked: its content, or what is wrong with it."""
    try:
        head = _HEAD.validate_json(answer.line())
    except ValidationError:
        raise _Silent from None
    if head.error:
        if head.error not in _SAID or len(head.parts) != 3:
            raise _Silent
        kind: type[errors.ManybeamError] = getattr(errors, head.error)
        return kind(*head.parts)
    if len(head.shape) not in (2, 3) or min(head.shape) < 1:
        raise _Silent
    if not (head.values or {}).keys() <= quantity_bounds().keys():
        raise _Silent
    count = math.prod(head.shape)
    if count > most_px:
        error = TooLarge(f"{count} pixels", f"at most {most_px}", "send fewer at once")
        return _too_large(answer, count, error)
    array = np.empty(head.shape, np.float32)
    answer.fill(array.data.cast("B"))
    fields = (head.values or {}, head.modality, head.material, list(head.notes))
    return Raw(array, head.pixel_size_pm, *fields, head.implied or {})


def _too_large(answer: _Answer, count: int, error: TooLarge) -> TooLarge:
    """Return the error, after the pixels that come were read and forgotten: the reader goes on."""
    piece, left = memoryview(bytearray(PIPE_BYTES)), count * np.dtype(np.float32).itemsize
    while left:
        answer.fill(piece[: min(left, PIPE_BYTES)])
        left -= min(left, PIPE_BYTES)
    return error


def _ended(path: Path, why: str) -> ReaderEnded:
    kind, _ = READERS[path.suffix.lower()]
    return ReaderEnded(f"{path.name} cannot be read as {kind}", f"{why}: it is damaged", _AGAIN)


def _no_reader(why: str) -> WorkFailed:
    return WorkFailed("the process that reads files does not start", why, "send an .npy meanwhile")


def _end_all(readers: "set[_Reader]") -> None:
    while readers:
        readers.pop().end()


# -- in the process of a reader ---------------------------------------------------------------
def answer() -> None:
    """Read the files that standard input names, until it ends or the parent is gone."""
    parent, memory_bytes = (int(word) for word in sys.argv[1:3])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    out = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what libraries print must not be taken for an answer
    READERS[".emd"] = (READERS[".emd"][0], read_here)  # else it would start one more process
    _restrict(memory_bytes)
    out.write(b"{}\n")
    out.flush()
    for line in sys.stdin:
        question = json.loads(line)
        _limit_time(question["cpu_s"])
        os.chdir(question["folder"])  # so that errors name the file as its owner does
        parts = _answered(Path(question["name"]))
        os.chdir("/")
        for part in parts:
            out.write(part)
        out.flush()


def _answered(path: Path) -> Sequence[bytes | memoryview]:
    """Return the parts of the answer for a file in the folder of this process."""
    try:
        raw = read_raw(path)
        head = {key: value for key, value in vars(raw).items() if key != "array"}
        text = json.dumps(head | {"shape": raw.array.shape}, allow_nan=False, default=float)
    except InvalidInput as error:
        kind = next(one.__name__ for one in type(error).__mro__ if one.__name__ in _SAID)
        text = json.dumps({"error": kind, "parts": [error.what, error.why, error.hint]})
    except (MemoryError, ValueError, errors.ManybeamError) as error:
        parts = [f"{path} cannot be read", cause_of(error), _AGAIN]
        text = json.dumps({"error": "UnreadableFile", "parts": parts})
    else:
        pixels: NDArray[np.float32] = np.ascontiguousarray(raw.array, np.float32)
        return text.encode(), b"\n", pixels.data.cast("B")
    return text.encode(), b"\n"


def _restrict(memory_bytes: int) -> None:
    """Let this process take no more memory, write no file and leave no dump."""
    for kind, most in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _limit_time(seconds: int) -> None:
    """Let this process use that much processor time from now on, within what it was given."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = math.ceil(used.ru_utime + used.ru_stime) + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))


def _end_with(parent: int) -> None:
    """End this process, and what it started, soon after its parent; nobody else would."""
    while os.getppid() == parent:
        time.sleep(1.0)
    folder = Path.cwd()
    if folder.name.startswith(PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)

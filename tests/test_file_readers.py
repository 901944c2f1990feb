"""data.io.file_readers: files of strangers, in processes that crash, hang and outlive nobody."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import psutil
import pytest
import tifffile

from manybeam.data.io.file_readers import (
    ALONE,
    FRAME_BYTES,
    FileReaders,
    ReaderEnded,
    check_name,
)
from manybeam.data.io.reading import read_raw
from manybeam.errors import InvalidInput, ManybeamError, TooLarge, UnreadableFile, UnsupportedMedia

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
MOST_PX = 1_000_000


def tif(array: Any = FRAME, **more: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **more)
    return stream.getvalue()


def promising(width: int) -> bytes:
    """A TIFF whose tags promise more than it holds."""
    stream = io.BytesIO(tif())
    with tifffile.TiffFile(stream, mode="r+") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(width, dtype="I")
    return stream.getvalue()


def emd(shape: tuple[int, ...], **more: Any) -> bytes:
    """An EMD file of Berkeley without any pixel of its data."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        group = file.create_group("data/frame")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", shape, "f4", chunks=tuple(min(n, 64) for n in shape), **more)
    return stream.getvalue()


def mrc(folder: Path, array: Any = FRAME, angstrom: float = 0.16) -> bytes:
    with mrcfile.new(folder / "made.mrc", array, overwrite=True) as file:
        file.voxel_size = angstrom
    return (folder / "made.mrc").read_bytes()


@pytest.fixture(scope="module")
def readers() -> Iterator[FileReaders]:
    found = FileReaders(MOST_PX)
    yield found
    found.close()


def told(call: Callable[[], Any]) -> tuple[type, str]:
    with pytest.raises(ManybeamError) as caught:
        call()
    return type(caught.value), str(caught.value)


def outcome(read: Callable[[], Any]) -> Any:
    """Return what a file holds, or what is said of it."""
    try:
        found = read()
    except ManybeamError as error:
        return type(error), str(error)
    return {**vars(found), "array": (found.array.shape, found.array.tobytes())}


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = [
    pytest.param("a.tif", tif(), id="frame"),
    pytest.param("a.tif", tif(np.stack([FRAME, FRAME * 2]), photometric="minisblack"), id="stack"),
    pytest.param("a.tif", tif(FRAME[0]), id="profile"),
    pytest.param("a.tif", tif(np.ones((9, 9))), id="flat"),
    pytest.param("a.tif", tif()[:-900], id="cut short"),
    pytest.param("a.tif", b"II*\0" + b"\xff" * 99, id="damaged"),
    pytest.param("a.dm4", tif(), id="wrong ending"),
    pytest.param("a.emd", emd((9, 9, 9, 9)), id="scan of patterns"),
    pytest.param("a.tif", promising(160_000), id="100 GB in tags"),
    pytest.param("a.emd", emd((90_000, 90_000), compression="gzip"), id="32 GB in HDF5"),
    pytest.param("a.emd", b"\x89HDF\r\n\x1a\n" + bytes(200), id="damaged HDF5"),
]


@pytest.mark.parametrize(("name", "content"), FILES)
def test_a_file_is_read_or_refused_as_on_the_command_line(
    readers: FileReaders, in_folder: Path, name: str, content: bytes
) -> None:
    (in_folder / name).write_bytes(content)
    own = outcome(lambda: read_raw(Path(name)))
    assert outcome(lambda: readers.read(name, content)) == own


@pytest.mark.real
@pytest.mark.parametrize(
    "folder", ["data/vendor", "data/frames/ptnc", *(f"cases/case-{n}" for n in ("01", "04", "10"))]
)
def test_files_of_instruments_are_read_as_on_the_command_line(
    readers: FileReaders, shared_data: Path, in_folder: Path, folder: str
) -> None:
    paths = [path for path in (shared_data.parent / folder).iterdir() if path.suffix in ALONE]
    for path in paths:
        (in_folder / path.name).write_bytes(path.read_bytes())  # alone, as in a body
        own = outcome(lambda path=path: read_raw(Path(path.name)))
        assert outcome(lambda path=path: readers.read(path.name, path.read_bytes())) == own
    assert paths


def test_what_unfolds_to_more_than_allowed_is_refused(readers: FileReaders) -> None:
    bomb = tif(np.zeros((3000, 3000), np.uint8), compression="zlib")
    assert told(lambda: readers.read("a.tif", bomb))[0] is TooLarge
    stack = tif(np.stack([FRAME] * 400), photometric="minisblack")  # each of them is allowed
    assert told(lambda: readers.read("a.tif", stack))[0] is TooLarge
    assert readers.read("a.tif", tif()).array.shape == FRAME.shape


def test_a_reader_stays_for_the_next_file(readers: FileReaders, tmp_path: Path) -> None:
    readers.read("a.tif", tif())
    before = readers.pids
    assert readers.read("b.mrc", mrc(tmp_path)).pixel_size_pm == pytest.approx(16)
    assert told(lambda: readers.read("c.tif", tif()[:-900]))[0] is UnreadableFile
    assert readers.pids == before


@pytest.mark.parametrize(
    ("name", "error"),
    [
        pytest.param("../a.tif", InvalidInput, id="folder"),
        pytest.param("/etc/a.tif", InvalidInput, id="absolute"),
        pytest.param("C:\\a.tif", InvalidInput, id="windows"),
        pytest.param("a\0.tif", InvalidInput, id="nul"),
        pytest.param("a\n.tif", InvalidInput, id="line"),
        pytest.param("a" * 10_000 + ".tif", InvalidInput, id="long"),
        pytest.param("..", UnsupportedMedia, id="dots"),
        pytest.param("a", UnsupportedMedia, id="no ending"),
        pytest.param("a.docx", UnsupportedMedia, id="unknown ending"),
        pytest.param("a.emi", UnsupportedMedia, id="not alone"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, error: type[ManybeamError]) -> None:
    kind, text = told(lambda: check_name(name))
    assert kind is error
    assert len(text) < 300
    assert error is InvalidInput or ".dm4" in text


@pytest.fixture
def stopped() -> Iterator[FileReaders]:
    """Readers of which the first does not go on."""
    found = FileReaders(MOST_PX, patience=0.05)
    found.read("a.tif", tif())
    os.kill(found.pids[0], signal.SIGSTOP)
    yield found
    found.close()


def is_well(readers: FileReaders, before: tuple[int, ...]) -> bool:
    return bool(readers.read("a.tif", tif()).array.size) and not {*readers.pids} & {*before}


def test_a_file_that_takes_too_long_ends_its_reader_only(stopped: FileReaders) -> None:
    before = stopped.pids
    kind, text = told(lambda: stopped.read("slow.tif", tif()))
    assert kind is ReaderEnded
    assert "slow.tif cannot be read as TIFF; reading does not end within 1 s" in text
    assert is_well(stopped, before)


def test_nobody_waits_for_a_reader_after_the_deadline(stopped: FileReaders) -> None:
    before = stopped.pids

    def check() -> None:
        raise TimeoutError("too late")

    with pytest.raises(TimeoutError):
        stopped.read("slow.tif", tif(), check)
    assert is_well(stopped, before)


def test_a_crash_ends_one_reader_only(stopped: FileReaders) -> None:
    before = stopped.pids

    def kill() -> None:
        """Crash while the file is being read: the reader was asked, and is silent."""
        with suppress(ProcessLookupError):
            os.kill(before[0], signal.SIGKILL)

    kind, words = told(lambda: stopped.read("bad.tif", tif(), kill))
    assert kind is ReaderEnded
    assert "the library that reads it crashed" in words
    assert is_well(stopped, before)


def test_a_reader_gets_no_more_memory_than_it_may() -> None:
    side, rows = 4096, 6144
    poor = FileReaders(side * rows, memory_bytes=(192 << 20) - FRAME_BYTES * side * rows)
    packed = tif(np.zeros((rows, side)), compression="zlib")  # 192 MiB of 8 bytes a pixel
    kind, text = told(lambda: poor.read("a.tif", packed))
    assert kind is UnreadableFile
    assert "more memory" in text
    assert poor.read("a.tif", tif()).array.shape == FRAME.shape
    poor.close()


ORPHAN = """
import sys, time
from manybeam.data.io.file_readers import FileReaders
readers = FileReaders(1_000_000)
readers.read("a.tif", open(sys.argv[1], "rb").read())
print(*readers.pids, flush=True)
time.sleep(600)
"""


def test_readers_end_with_a_service_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tif())
    argv = [sys.executable, "-c", ORPHAN, str(tmp_path / "a.tif")]
    own = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=own) as service:
        assert service.stdout
        reader = int(service.stdout.readline())
        service.kill()
    end = time.monotonic() + 60
    while psutil.pid_exists(reader) and psutil.Process(reader).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the reader goes on"
        time.sleep(0.05)


def test_a_reader_has_no_networks_no_cluster_and_no_secrets(
    readers: FileReaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    own = FileReaders(MOST_PX)
    own.read("a.tif", tif())
    process = psutil.Process(own.pids[0])
    loaded = {Path(one.path).name for one in process.memory_maps()}
    told = process.environ()
    own.close()
    assert "hidden" not in told.values()
    assert not {name for name in loaded if "torch" in name or "raylet" in name}

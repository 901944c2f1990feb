"""data.disk: a file is there whole or not at all, and one process at a time is let in."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from manybeam.data.disk import alone, write_files
from manybeam.errors import WriteFailed


@contextmanager
def room_for(byte_count: int) -> Iterator[None]:
    """No file grows beyond this: what a full disk does to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_takes_the_place_of_the_old_one_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for content in (b"old and longer", b"new"):
        write_files({path: content})
    assert path.read_bytes() == b"new"
    assert [one.name for one in path.parent.iterdir()] == ["b.txt"]


def test_a_disk_without_room_leaves_the_old_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("the old one")
    with room_for(1000), pytest.raises(WriteFailed, match=r"card\.md cannot be written"):
        write_files({tmp_path / "a.png": bytes(9), tmp_path / "card.md": bytes(2000)})
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert (tmp_path / "card.md").read_text() == "the old one"


def test_files_appear_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()  # no file takes its place
    with pytest.raises(WriteFailed, match="last cannot be written"):
        write_files({tmp_path / "first": b"1", tmp_path / "last": b"2", tmp_path / "never": b"3"})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["first", "last"]


def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_files({longest: b"1"})
    assert longest.read_bytes() == b"1"
    with pytest.raises(WriteFailed, match="name too long"):
        write_files({longest.with_name(longest.name + "x"): b"1"})


def test_others_may_read_a_file_where_the_process_lets_them(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; from manybeam.data.disk import alone, write_files\n"
        f"os.umask(0o027); write_files({{pathlib.Path({str(tmp_path / 'a')!r}): b'1'}})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_one_process_is_let_in_at_a_time_and_a_dead_one_holds_nobody_up(tmp_path: Path) -> None:
    lock = tmp_path / "a" / "lock"
    code = (
        "import pathlib, sys; from manybeam.data.disk import alone\n"
        f"with alone(pathlib.Path({str(lock)!r})): print('in', flush=True); sys.stdin.read()"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        waiting = pool.submit(_enter, lock)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        other.kill()
        assert waiting.result(timeout=60)


def _enter(lock: Path) -> bool:
    with alone(lock):
        return True

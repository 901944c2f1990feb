"""What reading a file may cost, and what its owner is told when it fails."""

import contextlib
import importlib.util
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from manybeam.data.io.limits import STACK_RATIO, FileFault, cause_of, check_declared, deadline
from manybeam.errors import TooLarge
from manybeam.settings import settings

MOST = settings().max_frame_px


def spin() -> None:
    """Do what a library does in a damaged file: go on, whatever it meets."""
    while True:
        try:
            sum(range(1000))
        except Exception:  # noqa: BLE001 - as libraries do
            continue


def test_a_reader_that_does_not_end_is_stopped_in_any_thread() -> None:
    faults: list[str] = []

    def read() -> None:
        try:
            with deadline(0.2):
                spin()
        except FileFault as fault:
            faults.append(str(fault))

    read()
    reader = threading.Thread(target=read)
    reader.start()
    reader.join(30)
    assert faults == ["reading does not end within 0 s: it is damaged"] * 2


def test_a_reader_that_waits_for_a_busy_machine_is_not_stopped() -> None:
    with deadline(0.2):
        time.sleep(0.8)


def test_what_other_threads_compute_does_not_stop_a_reader() -> None:
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            sum(range(1000))

    other = threading.Thread(target=compute)
    other.start()
    try:
        with deadline(0.2):
            time.sleep(0.8)
    finally:
        done.set()
        other.join()


def test_after_a_deadline_nothing_stops_what_follows() -> None:
    for _ in range(200):
        with contextlib.suppress(FileFault), deadline(1e-6):
            sum(range(1000))
    time.sleep(1.2)
    assert sum(range(100_000))


def test_code_after_a_deadline_can_be_profiled() -> None:
    """An error that is taken back with NULL keeps Python looking for it, endless under a tracer."""
    start = "import sys; from manybeam.data.io.limits import deadline\n"
    body = "sys.setprofile(lambda *_: None)\ndef after(): pass\nwith deadline(5): pass\nafter()"
    done = subprocess.run([sys.executable, "-c", start + body], capture_output=True, timeout=60)
    assert done.returncode == 0


def test_the_fault_of_a_body_passes_a_deadline() -> None:
    with pytest.raises(KeyError), deadline(5):
        raise KeyError("a")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileFault("it has no page"), "it has no page"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError("image file is truncated (3 bytes)"), "it is cut short or damaged"),
        (MemoryError(), "it needs more memory than this machine can give"),
        (ValueError("max() arg is an empty sequence"), "its parts contradict each other"),
        (TypeError("'NoneType' object is not iterable"), "its parts contradict each other"),
        (KeyError("Pixels"), "its parts contradict each other"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_nobody_reads_the_words_of_a_library(error: Exception, words: str) -> None:
    assert words in cause_of(error)


@pytest.mark.parametrize(
    ("shape", "stored", "ratio", "error"),
    [
        pytest.param((0, 5), 100, 1, FileFault, id="empty"),
        pytest.param((10, 10), 99, 1, FileFault, id="not held"),
        pytest.param((MOST + 1, 1), 10 * MOST, 1, TooLarge, id="one frame too large"),
        pytest.param((17, MOST, 1), 20 * MOST, 1, TooLarge, id="a stack too large"),
        pytest.param((3, MOST, 1), MOST // 1000, 1100, FileFault, id="a stack that unfolds"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_memory_is_taken(
    shape: tuple[int, ...], stored: int, ratio: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_declared(shape, 1, stored, ratio)


def test_a_right_stack_that_unfolds_far_names_the_setting_that_lets_it_in() -> None:
    with pytest.raises(TooLarge, match="MANYBEAM_MAX_FRAME_PX"):
        check_declared((3, MOST, 1), 1, 3 * MOST // (2 * STACK_RATIO), 1100)
    with pytest.raises(TooLarge, match="MANYBEAM_MAX_FRAME_PX"):
        check_declared((17, MOST, 1), 1, 17 * MOST // (2 * STACK_RATIO), 1100)


def test_a_packed_frame_may_unfold_further_than_a_stack() -> None:
    check_declared((MOST, 1), 1, MOST // 1000, 1100)
    check_declared((2, MOST, 1), 1, 2 * MOST // STACK_RATIO + 1, 1100)


@pytest.fixture(scope="module")
def fuzz() -> Any:
    path = Path(__file__).parent / "benchmarks" / "fuzz_files.py"
    spec = importlib.util.spec_from_file_location("fuzz_files", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_plain_words(fuzz: Any, tmp_path: Path) -> None:
    valid = {name: content for name, content in fuzz.valid_files(tmp_path / "valid").items()
             if not name.endswith(".emd")}  # fmt: skip
    (tmp_path / "now_1.ser").write_bytes(valid["a_1.ser"])  # which now.emi needs
    kinds = []
    for number in range(600):
        name, content = fuzz.made(5, number, valid)
        path = tmp_path / f"now{Path(name).suffix}"
        path.write_bytes(content)
        kind, words = fuzz.outcome(path)
        assert kind in ("read", "refused"), (number, name, words)
        kinds.append(kind)
    assert {"read", "refused"} == set(kinds)

"""Progress without a terminal: a sign at once, a line for each tenth, no long silence."""

import re
import sys
import threading
import time

import pytest

from manybeam.cli.terminal import output, progress
from manybeam.cli.terminal.progress import Progress


def test_the_first_sign_comes_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("start the job graphene"):
        assert capsys.readouterr().err == "   start the job graphene ...\n"


def test_a_task_prints_each_tenth_once_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("start") as shown:
        for done in range(101):
            shown.update("simulate", done, 100, "frames")
            time.sleep(0.001)
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [
        f"   simulate: {part} %" for part in range(10, 101, 10)
    ]
    assert all(re.search(r"frames, .*/s, \d+ s left, \d+ s in all", line) for line in lines[:-1])
    assert "left" not in lines[-1]


def test_a_task_without_a_total_is_done_at_its_first_update(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("start") as shown:
        shown.update("measure", 0, 0)
    assert "measure: 100 %" in capsys.readouterr().err


def test_a_silence_is_broken_with_the_name_of_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SILENCE_S", 0.3)
    with Progress("start") as shown:
        shown.update("train", 1, 1000)
        time.sleep(1)
    assert "train: at work" in capsys.readouterr().err


def test_threads_count_together(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("start", lines=1) as shown:
        workers = [
            threading.Thread(target=lambda: [shown.update("round", n, 200) for n in range(201)])
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert capsys.readouterr().err.count("round: 100 %") == 1


def test_it_ends_when_the_work_fails() -> None:
    with pytest.raises(RuntimeError), Progress("start"):
        raise RuntimeError
    assert "_break_silence" not in {one.name for one in threading.enumerate()}


@pytest.mark.parametrize("count", [pytest.param(1, id="terminal"), pytest.param(0, id="pipe")])
def test_a_silent_command_gives_a_sign_on_a_terminal_and_removes_it(
    count: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "FIRST_SIGN_S", 0.1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: bool(count))
    output.first_sign.begin()
    time.sleep(0.5)  # longer than the timer of the sign
    output.say("done")
    told = capsys.readouterr().err
    assert told.count("at work") == count
    assert told.rpartition("\r")[2] == "done\n"


def test_a_command_that_speaks_soon_gives_no_other_sign(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "FIRST_SIGN_S", 0.1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    output.first_sign.begin()
    output.say("done")
    time.sleep(0.3)  # longer than the timer of the sign
    assert capsys.readouterr().err == "done\n"

"""What a terminal shows: tables on narrow and wide ones, and wrong words of a command."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from manybeam.cli import main
from manybeam.cli.terminal.output import Form, cell, emit, filled, say
from manybeam.cli.terminal.signals import Ended, ended_cleanly

COLUMNS = [f"column_{number:02d}" for number in range(16)]
MANY = [{name: f"{name[-2:]}-{row}" for name in COLUMNS} for row in range(3)]
TEXT = [{"id": f"row {row}", "score": 0.5, "why": "a reason of several words " * 6} for row in "ab"]


on_terminals = pytest.mark.parametrize("width", [80, 120])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make stdout a terminal of some width; called in the test, which has a stdout of its own."""

    def make(width: int) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    return make


def printed(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    emit(rows, Form.table, title="Things")
    shown = capsys.readouterr()
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.out), shown.err


@on_terminals
def test_talk_on_a_terminal_is_broken_between_words(
    width: int,
    terminal: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal(width)
    path, words = "/a/very/long/path" * 12, "unforeseen circumstances " * 12
    say(f"{words}{path}")  # in a pipe, it is one line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say(f"{words}{path}")
    piped, *lines = capsys.readouterr().err.splitlines()
    assert piped == f"{words}{path}"
    assert " ".join(lines) == piped
    assert all(len(line) <= width or line == path for line in lines)


def test_several_reasons_are_indented_alike() -> None:
    assert filled("why: one\ntwo\n\nthree", indent="     ") == (
        "why: one\n     two\n     \n     three"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (datetime(2026, 11, 29, 8, 5, 59, 999, UTC), "2026-11-29 08:05 UTC"),
        ("2026-11-29T18:46:01.528+00:00", "2026-11-29 18:46 UTC"),
        (0.12345, "0.123"),
        (False, "no"),
        (12345.6, "12346"),
    ],
)
def test_a_cell_is_short(value: object, shown: str) -> None:
    assert cell(value, "-") == shown


@on_terminals
def test_a_table_never_breaks_a_number_or_a_name(
    width: int, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(width)
    out, err = printed(MANY, capsys)
    assert max(map(len, out.splitlines())) <= width
    for name in COLUMNS:
        assert (name in out) != (name in err)  # shown whole, or named as left out
    assert "…" not in out


@on_terminals
def test_one_wide_row_is_turned_and_shows_every_field(
    width: int, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(width)
    out, err = printed(MANY[:1], capsys)
    assert all(name in out for name in COLUMNS)
    assert "left out" not in err


@on_terminals
def test_long_text_is_broken_between_words(
    width: int, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(width)
    out, _ = printed(TEXT, capsys)
    assert max(map(len, out.splitlines())) <= width
    assert out.count("reason") == 12


@pytest.mark.parametrize("form", list(Form))
def test_a_list_without_rows_says_so(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    emit([], form, title="Things")
    shown = capsys.readouterr()
    assert shown.err == "Things: nothing yet\n"
    assert shown.out in ("", "[]\n")


def test_a_cell_of_csv_is_text_and_no_list_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "members": ["00", "01"], "elements": {"Mo": 3}}, {"id": "b", "more": None}]
    emit(rows, Form.csv)
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first == {"id": "a", "members": "00; 01", "elements": '{"Mo": 3}', "more": ""}
    assert second["id"] == "b"


@on_terminals
def test_on_a_terminal_lines_stand_in_place_of_the_table(
    width: int, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(width)
    emit(MANY, Form.auto, lines=["one line"])
    assert capsys.readouterr().out == "one line\n"


@pytest.mark.parametrize(
    ("words", "said", "command"),
    [
        pytest.param(["data", "simulate", "x", "--out", "y", "--count", "0"],
                     "'--count': it is too small; give at least 1", "data simulate ", id="small"),
        pytest.param(["data", "simulate", "x", "--out", "y", "--count", "few"],
                     "'--count': it is no whole number", "data simulate ", id="whole"),
        pytest.param(["predict", "x", "--false-atoms", "few"], "it is no number", "predict ",
                     id="number"),
        pytest.param(["predict", "x", "-o", "xml"], "'xml' is not one of 'auto'", "predict ",
                     id="choice"),
        pytest.param(["predict"], "missing argument", "predict ", id="missing"),
        pytest.param(["predict", "x", "--atom", "y"], "no such option: --atom", "predict ",
                     id="option"),
        pytest.param(["--insecure", "predict", "x", "--png"], "requires an argument", "predict ",
                     id="argument"),
        pytest.param(["zoo", "nonsense"], "no such command 'nonsense'", "zoo ", id="in zoo"),
        pytest.param(["nonsense"], "no such command 'nonsense'", "", id="command"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_told_as_any_other_fault(
    words: list[str],
    said: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MANYBEAM_RAY_INSECURE", "0")  # --insecure is read before the wrong word
    assert main(words) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert "Input should be" not in first
    assert last == f"try: manybeam {command}--help"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_ctrl_c_does_and_removes_its_drafts(
    number: signal.Signals, tmp_path: Path
) -> None:
    before = signal.signal(number, signal.SIG_DFL)

    def work() -> None:
        with ended_cleanly(), tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), number)
            time.sleep(5)  # the handler runs before

    with pytest.raises(Ended) as ended:
        work()
    assert (ended.value.exit_code, ended.value.name) == (128 + number, number.name)
    assert not list(tmp_path.iterdir())
    assert signal.signal(number, before) is signal.SIG_DFL


SWALLOWED = """
import os, signal, time
from manybeam.cli.terminal.signals import Ended, ended_cleanly

class Swallowing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # the handler runs here, and what it raises is lost

try:
    with ended_cleanly():
        try:
            Swallowing()
            time.sleep(20)  # ended by the signal that comes again
        finally:
            time.sleep(2.5)  # the signal comes again meanwhile, and does not disturb
            print("cleaned")
except Ended as ended:
    print(ended.name)
"""


@pytest.mark.slow
def test_a_signal_that_got_lost_comes_again_and_leaves_the_end_alone() -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False
    )
    assert "Exception ignored" in done.stderr  # else the test shows nothing
    assert (done.returncode, done.stdout.split()) == (0, ["cleaned", "SIGTERM"])
    assert time.monotonic() - begun < 15


@pytest.mark.slow
def test_a_closed_terminal_ends_a_command_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    words = ["data", "simulate", "graphene-60kv-nominal", "--out", "made", "--count", "90000"]
    # Where the tests run under nohup, the signal would be ignored, and so it would be by manybeam.
    heeding = ["env", "--default-signal=HUP"]
    command = [*heeding, "setsid", "--ctty", sys.executable, "-m", "manybeam", *words]
    work = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    said = b""
    while b"simulat" not in said:
        said += os.read(ours, 1000)
    os.close(ours)
    try:
        assert work.wait(60) == 128 + signal.SIGHUP
    except subprocess.TimeoutExpired:
        stacks = subprocess.run(
            # It comes with Ray.
            [Path(sys.executable).with_name("py-spy"), "dump", "--pid", str(work.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        work.kill()
        pytest.fail(f"it goes on:\n{stacks.stdout}{stacks.stderr}")
    assert not list(tmp_path.rglob("zarr.json"))


def test_a_narrow_or_odd_terminal_breaks_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for columns in ("5", "0", "-3", "wide"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["data", "show", "nowhere.tif"]) == 4
        assert "nowhere.tif" in capsys.readouterr().err


def test_parts_of_a_broken_line_are_indented_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    broken = filled("  a line of words that is longer than the terminal is wide").splitlines()
    assert len(broken) == 2
    assert broken[1].startswith("  t")


def test_rows_with_other_fields_make_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    emit([{"a": "one", "b": "two"}, {"a": "three", "c": "four"}], Form.table)
    out = capsys.readouterr().out
    assert all(word in out for word in ("one", "two", "three", "four"))

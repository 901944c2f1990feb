"""The command line: forms of output, exit codes, errors in three lines."""

import csv
import io
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from manybeam.cli import main
from manybeam.cli.terminal.output import NOT_MEASURED, UNKNOWN, Form, emit
from manybeam.data.frames import FrameSet
from manybeam.settings import settings
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ROWS = [{"id": "a", "value": 1.5}, {"id": "b", "value": None}]


@pytest.fixture(autouse=True)
def _a_platform_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYBEAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MANYBEAM_ZOO", str(ROOT / "zoo"))
    settings.cache_clear()


@pytest.fixture
def an_empty_zoo(tmp_path: Path, empty_database: Path) -> None:
    """Give that platform the database of its zoo, which a command takes a second to make."""
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "zoo.db")


def _frame(path: Path, shape: tuple[int, int] = (64, 64)) -> Path:
    noise = np.random.default_rng(0).poisson(50, shape).astype(np.uint16)
    tifffile.imwrite(path, noise)
    return path


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        pytest.param(Form.id, "a\nb\n", id="id"),
        pytest.param(
            Form.jsonl, '{"id": "a", "value": 1.5}\n{"id": "b", "value": null}\n', id="jsonl"
        ),
        pytest.param(Form.csv, "id,value\r\na,1.5\r\nb,\r\n", id="csv"),
    ],
)
def test_rows_are_printed_as_asked(
    form: Form, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    emit(ROWS, form)
    assert capsys.readouterr().out == expected


def test_a_pipe_gets_json_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, Form.auto)
    out = capsys.readouterr().out
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["a", "b"]
    assert "\x1b" not in out


def test_a_missing_value_is_unknown_and_a_missing_score_was_not_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emit([{"url": "a", "pixel_size_pm": None}], Form.table, missing=UNKNOWN)
    emit([{"ref": "a", "f1": None}], Form.table, missing=NOT_MEASURED)
    sizes, scores = capsys.readouterr().out.split("ref")
    assert ("unknown" in sizes, "not measured" in sizes) == (True, False)
    assert ("unknown" in scores, "not measured" in scores) == (False, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(["nonsense"], 2, "no such command", id="usage"),
        pytest.param(["data", "show", "absent"], 4, "absent", id="not-found"),
        pytest.param(["zoo", "show", "graphene"], 4, "graphene", id="unknown-ref"),
        pytest.param(["train", "absent.yaml"], 2, "absent.yaml", id="no-file"),
        pytest.param(
            ["data", "simulate", "graphene-60kv-nomnal", "--out", "x"],
            4,
            "graphene-60kv-nominal",
            id="nearest",
        ),
        pytest.param(["predict", "absent.tif"], 4, "absent.tif", id="no-frame"),
    ],
)
def test_a_fault_is_told_with_its_exit_code(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_an_error_is_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    main(["zoo", "show", "graphene"])
    starts = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert starts[0] == "error"
    assert set(starts) <= {"error", "why", "try"}


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "show", "absent", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_simulated_frames_are_listed_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "frames")
    assert main(["data", "simulate", "graphene-60kv-nominal", "--count", "2", "--out", out]) == 0
    assert main(["data", "show", out, "--verify", "-o", "json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown.splitlines()[0])["frames"] == 2
    assert "optics.beam_kv" in shown


def test_a_frameset_is_not_overwritten_unasked(tmp_path: Path) -> None:
    words = [
        "data",
        "simulate",
        "graphene-60kv-nominal",
        "--count",
        "1",
        "--out",
        str(tmp_path / "f"),
    ]
    assert (main(words), main(words), main([*words, "--overwrite"])) == (0, 2, 0)


def test_files_are_imported_with_their_truth(tmp_path: Path) -> None:
    from manybeam.data.frames import FrameSet

    _frame(tmp_path / "a.tif")
    (tmp_path / "a.csv").write_text(",X,Y\n1,10,20\n2,30,40\n")
    words = [
        "data",
        "import",
        str(tmp_path / "a.tif"),
        "--truth",
        "csv",
        "--pixel-size-pm",
        "29.3",
        "--condition",
        "ptnc-hpai",
        "--out",
        str(tmp_path / "set"),
    ]
    assert main(words) == 0
    frames = FrameSet.open(str(tmp_path / "set"))
    assert frames.truth(0)[:, :2].tolist() == [[20, 10], [40, 30]]
    assert frames.condition.id == "ptnc-hpai"


@pytest.mark.parametrize(
    ("names", "shapes", "options", "said"),
    [
        pytest.param(["a.tif"], [(64, 64)], [], "no pixel size", id="no-pixel-size"),
        pytest.param(
            ["a.tif", "b.tif"],
            [(64, 64), (32, 32)],
            ["--pixel-size-pm", "20"],
            "different shapes",
            id="shapes",
        ),
        pytest.param(
            ["a.tif"],
            [(64, 64)],
            ["--pixel-size-pm", "20", "--truth", "csv"],
            "a.csv",
            id="no-truth",
        ),
    ],
)
def test_an_import_that_cannot_be_whole_writes_nothing(
    tmp_path: Path,
    names: list[str],
    shapes: list[tuple[int, int]],
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [str(_frame(tmp_path / n, s)) for n, s in zip(names, shapes, strict=True)]
    assert main(["data", "import", *files, *options, "--out", str(tmp_path / "set")]) in (2, 4)
    assert said in capsys.readouterr().err
    assert main(["data", "show", str(tmp_path / "set")]) == 4


def test_every_unreadable_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.dm4", "b.emd"):
        (tmp_path / name).write_text("not an image")
    files = [str(tmp_path / "a.dm4"), str(tmp_path / "b.emd")]
    assert main(["data", "import", *files, "--out", str(tmp_path / "set")]) == 2
    told = capsys.readouterr().err
    assert "a.dm4" in told
    assert "b.emd" in told


def test_a_csv_table_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "-o", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["check"] for row in rows} >= {"packages", "disk", "zoo folder", "frame store"}


@pytest.mark.parametrize("words", [["status"], ["zoo", "ls"], ["data", "ls"]])
def test_an_empty_platform_answers(words: list[str]) -> None:
    assert main(words) == 0


@pytest.mark.usefixtures("an_empty_zoo")
@pytest.mark.parametrize("words", [["status"], ["up"], ["doctor"]])
@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1", "ray://[::1]:1"])
def test_a_cluster_that_does_not_answer_is_not_called_up(
    words: list[str], address: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MANYBEAM_RAY_ADDRESS", address)
    settings.cache_clear()
    code = main([*words, "-o", "json"])
    said = capsys.readouterr()
    row = next(one for one in json.loads(said.out) if "ray" in one.values())
    assert (code, row["state"]) == ((1, "failed") if words == ["doctor"] else (3, "unreachable"))
    assert f"no Ray cluster answers at {address!r}" in said.err + row.get("found", "")


@pytest.mark.usefixtures("an_empty_zoo")
@pytest.mark.parametrize(
    ("code", "state"),
    [
        (200, "another server answers (HTTP 200)"),
        (503, "not ready (HTTP 503)"),
        (403, "not ready (HTTP 403)"),
    ],
)
@pytest.mark.parametrize(
    ("setting", "part"), [("SERVICE_URL", "service"), ("CONTROL_URL", "pages")]
)
def test_a_server_that_is_another_or_not_ready_is_told(
    setting: str,
    part: str,
    code: int,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"<html>router</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv(f"MANYBEAM_{setting}", f"http://127.0.0.1:{server.server_port}/")
        settings.cache_clear()
        assert main(["status", "-o", "json"]) == 0
        thread.join()
    states = {row["part"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states[part] == state


def test_a_head_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MANYBEAM_HOME", str(tmp_path))
    settings.cache_clear()
    (tmp_path / "head.json").mkdir()  # even root cannot read a folder as a file
    assert main(["status", "-o", "json"]) == 3
    shown = capsys.readouterr()
    states = {row["part"]: row["state"] for row in json.loads(shown.out)}
    assert states["ray"] == "unreachable"
    assert "head.json cannot be read" in shown.err
    assert main(["down"]) != 0
    assert "head.json cannot be read" in capsys.readouterr().err


def test_a_demo_whose_port_is_held_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        job = str(ROOT / "jobs" / "quickstart.yaml")
        assert main(["demo", "--job", job, "--out", str(tmp_path / "out"), "--port", port]) == 6
    assert f"port {port}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_demo_never_points_at_a_facility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manybeam.cli.demo.command import FACILITY, _point_settings_at

    for name in (*FACILITY, "HOME", "SERVICE_URL"):
        monkeypatch.setenv(f"MANYBEAM_{name}", "s3://facility/frames")
    (tmp_path / "manybeam.toml").write_text('store = "s3://facility/frames"\n')
    monkeypatch.chdir(tmp_path)
    _point_settings_at(tmp_path / "out", 8100)
    assert Path(settings().store_url).is_relative_to(tmp_path / "out")
    assert settings().tracking_url.startswith("sqlite:///")


def test_atoms_outside_the_frame_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _frame(tmp_path / "a.tif")
    (tmp_path / "a.csv").write_text("X,Y\n1000,2000\n")
    words = ["data", "import", str(tmp_path / "a.tif"), "--truth", "csv", "--pixel-size-pm", "20"]
    code = main([*words, "--out", str(tmp_path / "set")])
    told = capsys.readouterr().err
    assert code == 2, told
    assert "1 of 1 atoms lie outside" in told
    assert main(["data", "show", str(tmp_path / "set")]) == 4


def test_a_target_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = str(_frame(tmp_path / "a.tif"))
    assert main(["predict", frame, "--atoms", str(tmp_path / "no" / "a.csv")]) == 2
    assert "mkdir -p" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["conditions/graphene-60kv-nominal", "policies/graphene-nominal"])
def test_frames_are_simulated_from_a_yaml_file(kind: str, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.yaml", str(tmp_path / "frames")
    name = kind.split("/")[1]
    text = (ROOT / "zoo" / f"{kind}.yaml").read_text()
    mine.write_text(text.replace(f"id: {name}", "id: mine"))
    words = ["data", "simulate", str(mine), "--count", "1", "--side-px", "64", "--out", out]
    assert main(words) == 0
    assert FrameSet.open(out).condition.id == "mine"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        pytest.param(None, 4, "no file", id="absent"),
        pytest.param("id: mine\nbeam_kv: 60\n", 2, "mine.yaml:2: beam_kv", id="no condition"),
        pytest.param("- 1\n", 2, "a condition or a policy is needed", id="a list"),
    ],
)
def test_a_file_that_holds_no_condition_is_told(
    text: str | None, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    if text is not None:
        mine.write_text(text)
    assert main(["data", "simulate", str(mine), "--out", str(tmp_path / "frames")]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "frames").exists()


def test_a_missing_pixel_size_is_told_alike_wherever_one_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, np.random.default_rng(0).poisson(50, (64, 64)).astype(np.float32))
    commands = (["predict"], ["select"], ["data", "import", "--out", str(tmp_path / "frames")])
    told = set()
    for command in commands:
        assert main([*command, str(path)]) == 2
        told.add(capsys.readouterr().err.partition("error:")[2])
    assert len(told) == 1
    assert "no pixel size in scan.npy" in told.pop()


@pytest.fixture
def rehearsed_platform(
    rehearsed_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of the rehearsed platform, without preferences."""
    (tmp_path / "home").mkdir()
    shutil.copy(rehearsed_home / "zoo.db", tmp_path / "home" / "zoo.db")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()


def _good_frame(path: Path, rehearsed: Any) -> list[str]:
    """Write a frame as the members know them; return the words that name it."""
    made = rehearsed.drawn(0)
    tifffile.imwrite(path, made.frames_nyx[0])
    return [str(path), "--pixel-size-pm", str(float(made.pixel_size_pm[0]))]


@pytest.mark.usefixtures("rehearsed_platform")
def test_an_answer_under_a_bound_tells_how_far_its_positions_hold(
    tmp_path: Path, rehearsed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = _good_frame(tmp_path / "scan.tif", rehearsed)
    assert main(["predict", *frame, "-e", "graphene", "--false-atoms", "0.3", "-o", "json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["members"] == ["00", "01", "02"]
    assert row["position_90_pm"] > 0
    assert "not calibrated" not in row["why"]
    assert (row["false_atoms"], row["is_kept"]) == (0.3, True)
    assert (row["predicted_f1"] is None) == (row["kept"] < 1)


@pytest.mark.usefixtures("rehearsed_platform")
def test_a_bound_that_cannot_be_promised_is_told_and_no_atom_left_out(
    tmp_path: Path, rehearsed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = _good_frame(tmp_path / "scan.tif", rehearsed)
    rows = []
    for more in ([], ["--false-atoms", "0.0001"]):
        assert main(["predict", *frame, "-e", "graphene", *more, "-o", "json"]) == 0
        shown = capsys.readouterr()
        rows.append(json.loads(shown.out)[0])
    assert "bound of 0.0001 false atoms cannot be kept" in shown.err
    assert rows[0]["atoms"] == rows[1]["atoms"]
    assert "is_kept" not in rows[0]
    assert rows[1]["is_kept"] is False
    assert "bound of 0.0001 false atoms cannot be kept" in rows[1]["doubts"]


@pytest.mark.usefixtures("rehearsed_platform")
def test_of_a_stack_selection_says_that_it_judged_the_first_frame(
    tmp_path: Path, rehearsed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _good_frame(tmp_path / "scan.tif", rehearsed)
    frame = tifffile.imread(tmp_path / "scan.tif")
    for count, told in ((1, False), (5, True)):
        stack = np.stack([frame] * count)
        tifffile.imwrite(tmp_path / "scan.tif", stack, photometric="minisblack")
        assert main(["select", *words, "-e", "graphene", "-o", "id"]) == 0
        assert ("scan.tif: the first of 5 frames" in capsys.readouterr().err) is told


@pytest.mark.usefixtures("rehearsed_platform")
def test_selection_of_a_rehearsed_ensemble_shows_what_was_learnt(
    tmp_path: Path, rehearsed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = _good_frame(tmp_path / "scan.tif", rehearsed)
    assert main(["select", *frame, "-e", "graphene", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"simulated", "resembled", "forward"} <= set(rows[0])
    assert any(row["chosen"] for row in rows)


@pytest.mark.usefixtures("rehearsed_platform")
@pytest.mark.parametrize(
    ("share", "said"),
    [
        pytest.param("0.05", "manybeam calibrate graphene@1", id="never rehearsed"),
        pytest.param("1", "--false-atoms", id="whole"),
        pytest.param("-0.1", "--false-atoms", id="below nothing"),
        pytest.param("few", "--false-atoms", id="text"),
    ],
)
def test_a_bound_that_cannot_be_asked_for_is_refused(
    share: str,
    said: str,
    tmp_path: Path,
    rehearsed: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    frame = _good_frame(tmp_path / "scan.tif", rehearsed)
    assert main(["predict", *frame, "-e", "graphene@1", "--false-atoms", share]) == 2
    assert said in capsys.readouterr().err


def test_an_answer_in_zarr_holds_frame_maps_and_atoms(
    tmp_path: Path, tiny_members: Callable[[int], list[Any]]
) -> None:
    settings().home.mkdir()
    Zoo().register("graphene", tiny_members(2), job={"kind": "train"}, alias="serving")
    path, out = _frame(tmp_path / "scan.tif"), str(tmp_path / "answer")
    assert main(["predict", str(path), "--pixel-size-pm", "16", "--zarr", out]) == 0
    group = zarr.open_group(out, mode="r")["00000"]
    assert isinstance(group, zarr.Group)
    assert set(group.array_keys()) == {"frame", "mean", "std", "mi", "atoms"}
    mutual = np.asarray(group["mi"])
    assert mutual.shape == (64, 64)
    assert 0 <= mutual.min() <= mutual.max() <= np.log(2)


def test_auto_leaves_a_damaged_ensemble_out_and_says_so(
    embedded: Any,
    tiny_members: Callable[[int], list[Any]],
    use_settings: Callable[[dict[str, str]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    one, other = tiny_members(2)
    bad = embedded.register("bad", [one], job={}, alias="serving")
    embedded.register("good", [other], job={}, alias="serving")
    folder = next(tmp_path.rglob(f"*{bad.members[0].model_id}"))
    next(folder.rglob("weights.safetensors")).write_bytes(b"gone")
    shutil.rmtree(tmp_path / "cache")
    tifffile.imwrite(tmp_path / "scan.tif", np.random.default_rng(0).random((64, 64), np.float32))
    words = ["predict", str(tmp_path / "scan.tif"), "--pixel-size-pm", "16", "-o", "json"]
    assert main([*words, "-e", "auto"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)[0]["ensemble"] == "good@1"
    assert "bad@1 is left out: weights of member 00" in shown.err
    assert main([*words, "-e", "bad"]) == 1


def test_insecure_holds_for_the_command_and_what_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MANYBEAM_RAY_INSECURE", "0")
    settings.cache_clear()
    assert main(["--insecure", "conditions", "ls", "-o", "id"]) == 0
    settings.cache_clear()
    assert os.environ["MANYBEAM_RAY_INSECURE"] == "1"
    assert settings().ray_insecure

"""A home whose name holds what URLs read as their own: the whole way, from frames to backup."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.addresses import sqlite_path, sqlite_url
from manybeam.cli import main
from manybeam.settings import settings
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

NAMES = [
    pytest.param("what?mode=ro", id="question"),
    pytest.param("100%25 %zz", id="percent"),
    pytest.param("run #2", id="hash"),
    pytest.param("Labör 電子 'a\"b;&+", id="unicode"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_found_by_its_url(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "zoo.db"
    assert sqlite_path(sqlite_url(path)) == path


@pytest.mark.parametrize("name", NAMES)
def test_a_home_of_any_name_keeps_frames_and_networks_and_gives_them_back(
    name: str,
    tmp_path: Path,
    tiny_members: Callable[[int], list[Any]],
    use_settings: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, backup = tmp_path / name / "home", tmp_path / name / "backup"
    library = str(Path(__file__).parents[1] / "zoo")
    use_settings({"MANYBEAM_HOME": str(home), "MANYBEAM_ZOO": library})

    def run(*words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main([*words, "-o", "json"]) == 0, capsys.readouterr().err
        return list(json.loads(capsys.readouterr().out or "[]"))

    Zoo().register("tiny", tiny_members(2), job={"kind": "train"})
    frame = tmp_path / name / "frame.npy"
    np.save(frame, np.random.default_rng(0).random((64, 64), dtype=np.float32))
    main(["zoo", "promote", "tiny@1", "--to", "candidate", "--reason", "first"])
    frames = f"{settings().store_url}/plain"
    run("data", "import", str(frame), "--pixel-size-pm", "16", "--out", frames)
    asked = ("predict", str(frame), "-e", "tiny@1", "--pixel-size-pm", "16")
    answers = str(tmp_path / name / "answer.zarr")
    before = run(*asked, "--zarr", answers)
    assert [row["ref"] for row in run("zoo", "ls")] == ["tiny@1"]
    assert len(run("data", "ls")) == 1
    assert {row["state"] for row in run("status")} <= {"up", "not started"}
    run("backup", str(backup))

    use_settings({"MANYBEAM_HOME": str(tmp_path / f"{name} again")})
    run("restore", str(backup))
    assert run(*asked)[0]["atoms"] == before[0]["atoms"]
    assert len(run("data", "ls")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name} again"}

"""A home that is read-only: what only reads works, and copies lie in the user's own cache."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LIBRARY = Path(__file__).parents[1] / "zoo"
OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")  # root, or user namespaces
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        subprocess.run([*OWN_MOUNTS, "true"], capture_output=True, check=False).returncode != 0,
        reason="this system lets no process mount a folder for itself",
    ),
]


def read_only(home: Path, words: list[str]) -> str:
    """Return what a command prints while the folder is mounted read-only, for it alone."""
    command = shlex.join([sys.executable, "-m", "manybeam", *words, "-o", "json"])
    folder = shlex.quote(str(home))
    script = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && {command}"
    own = [*OWN_MOUNTS, "sh", "-c", script]
    done = subprocess.run(own, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else done.stderr


def test_what_only_reads_works_in_a_read_only_home(
    embedded: Any,
    tiny_members: Callable[[int], list[Any]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded.register("tiny", tiny_members(2), job={"kind": "train"}, alias="serving")
    own = tmp_path_factory.mktemp("user")
    frame = own / "frame.npy"
    np.save(frame, np.random.default_rng(0).random((96, 96), dtype=np.float32))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("MANYBEAM_HOME", str(tmp_path))
    monkeypatch.setenv("MANYBEAM_ZOO", str(LIBRARY))
    monkeypatch.setenv("XDG_CACHE_HOME", str(own / "cache"))
    listed = json.loads(read_only(tmp_path, ["zoo", "ls"]))
    words = ["predict", str(frame), "-e", "tiny", "--pixel-size-pm", "16"]
    answered = json.loads(read_only(tmp_path, words))
    assert [one["ref"] for one in listed] == ["tiny@1"]
    assert answered[0]["ensemble"] == "tiny@1"
    assert sorted(tmp_path.rglob("*")) == before
    assert list((own / "cache" / "manybeam").glob("*/catalogue.db"))


def test_a_moved_home_that_is_read_only_says_what_to_do(
    embedded: Any,
    tiny_members: Callable[[int], list[Any]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded.register("tiny", tiny_members(1), job={"kind": "train"}, alias="serving")
    moved = tmp_path_factory.mktemp("elsewhere") / "home"
    shutil.copytree(tmp_path, moved)
    monkeypatch.setenv("MANYBEAM_HOME", str(moved))
    monkeypatch.setenv("XDG_CACHE_HOME", str(moved.with_name("cache")))
    said = read_only(moved, ["zoo", "ls"])
    assert "were moved" in said
    assert "nothing is lost" in said

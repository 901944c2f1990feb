"""The demo from end to end, small: every chapter runs, and a second run goes on from the first."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from manybeam.cluster.running import head

pytestmark = pytest.mark.needs("demo")

ROOT = Path(__file__).parents[2]
CHAPTERS = (
    "Different days, different networks",
    "What to do next",
    "Why this choice for the frame above",
    "Is the predicted F1 right?",
    "Members and their policies",
    "All ways to answer",
    "Are the probabilities right?",
    "One round of adaptation",
)
OPENING = (
    "Manybeam finds atoms in microscope frames with an ensemble",
    "An unseen frame",
    "The truth",
    "All 2 members",
    "Selected: member",
    "F1 says how good an answer is",
)


def _small_job(folder: Path) -> Path:
    """Write a job of two members, trained for seconds, with a zoo of its own beside it."""
    (folder / "jobs").mkdir(parents=True)
    zoo = folder / "zoo"
    for kind in ("conditions", "policies", "recipes"):
        (zoo / kind).mkdir(parents=True)
    names = [
        "conditions/graphene-60kv-nominal",
        "conditions/graphene-60kv-dirty",
        "conditions/graphene-60kv-mix-c",
        "policies/graphene-nominal",
        "policies/graphene-general",
    ]
    for name in names:
        (zoo / f"{name}.yaml").write_text((ROOT / "zoo" / f"{name}.yaml").read_text())
    recipe = {
        "id": "small",
        "network": {"filters": 6, "levels": 2},
        "training": {"steps": 60, "batch": 8, "checkpoint_every": 20},
        "tiles": {"tile_px": 64, "frames_per_policy": 16},
        "members": [
            {"seed": 1, "policy": "graphene-nominal"},
            {"seed": 1, "policy": "graphene-general"},
        ],
    }
    (zoo / "recipes" / "small.yaml").write_text(yaml.safe_dump(recipe))
    job = {
        "kind": "train",
        "name": "small",
        "recipe": "small",
        "resources": {"workers": 1},  # each takes seconds to start
        "measure": {
            "conditions": ["graphene-60kv-nominal", "graphene-60kv-dirty"],
            "frames_per_condition": 2,
        },
    }
    path = folder / "jobs" / "small.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def _start(job: Path, out: Path, port: int) -> subprocess.Popen[str]:
    words = ["demo", "--job", str(job), "--out", str(out), "--port", str(port), "--frames", "200"]
    environment = {**os.environ, "MANYBEAM_ZOO": str(job.parent.parent / "zoo")}
    return subprocess.Popen(
        [sys.executable, "-m", "manybeam", *words],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def _demo(job: Path, out: Path, port: int) -> str:
    """Run a demo to its end and return what it said."""
    with _start(job, out, port) as running:
        said = running.communicate(timeout=500)[1]
    assert running.returncode == 0, said
    return said


def _interrupted(job: Path, out: Path, port: int, chapter: str) -> str:
    """Press Ctrl-C once a chapter has begun and return what the demo said."""
    with _start(job, out, port) as running:
        said = ""
        for line in running.stderr or ():
            said += line
            if line.startswith(chapter):
                running.send_signal(signal.SIGINT)
        running.wait(timeout=200)
    assert running.returncode == 130, said
    return said


def test_the_demo_runs_to_its_report_and_goes_on_when_run_again(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    job, out = _small_job(tmp_path), tmp_path / "out"
    assert "interrupted" in _interrupted(job, out, free_port(), "3.")
    assert head(out / "platform") is None
    assert "member 00: 100 %, loss" in _demo(job, out, free_port())
    page = (out / "report.html").read_text()
    words = [*OPENING, *(f"<h2>{chapter}" for chapter in CHAPTERS)]
    places = [page.find(word) for word in words]
    assert places == sorted(places)
    assert places[0] > 0
    assert page.count("data:image/png;base64,") >= 4
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert head(out / "platform") is None
    facts = json.loads((out / "demo.json").read_text())
    again = _demo(job, out, free_port())
    assert "member 00: 100 %, loss" not in again
    assert "calibrate: 100 %" not in again
    assert json.loads((out / "demo.json").read_text())["ref"] == facts["ref"]

"""The wheel of the client on the oldest and the newest Python here, against the service."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

OLDEST = (3, 7)
NAME = re.compile(r"(?:python)?3\.(\d+)(?:\.\d+)?")

# Runs on Python 3.7, so nothing here may be newer.
CHECKS = """
import logging, sys, uuid
import numpy as np
import manybeam_client
from manybeam_client import Session, check

url, spool = sys.argv[1:]
frame = np.random.RandomState(0).rand(48, 56).astype(">f4")
report = check(url, instrument="STEM-of-pythons")
assert report, str(report)
with Session(url, instrument=uuid.uuid4().hex, pixel_size_pm=16, want=("atoms", "mean")) as one:
    answer = one.predict(np.asfortranarray(frame), frame_id="first")
    answer.raise_for_error()
    assert answer.maps["mean"].shape == frame.shape and len(answer.spread_pm) == len(answer.atoms)
    for transport in ("http", "websocket"):
        for policy in ("all", "latest"):
            answers = list(one.stream([frame] * 5, policy=policy, transport=transport))
            assert answers and all(answers), answers
            assert np.array_equal(answers[-1].atoms, answer.atoms, equal_nan=True)
    assert one.predict(frame, deadline_ms=1).error.kind == "deadline"
logging.getLogger("manybeam_client").addHandler(logging.NullHandler())
with Session("http://127.0.0.1:9", spool=spool) as away:
    assert away.predict(frame).error.kind == "connection"
    while away.predict(frame).error.kind != "offline":
        pass  # health is asked beside the frames
    assert away.spooled
print("passed", sys.version_info[:2], len(answer.atoms))
"""


def pythons() -> list[tuple[int, Path]]:
    """Return (minor version, program) of each Python 3 that the client is for, oldest first."""
    found = {sys.version_info[1]: Path(sys.executable)}
    for folder in os.environ["PATH"].split(os.pathsep):
        for path in Path(folder).glob("python3.*"):
            if match := NAME.fullmatch(path.name):
                found.setdefault(int(match[1]), path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in (pyenv / "versions").glob("3.*"):
        if match := NAME.fullmatch(path.name):
            found[int(match[1])] = path / "bin" / "python"  # not pyenv's launcher, of the PATH
    return sorted((minor, path) for minor, path in found.items() if minor >= OLDEST[1])


FOUND = pythons()


@pytest.mark.slow
@pytest.mark.skipif(len(FOUND) < 2, reason=f"there is one Python here only: {FOUND}")
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
@pytest.mark.parametrize("place", [pytest.param(0, id="oldest"), pytest.param(-1, id="newest")])
def test_the_wheel_runs_on_the_oldest_and_the_newest_python(
    wheel: Path, url: str, tmp_path: Path, place: int
) -> None:
    minor, program = FOUND[place]
    own = tmp_path / "venv" / "bin" / "python"
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*argv: object) -> str:
        words = [str(word) for word in argv]
        done = subprocess.run(words, env=known, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run(program, "-m", "venv", tmp_path / "venv")
    run(own, "-m", "pip", "install", "--quiet", "--prefer-binary", f"{wheel}[stream]")
    told = run(own, "-W", "error", "-c", CHECKS, url, tmp_path / "spool")
    assert told.startswith(f"passed (3, {minor})")

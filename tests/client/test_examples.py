"""The examples run: a simulated scan, a folder instead of SerialEM, a stand-in for GMS."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

CLIENT = Path(__file__).parents[2] / "platform" / "client"

# As much of GMS's module as the example uses.
GMS = '''"""A stand-in for GMS."""
import numpy
class Image:
    def GetNumArray(self): return numpy.random.RandomState(0).rand(64, 64).astype("f4")
    def GetDimensionCalibration(self, axis, form): return 0.0, 0.016, "nm"
    def GetImageDisplay(self, number): return Display()
class Display:
    def AddROI(self, region): print("marked", *region.sides)
class Region:
    def SetRectangle(self, *sides): self.sides = sides
def GetFrontImage(): return Image()
def NewROI(): return Region()
def OkDialog(text): print("dialog:", text)
'''

Run = Callable[..., str]


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    """Run an example; return what it printed."""

    def start(name: str, *words: str, at: str = url) -> str:
        path = os.pathsep.join([str(CLIENT), str(tmp_path)])
        known = {**os.environ, "PYTHONPATH": path, "MANYBEAM_URL": at}
        argv = [sys.executable, str(CLIENT / "examples" / name), *words]
        done = subprocess.run(argv, env=known, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return start


def test_the_loop_of_ten_lines_runs(run: Run, url: str) -> None:
    *lines, stats = run("loop.py", url).splitlines()
    assert all("atoms, version 2" in line for line in lines)
    assert f"answered={len(lines)}" in stats


def test_the_loop_of_serialem_reads_a_folder_where_there_is_no_microscope(
    run: Run, url: str, frame: Any, tmp_path: Path
) -> None:
    for _ in range(2):
        np.save(tmp_path / f"{uuid.uuid4().hex}.npy", frame)
    lines = run("serialem_loop.py", url, str(tmp_path)).splitlines()
    assert ["atoms" in line for line in lines] == [True, True, False]
    away = run("serialem_loop.py", "http://127.0.0.1:9", str(tmp_path)).splitlines()
    assert all(line.startswith("no answer: ") for line in away[:2])


def test_the_script_of_gms_marks_the_atoms_of_the_front_image(run: Run, tmp_path: Path) -> None:
    (tmp_path / "DigitalMicrograph.py").write_text(GMS)
    *marks, told = run("digitalmicrograph.py").splitlines()
    assert told.startswith(f"{len(marks)} atoms")
    assert all(line.startswith("marked ") for line in marks)
    (tmp_path / "DigitalMicrograph.py").write_text(GMS.replace('0.016, "nm"', '1.6, "nm"'))
    assert " atoms" in run("digitalmicrograph.py")  # out of range, so no pixel size is sent
    assert run("digitalmicrograph.py", at="http://127.0.0.1:9").startswith("dialog: no answer")

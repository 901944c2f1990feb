"""Speed of FrameSets beside the plain file they are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.frames import FrameSet
from manybeam.spec import Condition

FRAMES = np.random.default_rng(0).normal(size=(64, 512, 512)).astype(np.float32)
TRUTH = [np.ones((300, 3), np.float32)] * 64


@pytest.fixture
def filled(tmp_path: Path) -> FrameSet:
    made = FrameSet.create(tmp_path / "set", Condition(id="test"), (512, 512))
    made.append(FRAMES, TRUTH, 20.0)
    return made


def test_append_64_frames_of_512(benchmark: Any, tmp_path: Path) -> None:
    made = FrameSet.create(tmp_path / "set", Condition(id="test"), (512, 512))
    benchmark.pedantic(made.append, (FRAMES, TRUTH, 20.0), rounds=3)


def test_save_64_frames_of_512_as_npy(benchmark: Any, tmp_path: Path) -> None:
    benchmark.pedantic(np.save, (tmp_path / "a.npy", FRAMES), rounds=3)


def test_open_a_frame_set(benchmark: Any, filled: FrameSet) -> None:
    benchmark(FrameSet.open, filled.url)


def test_read_64_frames_of_512(benchmark: Any, filled: FrameSet) -> None:
    benchmark(filled.frames)


def test_read_one_frame_of_512(benchmark: Any, filled: FrameSet) -> None:
    benchmark(filled.frame, 7)


def test_verify_64_frames_of_512(benchmark: Any, filled: FrameSet) -> None:
    benchmark(filled.verify)

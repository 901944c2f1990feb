"""Doubtful frames: kept with consent, whole, bounded, and never in the way."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from manybeam.data.frames import FrameSet, list_framesets
from manybeam.data.io.frame import Frame
from manybeam.data.store import open_store
from manybeam.errors import InvalidInput
from manybeam.serve.monitor.doubtful import AT_ONCE, FACTS, DoubtfulFrames
from manybeam.settings import settings
from manybeam.spec import Library

CONDITION = Library(Path(__file__).parents[1] / "zoo").conditions["graphene-60kv-nominal"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})


def frame(number: int, shape: tuple[int, int] = (32, 32)) -> Frame:
    pixels_yx = np.random.default_rng(number).normal(size=shape).astype(np.float32)
    return Frame(pixels_yx, 16.0, CONDITION)


def kept(count: int, *, most: int = 500, instrument: str = "STEM-1") -> DoubtfulFrames:
    doubtful = DoubtfulFrames()
    for number in range(count):
        doubtful.add(instrument, frame(number), {"frame_id": f"f{number}"}, most=most)
    doubtful.close()
    return doubtful


def sets() -> list[FrameSet]:
    found = list_framesets(f"{settings().store_url}/frames/doubtful")
    return [FrameSet.open(url) for url in found]


def test_frames_are_kept_in_sets_of_a_round_with_their_facts() -> None:
    doubtful = kept(AT_ONCE + 3)
    first, second = sets()
    assert (len(first), len(second), doubtful.kept, doubtful.dropped) == (AT_ONCE, 3, 19, 0)
    np.testing.assert_array_equal(first.frame(1), frame(1).pixels_yx)
    assert second.pixel_size_pm(0) == 16.0
    facts = json.loads(open_store(second.url).get(FACTS))
    assert [one["frame_id"] for one in facts] == ["f16", "f17", "f18"]


def test_no_more_frames_are_kept_than_the_session_allows_also_after_a_restart() -> None:
    assert kept(30, most=20).dropped == 10
    assert kept(5, most=20).kept == 0
    assert sum(map(len, sets())) == 20


def test_without_consent_nothing_is_kept() -> None:
    kept(5, most=0)
    assert sets() == []


def test_frames_of_other_shapes_are_sets_of_their_own() -> None:
    doubtful = DoubtfulFrames()
    for shape in ((32, 32), (48, 32)):
        doubtful.add("STEM-1", frame(1, shape), {}, most=9)
    doubtful.close()
    assert sorted(one.shape for one in sets()) == [(32, 32), (48, 32)]


def test_frames_are_dropped_while_the_store_is_away(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    doubtful = kept(3)
    assert (doubtful.kept, doubtful.dropped) == (0, 3)


def test_an_instrument_cannot_name_another_folder() -> None:
    with pytest.raises(InvalidInput, match="cannot be the id"):
        kept(1, instrument="../zoo")

"""Doubtful and marked frames: kept whole in FrameSets that take no more than was agreed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.frames import FrameSet
from manybeam.data.io.frame import Frame
from manybeam.errors import ManybeamError
from manybeam.serve.monitor import doubtful
from manybeam.serve.monitor.doubtful import DoubtfulFrames

PIXELS = np.random.default_rng(0).random((9, 32, 48), dtype=np.float32)


@pytest.fixture
def counted() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, counted: list[str]) -> Iterator[Callable[[], DoubtfulFrames]]:
    made: list[DoubtfulFrames] = []

    def begin() -> DoubtfulFrames:
        made.append(DoubtfulFrames(str(tmp_path), counted.append))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def frame(number: int, **more: Any) -> Frame:
    return Frame(PIXELS[number], **{"pixel_size_pm": 16.0 + number, **more})


def notes(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((tmp_path / f"{name}.json").read_text())
    return found


def test_a_marked_frame_is_kept_with_its_size_and_what_is_known_of_it(
    make: Callable[[], DoubtfulFrames], tmp_path: Path
) -> None:
    keeper = make()
    url = keeper.mark("STEM-1", 7, frame(0), {"frame_id": "a"})
    assert keeper.mark("STEM-1", 7, frame(1), {"frame_id": "b"}) == url
    found = FrameSet.open(url)
    np.testing.assert_array_equal(found.frames(), PIXELS[:2])
    assert [found.pixel_size_pm(number) for number in range(2)] == [16.0, 17.0]
    name = url.removeprefix(f"{tmp_path}/")
    assert [one["frame_id"] for one in notes(tmp_path, name)] == ["a", "b"]


def test_a_frame_that_is_marked_again_is_kept_once_for_a_new_process_too(
    make: Callable[[], DoubtfulFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubtful, "MOST_MARKED", 2)
    keeper = make()
    urls = [keeper.mark("STEM-1", 7, frame(number), {"frame_id": str(number)}) for number in (0, 1)]
    urls += [one.mark("STEM-1", 7, frame(0), {"frame_id": "0"}) for one in (keeper, make())]
    assert len(set(urls)) == 1
    np.testing.assert_array_equal(FrameSet.open(urls[0]).frames(), PIXELS[:2])


@pytest.mark.parametrize("text", ["no json", "{}", '[7, {"other": 1}]'])
def test_a_list_that_a_person_spoilt_costs_no_frame(
    make: Callable[[], DoubtfulFrames], tmp_path: Path, text: str
) -> None:
    url = make().mark("STEM-1", 7, frame(0), {"frame_id": "a"})
    name = url.removeprefix(f"{tmp_path}/")
    (tmp_path / f"{name}.json").write_text(text)
    assert make().mark("STEM-1", 7, frame(1), {"frame_id": "b"}) == url
    assert notes(tmp_path, name) == [{}, {"frame_id": "b"}]


def test_a_session_keeps_as_many_doubtful_frames_as_it_agreed_to(
    make: Callable[[], DoubtfulFrames], tmp_path: Path, counted: list[str]
) -> None:
    keeper = make()
    for number in range(5):
        keeper.add("STEM-1", 7, frame(number), {"frame_id": str(number)}, 3)
        keeper.mark("STEM-2", 8, frame(number), {})  # waits until those before it are kept
    assert counted.count("left-out") == 2
    assert len(FrameSet.open(tmp_path / "frames/doubtful/STEM-1/session-7-32x48")) == 3


def test_sessions_and_shapes_have_sets_of_their_own(make: Callable[[], DoubtfulFrames]) -> None:
    keeper = make()
    small = Frame(PIXELS[0, :16, :16])
    urls = {
        keeper.mark("STEM-1", 7, frame(0), {}),
        keeper.mark("STEM-1", 8, frame(0), {}),
        keeper.mark("STEM-1", 7, small, {}),
    }
    assert len(urls) == 3
    assert FrameSet.open(keeper.mark("STEM-1", 7, small, {})).pixel_size_pm(0) is None


def test_a_new_process_adds_to_the_set_of_the_one_before(
    make: Callable[[], DoubtfulFrames], tmp_path: Path
) -> None:
    url = make().mark("STEM-1", 7, frame(0), {"frame_id": "a"})
    (
        tmp_path / f"{url.removeprefix(f'{tmp_path}/')}.json"
    ).unlink()  # it ended before it noted that
    make().mark("STEM-1", 7, frame(1), {"frame_id": "b"})
    assert len(FrameSet.open(url)) == 2
    assert notes(tmp_path, url.removeprefix(f"{tmp_path}/")) == [{}, {"frame_id": "b"}]


def test_a_set_that_an_adaptation_reads_stays_as_it_was_opened(
    make: Callable[[], DoubtfulFrames],
) -> None:
    keeper = make()
    opened = FrameSet.open(keeper.mark("STEM-1", 7, frame(0), {}))
    keeper.mark("STEM-1", 7, frame(1), {})
    assert len(opened) == 1
    np.testing.assert_array_equal(opened.frames(), PIXELS[:1])


def test_a_store_that_fails_costs_the_frame_and_says_so(
    make: Callable[[], DoubtfulFrames], tmp_path: Path, counted: list[str]
) -> None:
    keeper = make()
    (tmp_path / "frames").write_text("a file in the way")
    with pytest.raises(ManybeamError):
        keeper.mark("STEM-1", 7, frame(0), {})
    (tmp_path / "frames").unlink()
    assert keeper.mark("STEM-1", 7, frame(1), {})
    assert counted == ["left-out", "kept"]


def test_after_its_end_nothing_is_kept_and_nothing_raises(
    make: Callable[[], DoubtfulFrames], tmp_path: Path, counted: list[str]
) -> None:
    keeper = make()
    keeper.close()
    keeper.add("STEM-1", 7, frame(0), {}, 3)
    assert counted == ["left-out"]
    assert not (tmp_path / "frames").exists()


def test_the_limit_is_of_the_session_with_all_its_shapes_and_can_be_raised(
    make: Callable[[], DoubtfulFrames], counted: list[str]
) -> None:
    keeper = make()
    frames = [frame(0), Frame(PIXELS[1, :16, :16]), frame(2), frame(3)]
    for one, most in zip(frames, (2, 2, 2, 3), strict=True):
        keeper.add("STEM-1", 7, one, {}, most)
        keeper.mark("STEM-2", 8, one, {})  # waits until those before it are kept
    assert counted.count("left-out") == 1
    again = make()
    again.add("STEM-1", 7, frame(4), {}, 3)
    again.mark("STEM-2", 8, frame(4), {})
    assert counted.count("left-out") == 2

"""predictor.condition_distance: the features of measured conditions, kept on this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from manybeam.predictor import condition_distance
from manybeam.predictor.condition_distance import feature_distances
from manybeam.settings import settings
from manybeam.spec import Library

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
KNOWN = [LIBRARY.condition(f"graphene-60kv-{name}") for name in ("nominal", "lowdose")]
FRAME = np.random.default_rng(5).poisson(4.0, (64, 64)).astype(np.float32)
DAMAGED = [
    pytest.param(lambda whole: whole[:-9], id="cut short"),
    pytest.param(lambda _: b"", id="empty"),
    pytest.param(lambda _: b"\x93NUMPY\x01\x00", id="a start only"),
    pytest.param(lambda _: b"not numbers", id="something else"),
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> Iterator[None]:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    condition_distance._reference.cache_clear()
    yield
    condition_distance._reference.cache_clear()


def files() -> list[Path]:
    return sorted((settings().home / "cache" / "features").glob("*.npy"))


def in_another_process(pixel_size_pm: float | None = 16.0) -> list[float]:
    condition_distance._reference.cache_clear()
    return feature_distances(FRAME, pixel_size_pm, KNOWN)


def test_each_condition_is_simulated_once_in_a_home() -> None:
    first = feature_distances(FRAME, 16.0, KNOWN)
    made = {file: file.stat().st_mtime_ns for file in files()}
    assert len(made) == len(KNOWN)
    assert in_another_process() == first
    assert {file: file.stat().st_mtime_ns for file in files()} == made


def test_what_is_kept_is_what_answers() -> None:
    first = feature_distances(FRAME, 16.0, KNOWN)
    np.save(files()[0], np.load(files()[0]) + 1)
    assert in_another_process() != first


def test_features_in_pixels_are_others() -> None:
    sized = feature_distances(FRAME, 20.0, KNOWN)  # without a size, 16 pm is assumed
    assert in_another_process(None) != sized
    assert len(files()) == 2 * len(KNOWN)


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_made_anew(damage: Callable[[bytes], bytes]) -> None:
    first = feature_distances(FRAME, 16.0, KNOWN)
    whole = files()[0].read_bytes()
    files()[0].write_bytes(damage(whole))
    assert in_another_process() == first
    assert files()[0].read_bytes() == whole


def test_a_home_that_cannot_be_written_only_takes_longer() -> None:
    settings().home.write_text("a file")
    assert len(feature_distances(FRAME, 16.0, KNOWN)) == len(KNOWN)

"""Watches of known conditions: made once by another process, kept, and made anew if broken."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.predictor.stream.drift import DriftWatch
from manybeam.serve.monitor.known_watches import KnownWatches

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., KnownWatches]]:
    made: list[KnownWatches] = []

    def begin(**more: Any) -> KnownWatches:
        made.append(KnownWatches(tmp_path / "watches", 60, **more))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def found(known: KnownWatches, *, has_pixel_size: bool = True) -> DriftWatch | None:
    """Wait until a watch is known, or it is known that there is none."""
    key = "graphene@1", has_pixel_size
    while key not in known._held:
        known.get(key[0], has_pixel_size=has_pixel_size)
        if known._due.get(key, np.inf) < known._clock() + 100:
            return None  # it failed, and is tried again later
        time.sleep(0.02)  # nobody tells when it is made
    return known.get(key[0], has_pixel_size=has_pixel_size)


@pytest.fixture
def zoo(
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    tiny_members: Callable[[int], list[Any]],
) -> None:
    """A zoo whose version was measured with a good F1 on one condition that can be simulated."""
    from datetime import UTC, datetime

    from manybeam.zoo.matrix import ENSEMBLE, Score
    from manybeam.zoo.registry import Zoo

    use_settings({"MANYBEAM_HOME": str(tmp_path / "home"), "MANYBEAM_ZOO": str(ROOT / "zoo")})
    (tmp_path / "home").mkdir()
    score = Score(
        ENSEMBLE, "graphene-60kv-nominal", "0" * 16, {"f1": 0.97}, taken=datetime.now(UTC)
    )
    Zoo().register("graphene", tiny_members(1), job={}, scores=[score], alias="serving")


def test_a_watch_is_made_once_and_read_by_the_next_process(
    zoo: None,  # noqa: ARG001 - the version is in it
    make: Callable[..., KnownWatches],
    tmp_path: Path,
) -> None:
    watch = found(make())
    assert watch is not None
    assert watch.has_pixel_size
    (path,) = (tmp_path / "watches").glob("known-*.json")
    made = path.stat().st_mtime_ns
    again = found(make())
    assert again is not None
    assert again.state() == watch.state()
    assert path.stat().st_mtime_ns == made
    path.write_text('{"state": "half a f')
    assert make()._read(path) is None  # so it is made anew


def test_an_absent_version_is_tried_again_later(
    zoo: None,  # noqa: ARG001 - another version is in it
    make: Callable[..., KnownWatches],
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = make()
    known.get("nothing@1", has_pixel_size=True)
    while not known._due["nothing@1", True] < known._clock() + 100:
        time.sleep(0.02)  # nobody tells when it has failed
    assert "nothing" in caplog.text


def test_closing_ends_the_process_that_makes_a_watch(
    zoo: None,  # noqa: ARG001 - the version is in it
    make: Callable[..., KnownWatches],
) -> None:
    known = make()
    known.get("graphene@1", has_pixel_size=False)
    while known._process is None:
        time.sleep(0.01)  # nobody tells when it was started
    process = known._process
    known.close()
    assert process.poll() is not None

"""Watches by the conditions that a version knows: made once, kept, and never waited for."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from manybeam.predictor.stream.drift import DriftWatch
from manybeam.serve.monitor.known_watches import KnownWatches, _digest, _made
from manybeam.spec import Library
from manybeam.zoo.matrix import Matrix, Score

pytestmark = pytest.mark.slow

LIBRARY = Library(Path(__file__).parents[1] / "zoo")


def matrix(f1: float) -> Matrix:
    return Matrix([Score(-1, "graphene-60kv-nominal", "d", {"f1": f1})])


def test_a_watch_of_the_known_conditions_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "watches" / "a.json"
    state = _made(matrix(0.95), LIBRARY, path, 60, has_pixel_size=True)
    assert path.read_text() == state
    assert DriftWatch.restore(state).has_pixel_size


def test_a_version_that_knows_no_condition_has_no_watch(tmp_path: Path) -> None:
    assert _made(matrix(0.5), LIBRARY, tmp_path / "a.json", 60, has_pixel_size=True) == ""
    assert list(tmp_path.iterdir()) == []


def test_what_decides_a_watch_decides_its_name() -> None:
    names = {
        _digest(matrix(f1), LIBRARY, count, has_pixel_size=has)
        for f1, count, has in ((0.95, 60, True), (0.96, 60, True), (0.95, 80, True))
    } | {_digest(matrix(0.95), LIBRARY, 60, has_pixel_size=False)}
    assert len(names) == 4


def test_a_version_that_cannot_be_read_is_not_waited_for_and_told_once(
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    watches = KnownWatches()
    assert watches.get("graphene@1", has_pixel_size=True) is None
    for thread in threading.enumerate():
        if thread.name.startswith("watch of"):
            thread.join(60)
    assert watches.get("graphene@1", has_pixel_size=True) is None
    watches.close()
    (told,) = (one.message for one in caplog.records if "known conditions" in one.message)
    assert "graphene@1" in told

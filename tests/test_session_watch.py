"""The drift watch of a session: what it says, what it learns from, and that it never stops."""

import numpy as np
import pytest

from manybeam.errors import Corrupt, InvalidInput
from manybeam.predictor.stream.drift import LOG_SIZE, DriftWatch
from manybeam.predictor.stream.session_watch import (
    CALM,
    FEATURE_COUNT,
    LEARNT,
    MOST_LEARNT,
    SessionWatch,
    WatchChange,
)

pytestmark = pytest.mark.slow


def rows(count: int, seed: int, shift: float = 0.0, size: float | None = 2.77) -> np.ndarray:
    """Return features of frames about a place, all with one pixel size or all without."""
    made = np.random.default_rng(seed).normal(shift, 1, (count, FEATURE_COUNT))
    made[:, LOG_SIZE] = np.nan if size is None else size
    return made


def see(watch: SessionWatch, many: np.ndarray, name: str = "f") -> list[WatchChange]:
    return [told for k, row in enumerate(many) if (told := watch.see(f"{name}{k}", row))]


@pytest.fixture(scope="module")
def known() -> DriftWatch:
    return DriftWatch(rows(200, 1))


@pytest.fixture(scope="module")
def learnt() -> str:
    """A session without known frames, after those that it learns from."""
    watch = SessionWatch()
    assert see(watch, rows(LEARNT, 2)) == []
    return watch.to_json()


@pytest.fixture(scope="module")
def drifted(known: DriftWatch) -> str:
    """A session that drifted, and has learnt from the frames since."""
    watch = SessionWatch(known)
    see(watch, rows(20, 3))
    see(watch, rows(LEARNT + 10, 4, 3), "g")
    return watch.to_json()


def test_a_session_with_known_frames_is_watched_from_its_first_frame(known: DriftWatch) -> None:
    watch = SessionWatch(known)
    assert see(watch, rows(30, 3)) == []
    assert watch.state == "in control"
    (told,) = see(watch, rows(10, 4, 3), "g")
    assert (told.is_drifted, told.since, told.before) == (True, "g0", "f29")
    assert told.score > 1
    assert told.why.startswith("the frames since g0 are unlike those that the version knows: ")
    assert told.changes in told.why
    assert watch.state == "drifted since g0"
    assert known.seen == 0  # other sessions share it


def test_a_session_without_known_frames_learns_from_its_first(learnt: str) -> None:
    watch = SessionWatch()
    see(watch, rows(12, 2))
    assert watch.state == f"learning 12 of {LEARNT}"
    watch = SessionWatch.restore(None, learnt)
    assert (watch.state, watch.score) == ("in control", 0.0)
    assert see(watch, rows(30, 5)) == []
    (told,) = see(watch, rows(10, 6, 3), "g")
    assert "unlike the first frames of the session" in told.why
    assert told.since == "g0"


def test_a_drifted_session_tells_of_what_changes_next(known: DriftWatch, drifted: str) -> None:
    watch = SessionWatch.restore(known, drifted)
    assert see(watch, rows(30, 5, 3), "h") == []
    (told,) = see(watch, rows(10, 6, -3), "i")
    assert (told.is_drifted, told.since, told.before) == (True, "i0", "h29")
    assert told.why.startswith("the frames since i0 changed again: ")
    assert watch.state == "drifted since g0"


def test_a_session_that_comes_back_is_in_control_and_drifts_again(
    known: DriftWatch, drifted: str
) -> None:
    watch = SessionWatch.restore(known, drifted)
    told = see(watch, rows(40, 7), "h")
    assert [one.is_drifted for one in told] == [True, False]  # it changed again, and is known
    assert told[-1].why == "the frames are like those that the version knows again"
    assert told[-1].score < 0.5
    assert (watch.state, watch.is_drifted) == ("in control", False)
    assert [one.since for one in see(watch, rows(10, 8, 3), "i")] == ["i0"]


@pytest.mark.parametrize("after", [1, 30, 75], ids=["alarm", "learning", "further"])
def test_a_restored_watch_goes_on_exactly(known: DriftWatch, after: int) -> None:
    stream = np.concatenate([rows(5, 3), rows(90, 4, 2), rows(30, 5, -2)])
    one, many = SessionWatch(known), []
    for place, row in enumerate(stream):
        if place == 5 + after:
            other = SessionWatch.restore(known, one.to_json())
        told = one.see(f"f{place}", row)
        if place >= 5 + after:
            many.append((told, one.score, one.state))
            assert (other.see(f"f{place}", row), other.score, other.state) == many[-1]
    assert any(told for told, _, _ in many)
    assert one.to_json() == other.to_json()


def test_a_session_at_the_edge_of_what_is_known_raises_one_alarm(known: DriftWatch) -> None:
    watch = SessionWatch(known)
    edge = [rows(10, seed, 3 * (seed % 2)) for seed in range(1, 12)]
    told = see(watch, np.concatenate(edge))
    assert [one.is_drifted for one in told] == [True]


def test_it_learns_on_while_nothing_changes_and_not_from_what_drifted(learnt: str) -> None:
    watch = SessionWatch.restore(None, learnt)
    see(watch, rows(MOST_LEARNT - LEARNT - 20, 5))
    size = len(watch.to_json())
    (told,) = see(watch, rows(5, 6, 3), "g")
    assert len(watch.to_json()) == pytest.approx(size, abs=5_000)
    see(watch, rows(CALM + 10 + 30, 7), "h")
    assert (told.since, watch.state) == ("g0", "in control")
    assert [one.since for one in see(watch, rows(10, 8, 2), "i")] == ["i0"]


def test_frames_without_features_are_left_out_and_counted(known: DriftWatch) -> None:
    watch = SessionWatch(known)
    assert watch.see("a", None) is None
    assert watch.see("b", np.full(FEATURE_COUNT, np.inf)) is None
    assert (watch.left_out, watch.state) == (2, "in control")


def test_single_frames_without_the_pixel_size_are_left_out_and_many_begin_anew(
    known: DriftWatch, drifted: str
) -> None:
    watch = SessionWatch(known)
    for seed in range(3):
        assert see(watch, rows(9, seed, size=None)) == []
        see(watch, rows(1, seed))
    assert (watch.left_out, watch.state) == (27, "in control")
    watch = SessionWatch.restore(known, drifted)
    (told,) = see(watch, rows(12, 3, size=None), "h")
    assert (told.is_drifted, told.frame_id) == (False, "h9")
    assert told.why == "the frames have no pixel size now, so the watch learns from them anew"
    assert (watch.state, watch.has_pixel_size) == (f"learning 12 of {LEARNT}", False)


def test_another_magnification_while_it_learns_begins_the_learning_anew() -> None:
    watch = SessionWatch()
    see(watch, rows(50, 1))
    see(watch, rows(5, 2, size=2.5))
    assert watch.state == f"learning 5 of {LEARNT}"


def test_known_frames_that_come_late_take_the_place_of_learnt_ones(
    known: DriftWatch, learnt: str
) -> None:
    watch = SessionWatch.restore(None, learnt)
    assert watch.watch_by(known)
    assert not watch.watch_by(known)
    assert see(watch, rows(20, 3)) == []
    assert see(watch, rows(10, 4, 3))[0].is_drifted
    without = SessionWatch()
    see(without, rows(1, 1, size=None))
    assert not without.watch_by(known)


def test_frames_that_are_all_alike_are_watched_too() -> None:
    watch = SessionWatch()
    assert see(watch, np.repeat(rows(1, 1), LEARNT + 20, axis=0)) == []
    assert watch.state == "in control"
    assert see(watch, rows(3, 2))[0].is_drifted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        pytest.param("no json", "no state", id="no JSON"),
        pytest.param("[]", "no state", id="list"),
        pytest.param('{"format": "other"}', "no state", id="format"),
    ],
)
def test_what_is_no_state_is_refused(text: str, word: str) -> None:
    with pytest.raises(Corrupt, match=word):
        SessionWatch.restore(None, text)


def test_a_state_by_known_frames_needs_them(known: DriftWatch) -> None:
    with pytest.raises(Corrupt) as caught:
        SessionWatch.restore(None, SessionWatch(known).to_json())
    assert caught.value.why == "its known frames are missing"


def test_what_are_no_features_is_refused(known: DriftWatch) -> None:
    with pytest.raises(InvalidInput, match="not those of a frame"):
        SessionWatch(known).see("a", np.zeros(3))

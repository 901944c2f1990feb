"""Reports of a replica: what comes along, what is left out, and that no request waits."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from manybeam.data.io.frame import Frame
from manybeam.db.serving.sessions import AnsweredFrame
from manybeam.errors import Unreachable
from manybeam.predictor.answer import Answer, Question
from manybeam.serve.monitor import reporter as reporting
from manybeam.serve.monitor.report import FrameReport, Seen, WatchState
from manybeam.serve.monitor.reporter import FrameReporter
from manybeam.serve.sessions.settings import SessionSettings

FRAME = np.random.default_rng(0).random((64, 64), dtype=np.float32)


class Monitor:
    """A monitor that keeps what it is told, and can be made to wait or to be away."""

    def __init__(self) -> None:
        self.reports: list[FrameReport] = []
        self.watched: frozenset[int] = frozenset()
        self.is_drifted = self.is_away = False
        self.goes_on = threading.Event()
        self.goes_on.set()

    def see(self, reports: list[FrameReport]) -> Seen:
        assert self.goes_on.wait(30)
        if self.is_away:
            raise Unreachable("the monitor does not answer", "", "")
        self.reports += reports
        ids = {one.session_id for one in reports}
        return Seen({one: WatchState(one, "", self.is_drifted) for one in ids}, self.watched)

    def state(self, session_id: int) -> WatchState | None:
        raise NotImplementedError

    def live(self, session_id: int, after: int, wait_s: float) -> dict[str, Any]:
        raise NotImplementedError

    def keep(self, session_id: int, frame_id: str, who: str) -> dict[str, Any]:
        raise NotImplementedError


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


@pytest.fixture
def left_out() -> list[int]:
    return []


@pytest.fixture
def reporter(monitor: Monitor, left_out: list[int]) -> Iterator[FrameReporter]:
    found = FrameReporter(monitor, left_out.append)
    yield found
    monitor.goes_on.set()
    found.close()


@pytest.fixture
def answer(tiny_members: Callable[[int], list[Any]]) -> Answer:
    """A real answer of two members."""
    from manybeam.learn.nets.ensemble import Ensemble

    prediction = Ensemble(tiny_members(2)).predict(FRAME, 16.0)
    frame = Frame(FRAME, 16.0)
    return Answer(frame, Question("graphene"), None, prediction, None, prediction)


def report(reporter: FrameReporter, answer: Answer, number: int = 0, **settings: Any) -> None:
    recorded = AnsweredFrame(7, f"f{number}", datetime.now(UTC), "", "graphene@1", (0, 1), {})
    reporter.report("STEM-1", SessionSettings(**settings), answer, recorded)


def test_a_report_has_crops_and_facts_but_no_frame_that_nobody_wants(
    reporter: FrameReporter, monitor: Monitor, answer: Answer
) -> None:
    report(reporter, answer, keep_doubtful=10)
    assert reporter.settled(30)
    (found,) = monitor.reports
    assert (found.frame_id, found.shape, found.pixel_size_pm) == ("f0", (64, 64), 16.0)
    assert found.crops_nyx is not None
    assert (found.pixels_yx, found.atoms_k4, found.most_kept) == (None, None, 0)


def test_a_frame_that_somebody_looks_at_comes_with_its_atoms(
    reporter: FrameReporter, monitor: Monitor, answer: Answer
) -> None:
    monitor.watched = frozenset({7})
    for number in range(2):
        report(reporter, answer, number)
        assert reporter.settled(30)
    found = monitor.reports[1]
    assert found.pixels_yx is answer.frame.pixels_yx
    assert found.atoms_k4 is not None
    np.testing.assert_array_equal(found.atoms_k4[:, :3], answer.atoms[:, [0, 1, 3]])


@pytest.mark.parametrize("consent", [pytest.param(0, id="no"), pytest.param(5, id="yes")])
def test_frames_of_a_drifted_session_come_along_with_consent_only(
    reporter: FrameReporter, monitor: Monitor, answer: Answer, consent: int
) -> None:
    monitor.is_drifted = True
    for number in range(2):
        report(reporter, answer, number, keep_doubtful=consent)
        assert reporter.settled(30)
    assert [one.most_kept for one in monitor.reports] == [0, consent]
    assert (monitor.reports[1].pixels_yx is not None) is bool(consent)


def test_a_slow_monitor_gets_the_newest_frames_and_no_request_waits_for_it(
    reporter: FrameReporter, monitor: Monitor, answer: Answer, left_out: list[int]
) -> None:
    monitor.goes_on.clear()
    count = 3 * reporting.WAITING
    for number in range(count):
        report(reporter, answer, number)
    monitor.goes_on.set()
    assert reporter.settled(30)
    assert monitor.reports[-1].frame_id == f"f{count - 1}"
    assert sum(left_out) + len(monitor.reports) == count


def test_an_absent_monitor_costs_its_frames_and_is_asked_again(
    reporter: FrameReporter,
    monitor: Monitor,
    answer: Answer,
    left_out: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "REST_S", 0.01)
    monitor.is_away = True
    report(reporter, answer)
    assert reporter.settled(30)
    assert left_out == [1]
    monitor.is_away = False
    report(reporter, answer, 1)
    assert reporter.settled(30)
    assert [one.frame_id for one in monitor.reports] == ["f1"]


def test_a_reporter_without_frames_learns_that_somebody_looks(
    reporter: FrameReporter, monitor: Monitor, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "IDLE_S", 0.01)
    report(reporter, answer)
    assert reporter.settled(30)
    monitor.watched = frozenset({7})
    while 7 not in reporter._watched:
        assert not reporter._is_closed
    report(reporter, answer, 1)
    assert reporter.settled(30)
    assert monitor.reports[1].pixels_yx is not None

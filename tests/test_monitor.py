"""The monitor: sessions under watch, their alerts, and what live pages show."""

import base64
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.db.deployment import open_database
from manybeam.db.serving.alerts import Alerts
from manybeam.db.serving.sessions import Sessions
from manybeam.errors import DatabaseUnreachable, NotFound
from manybeam.predictor.stream.drift import DriftWatch, frame_crops
from manybeam.serve.metrics import Meter
from manybeam.serve.monitor import alert_writer
from manybeam.serve.monitor import monitor as monitor_module
from manybeam.serve.monitor.alert_writer import AlertWriter
from manybeam.serve.monitor.doubtful import DoubtfulFrames
from manybeam.serve.monitor.monitor import Monitor
from manybeam.serve.monitor.report import FrameReport
from manybeam.serve.monitor.watched_sessions import WatchedSessions

# Ray Serve declares its own models the way pydantic wants to forget; only importing it warns.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

BEGIN = datetime(2026, 12, 1, tzinfo=UTC)
RNG = np.random.default_rng(7)
PLAIN = RNG.normal(100, 10, size=(90, 64, 64)).astype(np.float32)
# The same with a slope: a drift that anybody can see.
SLOPED = PLAIN[:20] + np.linspace(0, 80, 64, dtype=np.float32)


class NothingKnown:
    """A version that knows no condition."""

    def get(self, ref: str, *, has_pixel_size: bool) -> DriftWatch | None:
        return None


@pytest.fixture
def session_id(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> int:
    """A session of STEM-1 in a database of its own."""
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    (tmp_path / "home").mkdir()
    sessions = Sessions(open_database())
    return sessions.put("STEM-1", policy="auto", ref="auto", is_new_welcome=True).id


@pytest.fixture
def monitor(session_id: int, tmp_path: Path) -> Iterator[Monitor]:
    doubtful = DoubtfulFrames(str(tmp_path / "store"))
    watched = WatchedSessions(NothingKnown(), tmp_path / "watches")
    alerts = AlertWriter(lambda: Alerts(open_database()), lambda: None)
    yield Monitor(watched, alerts, doubtful, Meter())
    alerts.close()
    doubtful.close()


def report(session_id: int, number: int, frame: Any, **more: Any) -> FrameReport:
    facts = {
        "why": "all",
        "atoms": 5,
        "timings_ms": {"predict": 9.0},
        "spread_px": 0.2,
        "counted": [],
    }
    known: dict[str, Any] = {"pixel_size_pm": 16.0, "crops_nyx": frame_crops(frame), **more}
    at = BEGIN + timedelta(seconds=number)
    return FrameReport(
        "STEM-1", session_id, f"f{number}", at, "graphene@1", (0, 1), facts, (64, 64), **known
    )


def drifting(session_id: int) -> list[FrameReport]:
    """Return 70 frames in control, then 10 with a slope."""
    frames = [*PLAIN[:70], *SLOPED[:10]]
    return [report(session_id, number, frame) for number, frame in enumerate(frames)]


def test_a_drift_is_an_alert_with_the_frames_before_and_after(
    monitor: Monitor, session_id: int
) -> None:
    for one in drifting(session_id):
        state = monitor.see([one]).states[session_id]
    assert (state.is_drifted, state.changes) == (True, 1)
    assert monitor._alerts.settled(30)
    (alert,) = Alerts(open_database()).recent("STEM-1")
    frames = alert.content["frames"]
    assert int(frames["before"]["frame_id"][1:]) < 70 <= int(frames["now"]["frame_id"][1:])
    assert base64.b64decode(frames["now"]["png"]).startswith(b"\x89PNG")
    assert alert.next_try is not None


def test_a_new_process_goes_on_with_the_sessions_of_the_one_before(
    monitor: Monitor, session_id: int, tmp_path: Path
) -> None:
    reports = drifting(session_id)
    before = [monitor.see([one]).states[session_id] for one in reports][-1]
    watched = WatchedSessions(NothingKnown(), tmp_path / "watches")
    doubtful = DoubtfulFrames(str(tmp_path / "store"))
    again = Monitor(watched, monitor._alerts, doubtful, Meter())
    doubtful.close()
    state = again.see([report(session_id, 80, SLOPED[11])]).states[session_id]
    assert (state.is_drifted, state.changes, state.change) == (True, 1, before.change)


def test_frames_that_come_together_are_seen_in_the_order_of_their_answers(
    monitor: Monitor, session_id: int
) -> None:
    reports = drifting(session_id)
    for first in range(0, len(reports), 8):
        seen = monitor.see(reports[first : first + 8][::-1])
    state = seen.states[session_id]
    assert state.change is not None
    assert int(state.change["since"][1:]) >= 68


def test_a_frame_without_features_is_shown_but_not_watched(
    monitor: Monitor, session_id: int
) -> None:
    seen = monitor.see([report(session_id, 0, PLAIN[0], crops_nyx=None)])
    assert seen.states[session_id].state == "learning 0 of 60"
    assert monitor.live(session_id, 0, 0)["frame"]["frame_id"] == "f0"


def test_a_page_that_waits_gets_the_next_frame_with_its_picture(
    monitor: Monitor, session_id: int
) -> None:
    first = monitor.live(session_id, 0, 0)
    assert (first["number"], first["frame"], first["picture"]) == (0, None, "")
    found: list[dict[str, Any]] = []
    page = threading.Thread(target=lambda: found.append(monitor.live(session_id, 0, 30)))
    page.start()
    atoms = np.array([[1, 2, 0.9, 0.3]], np.float32)
    sent = report(session_id, 0, PLAIN[0], pixels_yx=PLAIN[0], atoms_k4=atoms)
    assert monitor.see([sent]).watched == {session_id}
    page.join()
    assert base64.b64decode(found[0]["picture"]).startswith(b"\xff\xd8")
    positions = np.frombuffer(base64.b64decode(found[0]["frame"]["positions"]), "<f4")
    np.testing.assert_array_equal(positions.reshape(-1, 4), atoms)
    assert [one["frame_id"] for one in found[0]["trend"]] == ["f0"]


def test_a_page_gets_of_the_trend_only_what_is_new(monitor: Monitor, session_id: int) -> None:
    for number in range(3):
        monitor.see([report(session_id, number, PLAIN[number])])
    whole = monitor.live(session_id, 0, 0)
    assert [one["frame_id"] for one in whole["trend"]] == ["f0", "f1", "f2"]
    assert whole["latency_ms"] == {"p50": 9.0, "p95": 9.0}
    monitor.see([report(session_id, 3, PLAIN[3])])
    assert [one["frame_id"] for one in monitor.live(session_id, whole["number"], 0)["trend"]] == [
        "f3"
    ]


def test_a_frame_that_was_shown_can_be_kept_and_another_one_cannot(
    monitor: Monitor, session_id: int
) -> None:
    monitor.live(session_id, 0, 0)  # somebody looks
    monitor.see([report(session_id, 0, PLAIN[0], pixels_yx=PLAIN[0])])
    assert monitor.keep(session_id, "f0", "ada")["kept"]
    with pytest.raises(NotFound, match="not in memory"):
        monitor.keep(session_id, "f1", "ada")


def test_frames_in_memory_for_live_pages_are_bounded_over_all_sessions(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "HELD_BYTES", 3 * PLAIN[0].nbytes)
    for number in range(4):
        monitor.live(number, 0, 0)  # somebody looks
        for place in range(2):
            frame = PLAIN[2 * number + place]
            monitor.see([report(number, 2 * number + place, frame, pixels_yx=frame)])
    # The sessions that had the most gave their oldest; the last one has its newest frame.
    pictures = [monitor.live(number, 0, 0)["picture"] != "" for number in range(4)]
    assert (pictures.count(True), pictures[3]) == (3, True)
    assert monitor.live(pictures.index(False), 0, 0)["frame"]["atoms"] == 5
    assert monitor.keep(3, "f7", "ada")["kept"]


def test_the_watch_of_a_thousand_sessions_takes_bounded_memory_and_disk(
    tmp_path: Path,
) -> None:
    from manybeam.serve.monitor import watched_sessions

    watched = WatchedSessions(NothingKnown(), tmp_path)
    for number in range(watched_sessions.SESSIONS + 5):
        session = watched.of(report(number, 0, PLAIN[0]))
        assert session is not None
    assert watched.get(0) is None
    assert watched.get(number) is session


def test_an_alert_waits_until_the_database_is_back_and_no_frame_waits_for_it(
    session_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_writer, "AGAIN_S", 0.01)
    tries: list[int] = []

    def alerts() -> Alerts:
        tries.append(1)
        if len(tries) < 3:
            raise DatabaseUnreachable("the database does not answer", "", "")
        return Alerts(open_database())

    writer = AlertWriter(alerts)
    writer.add(kind="drifted", text="a", content={}, instrument="STEM-1", session_id=session_id)
    assert writer.settled(30)
    writer.close()
    (alert,) = Alerts(open_database()).recent("STEM-1")
    assert (alert.next_try, len(tries)) == (None, 3)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"content": {"png": "x" * 300_000}}, id="too large"),
        pytest.param({"session_id": 999}, id="unknown session"),
    ],
)
def test_an_alert_that_can_never_be_written_holds_up_no_other(
    session_id: int, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    writer = AlertWriter(lambda: Alerts(open_database()))
    good = {"kind": "drifted", "content": {}, "instrument": "STEM-1", "session_id": session_id}
    writer.add(**{**good, "text": "odd", **fault})
    writer.add(**good, text="next")
    assert writer.settled(4)  # less than the pause before a further try
    writer.close()
    assert [one.text for one in Alerts(open_database()).recent("STEM-1")] == ["next"]
    assert "an alert was lost: odd: " in caplog.text

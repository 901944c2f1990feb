"""What streams tell beside the answers: changes between two frames, each told once."""

from typing import Any

import pytest

from manybeam.serve.monitor.report import WatchState
from manybeam.serve.stream.events import SETTLED, StreamEvents


def meta(number: int = 0, **more: Any) -> dict[str, Any]:
    """Return the facts of an answer by three members, within time and in distribution."""
    known = {
        "frame_id": f"f{number}",
        "ref": "graphene@2",
        "ensemble": "graphene",
        "version": 2,
        "members": [0, 1, 2],
        "dropped": [],
        "why": "all members",
        "drift": {"flag": False, "score": 0.1},
        "session": {"late": False, "budget_ms": 100, "repeated": []},
        "rollout": None,
    }
    return {**known, **more}


def kinds(metas: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return frame and kind of all events of a sequence of answers."""
    events = StreamEvents()
    return [(one["frame_id"], one["kind"]) for it in metas for one in events.after(it)]


OUT = {"drift": {"flag": True, "score": 3.0}}
LATE = {"session": {"late": True, "budget_ms": 100, "repeated": []}}
FEWER = {"members": [1, 2]}
NEW = {"ref": "graphene@3", "version": 3}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param([{}] * 6, [], id="nothing"),
        pytest.param([{}, FEWER, FEWER], [("f1", "switched")], id="members"),
        pytest.param([{}, NEW, NEW], [("f1", "swapped")], id="version"),
        pytest.param([{}, {"ensemble": "mos2", **NEW}], [("f1", "switched")], id="ensemble"),
        pytest.param([{}, {"members": [1, 2], "dropped": [0]}], [], id="one-left-out"),
        pytest.param([OUT] * 9, [], id="out-of-distribution"),
        pytest.param([{}, LATE, LATE, LATE], [("f3", "budget")], id="late"),
        pytest.param(
            [{"members": [1, 2], "dropped": [0]}] * SETTLED, [("f2", "budget")], id="left-out"
        ),
        pytest.param([LATE] * 3 + [{}] * 3, [("f2", "budget"), ("f5", "budget")], id="kept-again"),
        pytest.param([{}, {**NEW, "rollout": {"version": "new"}}, {}], [], id="canary"),
        pytest.param([{}, {"members": [1], "session": None}, {}], [], id="members-of-the-caller"),
        pytest.param(
            [{}, {"members": [1], "session": {"repeated": ["f1"]}}, {}], [], id="answered-before"
        ),
    ],
)  # fmt: skip
def test_a_change_is_told_with_the_frame_at_which_it_shows(
    changes: list[dict[str, Any]], told: list[tuple[str, str]]
) -> None:
    assert kinds([meta(number, **one) for number, one in enumerate(changes)]) == told


def test_an_event_says_what_changed_and_why() -> None:
    events = StreamEvents()
    events.after(meta())
    (switched,) = events.after(meta(1, members=[1, 2], why="selected for low dose"))
    assert (switched["members"], switched["why"]) == ([1, 2], "selected for low dose")
    for number in range(2, 2 + SETTLED):
        found = events.after(meta(number, members=[2], dropped=[1], **OUT))
    budget = {one["kind"]: one for one in found}["budget"]
    assert (budget["state"], budget["dropped"], budget["budget_ms"]) == (
        "members left out",
        [1],
        100,
    )


def state(changes: int, **change: Any) -> WatchState:
    return WatchState(7, "in control", changes=changes, change=change or None)


@pytest.mark.parametrize(
    ("states", "told"),
    [
        pytest.param([None, None], 0, id="no-monitor"),
        pytest.param([state(0), state(0)], 0, id="nothing-found"),
        pytest.param([state(2, drifted=True)] * 3, 0, id="found-before-the-stream"),
        pytest.param([state(0), state(1, drifted=True), state(1, drifted=True)], 1, id="once"),
        pytest.param([state(0), None, state(1, drifted=True)], 1, id="monitor-away"),
        pytest.param([state(9, drifted=True), state(0), state(1, drifted=True)], 1, id="new"),
    ],
)  # fmt: skip
def test_what_the_drift_watch_finds_is_told_once(states: list[Any], told: int) -> None:
    events = StreamEvents()
    found = [one for it in states for one in events.watched(it)]
    assert [(one["kind"], one["drifted"]) for one in found] == [("drifted", True)] * told

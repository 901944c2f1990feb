"""What streams tell beside the answers: changes between two frames, each told once."""

from typing import Any

import pytest

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
        pytest.param([{}, OUT, OUT, OUT, OUT], [("f3", "drifted")], id="drift"),
        pytest.param([OUT, OUT, OUT], [("f2", "drifted")], id="drift-from-the-start"),
        pytest.param([{}, OUT, OUT, {}, OUT], [], id="odd-frames"),
        pytest.param([OUT] * 3 + [{}] * 3, [("f2", "drifted"), ("f5", "drifted")], id="and-back"),
        pytest.param([{"drift": {"flag": None, "score": None}}] * 4, [], id="drift-unknown"),
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
    assert {one["kind"]: one for one in found}["drifted"]["drifted"] is True
    budget = {one["kind"]: one for one in found}["budget"]
    assert (budget["state"], budget["dropped"], budget["budget_ms"]) == (
        "members left out",
        [1],
        100,
    )

"""Sessions of instruments: who answers from frame to frame, what is kept, and what is refused."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.io.frame import Frame
from manybeam.db.deployment import open_database
from manybeam.db.serving.rollouts import Rollouts
from manybeam.db.serving.sessions import Sessions
from manybeam.errors import (
    CallerGone,
    Conflict,
    Corrupt,
    DatabaseUnreachable,
    DeadlineExceeded,
    InvalidInput,
    MalformedRequest,
    NoCapacity,
    NotFound,
    UnknownRef,
)
from manybeam.predictor.answer import Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor, Ranked
from manybeam.predictor.quick import SummarisedFrame
from manybeam.predictor.versions.live import LiveVersions
from manybeam.predictor.versions.loaded import OneVersion
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.query import RequestQuery
from manybeam.serve.sessions import refresher as keeping
from manybeam.serve.sessions.answering import SELECTIONS, SessionAnswer, SessionAnswers
from manybeam.serve.sessions.content import session_content
from manybeam.serve.sessions.monitor import LAST, REFERENCE, ConditionMonitor
from manybeam.serve.sessions.refresher import HELD, Chosen, LiveSession, SessionRefresher
from manybeam.serve.sessions.session_copy import OLDEST_S, RENEW_S, SessionCopy
from manybeam.serve.sessions.settings import SessionSettings, read_settings
from manybeam.serve.traffic.traffic import Traffic
from manybeam.serve.wire import Frames

QUERY = RequestQuery(pixel_size_pm=16.0)
pytestmark = pytest.mark.usefixtures("one_thread")


# -- settings -------------------------------------------------------------------------------------
def test_nothing_means_the_defaults() -> None:
    assert read_settings(b"") == read_settings(b"{}") == SessionSettings()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b'{"policy": "pind"}', "policy", id="policy"),
        pytest.param(b'{"budget": 5}', "budget", id="unknown name"),
        pytest.param(b'{"budget_ms": 0}', "budget_ms", id="budget"),
        pytest.param(b'{"budget_ms": 1e400}', "budget_ms", id="endless budget"),
        pytest.param(b'{"members": [-1], "policy": "pinned", "ref": "a"}', "members", id="member"),
        pytest.param(b'{"members": [1]}', "selection chooses", id="members under auto"),
        pytest.param(b'{"policy": "pinned"}', "needs the REF", id="pinned to nothing"),
        pytest.param(b'{"false_atoms": 1}', "false_atoms", id="bound"),
        pytest.param(b'{"false_atoms": false}', "false_atoms", id="bound of another type"),
        pytest.param(b'{"budget_ms": "50"}', "budget_ms", id="number as text"),
        pytest.param(b'{"select_every": 0}', "select_every", id="never select"),
        pytest.param(b'{"pixel_size_pm": "NaN"}', "pixel_size_pm", id="size"),
        pytest.param(
            b'{"members": [1, 1], "policy": "pinned", "ref": "a"}', "named once", id="member twice"
        ),
    ],
)
def test_settings_that_cannot_be_used_are_named(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_settings(body)


def test_all_faults_of_settings_are_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_settings(b'{"policy": "x", "order": "y", "z": 1}')
    assert all(name in caught.value.what for name in ("policy", "order", "z"))


@pytest.mark.parametrize(
    "body",
    [b"[1", b"[1]", b"\xff", b'"a"', b"null", b"[" * 60_000, b'{"a":' * 12_000, b"9" * 60_000],
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_settings(body)


# -- the monitor ----------------------------------------------------------------------------------
def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one - other) ** 2)))


def watch(frames: Any, gain: float = 0.0, *, is_drifted: bool = False) -> list[str]:
    monitor = ConditionMonitor(apart)
    return [monitor.see(one, gain, is_drifted=is_drifted) for one in frames]


def test_frames_of_one_condition_seldom_ask_for_a_selection() -> None:
    rng, alarms, count = np.random.default_rng(0), 0, 0
    for _ in range(50):
        said = watch(rng.normal(size=(60, 40)))
        alarms, count = alarms + sum(map(bool, said)), count + len(said)
    assert alarms <= 0.01 * count


def test_a_condition_that_moves_is_noticed_within_three_frames() -> None:
    rng = np.random.default_rng(1)
    said = watch(np.vstack([rng.normal(size=(20, 40)), rng.normal(2.5, 1, size=(5, 40))]))
    assert not any(said[:20])
    assert any("moved" in one for one in said[20:23])


def test_a_single_odd_frame_asks_for_nothing() -> None:
    frames = np.random.default_rng(2).normal(size=(30, 40))
    frames[20] += 2.5
    assert not any(watch(frames))


def test_members_that_would_gain_ask_for_a_selection() -> None:
    said = watch(np.zeros((5, 4)), gain=0.2)
    assert said[: LAST - 1] == [""] * (LAST - 1)
    assert "gain 0.20" in said[LAST - 1]


def test_a_change_of_the_verdict_asks_for_a_selection_once_it_lasts() -> None:
    monitor = ConditionMonitor(apart)
    flags = [False] * REFERENCE + [True, False, True, True, True]
    said = [monitor.see(np.zeros(4), 0.0, is_drifted=one) for one in flags]
    assert not any(said[:-1])
    assert "out of distribution" in said[-1]


# -- answers --------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "READ_S", 0.02)


@pytest.fixture
def home(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> Path:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    return tmp_path


Make = Callable[[], SessionAnswers]


@pytest.fixture
def replica(home: Path, rehearsed_zoo: Any) -> Iterator[Make]:
    """Make replicas of one service, each with its own memory, on one database."""
    made: list[SessionAnswers] = []

    def make() -> SessionAnswers:
        refresher = SessionRefresher(lambda: Sessions(open_database()))
        made.append(SessionAnswers(Predictor(ZooVersions(rehearsed_zoo)), refresher))
        refresher.start()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def answers(replica: Make) -> SessionAnswers:
    return replica()


@pytest.fixture(scope="module")
def frames(rehearsed: Any) -> list[Frame]:
    """Frames of one condition."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.learn.analysis.condition_inference import draw

    condition = draw(rehearsed.policies[0], np.random.default_rng(4))
    made = simulate(condition, 8, seed=4, shape=(96, 96))
    size = float(made.pixel_size_pm[0])
    return [Frame(one, pixel_size_pm=size) for one in made.frames_nyx]


def put(answers: SessionAnswers, instrument: str = "STEM-1", **given: Any) -> LiveSession:
    return answers.put(instrument, SessionSettings(**given), is_new_welcome=True, who="ada")


def ask(
    answers: SessionAnswers, live: LiveSession, frame: Frame, name: str = "", **more: Any
) -> SessionAnswer:
    query = answers.query(live, replace(RequestQuery(frame_id=name), **more))
    (found,) = answers.answers(live, [frame], query, Deadline(begun_s=time.monotonic()))
    return found


def known(answers: SessionAnswers, revision: int, instrument: str = "STEM-1") -> LiveSession:
    """Return a session once a replica knows of a change; on a busy machine that takes a while."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        live = answers.refresher.of(instrument)
        if live is not None and live.stored.revision >= revision:
            return live
        time.sleep(0.01)
    raise AssertionError("the replica does not read the sessions")


def settled(answers: SessionAnswers, live: LiveSession) -> Chosen:
    """Return who answers when no selection is under way."""
    end = time.monotonic() + 60
    while live.is_selecting and time.monotonic() < end:
        time.sleep(0.01)
    assert not live.is_selecting
    assert live.chosen is not None
    return live.chosen


@pytest.mark.slow
def test_the_first_frame_is_answered_by_summary_and_selection_follows_beside_it(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers)
    first = ask(answers, live, frames[0], "a")
    assert first.answer.is_quick
    chosen = settled(answers, live)
    assert chosen.is_selected
    assert chosen.ref == "graphene@2"
    second = ask(answers, live, frames[1], "b").answer
    assert second.members == chosen.members
    assert "select" not in second.seconds
    events, history = answers.refresher.history(live, 9, 9)
    assert events[0].kind in ("switched", "confirmed")
    assert events[0].frame_id == "a"
    assert events[0].why.startswith("the first frame: ")
    assert [one.frame_id for one in history] == ["b", "a"]
    counts = live.stored.state["counts"]
    assert (counts["frames"], counts["selections"]) == (2, 1)
    assert counts["selection_ms"] > 0


@pytest.mark.slow
def test_selection_comes_again_after_so_many_frames_and_not_for_each(
    answers: SessionAnswers, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manybeam.serve.sessions.answering.RESERVED", 0)
    live = put(answers, select_every=4)
    for one in frames:
        ask(answers, live, one)
        settled(answers, live)
    answers.refresher.write()
    answers.refresher.read()
    assert live.stored.state["counts"]["selections"] == 2  # the first frame, and the fifth
    events, _ = answers.refresher.history(live, 1, 9)
    assert events[0].why.startswith("4 frames passed")


def test_a_pinned_session_is_answered_by_its_members_and_never_selects(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, policy="pinned", ref="graphene", members=[2, 0], select_every=1)
    assert live.settings.ref == "graphene@2"  # the version, so that a promotion changes nothing
    for one in frames[:3]:
        assert ask(answers, live, one).answer.members == (2, 0)
    assert live.chosen is None
    assert not live.is_selecting


def test_what_is_pinned_has_to_be_there(answers: SessionAnswers) -> None:
    with pytest.raises(UnknownRef):
        put(answers, policy="pinned", ref="grafene")
    with pytest.raises(UnknownRef, match="no member 07"):
        put(answers, policy="pinned", ref="graphene", members=[7])
    with pytest.raises(NotFound, match="condition"):
        put(answers, condition="no-such-condition")
    assert answers.refresher.of("STEM-1") is None


def test_a_frame_sent_twice_is_answered_by_the_same_members_and_counts_once(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, policy="pinned", ref="graphene", members=[0])
    first = ask(answers, live, frames[0], "a").answer
    live = put(answers, policy="pinned", ref="graphene", members=[1])
    again = ask(answers, live, frames[0], "a")
    assert again.is_repeat
    assert again.answer.members == (0,)
    np.testing.assert_array_equal(again.answer.atoms, first.atoms)
    assert ask(answers, live, frames[0], "b").answer.members == (1,)
    _, history = answers.refresher.history(live, 9, 9)
    assert [one.frame_id for one in history] == ["b", "a"]
    with pytest.raises(Conflict, match="names another frame"):
        ask(answers, live, frames[1], "a")


def test_a_repeat_is_known_to_another_replica(replica: Make, frames: list[Frame]) -> None:
    one, two = replica(), replica()
    live = put(one, policy="pinned", ref="graphene", members=[0])
    ask(one, live, frames[0], "a")
    one.refresher.write()
    live = put(one, policy="pinned", ref="graphene", members=[1])
    there = known(two, live.stored.revision)
    assert there.settings.members == [1]
    again = ask(two, there, frames[0], "a")
    assert (again.is_repeat, again.answer.members) == (True, (0,))


def test_a_session_outlives_its_replica(replica: Make, frames: list[Frame]) -> None:
    one = replica()
    live = put(one, budget_ms=60_000, pixel_size_pm=frames[0].pixel_size_pm)
    ask(one, live, frames[0])
    before = settled(one, live)
    one.close()
    after = replica().refresher.of("STEM-1")
    assert after is not None
    assert (after.chosen, after.settings, after.frames) == (before, live.settings, 1)


def test_an_ended_session_is_gone_in_every_replica(replica: Make) -> None:
    one, two = replica(), replica()
    known(two, put(one).stored.revision)
    one.refresher.end("STEM-1", who="ada")
    assert one.refresher.of("STEM-1") is None
    end = time.monotonic() + 20
    while two.refresher.of("STEM-1") is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert two.refresher.of("STEM-1") is None


def test_a_switch_is_between_two_frames(answers: SessionAnswers, frames: list[Frame]) -> None:
    """Each frame is answered whole by one choice, while others change it all the time."""
    live = put(answers)
    live.chosen = Chosen("graphene@2", (0,), (1.0,), "first", is_selected=True)
    choices = [
        Chosen("graphene@2", members, (1.0,) * len(members), str(members), is_selected=True)
        for members in ((0,), (1, 2), (0, 1, 2))
    ]

    def change(number: int) -> None:
        chosen = choices[number % 3]
        answers.refresher.switch(live, live.stored, chosen, kind="switched", values={})

    def answer(number: int) -> SessionAnswer:
        return ask(answers, live, frames[number % 8])

    with ThreadPoolExecutor(3) as pool:
        changing = pool.map(change, range(30))
        found = list(pool.map(answer, range(12)))
        list(changing)
    for one in found:
        assert one.answer.members in {choice.members for choice in choices}
        assert one.answer.reasons[0] in ("first", str(one.answer.members))


def test_a_selection_that_began_before_a_change_of_the_session_is_dropped(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers)
    seen = live.stored
    put(answers, policy="pinned", ref="graphene", members=[1])
    late = Chosen("graphene@2", (0,), (1.0,), "too late", is_selected=True)
    switch = answers.refresher.switch
    assert switch(live, seen, late, kind="switched", values={}) == "refused"
    now = known(answers, seen.revision + 1)
    assert live.chosen is now.chosen is None
    assert ask(answers, now, frames[0]).answer.members == (1,)


def test_a_promotion_makes_an_auto_session_choose_again(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers)
    live.chosen = Chosen("graphene@1", (0,), (1.0,), "before", is_selected=True)
    assert ask(answers, live, frames[0]).answer.ref == "graphene@2"
    assert settled(answers, live).ref == "graphene@2"


def test_a_damaged_version_that_serves_does_not_stop_a_session(
    answers: SessionAnswers, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = answers._predictor.versions
    load, serving = versions.get, versions.serving

    def get(ref: str) -> Any:
        if ref == "bad@1":
            raise Corrupt("weights of member 00 differ")
        return load(ref)

    monkeypatch.setattr(versions, "get", get)
    monkeypatch.setattr(versions, "serving", lambda: ["bad@1", *serving()])
    live = put(answers)
    found = [ask(answers, live, one).answer for one in frames[:2]]
    assert {one.ref for one in found} == {"graphene@2"}
    assert "bad@1 is left out: weights of member 00 differ" in found[0].notes
    assert settled(answers, live).is_selected


def test_what_a_frame_says_must_not_contradict_its_session(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, pixel_size_pm=16.0, condition="graphene-60kv-nominal")
    assert answers.query(live, RequestQuery()).pixel_size_pm == 16.0
    assert answers.query(live, RequestQuery()).condition == "graphene-60kv-nominal"
    answers.query(live, RequestQuery(pixel_size_pm=16.02))  # as files round it
    with pytest.raises(Conflict, match="pixels of 8 pm, its session of 16 pm"):
        answers.query(live, RequestQuery(pixel_size_pm=8.0))
    with pytest.raises(Conflict, match="condition"):
        answers.query(live, RequestQuery(condition="graphene-60kv-dirty"))
    bounded = put(answers, false_atoms=0.3)
    assert ask(answers, bounded, frames[0]).answer.question.false_atoms == 0.3


def test_an_answer_after_the_budget_is_given_and_counted(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, policy="pinned", ref="graphene", budget_ms=1)
    found = [ask(answers, live, one) for one in frames[:3]]
    assert all(one.is_late for one in found)
    assert len(found[-1].answer.members) == 1
    assert len(found[-1].answer.dropped) == 2
    answers.refresher.write()
    answers.refresher.read()
    counts = live.stored.state["counts"]
    assert counts["late"] == 3
    assert counts["dropped"] >= 1


def test_a_first_choice_keeps_the_members_that_were_dropped(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, ref="graphene@1", budget_ms=1)  # without a calibration set: all members
    ask(answers, put(answers, "STEM-2", ref="graphene@1"), frames[0])  # the pace is known now
    found = ask(answers, live, frames[1])
    assert len(found.answer.dropped) == 1
    assert live.chosen is not None
    assert set(live.chosen.members) == {0, 1}


def test_frames_of_a_stack_are_frames_of_the_session(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, policy="pinned", ref="graphene")
    query = answers.query(live, RequestQuery(frame_id="s"))
    answers.answers(live, frames[:3], query, Deadline())
    _, history = answers.refresher.history(live, 9, 9)
    assert {one.frame_id for one in history} == {"s/0", "s/1", "s/2"}


def test_the_content_of_a_session_says_what_it_cost(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, budget_ms=60_000)
    assert session_content(live, (), ())["now"] is None
    for one in frames[:2]:
        ask(answers, live, one)
    settled(answers, live)
    content = session_content(live, *answers.refresher.history(live, 9, 9))
    assert content["now"]["selected"] is True
    counts = content["counts"]
    assert content["selection_ms_per_frame"] == round(counts["selection_ms"] / 2, 1)
    assert len(content["history"]) == 2
    row = content["history"][0]
    assert set(row) >= {"frame_id", "ref", "members", "why", "drift_score", "timings_ms", "dropped"}


# -- several requests at once ---------------------------------------------------------------------
class Held:
    """Answers of a predictor that wait until a test lets them go; each is asked for first."""

    def __init__(self, answers: SessionAnswers, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_go, self.count = threading.Event(), threading.Event(), 0
        self.then: Callable[[], object] = lambda: None
        predictor = answers._predictor
        answered = predictor.answer_sized

        def held(*given: Any) -> Any:
            self.count += 1
            answer = answered(*given)
            self.begun.set()
            assert self.may_go.wait(60)
            self.then()
            return answer

        monkeypatch.setattr(predictor, "answer_sized", held)


@pytest.fixture
def held(answers: SessionAnswers, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(answers, monkeypatch)


def test_one_frame_sent_twice_at_once_is_answered_once_and_repeated(
    answers: SessionAnswers, held: Held, frames: list[Frame]
) -> None:
    live = put(answers, policy="pinned", ref="graphene", members=[0])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, answers, live, frames[0], "a")
        assert held.begun.wait(60)
        second = pool.submit(ask, answers, live, frames[0], "a")
        with pytest.raises(Conflict, match="is being answered"):
            ask(answers, live, frames[1], "a")
        with pytest.raises(DeadlineExceeded):  # who waits keeps to its own deadline
            answers.answers(live, frames[:1], replace(QUERY, frame_id="a"), Deadline(0.0))
        assert held.count == 1
        held.may_go.set()
        assert [first.result().is_repeat, second.result().is_repeat] == [False, True]
    assert len(answers.refresher.history(live, 9, 9)[1]) == 1
    assert live.frames == 1


def test_a_frame_that_began_before_a_selection_does_not_undo_it(
    answers: SessionAnswers, held: Held, frames: list[Frame]
) -> None:
    live = put(answers)
    selected = Chosen("graphene@2", (1,), (1.0,), "selected", is_selected=True)
    held.may_go.set()
    held.then = lambda: answers.refresher.switch(
        live, live.stored, selected, kind="switched", values={}
    )
    assert ask(answers, live, frames[0]).answer.why != "selected"
    assert live.chosen is not None
    assert (live.chosen.why, live.is_selecting) == ("selected", False)


def test_a_request_is_answered_by_the_settings_it_began_with(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    before = put(answers, policy="pinned", ref="graphene", members=[0], false_atoms=0.3)
    now = put(answers, policy="pinned", ref="graphene", members=[1], pixel_size_pm=99)
    found = ask(answers, before, frames[0]).answer
    assert (found.members, found.question.false_atoms) == ((0,), 0.3)
    assert answers.refresher.of("STEM-1") is now
    assert now.stored.id == before.stored.id


def test_frames_of_a_request_that_fails_are_not_in_the_history(
    answers: SessionAnswers, held: Held, frames: list[Frame]
) -> None:
    def fail() -> None:
        if held.count == 2:
            raise DeadlineExceeded("the time is up")

    live = put(answers, policy="pinned", ref="graphene")
    held.may_go.set()
    held.then = fail
    query = replace(QUERY, frame_id="s")
    with pytest.raises(DeadlineExceeded):
        answers.answers(live, frames[:3], query, Deadline())
    assert answers.refresher.history(live, 9, 9)[1] == []
    held.then = lambda: None
    found = answers.answers(live, frames[:3], query, Deadline())
    assert [one.is_repeat for one in found] == [False] * 3


@pytest.mark.parametrize("error", [CallerGone, DeadlineExceeded])
def test_frames_whose_caller_gets_no_answer_are_not_in_the_history(
    answers: SessionAnswers, held: Held, frames: list[Frame], error: type[Exception]
) -> None:
    def be_late() -> None:
        deadline.is_cancelled, deadline.due_s = error is CallerGone, 0.0

    live, deadline = put(answers, policy="pinned", ref="graphene"), Deadline()
    held.may_go.set()
    held.then = be_late
    with pytest.raises(error):
        answers.answers(live, frames[:1], replace(QUERY, frame_id="a"), deadline)
    held.then = lambda: None
    assert not ask(answers, live, frames[0], "a").is_repeat


def test_frames_of_a_stack_share_the_budget_of_a_session(
    answers: SessionAnswers, held: Held, frames: list[Frame]
) -> None:
    live, shared = put(answers, policy="pinned", ref="graphene"), []
    deadline = Deadline(due_s=time.monotonic() + 600)
    held.may_go.set()
    held.then = lambda: shared.append(deadline.frames_left)
    answers.answers(live, frames[:3], QUERY, deadline)
    assert shared == [3, 2, 1]


def test_what_fails_after_an_answer_does_not_take_it_away(
    answers: SessionAnswers,
    held: Held,
    frames: list[Frame],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> Any:
        raise NoCapacity("nothing serves any more")

    live = put(answers)
    held.may_go.set()
    held.then = lambda: monkeypatch.setattr(answers, "_summarised", fail)
    assert len(ask(answers, live, frames[0], "a").answer.members) > 0
    assert len(answers.refresher.history(live, 9, 9)[1]) == 1
    ask(answers, live, frames[1])
    assert caplog.text.count("is not watched") == 1


def test_a_repeat_is_answered_by_its_version_and_all_its_members(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, policy="pinned", ref="graphene")
    first = ask(answers, live, frames[0], "a").answer
    live = put(answers, policy="pinned", ref="graphene", budget_ms=1)
    answers._predictor.answer(frames[0], Question("graphene", is_quick=True))  # a pace is known
    other = Predictor(OneVersion(answers._predictor.versions.get("graphene@1")))
    (again,) = answers.answers(
        live, frames[:1], replace(QUERY, frame_id="a"), Deadline(begun_s=time.monotonic()), other
    )
    assert again.is_repeat
    assert (again.answer.ref, again.answer.members) == ("graphene@2", first.members)


def test_a_repeat_ends_when_its_caller_is_gone(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    def leave() -> float:
        deadline.is_cancelled = True
        return time.monotonic()

    live = put(answers, policy="pinned", ref="graphene")
    ask(answers, live, frames[0], "a")
    deadline = Deadline(clock=leave)
    with pytest.raises(CallerGone, match="the caller had gone"):
        answers.answers(live, frames[:1], replace(QUERY, frame_id="a"), deadline)


def test_no_frame_waits_for_what_the_monitor_computes(
    answers: SessionAnswers, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, seen, real = put(answers), [], SummarisedFrame.predicted

    def predicted(summarised: SummarisedFrame, shares: Any) -> Any:
        seen.append(live.lock.locked())
        return real(summarised, shares)

    monkeypatch.setattr(SummarisedFrame, "predicted", predicted)
    for one in frames[:2]:
        ask(answers, live, one)
    settled(answers, live)
    assert seen
    assert not any(seen)


def test_few_selections_wait_with_their_frames_in_memory(
    answers: SessionAnswers, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go = threading.Event()
    monkeypatch.setattr(answers, "_ranked", lambda *_: may_go.wait(60))
    lives = [put(answers, f"STEM-{number}") for number in range(SELECTIONS + 2)]
    for live in lives:
        ask(answers, live, frames[0])
    assert sum(live.is_selecting for live in lives) == SELECTIONS
    may_go.set()


def selected(answers: SessionAnswers, live: LiveSession, frame: Frame) -> Ranked:
    (best,) = answers._predictor.rank(frame, Question("graphene", is_selecting=True))
    return best


def test_a_callers_selection_counts_although_another_one_came_first(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers)
    seen, best = live.stored, selected(answers, live, frames[0])
    other = Chosen("graphene@2", (9,), (1.0,), "beside the frames", is_selected=True)
    switch = answers.refresher.switch
    assert switch(live, seen, other, kind="switched", values={}) == "recorded"
    answers.adopt(live, seen, best, "a", 0.1)
    assert live.chosen is not None
    assert live.chosen.why == best.selection.reasons[0]  # type: ignore[union-attr]
    assert live.stored.state["now"]["members"] == list(live.chosen.members)


def test_a_callers_selection_for_a_session_that_changed_is_refused(
    replica: Make, frames: list[Frame]
) -> None:
    one, two = replica(), replica()
    live = put(one)
    seen, best = live.stored, selected(one, live, frames[0])
    put(two, select_every=7)
    with pytest.raises(Conflict, match="changed or ended meanwhile"):
        one.adopt(live, seen, best, "a", 0.1)
    two.refresher.end("STEM-1", who="ada")
    with pytest.raises(Conflict, match="changed or ended meanwhile"):
        one.adopt(live, seen, best, "a", 0.1)


def test_a_callers_selection_is_not_lost_without_a_word(
    home: Path, rehearsed_zoo: Any, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    refresher = SessionRefresher(lambda: Sessions(open_database()))
    one = SessionAnswers(Predictor(ZooVersions(rehearsed_zoo)), refresher)
    live = put(one)
    best = selected(one, live, frames[0])
    other = {"ref": "graphene@2", "members": [1], "shares": [1.0], "why": "by another replica"}
    Sessions(open_database()).switch(live.stored, other, kind="switched", why="")

    def away(_: object) -> Any:
        raise DatabaseUnreachable("the database does not answer")

    monkeypatch.setattr(Sessions, "running", away)  # it refuses the choice, and then is away
    with pytest.raises(Conflict, match="changed or ended meanwhile"):
        one.adopt(live, live.stored, best, "a", 0.1)
    assert live.chosen is None
    one.close()
    assert home.exists()


def test_a_choice_that_is_recorded_late_is_recorded_once(
    home: Path, rehearsed_zoo: Any, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    refresher = SessionRefresher(lambda: Sessions(open_database()))
    one = SessionAnswers(Predictor(ZooVersions(rehearsed_zoo)), refresher)
    live, write = put(one), Sessions.switch
    best = selected(one, live, frames[0])

    def late(*given: Any, **more: Any) -> Any:
        write(*given, **more)
        refresher.read()
        raise DatabaseUnreachable("the database gave no answer in time")

    monkeypatch.setattr(Sessions, "switch", late)
    one.adopt(live, live.stored, best, "a", 0.1)
    monkeypatch.undo()
    assert len(Sessions(open_database()).events(live.stored.id, 9)) == 2  # started, switched
    one.close()
    assert home.exists()


def test_a_shadow_waits_for_a_callers_selection(
    home: Path, rehearsed_zoo: Any, frames: list[Frame]
) -> None:
    versions = LiveVersions(ZooVersions(rehearsed_zoo), every_s=0.0)
    traffic = Traffic(versions, lambda: Rollouts(open_database()), Meter())
    service = Service(versions, traffic)
    service.sessions.put("STEM-1", SessionSettings(), is_new_welcome=True, who="ada")
    one = Frames((frames[0].pixels_yx,))
    content, _ = service.select_for("STEM-1", one, QUERY, Deadline())
    assert content["ref"] == "graphene@2"
    assert traffic.live.begun == 1
    pinned = SessionSettings(policy="pinned", ref="graphene@2")
    service.sessions.put("STEM-1", pinned, is_new_welcome=True, who="ada")
    with pytest.raises(Conflict, match="is pinned"):
        service.select_for("STEM-1", one, QUERY, Deadline())
    assert traffic.live.begun == 1  # it is refused before any work
    service.sessions.close()
    assert home.exists()


def test_an_earlier_reading_does_not_bring_back_a_session_that_ended(
    answers: SessionAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Sessions.running

    def late(sessions: Sessions) -> Any:
        found = running(sessions)
        if answers.refresher.of("STEM-1"):
            answers.refresher.end("STEM-1", who="ada")
        return found

    put(answers)
    monkeypatch.setattr(Sessions, "running", late)
    answers.refresher.read()
    assert answers.refresher.of("STEM-1") is None
    monkeypatch.undo()
    assert answers.refresher.of("STEM-1") is None
    assert put(answers).stored.revision == 1


def test_a_session_that_cannot_be_read_does_not_hide_the_others(answers: SessionAnswers) -> None:
    stored = Sessions(open_database())
    given = {"policy": "auto", "ref": "auto", "is_new_welcome": True}
    stored.put("STEM-1", settings={"written_by": "a later version"}, **given)  # type: ignore[arg-type]
    stored.put("STEM-2", settings={}, **given)  # type: ignore[arg-type]
    answers.refresher.read()
    assert known(answers, 1, "STEM-2").settings == SessionSettings()
    assert answers.refresher.of("STEM-1") is None
    put(answers, "STEM-1")  # a session of our own takes its place
    stored.put("STEM-3", settings={}, **given)  # type: ignore[arg-type]
    assert known(answers, 1, "STEM-3")  # the thread goes on reading


def test_replicas_load_the_versions_of_sessions_before_their_frames_come(
    replica: Make, rehearsed_zoo: Any
) -> None:
    versions = LiveVersions(ZooVersions(rehearsed_zoo), every_s=0.0)
    service = Service(versions)
    put(replica(), policy="pinned", ref="graphene@1")
    service.sessions.refresher.read()
    versions.refresh()
    assert versions.loaded("graphene@1") is not None
    service.sessions.refresher.end("STEM-1", who="ada")
    service.sessions.refresher.read()
    assert versions.source.capacity == 4
    service.sessions.close()


def test_versions_of_the_sessions_used_last_are_held(home: Path) -> None:
    held, now = [()], [0.0]
    refresher = SessionRefresher(
        lambda: Sessions(open_database()), lambda: now[0], hold=lambda refs: held.append(refs)
    )
    for number in range(HELD + 1):
        settings = SessionSettings(policy="pinned", ref=f"a@{number}")
        refresher.put(f"STEM-{number}", settings, is_new_welcome=True, who="ada")
        now[0] += 1
    refresher.read()
    assert held[-1] == [f"a@{number}" for number in range(HELD, 0, -1)]
    first = refresher.of("STEM-0")
    assert first is not None
    refresher.used(first)
    refresher.read()
    assert held[-1][:2] == ["a@0", f"a@{HELD}"]
    count = len(held)
    refresher.read()
    assert len(held) == count
    assert home.exists()


# -- without the database -------------------------------------------------------------------------
def test_sessions_go_on_without_the_database_and_the_history_follows(
    home: Path, rehearsed_zoo: Any, frames: list[Frame]
) -> None:
    is_away, now = [False], [0.0]

    def sessions() -> Sessions:
        if is_away[0]:
            raise DatabaseUnreachable("the database does not answer", "", "")
        return Sessions(open_database())

    refresher = SessionRefresher(sessions, lambda: now[0])
    answers = SessionAnswers(Predictor(ZooVersions(rehearsed_zoo)), refresher)
    refresher.read()
    live = put(answers)
    is_away[0] = True
    now[0] += 60
    for number, one in enumerate(frames[:4]):
        assert ask(answers, live, one, f"f{number}").answer.members
    chosen = settled(answers, live)
    assert chosen.is_selected  # it answers although it could not be recorded
    assert refresher.degraded() == ["sessions are those of 60 s ago"]
    refresher.write()
    with pytest.raises(DatabaseUnreachable):
        put(answers, policy="pinned", ref="graphene")
    assert live.settings.policy == "auto"
    is_away[0] = False
    refresher.write()
    refresher.read()
    assert refresher.degraded() == []
    _, history = refresher.history(live, 9, 9)
    assert len(history) == 4
    assert live.chosen == chosen
    answers.close()
    assert home.exists()


def test_a_frame_does_not_wait_for_a_database_that_hangs(
    answers: SessionAnswers, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = put(answers, policy="pinned", ref="graphene", members=[0])
    hanging = threading.Event()
    monkeypatch.setattr(Sessions, "frames", lambda *_: hanging.wait(30))
    names = [f"f{number}" for number in range(200)]
    begun = time.monotonic()
    assert answers.refresher.names.answered(live.stored.id, names) == {}
    assert time.monotonic() - begun < 5  # 0.25 s for each of them would be 50 s
    hanging.set()
    assert ask(answers, live, frames[0]).answer.members == (0,)


def test_the_names_of_a_stack_are_asked_for_at_once_and_known_ones_not_at_all(
    replica: Make, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replica(), replica()
    live = put(one, policy="pinned", ref="graphene", members=[0])
    query = replace(one.query(live, RequestQuery()), frame_id="s")
    one.answers(live, frames[:3], query, Deadline())
    one.refresher.write()
    asked, real = [], Sessions.frames

    def frames_of(sessions: Sessions, session_id: int, names: Any) -> Any:
        asked.append(list(names))
        return real(sessions, session_id, names)

    monkeypatch.setattr(Sessions, "frames", frames_of)
    for made in (one, two):
        again = made.answers(known(made, 1), frames[:3], query, Deadline())
        assert all(found.is_repeat for found in again)
    assert asked == [["s/0", "s/1", "s/2"]]


def test_a_selection_does_not_wait_for_a_database_that_hangs(
    answers: SessionAnswers, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SWITCH_S", 0.05)
    live = put(answers)
    best, hanging = selected(answers, live, frames[0]), threading.Event()
    monkeypatch.setattr(Sessions, "switch", lambda *_, **__: hanging.wait(30))
    begun = time.monotonic()
    answers.adopt(live, live.stored, best, "a", 0.1)
    assert time.monotonic() - begun < 5
    hanging.set()
    assert live.chosen is not None
    assert live.chosen.is_selected


def test_a_replica_that_ends_does_not_fail_a_frame_with_a_name(
    answers: SessionAnswers, frames: list[Frame]
) -> None:
    live = put(answers, policy="pinned", ref="graphene", members=[0])
    answers.close()
    assert ask(answers, live, frames[0], "a").answer.members == (0,)


def test_what_was_never_recorded_is_logged_when_a_replica_ends(
    answers: SessionAnswers, frames: list[Frame], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def away(*_: object) -> None:
        raise DatabaseUnreachable("the database does not answer")

    live = put(answers, policy="pinned", ref="graphene", members=[0])
    monkeypatch.setattr(Sessions, "record", away)
    ask(answers, live, frames[0])
    answers.refresher.close()
    assert "1 answered frames of sessions were not recorded" in caplog.text
    monkeypatch.undo()


def test_a_replica_that_starts_without_the_database_goes_on_with_the_copy(
    home: Path, rehearsed_zoo: Any, frames: list[Frame]
) -> None:
    is_away, copy = [False], home / "cache" / "sessions.json"

    def sessions() -> Sessions:
        if is_away[0]:
            raise DatabaseUnreachable("the database does not answer")
        return Sessions(open_database())

    def replica() -> SessionAnswers:
        refresher = SessionRefresher(sessions, copy=SessionCopy(copy))
        refresher.start()
        return SessionAnswers(Predictor(ZooVersions(rehearsed_zoo)), refresher)

    first = replica()
    put(first, policy="pinned", ref="graphene", members=[1])
    put(first, "STEM-2")
    first.refresher.end("STEM-2", who="ada")
    first.refresher.read()
    first.close()
    is_away[0] = True
    second = replica()
    live = known(second, 1)
    assert second.refresher.of("STEM-2") is None
    assert "this machine read last, 0 min ago" in second.refresher.degraded()[0]
    assert ask(second, live, frames[0], "a").answer.members == (1,)
    is_away[0] = False
    second.refresher.read()
    assert second.refresher.degraded() == []
    assert [one.frame_id for one in second.refresher.history(live, 9, 9)[1]] == ["a"]
    second.close()


@pytest.mark.parametrize("damaged", [b"", b"{", b"7", b'[{"id": 1}]', b"[7]", b"{}",
    b'{"read_s": NaN, "sessions": []}', b'{"read_s": 1e300, "sessions": [{}]}'])  # fmt: skip
def test_a_damaged_copy_of_sessions_counts_as_none(home: Path, damaged: bytes) -> None:
    def sessions() -> Sessions:
        raise DatabaseUnreachable("the database does not answer")

    copy = home / "sessions.json"
    copy.write_bytes(damaged)
    refresher = SessionRefresher(sessions, copy=SessionCopy(copy))
    refresher.start()
    assert refresher.degraded() == ["sessions are not known: the database does not answer"]
    refresher.close()


def test_a_copy_of_sessions_has_an_age_and_is_not_used_for_ever(home: Path) -> None:
    now, path = [1e9], home / "sessions.json"
    copy = SessionCopy(path, lambda: now[0])
    copy.write([])
    now[0] += RENEW_S - 1
    copy.write([])
    assert copy.read() == ([], RENEW_S - 1)
    now[0] += 1
    copy.write([])  # the same sessions, read anew
    assert copy.read() == ([], 0)
    now[0] += OLDEST_S
    assert copy.read() == ([], OLDEST_S)
    now[0] += 1
    assert copy.read() is None


def test_a_copy_that_could_not_be_written_is_written_with_the_next_reading(home: Path) -> None:
    folder = home / "cache"
    folder.write_text("a file where the folder should be")
    copy = SessionCopy(folder / "sessions.json")
    copy.write([])
    assert copy.read() is None
    folder.unlink()
    copy.write([])
    assert copy.read() is not None


def test_a_replica_that_never_reached_the_database_says_so(home: Path) -> None:
    def sessions() -> Sessions:
        raise DatabaseUnreachable("the database does not answer", "", "")

    refresher = SessionRefresher(sessions)
    refresher.start()
    assert refresher.degraded() == ["sessions are not known: the database does not answer"]
    assert refresher.of("STEM-1") is None
    refresher.close()
    assert home.exists()


def test_frames_that_no_longer_fit_into_memory_are_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, answers: SessionAnswers, frames: list[Frame]
) -> None:
    monkeypatch.setattr(keeping, "WAITING", 2)
    refresher = SessionRefresher(lambda: Sessions(open_database()))
    live = put(answers, policy="pinned", ref="graphene", members=[0])
    ask(answers, live, frames[0])
    (row,) = answers.refresher.history(live, 9, 9)[1]
    for _ in range(3):
        refresher.note(row)
    assert any("1 answered frames are missing" in one for one in refresher.degraded())
    assert home.exists()

"""serve.traffic: which version answers a request, and how both versions of a rollout compare."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manybeam.data.io.frame import stack_of
from manybeam.db.deployment import open_database
from manybeam.db.serving import rollouts
from manybeam.db.serving.comparison import RATIO, Comparison, percentile_ms
from manybeam.db.serving.rollouts import LOADING, OTHERS, ROLLED_BACK, Rollout, Rollouts
from manybeam.errors import (
    CallerGone,
    DatabaseUnreachable,
    DeadlineExceeded,
    InvalidSetting,
    UnknownRef,
)
from manybeam.predictor.answer import Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.live import LiveVersions
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.predict import Service, WireAnswer
from manybeam.serve.query import RequestQuery
from manybeam.serve.traffic import shadow as shadows
from manybeam.serve.traffic.comparison import took
from manybeam.serve.traffic.rollout_cache import STALE_S
from manybeam.serve.traffic.shadow import QUIET_S, LiveWork
from manybeam.serve.traffic.traffic import Traffic, _draw
from manybeam.serve.wire import Frames

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
ONE = Frames((FRAME,))
FRAMES = stack_of([FRAME], 16.0, None, origin="request", is_stack=False)
NEW, BASE = "graphene@1", "graphene@2"  # the fixture's second version serves


class Counted:
    """Counts as `Meter` does, for a test to read."""

    def __init__(self) -> None:
        self.frames: Counter[tuple[str, str]] = Counter()
        self.running = 0

    def rollout(self, kind: str, what: str, frames: int = 1) -> None:
        self.frames[kind, what] += frames

    def rollouts(self, count: int) -> None:
        self.running = count


class Faulty:
    """The versions of the zoo; one of them cannot be loaded, or fails when it answers."""

    def __init__(self, zoo: Any) -> None:
        self.zoo, self.unloadable, self.failing = zoo, "", ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.zoo, name)

    def ensemble(self, ref: str) -> Any:
        if ref == self.unloadable:
            raise UnknownRef(f"{ref} is gone")
        found = self.zoo.ensemble(ref)
        if ref == self.failing:
            found.predict = _fail
        return found


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("no such kernel")


class Setting:
    """A replica without web or cluster, with a database of its own."""

    def __init__(self, zoo: Any, folder: Path, *refs: str) -> None:
        self.database = open_database(f"sqlite:///{folder}/manybeam.db")
        self.zoo, self.fault = Faulty(zoo), None
        source = ZooVersions(self.zoo, refs, fresh_s=0.0)  # type: ignore[arg-type]
        self.versions, self.meter = LiveVersions(source, every_s=0.0), Counted()
        self.traffic = Traffic(self.versions, self.rollouts, self.meter)
        self.service = Service(self.versions, self.traffic)

    fault: Exception | None

    def rollouts(self) -> Rollouts:
        if self.fault is not None:
            raise self.fault
        return Rollouts(self.database)

    def start(self, kind: Any, *instruments: str, share: float = 1.0) -> Rollout:
        """Start a rollout, and let the replica see it and load its version."""
        made = self.rollouts().start(
            kind, NEW, BASE, share=share, instruments=instruments, who="ada"
        )
        self.look()
        return made

    def look(self) -> None:
        """Let one round of reading and loading pass."""
        self.traffic.cache.read()
        self.versions.refresh()

    def ask(self, ref: str = "graphene", **query: Any) -> WireAnswer:
        return self.service.predict(ref, ONE, RequestQuery(pixel_size_pm=16.0, **query))

    def who(self, ref: str = "graphene", **query: Any) -> str:
        """Return the version that answers."""
        return str(self.ask(ref, **query).meta["ref"])

    def compared(self, instrument: str = "") -> Comparison:
        """Return what was written of the rollout that runs."""
        self.traffic.tally.write()
        (running,) = self.rollouts().running()
        return Comparison.of(self.rollouts().comparisons(running.id)[instrument])


@pytest.fixture
def setting(tiny_zoo: Any, tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tiny_zoo, tmp_path, "graphene")
    yield made
    made.traffic.close()


# -- who answers ----------------------------------------------------------------------------------
def test_without_a_rollout_the_serving_version_answers(setting: Setting) -> None:
    setting.look()
    answer = setting.ask()
    assert (answer.meta["ref"], answer.meta["rollout"]) == (BASE, None)


@pytest.mark.parametrize("ref", ["graphene", "graphene@serving", "auto"])
def test_a_canary_answers_who_leaves_the_version_to_the_service(setting: Setting, ref: str) -> None:
    setting.ask("graphene@serving")
    made = setting.start("canary", "STEM-1")
    answer = setting.ask(ref, instrument="STEM-1")
    assert answer.meta["ref"] == NEW
    told = answer.meta["rollout"]
    assert (told["id"], told["kind"], told["version"]) == (made.id, "canary", "new")
    assert told["why"] == "canary of graphene@1 with all frames of STEM-1"
    assert setting.who(ref, instrument="STEM-2") == BASE
    assert setting.who(ref) == BASE


@pytest.mark.parametrize(
    ("ref", "query"),
    [
        pytest.param("graphene@2", {}, id="version"),
        pytest.param("graphene@2/01", {}, id="member"),
        pytest.param("graphene", {"members": (0, 2)}, id="members"),
        pytest.param("graphene@serving/01", {}, id="member of an alias"),
    ],
)
def test_who_names_a_version_or_members_gets_them(setting: Setting, ref: str, query: Any) -> None:
    setting.start("canary", share=1.0)
    assert setting.ask(ref, **query).meta["version"] == 2


def test_selection_ranks_the_members_that_would_answer(setting: Setting) -> None:
    setting.start("canary", "STEM-1")
    query = RequestQuery(pixel_size_pm=16.0, instrument="STEM-1")
    assert setting.service.select(ONE, query)[0]["ref"] == NEW


def test_a_version_that_the_operator_named_for_auto_is_not_redirected(
    tiny_zoo: Any, tmp_path: Path
) -> None:
    setting = Setting(tiny_zoo, tmp_path, "graphene@2")
    setting.start("canary", share=1.0)
    assert setting.who("auto") == BASE
    setting.ask("graphene")
    assert setting.who("graphene") == NEW


def test_of_all_that_serve_auto_selects_with_the_new_version(tiny_zoo: Any, tmp_path: Path) -> None:
    setting = Setting(tiny_zoo, tmp_path)
    setting.start("canary", share=1.0)
    assert setting.who("auto") == NEW


def test_a_share_of_the_frames_is_answered_and_a_repeated_frame_alike(setting: Setting) -> None:
    setting.start("canary", share=0.3)
    names = [f"f{number}" for number in range(20)]
    first = [setting.who(frame_id=name, instrument="STEM-1") for name in names]
    assert set(first) == {NEW, BASE}
    assert [setting.who(frame_id=name, instrument="STEM-1") for name in names[:8]] == first[:8]
    assert len({setting.who() for _ in range(4)}) == 1  # without a name, by its pixels


def test_a_larger_share_of_a_version_contains_the_smaller() -> None:
    made = Rollout(3, "graphene", NEW, BASE, "canary", 0.2, (), datetime.now(UTC), "ada")
    names = [f"f{number}" for number in range(500)]
    # A larger share is a rollout of its own, with another number.
    small, large = (
        {name for name in names if _draw(replace(made, id=id_, share=share), "STEM-1", name)[0]}
        for id_, share in ((3, 0.2), (4, 0.5))
    )
    assert small < large
    assert abs(len(small) / 500 - 0.2) < 0.06


def test_until_the_new_version_is_loaded_the_serving_one_answers(setting: Setting) -> None:
    setting.rollouts().start("canary", NEW, BASE, who="ada")
    setting.traffic.cache.read()  # the next round of loading has not begun
    answer = setting.ask()
    assert answer.meta["ref"] == BASE
    assert answer.meta["rollout"]["why"] == "graphene@1 cannot answer yet: it is being loaded"
    assert setting.versions.loaded(NEW) is None


def test_a_version_that_cannot_be_loaded_never_answers_and_the_service_says_so(
    setting: Setting,
) -> None:
    setting.zoo.unloadable = NEW
    setting.start("canary", share=1.0)
    answer = setting.ask()
    assert answer.meta["ref"] == BASE
    assert "graphene@1 is gone" in answer.meta["rollout"]["why"]
    assert answer.meta["degraded"] == ["1 planned member(s) failed in training"]
    (told,) = setting.traffic.degraded()
    assert told == "canary of graphene@1 with all frames waits: graphene@1 is gone"
    setting.look()
    assert setting.compared(LOADING).fault == "it cannot be loaded: graphene@1 is gone"
    setting.zoo.unloadable = ""
    setting.look()
    setting.look()
    assert (setting.compared(LOADING).fault, setting.who()) == ("", NEW)


def test_if_the_new_version_fails_the_serving_one_answers_and_it_is_counted(
    setting: Setting,
) -> None:
    setting.zoo.failing = NEW
    setting.start("canary", share=1.0)
    answer = setting.ask(instrument="STEM-1")
    assert answer.meta["ref"] == BASE
    assert answer.meta["rollout"]["why"] == "graphene@1 gave no answer"
    found = setting.compared("STEM-1")
    assert (found.failed, found.fault, found.new.frames) == (1, "no such kernel", 0)
    assert setting.meter.frames["canary", "failed"] == 1


def test_a_request_that_is_wrong_is_refused_by_a_canary_too(setting: Setting) -> None:
    made = setting.start("canary", share=1.0)
    query = RequestQuery(pixel_size_pm=16.0, false_atoms=0.1)
    with pytest.raises(ValueError, match="graphene@2 cannot keep a bound"):
        setting.service.predict("graphene", ONE, query)
    setting.traffic.tally.write()
    assert setting.rollouts().comparisons(made.id) == {}


def test_a_late_answer_of_a_canary_is_late_and_not_answered_twice(setting: Setting) -> None:
    setting.start("canary", share=1.0)
    query = RequestQuery(pixel_size_pm=16.0)
    with pytest.raises(DeadlineExceeded):
        setting.service.predict("graphene", ONE, query, Deadline(due_s=time.monotonic() - 1))
    assert (setting.compared().new.late, setting.compared().failed) == (1, 0)


def test_a_caller_who_hangs_up_does_not_make_a_canary_late(setting: Setting) -> None:
    made = setting.start("canary", share=1.0)
    query = RequestQuery(pixel_size_pm=16.0)
    with pytest.raises(CallerGone, match="had gone before"):
        setting.service.predict("graphene", ONE, query, Deadline(is_cancelled=True))
    setting.traffic.tally.write()
    assert setting.rollouts().comparisons(made.id) == {}


def test_of_several_ensembles_none_is_called_late_or_failed_before_one_is_chosen(
    setting: Setting,
) -> None:
    setting.start("canary", share=1.0)
    traffic, question = setting.traffic, Question("graphene")
    sure = traffic.route(question, FRAMES, "", "f")
    assert sure.is_sure
    turn = sure.turns["graphene"]
    other = replace(turn, rollout=replace(turn.rollout, id=99, ensemble="mos2", ref="mos2@2"))
    two = replace(sure, turns={"graphene": turn, "mos2": other}, is_sure=False)
    with pytest.raises(DeadlineExceeded):
        traffic.ask(two, Predictor(setting.versions), _late)
    found, back = traffic.ask(two, Predictor(setting.versions), _fails_once())
    assert (found, back.is_back) == ("answered", True)
    assert setting.meter.frames["canary", "failed"] == 0
    traffic.tally.write()
    assert setting.rollouts().comparisons(turn.rollout.id) == {}


def _late(_: Predictor) -> str:
    raise DeadlineExceeded("late")


def _fails_once() -> Callable[[Predictor], str]:
    answers = iter([RuntimeError("no such kernel"), "answered"])

    def work(_: Predictor) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return work


def test_callers_cannot_make_rows_without_bound_by_names_that_they_invent(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "MOST_INSTRUMENTS", 3)
    made = setting.start("canary", share=1.0)
    for first in (0, 5):  # what a replica adds up, and what several have written
        for number in range(first, first + 5):
            setting.ask(instrument=f"i{number}")
            setting.fault = DatabaseUnreachable("away")
            setting.traffic.tally.write()  # fails, and keeps the sums
            setting.fault = None
        assert len(setting.traffic.tally._sums[made.id]) == 4
        setting.traffic.tally.write()
    setting.traffic.tally.add(made.id, LOADING, {"fault": "gone"})
    setting.traffic.tally.write()
    found = setting.rollouts().comparisons(made.id)
    counted = {name: sums["new"]["frames"] for name, sums in found.items() if "new" in sums}
    assert counted == {"i0": 1, "i1": 1, "i2": 1, OTHERS: 7}
    assert set(found) == {*counted, LOADING}


# -- it ends, or the database is away ---------------------------------------------------------
def test_after_a_rollback_the_next_reading_routes_nothing(setting: Setting) -> None:
    made = setting.start("canary", share=1.0)
    assert (setting.who(), setting.meter.running) == (NEW, 1)
    setting.rollouts().end(made.id, ROLLED_BACK, who="ada")
    setting.traffic.cache.read()
    assert (setting.who(), setting.meter.running) == (BASE, 0)


def test_a_rollout_goes_on_from_memory_while_the_database_is_away(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.start("canary", share=1.0)
    setting.fault = DatabaseUnreachable("away")
    setting.look()
    assert setting.who() == NEW
    assert setting.traffic.degraded() == []
    monkeypatch.setattr(setting.traffic.cache, "_clock", lambda: time.monotonic() + STALE_S + 1)
    (told,) = setting.traffic.degraded()
    assert told.startswith("canary of graphene@1 with all frames goes on from a copy of 1")
    setting.traffic.tally.write()  # fails, and keeps the sums
    setting.fault = None
    assert setting.compared().new.frames == 1


def test_a_service_without_a_database_serves_and_is_not_degraded(
    tiny_zoo: Any, tmp_path: Path
) -> None:
    setting = Setting(tiny_zoo, tmp_path, "graphene")
    setting.fault = InvalidSetting("a shared zoo needs a database")
    setting.look()
    assert (setting.who(), setting.traffic.degraded()) == (BASE, [])


def test_what_was_read_is_followed_by_the_next_reading_if_it_could_not_be_at_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, follow = setting.traffic.cache, setting.traffic.cache._follow
    monkeypatch.setattr(cache, "_follow", _fail)
    setting.rollouts().start("canary", NEW, BASE, who="ada")
    for _ in range(3):
        cache.read()
    assert len(caplog.records) == 1  # not one each time
    monkeypatch.setattr(cache, "_follow", follow)
    setting.look()
    assert (setting.who(), setting.meter.running) == (NEW, 1)


def test_a_rollout_whose_version_was_promoted_by_another_road_says_how_to_end_it(
    setting: Setting,
) -> None:
    setting.rollouts().start("canary", BASE, NEW, who="ada")
    setting.look()
    setting.ask()
    assert setting.traffic.degraded() == [
        "canary of graphene@2 with all frames has nothing to do: that version serves; "
        "manybeam serve promote graphene ends it"
    ]


def test_a_rollout_rests_while_another_version_than_its_base_serves(setting: Setting) -> None:
    setting.rollouts().start("canary", NEW, "graphene@7", who="ada")
    setting.look()
    answer = setting.ask()
    assert (answer.meta["ref"], answer.meta["rollout"]) == (BASE, None)
    assert setting.traffic.degraded() == [
        "canary of graphene@1 with all frames rests: graphene@2 serves, not graphene@7"
    ]


def test_a_replica_that_ends_writes_what_it_compared(setting: Setting) -> None:
    setting.traffic.start()
    made = setting.start("canary", share=1.0)
    setting.ask()
    setting.traffic.close()
    assert setting.rollouts().comparisons(made.id)[""]["new"]["frames"] == 1


# -- the comparison -------------------------------------------------------------------------------
def test_a_canary_is_compared_with_the_answers_of_the_serving_version(setting: Setting) -> None:
    setting.start("canary", "STEM-1")
    for _ in range(3):
        setting.ask(instrument="STEM-1")
    setting.ask(instrument="STEM-2")
    stem_1, stem_2 = setting.compared("STEM-1"), setting.compared("STEM-2")
    assert (stem_1.new.frames, stem_1.base.frames, stem_1.new.timed) == (3, 0, 3)
    assert (stem_2.new.frames, stem_2.base.frames, stem_2.base.members) == (0, 1, 3)
    assert stem_1.new.members == 2
    assert stem_1.new.p50_ms


def _until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_shadow_answers_after_the_serving_version_and_its_atoms_are_compared(
    setting: Setting,
) -> None:
    setting.traffic.shadow.start()
    setting.start("shadow", "STEM-1")
    answer = setting.ask(instrument="STEM-1")
    assert (answer.meta["ref"], answer.meta["rollout"]["kind"]) == (BASE, "shadow")
    _until(lambda: setting.meter.frames["shadow", "new"] == 1)
    found = setting.compared("STEM-1")
    own = setting.versions.get(NEW).ensemble.predict(FRAME, 16.0)
    assert (found.base.frames, found.base.members, found.new.members) == (1, 3, 2)
    sums = setting.rollouts().comparisons(setting.rollouts().running()[0].id)["STEM-1"]
    assert sums["new"]["atoms"] == len(own.atoms)
    assert sums["base"]["atoms"] == len(answer.arrays["atoms"])
    assert 0 <= (found.f1_between or 0) <= 1


def test_a_version_agrees_with_itself(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.traffic.shadow.start()
    setting.start("shadow")
    loaded = setting.versions.loaded
    monkeypatch.setattr(
        setting.versions, "loaded", lambda ref: loaded("graphene" if ref == NEW else ref)
    )
    for number in range(3):
        setting.ask(frame_id=f"f{number}")
        _until(lambda: setting.meter.frames["shadow", "new"] > number)  # noqa: B023 - called here
    found = setting.compared()
    assert (found.agreed, found.f1_between, found.offset_pm) == (1.0, 1.0, 0.0)
    assert found.base.timed == found.new.timed == 1


def test_frames_that_find_no_room_are_counted_and_nobody_waits(setting: Setting) -> None:
    setting.start("shadow")  # its thread is not started
    begun = time.monotonic()
    for number in range(shadows.QUEUE + 3):
        setting.ask(frame_id=f"f{number}")
    assert time.monotonic() - begun < 30
    assert setting.compared().skipped == 3


def test_a_shadow_that_fails_is_counted_and_goes_on(setting: Setting) -> None:
    setting.zoo.failing = NEW
    setting.traffic.shadow.start()
    setting.start("shadow")
    for number in range(2):
        setting.ask(frame_id=f"f{number}")
        _until(lambda: setting.meter.frames["shadow", "failed"] > number)  # noqa: B023 - called here
    assert (setting.compared().failed, setting.compared().fault) == (2, "no such kernel")


def test_a_shadow_of_a_share_looks_at_that_share(setting: Setting) -> None:
    setting.start("shadow", share=0.2)
    for number in range(30):
        setting.ask(frame_id=f"f{number}")
    assert 0 < setting.compared().skipped + shadows.QUEUE < 20


# -- below the live traffic -----------------------------------------------------------------------
class Clock:
    """A clock that a test sets."""

    at = 100.0

    def __call__(self) -> float:
        return self.at


def test_the_shadow_gets_the_time_between_the_requests_of_a_stream() -> None:
    clock = Clock()
    live = LiveWork(clock)
    assert live.leaves(9.0)  # nobody has asked yet
    for _ in range(12):  # each second a frame that takes .4 s
        with live.one():
            assert not live.leaves(0.0)
            clock.at += 0.4
        assert not live.leaves(0.0)  # not at once: another one is often near
        clock.at += QUIET_S
        assert live.leaves(0.1)
        clock.at += 0.6 - QUIET_S
    clock.at -= 0.3
    assert live.leaves(0.1)
    assert not live.leaves(0.3)  # it would meet the next frame
    clock.at += 0.3
    assert not live.leaves(0.01)
    clock.at += 0.8
    assert live.leaves(9.0)  # the stream has ended


def test_a_shadow_that_never_gets_its_turn_is_skipped(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadows, "PATIENCE_S", 0.3)
    setting.traffic.shadow.start()
    setting.start("shadow")
    setting.ask()
    with setting.traffic.live.one():
        setting.ask(frame_id="f1")
        _until(lambda: setting.meter.frames["shadow", "skipped"] >= 1)


def test_a_shadow_counts_the_wait_of_a_frame_from_when_it_was_given(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadows, "PATIENCE_S", 0.0)
    setting.start("shadow")
    setting.ask()
    monkeypatch.setattr(shadows, "PATIENCE_S", 60.0)
    setting.traffic.shadow.start()
    _until(lambda: setting.meter.frames["shadow", "skipped"] == 1)


def test_a_base_that_fails_when_it_is_timed_says_nothing_about_the_new_version(
    setting: Setting,
) -> None:
    setting.traffic.shadow.start()
    setting.start("shadow")
    for number in range(2):  # of the second frame, the base is timed
        setting.ask(frame_id=f"f{number}")
        if number == 1:
            setting.versions.get("graphene").ensemble.predict = _fail  # type: ignore[method-assign]
        _until(lambda: setting.meter.frames["shadow", "new"] > number)  # noqa: B023 - called here
    found = setting.compared()
    assert (found.new.frames, found.failed, found.skipped, found.base.timed) == (2, 0, 0, 0)


def test_a_replica_that_ends_does_not_wait_for_a_shadow(setting: Setting) -> None:
    setting.traffic.start()
    setting.start("shadow")
    with setting.traffic.live.one():
        setting.ask()
        begun = time.monotonic()
        setting.traffic.close()
    assert time.monotonic() - begun < 10


# -- times ----------------------------------------------------------------------------------------
@given(st.lists(st.floats(0.0005, 100), min_size=1, max_size=30))
def test_a_percentile_of_the_buckets_is_that_of_the_times(seconds: list[float]) -> None:
    buckets: Counter[str] = Counter()
    for one in seconds:
        buckets.update(took(one)["ms"])
    true_ms = sorted(seconds)[(len(seconds) - 1) // 2] * 1000
    assert percentile_ms(buckets, 0.5) == pytest.approx(true_ms, rel=RATIO**0.5 - 1 + 1e-6)

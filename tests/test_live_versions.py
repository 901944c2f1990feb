"""predictor.versions.live: a service whose versions change while it answers."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manybeam.data.io.frame import Frame
from manybeam.errors import Corrupt, NoCapacity, UnknownRef, ZooUnreachable
from manybeam.predictor.answer import Question
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.live import LiveVersions
from manybeam.predictor.versions.of_zoo import ZooVersions

FRAME = Frame(np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32), 16.0)


class Turned:
    """The zoo of the fixture, with an alias that a test moves, and faults that it asks for."""

    def __init__(self, zoo: Any) -> None:
        self.zoo, self.serving_version = zoo, 1
        self.fault: Exception | None = None
        self.loading, self.may_load = threading.Event(), threading.Event()
        self.may_load.set()
        self.asked = self.loads = self.listed = 0
        self.damaged, self.unlisted = "", None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.zoo, name)

    def resolve(self, ref: str) -> Any:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return self.zoo.resolve(f"graphene@{self.serving_version}" if ref == "graphene" else ref)

    def listing(self) -> Any:
        self.listed += 1
        if self.unlisted is not None:
            raise self.unlisted
        return self.zoo.listing()

    def ensemble(self, ref: str) -> Any:
        self.loads += 1
        if ref == self.damaged:
            raise Corrupt("damaged")
        self.loading.set()
        assert self.may_load.wait(60)
        return self.zoo.ensemble(ref)


@pytest.fixture
def turned(tiny_zoo: Any) -> Turned:
    return Turned(tiny_zoo)


@pytest.fixture
def live(turned: Turned) -> Iterator[Callable[..., LiveVersions]]:
    made: list[LiveVersions] = []

    def start(*refs: str, every_s: float = 0.0) -> LiveVersions:
        source = ZooVersions(turned, refs, fresh_s=0.0)  # type: ignore[arg-type]
        made.append(LiveVersions(source, every_s=every_s))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_promotion_answers_after_the_next_round(turned: Turned, live: Any) -> None:
    versions = live("graphene")
    turned.serving_version = 2
    assert versions.get("graphene").ref == "graphene@1"
    versions.refresh()
    assert versions.get("graphene").ref == "graphene@2"


def test_no_request_asks_the_zoo(turned: Turned, live: Any) -> None:
    versions = live("graphene")
    predictor, before = Predictor(versions), turned.asked
    turned.fault = ZooUnreachable("the zoo is down")
    for _ in range(3):
        predictor.answer(FRAME, Question("graphene"))
        predictor.answer(FRAME, Question("auto"))
    assert turned.asked == before


def test_answers_go_on_while_the_next_version_loads(turned: Turned, live: Any) -> None:
    versions = live("graphene", every_s=0.01)
    predictor = Predictor(versions)
    turned.loading.clear()
    turned.may_load.clear()
    turned.serving_version = 2
    assert turned.loading.wait(60)
    begun = time.monotonic()
    assert predictor.answer(FRAME, Question("graphene")).record.ref == "graphene@1"
    assert time.monotonic() - begun < 30  # it would wait for ever
    turned.may_load.set()
    _until(lambda: versions.get("graphene").ref == "graphene@2")


def test_a_damaged_version_does_not_take_over_and_the_answers_say_so(
    turned: Turned, live: Any
) -> None:
    versions = live("graphene")
    turned.fault = Corrupt("weights of member 00 differ")
    for _ in range(2):
        versions.refresh()
    loaded = versions.get("graphene")
    assert loaded.ref == "graphene@1"
    assert [one for one in loaded.notes if "weights of member 00 differ" in one] == [
        "graphene@1 goes on, because what follows it fails: weights of member 00 differ"
    ]
    turned.fault = None
    versions.refresh()
    assert versions.get("graphene").notes == ()


def test_while_the_zoo_is_away_the_last_version_answers_and_says_so(
    turned: Turned, live: Any
) -> None:
    versions = live("graphene")
    turned.fault = ZooUnreachable("the zoo is down")
    versions.refresh()
    assert "the zoo does not answer" in versions.get("graphene").notes[0]
    turned.fault = None
    versions.refresh()
    assert versions.get("graphene").notes == ()


def test_a_reference_that_was_removed_is_unknown(turned: Turned, live: Any) -> None:
    versions = live("graphene")
    versions.get("graphene@2")
    turned.fault = UnknownRef("no version")
    versions.refresh()
    with pytest.raises(UnknownRef):
        versions.get("graphene@2")


def test_what_serves_is_loaded_before_it_is_asked_for(turned: Turned, live: Any) -> None:
    versions = live()
    assert versions.serving() == ("graphene@2",)
    before = turned.asked
    assert versions.get("graphene@2").ref == "graphene@2"
    assert turned.asked == before


def test_without_a_serving_version_auto_is_no_capacity(
    turned: Turned, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = live()
    monkeypatch.setattr(turned, "listing", list)
    versions.refresh()
    with pytest.raises(NoCapacity):
        versions.serving()


def _until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a round of its thread cannot be waited for


def _auto_of(zoo: Any, *versions: str) -> Callable[[], list[Any]]:
    """Return a listing of a zoo in which these versions serve."""
    rows = {one.ref: one for one in zoo.listing()}
    return lambda: [replace(rows[ref], aliases=("serving",)) for ref in versions]


def test_auto_goes_on_with_the_earlier_version_until_the_next_one_is_loaded(
    turned: Turned, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned, "listing", _auto_of(turned.zoo, "graphene@1"), raising=False)
    versions = live(every_s=0.01)
    turned.loading.clear()
    turned.may_load.clear()
    monkeypatch.setattr(turned, "listing", _auto_of(turned.zoo, "graphene@2"), raising=False)
    assert turned.loading.wait(60)
    assert versions.serving() == ("graphene@1",)
    assert Predictor(versions).answer(FRAME, Question("auto")).ref == "graphene@1"
    turned.may_load.set()
    _until(lambda: versions.serving() == ("graphene@2",))


def test_auto_goes_on_with_the_earlier_version_if_the_next_one_is_damaged(
    turned: Turned, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned, "listing", _auto_of(turned.zoo, "graphene@1"), raising=False)
    versions = live()
    monkeypatch.setattr(turned, "listing", _auto_of(turned.zoo, "graphene@2"), raising=False)
    turned.damaged = "graphene@2"
    versions.refresh()
    answer = Predictor(versions).answer(FRAME, Question("auto"))
    assert answer.ref == "graphene@1"
    assert any("goes on, because what follows it fails: damaged" in one for one in answer.notes)


def test_a_round_loads_nothing_again_if_more_was_asked_for_than_fits(
    turned: Turned, live: Any
) -> None:
    source = ZooVersions(turned, ["graphene"], capacity=1, fresh_s=0.0)  # type: ignore[arg-type]
    versions = LiveVersions(source, every_s=0.0)
    for ref in ("graphene@1", "graphene@2", "graphene@1/00", "graphene@2/00"):
        versions.get(ref)
    versions.refresh()
    before = turned.loads
    for _ in range(3):
        versions.refresh()
    assert turned.loads == before
    assert versions.get("graphene").ref == "graphene@1"


def test_while_it_is_unknown_what_serves_no_request_asks_the_zoo(turned: Turned, live: Any) -> None:
    turned.unlisted = ZooUnreachable("the zoo is down")
    versions = live()
    for _ in range(3):
        with pytest.raises(ZooUnreachable):
            versions.serving()
    assert turned.listed == 1
    turned.unlisted = None
    versions.refresh()
    assert versions.serving() == ("graphene@2",)


def test_a_version_that_is_held_is_loaded_beside_the_requests_and_stays(
    turned: Turned, live: Any
) -> None:
    source = ZooVersions(turned, ["graphene"], capacity=0, fresh_s=0.0)  # type: ignore[arg-type]
    versions = LiveVersions(source, every_s=0.0)
    versions.hold("rollouts", ["graphene@2"])
    assert versions.loaded("graphene@2") is None
    versions.refresh()
    for ref in ("graphene@1/00", "graphene@2/00"):
        versions.get(ref)
        assert versions.loaded("graphene@2") is not None
    versions.refresh()
    before = turned.loads
    versions.refresh()
    assert versions.get("graphene@2").ref == "graphene@2"
    assert turned.loads == before
    versions.hold("rollouts", [])
    versions.get("graphene@1/01")
    assert versions.loaded("graphene@2") is None


def test_what_is_held_has_room_of_its_own_beside_what_serves(
    turned: Turned, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = _auto_of(turned.zoo, "graphene@2", "graphene@1")
    monkeypatch.setattr(turned, "listing", both, raising=False)
    source = ZooVersions(turned, capacity=2, fresh_s=0.0)  # type: ignore[arg-type]
    versions = LiveVersions(source, every_s=0.0)
    versions.hold("sessions", ["graphene@1/00"])
    versions.hold("rollouts", ["graphene@2/00"])
    versions.refresh()
    before = turned.loads
    versions.refresh()
    for ref in ("graphene@1", "graphene@2", "graphene@1/00", "graphene@2/00"):
        assert versions.loaded(ref) is not None
    assert turned.loads == before
    versions.hold("rollouts", [])
    assert source.capacity == 3


def test_a_version_that_is_held_and_fails_does_not_limit_what_serves(
    turned: Turned, live: Any
) -> None:
    versions = live("graphene")
    turned.damaged = "graphene@2"
    versions.hold("rollouts", ["graphene@2"])
    versions.refresh()
    assert versions.fault("graphene@2") == "damaged"
    assert versions.get("graphene").notes == ()


def test_a_change_is_looked_at_without_waiting_for_the_next_round(
    turned: Turned, live: Any
) -> None:
    versions = live("graphene", every_s=600.0)
    turned.serving_version = 2
    versions.renew_soon()
    _until(lambda: versions.get("graphene").ref == "graphene@2")


def test_a_version_in_memory_for_an_alias_answers_by_its_own_name_while_the_zoo_is_away(
    turned: Turned, live: Any
) -> None:
    versions = live("graphene")
    turned.fault = ZooUnreachable("the zoo is down")
    assert versions.get("graphene@1").ref == "graphene@1"
    turned.fault, turned.serving_version = None, 2
    versions.refresh()
    assert (versions.get("graphene").ref, versions.get("graphene@1").ref) == (
        "graphene@2",
        "graphene@1",
    )


def test_what_was_removed_does_not_answer_when_the_zoo_is_away_later(
    turned: Turned, live: Any
) -> None:
    versions = live("graphene")
    turned.fault = UnknownRef("no version")
    versions.refresh()
    turned.fault = ZooUnreachable("the zoo is down")
    with pytest.raises(ZooUnreachable):
        versions.get("graphene")


def _serving_fails(turned: Turned) -> None:
    turned.unlisted = ZooUnreachable("the zoo is down")


def _version_fails(turned: Turned) -> None:
    turned.damaged = "graphene@1"


def _version_is_gone(turned: Turned) -> None:
    turned.fault = UnknownRef("no version")


def _zoo_is_away(turned: Turned) -> None:
    turned.fault = ZooUnreachable("the zoo is down")


@pytest.mark.parametrize("fails", [_serving_fails, _version_fails, _version_is_gone, _zoo_is_away])
def test_what_fails_is_logged_once_until_it_changes(
    turned: Turned, live: Any, caplog: pytest.LogCaptureFixture, fails: Callable[[Turned], None]
) -> None:
    versions = live()
    versions.hold("rollouts", ["graphene@1"])
    fails(turned)
    versions.refresh()
    first = len(caplog.records)
    for _ in range(3):
        versions.refresh()
    assert len(caplog.records) == first > 0


def test_what_fails_again_is_logged_again(
    turned: Turned, live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    versions, said = live("graphene"), []
    for fault in (ZooUnreachable("the zoo is down"), None, ZooUnreachable("the zoo is down")):
        turned.fault = fault
        versions.refresh()
        said.append(len(caplog.records))
    assert said[0] == said[1] < said[2]


def test_requests_do_not_try_again_what_a_round_could_not_load(turned: Turned, live: Any) -> None:
    turned.damaged = "graphene@2"
    versions = live()
    before = turned.loads
    for _ in range(3):
        with pytest.raises(Corrupt):
            versions.get("graphene@2")
    assert turned.loads == before
    turned.damaged = ""
    versions.refresh()
    assert versions.get("graphene@2").ref == "graphene@2"

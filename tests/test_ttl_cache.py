"""What the zoo said lately: trusted for a while, asked for again, kept while the zoo is silent."""

import threading

import pytest

from manybeam.errors import DatabaseUnreachable, UnknownRef, Unreachable, ZooUnreachable
from manybeam.predictor.versions.ttl_cache import TTLCache


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_value_is_asked_for_once_until_it_is_old() -> None:
    clock, asked = Clock(), []
    fresh = TTLCache(lambda key: asked.append(key) or len(asked), 10.0, clock)
    assert [fresh.get("a")[0], fresh.get("a")[0]] == [1, 1]
    clock.now = 10.0
    assert fresh.get("a") == (2, ())


def test_while_the_source_is_silent_the_old_value_is_given_with_its_age() -> None:
    clock, silent = Clock(), []

    def ask(key: str) -> str:
        if silent:
            raise ZooUnreachable("the zoo is down")
        return key.upper()

    fresh = TTLCache(ask, 10.0, clock)
    fresh.get("a")
    silent.append(True)
    clock.now = 42.0
    value, notes = fresh.get("a")
    assert value == "A"
    assert "42 s ago" in notes[0]
    with pytest.raises(ZooUnreachable):
        fresh.get("b")


def test_what_is_gone_is_not_kept() -> None:
    clock = Clock()
    answers = iter(["there"])

    def ask(key: str) -> str:
        for answer in answers:
            return answer
        raise UnknownRef(f"no {key}")

    fresh = TTLCache(ask, 10.0, clock)
    fresh.get("a")
    clock.now = 11.0
    with pytest.raises(UnknownRef):
        fresh.get("a")


def test_others_go_on_with_the_old_value_while_one_asks() -> None:
    clock, asking, answered = Clock(), threading.Event(), threading.Event()

    def ask(key: str) -> float:
        if clock.now:
            asking.set()
            answered.wait(10)
        return clock.now

    fresh = TTLCache(ask, 10.0, clock)
    fresh.get("a")
    clock.now = 20.0
    thread = threading.Thread(target=fresh.get, args=("a",))
    thread.start()
    asking.wait(10)
    assert fresh.get("a") == (0.0, ())
    answered.set()
    thread.join()
    assert fresh.get("a") == (20.0, ())


def test_no_more_values_are_kept_than_there_is_room_for() -> None:
    asked: list[str] = []
    fresh = TTLCache(lambda key: asked.append(key), 10.0, Clock(), capacity=2)
    for key in "abca":
        fresh.get(key)
    assert asked == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("error", "who"),
    [
        pytest.param(ZooUnreachable("down"), "the zoo", id="zoo"),
        pytest.param(DatabaseUnreachable("down"), "the database", id="database"),
    ],
)
def test_a_source_that_never_answered_gives_what_this_machine_read_last(
    error: Unreachable, who: str
) -> None:
    def ask(_: str) -> str:
        if silent:
            raise error
        return "new"

    silent = [True]
    cache = TTLCache(ask, 10.0, Clock(), read_last=str.upper)
    assert cache.get("a") == ("A", (f"{who} does not answer; a is what this machine read last",))
    silent.clear()  # it is asked again at once
    assert cache.get("a") == ("new", ())


def test_the_first_error_is_told_if_this_machine_read_nothing() -> None:
    def ask(what: str) -> str:
        raise ZooUnreachable(what)

    cache = TTLCache(ask, 10.0, Clock(), read_last=lambda _: ask("never read"))
    with pytest.raises(ZooUnreachable, match="the zoo is down"):
        cache.get("the zoo is down")

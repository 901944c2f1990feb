"""The fair queue: shares of threads and places by weight, nothing starves, no place is lost."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from manybeam.errors import Busy
from manybeam.serve.edge.admission import read_body
from manybeam.serve.edge.fair_queue import REASONS, SMALL_BODY, FairQueue, Place, Share

MOST_S = 1.0  # of one work, and the mean before the first measurement


class Replica:
    """A queue with simulated threads: work takes the seconds that a test says."""

    def __init__(self, places: int = 1000, threads: int = 1, byte_limit: int = 10**9) -> None:
        self.now_s, self.inside = 0.0, 0
        self.queue = FairQueue(places, threads, byte_limit, self._note, lambda: self.now_s)
        self.begun: list[tuple[str, float]] = []  # in their order: key and seconds
        self.refused: list[tuple[str, Busy]] = []
        self._ends: list[tuple[float, int, Place]] = []

    def _note(self, inside: int) -> None:
        self.inside = inside

    def take(self, key: str, weight: float = 1.0, stream: str = "") -> Place:
        place = self.queue.take(Share(key, weight), stream)
        place.refused = lambda error: self.refused.append((key, error))
        return place

    def line_up(self, place: Place, key: str, seconds: float) -> None:
        def start() -> None:
            self.begun.append((key, seconds))
            heapq.heappush(self._ends, (self.now_s + seconds, place.number, place))

        self.queue.line_up(place, start)

    def arrive(self, key: str, seconds: float, weight: float = 1.0, stream: str = "") -> Place:
        place = self.take(key, weight, stream)
        self.line_up(place, key, seconds)
        return place

    def step(self) -> bool:
        """Let the next work end; return whether there was one."""
        if not self._ends:
            return False
        self.now_s, _, place = heapq.heappop(self._ends)
        self.queue.leave(place)
        self.queue.ended(place)
        return True

    def run(self) -> None:
        while self.step():
            pass

    def is_empty(self) -> bool:
        queue = self.queue
        return not (self.inside or queue._running or queue._bytes or queue._flows)


seconds = st.floats(0.05, MOST_S)
weights = st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 10.0])


# -- threads --------------------------------------------------------------------------------------
@given(
    flows=st.lists(st.tuples(weights, seconds, seconds), min_size=2, max_size=5),
    threads=st.integers(1, 3),
)
def test_callers_that_always_wait_get_their_shares(
    flows: Sequence[tuple[float, float, float]], threads: int
) -> None:
    """The difference of two is never more than one work of each in every thread."""
    replica = Replica(threads=threads)
    for number in range(60):
        for key, (weight, one_s, other_s) in enumerate(flows):
            replica.arrive(str(key), (one_s, other_s)[number % 2], weight)
    got: Counter[str] = Counter()
    for key, taken in replica.begun:  # those begun at once
        got[key] += taken
    seen = len(replica.begun)
    while all(flow.waiting for flow in replica.queue._flows.values()):
        replica.step()
        for key, taken in replica.begun[seen:]:
            got[key] += taken
        seen = len(replica.begun)
        each = [(got[str(key)] / weight, weight) for key, (weight, _, _) in enumerate(flows)]
        for first, first_weight in each:
            for second, second_weight in each:
                bound = threads * MOST_S * (1 / first_weight + 1 / second_weight)
                assert first - second <= bound + 1e-9


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 5), seconds), max_size=80),
    weight=weights,
    threads=st.integers(1, 2),
)
def test_a_caller_that_waits_gets_its_share_whatever_the_others_send(
    arrivals: Sequence[tuple[float, int, float]], weight: float, threads: int
) -> None:
    """It is behind its share by at most one work of each other caller, weighted, in each thread."""
    replica, pending = Replica(threads=threads), sorted(arrivals)
    for _ in range(20):
        replica.arrive("own", MOST_S / 2, weight)
    total = own = 0.0
    names = {key for _, key, _ in arrivals}
    all_weights = weight + len(names)
    counted = len(replica.begun)
    while replica.queue._flows["own"].waiting:
        while pending and pending[0][0] <= replica.now_s:
            _, key, taken = pending.pop(0)
            replica.arrive(f"other {key}", taken)
        replica.step()
        for key_, taken in replica.begun[counted:]:
            total += taken
            own += taken if key_ == "own" else 0.0
        counted = len(replica.begun)
        share = weight / all_weights
        slack = (threads + 1) * MOST_S * (1 + share * len(names))
        assert own >= share * total - slack


@given(arrivals=st.lists(st.tuples(st.integers(0, 3), seconds, weights), max_size=60))
def test_whatever_waits_is_answered(arrivals: Sequence[tuple[int, float, float]]) -> None:
    replica = Replica(threads=2)
    for key, taken, weight in arrivals:
        replica.arrive(str(key), taken, weight)
        if taken > 0.5:
            replica.step()
    replica.run()
    assert Counter(key for key, _ in replica.begun) == Counter(str(key) for key, _, _ in arrivals)
    assert replica.is_empty()


def test_a_flood_of_new_names_starves_nobody() -> None:
    replica = Replica()
    for _ in range(6):
        replica.arrive("old", MOST_S)
    for number in range(100):
        replica.arrive(f"new {number}", MOST_S)
        if number > 3:
            replica.step()
    assert Counter(key for key, _ in replica.begun)["old"] == 6
    assert len(replica.queue._flows) < 20


def test_a_polite_caller_is_next_behind_a_flood() -> None:
    replica = Replica()
    for _ in range(30):
        replica.arrive("flood", 0.2)
    for _ in range(5):
        replica.step()
    before = len(replica.begun)
    replica.arrive("polite", 0.2)
    replica.step()
    assert replica.begun[before][0] == "polite"


def test_time_that_was_not_used_is_not_saved_for_a_flood() -> None:
    replica = Replica()
    replica.arrive("late", 0.1)
    replica.take("late")  # so that it is known all the time
    for _ in range(50):
        replica.arrive("busy", 0.1)
    for _ in range(40):
        replica.step()
    before = len(replica.begun)
    for _ in range(50):
        replica.arrive("late", 0.1)
    for _ in range(10):
        replica.step()
    after = Counter(key for key, _ in replica.begun[before:])
    assert abs(after["late"] - after["busy"]) <= 2


def test_the_work_of_a_caller_counts_not_its_requests() -> None:
    replica = Replica()
    for _ in range(100):
        replica.arrive("large", 1.0)
        for _ in range(4):
            replica.arrive("small", 0.25)
    for _ in range(200):
        replica.step()
    got: Counter[str] = Counter()
    for key, taken in replica.begun:
        got[key] += taken
    assert got["small"] == pytest.approx(got["large"], abs=2.0)


def test_a_changed_weight_counts_at_the_next_request() -> None:
    replica = Replica(places=2000)
    for _ in range(200):
        replica.arrive("a", 0.1)
        replica.arrive("b", 0.1)
    replica.arrive("a", 0.1, weight=3.0)
    for _ in range(100):
        replica.step()
    got = Counter(key for key, _ in replica.begun)
    assert got["a"] == pytest.approx(3 * got["b"], rel=0.15)


# -- places -----------------------------------------------------------------------------------
def test_a_newcomer_takes_the_youngest_place_of_the_caller_most_above_its_share() -> None:
    replica = Replica(places=8)
    for _ in range(3):
        replica.arrive("some", 1.0)
    flood = [replica.arrive("flood", 1.0) for _ in range(5)]
    replica.arrive("new", 1.0)
    assert [key for key, _ in replica.refused] == ["flood"]
    assert flood[-1].refusal is replica.refused[0][1]
    assert replica.inside == 8
    with pytest.raises(Busy, match="share them by their weights"):
        flood[-1].check()


def test_a_caller_above_its_share_displaces_nobody() -> None:
    replica = Replica(places=8)
    for key in "ab":
        for _ in range(4):
            replica.arrive(key, 1.0)
    with pytest.raises(Busy, match="8 requests are here already; at most 8 at once") as caught:
        replica.arrive("a", 1.0)
    assert (replica.refused, caught.value.reason) == ([], "full")


def test_work_that_has_begun_is_never_displaced() -> None:
    replica = Replica(places=2, threads=2)
    for _ in range(2):
        replica.arrive("flood", 1.0)
    with pytest.raises(Busy):
        replica.arrive("new", 1.0)
    assert replica.refused == []


@given(
    asked=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=150),
    each=st.tuples(*[weights] * 5),
    places=st.integers(4, 20),
)
def test_places_end_in_shares_by_weight(
    asked: Sequence[tuple[int, bool]], each: Sequence[float], places: int
) -> None:
    """Whoever is refused has at least its share, rounded down, or nobody else has more."""
    replica = Replica(places=places, threads=1)
    for key, is_read in asked:
        try:
            place = replica.take(str(key), each[key])
            if is_read:
                replica.line_up(place, str(key), 1.0)
        except Busy:
            flows = replica.queue._flows
            own = len(flows[str(key)].inside) if str(key) in flows else 0
            total = sum(one.weight for one in flows.values()) + (0 if own else each[key])
            open_ = sum(1 for one in flows.values() for p in one.inside if p.begun_s is None)
            assert own >= int(places * each[key] / total) - 1 or open_ < places
            assert own or all(len(one.inside) <= 2 for one in flows.values())
        assert replica.inside <= places


def test_slow_bodies_of_one_caller_give_way() -> None:
    replica = Replica(places=8)
    slow = [replica.take("same") for _ in range(8)]
    replica.now_s = 0.5
    with pytest.raises(Busy):  # they are not slow yet
        replica.take("same")
    replica.now_s = 1.5
    for _ in range(6):
        replica.arrive("same", 0.1)
    assert [error.reason for _, error in replica.refused] == ["slow"] * 6
    assert [one.refusal is None for one in slow] == [False] * 6 + [True] * 2


def test_large_bodies_share_their_bytes() -> None:
    size = 4 * SMALL_BODY
    replica = Replica(byte_limit=2 * size)  # so that four are here at once
    flood = [replica.take("flood") for _ in range(5)]
    for one in flood[:4]:
        replica.queue.hold(one, size)
    with pytest.raises(Busy, match="bytes of large bodies") as caught:
        replica.queue.hold(flood[4], size)
    assert caught.value.reason == "large"
    polite = replica.take("polite")
    replica.queue.hold(polite, size)
    replica.queue.hold(replica.take("polite"), SMALL_BODY)
    assert [one.refusal is None for one in flood] == [True, True, True, False, True]


def test_nobody_is_displaced_in_vain() -> None:
    size = 4 * SMALL_BODY
    replica = Replica(byte_limit=2 * size)
    others = [replica.take(key) for key in "aabb"]
    for one in others:
        replica.queue.hold(one, size)
    with pytest.raises(Busy):
        replica.queue.hold(replica.take("c"), 4 * size)
    assert replica.refused == []


# -- the newest frame ---------------------------------------------------------------------------
def test_a_newer_frame_takes_the_place_of_those_that_wait() -> None:
    replica = Replica()
    for number in range(4):
        replica.arrive("scan", 0.1 * (number + 1), stream="STEM-1")
    replica.arrive("other", 0.5)
    replica.run()
    assert [taken for _, taken in replica.begun if taken != 0.5] == [0.1, 0.4]
    assert {error.why for _, error in replica.refused} == {"a newer frame took its place"}


def test_an_older_frame_that_was_longer_on_its_way_is_refused() -> None:
    replica = Replica()
    replica.arrive("other", 1.0)
    old, new = (replica.take("scan", stream="STEM-1") for _ in range(2))
    replica.line_up(new, "scan", 0.2)
    with pytest.raises(Busy, match="a newer frame took its place"):
        replica.line_up(old, "scan", 0.1)


def test_a_newer_frame_needs_no_free_place() -> None:
    replica = Replica(places=3)
    replica.arrive("other", 1.0)
    for _ in range(3):
        replica.arrive("scan", 1.0, stream="STEM-1")
    replica.arrive("scan", 1.0, stream="STEM-1")
    assert [error.reason for _, error in replica.refused] == ["newer"] * 3
    assert replica.inside == 2


def test_a_newer_frame_leaves_other_streams_and_requests_of_its_caller_alone() -> None:
    replica = Replica(places=5)
    replica.arrive("control room", 1.0)
    for stream in ("STEM-1", "STEM-2", "", "STEM-1"):
        replica.arrive("control room", 1.0, stream=stream)
    assert len(replica.refused) == 1
    replica.arrive("control room", 1.0)
    with pytest.raises(Busy, match="requests are here already"):  # nothing of this stream waits
        replica.take("control room", stream="STEM-3")
    replica.run()
    assert len(replica.begun) == 5


# -- nothing is lost ------------------------------------------------------------------------------
OPERATIONS = st.tuples(
    st.sampled_from(["take", "hold", "line up", "leave", "step"]),
    st.integers(0, 30),
    st.integers(0, 3),
)


@given(operations=st.lists(OPERATIONS, max_size=120), threads=st.integers(1, 3))
def test_no_place_thread_or_byte_is_lost(
    operations: Sequence[tuple[str, int, int]], threads: int
) -> None:
    replica, places = Replica(5, threads, 3 * SMALL_BODY), list[Place]()
    for what, which, key in operations:
        with suppress(Busy):
            _do(replica, places, what, which, str(key))
        assert replica.queue._running <= threads
        assert replica.queue._bytes <= 2 * 3 * SMALL_BODY
        waiting = any(flow.waiting for flow in replica.queue._flows.values())
        assert not waiting or replica.queue._running == threads
    for place in places:
        replica.queue.leave(place)
    replica.run()
    assert replica.is_empty()
    assert {error.reason for _, error in replica.refused} <= {*REASONS}
    assert all(1 <= error.retry_s <= 60 for _, error in replica.refused)


def _do(replica: Replica, places: list[Place], what: str, which: int, key: str) -> None:
    place = places[which % len(places)] if places else None
    if what == "take" or place is None:
        stream = f"s{which % 2}" if which > 15 else ""
        places.append(replica.take(key, float(which % 3 + 1), stream))
    elif what == "step":
        replica.step()
    elif what == "leave":
        replica.queue.leave(place)
    elif what == "hold" and place in place.flow.inside and place.start is None:
        replica.queue.hold(place, which * SMALL_BODY // 8)
    elif place in place.flow.inside and place.start is None:
        replica.line_up(place, key, 0.5)


# -- Retry-After ----------------------------------------------------------------------------------
def test_retry_after_is_the_time_of_the_callers_own_queue() -> None:
    replica = Replica(threads=2)
    for _ in range(100):
        replica.arrive("done", 4.0)
    replica.run()
    for _ in range(9):
        replica.arrive("a", 4.0)
    assert replica.queue.wait_s(Share("b")) == pytest.approx(4, abs=1)
    assert replica.queue.wait_s(Share("a")) == pytest.approx(20, abs=1)
    assert replica.queue.wait_s(Share("b", 0.1)) == pytest.approx(22, abs=1)
    assert "b" not in replica.queue._flows


def test_a_place_whose_body_was_read_is_given_up_without_a_timer() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"frame"}

    async def displaced() -> None:
        queue = FairQueue(2, 1, 1000)
        places = [queue.take(Share("flood")) for _ in range(2)]
        for place in places:
            await read_body(Request({"type": "http", "headers": []}, receive), queue, place)
        queue.take(Share("polite"))  # the younger one of the flood has to go
        places[0].check()
        with pytest.raises(Busy):
            places[1].check()

    asyncio.run(displaced())

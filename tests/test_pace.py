"""predictor.pace: times of answers that were given, and of those that were not."""

import threading

import pytest

from manybeam.errors import DeadlineExceeded
from manybeam.predictor.pace import FRESH_S, NETWORKS, Pace, Work

WORK = Work("graphene@1", 65536.0)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock)


def give(
    pace: Pace, clock: Clock, count: int, network: float = 0.02, rest: float = 0.01,
    work: Work = WORK,
) -> None:  # fmt: skip
    """Give an answer of some members, each of which takes a time."""
    seconds = {NETWORKS: 7.0}  # of frames before
    with pace.timing(work, count, seconds):
        clock.now += count * network + rest
        seconds[NETWORKS] += count * network


def test_nothing_is_known_at_first(pace: Pace) -> None:
    assert pace.seconds(WORK, 3) is None
    assert pace.members_within(WORK, 6, 0.001) == 6


def test_answers_of_any_number_of_members_are_predicted(pace: Pace, clock: Clock) -> None:
    give(pace, clock, 4)
    assert pace.seconds(WORK, 1) == pytest.approx(0.03)
    assert pace.seconds(WORK, 8) == pytest.approx(0.17)


@pytest.mark.parametrize(("left_s", "count"), [(0.2, 6), (0.131, 6), (0.1, 4), (0.035, 1)])
def test_as_many_members_answer_as_there_is_time_for(
    pace: Pace, clock: Clock, left_s: float, count: int
) -> None:
    give(pace, clock, 6)
    assert pace.members_within(WORK, 6, left_s) == count


def test_a_time_too_short_for_one_member_is_told_until_it_has_to_be_measured_anew(
    pace: Pace, clock: Clock
) -> None:
    give(pace, clock, 6)
    assert pace.members_within(WORK, 6, 0.02) == 0
    clock.now += FRESH_S + 1
    assert pace.members_within(WORK, 6, 0.02) == 1


def test_one_slow_answer_among_many_changes_little_and_many_change_all(
    pace: Pace, clock: Clock
) -> None:
    for _ in range(15):
        give(pace, clock, 2)
    give(pace, clock, 2, network=1.0)
    assert pace.seconds(WORK, 2) == pytest.approx(0.05)
    for _ in range(5):
        give(pace, clock, 2, network=1.0)
    assert (pace.seconds(WORK, 2) or 0) > 1.0


def test_a_larger_frame_takes_longer_in_proportion(pace: Pace, clock: Clock) -> None:
    give(pace, clock, 2)
    large = Work(WORK.ref, 4 * WORK.pixels)
    assert pace.seconds(large, 2) == pytest.approx(4 * 0.05)
    give(pace, clock, 2, network=0.05, work=large)  # what was measured counts more
    assert pace.seconds(large, 2) == pytest.approx(0.11)
    assert pace.seconds(WORK, 2) == pytest.approx(0.05)


def test_a_tiny_frame_tells_nothing_absurd_about_large_ones(pace: Pace, clock: Clock) -> None:
    give(pace, clock, 1, work=Work(WORK.ref, 4.0))
    assert pace.seconds(Work(WORK.ref, 4.0), 1) == pytest.approx(0.03)
    assert pace.members_within(Work(WORK.ref, 1024.0**2), 1, 2.0) == 1


def test_versions_and_analysed_answers_have_times_of_their_own(pace: Pace, clock: Clock) -> None:
    give(pace, clock, 2)
    assert pace.seconds(Work("graphene@2", WORK.pixels), 2) is None
    assert pace.seconds(Work(WORK.ref, WORK.pixels, is_full=True), 2) is None


def test_answers_beside_others_have_times_of_their_own(pace: Pace, clock: Clock) -> None:
    give(pace, clock, 2)
    with pace.timing(WORK, 2, {}):
        give(pace, clock, 2, network=0.08)
        assert pace.seconds(WORK, 2) == pytest.approx(0.17)
        clock.now -= 0.17
    assert pace.seconds(WORK, 2) == pytest.approx(0.05, rel=0.2)


def test_an_answer_that_was_ended_because_it_was_late_is_learned_from(
    pace: Pace, clock: Clock
) -> None:
    give(pace, clock, 2)

    def end(after_s: float) -> None:
        with pace.timing(WORK, 2, {}):
            clock.now += after_s
            raise DeadlineExceeded("late")

    with pytest.raises(DeadlineExceeded):
        end(0.01)
    assert pace.seconds(WORK, 2) == pytest.approx(0.05)  # soon ended: it says nothing
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            end(2.0)
    assert (pace.seconds(WORK, 2) or 0) > 1.0


def test_threads_do_not_disturb_each_other(clock: Clock) -> None:
    pace = Pace(clock)

    def work() -> None:
        for _ in range(200):
            with pace.timing(WORK, 1, {NETWORKS: 0.0}):
                pace.members_within(WORK, 3, 1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert pace._running == 0

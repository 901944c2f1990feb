"""Members side by side: their order, and an end for all at the first error or Ctrl-C."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from manybeam.learn.training.side_by_side import each_abreast, stop_if_nobody_waits

STEPS = 400

Make = Callable[[int], list[Any]]


def test_results_come_in_the_order_of_the_members(tiny_members: Make) -> None:
    threads = torch.get_num_threads()
    assert each_abreast(lambda one: one.index, tiny_members(5)) == [0, 1, 2, 3, 4]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_one_member_ends_the_work_of_the_others(
    tiny_members: Make, error: type[BaseException]
) -> None:
    done: list[int] = []

    def work(member: Any) -> None:
        if member.index == 0:
            raise error
        for _ in range(STEPS):
            time.sleep(0.02)  # the work: long enough for the other to fail meanwhile
            stop_if_nobody_waits()
            done.append(member.index)

    with pytest.raises(error):
        each_abreast(work, tiny_members(3))
    assert len(done) < STEPS


def test_work_that_is_not_side_by_side_is_never_stopped(tiny_members: Make) -> None:
    stop_if_nobody_waits()
    assert each_abreast(lambda _: stop_if_nobody_waits(), tiny_members(1)) == [None]

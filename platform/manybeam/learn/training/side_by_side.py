"""Members worked on side by side: one on each core, as small networks do not fill two."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from manybeam.learn.nets.member import Member
from manybeam.learn.training.member import training_device

T = TypeVar("T")
_here = threading.local()


class _Stopped(Exception):
    """Another member failed, or a person pressed Ctrl-C: nobody waits for this one."""


def each_abreast(work: Callable[[Member], T], members: Sequence[Member]) -> list[T]:
    """Return `work(member)` of each member, in order, from as many threads as there are cores.

    torch works outside Python's lock. Each thread gets its share of the cores, the same for the
    same number of members, because the last digit of a sum depends on it. Networks with dropout
    draw from a generator that threads share, and a GPU is one: such members take turns.

    At the first error, and at Ctrl-C, the others end where they ask `stop_if_nobody_waits`.

    Args:
        work: what is done for one member; its first error is passed on.
        members: at least one.
    """
    takes_turns = training_device().type != "cpu" or any(
        one.recipe.network.dropout > 0 for one in members
    )
    if takes_turns or len(members) < 2:
        return [work(one) for one in members]
    threads = torch.get_num_threads()
    count = min(len(members), _core_count())
    share, stopped = max(1, threads // count), threading.Event()
    # Building a network draws weights; the caller's generator must not notice.
    with (
        torch.random.fork_rng(),
        ThreadPoolExecutor(count, initializer=_begin, initargs=(share, stopped)) as pool,
    ):
        try:
            return list(pool.map(work, members))
        except BaseException:
            stopped.set()  # leaving the pool waits for what runs in it
            raise
        finally:
            torch.set_num_threads(threads)


def stop_if_nobody_waits() -> None:
    """End the work of this thread if `each_abreast` has given it up; long work asks now and then.

    Nothing happens in a thread of another's.
    """
    stopped = getattr(_here, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise _Stopped


def _begin(thread_count: int, stopped: threading.Event) -> None:
    torch.set_num_threads(thread_count)
    _here.stopped = stopped


def _core_count() -> int:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

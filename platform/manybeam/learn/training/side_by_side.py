"""Work on members side by side: one on each core, because small networks do not fill two."""

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
    """Another member failed, or a person pressed Ctrl-C: this result is not needed."""


def each_abreast(work: Callable[[Member], T], members: Sequence[Member]) -> list[T]:
    """Return `work(member)` of each member, in order, with one thread for each core.

    torch releases the lock of Python. Each thread gets its share of the cores, the same for the
    same number of members, because the last digit of a sum depends on it. Networks with dropout
    draw from a generator that threads share, and a GPU is shared too: such members take turns.

    At the first error, and at Ctrl-C, the other threads end when they call `stop_if_nobody_waits`.

    Args:
        work: what is done with one member; its first error is raised here.
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
    # Building a network draws weights; this must not change the generator of the caller.
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
    """End the work of this thread if `each_abreast` has stopped it; long work calls this often.

    In other threads it does nothing.
    """
    stopped = getattr(_here, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise _Stopped


def _begin(thread_count: int, stopped: threading.Event) -> None:
    torch.set_num_threads(thread_count)
    _here.stopped = stopped


def _core_count() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

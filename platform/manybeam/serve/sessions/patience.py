"""Calls to a database that may hang, with an end to the patience of who waits."""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from manybeam.errors import DatabaseUnreachable

T = TypeVar("T")


def result_within(patience_s: float, pool: Executor, call: Callable[[], T]) -> T:
    """Return the result of a call, which goes on in another thread if it takes longer.

    Raises:
        DatabaseUnreachable: there was none in this time, or for another reason.
    """
    try:
        asking = pool.submit(call)
    except RuntimeError:  # the pool was shut down
        raise DatabaseUnreachable("the database is not asked: the replica ends") from None
    try:
        return asking.result(patience_s)
    except TimeoutError:
        asking.cancel()
        words = f"the database gave no answer within {patience_s:g} s"
        raise DatabaseUnreachable(words) from None

"""The frames a job trains on: simulated for each policy, or given as URLs; and those it tests on.

Simulated FrameSets lie under a name that holds all that decides them, so that any job that needs
the same frames finds them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from manybeam import __version__
from manybeam.cluster import joining as cluster
from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import SIMULATOR, simulate_into
from manybeam.errors import Conflict, UnknownFrameSet
from manybeam.jobs.run import digest_of, seed_of
from manybeam.spec.imaging import Policy
from manybeam.spec.job import Job
from manybeam.spec.recipe import Recipe

SIMULATE = "simulate:"


@dataclass(frozen=True)
class _Order:
    """Frames to simulate: of what, how many, from which seed, and where to."""

    policy: Policy
    count: int
    seed: int
    url: str


def prepare_frames(
    job: Job, recipe: Recipe, policies: Sequence[Policy], store_url: str, executor: str
) -> dict[str, tuple[str, ...]]:
    """Return the URLs of the FrameSets that members of each policy learn from.

    `simulate:` among the job's frames stands for the policy's own, made here if they are not there;
    each other entry is a FrameSet that all members learn from.

    Raises:
        UnknownFrameSet: a URL holds no FrameSet.
    """
    given = tuple(FrameSet.open(url).url for url in job.frames if url != SIMULATE)
    if SIMULATE not in job.frames:
        return {policy.id: given for policy in policies}
    count = recipe.tiles.frames_per_policy
    orders = [_order(policy, count, job.seed, store_url) for policy in policies]
    missing = [order for order in orders if not _is_there(order)]
    for _ in _each(missing, executor):
        pass
    return {order.policy.id: (order.url, *given) for order in orders}


def _each(orders: Sequence[_Order], executor: str) -> Iterator[None]:
    if executor == "local":
        yield from map(_simulate, orders)
    elif orders:
        cluster.connect()
        work = [partial(_simulate, order) for order in orders]
        yield from (result for _, result in cluster.each(work))


def _order(policy: Policy, count: int, seed: int, store_url: str) -> _Order:
    own = seed_of("train", seed, policy.digest)
    name = digest_of([__version__, SIMULATOR, policy.digest, own, count])[:12]
    return _Order(policy, count, own, f"{store_url}/simulated/{policy.id}-{name}")


def _is_there(order: _Order) -> bool:
    return (_count(order) or 0) >= order.count


def _count(order: _Order) -> int | None:
    """Return how many frames lie where they should; None where there is no set."""
    try:
        return len(FrameSet.open(order.url))
    except UnknownFrameSet:
        return None


def _simulate(order: _Order) -> None:
    count = _count(order)
    if (count or 0) >= order.count:
        return  # made by another job since we looked
    is_half = count is not None  # frames that were appended one by one, and never finished
    try:
        simulate_into(order.url, order.policy, order.count, seed=order.seed, overwrite=is_half)
    except Conflict:
        # Another job made the same frames at this moment; then they are there.
        if not _is_there(order):
            raise

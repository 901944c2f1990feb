"""The training frames of a job: simulated for each policy, or given as URLs.

The name of a simulated FrameSet contains a digest of all inputs that decide its frames. So any job
that needs the same frames finds them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from manybeam import __version__
from manybeam.cluster import joining as cluster
from manybeam.data.frames import FrameSet
from manybeam.data.simulation import SIMULATOR
from manybeam.data.simulation.simulate import simulate_into
from manybeam.errors import Conflict, UnknownFrameSet
from manybeam.jobs.preflight import SIMULATE
from manybeam.jobs.run import digest_of, seed_of
from manybeam.spec.imaging import Policy
from manybeam.spec.job import Job
from manybeam.spec.recipe import Recipe


@dataclass(frozen=True)
class _Order:
    """Frames to simulate: policy, number, seed and destination."""

    policy: Policy
    count: int
    seed: int
    url: str


def prepare_frames(
    job: Job,
    recipe: Recipe,
    policies: Sequence[Policy],
    store_url: str,
    executor: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the URLs of the training FrameSets of each policy.

    `simulate:` in the frames of the job means frames drawn from the policy; they are simulated if
    they do not exist. Each other entry is a FrameSet for all members.

    Raises:
        UnknownFrameSet: there is no FrameSet at a URL.
    """
    given = tuple(FrameSet.open(url).url for url in job.frames if url != SIMULATE)
    if SIMULATE not in job.frames:
        return {policy.id: given for policy in policies}
    count = recipe.tiles.frames_per_policy
    orders = [_order(policy, count, job.seed, store_url) for policy in policies]
    missing = [order for order in orders if not _is_there(order)]
    for done, _ in enumerate(_each(missing, executor), 1):
        if progress:
            progress(done, len(missing))
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
    """Return how many frames the set has; None if there is no set."""
    try:
        return len(FrameSet.open(order.url))
    except UnknownFrameSet:
        return None


def _simulate(order: _Order) -> None:
    count = _count(order)
    if (count or 0) >= order.count:
        return  # another job has made them meanwhile
    is_half = count is not None  # an unfinished set, from a process that was stopped
    try:
        simulate_into(order.url, order.policy, order.count, seed=order.seed, overwrite=is_half)
    except Conflict:
        # Another job made the same frames at the same time; then the set is complete.
        if not _is_there(order):
            raise

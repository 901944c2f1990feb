"""Training an ensemble: frames are simulated, members are divided among Ray Train workers.

Rank r trains members r, r + W, r + 2W ... alone: members do not depend on each other, so no
gradients are shared and no network is wrapped. One group of workers trains all members, because a
trainer for each member would cost ten seconds a member. The group has no process group of torch,
because no rank needs one. Its backend Gloo would connect to the address to which a host's own name
resolves, which is often loopback.

The state of a member is in the store (`jobs.run`), not in Ray. Any later call of the same job
continues from there, whatever ended the first call.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from manybeam.cluster import joining as cluster
from manybeam.data.frames import FrameSet
from manybeam.data.store import arrow_filesystem, open_store
from manybeam.errors import NoCapacity, WorkFailed
from manybeam.jobs.frames import prepare_frames
from manybeam.jobs.mailbox import Event, Mailbox, OnEvent, Sender, open_mailbox, work_in_worker
from manybeam.jobs.preflight import SIMULATE, check_inputs
from manybeam.jobs.run import Run, name_run
from manybeam.learn.nets.member import Member
from manybeam.spec.files import Library
from manybeam.spec.job import Job, Resources
from manybeam.zoo.matrix import FrameSetUse

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

logger = logging.getLogger(__name__)

POLL_S = 0.2
STOP_S = 60.0  # a starting group can stop only after its workers have imported torch

Executor = Literal["ray", "local"]


@dataclass(frozen=True)
class TrainOutcome:
    """The result of a training.

    Attributes:
        members: finished members, by index.
        failed: one line for each member that diverged: its index and the reason.
        resumed: members that an earlier call had started or finished.
        run_url: URL of the run in the store.
        wall_s: duration of this call, in seconds.
        inputs: the training FrameSets.
    """

    members: tuple[Member, ...]
    failed: tuple[str, ...]
    resumed: tuple[int, ...]
    run_url: str
    wall_s: float
    inputs: tuple[FrameSetUse, ...] = ()


def train(
    job: Job,
    library: Library,
    store_url: str,
    *,
    progress: OnEvent | None = None,
    simulated: Callable[[int, int], None] | None = None,
    executor: Executor = "ray",
) -> TrainOutcome:
    """Train every member of a job that is not trained yet, and return all members.

    Args:
        job: recipe, seed, frames and resources.
        library: where recipe and policies are looked up.
        store_url: store for simulated frames and for the run; workers must reach it too.
        progress: called in this thread, a few times a second for each member in work.
        simulated: called with (policies whose frames are simulated, policies without frames).
        executor: "ray" divides members among workers; "local" trains them in this process, one by
            one. The weights are bit-equal if the workers have as many cores of the same kind.

    Raises:
        ManybeamError: a recipe, policy or FrameSet does not exist, or the store fails.
        NoCapacity: no node of the cluster is large enough for a worker.
        WorkFailed: every member diverged, or workers were lost more often than `retries`.
        KeyboardInterrupt: raised again after the workers have stopped; call again to continue.
    """
    start = time.monotonic()
    report = progress or _say_nothing
    check_inputs(job, library)
    if executor == "ray":
        cluster.connect()
        _worker_count(_worker_size(job.resources), 1)  # before frames are simulated for minutes
    run = plan_run(job, library, store_url, executor, simulated)
    before = run.started()
    members = range(len(run.recipe.members))
    todo = [index for index in members if before.get(index) not in ("done", "failed")]
    if todo and executor == "local":
        _train_here(run, todo, job.resources, report)
    elif todo:
        _train_on_ray(run, todo, job.resources, report)
    return _gather(run, tuple(sorted(before)), start)


def plan_run(
    job: Job,
    library: Library,
    store_url: str,
    executor: Executor = "ray",
    simulated: Callable[[int, int], None] | None = None,
) -> Run:
    """Return the run of a job; its frames are simulated if they do not exist."""
    recipe = library.recipe(job.recipe)
    policies = [library.policy(name) for name in dict.fromkeys(m.policy for m in recipe.members)]
    # Workers have other working directories, so the absolute URL of the store is needed.
    store_url = open_store(store_url).url
    frames = prepare_frames(job, recipe, policies, store_url, executor, simulated)
    drawn = {policy.id: policy for policy in policies if SIMULATE in job.frames}
    return Run(recipe, job.seed, frames, store_url, name_run(recipe, job.seed, frames), drawn)


def _say_nothing(event: Event) -> None:
    pass


def _gather(run: Run, resumed: tuple[int, ...], start: float) -> TrainOutcome:
    states = run.started()
    members = tuple(run.member(index) for index in sorted(states) if states[index] == "done")
    failures = [run.failure(index) for index in sorted(states) if states[index] == "failed"]
    if not members:
        raise WorkFailed(
            f"none of {len(failures)} members could be trained",
            "; ".join(error.what for error in failures),
            failures[0].hint if failures else "check the recipe",
        )
    failed = tuple(f"{error.what}; {error.why}" for error in failures)
    urls = dict.fromkeys(chain.from_iterable(run.frames.values()))
    inputs = tuple(FrameSetUse(url, FrameSet.open(url).digest) for url in urls)
    return TrainOutcome(members, failed, resumed, run.url, time.monotonic() - start, inputs)


def _train_here(run: Run, todo: Sequence[int], resources: Resources, report: OnEvent) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(_threads(resources))
    try:
        for index in todo:
            run.train(index, report)
    finally:
        torch.set_num_threads(threads)


def _train_on_ray(run: Run, todo: Sequence[int], resources: Resources, report: OnEvent) -> None:
    mailbox = open_mailbox()
    trainer = _trainer(run, todo, resources, mailbox)
    fitting = _in_background(trainer.fit)
    try:
        while not fitting.done():
            _pass_on(mailbox, report)
            time.sleep(POLL_S)  # the mailbox is an actor and cannot call this process
        _pass_on(mailbox, report)
        _check(fitting, resources)
    finally:
        _stop(mailbox, fitting)


def _trainer(
    run: Run, todo: Sequence[int], resources: Resources, mailbox: Mailbox
) -> "DataParallelTrainer":
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    filesystem, path = arrow_filesystem(f"{run.url}/ray")
    size = _worker_size(resources)
    arguments = {
        "run": run,
        "todo": list(todo),
        "threads": _threads(resources),
        "mailbox": mailbox,
        "environment": cluster.environment(),
    }
    return DataParallelTrainer(
        work_in_worker,
        train_loop_config={"work": ray.put((_work_as_rank, arguments))},
        scaling_config=ScalingConfig(
            num_workers=_worker_count(size, min(resources.workers, len(todo))),
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=size,
        ),
        run_config=RunConfig(
            name=f"train-{run.digest[:12]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=resources.retries),
        ),
    )


def _work_as_rank(
    run: Run, todo: list[int], threads: int, mailbox: Mailbox, environment: dict[str, str]
) -> None:
    """Train the members of this rank; runs in a worker, and again in a worker that replaces it.

    `ray.train.report` is not called: it is a barrier, and no rank has to wait for another.
    """
    import torch
    from ray.train import get_context

    cluster.adopt(environment)
    cluster.give_way()  # to the answers of a service on the same host
    torch.set_num_threads(threads)
    rank, world = get_context().get_world_rank(), get_context().get_world_size()
    sender = Sender(mailbox)
    settled = {index for index, state in run.started().items() if state != "ckpt"}
    with sender.reporting_faults():
        for index in todo[rank::world]:
            if index not in settled:
                sender.check()
                run.train(index, sender.report)


def _threads(resources: Resources) -> int:
    return max(1, int(resources.cpus_per_worker))


def _worker_size(resources: Resources) -> dict[str, float]:
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    return {"CPU": resources.cpus_per_worker, **gpus}


def _worker_count(worker: dict[str, float], most: int) -> int:
    """Return how many workers of this size fit on the cluster, at most `most`."""
    import ray

    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in known if node["Alive"]]
    fitting = sum(
        min(int(node.get(kind, 0) / amount) for kind, amount in worker.items()) for node in nodes
    )
    if not fitting:
        size = ", ".join(f"{amount:g} {kind}" for kind, amount in worker.items())
        raise NoCapacity(
            f"no node of the cluster has {size} for a worker",
            f"the nodes have {', '.join(_size(node) for node in nodes)}",
            "lower resources.cpus_per_worker or gpus_per_worker in the job",
        )
    return min(most, fitting)


def _size(node: dict[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU"


def _in_background(do: Callable[[], object]) -> "Future[object]":
    """Run a function in a thread: there, Ray does not catch Ctrl-C, and progress is reported."""
    future: Future[object] = Future()

    def _run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:  # noqa: BLE001 - raised again from the future
            future.set_exception(error)

    threading.Thread(target=_run, name="training", daemon=True).start()
    return future


def _pass_on(mailbox: Mailbox, report: OnEvent) -> None:
    import ray

    events, faults = ray.get(mailbox.take.remote())
    for event in events:
        report(event)
    if faults:
        raise faults[0]


def _check(fitting: "Future[object]", resources: Resources) -> None:
    """Raise the error that ended the group early, as a ManybeamError."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError, WorkerGroupError

    error = fitting.exception()
    if isinstance(error, (TrainingFailedError, RayError)):
        times = f"more than {resources.retries} times"
        lost = isinstance(error, WorkerGroupError)
        raise WorkFailed(
            f"training workers were lost {times}" if lost else "the training group failed",
            " ".join(str(error).split())[-500:],
            "run the job again: it continues from its checkpoints",
        ) from error
    if error:
        raise error


def _stop(mailbox: Mailbox, fitting: "Future[object]") -> None:
    """Stop the workers at any time; the state of their members is in the store."""
    import ray

    ray.get(mailbox.stop.remote())
    deadline = time.monotonic() + STOP_S
    while not fitting.done() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    ray.kill(mailbox)
    if not fitting.done():
        logger.warning("workers did not stop in time; left the cluster")
        cluster.disconnect()

"""jobs.train: members shared over real Ray workers; killed, interrupted and repeated at will."""

import itertools
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from manybeam.cluster.joining import GIVES_WAY
from manybeam.data.frames import FrameSet
from manybeam.data.store import open_store
from manybeam.errors import (
    Corrupt,
    InvalidInput,
    InvalidSpec,
    NoCapacity,
    NotFound,
    UnknownFrameSet,
    WorkFailed,
)
from manybeam.jobs.kinds import Callbacks, run
from manybeam.jobs.mailbox import Event
from manybeam.jobs.run import Run
from manybeam.jobs.train import TrainOutcome, plan_run, train
from manybeam.learn.nets.member import Member, save_weights
from manybeam.learn.training.member import Checkpoint, train_member
from manybeam.spec import Condition, Job, Library
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

# Ray Train builds settings of Ray Data, which calls some of its own deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.slow,
]


def are_equal(first: Sequence[Member], second: Sequence[Member]) -> bool:
    return len(first) == len(second) and all(
        one.index == other.index
        and one.losses == other.losses
        and all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)
        for one, other in zip(first, second, strict=True)
    )


def with_recipe(job: Job, name: str) -> Job:
    return job.model_copy(update={"recipe": name})


def training_processes() -> list[psutil.Process]:
    """The workers of Ray Train that are alive below this process."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "RayTrainWorker" in _title(process)]


def niceness_of_threads(processes: Sequence[psutil.Process]) -> set[int]:
    found = set()
    for process in processes:
        with suppress(psutil.Error, ProcessLookupError):
            found |= {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads()}
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone, or a zombie until its parent looks
        return ""


@pytest.fixture
def here(job: Job, library: Library, home: Path, tmp_path: Path) -> TrainOutcome:
    """The same job trained in this process."""
    return train(job, library, str(tmp_path / "here"), executor="local")


def test_workers_train_and_fail_the_members_this_process_would(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    for name in ("here", "there"):
        leave_a_checkpoint_of_nan(plan_run(job, library, str(tmp_path / name), "local"), member=1)
    told: list[Event] = []
    niceness: set[int] = set()

    def progress(event: Event) -> None:
        told.append(event)
        niceness.update(niceness_of_threads(training_processes()))

    here = train(job, library, str(tmp_path / "here"), executor="local")
    there = train(job, library, str(tmp_path / "there"), progress=progress)
    assert [member.index for member in there.members] == [0, 2]
    assert are_equal(here.members, there.members)
    assert there.failed == here.failed
    assert there.failed[0].startswith("member 1 diverged: loss nan at step 10; the last finite")
    assert {event.member for event in told if event.step == event.steps == 30} == {0, 2}
    assert niceness == {0, GIVES_WAY}  # a worker answers its cluster, but trains when there is time


@pytest.mark.faults
def test_a_member_of_a_killed_worker_goes_on_from_its_checkpoint_to_equal_weights(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    job = with_recipe(job, "long")
    whole = train(job, library, str(tmp_path / "whole"), executor="local")
    told: list[Event] = []
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        told.append(event)
        if not killed and 60 < event.step < 200:
            victim = training_processes()[0]
            killed.append(victim.pid)
            victim.send_signal(signal.SIGKILL)

    disturbed = train(job, library, str(tmp_path / "disturbed"), progress=kill_once)
    assert killed
    assert killed[0] not in [process.pid for process in training_processes()]
    assert are_equal(whole.members, disturbed.members)
    assert steps_lost(told) <= library.recipe("long").training.checkpoint_every


def steps_lost(told: Sequence[Event]) -> int:
    """The longest way any member was told to have gone twice."""
    lost = 0
    for member in {event.member for event in told}:
        steps = [event.step for event in told if event.member == member]
        lost = max([lost, *(before - after for before, after in itertools.pairwise(steps))])
    return lost


@pytest.mark.faults
def test_workers_lost_too_often_fail_the_job_which_can_be_run_again(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    no_retries = job.resources.model_copy(update={"retries": 0})
    job = with_recipe(job, "long").model_copy(update={"resources": no_retries})

    def kill(event: Event) -> None:
        for process in training_processes():
            process.send_signal(signal.SIGKILL)

    with pytest.raises(WorkFailed, match="training workers were lost more than 0 times"):
        train(job, library, str(tmp_path / "store"), progress=kill)
    again = train(job, library, str(tmp_path / "store"), executor="local")
    assert len(again.members) == 3


@pytest.mark.faults
def test_ctrl_c_stops_the_workers_and_the_same_job_goes_on_later(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    job, store = with_recipe(job, "long"), str(tmp_path / "store")

    def press(event: Event) -> None:
        if event.step > 50:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        train(job, library, store, progress=press)
    assert not training_processes()
    begun = plan_run(job, library, store).started()
    assert "ckpt" in begun.values()
    resumed = train(job, library, store, executor="local")
    assert set(resumed.resumed) == set(begun)
    whole = train(job, library, str(tmp_path / "whole"), executor="local")
    assert are_equal(whole.members, resumed.members)


def test_a_member_that_diverged_stays_failed_and_the_others_stay_trained(
    job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    leave_a_checkpoint_of_nan(plan_run(job, library, store, "local"), member=1)
    first = train(job, library, store, executor="local")
    again = train(job, library, store, executor="local")
    assert again.failed == first.failed
    assert [member.index for member in again.members] == [0, 2]


def leave_a_checkpoint_of_nan(run: Run, member: int) -> None:
    kept: list[Checkpoint] = []
    plan = run.recipe.members[member]
    train_member(run.recipe, plan, member, run.tiles(plan.policy), on_checkpoint=kept.append)
    kept[0]["network.head.bias"].fill_(torch.nan)
    run.store.put(f"member-{member:02d}.ckpt", save_weights(kept[0]))


def test_where_every_member_diverges_the_job_fails(
    job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    run = plan_run(job, library, str(tmp_path), "local")
    for member in range(3):
        leave_a_checkpoint_of_nan(run, member)
    with pytest.raises(WorkFailed, match="none of 3 members could be trained; member 0 diverged"):
        train(job, library, str(tmp_path), executor="local")


def test_a_finished_job_is_not_trained_again(
    here: TrainOutcome, job: Job, library: Library, tmp_path: Path
) -> None:
    told: list[Event] = []
    again = train(job, library, str(tmp_path / "here"), progress=told.append)
    assert not told
    assert are_equal(here.members, again.members)
    assert again.resumed == (0, 1, 2)


def test_members_record_what_they_were_made_from(
    here: TrainOutcome, job: Job, library: Library, tmp_path: Path
) -> None:
    recipe = library.recipe("small")
    run = plan_run(job, library, str(tmp_path / "here"), "local")
    assert [member.seed for member in here.members] == [1, 2, 3]
    assert {member.policy for member in here.members} == {"plain"}
    assert {member.data_digest for member in here.members} == {run.tiles("plain").digest}
    assert all(member.recipe == recipe and member.wall_s > 0 for member in here.members)


def test_a_finished_run_keeps_no_checkpoints(here: TrainOutcome) -> None:
    keys = open_store(here.run_url).list()
    assert keys == ["member-00.done", "member-01.done", "member-02.done"]


def test_a_damaged_checkpoint_costs_its_member_a_new_start_not_the_job(
    here: TrainOutcome, job: Job, library: Library, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    run = plan_run(job, library, store, "local")
    run.store.put("member-02.ckpt", b"cut short")
    assert are_equal(here.members, train(job, library, store, executor="local").members)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seed": 1}, id="another seed"),
        pytest.param({"recipe": "long"}, id="another recipe"),
    ],
)
def test_another_job_is_another_run(
    change: dict[str, object], job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    first = plan_run(job, library, str(tmp_path), "local")
    other = plan_run(job.model_copy(update=change), library, str(tmp_path), "local")
    assert first.url != other.url


@pytest.mark.parametrize("version", ["run.SIMULATOR", "run.TRAINING"])
def test_another_simulator_or_training_is_another_run(
    version: str, job: Job, library: Library, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan_run(job, library, str(home), "local")
    monkeypatch.setattr(f"manybeam.jobs.{version}", 10**6)
    assert plan_run(job, library, str(home), "local").digest != first.digest


def test_frames_of_another_simulator_are_not_taken_for_new_ones(
    job: Job, library: Library, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = job.model_copy(update={"frames": ("simulate:",)})
    first = plan_run(simulated, library, str(home), "local")
    monkeypatch.setattr("manybeam.jobs.frames.SIMULATOR", 10**6)
    assert plan_run(simulated, library, str(home), "local").frames != first.frames


def test_more_frames_are_another_run(
    job: Job, library: Library, frames: FrameSet, home: Path, tmp_path: Path
) -> None:
    first = plan_run(job, library, str(tmp_path), "local")
    frames.append(frames.frames([0]), [frames.truth(0)], None)
    assert plan_run(job, library, str(tmp_path), "local").digest != first.digest


def test_a_run_has_one_name_wherever_its_frames_lie(
    job: Job, library: Library, frames: FrameSet, home: Path, tmp_path: Path
) -> None:
    copy = FrameSet.create(tmp_path / "copy", frames.condition, frames.shape)
    copy.append(frames.frames(), [frames.truth(i) for i in range(len(frames))], None)
    moved = job.model_copy(update={"frames": (copy.url,)})
    first = plan_run(job, library, str(tmp_path), "local")
    assert plan_run(moved, library, str(tmp_path), "local").digest == first.digest


def test_frames_are_simulated_once_for_each_policy_and_found_again(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    simulated = job.model_copy(update={"frames": ("simulate:",)})
    run = plan_run(simulated, library, str(tmp_path))
    (url,) = run.frames["plain"]
    written = FrameSet.open(url)
    assert len(written) == 4
    assert plan_run(simulated, library, str(tmp_path)).frames == run.frames
    assert FrameSet.open(url).digest == written.digest


def test_half_simulated_frames_of_an_interrupted_job_are_made_again(
    job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    simulated = job.model_copy(update={"frames": ("simulate:",)})
    (url,) = plan_run(simulated, library, str(tmp_path), "local").frames["plain"]
    whole = FrameSet.open(url)
    first_frame, first_truth = whole.frames([0]), whole.truth(0)
    half = FrameSet.create(url, whole.condition, whole.shape, overwrite=True)
    half.append(first_frame, [first_truth], 20.0)
    plan_run(simulated, library, str(tmp_path), "local")
    assert FrameSet.open(url).digest == whole.digest


@pytest.mark.s3
def test_frames_checkpoints_and_members_may_lie_in_s3(
    cluster: str, s3_url: str, here: TrainOutcome, job: Job, library: Library, home: Path
) -> None:
    outcome = train(job, library, s3_url)
    assert are_equal(here.members, outcome.members)
    assert outcome.run_url.startswith(s3_url)
    simulated = job.model_copy(update={"frames": ("simulate:",)})
    (url,) = plan_run(simulated, library, s3_url).frames["plain"]
    assert len(FrameSet.open(url)) == 4


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        pytest.param({"recipe": "smal"}, NotFound, "similar names: small", id="unknown recipe"),
        pytest.param({"frames": ("nowhere",)}, UnknownFrameSet, "nowhere", id="unknown frames"),
        pytest.param({"recipe": "swag"}, InvalidSpec, "'swag' cannot be trained", id="strategy"),
        pytest.param({"recipe": "odd"}, InvalidSpec, "'Odd' is not a network", id="network"),
    ],
)
def test_what_is_not_there_is_told_before_anything_starts(
    change: dict[str, object],
    error: type[Exception],
    said: str,
    job: Job,
    library: Library,
    home: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=said):
        train(job.model_copy(update=change), library, str(tmp_path))


def test_a_job_that_names_nothing_to_measure_on_is_complete_and_not_measured(
    cluster: str, job: Job, library: Library, home: Path
) -> None:
    said: list[str] = []
    record = run(by_one_worker(job), library, Callbacks(lambda *_: None, said.append))
    assert (record.ref, record.aliases) == (f"{job.name}@1", ("serving",))
    assert len(Zoo().matrix(record.ref)) == 0
    assert f"manybeam evaluate {record.ref}" in said[0]
    assert [one.action for one in audit_log().entries(job.name)] == [
        "promote done", "promote asked", "registered",
    ]  # fmt: skip


def test_a_memory_is_refused_because_workers_could_not_see_it(
    cluster: str, job: Job, library: Library, home: Path
) -> None:
    with pytest.raises(InvalidInput, match="cannot be shared with workers"):
        train(job, library, "memory://train")


def test_a_worker_larger_than_any_node_is_refused_at_once(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    large = job.resources.model_copy(update={"cpus_per_worker": 64})
    with pytest.raises(NoCapacity, match="no node of the cluster has 64 CPU"):
        train(job.model_copy(update={"resources": large}), library, str(tmp_path))


def test_an_error_in_a_worker_arrives_as_the_error_it_is(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    frames = FrameSet.create(tmp_path / "damaged", Condition(id="damaged"), (64, 64))
    noise_nyx = np.random.default_rng(0).random((2, 64, 64), np.float32)
    frames.append(noise_nyx, [NO_ATOMS] * 2, np.full(2, 16.0))
    for chunk in (tmp_path / "damaged" / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"no chunk")
    asked = by_one_worker(job.model_copy(update={"frames": (frames.url,)}))
    with pytest.raises(Corrupt, match=r"frame 0 of .* is corrupt"):
        train(asked, library, str(tmp_path / "store"))


def by_one_worker(job: Job) -> Job:
    """Return the job for one worker: each takes seconds to start."""
    alone = job.resources.model_copy(update={"workers": 1})
    return job.model_copy(update={"resources": alone})


NO_ATOMS = np.zeros((0, 3), np.float32)

"""jobs.train: members shared over real Ray workers; killed, interrupted and repeated at will."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch

from manybeam.data.frames import FrameSet
from manybeam.errors import InvalidInput, NoCapacity, NotFound, UnknownFrameSet, WorkFailed
from manybeam.jobs.run import Event
from manybeam.jobs.train import TrainOutcome, plan_run, train
from manybeam.learn.member import Member
from manybeam.spec import Job, Library

pytestmark = [
    pytest.mark.cluster,
    # Ray Train builds settings of Ray Data, which calls some of its own deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
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
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline()) or "RayTrainWorker" in process.name()
    ]


@pytest.fixture
def here(job: Job, library: Library, home: Path, tmp_path: Path) -> TrainOutcome:
    """The same job trained in this process."""
    return train(job, library, str(tmp_path / "here"), executor="local")


def test_workers_train_the_members_this_process_would(
    cluster: str, here: TrainOutcome, job: Job, library: Library, tmp_path: Path
) -> None:
    told: list[Event] = []
    there = train(job, library, str(tmp_path / "there"), progress=told.append)
    assert are_equal(here.members, there.members)
    assert {event.member for event in told} == {0, 1, 2}
    assert {event.step for event in told if event.step == event.steps} == {30}


def test_a_member_of_a_killed_worker_goes_on_from_its_checkpoint_to_equal_weights(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    job = with_recipe(job, "long")
    whole = train(job, library, str(tmp_path / "whole"), executor="local")
    told: list[Event] = []
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        told.append(event)
        if not killed and 100 < event.step < 350:
            victim = training_processes()[0]
            killed.append(victim.pid)
            victim.send_signal(signal.SIGKILL)

    disturbed = train(job, library, str(tmp_path / "disturbed"), progress=kill_once)
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert are_equal(whole.members, disturbed.members)
    assert steps_lost(told) <= 10 + 100  # one checkpoint interval, and what was not yet told


def steps_lost(told: Sequence[Event]) -> int:
    """The longest way any member was told to have gone twice."""
    lost = 0
    for member in {event.member for event in told}:
        steps = [event.step for event in told if event.member == member]
        lost = max([lost, *(before - after for before, after in itertools.pairwise(steps))])
    return lost


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


def test_a_member_that_diverges_fails_and_the_others_go_on(
    cluster: str, job: Job, library: Library, home: Path, tmp_path: Path
) -> None:
    break_recipe(library)
    outcome = train(with_recipe(job, "wild"), library, str(tmp_path / "store"))
    assert [member.index for member in outcome.members] == [0, 2]
    assert len(outcome.failed) == 1
    assert "member 1 diverged: loss" in outcome.failed[0]


def break_recipe(library: Library) -> None:
    raise NotImplementedError

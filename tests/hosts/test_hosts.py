"""A cluster over three hosts: what Manybeam sees there, trains there, and loses there."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from manybeam.jobs.train import train
from manybeam.learn.nets.member import Member
from manybeam.spec import Library, load_job
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.hosts

LIBRARY = {
    "jobs/discs.yaml": """
kind: train
name: discs
recipe: long
frames: ["simulate:"]
resources: {workers: WORKERS, cpus_per_worker: 1, retries: 2}
measure: {conditions: [plain], frames_per_condition: 1}
""",
    "zoo/recipes/long.yaml": """
id: long
network: {name: unet, filters: 4, levels: 2}
training: {steps: 400, batch: 4, checkpoint_every: 10, precision: float32}
tiles: {tile_px: 32, pixel_size_pm: 20, mask_radius_pm: 50, frames_per_policy: 4}
members:
  - {seed: 1, policy: plain}
  - {seed: 2, policy: plain}
  - {seed: 3, policy: plain}
  - {seed: 4, policy: plain}
""",
    "zoo/conditions/plain.yaml": """
id: plain
sample: {structure: graphene}
scan: {pixel_size_pm: 20, shape: [64, 64]}
dose_e_per_a2: 1e6
""",
    "zoo/policies/plain.yaml": """
id: plain
sample: {structure: graphene}
scan: {pixel_size_pm: [18, 22], shape: [64, 64]}
dose_e_per_a2: [1e5, 1e6]
""",
}
Hosts = list[Any]  # `Host` of conftest.py

WHERE = """
import json, socket, psutil, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
from manybeam.cluster.joining import connect
connect()
@ray.remote(num_cpus=0)
def where():
    return socket.gethostname(), psutil.net_if_addrs()["eth0"][0].address
for node in ray.nodes():
    if node["Alive"]:
        there = where.options(scheduling_strategy=On(node["NodeID"], soft=False))
        print(json.dumps([node["NodeManagerAddress"], *ray.get(there.remote())]))
"""


def test_a_task_on_each_host_has_the_address_of_that_host(hosts: Hosts) -> None:
    lines = hosts[0].run("python", "-c", WHERE).splitlines()
    told = [json.loads(line) for line in lines if line.startswith("[")]
    assert sorted(told) == [[host.address, host.name, host.address] for host in hosts]


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "another token"])
def test_a_process_without_the_token_is_refused(
    token: str | None, hosts: Hosts, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    if token:
        path.write_text(token)
    join = "from manybeam.cluster.joining import connect; connect()"
    process = hosts[0].begin("python", "-c", join, RAY_AUTH_TOKEN_PATH=str(path))
    assert "Unreachable: the Ray cluster at '10.77.0.1:6379' refuses" in process.communicate()[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    """The members of the job, trained in this process."""
    folder = tmp_path_factory.mktemp("alone")
    job = load_job(job_file(folder, workers=1))
    return list(train(job, Library(folder / "zoo"), str(folder), executor="local").members)


def job_file(folder: Path, workers: int) -> Path:
    for name, text in LIBRARY.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("WORKERS", str(workers)))
    return folder / "jobs" / "discs.yaml"


def begin(hosts: Hosts, folder: Path, workers: int) -> "subprocess.Popen[str]":
    """Start `manybeam train` on the first host."""
    home = {"MANYBEAM_HOME": str(folder / "home"), "MANYBEAM_ZOO": str(folder / "zoo")}
    argv = ["manybeam", "train", str(job_file(folder, workers))]
    return hosts[0].begin(*argv, **home)


def end(training: "subprocess.Popen[str]", folder: Path) -> list[Member]:
    """Wait for the command and return the members it registered."""
    out, _ = training.communicate(timeout=400)
    assert training.returncode == 0, out[-3000:]
    home = folder / "home"
    zoo = Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")
    return list(zoo.members("discs@1"))


def are_equal(first: list[Member], second: list[Member]) -> bool:
    return len(first) == len(second) and all(
        one.index == other.index
        and one.losses == other.losses
        and all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)
        for one, other in zip(first, second, strict=True)
    )


def wait_until(condition: Callable[[], bool], training: "subprocess.Popen[str]") -> None:
    while not condition():
        assert training.poll() is None, training.communicate()[0][-3000:]
        time.sleep(0.1)


def test_worker_hosts_train_the_members_that_one_process_trains(
    hosts: Hosts, alone: list[Member], tmp_path: Path
) -> None:
    training = begin(hosts, tmp_path, workers=4)
    wait_until(lambda: [host.trains() for host in hosts] == [False, True, True], training)
    assert are_equal(alone, end(training, tmp_path))


@pytest.mark.parametrize("loss", ["kill", "cut_off"])
def test_a_host_lost_while_it_trains_changes_no_member(
    loss: str, hosts: Hosts, alone: list[Member], tmp_path: Path
) -> None:
    training = begin(hosts, tmp_path, workers=2)  # both fit on one host
    wait_until(lambda: any((tmp_path / "home").rglob("*.ckpt")), training)
    (lost,) = [host for host in hosts if host.trains()]
    getattr(lost, loss)()
    wait_until(lambda: any(h.trains() for h in hosts if h is not lost), training)
    assert are_equal(alone, end(training, tmp_path))

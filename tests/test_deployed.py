"""What the replicas of a service shall be, beside what they are."""

import os
from typing import Any

import pytest

from manybeam.learn.nets.inference.runtime import cores
from manybeam.serve.deployed import Deployed, use_cores_of_host, with_threads

ONE, SHARED = "OMP_NUM_THREADS", "MANYBEAM_REPLICAS_ON_HOST"


def deployed(
    replicas: int,
    refs: tuple[str, ...] = (),
    cpus: float = 0.0,
    threads: dict[str, str] | None = None,
) -> Deployed:
    actor = {"num_cpus": cpus, "num_gpus": 0.0, "runtime_env": {"env_vars": threads or {}}}
    return Deployed({"refs": list(refs)}, actor, replicas)


RUNS = {ONE: "1", SHARED: "4"}  # of a service that runs
OLD = {ONE: "8"}  # of one that an older version started


@pytest.mark.parametrize(
    ("wanted", "before", "hosts", "expected"),
    [
        pytest.param(deployed(2), None, 1, {ONE: "1", SHARED: "2"}, id="a start"),
        pytest.param(deployed(2), None, 2, {ONE: "1", SHARED: "1"}, id="spread over hosts"),
        pytest.param(deployed(3), None, 2, {ONE: "1", SHARED: "2"}, id="one host has one more"),
        pytest.param(deployed(2), None, 4, {ONE: "1", SHARED: "1"}, id="more hosts than replicas"),
        pytest.param(deployed(2, cpus=3.0), None, 2, {ONE: "3"}, id="reserved cores"),
        pytest.param(
            deployed(2, cpus=0.5), None, 1, {ONE: "1", SHARED: "2"}, id="less than a core"
        ),
        pytest.param(
            deployed(2, threads=RUNS), deployed(4, threads=RUNS), 1, RUNS, id="the number alone"
        ),
        pytest.param(
            deployed(2, ("new",), threads=RUNS),
            deployed(4, threads=RUNS),
            1,
            {ONE: "1", SHARED: "2"},
            id="ensembles too",
        ),
        pytest.param(
            deployed(4, cpus=2.0, threads=RUNS),
            deployed(4, threads=RUNS),
            1,
            {ONE: "2"},
            id="cores are reserved",
        ),
        pytest.param(
            deployed(4, threads={ONE: "2"}),
            deployed(4, cpus=2.0, threads={ONE: "2"}),
            2,
            {ONE: "1", SHARED: "2"},
            id="cores are given back",
        ),
        pytest.param(
            deployed(2, threads=OLD), deployed(1, threads=OLD), 1, OLD, id="an older service"
        ),
        pytest.param(
            deployed(2, threads=OLD), None, 1, {ONE: "1", SHARED: "2"}, id="what runs is not known"
        ),
    ],
)
def test_a_replica_has_the_threads_of_its_cores_unless_it_goes_on_as_it_is(
    wanted: Deployed, before: Any, hosts: int, expected: dict[str, str]
) -> None:
    found = with_threads(wanted, before, hosts)
    assert found.actor["runtime_env"]["env_vars"] == expected
    if before:
        assert (found.version == before.version) == (wanted.version == before.version)


@pytest.mark.parametrize(
    ("on_host", "own", "threads"),
    [
        pytest.param("1", 64, 64, id="alone"),
        pytest.param("2", 4, 2, id="two"),
        pytest.param("3", 8, 2, id="what is left rests"),
        pytest.param("16", 4, 1, id="more replicas than cores"),
        pytest.param("", 4, 7, id="reserved cores"),
    ],
)
def test_a_replica_divides_the_cores_of_its_own_host(
    on_host: str, own: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ONE, "1" if on_host else "7")
    monkeypatch.setenv(SHARED, on_host)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(own)), raising=False)
    use_cores_of_host()
    assert cores() == threads
    assert os.environ[ONE] == str(threads)

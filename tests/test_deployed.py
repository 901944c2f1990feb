"""What the replicas of a service shall be, beside what they are."""

import os
from typing import Any

import pytest

from manybeam.serve.deployed import Deployed, with_threads


def deployed(
    threads: str, replicas: int, refs: tuple[str, ...] = (), cpus: float = 0.0
) -> Deployed:
    environment = {"OMP_NUM_THREADS": threads} if threads else {}
    actor = {"num_cpus": cpus, "num_gpus": 0.0, "runtime_env": {"env_vars": environment}}
    return Deployed({"refs": list(refs)}, actor, replicas)


@pytest.mark.parametrize(
    ("wanted", "before", "expected"),
    [
        pytest.param(deployed("", 2), None, "4", id="a start"),
        pytest.param(deployed("", 16), None, "1", id="more replicas than cores"),
        pytest.param(deployed("", 2, cpus=3.0), None, "3", id="reserved cores"),
        pytest.param(deployed("8", 2), deployed("8", 1), "8", id="the number alone"),
        pytest.param(deployed("8", 2, ("new",)), deployed("8", 1), "4", id="ensembles too"),
        pytest.param(deployed("8", 1, cpus=2.0), deployed("8", 1), "2", id="the cores"),
        pytest.param(deployed("8", 2), None, "4", id="what runs is not known"),
    ],
)
def test_a_replica_has_the_threads_of_its_cores_unless_it_goes_on_as_it_is(
    wanted: Deployed, before: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = with_threads(wanted, before)
    assert found.actor["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": expected}
    if before:
        assert (found.version == before.version) == (wanted.version == before.version)

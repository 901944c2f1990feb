"""zoo.registry on a facility's MLflow server: what happens when a part of it goes away.

That the server keeps what it is given is tested in tests/test_registry.py, on both kinds of zoo.
"""

import time
from pathlib import Path
from typing import Protocol

import pytest
import torch

from manybeam.errors import ZooUnreachable
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.predictor.versions.live import LiveVersions
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.spec.recipe import MemberPlan, Network, Recipe
from manybeam.zoo.lifecycle import orphans
from manybeam.zoo.lifecycle.orphans import Orphans
from manybeam.zoo.matrix import Score
from manybeam.zoo.registry import Zoo


class Services(Protocol):
    """What these tests use of the services that tests/conftest.py starts."""

    def mend(self) -> None: ...
    def stop(self, *names: str) -> None: ...
    def settings(self) -> dict[str, str]: ...


def zoo_at(services: Services, cache: Path) -> Zoo:
    return Zoo(services.settings()["MANYBEAM_TRACKING_URI"], "", cache)


@pytest.fixture
def zoo(frail_facility: Services, tmp_path: Path) -> Zoo:
    return zoo_at(frail_facility, tmp_path / "cache")


def members_of(count: int) -> list[Member]:
    plan = MemberPlan(seed=0, policy="broad")
    recipe = Recipe(id="tiny", network=Network(filters=2, levels=1), members=(plan,))
    weights = {k: v.detach() for k, v in build(recipe.network).state_dict().items()}
    return [Member(i, 0, "broad", recipe, weights, (0.5,), 1.0, "d" * 32) for i in range(count)]


def test_a_server_that_holds_nothing_of_ours_has_nothing_to_collect(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "EXPERIMENT_PREFIX", "nobody/")
    assert Orphans(zoo.tracking).find() == []


def test_without_the_object_store_nothing_is_registered(
    zoo: Zoo, frail_facility: Services, name: str
) -> None:
    frail_facility.stop("seaweedfs")
    start = time.monotonic()
    with pytest.raises(ZooUnreachable):
        zoo.register(name, members_of(1), job={})
    assert time.monotonic() - start < 60
    assert zoo.ls(name) == []


def test_without_the_object_store_what_this_machine_holds_still_loads(
    zoo: Zoo, frail_facility: Services, name: str
) -> None:
    zoo.register(name, members_of(1), job={}, scores=[Score(0, "nominal", "d", {"f1": 0.5})])
    before = zoo.members(f"{name}@1")[0].weights
    frail_facility.stop("seaweedfs")
    after = zoo.members(f"{name}@1")[0].weights
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert zoo.matrix(f"{name}@1").value(0, "nominal") == 0.5


def test_without_the_object_store_a_machine_that_holds_nothing_is_told(
    zoo: Zoo, frail_facility: Services, tmp_path: Path, name: str
) -> None:
    zoo.register(name, members_of(1), job={})
    frail_facility.stop("seaweedfs")
    with pytest.raises(ZooUnreachable):
        zoo_at(frail_facility, tmp_path / "other").members(f"{name}@1")


def test_without_the_database_the_zoo_is_unreachable_and_comes_back_with_it(
    zoo: Zoo, frail_facility: Services, name: str
) -> None:
    zoo.register(name, members_of(2), job={})
    frail_facility.stop("postgres")
    with pytest.raises(ZooUnreachable):
        zoo.resolve(f"{name}@1")
    frail_facility.mend()
    assert zoo.resolve(f"{name}@1").member_count == 2


def test_without_the_server_the_zoo_is_unreachable(zoo: Zoo, frail_facility: Services) -> None:
    frail_facility.stop("mlflow")
    start = time.monotonic()
    with pytest.raises(ZooUnreachable, match="manybeam doctor"):
        zoo.ls()
    assert time.monotonic() - start < 10


def test_without_the_server_a_version_that_was_answered_with_is_loaded_again(
    zoo: Zoo, frail_facility: Services, name: str
) -> None:
    zoo.register(name, members_of(1), job={}, scores=[Score(0, "nominal", "d", {"f1": 0.5})])
    before = LiveVersions(ZooVersions(zoo, [name + "@1"], fresh_s=0.0), every_s=0.0)
    assert before.degraded() == []
    again = zoo_at(frail_facility, zoo._cache.folder)  # of a replica that starts now
    frail_facility.stop("mlflow")
    live = LiveVersions(ZooVersions(again, [name + "@1"], fresh_s=0.0), every_s=0.0)
    assert live.get(name + "@1").matrix.value(0, "nominal") == 0.5
    assert "what this machine read last" in live.degraded()[0]
    frail_facility.mend()
    live.refresh()
    assert live.degraded() == []

"""zoo.registry on a facility's MLflow server: what happens when a part of it goes away.

That the server keeps what it is given is tested in tests/test_registry.py, on both kinds of zoo.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pytest
import torch

from manybeam.errors import ZooUnreachable
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.spec.recipe import MemberPlan, Network, Recipe
from manybeam.zoo.lifecycle.orphans import Orphans
from manybeam.zoo.matrix import Score
from manybeam.zoo.registry import Zoo

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.slow]


class Services(Protocol):
    """What these tests use of the services that tests/conftest.py starts."""

    folder: Path

    def start(self, *names: str, port: int = 0) -> None: ...
    def stop(self, *names: str) -> None: ...
    def settings(self) -> dict[str, str]: ...


@dataclass
class Facility:
    """Three services whose parts are stopped here, and come back on the ports they had."""

    services: Services
    ports: dict[str, int]

    def stop(self, name: str) -> None:
        self.services.stop(name)

    def mend(self) -> None:
        for name, port in self.ports.items():
            self.services.start(name, port=port)

    def zoo(self, cache: Path) -> Zoo:
        return Zoo(f"http://127.0.0.1:{self.ports['mlflow']}", "", cache)


@pytest.fixture(scope="module")
def frail(new_services: Callable[[], Services]) -> Facility:
    services = new_services()
    names = ("seaweedfs", "postgres", "mlflow")
    services.start(*names)
    urls = {n: json.loads((services.folder / f"{n}.json").read_text())["url"] for n in names}
    return Facility(services, {name: urlsplit(url).port or 0 for name, url in urls.items()})


@pytest.fixture
def zoo(frail: Facility, tmp_path: Path) -> Iterator[Zoo]:
    yield frail.zoo(tmp_path / "cache")
    frail.mend()


def members_of(count: int) -> list[Member]:
    plan = MemberPlan(seed=0, policy="broad")
    recipe = Recipe(id="tiny", network=Network(filters=2, levels=1), members=(plan,))
    weights = {k: v.detach() for k, v in build(recipe.network).state_dict().items()}
    return [Member(i, 0, "broad", recipe, weights, (0.5,), 1.0, "d" * 32) for i in range(count)]


def test_a_server_that_never_held_anything_has_nothing_to_collect(
    new_services: Callable[[], Services], tmp_path: Path
) -> None:
    services = new_services()
    services.start("seaweedfs", "postgres", "mlflow")
    new = Zoo(services.settings()["MANYBEAM_TRACKING_URI"], "", tmp_path / "cache")
    assert Orphans(new.tracking).find() == []


def test_without_the_object_store_nothing_is_registered(zoo: Zoo, frail: Facility) -> None:
    frail.stop("seaweedfs")
    start = time.monotonic()
    with pytest.raises(ZooUnreachable):
        zoo.register("no-store", members_of(1), job={})
    assert time.monotonic() - start < 60
    assert zoo.ls("no-store") == []


def test_without_the_object_store_what_this_machine_holds_still_loads(
    zoo: Zoo, frail: Facility
) -> None:
    zoo.register("held", members_of(1), job={}, scores=[Score(0, "nominal", "d", {"f1": 0.5})])
    before = zoo.members("held@1")[0].weights
    frail.stop("seaweedfs")
    after = zoo.members("held@1")[0].weights
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert zoo.matrix("held@1").value(0, "nominal") == 0.5


def test_without_the_object_store_a_machine_that_holds_nothing_is_told(
    zoo: Zoo, frail: Facility, tmp_path: Path
) -> None:
    zoo.register("elsewhere", members_of(1), job={})
    frail.stop("seaweedfs")
    with pytest.raises(ZooUnreachable):
        frail.zoo(tmp_path / "other").members("elsewhere@1")


def test_without_the_database_the_zoo_is_unreachable_and_comes_back_with_it(
    zoo: Zoo, frail: Facility
) -> None:
    zoo.register("back", members_of(2), job={})
    frail.stop("postgres")
    with pytest.raises(ZooUnreachable):
        zoo.resolve("back@1")
    frail.mend()
    assert zoo.resolve("back@1").member_count == 2


def test_without_the_server_the_zoo_is_unreachable(zoo: Zoo, frail: Facility) -> None:
    frail.stop("mlflow")
    start = time.monotonic()
    with pytest.raises(ZooUnreachable, match="manybeam doctor"):
        zoo.ls()
    assert time.monotonic() - start < 10

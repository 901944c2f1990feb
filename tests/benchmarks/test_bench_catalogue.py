"""Speed of the catalogue: what a page of the zoo asks, against members and against conditions.

The goals are 100 ms for any question about 10,000 members on 12 conditions, and 100 members
written a second.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from manybeam.spec import Library
from manybeam.zoo.catalogue import Catalogue, Query
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.records import MemberRecord, Record, VersionEntry
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

LIBRARY = Library(Path(__file__).parents[2] / "zoo")
KEYS = ("f1", "f1_low", "f1_high", "precision", "recall", "rmse_pm", "ece", "brier", "seconds")
MEMBERS = 10  # of one ensemble
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SIZES = [
    pytest.param((count, conditions), id=f"{count} members x {conditions} conditions")
    for count, conditions in [(100, 12), (1000, 12), (10_000, 12), (300, 12), (300, 50), (300, 200)]
]
QUESTIONS: dict[str, Callable[[Catalogue], object]] = {
    "a page of all members": lambda one: one.find(Query(kind="members")),
    "text": lambda one: one.find(Query(kind="members", text="graphene HAADF 60 kV")),
    "one condition": lambda one: one.find(Query(kind="members", condition="graphene-60kv-16k")),
    "a range of doses": lambda one: one.find(
        Query(kind="members", ranges={"dose_e_per_a2": (None, 5e5)}, score="rmse_pm")
    ),
    "three filters, the last page": lambda one: one.find(
        Query(kind="members", policy=("policy-1",), status=("none",), order="name", page=3)
    ),
    "facets under text and a filter": lambda one: one.facets(
        Query(kind="members", text="graphene", policy=("policy-1",))
    ),
    "conditions": lambda one: one.conditions(),
    "coverage": lambda one: one.coverage(Query(kind="members")),
    "the best": lambda one: one.best("graphene-*"),
}

Read = tuple[VersionEntry, Record, Sequence[Score]]


def keys_of(count: int) -> list[tuple[str, str]]:
    """Return conditions of the library first, then such as it does not know."""
    known = [(one.id, f"{one.digest}-2") for one in LIBRARY.conditions.values()][:count]
    return known + [(f"other-{i}", f"{i:032x}") for i in range(count - len(known))]


def versions(member_count: int, condition_count: int) -> Iterator[Read]:
    """Yield ensembles of ten members, all measured on all conditions."""
    rng, keys = random.Random(0), keys_of(condition_count)
    for i in range(member_count // MEMBERS):
        name, number = f"graphene-{i // 10:03d}", i % 10 + 1
        entry = VersionEntry(name, number, f"run-{i}", {}, ("serving",) if number == 10 else ())
        members = tuple(member(index, rng.randrange(30), i % 7) for index in range(MEMBERS))
        scores = [
            Score(row, *key, {name: rng.random() for name in KEYS}, ((9, 1, 1),) * 8, NOW, "1.0")
            for row in (ENSEMBLE, *range(MEMBERS))
            for key in keys
        ]
        yield entry, Record(name, number, members, NOW, {"kind": "train"}), scores


def member(index: int, policy: int, recipe: int) -> MemberRecord:
    made_by = (f"policy-{policy}", f"recipe-{recipe}@1", {"name": "unet"})
    return MemberRecord(index, 1, *made_by, "", "", 0.1, 1.0, "m", "", 1, "")


def catalogue_at(folder: Path) -> Catalogue:
    zoo = Zoo("sqlite:///nowhere.db", "file:///nowhere", folder)
    return Catalogue(zoo, folder / "catalogue.db", LIBRARY)


@pytest.fixture(scope="module", params=SIZES)
def read(request: pytest.FixtureRequest) -> tuple[int, list[Read]]:
    members, conditions = request.param
    return members, list(versions(members, conditions))


@pytest.fixture(scope="module")
def filled(
    read: tuple[int, list[Read]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Catalogue]:
    catalogue = catalogue_at(tmp_path_factory.mktemp("catalogue"))
    catalogue._write(read[1])
    return read[0], catalogue


def test_write(benchmark: Any, read: tuple[int, list[Read]], tmp_path: Path) -> None:
    places = iter(range(9))
    benchmark.pedantic(lambda: catalogue_at(tmp_path / f"{next(places)}")._write(read[1]), rounds=2)
    if not benchmark.disabled:
        benchmark.extra_info["members_per_s"] = read[0] / benchmark.stats.stats.min
        assert benchmark.stats.stats.min < read[0] / 100


@pytest.mark.parametrize("question", QUESTIONS)
def test_ask(benchmark: Any, filled: tuple[int, Catalogue], question: str) -> None:
    benchmark.pedantic(lambda: QUESTIONS[question](filled[1]), rounds=9, warmup_rounds=1)
    if not benchmark.disabled:
        assert benchmark.stats.stats.median < 0.1


def test_first_question_of_a_process(benchmark: Any, filled: tuple[int, Catalogue]) -> None:
    path = filled[1]._file.path

    def ask() -> object:
        zoo = Zoo("sqlite:///nowhere.db", "file:///nowhere", path.parent)
        return Catalogue(zoo, path, LIBRARY).find(Query(kind="members"))

    benchmark.pedantic(ask, rounds=5, warmup_rounds=1)

"""zoo.moved: a home can be renamed, moved and copied, and its zoo goes with it."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from manybeam.cli import main
from manybeam.db.places import experiment_places, move_places
from manybeam.errors import Corrupt
from manybeam.settings import settings
from manybeam.zoo.lifecycle.collect import collect
from manybeam.zoo.lifecycle.life import promote
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.registry import Zoo

UseSettings = Callable[[dict[str, str]], None]
ROWS = [Score(row, "nominal", "n" * 32, {"f1": 0.9}) for row in (ENSEMBLE, 0)]
NAMES = ["new", "with blank", "per%cent", "h#sh", "Größe"]


@pytest.fixture
def old(tmp_path: Path, use_settings: UseSettings, tiny_members: Any) -> Path:
    """The home of two versions, one of which serves."""
    home = tmp_path / "old"
    use_settings({"MANYBEAM_HOME": str(home)})
    for _ in range(2):
        Zoo().register("graphene", tiny_members(1), job={"kind": "train"}, scores=ROWS)
    promote(Zoo(), "graphene@1", who="ada")
    return home


def moved(old: Path, name: str, use_settings: UseSettings) -> Path:
    """Rename a home, and forget what this process knows of it; nothing is cached."""
    new = old.with_name(name)
    old.rename(new)
    shutil.rmtree(new / "cache")
    use_settings({"MANYBEAM_HOME": str(new)})
    return new


@pytest.mark.parametrize(
    "words",
    [
        ["zoo", "ls"],
        ["zoo", "show", "graphene"],
        ["zoo", "matrix", "graphene"],
        ["zoo", "test", "graphene@2"],
        ["zoo", "verify", "graphene"],
        ["zoo", "diff", "graphene@1", "graphene@2"],
        ["zoo", "promote", "graphene@2"],
        ["zoo", "export", "graphene", "--format", "safetensors", "--out", "{out}"],
        ["zoo", "gc", "--archived-days", "0", "--yes"],
        ["zoo", "audit"],
        ["backup", "{out}"],
    ],
    ids=" ".join,
)
def test_every_command_works_after_the_home_was_renamed(
    words: list[str], old: Path, tmp_path: Path, use_settings: UseSettings
) -> None:
    moved(old, "new", use_settings)
    assert main([word.replace("{out}", str(tmp_path / "out")) for word in words]) == 0
    assert not old.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_moved_zoo_is_read_and_written_at_its_new_place(
    name: str, old: Path, use_settings: UseSettings, tiny_members: Any
) -> None:
    new = moved(old, name, use_settings)
    zoo = Zoo()
    assert len(zoo.members("graphene@2")) == 1
    zoo.register("graphene", tiny_members(1), job={"kind": "train"})
    assert zoo.resolve("graphene@3").member_count == 1
    assert not old.exists()
    with closing(sqlite3.connect(new / "zoo.db")) as found:
        text = "\n".join(found.iterdump())
    assert f"{old.as_uri()}/" not in text


def test_a_copied_home_uses_its_own_copy(
    old: Path, tmp_path: Path, use_settings: UseSettings
) -> None:
    shutil.copytree(old, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "cache")
    use_settings({"MANYBEAM_HOME": str(tmp_path / "copy")})
    places = [one.place for one in Zoo().tracking.models()]
    assert places
    assert all(place.startswith((tmp_path / "copy").as_uri()) for place in places)


def test_weights_may_move_to_another_store_than_the_home(
    old: Path, tmp_path: Path, use_settings: UseSettings
) -> None:
    (old / "weights").rename(tmp_path / "large-disk")
    shutil.rmtree(old / "cache")
    use_settings(
        {"MANYBEAM_HOME": str(old), "MANYBEAM_ARTIFACTS": (tmp_path / "large-disk").as_uri()}
    )
    assert len(Zoo().members("graphene")) == 1


def test_a_store_that_was_named_before_its_files_were_copied_changes_nothing(
    old: Path, tmp_path: Path, use_settings: UseSettings
) -> None:
    before = experiment_places(settings().tracking_url, "manybeam/")
    use_settings({"MANYBEAM_HOME": str(old), "MANYBEAM_ARTIFACTS": (tmp_path / "empty").as_uri()})
    assert len(Zoo().members("graphene")) == 1
    assert experiment_places(settings().tracking_url, "manybeam/") == before


def test_files_that_are_lost_are_said_to_be_moved_or_lost_and_not_to_be_trained_again(
    old: Path, use_settings: UseSettings
) -> None:
    new = moved(old, "new", use_settings)
    shutil.rmtree(new / "weights")
    with pytest.raises(Corrupt) as caught:
        Zoo().members("graphene")
    assert "MANYBEAM_ARTIFACTS" in caught.value.hint
    assert "train again" not in str(caught.value)


def test_nothing_of_a_moved_zoo_is_taken_for_an_orphan(
    old: Path, use_settings: UseSettings
) -> None:
    moved(old, "new", use_settings)
    assert collect(Zoo(), who="ada") == []


def test_places_below_an_address_are_moved_and_nothing_else(old: Path, tmp_path: Path) -> None:
    url = settings().tracking_url
    ((name, place),) = experiment_places(url, "manybeam/").items()
    move_places(url, place[:-1], "file:///elsewhere")  # only begins with the same letters
    assert experiment_places(url, "manybeam/") == {name: place}
    move_places(url, place, "file:///elsewhere")
    assert experiment_places(url, "manybeam/") == {name: "file:///elsewhere"}
    assert {one.place.rpartition("/models/")[0] for one in Zoo().tracking.models()} == {
        "file:///elsewhere"
    }

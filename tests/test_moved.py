"""zoo.backend.moved: a home can be renamed, moved and copied, and its zoo goes with it."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from manybeam.cli import main
from manybeam.data.frames import FrameSet
from manybeam.db.places import experiment_places, model_places, move_places
from manybeam.errors import Corrupt
from manybeam.settings import settings
from manybeam.spec import Condition
from manybeam.web.pages.framesets import FrameSets
from manybeam.zoo.lifecycle.collect import collect
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.registry import Zoo

UseSettings = Callable[[dict[str, str]], None]
ROWS = [Score(row, "nominal", "n" * 32, {"f1": 0.9}) for row in (ENSEMBLE, 0)]
NAMES = ["new", "with blank", "Größe"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_members: Any) -> Path:
    """The home of two versions, one of which serves, after it was renamed."""
    folder = tmp_path_factory.mktemp("homes")
    old = folder / "old"
    zoo = Zoo(f"sqlite:///{old / 'zoo.db'}", (old / "weights").as_uri(), old / "cache" / "zoo")
    for alias in ("serving", None):
        given = {"job": {"kind": "train"}, "scores": ROWS, "alias": alias}
        zoo.register("graphene", tiny_members(1), **given)
    shutil.rmtree(old / "cache")
    return old.rename(folder / "template")


@pytest.fixture
def moved(template: Path, tmp_path: Path, use_settings: UseSettings) -> Callable[[str], Path]:
    """Make the moved home below a name; nothing of it is cached, and its old place is gone."""

    def make(name: str) -> Path:
        new = tmp_path / name
        shutil.copytree(template, new)
        use_settings({"MANYBEAM_HOME": str(new)})
        return new

    return make


def old_home(template: Path) -> Path:
    return template.with_name("old")


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
    words: list[str], moved: Callable[[str], Path], template: Path, tmp_path: Path
) -> None:
    moved("new")
    assert main([word.replace("{out}", str(tmp_path / "out")) for word in words]) == 0
    assert not old_home(template).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_moved_zoo_is_read_and_written_at_its_new_place(
    name: str, moved: Callable[[str], Path], template: Path, tiny_members: Any
) -> None:
    new = moved(name)
    zoo = Zoo()
    assert len(zoo.members("graphene@2")) == 1
    zoo.register("graphene", tiny_members(1), job={"kind": "train"})
    assert zoo.resolve("graphene@3").member_count == 1
    assert not old_home(template).exists()
    with closing(sqlite3.connect(new / "zoo.db")) as found:
        text = "\n".join(found.iterdump())
    assert f"{old_home(template).as_uri()}/" not in text


def test_a_copied_home_uses_its_own_copy(moved: Callable[[str], Path], template: Path) -> None:
    copy = moved("copy")
    shutil.copytree(template, old_home(template))
    try:
        places = [one.place for one in Zoo().tracking.models()]
    finally:
        shutil.rmtree(old_home(template))
    assert places
    assert all(place.startswith(f"{copy.as_uri()}/") for place in places)


def test_weights_may_move_to_another_store_than_the_home(
    moved: Callable[[str], Path], tmp_path: Path, use_settings: UseSettings
) -> None:
    home, disk = moved("new"), tmp_path / "large-disk"
    (home / "weights").rename(disk)
    use_settings({"MANYBEAM_HOME": str(home), "MANYBEAM_ARTIFACTS": disk.as_uri()})
    assert len(Zoo().members("graphene")) == 1


def test_a_store_that_was_named_before_its_files_were_copied_changes_nothing(
    moved: Callable[[str], Path], tmp_path: Path, use_settings: UseSettings
) -> None:
    home = moved("new")
    assert len(Zoo().listing()) == 2
    before = experiment_places(settings().tracking_url, "manybeam/")
    use_settings({"MANYBEAM_HOME": str(home), "MANYBEAM_ARTIFACTS": (tmp_path / "empty").as_uri()})
    assert len(Zoo().members("graphene")) == 1
    assert experiment_places(settings().tracking_url, "manybeam/") == before


def test_files_that_are_gone_are_said_to_be_moved_or_lost_and_not_to_be_trained_again(
    moved: Callable[[str], Path],
) -> None:
    shutil.rmtree(moved("new") / "weights")
    with pytest.raises(Corrupt) as caught:
        Zoo().members("graphene")
    assert "MANYBEAM_ARTIFACTS" in caught.value.hint
    assert "train again" not in str(caught.value)


def test_nothing_of_a_moved_zoo_is_taken_for_an_orphan(moved: Callable[[str], Path]) -> None:
    moved("new")
    assert collect(Zoo(), who="ada") == []


def test_places_below_an_address_are_moved_and_nothing_else(moved: Callable[[str], Path]) -> None:
    moved("new")
    url = settings().tracking_url
    ((name, place),) = experiment_places(url, "manybeam/").items()
    move_places(url, place[:-1], "file:///elsewhere")  # only begins with the same letters
    assert experiment_places(url, "manybeam/") == {name: place}
    move_places(url, place, "file:///elsewhere")
    assert experiment_places(url, "manybeam/") == {name: "file:///elsewhere"}
    assert all(
        one.startswith("file:///elsewhere/models/")
        for one in model_places(url, "file:///elsewhere")
    )


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ("{store}/lab/one", "{store}/lab/one"),
        ("/gone/home/store/lab/one", "{store}/lab/one"),
        ("s3://old-bucket/frames/lab/one/", "{store}/lab/one"),
        ("/gone/home/store/lab/two", ""),
        ("/elsewhere/one", ""),
    ],
)
def test_recorded_frames_are_found_below_the_present_store(
    recorded: str, found: str, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    digest = FrameSet.create(f"{store}/lab/one", Condition(id="low"), (64, 64)).digest
    frame_sets, url = FrameSets(store), recorded.format(store=store)
    assert frame_sets.here(url, digest) == found.format(store=store)
    is_moved = url != found.format(store=store)
    for other in ("", "0" * len(digest)):  # other frames may lie at the path of the moved ones
        assert not (is_moved and frame_sets.here(url, other))

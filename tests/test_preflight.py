"""jobs.preflight: what can be refused is refused before the first step of a job."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.frames import FrameSet
from manybeam.errors import (
    InvalidInput,
    InvalidSetting,
    InvalidSpec,
    ManybeamError,
    MissingPixelSize,
    NotFound,
    UnknownCondition,
    UnknownFrameSet,
    WriteFailed,
)
from manybeam.jobs.preflight import check_measure, check_recipe, check_training
from manybeam.spec import Condition, Job, Library, Recipe
from manybeam.spec.job import Measure
from manybeam.zoo.registry import Zoo

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
JOB = {"kind": "train", "name": "small", "recipe": "quickstart"}
UseSettings = Callable[[dict[str, str]], None]


@pytest.fixture
def home(tmp_path: Path, use_settings: UseSettings) -> Path:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    return tmp_path / "home"


def frames_at(folder: Path, *, truth: bool = True, size_pm: float | None = 16.0) -> str:
    scan = {"pixel_size_pm": size_pm} if size_pm else {}
    condition = Condition.model_validate({"id": "discs", "scan": scan})
    made = FrameSet.create(folder, condition, (32, 32))
    marks = [np.array([[5.0, 6.0, 6.0]], np.float32)] if truth else None
    made.append(np.zeros((1, 32, 32), np.float32), marks, size_pm)
    return made.url


def test_a_job_that_can_be_done_passes_and_leaves_no_version(home: Path) -> None:
    check_training(Job.model_validate(JOB), LIBRARY, Zoo())
    assert Zoo().listing() == []
    assert not list(home.rglob("*probe*"))


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        pytest.param({"recipe": "quikstart"}, NotFound, "quickstart", id="recipe"),
        pytest.param({"frames": ["nowhere"]}, UnknownFrameSet, "nowhere", id="frames"),
        pytest.param(
            {"measure": {"conditions": ["graphene-60kv-nomnal"]}},
            UnknownCondition, "graphene-60kv-nominal", id="condition",
        ),
        pytest.param({"measure": {"frames": ["away"]}}, UnknownFrameSet, "away", id="test frames"),
        pytest.param({"name": "auto"}, InvalidInput, "cannot name an ensemble", id="name"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_refused(
    home: Path, change: dict[str, Any], error: type[ManybeamError], told: str
) -> None:
    with pytest.raises(error, match=told):
        check_training(Job.model_validate(JOB | change), LIBRARY, Zoo())


@pytest.mark.parametrize(
    ("made", "error", "told"),
    [
        pytest.param({"truth": False}, InvalidInput, "no marked atoms", id="no truth"),
        pytest.param({"size_pm": None}, MissingPixelSize, "no pixel size", id="no pixel size"),
    ],
)
@pytest.mark.parametrize("where", ["frames", "measure"])
def test_frames_that_cannot_be_used_are_refused(
    home: Path, tmp_path: Path, where: str, made: dict[str, Any], error: type[Exception], told: str
) -> None:
    url = frames_at(tmp_path / "set", **made)
    change = {"frames": [url]} if where == "frames" else {"measure": {"frames": [url]}}
    with pytest.raises(error, match=told):
        check_training(Job.model_validate(JOB | change), LIBRARY, Zoo())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({"strategy": "swag"}, "'swag' of the recipe 'odd' cannot be", id="strategy"),
        pytest.param({"network": {"name": "Nonsense"}}, "'Nonsense' is not a", id="network"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(change: dict[str, Any], told: str) -> None:
    plan = {"id": "odd", "members": [{"seed": 1, "policy": "any"}]}
    with pytest.raises(InvalidSpec, match=told):
        check_recipe(Recipe.model_validate(plan | change))


def test_a_network_that_needs_memory_to_be_built_is_not_refused() -> None:
    network = {"name": "SwinUNETR", "filters": 12}
    plan = {"id": "odd", "network": network, "members": [{"seed": 1, "policy": "any"}]}
    assert check_recipe(Recipe.model_validate(plan)) > 1_000_000


def test_all_faults_of_a_recipe_are_told_at_once() -> None:
    members = [{"seed": 1, "policy": "any"}, {"seed": 2, "policy": "any", "network": {"name": "B"}}]
    plan = {"id": "odd", "strategy": "swag", "network": {"name": "A"}, "members": members}
    with pytest.raises(InvalidSpec) as caught:
        check_recipe(Recipe.model_validate(plan))
    assert all(word in caught.value.what for word in ("'swag'", "'A'", "'B'"))


def test_a_full_disk_is_refused_before_the_work(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(WriteFailed, match="1 MB free") as caught:
        check_training(Job.model_validate(JOB), LIBRARY, Zoo())
    assert "needs at least" in caught.value.why


def test_a_store_of_weights_that_cannot_be_written_is_refused(home: Path) -> None:
    home.mkdir()
    (home / "weights").write_text("a file where the folder should be")
    with pytest.raises(WriteFailed, match="weights"):
        check_training(Job.model_validate(JOB), LIBRARY, Zoo())


def test_a_signing_key_that_is_not_there_is_refused(home: Path, use_settings: UseSettings) -> None:
    use_settings({"MANYBEAM_HOME": str(home), "MANYBEAM_SIGNING_KEY": str(home / "no.pem")})
    with pytest.raises(InvalidSetting, match=r"no\.pem"):
        check_training(Job.model_validate(JOB), LIBRARY, Zoo())


def test_nothing_to_measure_on_is_allowed() -> None:
    check_measure(Measure(), LIBRARY)

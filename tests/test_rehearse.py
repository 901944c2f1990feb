"""Rehearsing a version: its policies found, its table kept beside it, in this process."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.cli import main
from manybeam.errors import InvalidInput, NotFound, UnknownRef
from manybeam.jobs.calibrate import BLOCK, calibrate_ensemble, usual_policies
from manybeam.learn.analysis.calibration_set import CalibrationSet
from manybeam.predictor.learned import performance_predictor
from manybeam.spec import Library
from manybeam.zoo.calibration_sets import KIND
from manybeam.zoo.registry import Zoo

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def zoo(
    tmp_path: Path, rehearsed_home: Path, use_settings: Callable[[dict[str, str]], None]
) -> Zoo:
    home = tmp_path / "home"
    use_settings({"MANYBEAM_HOME": str(home), "MANYBEAM_ZOO": str(LIBRARY.folder)})
    home.mkdir()
    shutil.copy(rehearsed_home / "zoo.db", home / "zoo.db")
    return Zoo()


def test_a_rehearsal_keeps_a_table_of_as_many_frames_as_asked_for(zoo: Zoo) -> None:
    told: list[tuple[int, int]] = []
    calibrate_ensemble(
        zoo, "graphene@1", LIBRARY, policies=["graphene-nominal", "graphene-hard"],
        frame_count=BLOCK + 3, progress=lambda *one: told.append(one), executor="local",
    )  # fmt: skip
    known = performance_predictor(zoo, "graphene@1")
    assert known is not None
    assert known.table.members == (0, 1)
    assert len(known.table) == BLOCK + 3
    assert set(known.table.source_n) == {"graphene-nominal", "graphene-hard"}
    assert told == [(BLOCK, BLOCK + 3), (BLOCK + 3, BLOCK + 3)]


def test_the_last_rehearsal_counts_and_a_seed_gives_the_same_again(zoo: Zoo) -> None:
    tables = []
    for seed in (1, 2, 1):
        calibrate_ensemble(
            zoo, "graphene@1", LIBRARY, policies=["graphene-nominal"], frame_count=2, seed=seed,
            executor="local",
        )  # fmt: skip
        tables.append(CalibrationSet.from_bytes(zoo.attached("graphene@1", KIND) or b""))
    np.testing.assert_array_equal(tables[0].summary_ns, tables[2].summary_ns)
    assert not np.array_equal(tables[0].summary_ns, tables[1].summary_ns)


def test_a_rehearsal_that_was_stopped_goes_on_with_the_rows_it_had_and_comes_out_the_same(
    zoo: Zoo, tmp_path: Path
) -> None:
    def table(**more: Any) -> CalibrationSet:
        given = {"policies": ["graphene-nominal"], "frame_count": BLOCK + 2, "seed": 7}
        calibrate_ensemble(zoo, "graphene@1", LIBRARY, executor="local", **given, **more)
        return CalibrationSet.from_bytes(zoo.attached("graphene@1", KIND) or b"")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    kept, told = tmp_path / "home" / "rehearsals", []
    with pytest.raises(KeyboardInterrupt):
        table(progress=stop)
    assert len(list(kept.rglob("rows-*"))) == 1
    assert zoo.attached("graphene@1", KIND) is None
    went_on = table(progress=lambda *one: told.append(one))
    assert told == [(BLOCK + 2, BLOCK + 2)]
    assert not list(kept.rglob("rows-*"))
    at_once = table()
    for name in ("summary_ns", "belief_km", "error_k"):
        np.testing.assert_array_equal(getattr(went_on, name), getattr(at_once, name))


def test_the_usual_policies_are_the_members_own_each_beside_the_broadest(zoo: Zoo) -> None:
    names = [policy.id for policy in usual_policies(zoo.resolve("graphene@2"), LIBRARY)]
    assert names[::2] == ["graphene-nominal", "graphene-dirty", "graphene-coarse"]
    assert len(set(names[1::2])) == 1
    assert names[1].startswith("graphene-")
    assert names[1] not in names[::2]


@pytest.mark.parametrize(
    ("ref", "more", "error", "told"),
    [
        pytest.param("graphene@9", {}, UnknownRef, "version 9", id="no version"),
        pytest.param("graphene@2/01", {}, InvalidInput, "rehearsed alone", id="one member"),
        pytest.param("graphene@2", {"policies": ["x"]}, NotFound, "x", id="no policy"),
        pytest.param("graphene@2", {"frame_count": 0}, InvalidInput, "0 frames", id="no frames"),
        pytest.param(
            "graphene@2", {"policies": ["graphene-nominal", "mos2-nominal"]}, InvalidInput,
            "one structure", id="two structures",
        ),
    ],
)  # fmt: skip
def test_a_rehearsal_that_cannot_be_is_refused_and_the_table_kept(
    zoo: Zoo, ref: str, more: dict[str, Any], error: type[Exception], told: str
) -> None:
    before = zoo.attached("graphene@2", KIND)
    with pytest.raises(error, match=told):
        calibrate_ensemble(zoo, ref, LIBRARY, **{"frame_count": 2, "executor": "local", **more})
    assert zoo.attached("graphene@2", KIND) == before


def test_members_whose_policies_the_library_lost_have_to_be_told_theirs(
    zoo: Zoo, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="add --policy"):
        calibrate_ensemble(zoo, "graphene@2", Library(tmp_path), frame_count=2, executor="local")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(["graphene@9"], 4, "version 9", id="no version"),
        pytest.param(["graphene@2/01"], 2, "manybeam rehearse graphene@2", id="one member"),
        pytest.param(["graphene", "--frames", "20"], 2, "--frames", id="too few frames"),
        pytest.param(["graphene", "--policy", "x"], 4, "x", id="no policy"),
    ],
)
def test_the_command_refuses_in_words_before_any_work(
    zoo: Zoo, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", *words]) == code
    assert said in capsys.readouterr().err

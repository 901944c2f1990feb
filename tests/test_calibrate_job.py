"""Calibrating a version: its policies are found, its calibration set is attached to it."""

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


def test_a_calibration_attaches_a_set_of_as_many_frames_as_asked_for(zoo: Zoo) -> None:
    seen: list[tuple[int, int]] = []
    calibrate_ensemble(
        zoo, "graphene@1", LIBRARY, policies=["graphene-nominal", "graphene-hard"],
        frame_count=BLOCK + 3, progress=lambda *one: seen.append(one), executor="local",
    )  # fmt: skip
    known = performance_predictor(zoo, "graphene@1")
    assert known is not None
    assert known.table.members == (0, 1)
    assert len(known.table) == BLOCK + 3
    assert set(known.table.source_n) == {"graphene-nominal", "graphene-hard"}
    assert seen == [(BLOCK, BLOCK + 3), (BLOCK + 3, BLOCK + 3)]


def test_the_last_calibration_replaces_others_and_a_seed_gives_the_same_again(zoo: Zoo) -> None:
    tables = []
    for seed in (1, 2, 1):
        calibrate_ensemble(
            zoo, "graphene@1", LIBRARY, policies=["graphene-nominal"], frame_count=2, seed=seed,
            executor="local",
        )  # fmt: skip
        tables.append(CalibrationSet.from_bytes(zoo.attached("graphene@1", KIND) or b""))
    np.testing.assert_array_equal(tables[0].summary_ns, tables[2].summary_ns)
    assert not np.array_equal(tables[0].summary_ns, tables[1].summary_ns)


def test_a_calibration_that_was_stopped_continues_with_its_rows_and_gives_the_same_set(
    zoo: Zoo, tmp_path: Path
) -> None:
    def table(**more: Any) -> CalibrationSet:
        given = {"policies": ["graphene-nominal"], "frame_count": BLOCK + 2, "seed": 7}
        calibrate_ensemble(zoo, "graphene@1", LIBRARY, executor="local", **given, **more)
        return CalibrationSet.from_bytes(zoo.attached("graphene@1", KIND) or b"")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    kept, seen = tmp_path / "home" / "calibrations", []
    with pytest.raises(KeyboardInterrupt):
        table(progress=stop)
    assert len(list(kept.rglob("rows-*"))) == 1
    assert zoo.attached("graphene@1", KIND) is None
    went_on = table(progress=lambda *one: seen.append(one))
    assert seen == [(BLOCK + 2, BLOCK + 2)]
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
    ("ref", "more", "error", "said"),
    [
        pytest.param("graphene@9", {}, UnknownRef, "version 9", id="no version"),
        pytest.param("graphene@2/01", {}, InvalidInput, "calibrated alone", id="one member"),
        pytest.param("graphene@2", {"policies": ["x"]}, NotFound, "x", id="no policy"),
        pytest.param("graphene@2", {"frame_count": 0}, InvalidInput, "0 frames", id="no frames"),
        pytest.param(
            "graphene@2", {"policies": ["graphene-nominal", "mos2-nominal"]}, InvalidInput,
            "one structure", id="two structures",
        ),
    ],
)  # fmt: skip
def test_an_impossible_calibration_is_refused_and_the_set_before_is_kept(
    zoo: Zoo, ref: str, more: dict[str, Any], error: type[Exception], said: str
) -> None:
    before = zoo.attached("graphene@2", KIND)
    with pytest.raises(error, match=said):
        calibrate_ensemble(zoo, ref, LIBRARY, **{"frame_count": 2, "executor": "local", **more})
    assert zoo.attached("graphene@2", KIND) == before


def test_if_the_library_lost_the_policies_of_the_members_a_policy_has_to_be_given(
    zoo: Zoo, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="add --policy"):
        calibrate_ensemble(zoo, "graphene@2", Library(tmp_path), frame_count=2, executor="local")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(["graphene@9"], 4, "version 9", id="no version"),
        pytest.param(["graphene@2/01"], 2, "manybeam calibrate graphene@2", id="one member"),
        pytest.param(["graphene", "--frames", "20"], 2, "--frames", id="too few frames"),
        pytest.param(["graphene", "--policy", "x"], 4, "x", id="no policy"),
    ],
)
def test_the_command_refuses_in_words_before_any_work(
    zoo: Zoo, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *words]) == code
    assert said in capsys.readouterr().err


def test_the_old_verb_still_works_but_help_does_not_list_it(
    zoo: Zoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", "graphene@9"]) == 4
    assert "version 9" in capsys.readouterr().err
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert "calibrate" in listed
    assert "rehearse" not in listed

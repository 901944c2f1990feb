"""`manybeam serve shadow | canary | promote | rollback`: what a person reads, and each refusal."""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manybeam.cli import main
from manybeam.cli.service.rollouts import FOLLOWS, _serves
from manybeam.db.deployment import open_database
from manybeam.db.owner import whoami
from manybeam.db.serving.rollouts import LOADING, Rollouts
from manybeam.db.tokens import Instruments
from manybeam.serve.traffic import changes
from manybeam.zoo.lifecycle import life
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow
Told = Callable[..., tuple[int, list[Any], str]]


def scores(found: int) -> list[Score]:
    counts = ((found, 0, 100 - found),) * 12
    values = {"f1": 2 * found / (found + 100)}
    return [Score(ENSEMBLE, c, "d", values, counts) for c in ("low", "nominal")]


@pytest.fixture
def home(
    embedded: Zoo,
    tmp_path: Path,
    use_settings: Any,
    fill: Any,
    tiny_members: Callable[[int], list[Any]],
) -> Zoo:
    """The platform's zoo: of four versions of `graphene`, the second serves; the last is worse."""

    def register(zoo: Zoo) -> None:
        for found in (80, 90, 95, 70):
            zoo.register("graphene", tiny_members(1), job={}, scores=scores(found))
        life.promote(zoo, "graphene@2", who="ada")

    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    fill(embedded, register)
    return embedded


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], home: Zoo) -> Told:
    """Run `manybeam serve ...` and return its exit code, its rows and its talk."""
    del home
    capsys.readouterr()

    def run(*words: str) -> tuple[int, list[Any], str]:
        code = main(["serve", *words])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


def test_a_shadow_is_started_listed_promoted_and_taken_back(told: Told, home: Zoo) -> None:
    Instruments(open_database()).add("STEM-1")
    code, (row,), err = told("shadow", "graphene@3", "--instrument", "STEM-1")
    assert (code, row["ref"], row["base"], row["instruments"]) == (
        0, "graphene@3", "graphene@2", ["STEM-1"],
    )  # fmt: skip
    assert "warning" not in err
    assert FOLLOWS in err
    assert "to undo: manybeam serve rollback graphene" in err
    code, (row,), err = told("shadow")
    assert (code, row["frames"], row["agreed"], row["state"]) == (0, 0, None, "running")
    assert "no frame so far: is a service running" in err
    code, rows, err = told("promote", "graphene")
    assert (code, {row["verdict"] for row in rows}) == (0, {"accepts"})
    assert "graphene@3 is now serving, before it graphene@2" in err
    assert told("shadow")[1] == []
    assert told("shadow", "--all")[1][0]["state"] == "promoted"
    code, rows, err = told("rollback", "graphene")
    assert (code, home.resolve("graphene").version) == (0, 2)
    assert rows == [{"ref": "graphene@2", "alias": "serving", "before": "graphene@3"}]
    assert "graphene@2 is now serving, before it graphene@3" in err


def test_a_rollback_ends_what_runs_and_names_the_command_that_starts_it_again(
    told: Told, home: Zoo
) -> None:
    told("canary", "graphene@3", "--share", "0.1", "--instrument", "STEM 1", "--instrument", "B")
    code, (row,), err = told("rollback", "graphene@3", "--reason", "misses dopants")
    assert (code, row["state"], row["ended_by"]) == (0, "rolled back", whoami())
    assert "graphene@2 answers every frame again" in err
    again = "manybeam serve canary graphene@3 --instrument 'STEM 1' --instrument B --share 0.1"
    assert f"to undo: {again}\n" in err
    assert home.resolve("graphene").version == 2


def test_a_rollback_takes_back_what_another_road_promoted_before_the_canary_ended(
    told: Told, home: Zoo
) -> None:
    told("canary", "graphene@3", "--share", "0.1")
    life.promote(home, "graphene@3", who="ada")
    code, (row,), err = told("rollback", "graphene")
    assert (code, row["state"], row["serves"]) == (0, "rolled back", "graphene@2")
    assert home.resolve("graphene").version == 2
    assert "graphene@3 served already, so the version before it serves again" in err
    assert "graphene@2 is now serving, before it graphene@3" in err
    assert Rollouts(open_database()).running() == []


def test_a_canary_whose_version_was_forced_by_another_road_ends_without_the_gates(
    told: Told, home: Zoo
) -> None:
    told("canary", "graphene@4", "--share", "0.1")
    life.promote(home, "graphene@4", who="ada", force=True, reason="trial")
    assert told("promote", "graphene")[0] == 0
    (ended,) = told("canary", "--all")[1]
    assert (ended["state"], home.resolve("graphene").version) == ("promoted", 4)


def test_a_rollback_of_a_canary_that_rests_names_what_serves(told: Told, home: Zoo) -> None:
    told("canary", "graphene@3", "--share", "0.1")
    life.promote(home, "graphene@4", who="ada", force=True, reason="trial")
    code, (row,), err = told("rollback", "graphene")
    assert (code, row["serves"], home.resolve("graphene").version) == (0, "graphene@4", 4)
    assert "graphene@4 answers every frame: a running service follows" in err


def test_a_canary_ends_while_the_zoo_is_away(told: Told, tmp_path: Path) -> None:
    told("canary", "graphene@3", "--share", "0.1")
    away = Zoo("http://127.0.0.1:9", "", tmp_path / "cache")  # nobody listens on that port
    done = changes.rollback(away, "graphene", who="ada")
    assert done.rollout
    assert (done.rollout.outcome, done.move, done.serves) == ("rolled back", None, None)
    assert _serves(done.serves, done.rollout) == (
        "the zoo does not answer, so what serves is unknown: if graphene@3 does, "
        "manybeam zoo rollback graphene"
    )


def test_a_rollout_whose_version_serves_is_in_nobodys_way(told: Told, home: Zoo) -> None:
    told("canary", "graphene@3", "--share", "0.1")
    life.promote(home, "graphene@3", who="ada")
    assert told("shadow", "graphene@2")[0] == 0
    (ended,) = told("canary", "--all")[1]
    assert (ended["state"], home.resolve("graphene").version) == ("promoted", 3)


def test_why_a_version_cannot_be_loaded_is_told_without_a_row_of_its_own(told: Told) -> None:
    told("shadow", "graphene@3")
    stored = Rollouts(open_database())
    (running,) = stored.running()
    stored.add(running.id, {LOADING: {"fault": "it cannot be loaded: graphene@3 is gone"}})
    _, (row,), err = told("shadow")
    assert (row["instrument"], row["fault"]) == ("", "it cannot be loaded: graphene@3 is gone")
    assert "last failure: it cannot be loaded: graphene@3 is gone" in err


def test_a_refused_promotion_is_exit_6_and_the_canary_goes_on_until_it_is_forced(
    told: Told, home: Zoo
) -> None:
    told("canary", "graphene@4", "--instrument", "STEM-1")
    code, rows, err = told("promote", "graphene")
    assert (code, home.resolve("graphene").version) == (6, 2)
    assert [row["condition"] for row in rows if row["verdict"] == "refuses"] == ["low", "nominal"]
    assert "graphene@4 was not promoted to serving" in err
    assert "the version would be refused" in told("promote", "graphene", "--dry-run")[2]
    assert len(told("canary")[1]) == 1
    assert told("promote", "graphene", "--force")[0] == 2
    assert told("promote", "graphene", "--force", "--reason", "trial")[0] == 0
    assert (home.resolve("graphene").version, told("canary")[1]) == (4, [])


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        pytest.param(("shadow", "graphene@9"), 4, "has no version 9", id="version"),
        pytest.param(("shadow", "grafene"), 4, "nearest: graphene", id="name"),
        pytest.param(("shadow", "graphene@2"), 6, "graphene@2 serves already", id="serves"),
        pytest.param(("shadow", "graphene"), 6, "graphene@2 serves already", id="serving"),
        pytest.param(("shadow", "graphene@3/00"), 2, "is one member", id="member"),
        pytest.param(("shadow", "graphene@3", "--share", "0"), 2, "above 0 and at most 1", id="0"),
        pytest.param(("canary", "graphene@3", "--share", "2"), 2, "above 0 and at most 1", id="2"),
        pytest.param(("canary", "graphene@3"), 2, "needs a share of the frames", id="whole"),
        pytest.param(("shadow", "graphene@3", "--instrument", "a?b"), 2, "'a?b' cannot", id="id"),
        pytest.param(("shadow", "--instrument", "STEM-1"), 2, "are for a version", id="no ref"),
        pytest.param(("promote", "graphene"), 4, "no shadow or canary of graphene runs", id="none"),
        pytest.param(("promote", "mos2"), 4, "no shadow or canary of mos2 runs", id="other"),
        pytest.param(("rollback", "graphene@3"), 4, "no shadow or canary of gr", id="nothing"),
        pytest.param(("rollback", "graphene"), 4, "no version to go back to", id="first"),
        pytest.param(("rollback", "a b"), 4, "is no reference", id="no name"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told(told: Told, words: Any, code: int, what: str) -> None:
    found, rows, err = told(*words)
    assert (found, rows) == (code, [])
    assert err.startswith("error: ")
    assert what in err
    assert Rollouts(open_database()).list() == []


def test_a_second_version_under_traffic_is_refused_and_a_wrong_one_is_not_promoted(
    told: Told,
) -> None:
    told("shadow", "graphene@3")
    code, _, err = told("canary", "graphene@4", "--share", "0.1")
    assert code == 6
    assert f"a shadow of graphene@3 with all frames runs already\nwhy: {whoami()} started" in err
    assert "try: manybeam serve rollback graphene ends it" in err
    code, _, err = told("promote", "graphene@4")
    assert code == 6
    assert "the shadow that runs is of graphene@3, not of graphene@4" in err


def test_versions_that_serve_nothing_or_are_archived_are_refused(told: Told, home: Zoo) -> None:
    life.archive(home, "graphene@3", who="ada")
    assert "graphene@3 is archived" in told("shadow", "graphene@3")[2]
    name = f"mos2-{uuid.uuid4().hex[:6]}"
    home.register(name, home.members("graphene@2"), job={})
    code, _, err = told("shadow", f"{name}@1")
    assert code == 6
    assert f"no version of {name} serves" in err


def test_a_person_is_warned_of_what_may_surprise(
    told: Told, home: Zoo, tiny_members: Callable[[int], list[Any]]
) -> None:
    odd = [replace(one, policy="elsewhere") for one in tiny_members(2)]
    for one in odd:
        sized = one.recipe.tiles.model_copy(update={"pixel_size_pm": 30.0})
        object.__setattr__(one, "recipe", one.recipe.model_copy(update={"tiles": sized}))
    home.register("graphene", odd, job={})
    code, _, err = told("shadow", "graphene@5", "--instrument", "STEM-9")
    assert code == 0
    assert "were trained for other crystals: graphene, and none" in err
    assert "graphene@5 was trained for" in err
    assert "graphene@5 has 2 members, graphene@2 1: its answers take longer" in err
    assert "no instrument 'STEM-9' was added here" in err


def test_the_table_holds_both_versions_in_one_cell(
    told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    told("canary", "graphene@3", "--share", "0.5")
    rollouts = Rollouts(open_database())
    (running,) = rollouts.running()
    side = {"frames": 10, "predicted": 10, "predicted_f1": 9.1, "ms": {"40": 10}, "members": 10}
    more = {"base": side, "new": {**side, "predicted_f1": 9.4, "late": 1}, "failed": 2}
    rollouts.add(running.id, {"": more, "STEM-1": {**more, "fault": "no such kernel"}})
    main(["serve", "canary", "-o", "table"])
    out, err = capsys.readouterr()
    assert "0.910 / 0.940" in out
    assert "33 / 33" in out
    assert [line.split()[2] for line in out.splitlines()[4:7]] == ["all", "not", "STEM-1"]
    assert "last failure: no such kernel" in err

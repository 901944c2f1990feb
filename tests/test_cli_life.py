"""`manybeam zoo promote` and its kin: what a person reads, and the exit code of each refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from manybeam.cli import main
from manybeam.db.deployment import open_database
from manybeam.db.owner import whoami
from manybeam.db.tables import AuditRecord
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow


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
    """The platform's zoo: the second of three versions of `graphene` serves."""

    def register(zoo: Zoo) -> None:
        for found in (80, 90, 95):
            zoo.register("graphene", tiny_members(1), job={}, scores=scores(found))
        main(["zoo", "promote", "graphene@2"])

    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    fill(embedded, register)
    return embedded


@pytest.fixture
def told(
    capsys: pytest.CaptureFixture[str], home: Zoo
) -> Callable[..., tuple[int, list[Any], str]]:
    """Run `manybeam zoo ...` and return its exit code, its rows and its talk."""
    del home
    capsys.readouterr()

    def run(*words: str) -> tuple[int, list[Any], str]:
        code = main(["zoo", *words])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


Told = Callable[..., tuple[int, list[Any], str]]


def test_a_refused_promotion_is_exit_6_and_names_the_conditions(told: Told, home: Zoo) -> None:
    code, rows, err = told("promote", "graphene@1")
    assert code == 6
    assert [row["condition"] for row in rows if row["verdict"] == "refuses"] == ["low", "nominal"]
    error, low, nominal, hint = err.splitlines()
    assert (
        error
        == "error: graphene@1 was not promoted to serving: lower F1 than graphene@2 on low, nominal"
    )
    assert low.startswith("why: regression on low: F1 0.947 -> 0.889")
    assert nominal.startswith("     regression on nominal: F1 ")
    assert all(
        one.endswith("; run: manybeam zoo diff graphene@2 graphene@1") for one in (low, nominal)
    )
    assert hint.startswith("try: manybeam zoo diff graphene@2 graphene@1; --force --reason")
    assert home.resolve("graphene").version == 2


def test_a_promotion_tells_what_served_before_and_how_to_go_back(told: Told, home: Zoo) -> None:
    code, rows, err = told("promote", "graphene@3")
    assert (code, {row["verdict"] for row in rows}) == (0, {"accepts"})
    assert "graphene@3 is now serving, before it graphene@2" in err
    assert "to undo: manybeam zoo rollback graphene\n" in err
    assert told("rollback", "graphene")[0] == 0
    assert home.resolve("graphene").version == 2


def test_a_dry_run_only_judges(told: Told, home: Zoo) -> None:
    assert told("promote", "graphene@3", "--dry-run")[2].endswith("the version would be promoted\n")
    assert told("promote", "graphene@1", "--dry-run")[2].endswith("the version would be refused\n")
    assert home.resolve("graphene").version == 2


def test_a_forced_promotion_is_in_the_log_with_who_and_why(told: Told) -> None:
    code, _, err = told("promote", "graphene@1", "--force", "--reason", "2 misses silicon")
    assert code == 0
    assert "(gates overridden)" in err
    _, rows, _ = told("audit", "graphene@1")
    assert [row["action"] for row in rows] == ["promote done", "promote asked"]
    assert (rows[1]["who"], rows[1]["reason"]) == (whoami(), "2 misses silicon")
    assert len(rows[1]["details"]["overridden"]) == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(["promote", "graphene@3", "--force"], 2, id="force without a reason"),
        pytest.param(["promote", "graphene@3", "--to", "best"], 2, id="no such alias"),
        pytest.param(["promote", "grafene@3"], 4, id="no such ensemble"),
        pytest.param(["rollback", "graphene"], 4, id="nothing served before"),
        pytest.param(["archive", "graphene"], 6, id="it serves"),
        pytest.param(["gc", "--older-than-hours", "0"], 2, id="no grace"),
        pytest.param(["gc", "--older-than-hours", "99999999999999"], 2, id="a grace of ages"),
        pytest.param(["gc", "--archived-days", "9999999999"], 2, id="archived ages ago"),
        pytest.param(["audit", "--anchor", "yesterday"], 2, id="no anchor"),
    ],
)
def test_what_cannot_be_done_has_its_exit_code(told: Told, words: list[str], code: int) -> None:
    assert told(*words)[0] == code


def test_an_archived_version_cannot_be_promoted_until_it_is_taken_up(told: Told) -> None:
    assert told("archive", "graphene@3", "--reason", "wrong frames")[0] == 0
    assert told("promote", "graphene@3", "--force", "--reason", "now")[0] == 6
    assert told("unarchive", "graphene@3")[0] == 0
    assert told("promote", "graphene@3")[0] == 0


def test_gc_lists_and_removes_only_with_yes(told: Told, home: Zoo) -> None:
    told("archive", "graphene@1")
    code, rows, err = told("gc", "--archived-days", "0")
    assert (code, [(row["what"], row["state"]) for row in rows]) == (
        0,
        [("graphene@1", "removable")],
    )
    assert "nothing was removed; --yes removes 1 entry with 2 models" in err
    _, rows, err = told("gc", "--archived-days", "0", "--yes")
    assert [row["state"] for row in rows] == ["removed"]
    assert "removed: 1 entry with 2 models" in err
    assert [one.version for one in home.ls()] == [3, 2]


def test_a_record_that_was_tampered_with_is_exit_1_and_named(
    told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["zoo", "audit", "--verify"]) == 0
    anchor = capsys.readouterr().out.strip()
    assert told("audit", "--anchor", anchor, "-o", "jsonl")[1] == [{"anchor": anchor}]
    own = AuditRecord.number == 1
    with open_database().writing() as connection:
        content = connection.execute(select(AuditRecord.content).where(own)).scalar_one()
        other = content.replace(b"graphene@2", b"graphene@3")
        connection.execute(update(AuditRecord).where(own).values(content=other))
    code, _, err = told("audit", "--verify")
    assert code == 1
    assert "the audit log is broken at record 1" in err

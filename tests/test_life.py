"""zoo.life: promoted behind gates, rolled back, archived, and all of it told in the audit log."""

from collections.abc import Callable
from typing import Any

import pytest

from manybeam.db.locks import Locks
from manybeam.errors import (
    Conflict,
    DatabaseUnreachable,
    InvalidInput,
    NotFound,
    RefusedByGate,
    UnknownRef,
)
from manybeam.zoo.lifecycle.life import archive, promote, propose, rollback, settle, unarchive
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

Members = Callable[[int], list[Any]]


def scores(found: int) -> list[Score]:
    """What an ensemble that finds so many of 100 atoms is worth, on two conditions."""
    counts = ((found, 0, 100 - found),) * 12
    values = {"f1": 2 * found / (found + 100)}
    return [Score(ENSEMBLE, c, "d", values, counts) for c in ("low", "nominal")]


@pytest.fixture
def versions(zoo: Zoo, fill: Any, three_versions: Callable[[Zoo], None]) -> str:
    """An ensemble of three versions, each better than the one before; none serves."""
    fill(zoo, three_versions)
    return "graphene"


@pytest.fixture(scope="module")
def three_versions(tiny_members: Members) -> Callable[[Zoo], None]:
    """Register `graphene` three times; none serves."""

    def register(zoo: Zoo) -> None:
        for found in (80, 90, 95):
            job = {"kind": "train"}
            zoo.register("graphene", tiny_members(1), job=job, scores=scores(found))

    return register


def serving(zoo: Zoo, name: str) -> int:
    return zoo.resolve(name).version


def told(name: str) -> list[tuple[str, str]]:
    return [(one.action, one.subject.partition("@")[2]) for one in audit_log().entries(name)[::-1]]


# -- promotion ----------------------------------------------------------------------------------
def test_a_version_that_passes_serves_and_the_log_tells(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@1", who="ada")
    done = promote(zoo, f"{versions}@2", who="ada", reason="finds more")
    assert serving(zoo, versions) == 2
    assert (done.previous, done.is_forced) == (f"{versions}@1", False)
    asked = audit_log().entries(versions)[1]
    assert (asked.who, asked.reason) == ("ada", "finds more")
    assert asked.details == {"alias": "serving", "from": 1, "to": 2}


def test_a_version_that_regresses_is_refused_and_each_condition_named(
    zoo: Zoo, versions: str
) -> None:
    promote(zoo, f"{versions}@2", who="ada")
    with pytest.raises(
        RefusedByGate, match=r"@1 was not promoted to serving: lower F1 than .*@2 on low, nominal"
    ) as caught:
        promote(zoo, f"{versions}@1", who="ada")
    assert "0.947 -> 0.889" in caught.value.why
    assert f"manybeam zoo diff {versions}@2 {versions}@1" in caught.value.hint
    assert serving(zoo, versions) == 2


def test_each_reason_of_a_refusal_is_one_line_with_the_command_that_mends_it(
    zoo: Zoo, versions: str, tiny_members: Any
) -> None:
    promote(zoo, f"{versions}@2", who="ada")
    bare = zoo.register(versions, tiny_members(1), job={"kind": "train"})
    with pytest.raises(RefusedByGate) as caught:
        promote(zoo, bare.ref, who="ada")
    (missing,) = caught.value.why.splitlines()
    assert "not measured on 2 conditions (low, nominal)" in missing
    command = f"manybeam evaluate {bare.ref} --conditions 'low' --conditions 'nominal'"
    assert missing.endswith(f"run: {command}")
    with pytest.raises(RefusedByGate) as caught:
        promote(zoo, f"{versions}@1", who="ada")
    lines = caught.value.why.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "regression on low", "regression on nominal",
    ]  # fmt: skip
    assert all(f"; run: manybeam zoo diff {versions}@2 {versions}@1" in line for line in lines)


def test_an_archived_version_is_refused_with_the_command_that_unarchives_it(
    embedded_versions: tuple[Zoo, str],
) -> None:
    zoo, name = embedded_versions
    archive(zoo, f"{name}@1", who="ada")
    with pytest.raises(RefusedByGate, match=f"run: manybeam zoo unarchive {name}@1"):
        promote(zoo, f"{name}@1", who="ada")


def test_force_overrides_and_the_log_keeps_what_was_overridden(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@2", who="ada")
    done = promote(zoo, f"{versions}@1", who="bob", force=True, reason="2 misses silicon")
    assert (done.is_forced, serving(zoo, versions)) == (True, 1)
    asked = audit_log().entries(versions)[1]
    assert asked.reason == "2 misses silicon"
    assert [words.partition(":")[0] for words in asked.details["overridden"]] == [
        "regression on low", "regression on nominal",
    ]  # fmt: skip


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_force_without_a_reason_is_refused(embedded_versions: tuple[Zoo, str], reason: str) -> None:
    zoo, name = embedded_versions
    with pytest.raises(InvalidInput, match="without a reason"):
        promote(zoo, f"{name}@1", who="ada", force=True, reason=reason)
    assert audit_log().head() == 0


def test_force_does_not_make_an_archived_version_serve(zoo: Zoo, versions: str) -> None:
    archive(zoo, f"{versions}@1", who="ada")
    with pytest.raises(RefusedByGate, match="was not promoted to serving: status"):
        promote(zoo, f"{versions}@1", who="ada", force=True, reason="now")


def test_a_candidate_need_not_be_better(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@2", who="ada", to="candidate")
    promote(zoo, f"{versions}@1", who="ada", to="candidate")
    assert zoo.resolve(f"{versions}@candidate").version == 1
    with pytest.raises(UnknownRef):
        zoo.resolve(versions)


def test_what_serves_already_is_not_promoted_again(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@1", who="ada")
    assert promote(zoo, f"{versions}@serving", who="ada").number == 0
    assert len(told(versions)) == 2


def test_a_proposal_changes_nothing(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@2", who="ada")
    refusals = propose(zoo, f"{versions}@1").refusals
    assert [one.condition for one in refusals] == ["low", "nominal"]
    assert propose(zoo, f"{versions}@3").refusals == ()
    assert (serving(zoo, versions), len(told(versions))) == (2, 2)


@pytest.fixture
def embedded_versions(
    embedded: Zoo, tmp_path: Any, use_settings: Any, fill: Any, three_versions: Any
) -> tuple[Zoo, str]:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    fill(embedded, three_versions)
    return embedded, "graphene"


@pytest.mark.parametrize(
    ("ref", "more", "refusal"),
    [
        pytest.param("graphene@9", {}, NotFound, id="no such version"),
        pytest.param("graphene@1/00", {}, InvalidInput, id="a member"),
        pytest.param("graphene@1", {"to": "best"}, InvalidInput, id="no such alias"),
        pytest.param("graphene@1", {"who": " "}, InvalidInput, id="nobody"),
    ],
)
def test_what_cannot_be_promoted_is_told_and_not_recorded(
    embedded_versions: tuple[Zoo, str], ref: str, more: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        promote(embedded_versions[0], ref, **{"who": "ada", **more})
    assert audit_log().head() == 0


# -- rollback -----------------------------------------------------------------------------------
def test_a_rollback_goes_to_what_served_before_and_another_undoes_it(
    zoo: Zoo, versions: str
) -> None:
    for version in (1, 2, 3):
        promote(zoo, f"{versions}@{version}", who="ada")
    assert rollback(zoo, versions, who="bob", reason="misses edges").ref == f"{versions}@2"
    assert serving(zoo, versions) == 2
    assert rollback(zoo, versions, who="bob").ref == f"{versions}@3"
    assert serving(zoo, versions) == 3
    assert told(versions)[-2:] == [("rollback asked", "3"), ("rollback done", "3")]


def promote_and_move(zoo: Zoo) -> None:
    promote(zoo, "graphene@1", who="ada")
    zoo.set_alias("graphene", "serving", 3)


@pytest.mark.parametrize(
    ("before", "told_why"),
    [
        pytest.param(
            lambda zoo: zoo.set_alias("graphene", "serving", 1), "no record of a move", id="no log"
        ),
        pytest.param(lambda zoo: promote(zoo, "graphene@1", who="a"), "no version", id="first"),
        pytest.param(promote_and_move, "a later move is not recorded", id="moved beside the log"),
    ],
)
def test_a_rollback_the_log_knows_no_way_for_is_refused(
    embedded_versions: tuple[Zoo, str], before: Callable[[Zoo], Any], told_why: str
) -> None:
    zoo, name = embedded_versions
    before(zoo)
    now = serving(zoo, name)
    with pytest.raises(NotFound, match=told_why) as caught:
        rollback(zoo, name, who="ada")
    assert caught.value.hint.startswith("manybeam zoo promote graphene@")
    assert serving(zoo, name) == now


def test_a_rollback_to_an_archived_version_is_refused(zoo: Zoo, versions: str) -> None:
    for version in (1, 2):
        promote(zoo, f"{versions}@{version}", who="ada")
    archive(zoo, f"{versions}@1", who="ada")
    with pytest.raises(Conflict, match=r"@1 served before and is archived"):
        rollback(zoo, versions, who="ada")
    assert serving(zoo, versions) == 2


@pytest.mark.parametrize("text", ["graphene@3", "graphene@candidate", "graphene@serving/01"])
def test_a_rollback_takes_an_ensemble_only(embedded_versions: tuple[Zoo, str], text: str) -> None:
    with pytest.raises(InvalidInput, match="is not only the name of an ensemble"):
        rollback(embedded_versions[0], text, who="ada")


def test_nothing_serves_so_nothing_is_rolled_back(embedded_versions: tuple[Zoo, str]) -> None:
    with pytest.raises(UnknownRef, match="has no @serving version"):
        rollback(embedded_versions[0], "graphene", who="ada")


# -- a version just made ------------------------------------------------------------------------
def test_a_version_just_made_that_may_not_serve_is_the_candidate(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@2", who="ada")
    said: list[str] = []
    settled = settle(zoo, zoo.resolve(f"{versions}@1"), "serving", say=said.append)
    assert settled.aliases == ("candidate",)
    assert "lower F1 than" in said[0]
    assert "on low, nominal" in said[0]
    assert said[0].endswith("it is now the candidate")


@pytest.mark.parametrize("to", ["serving", "candidate"])
def test_an_alias_somebody_else_is_changing_leaves_a_version_that_says_so(
    zoo: Zoo, versions: str, to: str
) -> None:
    log, own = audit_log(), {"who": "bob", "purpose": f"promote of {versions}@3"}
    move = {"alias": to, "from": None, "to": 3}
    found = f"{versions}@1 is registered but has no alias: bob holds the lock on ensemble"
    with Locks(log.database).holding(f"ensemble {versions}", lease_s=30.0, **own):
        log.append("promote asked", f"{versions}@3", who="bob", details=move)
        with pytest.raises(Conflict, match=found) as e:
            settle(zoo, zoo.resolve(f"{versions}@1"), to)
    assert e.value.hint == f"manybeam zoo promote {versions}@1 --to {to}"
    assert zoo.resolve(f"{versions}@1").aliases == ()


def test_a_log_that_does_not_answer_leaves_a_version_that_says_so(
    embedded_versions: tuple[Zoo, str], use_settings: Callable[[dict[str, str]], None]
) -> None:
    zoo, name = embedded_versions
    use_settings({"MANYBEAM_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/manybeam"})
    with pytest.raises(
        DatabaseUnreachable, match=f"{name}@1 is registered but may have no"
    ) as caught:
        settle(zoo, zoo.resolve(f"{name}@1"), "serving")
    assert caught.value.hint == f"manybeam zoo promote {name}@1 --to serving"


# -- archive ------------------------------------------------------------------------------------
def test_an_archived_version_is_put_aside_and_taken_up_again(zoo: Zoo, versions: str) -> None:
    assert archive(zoo, f"{versions}@1", who="ada", reason="old").archived is not None
    assert unarchive(zoo, f"{versions}@1", who="ada").archived is None
    assert told(versions) == [
        ("archive asked", "1"), ("archive done", "1"),
        ("unarchive asked", "1"), ("unarchive done", "1"),
    ]  # fmt: skip


def test_what_an_alias_points_at_is_not_archived(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@1", who="ada", to="candidate")
    with pytest.raises(Conflict, match=f"{versions}@1 is candidate"):
        archive(zoo, f"{versions}@candidate", who="ada")
    assert zoo.resolve(f"{versions}@1").archived is None


def test_archiving_twice_is_once(embedded_versions: tuple[Zoo, str]) -> None:
    zoo, _ = embedded_versions
    first = archive(zoo, "graphene@1", who="ada").archived
    assert archive(zoo, "graphene@1", who="bob").archived == first
    unarchive(zoo, "graphene@2", who="ada")
    assert audit_log().head() == 2

"""db.serving.rollouts: started, compared, ended, each with its record in the audit log."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manybeam.db.audit import AuditLog
from manybeam.db.database import Database
from manybeam.db.serving.rollouts import (
    FOLLOWED,
    PROMOTED,
    ROLLED_BACK,
    Rollout,
    Rollouts,
    added,
)
from manybeam.errors import Conflict, InvalidInput, NotFound


@pytest.fixture
def rollouts(database: Database) -> Rollouts:
    return Rollouts(database)


def shadow(rollouts: Rollouts, ref: str = "graphene@4", **more: Any) -> Rollout:
    return rollouts.start("shadow", ref, f"{ref.partition('@')[0]}@3", who="ada", **more)


def test_a_rollout_reads_back_as_it_was_started_and_is_in_the_audit_log(
    rollouts: Rollouts, database: Database
) -> None:
    made = rollouts.start(
        "canary", "graphene@4", "graphene@3", share=0.1, instruments=["STEM-1"], who="ada",
        reason="new members",
    )  # fmt: skip
    assert rollouts.running() == rollouts.running("graphene") == [made]
    assert (made.share, made.instruments, made.outcome) == (0.1, ("STEM-1",), "")
    (record,) = AuditLog(database).entries("graphene@4")
    assert (record.action, record.who, record.reason) == ("canary started", "ada", "new members")
    assert record.details["rollout"] == made.id


def test_a_second_rollout_of_an_ensemble_is_refused_and_names_the_first(
    rollouts: Rollouts, database: Database
) -> None:
    shadow(rollouts)
    with pytest.raises(Conflict, match=r"shadow of graphene@4 with all frames runs already; ada"):
        shadow(rollouts, "graphene@5")
    shadow(rollouts, "mos2@2")
    assert [one.ref for one in rollouts.running()] == ["graphene@4", "mos2@2"]
    assert AuditLog(database).count("graphene@5") == 0


def test_the_same_version_goes_on_from_shadow_to_canary_and_to_a_larger_share(
    rollouts: Rollouts,
) -> None:
    shadow(rollouts)
    for share in (0.1, 0.5):
        rollouts.start("canary", "graphene@4", "graphene@3", share=share, who="bob")
    assert [one.outcome for one in rollouts.list()] == ["", FOLLOWED, FOLLOWED]
    with pytest.raises(Conflict, match="50 % of the frames runs already"):
        rollouts.start("canary", "graphene@4", "graphene@3", share=0.5, who="bob")


@pytest.mark.slow
def test_of_many_that_start_at_once_one_does(rollouts: Rollouts) -> None:
    def start(version: int) -> bool:
        try:
            shadow(rollouts, f"graphene@{version}")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(start, range(4, 10)))
    assert (sum(done), len(rollouts.running())) == (1, 1)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_bounds_is_refused(rollouts: Rollouts, share: float) -> None:
    with pytest.raises(InvalidInput, match="above 0 and at most 1"):
        shadow(rollouts, share=share)


def test_a_rollout_ends_once_and_the_second_is_told_who_was_first(
    rollouts: Rollouts, database: Database
) -> None:
    made = shadow(rollouts)
    ended = rollouts.end(made.id, ROLLED_BACK, who="bob", reason="misses dopants")
    assert (ended.outcome, ended.ended_by, rollouts.running()) == (ROLLED_BACK, "bob", [])
    with pytest.raises(Conflict, match=r"has ended already; bob ended it at .*: rolled back"):
        rollouts.end(made.id, PROMOTED, who="ada")
    actions = [one.action for one in AuditLog(database).entries("graphene")]
    assert actions == ["shadow ended", "shadow started"]
    with pytest.raises(NotFound):
        rollouts.end(made.id + 1, PROMOTED, who="ada")


def test_a_replica_sees_what_runs_and_what_served_before_a_promotion(rollouts: Rollouts) -> None:
    before = rollouts.watched()
    made = shadow(rollouts)
    assert rollouts.watched().running == (made,)
    assert rollouts.watched().change > before.change
    rollouts.end(made.id, PROMOTED, who="ada")
    assert (rollouts.watched().running, rollouts.watched().kept) == ((), ("graphene@3",))
    assert rollouts.watched(keep=timedelta(0)).kept == ()


@pytest.mark.slow
def test_what_several_replicas_add_at_once_adds_up(rollouts: Rollouts) -> None:
    made = shadow(rollouts)
    one: dict[str, Any] = {
        "": {"new": {"frames": 1, "ms": {"40": 1}}},
        "STEM-1": {"skipped": 2, "fault": "x"},
    }
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: rollouts.add(made.id, one), range(20)))
    assert rollouts.comparisons(made.id) == {
        "": {"new": {"frames": 20, "ms": {"40": 20}}},
        "STEM-1": {"skipped": 40, "fault": "x"},
    }


def test_sums_of_no_rollout_are_refused(rollouts: Rollouts) -> None:
    with pytest.raises(NotFound):
        rollouts.add(7, {"": {"skipped": 1}})


SUMS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=3)
NESTED = st.fixed_dictionaries({"new": SUMS, "base": SUMS})


@given(NESTED, NESTED, NESTED)
def test_sums_add_up_in_any_order(one: Any, two: Any, three: Any) -> None:
    assert added(added(one, two), three) == added(one, added(two, three))
    assert added(one, two) == added(two, one)

"""lifecycle.changes: one change of an ensemble at a time, whoever asks and whoever is killed.

Processes that promote at once, or are killed, are real ones.
"""

import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import update

from manybeam.db.deployment import open_database
from manybeam.db.tables import LockRow
from manybeam.errors import Conflict, DatabaseUnreachable, ZooUnreachable
from manybeam.zoo.lifecycle import changes, gates, life
from manybeam.zoo.lifecycle.life import promote, rollback
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

Members = Callable[[int], list[Any]]


@pytest.fixture(scope="module")
def three_versions(tiny_members: Members) -> Callable[[Zoo], None]:
    """Register `graphene` three times; none serves."""

    def register(zoo: Zoo) -> None:
        for _ in range(3):
            zoo.register("graphene", tiny_members(1), job={})

    return register


@pytest.fixture
def versions(zoo: Zoo, fill: Any, three_versions: Callable[[Zoo], None]) -> str:
    """An ensemble of three versions, none of which serves."""
    fill(zoo, three_versions)
    return "graphene"


def serving(zoo: Zoo, name: str) -> int:
    return zoo.resolve(name).version


def told(name: str) -> list[tuple[str, str]]:
    return [(one.action, one.subject.partition("@")[2]) for one in audit_log().entries(name)[::-1]]


@pytest.fixture
def embedded_versions(
    embedded: Zoo, tmp_path: Any, use_settings: Any, fill: Any, three_versions: Any
) -> tuple[Zoo, str]:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    fill(embedded, three_versions)
    return embedded, "graphene"


CHILD = """
import os, signal, sys
from manybeam.errors import ManybeamError
from manybeam.zoo.lifecycle import life
from manybeam.zoo.registry import Zoo

where, ref, who = sys.argv[1:]
waited = []
check_gates, set_alias = life.check_gates, Zoo.set_alias

def wait(what):
    print(what, flush=True)
    sys.stdin.readline()

def checked(*given):
    verdicts = check_gates(*given)
    if where == "checked":
        wait("checked")
    return verdicts

def moved(*given):
    if where == "killed before":
        os.kill(os.getpid(), signal.SIGKILL)
    if where == "slow" and not waited:
        waited.append("once")
        wait("moving")
    set_alias(*given)
    if where == "killed after":
        os.kill(os.getpid(), signal.SIGKILL)

life.check_gates, Zoo.set_alias = checked, moved
try:
    print("done", life.promote(Zoo(), ref, who=who).ref, flush=True)
except ManybeamError as error:
    print(type(error).__name__, error, flush=True)
"""


@contextmanager
def promoting(where: str, ref: str, who: str) -> Iterator[subprocess.Popen[str]]:
    """A process that promotes, and waits for a line, or dies, at one place of it."""
    argv = [sys.executable, "-c", CHILD, where, ref, who]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child


def heard(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def let_go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_of_two_who_promote_at_once_one_wins_and_the_other_is_told(zoo: Zoo, versions: str) -> None:
    promote(zoo, f"{versions}@1", who="ada")
    with (
        promoting("checked", f"{versions}@2", "bob") as bob,
        promoting("checked", f"{versions}@3", "cyd") as cyd,
    ):
        assert [heard(bob), heard(cyd)] == ["checked", "checked"]  # both saw version 1 serve
        let_go(bob)
        let_go(cyd)
        answers = {2: heard(bob), 3: heard(cyd)}
    won = [version for version, answer in answers.items() if answer.startswith("done")]
    assert won == [serving(zoo, versions)]
    lost = next(answer for answer in answers.values() if not answer.startswith("done"))
    assert lost.startswith("Conflict")
    assert told(versions)[2:] == [("promote asked", str(won[0])), ("promote done", str(won[0]))]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("where", "version", "outcome"),
    [
        pytest.param("killed before", 1, "promote dropped", id="before the alias moved"),
        pytest.param("killed after", 2, "promote done", id="after the alias moved"),
    ],
)
def test_a_promotion_killed_in_the_middle_is_closed_by_the_next_as_it_ended(
    zoo: Zoo, versions: str, where: str, version: int, outcome: str
) -> None:
    promote(zoo, f"{versions}@1", who="ada")
    with promoting(where, f"{versions}@2", "bob") as child:
        assert child.wait(120) == -signal.SIGKILL
    assert serving(zoo, versions) == version  # old or new
    done = promote(zoo, f"{versions}@3", who="cyd")
    assert done.previous == f"{versions}@{version}"
    assert told(versions)[2:] == [
        ("promote asked", "2"), (outcome, "2"), ("promote asked", "3"), ("promote done", "3"),
    ]  # fmt: skip
    assert rollback(zoo, versions, who="cyd").ref == f"{versions}@{version}"


def test_a_promotion_under_way_is_waited_for_and_one_too_slow_changes_nothing(
    zoo: Zoo, versions: str, lapse: Callable[[], None]
) -> None:
    promote(zoo, f"{versions}@1", who="ada")
    with promoting("slow", f"{versions}@2", "bob") as bob:
        assert heard(bob) == "moving"  # it has announced, and hangs before it moves the alias
        with pytest.raises(Conflict, match=f"bob holds the lock on ensemble {versions}"):
            promote(zoo, f"{versions}@3", who="cyd")
        lapse()  # as if it had been hanging for long
        promote(zoo, f"{versions}@3", who="cyd")
        let_go(bob)
        assert heard(bob).startswith("Conflict")
    assert serving(zoo, versions) == 3
    assert told(versions)[2:] == [
        ("promote asked", "2"), ("promote dropped", "2"),
        ("promote asked", "3"), ("promote done", "3"),
    ]  # fmt: skip


def test_a_lock_that_ends_soon_is_not_acted_upon(
    embedded_versions: tuple[Zoo, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, name = embedded_versions
    promote(zoo, f"{name}@1", who="ada")
    monkeypatch.setattr(changes, "_NEED_S", changes.LEASE_S + 1)
    with pytest.raises(Conflict, match="took longer than the lease"):
        promote(zoo, f"{name}@2", who="ada")
    assert serving(zoo, name) == 1
    assert told(name)[-1] == ("promote dropped", "2")


def test_an_alias_moved_beside_the_log_meanwhile_is_not_overwritten(
    embedded_versions: tuple[Zoo, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, name = embedded_versions
    promote(zoo, f"{name}@1", who="ada")

    def checked(*given: Any) -> Any:
        zoo.set_alias(name, "serving", 3)  # as a training job does
        return gates.check_gates(*given)

    monkeypatch.setattr(life, "check_gates", checked)
    with pytest.raises(Conflict, match="was moved meanwhile"):
        promote(zoo, f"{name}@2", who="bob")
    assert serving(zoo, name) == 3


def test_an_answer_of_mlflow_that_was_lost_leaves_the_next_to_look(
    embedded_versions: tuple[Zoo, str],
    monkeypatch: pytest.MonkeyPatch,
    lapse: Callable[[], None],
) -> None:
    zoo, name = embedded_versions
    promote(zoo, f"{name}@1", who="ada")
    set_alias = Zoo.set_alias

    def moved(*given: Any) -> Any:
        set_alias(*given)
        raise ZooUnreachable("no answer in time")

    with monkeypatch.context() as patched:
        patched.setattr(Zoo, "set_alias", moved)
        with pytest.raises(ZooUnreachable):
            promote(zoo, f"{name}@2", who="ada")
    assert told(name)[-1] == ("promote asked", "2")
    with pytest.raises(Conflict, match="not given back yet"):  # this process lives
        rollback(zoo, name, who="ada")
    lapse()
    assert rollback(zoo, name, who="ada").ref == f"{name}@1"
    assert told(name)[3] == ("promote done", "2")


@pytest.mark.faults
def test_a_database_that_dies_in_the_middle_leaves_the_alias_old_or_new(
    embedded_versions: tuple[Zoo, str],
    monkeypatch: pytest.MonkeyPatch,
    frail_facility: Any,
    use_settings: Any,
    lapse: Callable[[], None],
) -> None:
    zoo, name = embedded_versions
    url = frail_facility.settings()["MANYBEAM_DATABASE_URL"]
    use_settings({"MANYBEAM_DATABASE_URL": f"{url}?options=-csearch_path%3Dt{uuid.uuid4().hex}"})
    promote(zoo, f"{name}@1", who="ada")
    set_alias = Zoo.set_alias

    def moved(*given: Any) -> Any:
        record = set_alias(*given)
        frail_facility.stop("postgres")
        return record

    monkeypatch.setattr(Zoo, "set_alias", moved)
    with pytest.raises(DatabaseUnreachable):
        promote(zoo, f"{name}@2", who="ada")  # announced and moved, not closed
    monkeypatch.setattr(Zoo, "set_alias", set_alias)
    assert serving(zoo, name) == 2
    with pytest.raises(DatabaseUnreachable):
        promote(zoo, f"{name}@3", who="ada")  # nothing is changed that cannot be recorded
    assert serving(zoo, name) == 2
    frail_facility.mend()
    lapse()  # this process lives, so its lock is waited for
    promote(zoo, f"{name}@3", who="ada")
    assert told(name)[2:4] == [("promote asked", "2"), ("promote done", "2")]


def test_of_two_machines_of_one_name_neither_closes_the_others_promotion(
    embedded_versions: tuple[Zoo, str], lapse: Callable[[], None]
) -> None:
    zoo, name = embedded_versions
    with promoting("slow", f"{name}@2", "bob") as bob:
        assert heard(bob) == "moving"
        with open_database().writing() as connection:  # as written by a host of the same name
            connection.execute(update(LockRow).values(machine="another boot"))
        bob.kill()
        bob.wait(10)
        with pytest.raises(Conflict, match=f"bob holds the lock on ensemble {name}"):
            promote(zoo, f"{name}@3", who="cyd")
        lapse()
        promote(zoo, f"{name}@3", who="cyd")
    assert ("promote dropped", "2") in told(name)

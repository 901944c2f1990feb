"""db.locks: one holder at a time, leases by the database's clock, and holders that die.

Processes that hold a lock and are killed are real ones.
"""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from manybeam.db.database import Database, now
from manybeam.db.locks import Lock, Locks
from manybeam.db.tables import LockRow
from manybeam.errors import Conflict

NAME = "ensemble graphene"


@pytest.fixture
def locks(database: Database) -> Locks:
    return Locks(database)


def take(locks: Locks, who: str = "ada", lease_s: float = 30.0) -> Lock:
    return locks.take(NAME, who=who, purpose="promote of graphene@3", lease_s=lease_s)


def lapse(database: Database) -> None:
    """Let every lease end, as time does."""
    with database.writing() as connection:
        over = now(connection) - timedelta(seconds=1)
        connection.execute(update(LockRow).values(expires=over))


def test_a_lock_that_is_held_is_refused_and_its_holder_named(locks: Locks) -> None:
    take(locks)
    with pytest.raises(Conflict, match="ada holds the lock on ensemble graphene: ") as refused:
        take(locks, "bob")
    assert refused.value.why == "taken 0 s ago, not given back yet"
    assert refused.value.hint.startswith("wait 30 s")


def test_a_lock_given_back_is_free(locks: Locks) -> None:
    take(locks).release()
    assert locks.holder(NAME) is None
    assert take(locks, "bob").fence == 2


def test_different_names_do_not_wait_for_each_other(locks: Locks) -> None:
    take(locks)
    assert locks.take("ensemble mos2", who="bob", purpose="x", lease_s=9.0).fence == 1


def test_a_block_holds_a_lock_and_gives_it_back_however_it_ends(locks: Locks) -> None:
    def fail() -> None:
        with locks.holding(NAME, who="ada", purpose="x", lease_s=30.0) as lock:
            lock.check()
            assert locks.holder(NAME) is not None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert locks.holder(NAME) is None


def test_who_holds_it_is_told(locks: Locks) -> None:
    lock = take(locks)
    held = locks.holder(NAME)
    assert held is not None
    assert (held.who, held.purpose, held.fence) == ("ada", "promote of graphene@3", lock.fence)
    assert 0 <= held.age_s < 10
    assert 20 < held.left_s <= 30
    assert not held.is_over


def test_a_lease_that_is_over_lets_the_next_in_and_the_first_finds_out(
    database: Database, locks: Locks
) -> None:
    first = take(locks)
    lapse(database)
    second = take(locks, "bob")
    assert second.fence == first.fence + 1
    with pytest.raises(Conflict, match="not held any more"):
        first.check()
    with pytest.raises(Conflict, match="not held any more"):
        first.renew()
    first.release()
    second.check()  # what a late holder gives back is not what another holds


def test_a_lease_that_is_renewed_goes_on(database: Database, locks: Locks) -> None:
    lock = take(locks)
    lapse(database)
    lock.renew()  # nobody came meanwhile
    lock.check()
    with pytest.raises(Conflict):
        take(locks, "bob")


def test_a_lease_that_ends_soon_is_not_enough_for_long_work(locks: Locks) -> None:
    lock = take(locks, lease_s=5.0)
    lock.check(need_s=2.0)
    with pytest.raises(Conflict, match="not held any more"):
        lock.check(need_s=20.0)


def test_of_many_who_ask_at_once_one_gets_it(database: Database) -> None:
    def asked(number: int) -> bool:
        try:
            take(Locks(database), f"w{number}")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(asked, range(8))) == 1


CHILD = """
import sys
from manybeam.db.deployment import open_database
from manybeam.db.locks import Locks
Locks(open_database(sys.argv[1])).take(sys.argv[2], who="bob", purpose="x", lease_s=600.0)
print("taken", flush=True)
sys.stdin.readline()
"""


def holding(database_url: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", CHILD, database_url, NAME]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "taken\n"
    return child


def test_a_holder_that_is_killed_lets_the_next_in_at_once(locks: Locks, database_url: str) -> None:
    with holding(database_url) as child:
        with pytest.raises(Conflict, match="bob holds"):
            take(locks)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert take(locks).fence == 2


def test_a_holder_of_another_machine_of_the_same_name_is_waited_for(
    database: Database, locks: Locks, database_url: str
) -> None:
    with holding(database_url) as child:
        with database.writing() as connection:
            connection.execute(update(LockRow).values(machine="another boot"))
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        with pytest.raises(Conflict, match="bob holds"):
            take(locks)
        lapse(database)
        assert take(locks).fence == 2


def test_a_lock_that_could_not_be_given_back_is_free_for_this_process(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = take(locks)
    with monkeypatch.context() as patched:
        patched.setattr(Lock, "_set", _no_answer)
        lock.release()
    assert take(locks, "bob").fence == 2


def _no_answer(*_: Any, **__: Any) -> None:
    from manybeam.errors import DatabaseUnreachable

    raise DatabaseUnreachable("no answer")

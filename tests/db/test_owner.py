"""db.owner: which process holds something, and whether it is gone."""

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from manybeam.db.owner import Owner, login, process_name, since_boot_s, whoami


@pytest.fixture
def ended() -> int:
    """The number of a process that ended."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    return child.pid


def test_an_owner_is_at_work_until_it_ends() -> None:
    one, other = Owner.new(), Owner.new()
    one.end()
    assert (one.is_gone(), other.is_gone()) == (True, False)
    other.end()


def test_a_process_of_this_machine_that_ended_is_gone(ended: int) -> None:
    assert replace(Owner.new(), pid=ended).is_gone()


def test_a_process_that_runs_is_not_gone() -> None:
    parent = os.getppid()
    assert not replace(Owner.new(), pid=parent, started=since_boot_s(parent)).is_gone()


def test_a_process_number_that_is_used_again_is_not_its_first_owner() -> None:
    parent = os.getppid()
    assert replace(Owner.new(), pid=parent, started=since_boot_s(parent) - 60).is_gone()


def test_a_clock_that_is_set_ends_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getppid()
    owner = replace(Owner.new(), pid=parent, started=since_boot_s(parent))
    born, boot = psutil.Process(parent).create_time(), psutil.boot_time()
    # A clock that is set moves the boot, from which Linux tells when processes were born.
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot + 3600)
    assert psutil.Process(parent).create_time() == pytest.approx(born + 3600)
    assert not owner.is_gone()


def test_of_another_machine_nothing_is_known_even_if_it_has_our_name(ended: int) -> None:
    assert not replace(Owner.new(), machine="another boot", pid=ended).is_gone()


def test_people_read_names_and_hosts() -> None:
    host = process_name().rpartition(" ")[0]
    assert whoami() == f"{login()}@{host}"
    assert process_name() == f"{host} {os.getpid()}"


@pytest.mark.parametrize("name", ["LOGNAME", "USER", "LNAME", "USERNAME"])
def test_a_login_is_not_what_somebody_wrote_into_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = login()
    monkeypatch.setenv(name, "somebody-else")
    assert login() == before

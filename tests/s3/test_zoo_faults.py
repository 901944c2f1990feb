"""The zoo when what it stands on fails: killed, frozen, of another version, or migrated halfway.

Servers and databases are real and really killed; whatever happens, a version is there whole or
not at all.
"""

import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from manybeam.errors import Conflict, ManybeamError, Unreachable, ZooUnreachable
from manybeam.zoo.backend.tracking import Tracking
from manybeam.zoo.integrity.verify import verify
from manybeam.zoo.lifecycle.life import promote
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

JOB = {"kind": "train"}
ROWS = [Score(ENSEMBLE, "dim", "d" * 32, {"f1": 0.9}, counts=((9, 1, 1),))]
Fault = Callable[[], None]


@pytest.fixture
def own_facility(
    frail_facility: Any, use_settings: Callable[[dict[str, str]], None], tmp_path: Path
) -> Any:
    """Services that these tests may kill, with the settings pointing at them."""
    use_settings({**frail_facility.settings(), "MANYBEAM_HOME": str(tmp_path)})
    return frail_facility


def zoo_at(services: Any, folder: Path) -> Zoo:
    return Zoo(services.settings()["MANYBEAM_TRACKING_URI"], "", folder / "cache")


def at_call(patch: pytest.MonkeyPatch, method: str, fault: Fault) -> None:
    """Let a fault happen once, just before the first call of a method of Tracking."""
    real, done = getattr(Tracking, method), []

    def call(self: Tracking, *args: Any, **kwargs: Any) -> Any:
        if not done:
            done.append(True)
            fault()
        return real(self, *args, **kwargs)

    patch.setattr(Tracking, method, call)


def kill_database(services: Any) -> None:
    """Kill PostgreSQL and every process of it, as a power cut does."""
    import psutil

    leader = psutil.Process(services.pid("postgres"))
    for process in [*leader.children(recursive=True), leader]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    leader.wait(10)


@pytest.mark.faults
def test_a_registration_whose_database_is_killed_leaves_a_version_whole_or_none(
    own_facility: Any, tiny_members: Any, tmp_path: Path, name: str
) -> None:
    zoo = zoo_at(own_facility, tmp_path)
    zoo.register(name, tiny_members(1), job=JOB, scores=ROWS)
    for method in ("add_model", "log_scores", "end_run", "add_version", "set_alias"):
        before = {record.ref for record in zoo.ls(name)}
        with pytest.MonkeyPatch.context() as patch:
            at_call(patch, method, lambda: kill_database(own_facility))
            with pytest.raises(Unreachable):
                zoo.register(name, tiny_members(2), job=JOB, scores=ROWS, alias="serving")
        own_facility.mend()
        after = {record.ref for record in zoo.ls(name)}
        # Only where the version was there before its alias was set may it be seen.
        assert len(after - before) == (1 if method == "set_alias" else 0)
        for ref in after:
            assert all(check.is_whole for check in verify(zoo, ref))
    record = zoo.register(name, tiny_members(2), job=JOB, scores=ROWS, alias="serving")
    assert zoo.resolve(name).ref == record.ref


@pytest.mark.faults
def test_a_registration_whose_object_store_is_killed_leaves_no_version(
    own_facility: Any, tiny_members: Any, tmp_path: Path, name: str
) -> None:
    zoo = zoo_at(own_facility, tmp_path)
    zoo.register(name, tiny_members(1), job=JOB)
    pid = own_facility.pid("seaweedfs")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "add_model", lambda: os.kill(pid, signal.SIGKILL))
        with pytest.raises(ManybeamError):
            zoo.register(name, tiny_members(2), job=JOB)
    assert [record.version for record in zoo.ls(name)] == [1]
    own_facility.mend()
    zoo.register(name, tiny_members(2), job=JOB)
    assert len(zoo.members(f"{name}@2")) == 2


@pytest.mark.faults
def test_a_promotion_whose_database_is_killed_leaves_the_alias_where_it_was(
    own_facility: Any,
    tiny_members: Any,
    tmp_path: Path,
    name: str,
    lapse: Callable[[], None],
) -> None:
    zoo = zoo_at(own_facility, tmp_path)
    for _ in range(2):
        zoo.register(name, tiny_members(1), job=JOB, scores=ROWS)
    promote(zoo, f"{name}@1", who="test")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "set_alias", lambda: kill_database(own_facility))
        with pytest.raises(Unreachable):
            promote(zoo, f"{name}@2", who="test")
    own_facility.mend()
    assert zoo.resolve(name).version == 1
    # Whoever lost the answer may still be heard, so the next one is told to wait.
    with pytest.raises(Conflict, match="not given back yet"):
        promote(zoo, f"{name}@2", who="test")
    lapse()
    promote(zoo, f"{name}@2", who="test")
    assert zoo.resolve(name).version == 2
    actions = [one.action for one in audit_log().entries(name)]
    assert actions.count("promote dropped") == 1
    assert actions.count("promote done") == 2


# -- another MLflow -----------------------------------------------------------------------------
def _of_another_version(database: sqlite3.Connection) -> None:
    database.execute("update alembic_version set version_num = 'ffffffffffff'")


def _begun(database: sqlite3.Connection) -> None:
    database.execute("delete from alembic_version")


def _half_done(database: sqlite3.Connection) -> None:
    database.execute("drop table logged_models")


@pytest.mark.parametrize("damage", [_of_another_version, _begun, _half_done])
def test_a_database_that_is_not_this_mlflows_is_told_and_left_as_it_is(
    damage: Callable[[sqlite3.Connection], None],
    empty_database: Path,
    tiny_members: Any,
    tmp_path: Path,
) -> None:
    path = tmp_path / "zoo.db"
    shutil.copy(empty_database, path)
    with closing(sqlite3.connect(path)) as database:
        damage(database)
        database.commit()
        before = sorted(database.execute("select name from sqlite_master").fetchall())
    zoo = Zoo(f"sqlite:///{path}", (tmp_path / "weights").as_uri(), tmp_path / "cache")
    with pytest.raises(ZooUnreachable, match="mlflow db upgrade"):
        zoo.register("graphene", tiny_members(1), job=JOB)
    with closing(sqlite3.connect(path)) as database:
        assert sorted(database.execute("select name from sqlite_master").fetchall()) == before


class _Other(BaseHTTPRequestHandler):
    """A web server that is no MLflow."""

    def do_GET(self) -> None:
        content = b"<html>Nothing here</html>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def test_a_server_that_is_no_mlflow_is_told(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ZooUnreachable, match="no MLflow server"):
                Zoo(f"http://127.0.0.1:{server.server_port}", "", tmp_path).ls()
        finally:
            server.shutdown()
            thread.join()

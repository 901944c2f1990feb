"""zoo.collect: what nobody can name goes, whatever a version, alias or lineage needs stays."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from manybeam.data.store import open_store
from manybeam.db.audit import AuditLog
from manybeam.errors import Conflict, Corrupt, InvalidInput, ManybeamError, UnknownRef
from manybeam.zoo.backend.tracking import Tracking
from manybeam.zoo.lifecycle import changes, collect
from manybeam.zoo.lifecycle.collect import KEPT, REMOVABLE, REMOVED, CollectItem
from manybeam.zoo.lifecycle.life import archive, promote, unarchive
from manybeam.zoo.lifecycle.orphans import Orphans
from manybeam.zoo.lineage import lineage, note_prediction
from manybeam.zoo.matrix import ENSEMBLE, FrameSetUse, Score, TestSet
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

Members = Callable[[int], list[Any]]
TOMORROW = timedelta(hours=25)
RECORDED = TestSet(frame_sets=(FrameSetUse("s3://lab/frames/a", "1" * 32),))


def collected(zoo: Zoo, name: str, **more: Any) -> list[CollectItem]:
    """Collect as if it were tomorrow, and return what concerns one ensemble."""
    now = datetime.now(UTC) + TOMORROW
    found = collect.collect(zoo, who="ada", now=now, **more)
    return [one for one in found if one.name == name]


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("frail_facility", marks=pytest.mark.needs("frail_facility"), id="server"),
    ]
)
def zoo(request: pytest.FixtureRequest, zoo_on: Callable[[str], Zoo]) -> Zoo:
    """An empty zoo, on servers that may be killed."""
    return zoo_on(request.param)


class Cut(BaseException):
    """What stops a registration half way."""


def stopped(*_: Any) -> Any:
    raise Cut


@pytest.fixture
def cut_off(zoo: Zoo, fill: Any, tiny_members: Members, monkeypatch: pytest.MonkeyPatch) -> str:
    """An ensemble with one version, and a registration that was stopped before the second."""

    def register(zoo: Zoo) -> None:
        zoo.register("graphene", tiny_members(2), job={}, alias="serving")
        with monkeypatch.context() as patched:
            patched.setattr(Tracking, "add_version", stopped)
            with pytest.raises(Cut):
                zoo.register("graphene", tiny_members(3), job={})

    fill(zoo, register)
    return "graphene"


# -- registrations that were cut off --------------------------------------------------------------
def test_a_registration_that_was_cut_off_is_listed_and_removed_only_when_asked(
    zoo: Zoo, cut_off: str
) -> None:
    (first,) = collected(zoo, cut_off)
    assert (first.state, first.models, first.is_version) == (REMOVABLE, 4, False)
    assert [one.state for one in collected(zoo, cut_off, remove=True)] == [REMOVED]
    assert collected(zoo, cut_off) == []
    assert len(zoo.members(f"{cut_off}@1")) == 2


def files_of(zoo: Zoo, model_ids: tuple[str, ...]) -> int:
    """How many files of some LoggedModels lie in the artifact store, past MLflow."""
    tracking = zoo.tracking
    # The bucket of `infra/services.py`.
    store = open_store("s3://mlflow/artifacts" if tracking.is_server else tracking.artifacts)
    return sum(model_id in key.split("/") for key in store.list() for model_id in model_ids)


def test_what_is_removed_is_gone_from_the_artifact_store(zoo: Zoo, cut_off: str) -> None:
    (orphan,) = [one for one in Orphans(zoo.tracking).find() if one.name == cut_off]
    kept = zoo.resolve(f"{cut_off}@1")
    models = (kept.model_id, *(one.model_id for one in kept.members))
    assert (files_of(zoo, orphan.model_ids), files_of(zoo, models)) == (8, 6)
    collected(zoo, cut_off, remove=True)
    assert (files_of(zoo, orphan.model_ids), files_of(zoo, models)) == (0, 6)


def test_a_registration_of_today_is_left_alone(zoo: Zoo, cut_off: str) -> None:
    found = collect.collect(zoo, who="ada", remove=True)
    assert cut_off not in {one.name for one in found}
    assert len(collected(zoo, cut_off)) == 1


def test_a_registration_that_slept_through_its_collection_fails_and_leaves_nothing(
    zoo: Zoo, name: str, tiny_members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_run = Tracking.end_run

    def ended(tracking: Tracking, run_id: str) -> None:
        monkeypatch.setattr(Tracking, "end_run", end_run)
        assert [one.state for one in collected(zoo, name, remove=True)] == [REMOVED]
        end_run(tracking, run_id)

    monkeypatch.setattr(Tracking, "end_run", ended)
    with pytest.raises(ManybeamError):
        zoo.register(name, tiny_members(1), job={}, alias="serving")
    with pytest.raises(UnknownRef):
        zoo.resolve(f"{name}@1")
    assert collected(zoo, name) == []


def test_a_collection_stopped_half_way_is_finished_by_the_next(
    zoo: Zoo, cut_off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_model = Orphans.remove_model

    def removed_one(self: Any, model_id: str) -> None:
        remove_model(self, model_id)
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(Orphans, "remove_model", removed_one)
        with pytest.raises(Cut):
            collected(zoo, cut_off, remove=True)
    assert [one.models for one in collected(zoo, cut_off, remove=True)] == [3]
    assert collected(zoo, cut_off) == []


def test_every_removal_is_in_the_audit_log(zoo: Zoo, cut_off: str) -> None:
    collected(zoo, cut_off, remove=True, reason="disk is full")
    (entry,) = audit_log().entries(cut_off)
    assert (entry.action, entry.who, entry.reason) == ("files removed", "ada", "disk is full")
    assert len(entry.details["models"]) == 4


def test_scores_and_attachments_of_a_version_stay(
    zoo: Zoo, name: str, tiny_members: Members
) -> None:
    zoo.register(name, tiny_members(1), job={})
    zoo.record_scores(f"{name}@1", [Score(ENSEMBLE, "low", "d", {"f1": 0.5}, test_set=RECORDED)])
    zoo.attach(f"{name}@1", "notes", b"kept", {})
    assert collected(zoo, name, remove=True) == []
    shutil.rmtree(zoo._cache.folder)  # what this machine keeps does not count
    assert zoo.attached(f"{name}@1", "notes") == b"kept"
    assert zoo.matrix(f"{name}@1").value(ENSEMBLE, "low") == 0.5
    assert lineage(zoo, f"{name}@1").measured == RECORDED.frame_sets


def test_the_log_says_which_frames_a_version_that_is_gone_was_trained_and_measured_on(
    zoo: Zoo, name: str, tiny_members: Members
) -> None:
    (use,) = RECORDED.frame_sets
    score = Score(ENSEMBLE, "low", "d", {"f1": 0.5}, test_set=RECORDED)
    zoo.register(name, tiny_members(1), job={}, inputs=[use], scores=[score])
    archive(zoo, f"{name}@1", who="ada")
    (found,) = collected(zoo, name, remove=True, archived_for=timedelta(0))
    assert found.state == REMOVED
    (told,) = [
        one.details for one in audit_log().entries(name) if one.action.startswith("collect asked")
    ]
    assert told["trained_on"] == told["measured_on"] == [f"{use.digest} {use.url}"]


# -- archived versions ----------------------------------------------------------------------------
@pytest.fixture
def two(zoo: Zoo, fill: Any, tiny_members: Members) -> str:
    """An ensemble whose second version serves and whose first is archived."""

    def register(zoo: Zoo) -> None:
        zoo.register("graphene", tiny_members(2), job={})
        zoo.register("graphene", tiny_members(1), job={}, alias="serving")

    fill(zoo, register)
    archive(zoo, "graphene@1", who="ada")
    return "graphene"


def test_an_archived_version_stays_unless_asked_for_and_long_enough(zoo: Zoo, two: str) -> None:
    assert collected(zoo, two, remove=True) == []
    assert collected(zoo, two, remove=True, archived_for=timedelta(days=2)) == []
    assert zoo.resolve(f"{two}@1").archived is not None


def test_an_archived_version_that_nothing_needs_goes_with_all_its_files(zoo: Zoo, two: str) -> None:
    record = zoo.resolve(f"{two}@1")
    models = (record.model_id, *(one.model_id for one in record.members))
    assert files_of(zoo, models) == 6
    (found,) = collected(zoo, two, remove=True, archived_for=timedelta(0))
    assert (found.what, found.state, found.models) == (f"{two}@1", REMOVED, 3)
    assert [one.version for one in zoo.ls(two)] == [2]
    assert collected(zoo, two) == []
    assert files_of(zoo, models) == 0
    assert [one.action for one in audit_log().entries(two)[:3]] == [
        "files removed", "collect done", "collect asked",
    ]  # fmt: skip


def test_a_number_that_was_removed_is_never_given_again(
    zoo: Zoo, two: str, tiny_members: Members
) -> None:
    collected(zoo, two, remove=True, archived_for=timedelta(0))
    assert zoo.register(two, tiny_members(1), job={}).version == 3


def by_parent(zoo: Zoo, name: str, members: list[Any]) -> None:
    zoo.register(f"{name}-adapted", members, job={}, parent=f"{name}@1")


def by_job(zoo: Zoo, name: str, members: list[Any]) -> None:
    zoo.register(f"{name}-other", members, job={"kind": "iterate", "ensemble": f"{name}@1"})


def by_member(zoo: Zoo, name: str, members: list[Any]) -> None:
    import dataclasses

    adapted = [dataclasses.replace(one, parent=f"{name}@1/00") for one in members]
    zoo.register(f"{name}-adapted", adapted, job={})


def by_answers(zoo: Zoo, name: str, members: list[Any]) -> None:
    del zoo, members
    note_prediction(f"{name}@1", "s3://lab/answers.zarr")


def by_alias(zoo: Zoo, name: str, members: list[Any]) -> None:
    del members
    zoo.set_alias(name, "candidate", 1)  # beside the log, which would refuse it


@pytest.mark.parametrize(
    ("need", "why"),
    [
        pytest.param(by_parent, "another version was adapted from it", id="a child"),
        pytest.param(by_member, "another version was adapted from it", id="a child's member"),
        pytest.param(by_job, "another version was adapted from it", id="a job"),
        pytest.param(
            by_answers, "its predictions are recorded, such as s3://lab/answers.zarr", id="answers"
        ),
        pytest.param(by_alias, "it is candidate", id="an alias"),
    ],
)
def test_an_archived_version_that_is_needed_stays(
    zoo: Zoo, two: str, tiny_members: Members, need: Callable[..., None], why: str
) -> None:
    need(zoo, two, tiny_members(1))
    (found,) = collected(zoo, two, remove=True, archived_for=timedelta(0))
    assert (found.state, found.why) == (KEPT, why)
    assert len(zoo.members(f"{two}@1")) == 2


def test_the_version_a_rollback_would_go_to_stays(
    zoo: Zoo, name: str, tiny_members: Members
) -> None:
    for version in (1, 2):
        zoo.register(name, tiny_members(1), job={})
        promote(zoo, f"{name}@{version}", who="ada")
    archive(zoo, f"{name}@1", who="ada")
    (found,) = collected(zoo, name, remove=True, archived_for=timedelta(0))
    assert (found.state, found.why) == (KEPT, "a rollback would go to it")


def test_a_manifest_that_cannot_be_read_stops_the_collection(
    embedded: Zoo, tmp_path: Path, use_settings: Any, tiny_members: Members
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    record = embedded.register("graphene", tiny_members(1), job={})
    shutil.rmtree(next(tmp_path.rglob(f"*{record.model_id}")))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(Corrupt):
        collected(embedded, "graphene", remove=True)


def test_an_empty_zoo_has_nothing_to_collect(
    embedded: Zoo, tmp_path: Path, use_settings: Any
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    found = collect.collect(embedded, who="ada", archived_for=timedelta(0), remove=True)
    assert (found, audit_log().head()) == ([], 0)


@pytest.mark.parametrize(
    "times",
    [
        pytest.param({"grace": timedelta(minutes=59)}, id="a grace below an hour"),
        pytest.param({"archived_for": timedelta(days=-1)}, id="archived in the future"),
        pytest.param({"archived_for": timedelta.max}, id="archived before our calendar"),
        pytest.param({"grace": timedelta(days=36_501)}, id="a grace of more than a century"),
    ],
)
def test_times_that_make_no_sense_are_refused(embedded: Zoo, times: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        collect.collect(embedded, who="ada", **times)


# -- a promotion of what is being removed ---------------------------------------------------------
CHILD = """
import os, signal, sys
from datetime import timedelta
from manybeam.zoo.lifecycle.collect import collect
from manybeam.zoo.lifecycle.orphans import Orphans
from manybeam.zoo.registry import Zoo

where, name = sys.argv[1:]
remove_version = Orphans.remove_version

def removed(orphans, ensemble, version):
    if ensemble != name:  # another test left it in the zoo they share
        return remove_version(orphans, ensemble, version)
    if where == "killed before":
        os.kill(os.getpid(), signal.SIGKILL)
    if where == "slow":
        print("removing", flush=True)
        sys.stdin.readline()
    remove_version(orphans, ensemble, version)
    if where == "killed after":
        os.kill(os.getpid(), signal.SIGKILL)

Orphans.remove_version = removed
found = collect(Zoo(), who="bob", archived_for=timedelta(0), remove=True)
print([one.state for one in found if one.name == name], flush=True)
"""


def collecting(where: str, name: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", CHILD, where, name]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_a_promotion_and_a_collection_at_once_the_second_is_told(zoo: Zoo, two: str) -> None:
    with collecting("slow", two) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "removing\n"
        with pytest.raises(Conflict, match=f"bob holds the lock on ensemble {two}: collect asked"):
            unarchive(zoo, f"{two}@1", who="ada")
        with pytest.raises(Conflict, match="bob holds the lock"):
            promote(zoo, f"{two}@1", who="ada", force=True, reason="now")
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "['removed']\n"
    assert [one.version for one in zoo.ls(two)] == [2]
    assert zoo.resolve(two).version == 2


def test_a_version_taken_up_while_a_collection_looks_is_kept(
    zoo: Zoo, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled_state = changes.settled_state

    def seen(zoo: Zoo, log: AuditLog, ensemble: str) -> Any:
        found = settled_state(zoo, log, ensemble)
        if ensemble != two:  # another test left it in the zoo they share
            return found
        monkeypatch.setattr(collect, "settled_state", settled_state)
        unarchive(zoo, f"{two}@1", who="bob")
        promote(zoo, f"{two}@1", who="bob")
        return found

    monkeypatch.setattr(collect, "settled_state", seen)
    (found,) = collected(zoo, two, remove=True, archived_for=timedelta(0))
    assert found.state == KEPT
    assert "bob came first with" in found.why
    assert (zoo.resolve(two).version, len(zoo.members(two))) == (1, 2)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("where", "left", "outcome"),
    [
        pytest.param(
            "killed before", [2, 1], "collect dropped", id="before the version is removed"
        ),
        pytest.param("killed after", [2], "collect done", id="after the version is removed"),
    ],
)
def test_a_collection_killed_in_the_middle_is_finished_by_the_next(
    zoo: Zoo, two: str, where: str, left: list[int], outcome: str
) -> None:
    with collecting(where, two) as child:
        assert child.wait(120) == -signal.SIGKILL
    assert [one.version for one in zoo.ls(two)] == left
    archive(zoo, f"{two}@1", who="ada") if 1 in left else promote(zoo, f"{two}@2", who="ada")
    assert audit_log().entries(two)[0].action == outcome
    assert REMOVED in {
        one.state for one in collected(zoo, two, remove=True, archived_for=timedelta(0))
    }
    assert [one.version for one in zoo.ls(two)] == [2]
    assert collected(zoo, two) == []

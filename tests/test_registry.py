"""zoo.registry: an ensemble is kept whole or not at all, and comes back as it was given.

Each test that takes `zoo` runs on the embedded zoo (SQLite and a folder) and on a real MLflow
server with PostgreSQL and an S3 store.
"""

import dataclasses
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manybeam.errors import (
    Corrupt,
    InvalidInput,
    InvalidSetting,
    ManybeamError,
    MemberCountError,
    MemberDiverged,
    UnknownRef,
    ZooUnreachable,
)
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.spec.recipe import MemberPlan, Network, Recipe
from manybeam.zoo.backend import tracking
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Score
from manybeam.zoo.registry import Zoo

JOB = {"kind": "train", "name": "graphene", "seed": 3}
KEYS = ("f1", "f1_low", "f1_high", "precision", "recall", "rmse_pm", "ece", "frames")


def member_of(index: int, seed: int | None = None, **changes: Any) -> Member:
    """A member with drawn weights: what it learned does not matter to the registry."""
    seed = 100 + index if seed is None else seed
    recipe = Recipe(
        id="tiny",
        network=Network(filters=2, levels=1),
        members=(MemberPlan(seed=seed, policy="broad"),),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = {k: v.detach().clone() for k, v in build(recipe.network).state_dict().items()}
    member = Member(index, seed, "broad", recipe, weights, (0.7, 0.25), 1.5, "d" * 32)
    return dataclasses.replace(member, **changes)


def score_of(member: int, condition: str, **values: float) -> Score:
    return Score(member, condition, condition.ljust(32, "0"), values)


# -- what is kept -------------------------------------------------------------------------------
def test_a_registered_ensemble_comes_back_as_it_was_given(zoo: Zoo, name: str) -> None:
    given = [member_of(0), member_of(1, parent="old@1/01"), member_of(4)]
    zoo.register(name, given, job=JOB)
    for before, after in zip(given, zoo.members(f"{name}@1"), strict=True):
        assert dataclasses.replace(after, weights={}) == dataclasses.replace(before, weights={})
        assert before.weights.keys() == after.weights.keys()
        assert all(torch.equal(before.weights[key], after.weights[key]) for key in before.weights)


def test_an_ensemble_from_the_zoo_answers_as_the_one_that_was_trained(zoo: Zoo, name: str) -> None:
    given = [member_of(0), member_of(1)]
    zoo.register(name, given, job=JOB)
    frame = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    expected = Ensemble(given, graphs=Graphs.here()).predict(frame, None)
    found = zoo.ensemble(f"{name}@1").predict(frame, None)
    np.testing.assert_array_equal(found.mean_yx, expected.mean_yx)


def test_a_record_says_what_is_needed_to_train_a_member_again(zoo: Zoo, name: str) -> None:
    record = zoo.register(name, [member_of(2)], job=JOB, failed=["03: diverged"], parent="old@4")
    member = record.member(2)
    assert (member.seed, member.policy, member.recipe) == (102, "broad", "tiny@1")
    assert (member.data_digest, member.final_loss) == ("d" * 32, 0.25)
    assert (record.job, record.failed, record.parent) == (JOB, ("03: diverged",), "old@4")


def test_a_second_registration_is_the_next_version(zoo: Zoo, name: str) -> None:
    zoo.register(name, [member_of(0)], job=JOB, alias="serving")
    second = zoo.register(name, [member_of(0), member_of(1)], job=JOB, alias="candidate")
    assert second.ref == f"{name}@2"
    assert [(r.version, r.aliases, r.member_count) for r in zoo.ls(name)] == [
        (2, ("candidate",), 2), (1, ("serving",), 1),
    ]  # fmt: skip


def test_nothing_is_printed(zoo: Zoo, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    zoo.register(name, [member_of(0)], job=JOB, scores=[score_of(0, "nominal", f1=0.5)])
    zoo.members(f"{name}@1")
    assert capfd.readouterr() == ("", "")


def test_weights_are_kept_as_safetensors_and_json_only(
    embedded: Zoo, name: str, tmp_path: Path
) -> None:
    embedded.register(name, [member_of(0)], job=JOB)
    kept = {path.suffix for path in (tmp_path / "weights").rglob("*") if path.is_file()}
    assert kept == {".safetensors", ".json"}


# -- references ---------------------------------------------------------------------------------
@pytest.fixture
def versions(zoo: Zoo, fill: Any) -> str:
    """An ensemble with two versions: 1 is serving, 2 is the candidate."""
    fill(zoo, two_versions)
    return "graphene"


def two_versions(zoo: Zoo) -> None:
    failed, both = ["01: NaN"], [member_of(0), member_of(7)]
    zoo.register("graphene", [member_of(0)], job=JOB, alias="serving")
    zoo.register("graphene", both, job=JOB, alias="candidate", failed=failed)


@pytest.mark.parametrize(
    ("suffix", "version", "members"),
    [
        pytest.param("", 1, [0], id="a name alone is the serving version"),
        pytest.param("@serving", 1, [0], id="serving"),
        pytest.param("@candidate", 2, [0, 7], id="candidate"),
        pytest.param("@2", 2, [0, 7], id="version"),
        pytest.param("@2/07", 2, [7], id="member"),
    ],
)
def test_a_reference_means_a_version_and_members(
    zoo: Zoo, versions: str, suffix: str, version: int, members: list[int]
) -> None:
    record = zoo.resolve(versions + suffix)
    assert record.version == version
    assert [member.index for member in record.members] == members


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda name: name[:-1], "nearest: {name}", id="a slip of the finger"),
        pytest.param(lambda _: "wholly-other", "manybeam zoo ls lists all", id="not close"),
        pytest.param(lambda name: f"{name}@9", "versions: 2@candidate, 1@serving", id="version"),
        pytest.param(lambda name: f"{name}@2/01", "members: 00, 07; failed: 01: NaN", id="member"),
        pytest.param(lambda name: f"{name}@latest", "nearest: {name}@2", id="alias"),
        pytest.param(lambda name: f"{name} 2", "allowed: name, name@serving", id="form"),
    ],
)
def test_an_unknown_reference_is_told_with_what_is_near(
    zoo: Zoo, versions: str, change: Callable[[str], str], told: str
) -> None:
    with pytest.raises(UnknownRef) as caught:
        zoo.resolve(change(versions))
    assert told.format(name=versions) in str(caught.value)


def test_an_empty_zoo_knows_no_reference(embedded: Zoo) -> None:
    with pytest.raises(UnknownRef, match="the zoo is empty: "):
        embedded.resolve("graphene")
    assert embedded.ls() == []


def test_an_alias_moves_to_the_version_it_is_given(zoo: Zoo, versions: str) -> None:
    assert zoo.set_alias(versions, "serving", 2).aliases == ("candidate", "serving")
    assert zoo.resolve(versions).version == 2


def test_an_alias_of_a_version_that_is_not_there_is_refused(zoo: Zoo, versions: str) -> None:
    with pytest.raises(UnknownRef, match="has no version 3"):
        zoo.set_alias(versions, "serving", 3)
    assert zoo.resolve(versions).version == 1


# -- scores -------------------------------------------------------------------------------------
def test_every_score_of_members_and_conditions_is_read_back(zoo: Zoo, name: str) -> None:
    given = [
        score_of(
            m,
            f"condition-{c}",
            **{key: (m + 2 + 10 * c + 100 * k) / 1000 for k, key in enumerate(KEYS)},
        )
        for m in (0, 1, 2, 3, 4, 5, ENSEMBLE, CLASSICAL)
        for c in range(8)
    ]
    zoo.register(name, [member_of(i) for i in range(6)], job=JOB, scores=given)
    matrix = zoo.matrix(f"{name}@1")
    assert len(matrix) == 64
    for row in given:
        assert matrix.values(row.member, row.condition) == row.values
        assert matrix.condition_digest(row.condition) == row.condition_digest


def test_equal_scores_of_two_members_are_both_kept(zoo: Zoo, name: str) -> None:
    rows = [score_of(member, "nominal", frames=8) for member in (0, 1, ENSEMBLE, CLASSICAL)]
    zoo.register(name, [member_of(0), member_of(1)], job=JOB, scores=rows)
    matrix = zoo.matrix(f"{name}@1")
    assert [matrix.value(m, "nominal", "frames") for m in matrix.scored] == [8, 8, 8, 8]


def test_what_was_not_measured_is_none_after_reading_back(zoo: Zoo, name: str) -> None:
    zoo.register(
        name,
        [member_of(0), member_of(1)],
        job=JOB,
        scores=[score_of(0, "nominal", f1=0.0, rmse_pm=float("nan"))],
    )
    matrix = zoo.matrix(f"{name}@1")
    assert matrix.members == (0, 1)
    assert matrix.value(0, "nominal", "f1") == 0.0
    assert matrix.value(0, "nominal", "rmse_pm") is None
    assert matrix.value(1, "nominal", "f1") is None


def test_scores_may_follow_and_the_last_counts(zoo: Zoo, name: str) -> None:
    zoo.register(name, [member_of(0)], job=JOB, scores=[score_of(0, "nominal", f1=0.5, ece=0.1)])
    zoo.record_scores(f"{name}@1", [score_of(0, "nominal", f1=0.7), score_of(0, "low", f1=0.2)])
    assert zoo.matrix(f"{name}@1").values(0, "nominal") == {"f1": 0.7, "ece": 0.1}
    assert zoo.matrix(f"{name}@1").value(0, "low") == 0.2


def test_scores_of_a_machine_whose_clock_is_fast_do_not_hide_later_ones(
    zoo: Zoo, name: str
) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    zoo.register(name, [member_of(0)], job=JOB, scores=[score_of(0, "nominal", f1=0.1)])
    fast = dataclasses.replace(score_of(0, "nominal", f1=0.2), taken=tomorrow)
    for row in (fast, score_of(0, "nominal", f1=0.3), score_of(0, "nominal", f1=0.4)):
        zoo.record_scores(f"{name}@1", [row])
    assert [row.values["f1"] for row in zoo.matrix(f"{name}@1").rows] == [0.1, 0.2, 0.3, 0.4]
    assert zoo.matrix(f"{name}@1").value(0, "nominal") == 0.4


@pytest.mark.parametrize("f1", [0.5, 0.6], ids=["with equal scores", "with other scores"])
def test_a_condition_that_was_measured_twice_is_registered_with_both_scores(
    zoo: Zoo, name: str, f1: float
) -> None:
    rows = [score_of(m, "nominal", f1=x, ece=0.1) for x in (0.5, f1) for m in (0, ENSEMBLE)]
    zoo.register(name, [member_of(0)], job=JOB, scores=rows)
    zoo.record_scores(f"{name}@1", rows)
    assert zoo.matrix(f"{name}@1").value(ENSEMBLE, "nominal") == f1
    assert len(zoo.matrix(f"{name}@1").rows) == 8


def test_versions_do_not_share_scores(zoo: Zoo, versions: str) -> None:
    zoo.record_scores(f"{versions}@1", [score_of(0, "nominal", f1=0.5)])
    assert len(zoo.matrix(f"{versions}@2")) == 0


def test_a_reference_to_a_member_has_the_scores_of_that_member(zoo: Zoo, versions: str) -> None:
    zoo.record_scores(f"{versions}@2", [score_of(m, "nominal", f1=0.5) for m in (0, 7, ENSEMBLE)])
    assert zoo.matrix(f"{versions}@2/07").scored == (7,)


def test_a_listing_of_several_pages_is_read_whole(
    zoo: Zoo, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_PAGE", 2)
    for _ in range(5):
        zoo.register(name, [member_of(0)], job=JOB)
    assert [entry.version for entry in zoo.listing(name)] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        pytest.param(score_of(9, "nominal", f1=0.5), "no member 09", id="unknown member"),
        pytest.param(Score(0, "nominal", "d" * 37, {"f1": 1}), "condition_digest", id="digest"),
        pytest.param(Score(0, "nominal", "", {"f1": 1}), "condition_digest", id="no digest"),
        pytest.param(Score(0, "no id", "d", {"f1": 1}), "'no id' is no id", id="condition"),
        pytest.param(Score(0, "nominal", "d", {"F1 !": 1}), "'F1 !'", id="name"),
    ],
)
def test_a_score_that_cannot_be_kept_is_refused(embedded: Zoo, row: Score, told: str) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB)
    with pytest.raises(InvalidInput, match=told):
        embedded.record_scores("graphene@1", [row])


# -- all or nothing -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({"members": []}, MemberCountError, id="no member"),
        pytest.param({"members": [member_of(1), member_of(1)]}, InvalidInput, id="twins"),
        pytest.param({"members": [member_of(-1)]}, InvalidInput, id="negative index"),
        pytest.param(
            {"members": [member_of(0, weights={"w": torch.tensor([float("nan")])})]},
            MemberDiverged,
            id="weights that are NaN",
        ),
        pytest.param(
            {"members": [member_of(0, losses=(float("inf"),))]}, MemberDiverged, id="loss"
        ),
        pytest.param({"name": "auto"}, InvalidInput, id="reserved name"),
        pytest.param({"name": "Graphene 2"}, InvalidInput, id="name"),
        pytest.param({"alias": "best"}, InvalidInput, id="alias"),
        pytest.param({"scores": [score_of(5, "nominal", f1=1)]}, InvalidInput, id="score"),
        pytest.param({"job": {"seed": object()}}, InvalidInput, id="job that is no plain data"),
    ],
)
def test_what_cannot_be_registered_leaves_nothing_in_the_zoo(
    embedded: Zoo, changes: dict[str, Any], refusal: type[ManybeamError]
) -> None:
    given = {"name": "graphene", "members": [member_of(0)], "job": JOB, **changes}
    with pytest.raises(refusal):
        embedded.register(given.pop("name"), given.pop("members"), **given)
    assert embedded.ls() == []


REGISTER = """
import sys
from pathlib import Path
import torch
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.spec.recipe import MemberPlan, Network, Recipe
from manybeam.zoo.registry import Zoo
folder, count, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
recipe = Recipe(id="tiny", network=Network(filters=2, levels=1),
                members=(MemberPlan(seed=0, policy="broad"),))
weights = {k: v.detach() for k, v in build(recipe.network).state_dict().items()}
members = [Member(i, i, "broad", recipe, weights, (0.5,), 1.0, "d") for i in range(count)]
zoo = Zoo(f"sqlite:///{folder / 'zoo.db'}", (folder / "weights").as_uri(), folder / "cache" / "zoo")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(times):
    print(zoo.register("graphene", members, job={}, alias="serving").ref, flush=True)
"""


def start_registering(folder: Path, count: int, times: int) -> subprocess.Popen[str]:
    """Start a process that waits for a line, then registers `count` members `times` times."""
    argv = [sys.executable, "-c", REGISTER, str(folder), str(count), str(times)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def let_go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


@pytest.mark.slow
def test_a_registration_killed_half_way_leaves_nothing_that_can_be_found(
    embedded: Zoo, tmp_path: Path
) -> None:
    with start_registering(tmp_path, count=400, times=1) as child:
        let_go(child)
        while len(list((tmp_path / "weights").rglob("weights.safetensors"))) < 3:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
    assert embedded.ls() == []
    with pytest.raises(UnknownRef):
        embedded.resolve("graphene")
    assert embedded.register("graphene", [member_of(0)], job=JOB).version == 1


@pytest.mark.slow
def test_two_processes_that_register_at_once_both_get_their_versions(
    embedded: Zoo, tmp_path: Path
) -> None:
    children = [start_registering(tmp_path, count=2, times=4) for _ in range(2)]
    for child in children:
        let_go(child)
    told = [child.communicate(timeout=60)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert {ref for refs in told for ref in refs} == {f"graphene@{n}" for n in range(1, 9)}
    assert sorted(record.version for record in embedded.ls()) == list(range(1, 9))
    assert all(len(embedded.members(record.ref)) == 2 for record in embedded.ls())


@pytest.mark.slow
def test_two_processes_may_make_the_zoo_at_once(tmp_path: Path) -> None:
    children = [start_registering(tmp_path, count=1, times=1) for _ in range(2)]
    for child in children:
        let_go(child)
    told = [child.communicate(timeout=120)[0].strip() for child in children]
    assert sorted(told) == ["graphene@1", "graphene@2"]
    assert {path.name for path in tmp_path.iterdir()} == {"zoo.db", "weights", "cache"}


# -- damage and absence -------------------------------------------------------------------------
def weights_file(folder: Path) -> Path:
    return next((folder / "weights").rglob("weights.safetensors"))


def test_weights_changed_in_the_store_are_refused_at_load(embedded: Zoo, tmp_path: Path) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB, alias="serving")
    path = weights_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Corrupt, match="weights of member 00"):
        embedded.ensemble("graphene")


def test_weights_gone_from_the_store_are_told(embedded: Zoo, tmp_path: Path) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB)
    weights_file(tmp_path).unlink()
    with pytest.raises(Corrupt, match="is missing in the artifact store"):
        embedded.members("graphene@1")


def test_weights_loaded_once_are_there_when_the_store_is_not(embedded: Zoo, tmp_path: Path) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB)
    embedded.members("graphene@1")
    shutil.rmtree(tmp_path / "weights")
    assert len(embedded.members("graphene@1")) == 1


def test_a_manifest_changed_in_the_store_is_refused(embedded: Zoo, tmp_path: Path) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB)
    shutil.rmtree(tmp_path / "cache")
    path = next((tmp_path / "weights").rglob("manifest.json"))
    path.write_text(path.read_text().replace("broad", "other"))
    with pytest.raises(Corrupt, match="manifest of graphene@1"):
        embedded.resolve("graphene@1")


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("http://127.0.0.1:9", id="server"),
        pytest.param("postgresql+psycopg://nobody@127.0.0.1:9/zoo", id="database"),
        pytest.param("sqlite:////proc/no-such-folder/zoo.db", id="folder"),
    ],
)
def test_a_zoo_that_does_not_answer_is_told_within_seconds(uri: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ZooUnreachable, match="manybeam doctor"):
        Zoo(uri, "", tmp_path).resolve("graphene")
    assert time.monotonic() - start < 10


def test_a_server_that_accepts_and_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(ZooUnreachable):
            Zoo(f"http://127.0.0.1:{silent.getsockname()[1]}", "", tmp_path).ls()
    assert time.monotonic() - start < 10


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "zoo.db").write_text("notes " * 100)
    with pytest.raises(ZooUnreachable, match="not a database"):
        Zoo(f"sqlite:///{tmp_path}/zoo.db", (tmp_path / "weights").as_uri()).ls()
    assert (tmp_path / "zoo.db").read_text() == "notes " * 100


def test_weights_that_cannot_be_written_leave_nothing_in_the_zoo(
    embedded: Zoo, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_text("a file where the folder should be")
    with pytest.raises(ZooUnreachable):
        embedded.register("graphene", [member_of(0)], job=JOB)
    assert embedded.ls() == []


def test_a_tracking_uri_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="is no URL of MLflow"):
        Zoo("mlruns", "")


def test_a_version_another_tool_registered_is_none_of_ours(embedded: Zoo, tmp_path: Path) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB)
    with sqlite3.connect(tmp_path / "zoo.db") as database:
        database.execute("delete from model_version_tags")
    database.close()
    assert embedded.ls() == []
    with pytest.raises(UnknownRef):
        embedded.resolve("graphene@1")


def test_entries_are_read_without_mlflow_until_the_database_changes(
    embedded: Zoo, tmp_path: Path
) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB, alias="serving")
    embedded.resolve("graphene")  # asks MLflow, and keeps the answer
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from manybeam.zoo.registry import Zoo\n"
        f"home = Path({str(tmp_path)!r})\n"
        "zoo = Zoo(f'sqlite:///{home}/zoo.db', (home / 'weights').as_uri(), home / 'cache/zoo')\n"
        "print(zoo.resolve('graphene').ref, 'mlflow' in sys.modules)\n"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert elsewhere() == "graphene@1 False"
    embedded.register("graphene", [member_of(1)], job=JOB, alias="serving")
    assert elsewhere() == "graphene@2 True"
    assert elsewhere() == "graphene@2 False"
    embedded.set_alias("graphene", "serving", 1)
    assert elsewhere() == "graphene@1 True"
    with sqlite3.connect(tmp_path / "zoo.db") as database:
        database.execute("delete from registered_model_aliases")
    with pytest.raises(UnknownRef):
        embedded.resolve("graphene")


def test_nothing_is_kept_of_a_database_with_a_write_ahead_log(
    embedded: Zoo, tmp_path: Path
) -> None:
    embedded.register("graphene", [member_of(0)], job=JOB, alias="serving")
    with sqlite3.connect(tmp_path / "zoo.db") as database:
        database.execute("pragma journal_mode = wal")
    embedded.resolve("graphene")
    embedded.register("graphene", [member_of(1)], job=JOB, alias="serving")
    assert embedded.resolve("graphene").version == 2

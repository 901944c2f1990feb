"""zoo.backup: everything comes back on an empty platform, of files as of servers (story 12)."""

import json
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.cli import main
from manybeam.data.frames import FrameSet
from manybeam.data.store import open_store
from manybeam.db.deployment import open_database
from manybeam.db.locks import FILES_LOCK, Locks
from manybeam.db.tokens import Tokens
from manybeam.errors import Conflict, Corrupt, InvalidInput, NotFound
from manybeam.settings import settings
from manybeam.spec import Condition
from manybeam.web.auth import admin_token
from manybeam.zoo.backup import back_up, restore
from manybeam.zoo.lifecycle.collect import collect
from manybeam.zoo.lifecycle.life import promote, rollback
from manybeam.zoo.lineage import lineage, note_prediction
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

FRAME = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
UseSettings = Callable[[dict[str, str]], None]
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@dataclass(frozen=True)
class Facts:
    """What is known of a platform, to be the same after a restore."""

    atoms: Any
    mean: Any
    rows: Any
    anchor: str
    predictions: tuple[str, ...]
    frames: Any
    token: str
    admin: str
    aliases: Any

    def assert_same(self, other: "Facts") -> None:
        for name in ("atoms", "mean", "frames"):
            np.testing.assert_array_equal(getattr(self, name), getattr(other, name))
        for name in ("rows", "predictions", "token", "admin", "aliases"):
            assert getattr(self, name) == getattr(other, name)


def fill(tiny_members: Any) -> str:
    """Make a platform whose first version served, whose second serves; return a token."""
    zoo = Zoo()
    for quality in (0.8, 0.9):
        score = Score(ENSEMBLE, "low", "d" * 32, {"f1": quality}, counts=((9, 1, 1),))
        zoo.register("graphene", tiny_members(2), job={"kind": "train"}, scores=[score])
    zoo.attach("graphene@2", "notes", b"kept", {})
    for version in (1, 2):
        promote(zoo, f"graphene@{version}", who="ada")
    note_prediction("graphene@2", "s3://lab/answers.zarr")
    made = FrameSet.create(f"{settings().store_url}/lab/one", Condition(id="low"), (64, 64))
    made.append(FRAME[None], [np.ones((1, 3))], 20.0)
    admin_token(settings().home)
    return Tokens(open_database()).create("scan", ["predict"])[0]


def facts(token: str) -> Facts:
    zoo = Zoo()
    answer = zoo.ensemble("graphene@serving").predict(FRAME, 20.0)
    found = FrameSet.open(f"{settings().store_url}/lab/one")
    found.verify()
    assert zoo.attached("graphene@2", "notes") == b"kept"
    known = Tokens(open_database()).verify(token)
    assert known is not None
    return Facts(
        answer.atoms,
        answer.mean_yx,
        zoo.matrix("graphene@2").rows,
        audit_log().verify().anchor,
        lineage(zoo, "graphene@2").predictions,
        found.frames(),
        known.id,
        admin_token(settings().home)[0],
        [zoo.resolve(f"graphene@{version}").aliases for version in (1, 2)],
    )


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, use_settings: UseSettings) -> Path:
    """The folder of an empty platform: SQLite and folders."""
    import shutil

    made = tmp_path / "home"
    made.mkdir()
    shutil.copy(empty_database, made / "zoo.db")
    use_settings({"MANYBEAM_HOME": str(made)})
    return made


@pytest.fixture
def backup(home: Path, tmp_path: Path, tiny_members: Any) -> Path:
    """The backup of a small platform."""
    fill(tiny_members)
    back_up(tmp_path / "backup", who="ada")
    return tmp_path / "backup"


def test_story_12_zoo_aliases_keys_and_audit_come_back_in_an_empty_home(
    home: Path, tmp_path: Path, use_settings: UseSettings, tiny_members: Any
) -> None:
    token = fill(tiny_members)
    before = facts(token)
    back_up(tmp_path / "backup", who="ada")
    home.rename(tmp_path / "gone")  # nothing of the new one may lie in the old one
    use_settings({"MANYBEAM_HOME": str(tmp_path / "new")})
    restore(tmp_path / "backup", who="bob")
    before.assert_same(facts(token))
    assert audit_log().verify(before.anchor).count == 6
    assert audit_log().entries()[0].action == "restore done"
    assert rollback(Zoo(), "graphene", who="bob").ref == "graphene@1"
    assert Zoo().register("graphene", tiny_members(1), job={}).version == 3


@pytest.mark.s3
@pytest.mark.postgres
def test_everything_comes_back_on_empty_servers(
    tmp_path: Path,
    use_settings: UseSettings,
    tiny_members: Any,
    new_services: Callable[[], Any],
) -> None:
    found = []
    for name in ("one", "two"):
        services = new_services()
        services.start("seaweedfs", "postgres", "mlflow")
        found.append({**services.settings(), "MANYBEAM_HOME": str(tmp_path / name)})
    use_settings(found[0])
    token = fill(tiny_members)
    before = facts(token)
    back_up(tmp_path / "backup", who="ada")
    use_settings(found[1])
    restore(tmp_path / "backup", who="bob")
    before.assert_same(facts(token))
    assert audit_log().verify(before.anchor).count == 6
    assert rollback(Zoo(), "graphene", who="bob").ref == "graphene@1"
    assert Zoo().register("graphene", tiny_members(1), job={}).version == 3


def test_a_backup_may_be_one_file_that_only_its_owner_reads(
    home: Path, tmp_path: Path, use_settings: UseSettings, tiny_members: Any
) -> None:
    token = fill(tiny_members)
    before, target = facts(token), tmp_path / "backup.tar"
    back_up(target, who="ada")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    use_settings({"MANYBEAM_HOME": str(tmp_path / "new")})
    restore(target, who="bob")
    before.assert_same(facts(token))
    assert not list((tmp_path / "new").glob(".restore-*"))


def test_the_commands_say_what_they_did(
    home: Path,
    tmp_path: Path,
    use_settings: UseSettings,
    tiny_members: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(tiny_members)
    assert main(["backup", str(tmp_path / "backup"), "-o", "json"]) == 0
    told = {row["part"]: row["files"] for row in json.loads(capsys.readouterr().out)}
    assert told["zoo"] == told["keys"] == 1
    assert min(told.values()) > 0
    assert main(["restore", str(tmp_path / "backup")]) == 6
    assert "add --yes to replace the present content" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "backup"), "--yes"]) == 0
    assert Zoo().resolve("graphene").version == 2


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(lambda f: (f / "database/tokens.jsonl").unlink(), "tokens", id="missing"),
        pytest.param(lambda f: (f / "zoo/mlflow.db").write_bytes(b"x"), "mlflow", id="changed"),
        pytest.param(lambda f: (f / "keys/new.pub").write_text("x"), "new.pub", id="added"),
        pytest.param(lambda f: (f / "manifest.json").write_text("{"), "manifest", id="no manifest"),
    ],
)
def test_a_damaged_backup_is_refused_before_anything_is_written(
    backup: Path, tmp_path: Path, use_settings: UseSettings, damage: Any, told: str
) -> None:
    damage(backup)
    use_settings({"MANYBEAM_HOME": str(tmp_path / "new")})
    with pytest.raises(Corrupt, match=told):
        restore(backup, who="bob")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_backup_is_refused(tmp_path: Path, home: Path) -> None:
    for name in ("none", "empty"):
        with pytest.raises(NotFound):
            restore(tmp_path / name, who="bob")
        (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(Corrupt, match="cannot be unpacked"):
        restore(tmp_path / "text.tar", who="bob")


def test_a_file_that_would_leave_its_folder_is_refused(tmp_path: Path, home: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(__file__, "../evil.py")
    with pytest.raises(Corrupt, match="cannot be unpacked"):
        restore(tmp_path / "evil.tar", who="bob")


def test_a_target_that_is_there_is_left_alone(home: Path, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    with pytest.raises(Conflict, match="is there already"):
        back_up(tmp_path / "backup", who="ada")


def test_a_backup_that_fails_leaves_nothing(
    home: Path, tmp_path: Path, tiny_members: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tiny_members)
    target = tmp_path / "backups" / "one"

    def fail(*_: Any, **__: Any) -> None:
        raise Conflict("a set was replaced")

    monkeypatch.setattr("manybeam.zoo.backup.parts.copy_store", fail)
    with pytest.raises(Conflict, match="a set was replaced"):
        back_up(target, who="ada")
    assert list(target.parent.iterdir()) == []
    assert Locks(open_database()).holder(FILES_LOCK) is None


def test_frames_can_be_left_out_and_checkpoints_are(
    home: Path, tmp_path: Path, tiny_members: Any
) -> None:
    fill(tiny_members)
    open_store(settings().store_url).put("runs/1/checkpoint", b"made again")
    made = back_up(tmp_path / "backup", who="ada", arrays=False)
    stored = [path for path in made.files if path.startswith("store/")]
    assert any("/commits/" in path for path in stored)
    assert not any("/c/" in path or "runs/" in path for path in stored)
    assert not made.has_arrays


def test_nothing_is_collected_while_a_backup_is_made(home: Path, tiny_members: Any) -> None:
    fill(tiny_members)
    locks = Locks(open_database())
    with locks.keeping(FILES_LOCK, who="ada", purpose="backup"):
        with pytest.raises(Conflict, match="ada holds the lock on files of the zoo: backup"):
            collect(Zoo(), who="bob", remove=True)
        assert collect(Zoo(), who="bob") == []  # looking is allowed


def test_keys_come_back_readable_by_their_owner_only(
    home: Path, tmp_path: Path, use_settings: UseSettings, tiny_members: Any
) -> None:
    from manybeam.zoo.integrity.trust import make_keys

    private, public = make_keys(tmp_path / "keys")
    use_settings({"MANYBEAM_SIGNING_KEY": str(private), "MANYBEAM_TRUSTED_KEYS": str(public)})
    token = fill(tiny_members)
    back_up(tmp_path / "backup", who="ada")
    use_settings({"MANYBEAM_HOME": str(tmp_path / "new")})
    keys = restore(tmp_path / "backup", who="bob").keys
    assert {one.read_bytes() for one in keys} == {private.read_bytes(), public.read_bytes()}
    assert {stat.S_IMODE(one.stat().st_mode) for one in keys} == {0o600}
    names = {one.suffix: str(one) for one in keys}
    use_settings({"MANYBEAM_SIGNING_KEY": names[".pem"], "MANYBEAM_TRUSTED_KEYS": names[".pub"]})
    assert Zoo().resolve("graphene").signature
    facts(token)


def test_a_server_whose_database_nobody_knows_is_asked_for(
    home: Path, tmp_path: Path, use_settings: UseSettings
) -> None:
    use_settings({"MANYBEAM_TRACKING_URI": "http://127.0.0.1:9"})
    with pytest.raises(InvalidInput, match="--zoo-database"):
        back_up(tmp_path / "backup", who="ada")


def test_a_backup_of_servers_is_not_put_into_a_file(
    backup: Path, tmp_path: Path, use_settings: UseSettings
) -> None:
    from manybeam.zoo.backup import parts

    (backup / "zoo" / "mlflow.db").rename(backup / "zoo" / "mlflow.dump")
    with pytest.raises(InvalidInput, match="holds a PostgreSQL database"):
        parts.put_back_zoo(backup, settings().tracking_url, "")

"""zoo.trust, verify and selftest: a version is what was registered, and somebody vouches for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manybeam.errors import Conflict, Corrupt, InvalidSetting, NotAllowed, NotFound, WriteFailed
from manybeam.zoo.integrity import trust
from manybeam.zoo.integrity.selftest import run_self_test, write_self_test
from manybeam.zoo.integrity.verify import verify
from manybeam.zoo.matrix import ENSEMBLE, Score
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

Use = Callable[[dict[str, str]], None]
ROWS = [Score(ENSEMBLE, "dim", "d" * 32, {"f1": 0.9}, counts=((9, 1, 1),))]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return trust.make_keys(tmp_path / "keys")


def signing(keys: tuple[Path, Path]) -> dict[str, str]:
    return {"MANYBEAM_SIGNING_KEY": str(keys[0]), "MANYBEAM_TRUSTED_KEYS": str(keys[0].parent)}


def other_keys(tmp_path: Path) -> dict[str, str]:
    return {"MANYBEAM_TRUSTED_KEYS": str(trust.make_keys(tmp_path / "others")[1])}


# -- seals --------------------------------------------------------------------------------------
def test_a_seal_is_of_one_thing_and_one_digest(keys: Any, use_settings: Use) -> None:
    use_settings(signing(keys))
    signature = trust.sign("manifest of a", "1" * 64)
    assert trust.is_trusted("manifest of a", "1" * 64, signature)
    assert not trust.is_trusted("manifest of b", "1" * 64, signature)
    assert not trust.is_trusted("manifest of a", "2" * 64, signature)
    assert not trust.is_trusted("manifest of a", "1" * 64, signature[:-8] + "AAAAAAA=")
    assert not trust.is_trusted("manifest of a", "1" * 64, "nonsense")


def test_without_trusted_keys_nothing_is_refused_and_without_a_key_nothing_is_signed() -> None:
    assert trust.sign("manifest of a", "1" * 64) == ""
    trust.check("manifest of a", "1" * 64, "")


def test_the_private_key_is_its_owners_and_never_overwritten(keys: tuple[Path, Path]) -> None:
    assert keys[0].stat().st_mode & 0o777 == 0o600
    before = keys[0].read_bytes()
    with pytest.raises(Conflict, match="exists already"):
        trust.make_keys(keys[0].parent)
    assert keys[0].read_bytes() == before


def test_a_public_key_that_is_there_stays_and_no_private_one_is_left(tmp_path: Path) -> None:
    (tmp_path / trust.PUBLIC_FILE).write_text("of somebody else")
    with pytest.raises(Conflict, match="exists already"):
        trust.make_keys(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [trust.PUBLIC_FILE]
    assert (tmp_path / trust.PUBLIC_FILE).read_text() == "of somebody else"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/keys-of-mine"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(WriteFailed, match="cannot be written"):
        trust.make_keys(tmp_path / place)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_that_takes_no_file_is_told() -> None:
    with pytest.raises(WriteFailed, match=r"/proc/manybeam-signing\.pem cannot be written"):
        trust.make_keys(Path("/proc"))


def test_a_disk_without_room_leaves_no_key(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(WriteFailed, match="no key was made"):
            trust.make_keys(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_file_that_is_no_key_is_told(tmp_path: Path, use_settings: Use, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    use_settings({"MANYBEAM_SIGNING_KEY": str(path), "MANYBEAM_TRUSTED_KEYS": str(path)})
    with pytest.raises(InvalidSetting, match="is no Ed25519 key"):
        trust.sign("manifest of a", "1" * 64)
    with pytest.raises(InvalidSetting, match="is no Ed25519 key"):
        trust.check("manifest of a", "1" * 64, "")


def test_a_folder_of_keys_that_is_not_there_trusts_nobody(
    tmp_path: Path, use_settings: Use
) -> None:
    use_settings({"MANYBEAM_TRUSTED_KEYS": str(tmp_path / "nowhere")})
    with pytest.raises(InvalidSetting, match="is no Ed25519 key"):
        trust.check("manifest of a", "1" * 64, "")


# -- versions -----------------------------------------------------------------------------------
def test_only_versions_signed_by_a_trusted_key_are_loaded(
    zoo: Zoo, name: str, tiny_members: Any, keys: Any, use_settings: Use, tmp_path: Path
) -> None:
    members = tiny_members(1)
    zoo.register(name, members, job={"kind": "train"})
    use_settings(signing(keys))
    signed = zoo.register(name, members, job={"kind": "train"}, scores=ROWS)
    zoo.attach(signed.ref, "table", b"bytes", {})
    assert signed.signature
    assert len(zoo.members(f"{name}@2")) == 1
    assert zoo.attached(f"{name}@2", "table") == b"bytes"
    assert {one.signature for one in verify(zoo, f"{name}@2")} == {"trusted", ""}
    with pytest.raises(NotAllowed, match="it is not signed"):
        zoo.members(f"{name}@1")
    assert [one.what for one in verify(zoo, f"{name}@1") if not one.passed] == ["manifest"]
    zoo.sign(f"{name}@1")
    assert len(zoo.members(f"{name}@1")) == 1
    use_settings(other_keys(tmp_path))
    for refused in (zoo.members, lambda ref: zoo.attached(ref, "table")):
        with pytest.raises(NotAllowed, match="signed by the key"):
            refused(f"{name}@2")
    assert not [one for one in verify(zoo, f"{name}@2") if one.signature == "trusted"]


def test_everything_a_version_stands_on_is_verified(zoo: Zoo, name: str, tiny_members: Any) -> None:
    zoo.register(name, tiny_members(2), job={"kind": "train"}, scores=ROWS)
    zoo.record_scores(f"{name}@1", ROWS)
    zoo.attach(f"{name}@1", "table", b"bytes", {})
    checks = verify(zoo, f"{name}@1")
    assert sorted(one.what for one in checks) == sorted(
        ["manifest", "self-test", "scores", "scores", "table"]
        + [f"{what} of member 0{m}" for what in ("weights", "recipe") for m in (0, 1)]
    )
    assert all(one.passed and one.is_whole for one in checks)


@pytest.mark.parametrize("file", ["weights.safetensors", "member.json", "scores.json"])
def test_a_file_swapped_cut_short_or_gone_is_named(
    embedded: Zoo, tiny_members: Any, tmp_path: Path, file: str
) -> None:
    embedded.register("graphene", tiny_members(2), job={"kind": "train"}, scores=ROWS)
    path = next((tmp_path / "weights").rglob(file))
    whole = path.read_bytes()
    for damage in (lambda: path.write_bytes(whole[:-9]), path.unlink):
        damage()
        (bad,) = [one for one in verify(embedded, "graphene@1") if not one.passed]
        assert not bad.is_whole
        assert bad.problem


def test_weights_of_another_member_are_refused_by_name(
    embedded: Zoo, tiny_members: Any, tmp_path: Path
) -> None:
    embedded.register("graphene", tiny_members(2), job={"kind": "train"})
    one, other = (tmp_path / "weights").rglob("weights.safetensors")
    one.write_bytes(other.read_bytes())
    with pytest.raises(Corrupt, match=r"weights of member 0\d are not the bytes"):
        embedded.members("graphene@1")


# -- self-tests ---------------------------------------------------------------------------------
def test_members_answer_as_they_did_when_they_were_registered(
    zoo: Zoo, name: str, tiny_members: Any
) -> None:
    zoo.register(name, tiny_members(2), job={"kind": "train"})
    assert [(one.member, one.reproduces) for one in zoo.test(f"{name}@1")] == [(0, True), (1, True)]
    assert [one.member for one in zoo.test(f"{name}@1/01")] == [1]


def test_a_member_of_other_weights_does_not_reproduce(tiny_members: Any, tmp_path: Path) -> None:
    members = tiny_members(2)
    kept = write_self_test(members)
    key = next(k for k, v in members[1].weights.items() if v.is_floating_point())
    members[1].weights[key] = members[1].weights[key] + 0.5
    first, second = run_self_test(members, kept)
    assert first.reproduces
    assert first.difference == 0
    assert not second.reproduces
    assert second.difference > 1e-3


def test_a_self_test_of_other_members_or_of_none_is_told(tiny_members: Any, tmp_path: Path) -> None:
    members = tiny_members(2)
    (alone,) = run_self_test(members[1:], write_self_test(members[:1]))
    assert not alone.reproduces
    with pytest.raises(Corrupt, match="cannot be read"):
        run_self_test(members, b"no tensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors")
    with pytest.raises(Corrupt, match="holds no tile"):
        run_self_test(members, (tmp_path / "x.safetensors").read_bytes())


def test_a_version_without_a_self_test_says_so(
    embedded: Zoo, tiny_members: Any, tmp_path: Path
) -> None:
    import sqlite3

    from manybeam.zoo.cache import sha256_of

    embedded.register("graphene", tiny_members(1), job={"kind": "train"})
    path = next((tmp_path / "weights").rglob("manifest.json"))
    older = json.loads(path.read_text())
    for key in ("self_test", "environment", "inputs"):
        del older[key]
    path.write_text(json.dumps(older))
    with sqlite3.connect(tmp_path / "zoo.db") as database:
        database.execute(
            "UPDATE model_version_tags SET value = ? WHERE key = 'manybeam.sha256'",
            (sha256_of(path.read_bytes()),),
        )
    database.close()
    assert embedded.resolve("graphene@1").environment == {}
    with pytest.raises(NotFound, match="has no self-test"):
        embedded.test("graphene@1")


def test_scores_that_nobody_trusted_signed_do_not_count(
    embedded: Zoo, tiny_members: Any, keys: Any, use_settings: Use
) -> None:
    use_settings(signing(keys))
    embedded.register("graphene", tiny_members(1), job={"kind": "train"}, scores=ROWS)
    use_settings({"MANYBEAM_SIGNING_KEY": ""})
    better = [Score(ENSEMBLE, "dim", "d" * 32, {"f1": 1.0}, counts=((10, 0, 0),))]
    embedded.record_scores("graphene@1", better)
    assert embedded.matrix("graphene@1").value(ENSEMBLE, "dim") == 0.9
    use_settings({"MANYBEAM_TRUSTED_KEYS": ""})
    assert embedded.matrix("graphene@1").value(ENSEMBLE, "dim") == 1.0


def test_what_a_stranger_made_is_not_signed(
    embedded: Zoo, tiny_members: Any, keys: Any, use_settings: Use
) -> None:
    use_settings(signing(keys))
    made = embedded.register("guest", tiny_members(1), job={}, scores=ROWS, sign=False)
    assert not made.signature
    assert {one.what for one in verify(embedded, "guest@1") if not one.passed} == {
        "manifest",
        "scores",
    }


def test_the_manifest_of_another_ensemble_is_refused_under_a_name(
    embedded: Zoo, tiny_members: Any, keys: Any, use_settings: Use
) -> None:
    use_settings(signing(keys))
    for name in ("graphene", "other"):
        embedded.register(name, tiny_members(1), job={"kind": "train"})
    for key, value in embedded.entry("other@1").tags.items():
        embedded.tracking.tag_version("graphene", 1, key, value)
    with pytest.raises(Corrupt, match="belongs to 'other'"):
        embedded.members("graphene@1")

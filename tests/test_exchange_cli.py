"""`manybeam zoo export` and `zoo import`: a package out, a version in, and what a fault says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manybeam.cli import main
from manybeam.zoo.integrity.trust import make_keys

pytestmark = pytest.mark.slow

ATOMAI = Path(__file__).parent / "data" / "atomai" / "three.tar"
Use = Callable[[dict[str, str]], None]


@pytest.fixture
def home(tmp_path: Path, embedded: Any, tiny_members: Any, use_settings: Use) -> Path:
    """A platform's folder with one ensemble, which commands find."""
    embedded.register("graphene", tiny_members(2), job={"kind": "train"}, alias="serving")
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_ZOO": str(tmp_path / "zoo")})
    return tmp_path


def row(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out))


def test_what_export_writes_import_reads(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(home / "out")
    assert main(["zoo", "export", "graphene", "--format", "safetensors", "--out", out]) == 0
    assert row(capsys)["path"] == out
    assert main(["zoo", "import", out, "--name", "guest", "--alias", "candidate"]) == 0
    found = row(capsys)
    assert (found["ref"], found["members"], found["aliases"]) == ("guest@1", 2, ["candidate"])


def test_show_tells_who_signed_what_was_imported_and_that_it_is_not_trusted_here(
    home: Path, tmp_path: Path, embedded: Any, use_settings: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    private, _ = make_keys(tmp_path / "theirs")
    use_settings({"MANYBEAM_HOME": str(home), "MANYBEAM_SIGNING_KEY": str(private)})
    signed, out = embedded.sign("graphene@1"), str(home / "out")
    assert main(["zoo", "export", "graphene", "--format", "safetensors", "--out", out]) == 0
    use_settings({"MANYBEAM_HOME": str(home), "MANYBEAM_SIGNING_KEY": ""})
    assert main(["zoo", "import", out, "--name", "guest"]) == 0
    capsys.readouterr()
    assert main(["zoo", "show", "guest@1"]) == 0
    told = capsys.readouterr().err
    key = signed.signature.partition(":")[0]
    assert "guest@1 is not signed: it was imported" in told
    source = f"source version graphene@1, with the same weights, was signed by the key {key}"
    assert f"{source}, which is not" in " ".join(told.split())


def test_a_package_says_whose_it_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(home / "graphene.zip")
    assert main(["zoo", "export", "graphene", "--author", "Ada Lovelace", "--out", out]) == 0
    shown = capsys.readouterr()
    assert "author: Ada Lovelace" in shown.err
    assert "no licence is stated" in shown.err
    assert json.loads(shown.out)["format"] == "bioimageio"


def test_an_atomai_file_comes_in_with_what_it_does_not_say(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["zoo", "import", str(ATOMAI), "--name", "guest"]
    assert main(words) == 2
    assert "--pixel-size-pm" in capsys.readouterr().err
    assert main([*words, "--pixel-size-pm", "16", "--elements", "6,x"]) == 2
    assert main([*words, "--pixel-size-pm", "16", "--elements", "6,14"]) == 0
    assert row(capsys)["ref"] == "guest@1"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(["export", "nobody", "--format", "onnx"], 4, id="unknown-ref"),
        pytest.param(["export", "graphene", "--format", "pickle"], 2, id="unknown-form"),
        pytest.param(["export", "graphene", "--format", "onnx", "--out", "{taken}"], 6, id="taken"),
        pytest.param(["export", "graphene", "--licence", "free beer"], 2, id="licence"),
        pytest.param(["import", "{absent}", "--name", "guest"], 4, id="absent"),
        pytest.param(["import", "{taken}", "--name", "guest"], 2, id="no-package"),
        pytest.param(["import", "{taken}", "--name", "a/b"], 2, id="name"),
    ],
)
def test_a_fault_has_its_exit_code_and_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "taken").write_text("hello")
    places = {"{taken}": str(work / "taken"), "{absent}": str(work / "absent")}
    assert main(["zoo", *(places.get(word, word) for word in words)]) == code
    assert [path.name for path in work.iterdir()] == ["taken"]
    shutil.rmtree(work)

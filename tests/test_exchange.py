"""Exchange: what leaves a zoo comes into another the same, and nothing bad comes in at all."""

import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from manybeam.data.tiles import normalise
from manybeam.db.deployment import authenticated_name
from manybeam.errors import (
    Conflict,
    InvalidInput,
    InvalidSpec,
    ManybeamError,
    MissingPackage,
    NotAllowed,
    NotFound,
    RefusedByGate,
    TooLarge,
    UnreadableFile,
    WriteFailed,
)
from manybeam.learn.analysis.frame_analysis import analyse
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.learn.scoring.scores import score_frames
from manybeam.predictor.learned import performance_predictor
from manybeam.predictor.performance import PerformancePredictor
from manybeam.spec.recipe import Recipe
from manybeam.zoo.exchange import Credit, UnpackLimits, export, import_
from manybeam.zoo.exchange.bioimageio import seen
from manybeam.zoo.exchange.onnx_graph import run_graph, view_of, write_graph
from manybeam.zoo.integrity.imported import signatures
from manybeam.zoo.integrity.trust import make_keys
from manybeam.zoo.lifecycle.life import promote
from manybeam.zoo.lineage import lineage
from manybeam.zoo.matrix import ENSEMBLE, FrameSetUse, Score, TestSet
from manybeam.zoo.older_objects import audit_log

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TAKEN = datetime(2026, 3, 1, 12, tzinfo=UTC)
SCORES = [
    Score(0, "graphene-60kv-nominal", "d" * 32, {"f1": 0.9}, ((8, 1, 1),), TAKEN, "7"),
    Score(ENSEMBLE, "graphene-60kv-nominal", "d" * 32, {"f1": 0.95}, ((9, 1, 0),), TAKEN, "7"),
]
Change = Callable[[Path], None]


def member_of(index: int = 0, **fields: Any) -> Member:
    """Return a member of drawn weights whose recipe has these fields."""
    content = {"id": "odd", "members": [{"seed": 0, "policy": "graphene-nominal"}], **fields}
    recipe = Recipe.model_validate(content)
    torch.manual_seed(index)
    weights = build(recipe.network).state_dict()
    return Member(index, 0, "graphene-nominal", recipe, weights, (0.5,), 0.1, "0" * 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Any) -> Path:
    """A folder of two members that was exported."""
    return export(tiny_zoo, "graphene@1", tmp_path_factory.mktemp("out") / "g", form="safetensors")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, rehearsed_zoo: Any) -> Path:
    """A bioimage.io package of three members that were really trained."""
    path = tmp_path_factory.mktemp("out") / "graphene.zip"
    credit = Credit(authors=("Ada Lovelace",), licence="MIT", tags=("graphene",))
    return export(rehearsed_zoo, "graphene@serving", path, credit=credit)


def f1_of(ensemble: Ensemble, drawn: list[Any]) -> float:
    found = [ensemble.predict(d.frames_nyx[0], float(d.pixel_size_pm[0])).atoms for d in drawn]
    return score_frames(
        found,
        [d.truth[0] for d in drawn],
        [float(d.pixel_size_pm[0]) for d in drawn],
        shapes=[d.frames_nyx.shape[1:] for d in drawn],
    ).f1


def test_a_folder_brings_members_scores_and_origin_into_another_zoo(
    zoo: Any, name: str, tiny_members: Any, tmp_path: Path
) -> None:
    job = {"kind": "train", "recipe": "tiny"}
    sent = zoo.register(name, tiny_members(2), job=job, scores=SCORES, failed=("02: loss is NaN",))
    path = export(zoo, sent.ref, tmp_path / "out", form="safetensors")
    got = import_(zoo, path, f"{name}-guest", alias="candidate")
    assert [m.sha256 for m in got.members] == [m.sha256 for m in sent.members]
    assert zoo.matrix(got.ref).rows == tuple(SCORES)
    assert got.failed == sent.failed
    assert (got.job["kind"], got.job["source"]) == ("import", "out")
    assert (got.job["origin"]["digest"], got.job["origin"]["job"]) == (sent.sha256, job)
    assert zoo.resolve(f"{name}-guest@candidate").version == got.version == 1


def test_a_version_measured_twice_on_one_condition_is_imported_with_both_scores(
    zoo: Any, name: str, tiny_members: Any, tmp_path: Path
) -> None:
    sent = zoo.register(name, tiny_members(2), job={"kind": "train"}, scores=SCORES)
    zoo.record_scores(sent.ref, SCORES)
    path = export(zoo, sent.ref, tmp_path / "out", form="safetensors")
    got = import_(zoo, path, f"{name}-guest")
    assert len(zoo.matrix(got.ref).rows) == 2 * len(SCORES)
    (entry,) = audit_log().entries(f"{name}-guest")
    assert (entry.action, entry.who, entry.subject) == ("imported", authenticated_name(), got.ref)
    assert entry.details["source"] == "out"


@pytest.mark.parametrize("form", ["safetensors", "bioimageio"])
def test_an_export_states_no_licence_that_nobody_chose(
    tiny_zoo: Any, tmp_path: Path, form: Any
) -> None:
    path = export(tiny_zoo, "graphene@1", tmp_path / "out", form=form)
    if form == "bioimageio":
        with zipfile.ZipFile(path) as package:
            assert yaml.safe_load(package.read("rdf.yaml"))["license"] is None
            card = package.read("README.md").decode()
    else:
        card = (path / "README.md").read_text()
    assert "**Licence of the weights**: not stated" in card


def test_an_import_is_signed_by_a_person_not_by_the_key_at_hand(
    zoo: Any, name: str, folder: Path, tmp_path: Path, use_settings: Any
) -> None:
    private, public = make_keys(tmp_path / "keys")
    keys = {"MANYBEAM_SIGNING_KEY": str(private), "MANYBEAM_TRUSTED_KEYS": str(public)}
    use_settings(keys)
    said: list[str] = []
    with pytest.raises(RefusedByGate, match=f"{name}@1 is registered but has no alias") as caught:
        import_(zoo, folder, name, alias="serving", say=said.append)
    assert caught.value.hint.startswith(f"manybeam zoo sign {name}@1 first")
    assert said == [
        f"{name}@1 is not signed, because it was imported; if you trust it, run "
        f"manybeam zoo sign {name}@1"
    ]
    assert (zoo.resolve(f"{name}@1").signature, zoo.resolve(f"{name}@1").aliases) == ("", ())
    zoo.sign(f"{name}@1")
    assert promote(zoo, f"{name}@1", who="ada").ref == f"{name}@1"
    assert zoo.resolve(name).signature


def test_a_package_answers_the_same_to_the_last_bit_after_its_journey(
    package: Path, embedded: Any, rehearsed: Any
) -> None:
    got = import_(embedded, package, "guest")
    drawn = [rehearsed.drawn(number) for number in range(6)]
    before, after = f1_of(rehearsed.ensemble, drawn), f1_of(embedded.ensemble(got.ref), drawn)
    assert before > 0.6
    assert after == before
    for here, there in zip(rehearsed.members, embedded.members(got.ref), strict=True):
        assert all(torch.equal(here.weights[key], there.weights[key]) for key in here.weights)
        assert (here.recipe, here.losses, here.seed) == (there.recipe, there.losses, there.seed)


def test_bioimage_ios_own_validator_finds_no_fault_in_a_package(package: Path) -> None:
    from bioimageio.spec import ModelDescr, load_description

    with zipfile.ZipFile(package) as archive:
        found = load_description(archive, format_version="latest", perform_io_checks=True)
    assert found.validation_summary.status in ("valid-format", "passed")
    assert isinstance(found, ModelDescr)
    assert found.authors[0].name == "Ada Lovelace"
    assert found.license == "MIT"


def test_members_that_see_frames_normalised_locally_make_a_package_too(
    embedded: Any, tmp_path: Path
) -> None:
    local = {"tiles": {"normalise": "local", "pixel_size_pm": 29.3}}
    small, bandpass = {"filters": 2, "levels": 2}, {"name": "bandpass"}
    mixed = [member_of(i, network=one, **local) for i, one in enumerate((small, bandpass))]
    embedded.register("mixed", mixed, job={})
    path = export(embedded, "mixed@1", tmp_path / "mixed.zip", credit=Credit(("Ada",), "MIT", ()))
    got = import_(embedded, path, "guest")
    assert [one.recipe for one in embedded.members(got.ref)] == [one.recipe for one in mixed]


def test_a_package_says_truly_what_its_graph_sees_and_answers(
    package: Path, tmp_path: Path, rehearsed: Any
) -> None:
    """Whoever follows rdf.yaml to the letter gets the ensemble's own maps."""
    import yaml

    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path)
    rdf = yaml.safe_load((tmp_path / "rdf.yaml").read_text())
    raw = np.load(tmp_path / rdf["inputs"][0]["test_tensor"]["source"])
    _, unit, clip, _ = rdf["inputs"][0]["preprocessing"]
    assert (unit["id"], clip["id"]) == ("zero_mean_unit_variance", "clip")
    axes = tuple("byx".find(axis) + 1 for axis in unit["kwargs"]["axes"])
    scaled = (raw - raw.mean(axes, keepdims=True)) / (
        raw.std(axes, keepdims=True) + unit["kwargs"]["eps"]
    )
    given = np.clip(scaled, clip["kwargs"]["min"], clip["kwargs"]["max"]).astype(np.float32)
    answer = run_graph(tmp_path / rdf["weights"]["onnx"]["source"], given)
    own = rehearsed.ensemble.predict(raw[0, 0], float(rdf["inputs"][0]["axes"][2]["scale"]))
    for output, expected in zip(rdf["outputs"], (own.mean_yx, own.std_yx), strict=True):
        kept = np.load(tmp_path / output["test_tensor"]["source"])
        assert np.abs(answer[output["id"]] - kept).max() < 1e-4
        assert np.abs(kept[0, 0] - expected).max() < 1e-4
    assert own.mean_yx.max() > 0.5


def test_members_that_hardly_disagree_make_a_package_too(embedded: Any, tmp_path: Path) -> None:
    """The format wants a tolerance far below the largest value of each map."""
    members = [member_of(index, network={"filters": 2, "levels": 2}) for index in range(2)]
    sent = embedded.register("drawn", members, job={})
    one = export(embedded, f"{sent.ref}/01", tmp_path / "one.zip")
    both = export(embedded, sent.ref, tmp_path / "both.zip")
    assert [import_(embedded, path, "guest").member_count for path in (one, both)] == [1, 2]


def test_a_package_holds_a_card_and_pictures(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        card = archive.read("README.md").decode()
        cover = archive.read("cover.png")
    assert "## Validation" in card
    assert cover.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "count"),  # each further member of a deep network takes seconds to write
    [
        pytest.param({"network": {"filters": 2, "levels": 1}}, 3, id="one-level"),
        pytest.param({"network": {"filters": 2, "levels": 5}}, 2, id="five-levels"),
        pytest.param(
            {
                "network": {"filters": 2, "levels": 2, "classes": 2},
                "tiles": {"elements": [6, 14]},
            },
            2,
            id="two-kinds",
        ),
        pytest.param(
            {"tiles": {"normalise": "local"}, "network": {"filters": 2, "levels": 2}}, 2, id="local"
        ),
        pytest.param({"network": {"name": "bandpass"}}, 2, id="band-pass"),
    ],
)
def test_a_graph_answers_as_its_members_at_every_size(
    tmp_path: Path, fields: dict[str, Any], count: int
) -> None:
    members = [member_of(index, **fields) for index in range(count)]
    view = write_graph(members, tmp_path / "ensemble.onnx")
    frame_yx = np.random.default_rng(1).normal(size=(3 * view.least, view.least)).astype("f4")
    found = run_graph(tmp_path / "ensemble.onnx", seen(frame_yx, view))
    own = Ensemble(members).predict(frame_yx, None)
    assert np.abs(found["mean"][0, 0] - own.mean_yx).max() < 1e-4
    assert np.abs(found["spread"][0, 0] - own.std_yx).max() < 1e-4
    kinds = members[0].recipe.network.classes
    assert found.get("kinds", np.zeros((1, 1)))[0].shape[0] == kinds


def test_a_graph_of_one_member_has_no_spread(tmp_path: Path) -> None:
    view = write_graph([member_of(network={"filters": 2, "levels": 2})], tmp_path / "one.onnx")
    found = run_graph(tmp_path / "one.onnx", np.ones((2, 1, view.least, view.least), np.float32))
    assert [*found] == ["mean"]
    assert found["mean"].shape == (2, 1, view.least, view.least)


def test_members_that_see_a_frame_in_two_ways_make_no_graph() -> None:
    members = [member_of(0), member_of(1, tiles={"pixel_size_pm": 20})]
    with pytest.raises(InvalidInput, match="16 pm frame, 20 pm frame"):
        view_of(members)


def test_what_a_graph_sees_is_what_a_member_sees() -> None:
    view = view_of([member_of(tiles={"normalise": "local", "local_nm": 0.8})])
    frame_yx = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    assert np.array_equal(seen(frame_yx, view)[0, 0], normalise(frame_yx, "local", 800 / 16))


def test_an_export_replaces_nothing_unless_asked(tiny_zoo: Any, tmp_path: Path) -> None:
    (tmp_path / "g").write_text("precious")
    with pytest.raises(Conflict, match="exists already"):
        export(tiny_zoo, "graphene@1", tmp_path / "g", form="safetensors")
    assert (tmp_path / "g").read_text() == "precious"
    for version in (1, 2):
        export(tiny_zoo, f"graphene@{version}", tmp_path / "g", form="safetensors", overwrite=True)
    assert len(list((tmp_path / "g" / "members").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def _holds(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _with_a_note(folder: Path) -> None:
    (folder / "members" / "note.txt").write_text("mine")


def _with_a_link(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda f: (f / "manifest.json").unlink(), "no manifest", id="no-manifest"),
        pytest.param(
            lambda f: (f / "manifest.json").write_text('{"format": "web-app"}'),
            "no manifest.json of an export",
            id="manifest-of-others",
        ),
        pytest.param(_with_a_note, "it holds members/note.txt", id="a-note-in-it"),
        pytest.param(_with_a_link, "it holds README.md", id="a-link-in-it"),
    ],
)
def test_a_folder_that_holds_more_than_an_export_is_never_replaced(
    folder: Path, tiny_zoo: Any, tmp_path: Path, change: Change, told: str
) -> None:
    shutil.copytree(folder, tmp_path / "g")
    change(tmp_path / "g")
    before = _holds(tmp_path / "g")
    with pytest.raises(Conflict, match=told):
        export(tiny_zoo, "graphene@2", tmp_path / "g", form="safetensors", overwrite=True)
    assert _holds(tmp_path / "g") == before


@pytest.mark.parametrize("form", ["onnx", "bioimageio"])
def test_a_file_never_replaces_a_folder(
    folder: Path, tiny_zoo: Any, tmp_path: Path, form: Any
) -> None:
    shutil.copytree(folder, tmp_path / "g")
    with pytest.raises(Conflict, match="a file cannot replace a folder"):
        export(tiny_zoo, "graphene@2", tmp_path / "g", form=form, overwrite=True)
    assert _holds(tmp_path / "g") == _holds(folder)


def test_a_folder_made_while_an_export_is_written_is_not_replaced(tmp_path: Path) -> None:
    from manybeam.zoo.exchange import _complete

    def write(path: Path) -> None:
        with _complete(path, overwrite=True) as (_, target):
            target.mkdir()
            path.mkdir()
            (path / "thesis.md").write_text("precious")

    with pytest.raises(Conflict, match="is not replaced"):
        write(tmp_path / "g")
    assert _holds(tmp_path) == {"g/thesis.md": b"precious"}


def test_a_link_gives_way_and_what_it_points_to_stays(tiny_zoo: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.md").write_text("precious")
    (tmp_path / "g").symlink_to(tmp_path / "mine")
    export(tiny_zoo, "graphene@1", tmp_path / "g", form="safetensors", overwrite=True)
    assert not (tmp_path / "g").is_symlink()
    assert _holds(tmp_path / "mine") == {"thesis.md": b"precious"}


def test_an_export_that_fails_leaves_nothing(embedded: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    embedded.register("two-ways", [member_of(0), member_of(1, tiles={"pixel_size_pm": 20})], job={})
    with pytest.raises(InvalidInput, match="2 different inputs"):
        export(embedded, "two-ways@1", out / "g.onnx", form="onnx")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "path", "error"),
    [
        pytest.param("pickle", "g", InvalidInput, id="unknown-form"),
        pytest.param("onnx", "absent/g", NotFound, id="no-folder"),
        pytest.param("onnx", "g" * 300, WriteFailed, id="long-name"),
        pytest.param("onnx", f"{'g' * 300}/g", WriteFailed, id="long-folder"),
        pytest.param("safetensors", "/proc/g", WriteFailed, id="no-folder-to-write-to"),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    tiny_zoo: Any, tmp_path: Path, form: Any, path: str, error: Any
) -> None:
    with pytest.raises(error):
        export(tiny_zoo, "graphene@1", tmp_path / path, form=form)


def test_a_missing_package_is_named_with_its_pip_line(
    tiny_zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackage, match=r"onnx is not.*pip install 'manybeam\[exchange\]'"):
        export(tiny_zoo, "graphene@1", tmp_path / "g.onnx", form="onnx")


# -- what is refused ---------------------------------------------------------------------------


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content))

    return apply


def _card(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change a member's card and the digest the manifest has of it."""
    from manybeam.zoo.exchange.unpack import sha256_of_file

    def apply(folder: Path) -> None:
        path = folder / "members/00/member.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        digest = sha256_of_file(path)
        _manifest(lambda m: m["members"][0]["card"].update(sha256=digest))(folder)

    return apply


def _scores(text: str) -> Change:
    """Replace the scores, and the digest the manifest has of them."""
    from manybeam.zoo.cache import sha256_of

    def apply(folder: Path) -> None:
        (folder / "scores.json").write_text(text)
        _manifest(lambda m: m["scores"].update(sha256=sha256_of(text.encode())))(folder)

    return apply


def _pickle_as_weights(folder: Path) -> None:
    from manybeam.zoo.exchange.unpack import sha256_of_file

    path = folder / "members/00/weights.safetensors"
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    digest = sha256_of_file(path)
    _manifest(lambda m: m["members"][0]["weights"].update(sha256=digest))(folder)


def _foreign(folder: Path) -> None:
    (folder / "manifest.json").rename(folder / "rdf.yaml")


def _swap(folder: Path) -> None:
    for index in (0, 1):
        path = folder / f"members/0{index}/weights.safetensors"
        path.rename(folder / f"members/0{index}/other")
    for index in (0, 1):
        path = folder / f"members/0{index}/other"
        path.rename(folder / f"members/0{1 - index}/weights.safetensors")


def _cut(folder: Path) -> None:
    path = folder / "members/01/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


REFUSED = [
    pytest.param(lambda f: (f / "scores.json").unlink(), UnreadableFile, "missing", id="missing"),
    pytest.param(_cut, UnreadableFile, r"01/weights.safetensors has SHA-256", id="cut"),
    pytest.param(_swap, UnreadableFile, r"2 of 6 files", id="swapped"),
    pytest.param(
        lambda f: (f / "extra.pkl").write_bytes(b"\x80\x05"), UnreadableFile, "pickle", id="pickle"
    ),
    pytest.param(_pickle_as_weights, UnreadableFile, "no safetensors", id="pickle-as-weights"),
    pytest.param(_foreign, UnreadableFile, "another program", id="foreign"),
    pytest.param(
        _card(lambda c: c["recipe"]["network"].update(filters=4)),
        UnreadableFile,
        "do not fit the network",
        id="other-architecture",
    ),
    pytest.param(
        _card(lambda c: c["recipe"]["network"].update(filters=256, levels=6)),
        UnreadableFile,
        "do not fit the network",
        id="a-network-of-gigabytes",
    ),
    pytest.param(
        _card(lambda c: c["recipe"]["network"].update(name="Nonesuch")),
        InvalidSpec,
        "Nonesuch",
        id="unknown-network",
    ),
    pytest.param(
        _card(lambda c: c["recipe"]["training"].update(loss="hinge")),
        InvalidSpec,
        r"recipe.training.loss",
        id="unknown-recipe",
    ),
    pytest.param(_card(lambda c: c.update(index=7)), InvalidSpec, "of member 7", id="other-index"),
    pytest.param(
        _manifest(lambda m: m["members"][0]["weights"].update(path="../../etc/passwd")),
        UnreadableFile,
        "outside the package",
        id="traversal-in-manifest",
    ),
    pytest.param(
        _manifest(lambda m: m.update(format="manybeam-exchange-9")),
        InvalidSpec,
        "format",
        id="newer-format",
    ),
    pytest.param(
        _manifest(lambda m: m["members"].append(m["members"][0])),
        InvalidInput,
        "occurs once",
        id="member-twice",
    ),
    pytest.param(_scores("[]"), UnreadableFile, "scores", id="no-scores"),
    pytest.param(
        _scores(
            '{"format": "manybeam-scores-1", "rows": [{"member": 0, "condition": 5, "digest": "d",'
            '"taken": "2026-01-01T00:00:00+00:00", "scorer": "", "values": {}, "counts": []}]}'
        ),
        UnreadableFile,
        "no text",
        id="scores-of-a-number",
    ),
    pytest.param(
        lambda f: (f / "manifest.json").write_text("{"), InvalidSpec, "manifest.json", id="no-json"
    ),
]


@pytest.mark.parametrize("packing", ["folder", "zip"])
@pytest.mark.parametrize(("change", "error", "word"), REFUSED)
def test_a_bad_package_is_refused_and_nothing_is_registered(
    folder: Path,
    embedded: Any,
    tmp_path: Path,
    change: Change,
    error: type[ManybeamError],
    word: str,
    packing: str,
) -> None:
    path = tmp_path / "bad"
    shutil.copytree(folder, path)
    change(path)
    if packing == "zip":
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", path))
    with pytest.raises(error, match=word):
        import_(embedded, path, "guest")
    assert embedded.ls() == []


def test_scores_that_cannot_be_kept_leave_nothing_registered(
    zoo: Any, name: str, folder: Path, tmp_path: Path
) -> None:
    from manybeam.zoo.cache import sha256_of
    from manybeam.zoo.score_reports import write_report

    shutil.copytree(folder, tmp_path / "bad")
    report = write_report([Score(9, "graphene-60kv-nominal", "d" * 32, {"f1": 1.0})])
    (tmp_path / "bad/scores.json").write_bytes(report)
    _manifest(lambda m: m["scores"].update(sha256=sha256_of(report)))(tmp_path / "bad")
    with pytest.raises(InvalidInput, match="no member 09"):
        import_(zoo, tmp_path / "bad", name)
    assert zoo.ls(name) == []


def test_a_folder_that_was_zipped_is_read_too(folder: Path, embedded: Any, tmp_path: Path) -> None:
    path = shutil.make_archive(str(tmp_path / "g"), "zip", folder.parent, folder.name)
    assert import_(embedded, Path(path), "guest").member_count == 2


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        pytest.param("graph.onnx", b"\x08\x0a\x12", UnreadableFile, id="onnx"),
        pytest.param("notes.txt", b"hello", UnreadableFile, id="text"),
        pytest.param("empty.zip", b"", UnreadableFile, id="empty"),
        pytest.param("model.tar", pickle.dumps({}), UnreadableFile, id="plain-pickle"),
        pytest.param(None, b"", NotFound, id="absent"),
    ],
)
def test_what_is_no_package_is_refused(
    embedded: Any, tmp_path: Path, file: str | None, content: bytes, error: type[ManybeamError]
) -> None:
    path = tmp_path / (file or "absent")
    if file:
        path.write_bytes(content)
    with pytest.raises(error):
        import_(embedded, path, "guest")


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Path]:
    """A folder for a test that may not read everything, even where root runs it."""
    is_root = os.geteuid() == 0
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    if is_root:
        os.seteuid(65534)
    yield place
    if is_root:
        os.seteuid(0)
    shutil.rmtree(place)


def test_a_folder_with_a_file_that_may_not_be_read_is_refused(
    folder: Path, embedded: Any, unprivileged: Path
) -> None:
    euid = os.geteuid()
    os.seteuid(os.getuid())
    shutil.copytree(folder, unprivileged / "g")
    (unprivileged / "g" / "manifest.json").chmod(0)
    os.seteuid(euid)
    with pytest.raises(UnreadableFile, match=r"manifest\.json cannot be read: Permission denied"):
        import_(embedded, unprivileged / "g", "guest")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("g" * 300, id="long-name"),
        pytest.param(f"{'g' * 300}/g.zip", id="long-folder"),
        pytest.param("/proc/self/mem", id="no-file-to-read"),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(embedded: Any, tmp_path: Path, place: str) -> None:
    with pytest.raises(UnreadableFile, match="cannot be read"):
        import_(embedded, tmp_path / place, "guest")


def test_the_limits_hold_for_a_package(folder: Path, embedded: Any, tmp_path: Path) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "g"), "zip", folder))
    for limits in (UnpackLimits(total_bytes=1000), UnpackLimits(entries=2)):
        with pytest.raises(TooLarge):
            import_(embedded, path, "guest", limits=limits)


@pytest.mark.parametrize("name", ["a/b", "Graphen", "graphène", "g" * 300, "auto", ""])
def test_a_name_no_ensemble_can_have_is_refused(folder: Path, embedded: Any, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot name an ensemble"):
        import_(embedded, folder, name)


# -- what travels beside the members -----------------------------------------------------------
FRAMES = FrameSetUse("s3://lab/frames/a", "1" * 32)


@pytest.fixture(scope="module")
def rehearsed_folder(tmp_path_factory: pytest.TempPathFactory, rehearsed_zoo: Any) -> Path:
    """A folder of three members that were rehearsed."""
    path = tmp_path_factory.mktemp("out") / "rehearsed"
    return export(rehearsed_zoo, "graphene@2", path, form="safetensors")


def test_a_rehearsal_travels_and_teaches_the_same_elsewhere(
    package: Path, embedded: Any, rehearsed: Any
) -> None:
    said: list[str] = []
    got = import_(embedded, package, "guest", say=said.append)
    known = performance_predictor(embedded, got.ref)
    assert said == []
    assert known is not None
    assert np.array_equal(known.table.belief_km, rehearsed.table.belief_km)
    drawn = rehearsed.drawn(0)
    seen = analyse(rehearsed.ensemble, drawn.frames_nyx[0], float(drawn.pixel_size_pm[0]), None)
    alone = [{member: 1.0} for member in known.table.members]
    assert known.predict_f1(seen, alone) == PerformancePredictor(rehearsed.table).predict_f1(
        seen, alone
    )


def test_a_rehearsal_of_one_member_travels_with_it(
    rehearsed_zoo: Any, embedded: Any, tmp_path: Path
) -> None:
    path = export(rehearsed_zoo, "graphene@2/01", tmp_path / "one", form="safetensors")
    known = performance_predictor(embedded, import_(embedded, path, "guest").ref)
    assert known is not None
    assert known.table.members == (1,)


def _table(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change arrays of the calibration set, and the digest the manifest has of it."""
    from manybeam.zoo.exchange.unpack import sha256_of_file

    def apply(folder: Path) -> None:
        path = folder / "reference-table.npz"
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        change(arrays)
        np.savez_compressed(path, allow_pickle=True, **arrays)
        _manifest(lambda m: m["rehearsal"].update(sha256=sha256_of_file(path)))(folder)

    return apply


def _huge(folder: Path) -> None:
    """Let the table's first array say that it has a million million numbers."""
    from manybeam.zoo.exchange.unpack import sha256_of_file

    path = folder / "reference-table.npz"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["truth_n.npy"] = re.sub(rb"\(\d+,\)", b"(1000000000000,)", parts["truth_n.npy"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    _manifest(lambda m: m["rehearsal"].update(sha256=sha256_of_file(path)))(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(
            _manifest(lambda m: m["rehearsal"]["weights"].update({"0": "0" * 64})),
            "other weights",
            id="made with other weights",
        ),
        pytest.param(
            _manifest(lambda m: m["rehearsal"]["weights"].pop("2")), "other weights", id="of two"
        ),
        pytest.param(_huge, "another size than declared", id="an array of terabytes"),
        pytest.param(
            _table(lambda a: a.update(truth_n=np.array([{}], dtype=object))),
            "another size than declared",
            id="a pickle in it",
        ),
        pytest.param(
            _table(lambda a: a.update(frame_k=a["frame_k"] + 1000)),
            "frames that do not exist",
            id="atoms of no frame",
        ),
        pytest.param(
            _table(lambda a: a.update(belief_km=a["belief_km"][:, :2])),
            "belief_km has another shape or type",
            id="beliefs of two members",
        ),
        pytest.param(
            _table(lambda a: a.update(source_n=np.array("x"))),
            "another shape or type",
            id="no list",
        ),
        pytest.param(
            _table(lambda a: a.update(members=a["members"] + 1)), "members 1, 2, 3", id="others"
        ),
        pytest.param(
            _table(lambda a: a.update(structure=np.array("<b>"))),
            "its structure has a name that is not allowed",
            id="a structure that is markup",
        ),
        pytest.param(
            _table(lambda a: a.update(version=a["version"] + 1)), "another version", id="newer"
        ),
    ],
)
def test_a_rehearsal_that_is_not_of_these_weights_or_not_sound_is_left_out(
    rehearsed_folder: Path, embedded: Any, tmp_path: Path, change: Change, why: str
) -> None:
    shutil.copytree(rehearsed_folder, tmp_path / "odd")
    change(tmp_path / "odd")
    said: list[str] = []
    got = import_(embedded, tmp_path / "odd", "guest", say=said.append)
    assert performance_predictor(embedded, got.ref) is None
    (told,) = said
    assert told.startswith(f"{got.ref}: its calibration set was not imported: ")
    assert why in told


def test_where_keys_are_set_a_rehearsal_counts_once_the_owner_has_signed(
    rehearsed_folder: Path, embedded: Any, tmp_path: Path, use_settings: Any
) -> None:
    private, public = make_keys(tmp_path / "keys")
    use_settings({"MANYBEAM_SIGNING_KEY": str(private), "MANYBEAM_TRUSTED_KEYS": str(public)})
    got = import_(embedded, rehearsed_folder, "guest")
    with pytest.raises(NotAllowed, match="no trusted key has signed"):
        performance_predictor(embedded, got.ref)
    embedded.sign(got.ref)
    assert performance_predictor(embedded, got.ref) is not None


def test_the_frames_members_were_trained_and_measured_on_travel(
    zoo: Any, name: str, tiny_members: Any, tmp_path: Path
) -> None:
    score = Score(ENSEMBLE, "dim", "d" * 32, {"f1": 0.9}, test_set=TestSet(frame_sets=(FRAMES,)))
    sent = zoo.register(name, tiny_members(1), job={}, inputs=[FRAMES], scores=[score])
    path = export(zoo, sent.ref, tmp_path / "out", form="safetensors")
    got = import_(zoo, path, f"{name}-guest")
    assert got.inputs == sent.inputs == (FRAMES,)
    details = [row["details"] for row in lineage(zoo, got.ref).rows() if row["what"] == "frame set"]
    assert details == [
        f"trained on, before it was imported, digest {FRAMES.digest}",
        f"measured on, digest {FRAMES.digest}",
    ]


def _signed(zoo: Any, members: list[Any], folder: Path, use_settings: Any) -> tuple[Path, Path]:
    """Return the export of a version that others signed, and their public key."""
    private, public = make_keys(folder / "theirs")
    use_settings({"MANYBEAM_SIGNING_KEY": str(private), "MANYBEAM_TRUSTED_KEYS": ""})
    sent = zoo.register("theirs", members, job={})
    assert sent.signature
    return export(zoo, sent.ref, folder / "out", form="safetensors"), public


@pytest.mark.parametrize(
    ("is_trusted", "change", "told"),
    [
        pytest.param(
            False, None, "which is not trusted here: the signature was not checked", id="unknown"
        ),
        pytest.param(True, None, "with the same weights, was signed by the key", id="trusted"),
        pytest.param(
            True,
            _manifest(lambda m: m.update(seal=m["seal"][:20] + "AAAA" + m["seal"][24:])),
            "but the signature is wrong",
            id="forged",
        ),
        pytest.param(
            True,
            _manifest(lambda m: m.update(digest="0" * 64)),
            "this signature does not belong to these weights",
            id="of another manifest",
        ),
    ],
)
def test_a_foreign_signature_is_a_statement_and_never_trust_in_the_import(
    embedded: Any,
    tiny_members: Any,
    tmp_path: Path,
    use_settings: Any,
    *,
    is_trusted: bool,
    change: Change | None,
    told: str,
) -> None:
    path, public = _signed(embedded, tiny_members(1), tmp_path, use_settings)
    if change is not None:
        change(path)
    own, _ = make_keys(tmp_path / "own")
    trusted = public.parent if is_trusted else own.parent
    use_settings({"MANYBEAM_SIGNING_KEY": "", "MANYBEAM_TRUSTED_KEYS": str(trusted)})
    got = import_(embedded, path, "guest")
    first, second = signatures(got)
    assert first == "guest@1 is not signed: it was imported"
    assert told in second
    assert got.signature == ""
    with pytest.raises(NotAllowed, match="it is not signed"):
        embedded.members(got.ref)


def test_a_signature_of_other_weights_is_not_told_as_one_of_these(
    embedded: Any, tiny_members: Any, tmp_path: Path, use_settings: Any
) -> None:
    path, _ = _signed(embedded, tiny_members(2)[:1], tmp_path, use_settings)
    other = export(
        embedded, embedded.register("x", tiny_members(2)[1:], job={}).ref, tmp_path / "other",
        form="safetensors",
    )  # fmt: skip
    theirs = json.loads((path / "manifest.json").read_text())
    shutil.copy(path / "original.json", other / "original.json")
    kept = {key: theirs[key] for key in ("seal", "digest", "original", "ensemble", "version")}
    _manifest(lambda m: m.update(kept))(other)
    assert (
        "does not belong to these weights"
        in list(signatures(import_(embedded, other, "guest")))[-1]
    )


def test_a_package_of_before_these_travelled_comes_in(
    rehearsed_folder: Path, embedded: Any, tmp_path: Path
) -> None:
    shutil.copytree(rehearsed_folder, tmp_path / "old")
    late = ("inputs", "rehearsal", "original", "seal")
    _manifest(lambda m: [m.pop(key) for key in late])(tmp_path / "old")
    got = import_(embedded, tmp_path / "old", "guest")
    assert (got.inputs, performance_predictor(embedded, got.ref), got.member_count) == ((), None, 3)
    assert list(signatures(got)) == ["guest@1 is not signed: it was imported"]

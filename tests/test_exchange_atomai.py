"""AtomAI's files: read without running anything, and answering as AtomAI itself did.

`data/atomai/README.md` says how the files and the answers beside them were made.
"""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manybeam.errors import InvalidInput, InvalidSpec, ManybeamError, UnreadableFile
from manybeam.zoo.exchange import AtomAIFrames, export, import_
from manybeam.zoo.exchange.atomai import read_atomai

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = Path(__file__).parent / "data" / "atomai"
FRAMES = AtomAIFrames(pixel_size_pm=16.0)
KINDS = {"three": (6, 14)}
ALL = ["ensemble", "single", "three"]


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """The frame, and what AtomAI's predictor said of it: (m, y, x, channel) by file."""
    with np.load(DATA / "expected.npz") as kept:
        return dict(kept)


def frames_of(name: str) -> AtomAIFrames:
    return AtomAIFrames(16.0, elements=KINDS.get(name, ()))


@pytest.mark.parametrize("name", ALL)
def test_members_answer_as_atomai_did(answers: dict[str, Any], name: str) -> None:
    frame_yx = answers["frame"]
    scaled_yx = (frame_yx - frame_yx.min()) / np.ptp(frame_yx)
    members = read_atomai(DATA / f"{name}.tar", frames_of(name)).members
    assert len(members) == len(answers[name])
    for member, expected_yxc in zip(members, answers[name], strict=True):
        with torch.inference_mode():
            logits = member.network()(torch.from_numpy(scaled_yx)[None, None])
        prob_yxc = logits.sigmoid()[0].permute(1, 2, 0).numpy()
        assert np.abs(prob_yxc - expected_yxc[..., : prob_yxc.shape[-1]]).max() < 1e-5
        assert prob_yxc.max() > 0.4


@pytest.mark.parametrize("name", ALL)
def test_an_ensemble_of_them_predicts_like_any_other(
    answers: dict[str, Any], embedded: Any, name: str
) -> None:
    record = import_(embedded, DATA / f"{name}.tar", "guest", frames=frames_of(name))
    found = embedded.ensemble(record.ref).predict(answers["frame"], 16.0)
    kinds = max(answers[name].shape[-1] - 1, 1)
    expected_yx = answers[name][..., :kinds].max(axis=-1).mean(axis=0)
    assert np.abs(found.mean_yx - expected_yx).max() < 1e-5
    assert len(found.atoms) > 3
    assert set(found.atoms[:, 2]) <= ({0.0} if kinds == 1 else {1.0, 2.0})


def test_they_are_registered_with_where_they_come_from(zoo: Any, name: str) -> None:
    record = import_(zoo, DATA / "ensemble.tar", name, frames=FRAMES, alias="candidate")
    assert record.member_count == 2
    assert (record.job["form"], record.job["source"]) == ("atomai", "ensemble.tar")
    assert record.job["origin"]["settings"]["layers"] == [1, 2, 1, 1]
    assert all(test.reproduces for test in zoo.test(record.ref))


@pytest.mark.slow
def test_they_leave_again_as_a_package_and_come_back(embedded: Any, tmp_path: Path) -> None:
    first = import_(embedded, DATA / "three.tar", "guest", frames=frames_of("three"))
    path = export(embedded, first.ref, tmp_path / "guest.zip")
    again = import_(embedded, path, "guest")
    assert again.members[0].sha256 == first.members[0].sha256


def test_a_file_of_an_older_torch_is_read_too(tmp_path: Path, embedded: Any) -> None:
    content = torch.load(DATA / "ensemble.tar", weights_only=True)
    torch.save(content, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    record = import_(embedded, tmp_path / "old.tar", "guest", frames=FRAMES)
    assert record.member_count == 2


class _Runs:
    """What a hostile file holds: opening it as a plain pickle would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("is_new", [pytest.param(True, id="zip"), pytest.param(False, id="legacy")])
@pytest.mark.parametrize("key", ["optimizer", "weights", "note"])
def test_a_program_in_a_file_is_named_and_not_run(
    tmp_path: Path, embedded: Any, key: str, is_new: Any
) -> None:
    content = torch.load(DATA / "ensemble.tar", weights_only=True)
    content[key] = _Runs(tmp_path / "ran")
    torch.save(content, tmp_path / "bad.tar", _use_new_zipfile_serialization=is_new)
    with pytest.raises(UnreadableFile, match=r"posix\.mkdir"):
        import_(embedded, tmp_path / "bad.tar", "guest", frames=FRAMES)
    assert not (tmp_path / "ran").exists()
    assert embedded.ls() == []


def _changed(tmp_path: Path, **changes: Any) -> Path:
    content = torch.load(DATA / "ensemble.tar", weights_only=True)
    torch.save({**content, **changes}, tmp_path / "changed.tar")
    return tmp_path / "changed.tar"


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        pytest.param(
            {"model": "SegResNet"},
            InvalidSpec,
            "'SegResNet' of AtomAI cannot be imported",
            id="model",
        ),
        pytest.param({"model_type": "vae"}, UnreadableFile, "segmentation", id="type"),
        pytest.param({"layers": [1, 2]}, UnreadableFile, "description of its network", id="layers"),
        pytest.param({"layers": [float("inf")] * 4}, UnreadableFile, "its network", id="infinite"),
        pytest.param({"nb_classes": float("inf")}, UnreadableFile, "its network", id="channels"),
        pytest.param({"layers": [1, 2, 1, 10]}, InvalidSpec, "1 to 9 layers", id="many-layers"),
        pytest.param({"upsampling": "bicubic"}, InvalidSpec, "bicubic", id="enlarging"),
        pytest.param({"nb_filters": 4}, UnreadableFile, "do not fit", id="other-width"),
        pytest.param({"nb_filters": 10**9}, InvalidSpec, "256 filters", id="huge"),
        pytest.param({"batch_norm": False}, UnreadableFile, "do not fit", id="no-norm"),
        pytest.param({"weights": {}}, UnreadableFile, "not tensors", id="no-weights"),
        pytest.param({"weights": [1, 2]}, UnreadableFile, "not tensors", id="numbers"),
        pytest.param({"weights": {0: {"x": 1}}}, UnreadableFile, "not tensors", id="no-tensor"),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[ManybeamError], word: str
) -> None:
    with pytest.raises(error, match=word):
        read_atomai(_changed(tmp_path, **changes), FRAMES)


def test_a_small_file_cannot_claim_a_large_tensor(tmp_path: Path) -> None:
    content = torch.load(DATA / "ensemble.tar", weights_only=True)
    content["weights"][0]["px.weight"] = torch.zeros(1).expand(10**12)
    torch.save(content, tmp_path / "large.tar")
    with pytest.raises(UnreadableFile, match=r"last\.weight"):
        read_atomai(tmp_path / "large.tar", FRAMES)


@pytest.mark.parametrize(
    ("file", "frames", "word"),
    [
        pytest.param("ensemble", None, "--pixel-size-pm", id="no-pixel-size"),
        pytest.param("three", FRAMES, "--elements", id="no-elements"),
        pytest.param("ensemble", AtomAIFrames(16.0, elements=(6,)), "remove", id="one-kind"),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(
    file: str, frames: AtomAIFrames | None, word: str
) -> None:
    with pytest.raises(InvalidInput, match=word):
        read_atomai(DATA / f"{file}.tar", frames)


def test_a_bomb_in_the_form_of_atomai_is_refused(tmp_path: Path, embedded: Any) -> None:
    path = tmp_path / "bomb.tar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(200_000_000))
    with pytest.raises(ManybeamError, match="too high a compression"):
        import_(embedded, path, "guest", frames=FRAMES)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, embedded: Any, share: float) -> None:
    whole = (DATA / "ensemble.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableFile):
        import_(embedded, tmp_path / "cut.tar", "guest", frames=FRAMES)

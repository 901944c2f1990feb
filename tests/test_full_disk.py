"""A disk that takes no more: each store says so, and nothing half-written stays."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.cli import main
from manybeam.data.tiles import _atomic_folder
from manybeam.errors import StoreUnreachable
from manybeam.zoo.backup.making import _appearing

pytestmark = pytest.mark.slow

LIBRARY = Path(__file__).parents[1] / "zoo"


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow past a page; writes then fail as on a full disk, and need no root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def home(
    embedded: Any,
    tiny_members: Callable[[int], list[Any]],
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_ZOO": str(LIBRARY)})
    embedded.register("tiny", tiny_members(1), job={"kind": "train"})
    np.save(tmp_path / "frame.npy", np.random.default_rng(0).random((96, 96), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param("zoo promote tiny@1 --reason full", "manybeam.db", id="database"),
        pytest.param("zoo ls", "catalogue", id="catalogue"),
        pytest.param("data import frame.npy --pixel-size-pm 16 --out new", "new", id="frames"),
        pytest.param(
            "predict frame.npy -e tiny@1 --pixel-size-pm 16 --zarr new", "new", id="answer"
        ),
        pytest.param("backup new", "disk", id="backup"),
        pytest.param("zoo import packed --name again", "the zoo cannot be written", id="zoo"),
    ],
)
def test_a_full_disk_is_named_and_leaves_nothing_behind(
    home: Path, words: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if "packed" in words:
        export = "zoo export tiny@1 --format safetensors --out packed"
        assert main(export.split()) == 0
    capfd.readouterr()
    with full_disk():
        assert main(words.split()) == 1
    said = capfd.readouterr().err
    assert told in said
    for wrong in ("did not foresee", "Traceback", "does not answer"):
        assert wrong not in said
    assert not [path for path in (home / "new").rglob("*") if path.is_file()]


@pytest.mark.parametrize("writing", [_atomic_folder, _appearing])
def test_a_store_that_is_down_is_not_blamed_on_the_disk_that_is_written_to(
    writing: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with pytest.raises(StoreUnreachable, match="is down"), writing(tmp_path / "target"):
        raise StoreUnreachable("the store is down")
    assert not list(tmp_path.iterdir())

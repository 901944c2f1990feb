"""One real Ray cluster of two cores for every test of this folder, and work small enough for it."""

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.frames import FrameSet
from manybeam.settings import settings
from manybeam.spec import Condition, Job, Library

RECIPE = """
id: small
network: {name: unet, filters: 4, levels: 2}
training: {steps: STEPS, batch: 4, checkpoint_every: 10, precision: float32}
tiles: {tile_px: 32, pixel_size_pm: 20, mask_radius_pm: 50, frames_per_policy: 4}
members:
  - {seed: 1, policy: plain}
  - {seed: 2, policy: plain}
  - {seed: 3, policy: plain}
"""
POLICY = """
id: plain
sample: {structure: graphene}
scan: {pixel_size_pm: [18, 22], shape: [64, 64]}
dose_e_per_a2: [1e5, 1e6]
"""


@pytest.fixture(scope="session")
def cluster(ends: dict[str, Callable[[], None]]) -> Iterator[str]:
    """A cluster on this machine; its start is what these tests cost most."""
    from manybeam.cluster import joining as jobs_cluster

    ends["cluster"] = jobs_cluster.disconnect
    yield jobs_cluster.connect(cpus=2)
    jobs_cluster.disconnect()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Iterator[Path]:
    """A platform of its own for one test, with an empty zoo."""
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "zoo.db")
    monkeypatch.setenv("MANYBEAM_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Recipes `small` (30 steps), `long` (240), and `swag` and `odd`, which cannot be trained."""
    for name, steps in (("small", 30), ("long", 240)):
        _write(tmp_path, f"recipes/{name}.yaml", RECIPE.replace("STEPS", str(steps)), name)
    swag = RECIPE.replace("STEPS", "30") + "strategy: swag\n"
    _write(tmp_path, "recipes/swag.yaml", swag, "swag")
    odd = RECIPE.replace("STEPS", "30").replace("name: unet", "name: Odd")
    _write(tmp_path, "recipes/odd.yaml", odd, "odd")
    _write(tmp_path, "policies/plain.yaml", POLICY, "plain")
    return Library(tmp_path / "zoo")


def _write(folder: Path, name: str, text: str, identity: str) -> None:
    path = folder / "zoo" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("id: small", f"id: {identity}"))


@pytest.fixture
def frames(tmp_path: Path) -> FrameSet:
    """Six labelled frames of bright discs in noise."""
    condition = Condition.model_validate({"id": "discs", "scan": {"pixel_size_pm": 20}})
    frameset = FrameSet.create(tmp_path / "frames", condition, (64, 64))
    random = np.random.default_rng(4)
    y, x = np.mgrid[:64, :64]
    shown, truth = [], []
    for _ in range(6):
        centres = random.uniform(4, 60, (12, 2))
        distance = np.hypot(y[..., None] - centres[:, 0], x[..., None] - centres[:, 1]).min(-1)
        shown.append(2 * np.exp(-(distance**2) / 8) + random.normal(0, 0.3, (64, 64)))
        truth.append(np.column_stack([centres, np.full(12, 6)]).astype(np.float32))
    frameset.append(np.stack(shown).astype(np.float32), truth, None)
    return FrameSet.open(frameset.url)


@pytest.fixture
def job(frames: FrameSet) -> Job:
    """Training of recipe `small` on the six frames, by two workers."""
    return Job.model_validate(
        {
            "kind": "train",
            "name": "discs",
            "recipe": "small",
            "frames": [frames.url],
            "resources": {"workers": 2, "cpus_per_worker": 1, "retries": 2},
        }
    )


os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that returns a free port, which the system gives to no connection meanwhile."""

    def find() -> int:
        drawn = random.SystemRandom()  # each process of the tests draws others
        while True:
            port = drawn.randrange(10_000, 20_000)
            with suppress(OSError), socket.socket() as probe:
                probe.bind(("", port))
                return port

    return find


@pytest.fixture(scope="module")
def served_home(tiny_zoo: Any) -> Iterator[Path]:
    """Make the tiny zoo that of this process's settings."""
    home = Path(tiny_zoo._cache.folder).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(home))
        patch.setenv("MANYBEAM_ZOO", str(Path(__file__).parents[2] / "zoo"))
        patch.setenv("MANYBEAM_MAX_FRAME_PX", "4000000")
        settings.cache_clear()
        yield home
    settings.cache_clear()

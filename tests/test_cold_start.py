"""What a command loads from a cold start: packages that take seconds only where they are used."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def loaded_by(*words: str) -> set[str]:
    """Return what the command line has loaded after a command, which must succeed."""
    script = (
        "import contextlib, io, sys\nfrom manybeam.cli import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()): assert main({list(words)}) == 0\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", script]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_a_file_is_shown_without_what_networks_and_framesets_need(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(64, dtype=np.float32))
    loaded = loaded_by("data", "show", str(tmp_path / "a.npy"))
    assert not loaded & {"torch", "ray", "mlflow", "zarr", "matplotlib", "sqlalchemy"}


def test_a_second_prediction_loads_its_network_only(
    rehearsed_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYBEAM_HOME", str(rehearsed_home))
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(9, (64, 64)))
    words = ("predict", str(tmp_path / "a.npy"), "-e", "graphene", "--pixel-size-pm", "16")
    loaded_by(*words)  # the first one asks MLflow, and compiles the networks
    assert not loaded_by(*words) & {"torch", "ray", "mlflow", "zarr", "matplotlib", "sqlalchemy"}

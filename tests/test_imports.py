"""What an import costs: nothing heavy is loaded before it is used."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "ray",
    "mlflow",
    "zarr",
    "scipy",
    "matplotlib",
    "fastapi",
    "numpy",
    "pydantic",
    "sqlalchemy",
)


def _loaded_after(statement: str) -> set[str]:
    script = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["manybeam", "manybeam.cli"])
def test_an_import_loads_nothing_heavy(package: str) -> None:
    assert not _loaded_after(f"import {package}") & set(HEAVY)


@pytest.mark.parametrize(
    "package", ["manybeam.spec", "manybeam.settings", "manybeam.data.io.reading"]
)
def test_the_lower_layers_load_no_cluster_and_no_registry(package: str) -> None:
    assert not _loaded_after(f"import {package}") & {"torch", "ray", "mlflow"}


def test_help_is_shown_without_loading_anything_heavy() -> None:
    shown = (
        "import contextlib, io\nfrom manybeam.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])"
    )
    assert not _loaded_after(shown) & set(HEAVY)

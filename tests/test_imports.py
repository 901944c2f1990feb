"""What an import costs: nothing heavy is loaded before it is used, and no circle is closed."""

import subprocess
import sys
from pathlib import Path

import grimp
import numpy as np
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


def _loaded_by(*words: str) -> set[str]:
    """Return what the command line has loaded after a command, which must succeed."""
    return _loaded_after(
        "import contextlib, io\nfrom manybeam.cli import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()): assert main({list(words)}) == 0"
    )


def test_a_file_is_shown_without_what_networks_and_framesets_need(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(64, dtype=np.float32))
    loaded = _loaded_by("data", "show", str(tmp_path / "a.npy"))
    assert not loaded & {"torch", "ray", "mlflow", "zarr", "matplotlib", "sqlalchemy"}


def test_a_second_prediction_loads_its_network_only(
    rehearsed_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYBEAM_HOME", str(rehearsed_home))
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(9, (64, 64)))
    words = ("predict", str(tmp_path / "a.npy"), "-e", "graphene", "--pixel-size-pm", "16")
    _loaded_by(*words)  # the first one asks MLflow
    assert not _loaded_by(*words) & {"ray", "mlflow", "zarr", "matplotlib", "sqlalchemy"}


# -- circles ------------------------------------------------------------------------------------
# The root names what `public` holds for type checkers only; it loads it late.
LATE = ("manybeam", "manybeam.public")


@pytest.fixture
def imports() -> grimp.ImportGraph:
    """Who imports whom, also for type checkers only and also inside of functions."""
    graph = grimp.build_graph("manybeam", cache_dir=None)
    graph.remove_import(importer=LATE[0], imported=LATE[1])
    return graph


def _circles(graph: grimp.ImportGraph) -> set[frozenset[str]]:
    """Return the sets of modules that reach each other."""
    found = {
        frozenset({name, *graph.find_upstream_modules(name) & graph.find_downstream_modules(name)})
        for name in graph.modules
    }
    return {circle for circle in found if len(circle) > 1}


def test_no_modules_import_each_other(imports: grimp.ImportGraph) -> None:
    assert not _circles(imports)


def test_a_circle_is_seen_through_other_modules(imports: grimp.ImportGraph) -> None:
    ends = {"importer": "manybeam.data.frames", "imported": "manybeam.learn.nets.notebook"}
    imports.add_import(**ends)
    (made,) = _circles(imports)
    assert {*ends.values(), "manybeam.learn.nets.ensemble"} <= made


def test_an_import_for_type_checkers_counts(imports: grimp.ImportGraph) -> None:
    ends = {"importer": "manybeam.zoo.catalogue.catalogue", "imported": "manybeam.zoo.registry"}
    assert imports.direct_import_exists(**ends)

"""What an import costs: nothing heavy is loaded before it is used, and no circle is closed."""

import subprocess
import sys

import grimp
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

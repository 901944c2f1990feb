"""The import contracts hold, and each is seen to fail when it is broken."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BREAKS = [
    pytest.param(
        "learn/nets/networks.py", "import manybeam.zoo", "layers point downward", id="upward"
    ),
    pytest.param(
        "learn/nets/networks.py", "import ray", "science knows no cluster", id="science-ray"
    ),
    pytest.param("jobs/train.py", "import mlflow", "only the zoo speaks MLflow", id="mlflow"),
    pytest.param("zoo/matrix.py", "import obstore", "only data.store speaks object", id="store"),
    pytest.param("data/commits.py", "import obstore", "only data.store speaks object", id="data"),
    pytest.param("cli/app.py", "import ray", "only cluster, jobs and serve speak Ray", id="ray"),
    pytest.param("zoo/matrix.py", "import manybeam.predictor", "layers point", id="predictor"),
    pytest.param("learn/nets/atoms.py", "import sqlalchemy", "science knows no", id="sql"),
    pytest.param("zoo/records.py", "import sqlalchemy", "only db speaks SQL", id="sql-zoo"),
    pytest.param("zoo/records.py", "import sqlite3", "only db speaks SQL", id="sqlite"),
    pytest.param("web/api.py", "import alembic", "only db speaks SQL", id="migrations"),
    pytest.param("db/audit.py", "import manybeam.data.store", "layers point", id="db-data"),
    pytest.param(
        "serve/wire.py",
        "import manybeam.jobs.train",
        "serving and pages reach training",
        id="serve",
    ),
    pytest.param("client", "import manybeam.errors", "the client stands alone", id="client"),
]


def _path(module: str) -> str:
    """Return the path of a module below the source root; `client` is one of the client."""
    return "client/manybeam_client/errors.py" if module == "client" else f"manybeam/{module}"


def _lint(platform: Path) -> subprocess.CompletedProcess[str]:
    command = [
        Path(sys.executable).parent / "lint-imports",
        "--no-cache",
        "--config",
        ROOT / "pyproject.toml",
    ]
    path = os.pathsep.join([str(platform), str(platform / "client")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command, cwd=platform, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the source root that a test may break."""
    return Path(shutil.copytree(ROOT / "platform", tmp_path / "platform"))


def test_the_contracts_hold(copy: Path) -> None:
    done = _lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each contract of a copy that is broken in all these ways at once."""
    copy = shutil.copytree(ROOT / "platform", tmp_path_factory.mktemp("broken") / "platform")
    for module, line, _ in (case.values for case in BREAKS):
        with (copy / _path(module)).open("a") as file:
            file.write(f"\n{line}\n")
    done = _lint(copy)
    assert done.returncode == 1
    parts = re.split(r"^(.+)\n-{3,}$", done.stdout.split("Broken contracts")[1], flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("module", "line", "contract"), BREAKS)
def test_a_broken_contract_is_seen(
    faults: dict[str, str], module: str, line: str, contract: str
) -> None:
    (said,) = [said for name, said in faults.items() if name.startswith(contract)]
    importer = _path(module).removeprefix("client/").removesuffix(".py").replace("/", ".")
    assert f"{importer} -> {line.removeprefix('import ')} (l." in said


def test_a_stray_module_breaks_the_build(copy: Path) -> None:
    (copy / "manybeam" / "stray.py").write_text("")
    assert _lint(copy).returncode != 0

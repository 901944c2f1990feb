"""The house: sizes, names and layers that keep the code livable."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "platform").rglob("*.py"))
MOST_FILES = 16  # `__init__.py` among them; more is the sign of a missing room
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "base", "manager"}


def _functions(path: Path) -> list[tuple[str, int]]:
    """Return (name, lines of body without the docstring) of every function in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            first, last = body[0].lineno, body[-1].end_lineno or body[-1].lineno
            found.append((f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", last - first + 1))
    return found


def test_a_function_fits_a_screen() -> None:
    long = [f for path in MODULES for f in _functions(path) if f[1] > 40]
    assert not long, long


def test_a_room_holds_few_files() -> None:
    counts = {path: len(list(path.glob("*.py"))) for path in {module.parent for module in MODULES}}
    assert not {str(path): n for path, n in counts.items() if n > MOST_FILES}


def test_half_of_the_functions_have_at_most_eight_lines() -> None:
    assert statistics.median(lines for path in MODULES for _, lines in _functions(path)) <= 8


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [path for path in MODULES if path.stem in FORBIDDEN_NAMES]


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("folder", ["zoo", "jobs"])
def test_the_folders_a_facility_writes_hold_no_python(folder: str) -> None:
    assert not list((ROOT / folder).rglob("*.py"))


def test_no_python_lies_at_the_top() -> None:
    assert not list(ROOT.glob("*.py"))  # a rival's server once wrote a client there


def test_every_module_says_what_it_holds() -> None:
    silent = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_no_weight_is_ever_unpickled() -> None:
    calls = [
        path
        for path in MODULES
        for line in path.read_text().splitlines()
        if ("torch.load(" in line and "weights_only=True" not in line) or "pickle.load" in line
    ]
    assert not calls

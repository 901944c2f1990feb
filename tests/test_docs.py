"""The documents are true: every command, option, setting, file and YAML block in them exists."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from manybeam.cli.app import app
from manybeam.settings import Settings
from manybeam.spec import Condition, Job, Policy, Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "*/*.md", "platform/decisions/*.md")
    for page in ROOT.glob(pattern)
    if ".venv" not in page.parts
)
COMMAND = re.compile(r"\bmanybeam ((?:[a-z]+)(?: [a-z]+)?)([^\n`|&]*)")
MOST_README_LINES = 150
MOST_PICTURE_BYTES = 200_000
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!http|#)([^)#]+)")


def _commands() -> list[object]:
    """Every `manybeam ...` that stands in a code block or in backticks of a page."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        shell = "\n".join(
            body for kind, body in FENCE.findall(text) if kind in ("sh", "bash", "console")
        )
        inline = "\n".join(re.findall(r"`(manybeam [^`\n]+)`", text))
        for words, rest in COMMAND.findall(shell + "\n" + inline):
            found[(page.name, words, rest)] = pytest.param(words, rest, id=f"{page.name}: {words}")
    return list(found.values())


@pytest.mark.parametrize(("words", "rest"), _commands())
def test_a_command_in_the_docs_exists_with_its_options(words: str, rest: str) -> None:
    nouns = {group.name for group in app.registered_groups}
    parts = words.split()
    command = parts if parts[0] in nouns else parts[:1]
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    missing = [o for o in re.findall(r"(?<= )--[a-z-]+", rest) if o not in done.output + "--debug"]
    assert not missing, f"{words}: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    assert not [to for to in LINK.findall(page.read_text()) if not (page.parent / to).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_setting_in_the_docs_exists(page: Path) -> None:
    known = {f"MANYBEAM_{name.upper()}" for name in Settings.model_fields}
    named = re.findall(r"MANYBEAM_[A-Z0-9_]+(?![A-Z0-9_*])", page.read_text())
    assert {name for name in named if not name.endswith("_")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_yaml_block_in_the_docs_is_valid(page: Path) -> None:
    kinds = {"kind": Job, "members": Recipe}
    for kind, body in FENCE.findall(page.read_text()):
        if kind == "yaml":
            content = yaml.safe_load(body)
            model = next((m for key, m in kinds.items() if key in content), Policy)
            (Condition if "origin" in content else model).model_validate(content)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_file_named_in_the_docs_exists(page: Path) -> None:
    named = re.findall(
        r"`((?:platform|zoo|jobs|tests|infra|dashboards)/[\w./-]+)`", page.read_text()
    )
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_top_level_folder_has_a_readme() -> None:
    folders = ("platform", "zoo", "jobs", "tests", "infra", "dashboards")
    assert not [folder for folder in folders if not (ROOT / folder / "README.md").is_file()]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_README_LINES


def test_the_readme_has_one_picture_that_is_small() -> None:
    (to,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert (ROOT / to).stat().st_size <= MOST_PICTURE_BYTES


def test_the_readme_has_one_table_of_measurements_and_each_row_links_to_its_page() -> None:
    text = (ROOT / "README.md").read_text()
    section = text.split("## What is measured")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert rows
    assert not [row for row in rows if "](platform/decisions/" not in row]


def test_the_readme_activates_the_environment_before_its_first_command() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = [body for kind, body in FENCE.findall(text) if kind == "sh"]
    first = next(body for body in blocks if re.search(r"^manybeam ", body, re.MULTILINE))
    assert first.startswith(". .venv/bin/activate")

"""The report of a demo in a real browser: readable in light and dark, wide and narrow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from manybeam.cli.demo.pictures import answer_panel, frame_panel, truth_panel
from manybeam.cli.demo.report import GridRow, Report
from manybeam.jobs.test_sets import LabelledFrame

pytestmark = pytest.mark.browser

MEMBERS = [(f"{number:02d}", "contaminated samples") for number in range(6)]
TRUTH = np.array([[20.0, 20.0, 6.0], [40.0, 40.0, 6.0]])
ATOMS = np.column_stack([TRUTH, [0.9, 0.8]])


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report with one of everything, and every colour of a number."""
    frame = LabelledFrame(np.random.default_rng(0).random((64, 64)), TRUTH, 16.0)
    made = Report("Manybeam: the right networks for each frame", "Two sentences. What it is.")
    answers = [answer_panel(frame, name, ATOMS[:count]) for name, count in (("all", 1), ("one", 2))]
    made.panels([frame_panel(frame, "An unseen frame"), truth_panel(frame), *answers])
    made.section("Different days, different networks")
    rows = [
        GridRow("Coarse pixels and dirt at once", "the unseen frames", np.linspace(low, 1, 8), [7])
        for low in np.linspace(0, 0.9, 20)
    ]
    columns = [*MEMBERS, ("all", "all members together"), ("selected", "those that suit the frame")]
    made.grid("F1 on each day", columns, rows, apart=6)
    made.section("What to do next")
    made.steps([("MANYBEAM_HOME=" + "a/long/folder/" * 9 + " manybeam web", "Open the pages.")])
    made.table("rows", [{"condition": "graphene-60kv-nominal" * 3, "F1": 0.5}])
    made.write(tmp_path / "report.html")
    return tmp_path / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 420])
def test_a_report_breaks_no_accessibility_rule_and_scrolls_never_sideways(
    report: Path, new_page: Callable[..., Page], scheme: str, width: int
) -> None:
    page = new_page(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(report.as_uri())
    assert [one["id"] for one in Axe().run(page).response["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_telephone_the_whole_grid_is_seen(report: Path, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.set_viewport_size({"width": 420, "height": 900})
    page.goto(report.as_uri())
    grid = page.locator(".grid")
    assert grid.evaluate("one => one.scrollWidth <= one.clientWidth")

"""The pictures behind a score in a real browser."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from manybeam.zoo.matrix import ENSEMBLE
from manybeam.zoo.registry import Zoo

from .conftest import LOWDOSE, Server, drawn, serving

pytestmark = pytest.mark.browser

MakePage = Callable[..., Page]
EXAMPLE = f"/zoo/graphene@2/example/{LOWDOSE}"


def is_loaded(page: Page, which: str = "main img") -> bool:
    """Tell whether a picture of the page came and has a size."""
    picture = page.locator(which)
    expect(picture).to_have_js_property("complete", value=True, timeout=30_000)
    return bool(picture.evaluate("one => one.naturalWidth") > 300)


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "no script"])
def test_a_cell_of_the_matrix_leads_to_a_frame_with_its_errors(
    server: Server, new_page: MakePage, *, scripts: bool
) -> None:
    page = new_page(java_script_enabled=scripts)
    page.goto(f"{server.url}/zoo/graphene@2")
    column = page.locator("table.mb-matrix thead th.mb-turned").all_inner_texts().index(LOWDOSE)
    cell = page.locator("table.mb-matrix tbody tr").nth(2).locator("td.mb-cell a").nth(column)
    cell.click(timeout=30_000)  # its frame is drawn after those of this page, in a new process
    expect(page).to_have_url(re.compile(re.escape(f"{EXAMPLE}?member=00")))
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{LOWDOSE}, frame 1 of 16")
    expect(page.get_by_alt_text("circles")).to_be_visible()
    # Its scores were invented: no frame can have those counts, and the page must not claim it.
    expect(page.get_by_role("note")).to_contain_text("not a frame of the score")
    page.get_by_role("link", name="Next frame").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("frame 2 of 16")
    page.get_by_role("link", name="all members").click()
    expect(page).to_have_url(re.compile(re.escape(f"{EXAMPLE}?frame=1")))
    assert scripts is False or is_loaded(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_example_breaks_no_accessibility_rule(
    server: Server, new_page: MakePage, scheme: str
) -> None:
    page = new_page(color_scheme=scheme)
    page.goto(server.url + EXAMPLE, timeout=30_000)  # its frame is drawn first
    assert is_loaded(page)
    assert not Axe().run(page).response["violations"]


def test_the_curve_of_an_ensemble_is_shown_by_condition(
    make_home: Callable[[], Path], new_page: MakePage
) -> None:
    home = make_home()
    zoo = Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")
    bins = tuple((0.1 * i + 0.05, 0.1 * i, 10 * i) for i in range(10))
    row = drawn(0.8, LOWDOSE, ENSEMBLE, seed=1)
    zoo.record_scores("graphene@2", [replace(row, reliability=bins)])
    with serving(home) as server:
        page = new_page(color_scheme="dark")
        page.goto(f"{server.url}/zoo/graphene@2?score=ece")
        card = page.get_by_role("region", name="Reliability of the ensemble")
        expect(card).to_contain_text("Calibration error (ECE) 0.050 over 450 atoms found")
        card.get_by_label("Condition").select_option(LOWDOSE)
        expect(page).to_have_url(re.compile(f"score=ece&reliability={LOWDOSE}"))
        card.scroll_into_view_if_needed()
        assert is_loaded(page, "img.mb-drawing")
        assert not Axe().run(page).response["violations"]
        page.close()  # before its server, whose end a console would tell

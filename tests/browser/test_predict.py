"""/predict in a real browser, before a real `manybeam web` and a real prediction service."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api
from manybeam.zoo.registry import Zoo

from .conftest import NOWHERE, Server
from .conftest import serving as serving_pages

pytestmark = pytest.mark.browser

FRAME = np.random.default_rng(0).random((96, 120), dtype=np.float32)
VENDOR = Path(__file__).parents[3] / "shared" / "data" / "vendor"
MakePage = Callable[..., Page]


@pytest.fixture(scope="module")
def home(make_home: Callable[[], Path]) -> Path:
    return make_home()


@pytest.fixture(scope="module")
def pages(home: Path, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[Server]:
    zoo = Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")
    answering = Service(ZooVersions(zoo, ["graphene"]))
    app = api(answering, ReplicaLimits(max_frame_px=100_000), Meter(), lambda: "")
    with serving(app) as url, serving_pages(home, MANYBEAM_SERVICE_URL=url) as running:
        yield running


def file(name: str = "scan.npy", array: np.ndarray = FRAME) -> dict[str, Any]:
    stream = io.BytesIO()
    np.save(stream, array)
    return {"name": name, "mimeType": "application/octet-stream", "buffer": stream.getvalue()}


def ask(page: Page, url: str, sent: dict[str, Any]) -> None:
    page.goto(f"{url}/predict")
    page.get_by_label("Pixel size (pm)").fill("16")
    page.get_by_label("Who answers").fill("graphene")
    page.get_by_label("File of a frame").set_input_files(sent)
    page.get_by_role("button", name="Find atoms").click()


def drop(page: Page, name: str, array: np.ndarray = FRAME) -> None:
    """Drop a file on the page, as a person does."""
    data = page.evaluate_handle(
        "([name, values]) => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(values)], name)); return data; }",
        [name, list(file(array=array)["buffer"])],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": data})


def analysed(page: Page) -> None:
    """Wait until the answer with frame analysis is on the page."""
    page.wait_for_selector("body:not(:has(#analyse)) #stage[data-atoms]")


def broken_rules(page: Page) -> dict[int, list[str]]:
    """Return the broken rules of accessibility by width; "wide" if the page scrolls sideways."""
    wrong = {}
    for width in (1440, 420):
        page.set_viewport_size({"width": width, "height": 900})
        found = [one["id"] for one in Axe().run(page).response["violations"]]
        is_wide = page.evaluate("document.documentElement.scrollWidth") > width
        wrong[width] = found + ["wide"] * is_wide
    return {width: found for width, found in wrong.items() if found}


def shown(page: Page) -> int:
    return int(page.locator("#shown-count").inner_text())


def test_the_atoms_of_the_service_are_drawn_and_sliders_hide_them(
    pages: Server, new_page: MakePage
) -> None:
    page = new_page()
    ask(page, pages.url, file())
    analysed(page)
    with urllib.request.urlopen(f"{page.url}/answer.npz") as answer:
        arrays = np.load(io.BytesIO(answer.read()))
    assert shown(page) == len(arrays["atoms"]) > 0
    median = float(np.median(arrays["atoms"][:, 3]))
    page.locator("#least").fill(f"{median:.2f}")
    expected = int((arrays["atoms"][:, 3] >= np.float32(f"{median:.2f}")).sum())
    expect(page.locator("#shown-count")).to_have_text(str(expected))
    expect(page.locator("canvas.mb-atoms")).to_have_count(1)
    page.locator("#least").fill("0")
    page.keyboard.press("]")
    expect(page.locator("#member-name")).to_have_text("member 00")
    of_member = int((arrays["members"][:, 0] == 0).sum())
    expect(page.locator("#all-count")).to_have_text(str(of_member))
    page.get_by_label("Member beside the ensemble").check()
    expect(page.locator("canvas.mb-atoms")).to_have_count(2)
    page.locator("#opacity").fill("0.6")
    page.go_back()
    expect(page.get_by_role("heading", name="Predict")).to_be_visible()


def test_of_two_files_the_newest_wins(pages: Server, new_page: MakePage) -> None:
    page, held = new_page(), list[Route]()
    page.goto(f"{pages.url}/predict")
    page.get_by_label("Pixel size (pm)").fill("16")
    page.get_by_label("Who answers").fill("graphene")
    page.route(
        "**/predict",
        lambda route: held.append(route) if not held else route.continue_(),
    )
    drop(page, "first.npy")
    expect(page.locator("#working")).to_contain_text("first.npy")
    drop(page, "second.npy")
    analysed(page)
    expect(page.locator("h1")).to_have_text("second.npy")


def test_a_first_answer_that_a_person_works_with_does_not_change_by_itself(
    pages: Server, new_page: MakePage
) -> None:
    page, held = new_page(), list[Route]()

    def hold(route: Route) -> None:
        is_analysis = b'name="analyse"' in (route.request.post_data_buffer or b"")
        held.append(route) if is_analysis else route.continue_()

    page.route("**/predict", hold)
    ask(page, pages.url, file())
    expect(page.locator("#analysis-words")).to_have_text("All members analyse the frame now.")
    assert broken_rules(page) == {}
    page.keyboard.press("]")
    held[0].continue_()
    expect(page.locator("#analysis-words")).to_have_text("Its analysis is ready.")
    expect(page.locator("#member-name")).to_have_text("member 00")
    page.get_by_role("button", name="Show it").click()
    analysed(page)


def test_a_tab_left_open_says_that_its_result_is_gone(
    home: Path, pages: Server, new_page: MakePage
) -> None:
    page = new_page(errors_are_meant=True)
    ask(page, pages.url, file())
    analysed(page)
    shutil.rmtree(home / "cache" / "answers" / page.url.rpartition("/")[2])
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#told")).to_contain_text("This result is no longer on the server")


@pytest.mark.parametrize("name", ["Command line", "curl", "Python"])
def test_what_the_page_prints_finds_its_atoms(
    home: Path, pages: Server, new_page: MakePage, tmp_path: Path, name: str
) -> None:
    page = new_page()
    ask(page, pages.url, file())
    analysed(page)
    for own in ("scan.npy", "frame.npy"):
        (tmp_path / own).write_bytes(file()["buffer"])
    printed = page.get_by_label(name, exact=True).inner_text()
    command = [sys.executable, "-c", printed] if name == "Python" else ["bash", "-c", printed]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            **os.environ,
            "MANYBEAM_HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    counts = {
        "Command line": lambda: len((tmp_path / "atoms.csv").read_text().splitlines()) - 1,
        "curl": lambda: len(json.loads(found)["atoms"]),
        "Python": lambda: int(found.split()[0]),
    }
    assert counts[name]() == shown(page) > 0


def test_a_wrong_file_is_told_in_words(pages: Server, new_page: MakePage) -> None:
    page = new_page(errors_are_meant=True)
    page.goto(f"{pages.url}/predict")
    drop(page, "notes.txt")
    expect(page.locator("#told")).to_contain_text("cannot be read")
    expect(page.locator("#working")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_breaks_a_rule_at_any_width(
    pages: Server, new_page: MakePage, scheme: str
) -> None:
    page, wrong = new_page(color_scheme=scheme), {}
    ask(page, pages.url, file())
    analysed(page)
    expect(page.locator("#ranking")).to_contain_text(re.compile("Best members|cannot be ranked"))
    for address in (page.url, f"{pages.url}/predict"):
        page.goto(address)
        wrong |= {(address, width): found for width, found in broken_rules(page).items()}
    assert not wrong


def test_without_a_script_the_form_leads_to_a_picture_and_a_table(
    pages: Server, new_page: MakePage
) -> None:
    page = new_page(java_script_enabled=False)
    ask(page, pages.url, file())
    expect(page.get_by_role("img", name="The frame with its atoms")).to_be_visible()
    expect(page.get_by_text("Table of the first")).to_be_visible()


def test_a_service_that_is_away_is_told_with_its_command(home: Path, new_page: MakePage) -> None:
    with serving_pages(home, MANYBEAM_SERVICE_URL=NOWHERE) as away:
        page = new_page()
        ask(page, away.url, file())
        expect(page.locator("#refused")).to_contain_text("manybeam serve up")
        expect(page.get_by_role("button", name="Ask again")).to_be_visible()
        assert not Axe().run(page).response["violations"]


@pytest.fixture
def lab(
    rehearsed_home: Path, serving: Callable[[Any], AbstractContextManager[str]], tmp_path: Path
) -> Iterator[Server]:
    """A platform whose version was trained and rehearsed, and its service."""
    home = shutil.copytree(rehearsed_home, tmp_path / "home")
    zoo = Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")
    app = api(Service(ZooVersions(zoo, ["graphene"])), ReplicaLimits(), Meter(), lambda: "")
    with serving(app) as url, serving_pages(home, MANYBEAM_SERVICE_URL=url) as running:
        yield running


def test_story_2_a_dropped_frame_shows_what_fits_it_and_why_or_that_nothing_does(
    lab: Server, rehearsed: Any, new_page: MakePage
) -> None:
    drawn = rehearsed.drawn(0)
    page = new_page()
    page.goto(f"{lab.url}/predict")
    page.get_by_label("Pixel size (pm)").fill(f"{drawn.pixel_size_pm[0]:.9g}")
    drop(page, "scan_0142.npy", drawn.frames_nyx[0])
    analysed(page)
    expect(page.locator("#ranking tbody th")).to_have_count(3)
    expect(page.locator("#ranking")).to_contain_text(re.compile(r"0\.\d\d to [01]\.\d\d"))
    assert shown(page) == pytest.approx(len(drawn.truth[0]), rel=0.1)

    page.goto(f"{lab.url}/predict")
    page.get_by_label("File of a frame").set_input_files(VENDOR / "test_STEM_image.dm3")
    page.get_by_role("button", name="Find atoms").click()
    expect(page.locator("#refused")).to_contain_text("Pixel size 248.5 pm is stated")
    expect(page.locator(".mb-facts")).to_contain_text("DigitalMicrograph 3")
    expect(page.locator(".mb-facts")).to_contain_text("200 kV")
    expect(page.get_by_label("Take my pixel size, although it contradicts")).to_be_visible()
    page.get_by_label("Pixel size (pm)").fill("20")
    page.get_by_role("button", name="Find atoms").click()
    analysed(page)
    expect(page.locator("#drifted")).to_contain_text("None fits: out of distribution")

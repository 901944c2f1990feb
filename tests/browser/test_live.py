"""The page of an instrument, in a real browser before a real service whose session is watched."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.monitor.parts import make_monitor
from manybeam.serve.monitor.reporter import FrameReporter
from manybeam.serve.predict import Service
from manybeam.serve.routes import api
from manybeam.serve.sessions import refresher as keeping

from .conftest import NOWHERE, Server
from .conftest import serving as web_serving

pytestmark = [
    pytest.mark.browser,
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]

MakePage = Callable[..., Page]
FRAMES = np.random.default_rng(0).random((8, 64, 64), dtype=np.float32)
SIZES = [(1440, "light"), (1440, "dark"), (420, "light"), (420, "dark")]


@dataclass
class Lab:
    """A service with one session, and the pages before it.

    Attributes:
        url: of the service.
        web: the control plane.
        reporter: tells the monitor.
    """

    url: str
    web: Server
    reporter: FrameReporter

    @property
    def page(self) -> str:
        return f"{self.web.url}/live/STEM-1"

    def put(self, **settings: Any) -> None:
        path = f"{self.url}/v1/instruments/STEM-1/session"
        assert urllib3.request("PUT", path, body=json.dumps(settings)).status == 200

    def watch(self) -> dict[str, Any]:
        """Return what the drift watch says of the session."""
        path = f"{self.url}/v1/instruments/STEM-1/session"
        return dict(urllib3.request("GET", path).json()["watch"])

    def end(self) -> None:
        urllib3.request("DELETE", f"{self.url}/v1/instruments/STEM-1/session")

    def send(self, name: str, frame: Any = FRAMES[0]) -> dict[str, Any]:
        """Send a frame, and wait until the monitor has it."""
        query = f"instrument=STEM-1&pixel_size_pm=16&frame_id={name}"
        answer = urllib3.request(
            "POST",
            f"{self.url}/v1/predict/auto?{query}",
            body=frame.tobytes(),
            headers={"X-Dtype": "float32", "X-Shape": "64,64", "Accept": "application/json"},
        )
        assert answer.status == 200, answer.data
        assert self.reporter.settled(30)
        return dict(answer.json())


@pytest.fixture(scope="module")
def lab(
    tiny_zoo: Any,
    make_home: Callable[[], Path],
    serving: Callable[[Any], AbstractContextManager[str]],
) -> Iterator[Lab]:
    from manybeam.settings import settings

    home = make_home()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(home))
        patch.setattr(keeping, "READ_S", 0.02)
        settings.cache_clear()
        monitor, close = make_monitor()
        reporter = FrameReporter(monitor)
        service = Service(ZooVersions(tiny_zoo, ["graphene"]), reporter=reporter)
        service.sessions.refresher.start()
        with (
            serving(api(service, ReplicaLimits(), Meter(), lambda: "")) as url,
            web_serving(home, MANYBEAM_SERVICE_URL=url) as web,
        ):
            yield Lab(url, web, reporter)
        service.sessions.close()
        close()
    settings.cache_clear()


@pytest.fixture
def session(lab: Lab) -> Iterator[Lab]:
    """The lab with a session that has no frame."""
    lab.put()
    yield lab
    lab.end()


def state(page: Page, expected: str) -> None:
    page.wait_for_selector(f'#live-view[data-state="{expected}"]')


def shown(page: Page, name: str) -> None:
    page.wait_for_selector(f'#live-canvas[data-number][aria-label^="Frame {name},"]')


def test_a_frame_is_on_the_page_with_its_atoms_and_who_answered(
    session: Lab, new_page: MakePage
) -> None:
    page = new_page()
    page.goto(session.page)
    state(page, "waiting")
    assert "manybeam_client" in page.inner_text('[data-shown-in="waiting"]')
    session.send("first")  # the service learns now that somebody looks
    answer = session.send("second", FRAMES[1])
    shown(page, "second")
    state(page, "running")
    drawn = page.get_attribute("#live-canvas", "data-atoms")
    assert int(drawn or -1) == len(answer["atoms"])
    assert answer["meta"]["ref"] in page.inner_text("#who-ref")


def test_a_session_is_pinned_and_let_go_and_a_frame_is_marked_from_the_page(
    session: Lab, new_page: MakePage
) -> None:
    page = new_page()
    page.goto(session.page)
    session.send("m1")
    session.send("m2", FRAMES[2])
    shown(page, "m2")
    page.click("#mark button")
    page.wait_for_selector("#marked:has-text('manybeam iterate')")
    assert "m2 is kept in" in page.inner_text("#marked-text")
    page.click("#pin button")
    page.wait_for_selector("#unpin button")
    before = urllib3.request("GET", f"{session.url}/v1/instruments/STEM-1/session").json()
    assert before["policy"] == "pinned"
    page.click("#unpin button")
    page.wait_for_selector("#unpin button", state="hidden")
    session.send("m3")
    page.wait_for_selector("#pin button")


def test_a_paused_page_keeps_its_frame_and_goes_on_with_the_newest(
    session: Lab, new_page: MakePage
) -> None:
    page = new_page()
    page.goto(session.page)
    session.send("p1")
    session.send("p2")
    shown(page, "p2")
    page.click("#pause")
    session.send("p3", FRAMES[3])
    page.wait_for_function("() => document.querySelector('#live-events li')")
    assert "p2" in page.inner_text("#frame-name")
    page.click("#pause")
    shown(page, "p3")


def test_a_page_says_that_no_frame_comes_and_goes_on_with_the_next(
    session: Lab, new_page: MakePage
) -> None:
    page = new_page()
    page.clock.install()
    page.goto(session.page)
    session.send("s1")
    session.send("s2")
    shown(page, "s2")
    page.clock.fast_forward("00:30")
    state(page, "stale")
    session.send("s3")
    state(page, "running")


def test_a_session_that_ends_and_a_service_that_is_away_are_told(
    lab: Lab, new_page: MakePage
) -> None:
    page = new_page(errors_are_meant=True)
    lab.put()
    page.goto(lab.page)
    state(page, "waiting")
    lab.end()
    state(page, "empty")
    other = new_page(errors_are_meant=True)
    with web_serving(lab.web.home, MANYBEAM_SERVICE_URL=NOWHERE) as alone:
        other.goto(f"{alone.url}/live/STEM-1")
        state(other, "disconnected")
        assert "manybeam serve up" in other.inner_text("#live-hint")


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_live_pages_break_no_rule_in_any_state(
    session: Lab, new_page: MakePage, width: int, scheme: str
) -> None:
    page = new_page(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for path, frames in (("/live", 0), ("/live/STEM-1", 0), ("/live/STEM-1", 2)):
        page.goto(session.web.url + path)
        for number in range(frames):
            session.send(f"{width}-{scheme}-{number}")
        if frames:
            shown(page, f"{width}-{scheme}-1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        found = Axe().run(page).response["violations"]
        assert not found, [(one["id"], one["nodes"][0]["html"]) for one in found]


def test_a_page_says_that_its_session_drifted_and_breaks_no_rule_then(
    session: Lab, new_page: MakePage
) -> None:
    page = new_page()
    page.goto(session.page)
    frames = np.random.default_rng(1).normal(100, 10, (100, 64, 64)).astype(np.float32)
    frames[65:] += np.linspace(0, 80, 64, dtype=np.float32)  # a slope that anybody can see
    for number, frame in enumerate(frames):
        watch = session.send(f"d{number}", frame) and session.watch()
        if watch["drifted"]:
            break
    session.send("last", frames[-1])  # a page shows what the frames before were found to be
    state(page, "drifted")
    assert page.inner_text("#live-drift") == watch["change"]["why"]
    for width, scheme in SIZES:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.reload()  # else colours are still changing
        shown(page, "last")
        state(page, "drifted")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        assert not found, [(one["id"], one["nodes"][0]["html"]) for one in found]


def test_the_list_and_a_page_without_a_script_say_what_there_is(
    session: Lab, new_page: MakePage
) -> None:
    page = new_page(java_script_enabled=False)
    session.send("n1")
    page.goto(f"{session.web.url}/live")
    page.click("text=STEM-1")
    assert "n1" in page.inner_text("#frame-name")
    assert "Load it again" in page.content()


def test_another_site_cannot_pin_a_session(session: Lab) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    answer = urllib3.request("POST", f"{session.page}/pin", headers=headers)
    assert answer.status == 403

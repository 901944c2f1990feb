"""web: the pictures behind a score: the curve of its probabilities, and frames with its errors."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from manybeam.data.simulation.simulate import simulate_into
from manybeam.jobs.evaluate import evaluate
from manybeam.settings import settings
from manybeam.spec import Library
from manybeam.spec.job import Measure
from manybeam.web.app import create_app, listen, make_app_state, make_server
from manybeam.web.pages import drawing
from manybeam.web.pages.drawn import prune
from manybeam.web.state import AppState
from manybeam.zoo.matrix import FrameSetUse, TestSet
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
NOMINAL, RECORDED = "graphene-60kv-nominal", "graphene-60kv-dirty-frames"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, tiny_members: Callable[[int], list[Any]]
) -> Iterator[Path]:
    """A platform with a version measured on simulated and recorded frames.

    Version 2 has scores of before curves, counts and test frames were kept, and its job names
    frames elsewhere. Version 3 was measured on those, and says so.
    """
    home = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(home))
        patch.setenv("MANYBEAM_ZOO", str(LIBRARY.folder))
        settings.cache_clear()
        dirty = LIBRARY.conditions["graphene-60kv-dirty"]
        inside = simulate_into(f"{settings().store_url}/lab", dirty, 2, seed=5).url
        outside = simulate_into(str(home / "private"), dirty, 2, seed=5)
        zoo, members = Zoo(), tiny_members(2)
        measure = Measure(conditions=(NOMINAL,), frames=(inside,), frames_per_condition=3)
        rows = evaluate(members, measure, LIBRARY, executor="local")
        job = {"kind": "train", "measure": {"frames": [inside]}}
        zoo.register("graphene", members, job=job, scores=rows)
        old = [replace(row, reliability=(), counts=(), test_set=None, detector=()) for row in rows]
        job = {"kind": "train", "measure": {"frames": [outside.url, 7]}}
        zoo.register("graphene", members, job=job, scores=old)
        test_set = TestSet(frame_sets=(FrameSetUse(outside.url, outside.digest),))
        elsewhere = [replace(row, test_set=test_set) for row in rows if row.condition == RECORDED]
        zoo.register("graphene", members, job={"kind": "train"}, scores=elsewhere)
        yield home
    settings.cache_clear()


@pytest.fixture(scope="module")
def app_state(home: Path) -> AppState:
    """The parts of its pages."""
    made = make_app_state(refresh_s=60)
    made.refresher.refresh()
    return made


@pytest.fixture(scope="module")
def reader(app_state: AppState) -> Iterator[httpx.Client]:
    """Who reads its pages."""
    with listen("127.0.0.1", 0) as listening:
        server = make_server(create_app(app_state))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)  # between two looks
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join()


def picture_of(page: str, kind: str = "") -> tuple[str, dict[str, str]]:
    """Return the address of a page's first picture, or the first of a class; and its attributes."""
    tag = re.search(rf"<main.*?<img ([^>]*{kind}[^>]*)>", page, re.DOTALL)
    assert tag
    found = dict(re.findall(r'([a-z]+)="([^"]*)"', tag[1]))
    return found["src"].replace("&amp;", "&"), found


# -- reliability --------------------------------------------------------------------------------
@pytest.mark.parametrize("query", ["", f"?reliability={NOMINAL}"])
def test_the_page_of_a_version_has_its_curve_as_picture_and_table(
    reader: httpx.Client, query: str
) -> None:
    page = reader.get(f"/zoo/graphene@1{query}").text
    address, told = picture_of(page, "mb-drawing")
    assert "The numbers are in the table" in told["alt"]
    assert "Share that are right" in page
    answer = reader.get(address)
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.text.count("<svg") == 1


def test_a_curve_that_was_not_measured_is_said_to_be_so(reader: httpx.Client) -> None:
    page = reader.get("/zoo/graphene@2").text
    assert "These scores have no curve" in page
    assert "mb-drawing" not in page


@pytest.mark.parametrize(
    "address", ["/zoo/graphene@1?reliability=x", "/zoo/graphene@1/reliability.svg?condition=x"]
)
def test_the_curve_of_a_condition_nobody_measured_is_not_found(
    reader: httpx.Client, address: str
) -> None:
    answer = reader.get(address)
    assert answer.status_code == 404
    assert NOMINAL in answer.text


# -- example frames -----------------------------------------------------------------------------
def test_each_score_leads_to_a_frame(reader: httpx.Client) -> None:
    page = reader.get("/zoo/graphene@1").text
    links = re.findall(r'<td class="mb-cell[^>]*><a href="([^"]*)"', page)
    assert len(links) == 2 * 4, "two conditions; the ensemble, two members and the classical"
    assert f"/zoo/graphene@1/example/{NOMINAL}?member=01" in links
    assert f"/zoo/graphene@1/example/{RECORDED}?member=-2" in links
    old = reader.get("/zoo/graphene@2").text
    assert "member=01" in old
    assert "member=-2" not in old, "nobody knows what the detector was tuned to"


@pytest.mark.parametrize("condition", [NOMINAL, RECORDED])
@pytest.mark.parametrize("query", ["", "?member=01&frame=1", "?member=-2"])
def test_an_example_shows_the_frame_its_counts_and_its_f1(
    reader: httpx.Client, condition: str, query: str
) -> None:
    page = reader.get(f"/zoo/graphene@1/example/{condition}{query}").text
    address, told = picture_of(page)
    right, missed, false = map(int, re.findall(r"(\d+) (?:right|missed|false)", told["alt"]))
    f1 = 2 * right / max(2 * right + missed + false, 1)
    assert f'F1 of this frame</th><td class="num">{f1:.3f}' in page
    assert "The score was measured on this frame, and the counts are equal" in page
    assert "are unknown" not in page
    assert ("Atoms found by the classical detector, measured with" in page) is ("-2" in query)
    drawn_there = reader.get(address)
    assert drawn_there.headers["content-type"] == "image/png"
    assert drawn_there.content.startswith(PNG)


def test_a_frame_is_followed_by_the_next_until_the_last(reader: httpx.Client) -> None:
    address, seen = f"/zoo/graphene@1/example/{NOMINAL}?member=01", []
    while address:
        page = reader.get(address).text
        seen.append(page.partition("<h1>")[2].partition("</h1>")[0])
        found = re.search(r'rel="next" href="([^"]*)"', page)
        address = found[1].replace("&amp;", "&") if found else ""
    assert seen == [f"{NOMINAL}, frame {i} of 3" for i in (1, 2, 3)]
    assert 'rel="prev"' in page


def test_the_page_of_a_member_leads_to_its_own_frames(reader: httpx.Client) -> None:
    page = reader.get(f"/zoo/graphene@1/01/example/{NOMINAL}").text
    assert "Atoms found by member 01 of graphene@1" in page


def test_a_score_without_counts_says_that_the_frame_cannot_be_checked(
    reader: httpx.Client,
) -> None:
    page = reader.get(f"/zoo/graphene@2/example/{NOMINAL}").text
    assert "The frames of this score are unknown" in page
    assert "The score has no counts for single frames to compare with" in page
    assert "The score was measured on this frame" not in page
    assert picture_of(page)


@pytest.mark.parametrize("version", [2, 3], ids=["named by the job", "named by the score"])
def test_frames_outside_the_store_are_not_read(reader: httpx.Client, version: int) -> None:
    address = f"/zoo/graphene@{version}/example/{RECORDED}"
    page = reader.get(address)
    assert page.status_code == 200
    assert "they are outside the store" in page.text
    assert "<img" not in page.text.partition("<main")[2]
    assert reader.get(f"{address}/picture.png").status_code == 404


@pytest.mark.parametrize(
    ("address", "status"),
    [
        pytest.param(f"graphene@1/example/{NOMINAL}?frame=3", 404, id="past the last frame"),
        pytest.param(f"graphene@1/example/{NOMINAL}?frame=-1", 404, id="before the first frame"),
        pytest.param(f"graphene@1/example/{NOMINAL}?member=7", 404, id="no such member"),
        pytest.param(f"graphene@1/example/{NOMINAL}?member=-3", 404, id="no such row"),
        pytest.param("graphene@1/example/elsewhere", 404, id="never measured there"),
        pytest.param(f"graphene@9/example/{NOMINAL}", 404, id="no such version"),
        pytest.param(f"graphene@1/example/{NOMINAL}?frame=first", 422, id="no number"),
    ],
)
def test_what_is_not_there_is_told(reader: httpx.Client, address: str, status: int) -> None:
    answer = reader.get(f"/zoo/{address}")
    assert answer.status_code == status
    assert "<h1>" in answer.text


def test_a_picture_is_drawn_once(reader: httpx.Client, home: Path) -> None:
    address = f"/zoo/graphene@1/example/{NOMINAL}?frame=2"
    first = reader.get(address).text
    kept = {path: path.stat().st_mtime_ns for path in (home / "cache" / "examples").iterdir()}
    assert reader.get(address).text == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_damaged_entry_of_the_cache_is_drawn_anew(reader: httpx.Client, home: Path) -> None:
    address = f"/zoo/graphene@1/example/{NOMINAL}?member=00"
    first, before = reader.get(address).text, set((home / "cache" / "examples").glob("*.json"))
    for path in before:
        path.write_text('{"digest": 1')
    assert picture_of(reader.get(address).text) == picture_of(first)


def test_only_so_many_pictures_are_kept(reader: httpx.Client, home: Path) -> None:
    for member in ("", "&member=00", "&member=01"):
        for frame in range(3):
            reader.get(f"/zoo/graphene@2/example/{NOMINAL}?frame={frame}{member}")
    prune(4)
    assert len(list((home / "cache" / "examples").glob("*.json"))) <= 4
    page = reader.get(f"/zoo/graphene@2/example/{NOMINAL}?frame=2&member=01").text
    assert reader.get(picture_of(page)[0]).content.startswith(PNG)


def test_many_who_ask_at_once_each_get_a_picture_and_each_is_drawn_once(
    reader: httpx.Client, home: Path
) -> None:
    shutil.rmtree(home / "cache" / "examples", ignore_errors=True)
    asked = [
        f"/zoo/graphene@1/example/{NOMINAL}/sample?member={member}&frame={frame}"
        for member in ("-1", "0", "1", "-2")
        for frame in range(3)
    ]
    with ThreadPoolExecutor(len(asked) * 2) as readers:
        answers = list(readers.map(reader.get, asked * 2))
    assert {one.headers["content-type"] for one in answers} == {"image/png"}
    assert len(list((home / "cache" / "examples").glob("*.png"))) == len(asked)


def test_the_process_of_the_pages_draws_nothing_itself(
    reader: httpx.Client, app_state: AppState, home: Path
) -> None:
    shutil.rmtree(home / "cache" / "examples", ignore_errors=True)
    address = f"/zoo/graphene@1/example/{NOMINAL}/sample?member=0"
    assert reader.get(address).content.startswith(PNG)
    (first,) = drawers()
    shutil.rmtree(home / "cache" / "examples")
    assert reader.get(address).content.startswith(PNG)
    assert drawers() == [first]
    # Killed, as it is where memory is short, it is started again.
    first.kill()
    first.wait()
    shutil.rmtree(home / "cache" / "examples")
    assert reader.get(address).content.startswith(PNG)
    assert drawers() != [first]
    app_state.drawing.close()
    assert drawers() == []


def drawers() -> list[psutil.Process]:
    """Return the processes that draw for this one."""
    return [
        one
        for one in psutil.Process().children()
        if any("loky" in word and "popen" in word for word in one.cmdline())
    ]


def test_who_asks_while_too_many_wait_is_told_to_come_back(
    reader: httpx.Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(home / "cache" / "examples", ignore_errors=True)
    address = f"/zoo/graphene@1/example/{NOMINAL}"
    monkeypatch.setattr(drawing, "WAITING", 0)
    page, sample = reader.get(address), reader.get(f"{address}/sample")
    assert page.status_code == 429
    assert "not drawn yet" in page.text
    assert sample.headers["content-type"] == "image/svg+xml"
    assert "not drawn yet" in sample.text
    monkeypatch.setattr(drawing, "WAITING", 1)
    assert reader.get(f"{address}/sample").content.startswith(PNG)

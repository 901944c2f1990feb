"""web: what the control plane answers, whom it lets change something, and what it keeps out."""

import asyncio
import hashlib
import json
import re
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.main import get_command

from manybeam.addresses import is_loopback
from manybeam.cli.app import app as commands
from manybeam.data.frames import FrameSet
from manybeam.data.simulation import SIMULATOR
from manybeam.data.simulation.simulate import simulate
from manybeam.db.deployment import open_database
from manybeam.db.tokens import Tokens
from manybeam.errors import InvalidInput, NotAllowed, PortInUse
from manybeam.settings import settings
from manybeam.spec import Library
from manybeam.web import colours
from manybeam.web.app import (
    create_app,
    listen,
    make_app_state,
    make_server,
    run,
)
from manybeam.web.auth import SESSION_S, Gatekeeper, admin_token, own_address
from manybeam.web.pages import exports
from manybeam.web.pages.framesets import LIST_S
from manybeam.web.pages.listing import read_query
from manybeam.web.render import STATIC
from manybeam.web.state import AppState
from manybeam.zoo.lifecycle.life import archive
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Score
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
NOMINAL, LOWDOSE = "graphene-60kv-nominal", "graphene-60kv-lowdose"
JOB = {"kind": "train"}


def score(condition: str, hits: int, member: int = ENSEMBLE, digest: str = "") -> Score:
    """Return the score of 16 frames of 60 atoms, of which so many are found in each."""
    f1 = hits / 60
    values = {"f1": f1, "f1_low": f1 - 0.02, "f1_high": f1 + 0.02, "frames": 16, "ece": 0.03}
    found = tuple((hits + n % 3 - 1, 60 - hits, 60 - hits) for n in range(16))
    digest = digest or f"{LIBRARY.conditions[condition].digest}-{SIMULATOR}"
    return Score(member, condition, digest, values, found, scorer="1.0")


def scores(nominal: int, lowdose: int) -> list[Score]:
    rows = (ENSEMBLE, 0, 1, CLASSICAL)
    return [score(NOMINAL, nominal, r) for r in rows] + [score(LOWDOSE, lowdose, r) for r in rows]


@contextmanager
def running(app_state: AppState) -> Iterator[httpx.Client]:
    """Serve the application on a free port until the block ends; the zoo has been read."""
    app_state.refresher.refresh()
    with listen("127.0.0.1", 0) as listening:
        server = make_server(create_app(app_state))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=address, follow_redirects=True, timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join()


def own(client: httpx.Client) -> dict[str, str]:
    """Return what a browser says of a form that one of our pages sent."""
    return {"origin": str(client.base_url).rstrip("/")}


@pytest.fixture
def name() -> str:
    """The name of the versions of `client`."""
    return "graphene"


@pytest.fixture
def client(
    zoo: Any,
    name: str,
    fill: Any,
    tiny_members: Callable[[int], list[Any]],
    use_settings: Any,
) -> Iterator[httpx.Client]:
    """The control plane over a zoo where version 1 serves and 2 is worse at low dose."""

    def register(zoo: Any) -> None:
        given = {"members": tiny_members(2), "job": JOB}
        zoo.register(name, **given, scores=scores(48, 42), alias="serving")
        more = {"alias": "candidate", "parent": f"{name}@1"}
        zoo.register(name, **given, scores=scores(54, 30), **more)

    use_settings({"MANYBEAM_ZOO": str(LIBRARY.folder)})
    fill(zoo, register)
    with running(make_app_state(zoo, refresh_s=60)) as made:
        yield made


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, tiny_members: Callable[[int], list[Any]]
) -> Iterator[httpx.Client]:
    """The same over one embedded zoo, of `graphene`, for tests that change nothing in it."""
    home = tmp_path_factory.mktemp("web")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYBEAM_HOME", str(home))
        patch.setenv("MANYBEAM_ZOO", str(LIBRARY.folder))
        settings.cache_clear()
        zoo, members = Zoo(), tiny_members(2)
        zoo.register("graphene", members, job=JOB, scores=scores(48, 42), alias="serving")
        wrong = ("02: <script>alert(1)</script>",)
        zoo.register("graphene", members, job=JOB, scores=scores(54, 30), failed=wrong)
        with running(make_app_state(zoo, refresh_s=60)) as made:
            yield made
    settings.cache_clear()


@pytest.fixture
def reader(served: httpx.Client) -> httpx.Client:
    """A client of that, who is not logged in."""
    served.cookies.clear()
    return served


def bearer() -> dict[str, str]:
    return {"authorization": f"Bearer {admin_token(settings().home)[0]}"}


def log_in(client: httpx.Client) -> None:
    token = admin_token(settings().home)[0]
    asked = {"token": token, "back": "/zoo"}
    done = client.post("/login", data=asked, headers=own(client))
    assert done.status_code == 200, done.text
    cookie = done.history[0].headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def form_of(client: httpx.Client, ref: str) -> dict[str, str]:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get(f"/zoo/{ref}").text)
    assert found is not None
    return {"csrf": found[1]}


def test_programs_find_what_pages_show(client: httpx.Client, name: str) -> None:
    found = client.get("/api/v1/zoo", params={"name": name, "condition": LOWDOSE}).json()
    assert [(row["ref"], row["value"]) for row in found["rows"]] == [
        (f"{name}@1", 42 / 60),
        (f"{name}@2", 30 / 60),
    ]
    assert found["is_fresh"]
    page = client.get("/zoo", params={"name": name, "condition": LOWDOSE}).text
    assert page.index(f"{name}@1") < page.index(f"{name}@2")


def test_a_version_is_given_with_its_lineage_and_every_score(
    client: httpx.Client, name: str
) -> None:
    first = client.get(f"/api/v1/zoo/{name}@1").json()
    assert (first["aliases"], first["children"]) == (["serving"], [f"{name}@2"])
    matrix = client.get(f"/api/v1/zoo/{name}@candidate/matrix").json()
    assert len(matrix["scores"]) == 8
    assert len(matrix["scores"][0]["counts"]) == 16
    one = client.get(f"/api/v1/zoo/{name}@2/01/matrix").json()
    assert {row["member"] for row in one["scores"]} == {1}


def test_a_condition_whose_numbers_changed_is_kept_apart_on_the_page(
    client: httpx.Client, zoo: Any, name: str
) -> None:
    zoo.record_scores(f"{name}@1", [score(NOMINAL, 50, digest="other-numbers")])
    client.post(f"/api/v1/zoo/{name}@2/promote", json={"to": "candidate"}, headers=bearer())
    page = client.get(f"/zoo/{name}@1").text
    assert "Scores with old numbers of a condition" in page
    told = client.get(f"/api/v1/zoo/{name}@1/matrix").json()
    assert [pair[0] for pair in told["superseded"]] == [NOMINAL]


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        pytest.param("/api/v1/zoo/graphene@9", 404, "nearest", id="version"),
        pytest.param("/api/v1/zoo/%00", 404, "no reference", id="no reference"),
        pytest.param("/api/v1/zoo/" + "é" * 300, 404, "no reference", id="300 letters"),
        pytest.param("/api/v1/zoo?page=0", 422, "page: 0", id="page"),
        pytest.param("/api/v1/zoo?page=99", 200, "rows", id="past the end"),
        pytest.param("/api/v1/zoo?colour=red", 422, "colour: there is no such field", id="field"),
        pytest.param("/api/v1/zoo?dose_e_per_a2_min=low", 422, "is not a number", id="number"),
        pytest.param('/api/v1/zoo?q="*)( OR NEAR', 200, "rows", id="signs of a query language"),
        pytest.param("/api/v1/nothing", 404, "no page", id="path"),
        pytest.param("/api/v1/datasets?page=7", 404, "no page 7", id="page of frame sets"),
        pytest.param("/api/v1/datasets?page=x", 422, "page", id="page that is none"),
    ],
)
def test_what_cannot_be_answered_is_told_with_what_to_do(
    reader: httpx.Client, path: str, status: int, told: str
) -> None:
    answer = reader.get(path)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "detail", "hint", "request_id"} <= set(answer.json())


def test_a_person_gets_a_page_for_what_a_program_gets_a_document_for(reader: httpx.Client) -> None:
    answer = reader.get("/zoo/graphene@9")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "has no version 9" in answer.text


def test_a_change_needs_the_token(reader: httpx.Client) -> None:
    path = "/api/v1/zoo/graphene@2/promote"
    assert reader.post(path, json={}).status_code == 403
    assert reader.post(path, json={}, headers={"authorization": "Bearer no"}).status_code == 403
    assert reader.get("/api/v1/zoo/graphene@1").json()["aliases"] == ["serving"]


def test_a_refused_promotion_names_the_condition_and_a_forced_one_is_in_the_log(
    client: httpx.Client, name: str
) -> None:
    path = f"/api/v1/zoo/{name}@2/promote"
    refused = client.post(path, json={}, headers=bearer())
    assert refused.status_code == 409
    assert LOWDOSE in refused.json()["detail"]
    assert NOMINAL not in refused.json()["detail"]
    assert client.post(path, json={"force": True}, headers=bearer()).status_code == 422
    asked = {"force": True, "reason": "high dose this week"}
    forced = client.post(path, json=asked, headers=bearer())
    assert forced.json()["is_forced"], forced.text
    assert client.get(f"/api/v1/zoo/{name}").json()["version"] == 2, "shown at once"
    log = client.get("/api/v1/audit", params={"subject": name}).json()["entries"]
    assert "high dose this week" in {entry["reason"] for entry in log}
    back = client.post(f"/api/v1/zoo/{name}/rollback", json={}, headers=bearer())
    assert back.json()["ref"] == f"{name}@1", back.text


def test_a_version_refused_as_the_candidate_is_forced_to_be_that_and_nothing_else(
    client: httpx.Client, zoo: Any, name: str, tiny_members: Callable[[int], list[Any]]
) -> None:
    zoo.register(name, tiny_members(1), job=JOB, failed=("01: loss is NaN", "02: loss is NaN"))
    log_in(client)
    asked = {**form_of(client, f"{name}@1"), "to": "candidate", "force": "1"}  # without a reason
    refused = client.post(f"/zoo/{name}@3/promote", data=asked, headers=own(client))
    assert refused.status_code == 422
    form = refused.text[refused.text.index('id="refused"') :]
    fields = dict(
        re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form.split("</form>")[0])
    )
    assert fields["to"] == "candidate"
    path = f"/zoo/{name}@3/promote"
    client.post(path, data={**fields, "reason": "to be tried"}, headers=own(client))
    assert client.get(f"/api/v1/zoo/{name}@serving").json()["version"] == 1
    assert client.get(f"/api/v1/zoo/{name}@candidate").json()["version"] == 3


def test_a_rollback_that_is_sent_twice_is_done_once(client: httpx.Client, name: str) -> None:
    asked = {"force": True, "reason": "high dose this week"}
    client.post(f"/api/v1/zoo/{name}@2/promote", json=asked, headers=bearer())
    path = f"/api/v1/zoo/{name}@2/rollback"
    assert client.post(path, json={"reason": None}, headers=bearer()).json()["ref"] == f"{name}@1"
    again = client.post(path, json={}, headers=bearer())
    assert (again.status_code, f"{name}@1 serves" in again.text) == (409, True)
    assert client.get(f"/api/v1/zoo/{name}@serving").json()["version"] == 1
    entry = client.get("/api/v1/audit", params={"subject": f"{name}"}).json()["entries"][0]
    assert entry["reason"] == "", "null is no reason, not the word None"


@pytest.mark.parametrize("body", ["[" * 9000, '{"reason": 5}', '{"force": {}}', "[]", "{"])
def test_a_body_that_is_not_texts_and_facts_is_refused(reader: httpx.Client, body: str) -> None:
    headers = {**bearer(), "content-type": "application/json"}
    answer = reader.post("/api/v1/zoo/graphene@1/archive", content=body, headers=headers)
    assert answer.status_code == 422, answer.text


def test_an_archived_version_leaves_the_list_until_it_is_asked_for(
    client: httpx.Client, zoo: Any, name: str, tiny_members: Any
) -> None:
    zoo.register(name, tiny_members(1), job=JOB)
    done = client.post(f"/api/v1/zoo/{name}@3/archive", json={"reason": "a try"}, headers=bearer())
    assert done.status_code == 200, done.text
    shown = client.get("/api/v1/zoo", params={"name": name}).json()
    asked = client.get("/api/v1/zoo", params={"name": name, "status": "archived"}).json()
    assert (shown["total"], asked["total"]) == (2, 1)
    busy = client.post(f"/api/v1/zoo/{name}@1/archive", json={}, headers=bearer())
    assert busy.status_code == 409


def test_a_zoo_of_archived_versions_only_is_not_called_empty(
    embedded: Any, tiny_members: Any, tmp_path: Path, use_settings: Any
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_ZOO": str(LIBRARY.folder)})
    with running(make_app_state(embedded, refresh_s=60)) as client:
        assert "The zoo is empty" in client.get("/zoo").text
    embedded.register("graphene", tiny_members(1), job=JOB)
    archive(embedded, "graphene@1", who="Ada", reason="a try")
    with running(make_app_state(embedded, refresh_s=60)) as client:
        page = client.get("/zoo").text
        assert "The zoo is empty" not in page
        assert "/zoo?status=archived" in page
        assert "graphene@1" in client.get("/zoo?status=archived").text


def test_a_form_of_another_site_or_session_changes_nothing(reader: httpx.Client) -> None:
    log_in(reader)
    path, fields = "/zoo/graphene@2/promote", form_of(reader, "graphene@2")
    elsewhere = {"origin": "http://elsewhere.example"}
    assert reader.post(path, data=fields, headers=elsewhere).status_code == 403
    assert reader.post(path, data=fields).status_code == 403, "no origin at all"
    assert reader.post(path, data={"csrf": "x"}, headers=own(reader)).status_code == 403
    refused = reader.post(path, data=fields, headers=own(reader))
    assert refused.status_code == 409
    assert "Override the gates and promote to serving" in refused.text


def test_the_bytes_and_the_answers_of_a_version_are_tried_on_its_page(
    client: httpx.Client, name: str
) -> None:
    log_in(client)
    fields = form_of(client, f"{name}@2")
    tested = client.post(f"/zoo/{name}@2/test", data=fields, headers=own(client)).text
    assert "00: same answer" in tested
    verified = client.post(f"/zoo/{name}@2/verify", data=fields, headers=own(client)).text
    assert "weights of member 01: unchanged" in verified
    again = client.get(f"/zoo/{name}@2/verify?score=ece")  # as a browser does that is told to
    assert (again.status_code, again.url.path) == (200, f"/zoo/{name}@2")
    assert again.url.query == b"score=ece"


def test_what_was_done_is_told_to_who_did_it_and_not_by_an_address(
    client: httpx.Client, name: str
) -> None:
    assert "Promoted" not in client.get(f"/zoo/{name}@1?done=promote").text
    log_in(client)
    fields = {**form_of(client, f"{name}@1"), "to": "candidate"}
    done = client.post(f"/zoo/{name}@1/promote", data=fields, headers=own(client))
    assert "Promoted. The audit log has a record of it." in done.text
    assert (done.url.path, done.url.query) == (f"/zoo/{name}@1", b"")
    cookie = done.history[0].headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "max-age=10" in cookie


def test_a_wrong_token_opens_nothing_and_a_right_one_does(reader: httpx.Client) -> None:
    wrong = reader.post("/login", data={"token": "guess"}, headers=own(reader))
    assert wrong.status_code == 403
    assert not reader.cookies
    log_in(reader)
    assert "Logged in as admin" in reader.get("/zoo").text
    kept = reader.cookies["manybeam-session"]
    reader.post("/logout", headers=own(reader))
    assert "Logged in" not in reader.get("/zoo").text
    reader.cookies["manybeam-session"] = kept
    assert "Logged in" not in reader.get("/zoo").text, "a copy of the cookie ends with it"


@pytest.mark.parametrize("form", ["html", "md"])
def test_the_model_card_is_served_without_anything_that_runs(
    reader: httpx.Client, form: str
) -> None:
    card = reader.get(f"/zoo/graphene@2/card.{form}")
    assert card.status_code == 200
    assert LOWDOSE in card.text
    assert card.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_card_is_written_once_for_each_state_of_its_version(reader: httpx.Client) -> None:
    first = reader.get("/zoo/graphene@1/00/card.html").text
    before = exports._card_text.cache_info()
    assert reader.get("/zoo/graphene@serving/00/card.html").text == first
    after = exports._card_text.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    assert reader.get("/zoo/graphene@1/01/card.html").text != first


def test_of_members_that_do_equally_well_all_are_outlined(reader: httpx.Client) -> None:
    page = reader.get("/zoo/graphene@1").text
    cells = re.findall(r'<td class="mb-cell [^"]*mb-best"[^>]*>(?:<a [^>]*>)?([\d.]+)', page)
    assert cells == ["0.700", "0.800"] * 2


def test_a_package_is_made_when_it_is_asked_for_and_not_kept(
    reader: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = reader.get("/zoo/graphene@1/00/export/onnx")
    assert made.status_code == 200, made.text
    assert 'filename="graphene-1-00.onnx"' in made.headers["content-disposition"]
    deadline = time.monotonic() + 10
    while list(tmp_path.glob("manybeam-export-*")):  # it goes once it is sent
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert reader.get("/zoo/graphene@1/export/pickle").status_code == 422


def test_another_site_cannot_make_the_machine_write_files(reader: httpx.Client) -> None:
    for path in ("/zoo/graphene@1/export/onnx", "/zoo/graphene@1/card.html"):
        answer = reader.get(path, headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 403, path


def test_who_asks_for_a_package_while_one_is_made_is_told_at_once(reader: httpx.Client) -> None:
    with exports._turn:
        begun = time.monotonic()
        answer = reader.get("/zoo/graphene@1/export/onnx")
    assert (answer.status_code, time.monotonic() - begun < 5) == (429, True)


def test_frame_sets_are_listed_with_a_picture_of_the_first_frame(reader: httpx.Client) -> None:
    condition = LIBRARY.conditions[NOMINAL]
    frames = FrameSet.create(f"{settings().store_url}/lab/a set.zarr", condition, (48, 64))
    made = simulate(condition, 1, seed=1, shape=(48, 64))
    frames.append(made.frames_nyx, made.truth, made.pixel_size_pm)
    deadline = time.monotonic() + 3 * LIST_S
    while not (found := reader.get("/api/v1/datasets").json()["rows"]):
        assert time.monotonic() < deadline, "a listing is kept for some seconds, not for ever"
        time.sleep(0.2)
    assert [(one["path"], one["frame_count"], one["has_truth"]) for one in found] == [
        ("lab/a set.zarr", 1, True)
    ]
    picture = reader.get("/datasets/lab/a set.zarr/preview.png")
    assert picture.content.startswith(b"\x89PNG")
    assert reader.get("/datasets/../../etc/preview.png").status_code == 404
    assert "lab/a set.zarr" in reader.get("/datasets").text


def test_every_answer_carries_the_policy_and_no_page_what_it_forbids(reader: httpx.Client) -> None:
    for path in ("/zoo", "/zoo/graphene@2", "/compare?ids=graphene@1,graphene@2", "/conditions"):
        page = reader.get(path)
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert not re.search(r'\sstyle="|<style|<script>|\son[a-z]+="', page.text), path
        outside = re.findall(r'(?:src|href|action)="(?:https?:)?//[^"]+', page.text)
        assert not outside, path


def test_what_people_wrote_is_shown_as_text(reader: httpx.Client) -> None:
    page = reader.get("/zoo/graphene@2").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    asked = reader.get("/zoo", params={"q": '"><script>alert(1)</script>'}).text
    assert "<script>alert" not in asked


@pytest.mark.parametrize("host", ["elsewhere.example", "10.0.0.1", "127.0.0.1.elsewhere.example"])
def test_a_name_that_is_not_this_machine_is_refused(reader: httpx.Client, host: str) -> None:
    answer = reader.get("/api/v1/zoo", headers={"host": host})
    assert answer.status_code == 403
    assert reader.get("/zoo", headers={"host": "localhost:8000"}).status_code == 200


def test_the_interface_is_described_and_health_told(reader: httpx.Client) -> None:
    paths = reader.get("/openapi.json").json()["paths"]
    assert {"/api/v1/zoo", "/api/v1/audit", "/api/v1/zoo/{ref}/promote"} <= set(paths)
    asked = paths["/api/v1/zoo/{ref}/promote"]["post"]["requestBody"]["content"]
    assert set(asked["application/json"]["schema"]["properties"]) == {"reason", "to", "force"}
    query = {one["name"] for one in paths["/api/v1/zoo"]["get"]["parameters"]}
    assert {"q", "condition", "status", "dose_e_per_a2_max"} <= query
    assert {one["name"] for one in paths["/api/v1/compare"]["get"]["parameters"]} == {
        "ids",
        "score",
    }
    assert "/api/v1/zoo/{ref}/matrix" in reader.get("/docs").text
    assert reader.get("/healthz").json()["status"] == "ok"
    assert reader.post("/healthz").status_code == 405


def test_a_file_is_kept_by_browsers_and_an_error_is_not(reader: httpx.Client) -> None:
    kept = reader.get("/static/manybeam.css?1").headers["cache-control"]
    assert "immutable" in kept
    missing = reader.get("/static/nothing.css?1")
    assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")


def test_a_condition_whose_numbers_changed_is_not_hidden_as_equal(
    client: httpx.Client, zoo: Any, name: str
) -> None:
    zoo.register(name, [*zoo.members(f"{name}@1")], job=JOB, scores=scores(48, 42))
    zoo.record_scores(f"{name}@3", [score(NOMINAL, 48, digest="other-numbers")])
    client.post(f"/api/v1/zoo/{name}@3/promote", json={"to": "candidate"}, headers=bearer())
    address = f"/compare?ids={name}@1,{name}@3&only=differences"
    page = client.get(address).text
    assert f"/conditions/{NOMINAL}" in page
    assert f"/conditions/{LOWDOSE}" not in page
    assert "1 conditions without a clear difference" in page


# -- without an answer of MLflow ------------------------------------------------------------------
def test_what_was_kept_is_not_called_fresh_before_mlflow_confirmed_it_nor_in_a_hang(
    use_settings: Any, tmp_path: Path
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_ZOO": str(LIBRARY.folder)})
    make_app_state(Zoo()).refresher.refresh()
    refresher = make_app_state(Zoo(), refresh_s=0.3).refresher  # a process that starts again
    assert refresher.age_s is not None
    assert not refresher.news.is_fresh
    refresher.refresh()
    assert refresher.news.is_fresh
    refresher._as_of = datetime.now(UTC) - timedelta(seconds=14)  # it waits since then
    assert not refresher.news.is_fresh


def _page_before_the_first_look(app_state: AppState) -> str:
    async def ask() -> str:
        transport = httpx.ASGITransport(create_app(app_state))  # starts no refresher
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/zoo")).text

    return asyncio.run(ask())


def test_pages_tell_that_mlflow_has_not_answered_and_what_cannot_be_read(
    use_settings: Any, tmp_path: Path
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_ZOO": str(LIBRARY.folder)})
    app_state = make_app_state(Zoo(), refresh_s=60)
    page = _page_before_the_first_look(app_state)
    assert "MLflow has not answered yet" in page
    assert "Not read yet" in page
    assert "<strong>0</strong>" not in page
    app_state.refresher.unreadable = {"graphene@3": "no <manifest>"}
    assert "graphene@3: no &lt;manifest&gt;" in _page_before_the_first_look(app_state)


TEMPLATES = sorted((STATIC.parent / "templates").glob("*.html"))


def test_every_command_on_a_page_exists() -> None:
    root = get_command(commands)
    seen: set[str] = set()
    for path in TEMPLATES:
        for words in re.findall(r"\bmanybeam ((?:[a-z][a-z-]* ?)+)", path.read_text()):
            here: Any = root
            for word in words.split():
                if hasattr(here, "commands"):
                    assert word in here.commands, (path.name, words)
                    here = here.commands[word]
                    seen.add(word)
    assert {"train", "evaluate", "web"} <= seen


# -- without a zoo --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("query", "told"),
    [
        ([("page", "1.5")], "page"),
        ([("kind", "networks")], "kind"),
        ([("order", "colour")], "order"),
        ([("status", "lost")], "status"),
        ([("dose_e_per_a2_max", "nan")], "dose_e_per_a2_max"),
        ([("dose_e_per_a2_min", "5"), ("dose_e_per_a2_max", "2")], "above"),
        ([("page", "1" * 5000)], "page"),
    ],
)
def test_an_address_that_asks_for_nonsense_is_refused(
    query: list[tuple[str, str]], told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        read_query(query)


def test_an_address_holds_only_what_differs_from_the_default() -> None:
    asked = [
        ("q", " a "),
        ("kind", "ensembles"),
        ("condition", ""),
        ("page", "1"),
        ("status", "serving"),
    ]
    assert read_query(asked).address(page="2") == "/zoo?q=a&status=serving&page=2"


@pytest.mark.parametrize(
    "address", ["https://elsewhere", "//elsewhere", "/\\elsewhere", "zoo", "/zoo\r\nx: y", ""]
)
def test_nobody_is_sent_to_another_site(address: str) -> None:
    assert own_address(address) == "/zoo"


def test_the_admin_token_is_for_its_owner_only_and_made_once(tmp_path: Path) -> None:
    home, made = tmp_path / "home", []
    makers = [threading.Thread(target=lambda: made.append(admin_token(home))) for _ in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len({token for token, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1
    assert stat.S_IMODE((home / "admin-token").stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == ["admin-token"]


@pytest.mark.parametrize(("content", "mode"), [("short", 0o600), ("x" * 40, 0o644)])
def test_a_token_that_others_know_or_could_guess_is_refused(
    tmp_path: Path, content: str, mode: int
) -> None:
    (tmp_path / "admin-token").write_text(content)
    (tmp_path / "admin-token").chmod(mode)
    with pytest.raises(InvalidInput):
        admin_token(tmp_path)


def test_a_session_ends_with_its_time_and_with_its_token() -> None:
    now = [1000.0]
    refresher = Gatekeeper("a" * 40, clock=lambda: now[0])
    request = _request(cookie=f"manybeam-session={refresher.session()}")
    assert refresher.who(request).name == "admin"
    assert Gatekeeper("b" * 40, clock=lambda: now[0]).who(request).name == "nobody"
    now[0] += SESSION_S + 1
    assert refresher.who(request).name == "nobody"


@pytest.mark.parametrize("cookie", ["", "manybeam-session=", "manybeam-session=9999999999.a.b"])
def test_a_session_cannot_be_made_up(cookie: str) -> None:
    assert Gatekeeper("a" * 40).who(_request(cookie=cookie)).name == "nobody"


def test_a_token_of_the_database_opens_what_it_was_made_for(reader: httpx.Client) -> None:
    tokens = Tokens(open_database())
    text, made = tokens.create("scan", ["predict"])
    asked = {"authorization": f"Bearer {text}"}
    refused = reader.post("/zoo/graphene@1/promote", headers=asked)
    assert (refused.status_code, "zoo:promote" in refused.text) == (403, True)
    tokens.revoke(made.id)
    assert "opens nothing" in reader.post("/zoo/graphene@1/promote", headers=asked).text


def test_the_admin_token_is_registered_and_one_that_is_replaced_opens_nothing(
    tmp_path: Path, use_settings: Any
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    make_app_state(Zoo())
    old = admin_token(tmp_path)[0]
    (tmp_path / "admin-token").unlink()
    state = make_app_state(Zoo())
    assert [one.revoked is None for one in Tokens(open_database()).list()].count(True) == 1
    with pytest.raises(NotAllowed, match="opens nothing"):
        state.gatekeeper.who(_request(authorization=f"Bearer {old}"))


def test_pages_are_shown_while_the_database_is_down(tmp_path: Path, use_settings: Any) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:9/manybeam"
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_DATABASE_URL": nowhere})
    state = make_app_state(Zoo())
    token = admin_token(tmp_path)[0]
    assert state.gatekeeper.who(_request(authorization=f"Bearer {token}")).name == "admin-token"


def _request(**headers: str) -> Any:
    from fastapi import Request

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs, "method": "GET", "path": "/"})


def test_an_address_others_can_reach_is_refused_without_being_asked_for() -> None:
    with pytest.raises(NotAllowed, match="other machines"):
        run("0.0.0.0", 0)
    assert [is_loopback(host) for host in ("::1", "localhost", "127.8.8.8", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("path", ["/", "/zoo", "/zoo/graphene", "/api/v1/zoo", "/healthz", "/docs"])
def test_a_page_answers_head_without_its_body(reader: httpx.Client, path: str) -> None:
    answer = reader.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_head_of_the_stream_of_events_ends(reader: httpx.Client) -> None:
    answer = reader.head("/api/v1/events", timeout=5)
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        pytest.param("LOCALHOST", 200, id="case"),
        pytest.param("localhost.:8000", 200, id="dot"),
        pytest.param("[::1]:8000", 200, id="ipv6"),
        pytest.param("lab.example.org", 403, id="another"),
        pytest.param("localhost.lab", 403, id="beginning"),
        pytest.param("[::1", 400, id="bracket"),
        pytest.param("localhost:x", 400, id="port"),
        pytest.param("me@localhost", 400, id="user"),
    ],
)
def test_a_host_name_is_read_in_any_case(reader: httpx.Client, host: str, status: int) -> None:
    assert reader.get("/healthz", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "origin", ["http://[::1", "http://localhost:x", "null", "//", "http://lab.example.org"]
)
def test_a_change_from_a_page_of_any_other_origin_is_refused(
    reader: httpx.Client, origin: str
) -> None:
    asked = {"token": admin_token(settings().home)[0], "back": "/zoo"}
    assert reader.post("/login", data=asked, headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize("path", ["/api/v1/audit?limit=", "/api/v1/datasets?page="])
def test_a_number_out_of_bounds_means_the_nearest(reader: httpx.Client, path: str) -> None:
    least, most = ("0", "10000") if "limit" in path else ("1", "1000000000")
    for number, nearest in (("-1", least), ("-" + "9" * 30, least), ("9" * 30, most)):
        answer, wanted = reader.get(path + number), reader.get(path + nearest)
        assert answer.status_code == wanted.status_code != 422
        assert answer.json().keys() == wanted.json().keys()
        assert answer.json().get("entries") == wanted.json().get("entries")


@pytest.mark.parametrize("number", ["x", "1e3", ""])
@pytest.mark.parametrize("path", ["/api/v1/audit?limit=", "/api/v1/datasets?page="])
def test_what_is_no_number_is_refused(reader: httpx.Client, path: str, number: str) -> None:
    assert reader.get(path + number).status_code == 422


@pytest.mark.parametrize("reason", ['"\\ud800"', '"a\\u0000b"'])
def test_a_text_that_no_database_can_keep_is_refused(reader: httpx.Client, reason: str) -> None:
    headers = {**bearer(), "content-type": "Application/JSON"}
    body = f'{{"reason": {reason}}}'
    answer = reader.post("/api/v1/zoo/graphene@2/archive", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert "fields cannot be read" in answer.text


def test_a_port_that_is_taken_is_told() -> None:
    with (
        listen("127.0.0.1", 0) as first,
        pytest.raises(PortInUse, match="another process uses port"),
    ):
        listen("127.0.0.1", first.getsockname()[1])


# -- what is vendored, what is drawn --------------------------------------------------------------
VENDORED = json.loads((STATIC / "vendor" / "vendor.json").read_text())


@pytest.mark.parametrize("entry", VENDORED, ids=lambda entry: entry["file"])
def test_a_vendored_file_is_the_one_in_the_list(entry: dict[str, str]) -> None:
    content = (STATIC / "vendor" / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert entry["licence"] in ("MIT", "0BSD", "BSD-3-Clause")


def test_every_vendored_file_is_in_the_list() -> None:
    there = {path.name for path in (STATIC / "vendor").iterdir()} - {"vendor.json"}
    assert there == {entry["file"] for entry in VENDORED}


def test_the_style_sheet_of_colours_is_the_one_that_is_made() -> None:
    assert (STATIC / "viridis.css").read_text() == colours.stylesheet()


def test_text_can_be_read_on_every_colour() -> None:
    rules = re.findall(r"background:#(\w{6});color:#(\w{3})", colours.stylesheet())
    assert len(rules) == colours.CLASS_COUNT
    for background, ink in rules:
        rgb = tuple(int(background[i : i + 2], 16) / 255 for i in (0, 2, 4))
        light = colours.luminance((rgb[0], rgb[1], rgb[2])) + 0.05
        contrast = light / 0.05 if ink == "000" else 1.05 / light
        assert contrast >= 4.5, background


def test_our_own_style_writes_nothing_in_capitals() -> None:
    own = (STATIC / "manybeam.css").read_text()
    assert "uppercase" not in own
    assert "text-transform: none !important" in own

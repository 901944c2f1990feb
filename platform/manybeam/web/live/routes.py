"""The pages `/live` and `/live/{instrument}`, and what their script asks."""

import hmac
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from manybeam.db.deployment import open_database
from manybeam.db.serving.sessions import Sessions
from manybeam.errors import Conflict, ManybeamError, NotAllowed, Unreachable, http_status, problem
from manybeam.settings import settings
from manybeam.web.auth import Person, check_origin
from manybeam.web.live.feed import LiveFeed, Reply
from manybeam.web.pages.changes import read_fields
from manybeam.web.problems import PROBLEM, request_id
from manybeam.web.state import AppState

LONGEST_S = 5.0
# What a change of a session may keep of its settings.
KEPT = ("budget_ms", "pixel_size_pm", "condition", "false_atoms", "select_every", "order",
        "keep_doubtful")  # fmt: skip
NOTHING: Mapping[str, Any] = {
    "number": 0,
    "frame": None,
    "trend": [],
    "picture": "",
}  # before the first frame
After = Annotated[int, Query(ge=0, le=10**17)]
WaitS = Annotated[float, Query(ge=0, le=LONGEST_S)]


def live_router(app_state: AppState) -> APIRouter:
    """Return the routes of live pages."""
    router = APIRouter(include_in_schema=False)
    feed = LiveFeed()

    @router.get("/live")
    def instruments(request: Request) -> Response:
        return list_page(app_state, request)

    @router.get("/live/{instrument}")
    def live(request: Request, instrument: str) -> Response:
        return live_page(app_state, feed, request, instrument)

    @router.get("/live/{instrument}/next")
    def newest(
        request: Request, instrument: str, after: After = 0, wait_s: WaitS = 0.0
    ) -> Response:
        person = app_state.gatekeeper.who(request)
        return _relayed(request, lambda: feed.newest(person, instrument, after, wait_s))

    @router.get("/live/{instrument}/session")
    def session(request: Request, instrument: str) -> Response:
        person = app_state.gatekeeper.who(request)
        return _relayed(request, lambda: feed.session(person, instrument))

    for verb, work in (("pin", pin), ("unpin", unpin), ("mark", mark)):
        _add_change(router, app_state, feed, verb, work)
    return router


Change = Callable[[LiveFeed, Person, str, str], Reply]


def _add_change(
    router: APIRouter, app_state: AppState, feed: LiveFeed, verb: str, work: Change
) -> None:
    """Add a form; the script of the page asks for JSON, a form without it for the page."""

    @router.post(f"/live/{{instrument}}/{verb}")
    async def change(request: Request, instrument: str) -> Response:
        fields = await read_fields(request)
        person = _own_page(app_state, request, fields)
        is_script = request.headers.get("accept", "").startswith("application/json")

        def done() -> Response:
            frame_id = fields.get("frame_id", "")
            answer = _relayed(request, lambda: work(feed, person, instrument, frame_id))
            if is_script or answer.status_code >= 400:
                return answer
            return RedirectResponse(f"/live/{quote(instrument, safe='')}", 303)

        return await run_in_threadpool(done)


def pin(feed: LiveFeed, person: Person, instrument: str, _: str) -> Reply:
    """Let the version and members that answer now answer until the session is changed."""
    before = feed.session(person, instrument)
    if not before.is_ok:
        return before
    now = before.content["now"]
    if now is None:
        raise Conflict("no member has answered yet", "there is nobody to pin", "send a frame first")
    wanted = {"policy": "pinned", "ref": now["ref"], "members": now["members"]}
    return feed.put(person, instrument, {**_kept(before), **wanted})


def unpin(feed: LiveFeed, person: Person, instrument: str, _: str) -> Reply:
    """Let the service select again, among all ensembles that serve."""
    before = feed.session(person, instrument)
    if not before.is_ok:
        return before
    return feed.put(person, instrument, {**_kept(before), "policy": "auto", "ref": "auto"})


def mark(feed: LiveFeed, person: Person, instrument: str, frame_id: str) -> Reply:
    """Keep a frame for adaptation."""
    return feed.mark(person, instrument, frame_id)


def _kept(session: Reply) -> dict[str, Any]:
    known = {name: session.content.get(name) for name in KEPT if name in session.content}
    return {name: value for name, value in known.items() if value is not None}


def list_page(app_state: AppState, request: Request) -> Response:
    """Return the list of the instruments that have a session."""
    fault, running = None, []
    try:
        running = sorted(Sessions(open_database()).running(), key=lambda one: one.instrument)
    except Unreachable as error:
        fault = error
    return app_state.pages.show(
        request, "live_list.html", sessions=running, fault=fault, service=settings().service_url
    )


def live_page(app_state: AppState, feed: LiveFeed, request: Request, instrument: str) -> Response:
    """Return the page of one instrument; without its script it shows the newest frame."""
    person = app_state.gatekeeper.who(request)
    session = newest = None
    fault: dict[str, Any] | None = None
    try:
        for reply in (
            session := feed.session(person, instrument),
            newest := feed.newest(person, instrument, 0, 0.0),
        ):
            fault = fault or (None if reply.is_ok else reply.content)
    except Unreachable as error:
        fault = problem(error, request_id(request))
    found = newest.content if newest and newest.is_ok else NOTHING
    return app_state.pages.show(
        request,
        "live.html",
        instrument=instrument,
        session=session.content if session and session.is_ok else None,
        live=found,
        fault=fault,
        service=settings().service_url,
        state=_state(session, found, fault),
    )


def _state(session: Reply | None, found: Mapping[str, Any], fault: Any) -> str:
    """Return the state of a page, as its script knows it."""
    if session is not None and session.status == 404:
        return "empty"
    if session is None or not session.is_ok or fault:
        return "disconnected"
    if found["frame"] is None:
        return "waiting"
    return "drifted" if found["watch"]["drifted"] else "running"


def _own_page(app_state: AppState, request: Request, fields: Mapping[str, str]) -> Person:
    """Return who sends a form of our own pages.

    Raises:
        NotAllowed: another site sent it, or it is not of this session.
    """
    person = app_state.gatekeeper.who(request)
    check_origin(request)
    if person.csrf and not hmac.compare_digest(
        fields.get("csrf", "").encode(), person.csrf.encode()
    ):
        raise NotAllowed("this form is not one of this session's", "", "reload the page")
    return person


def _relayed(request: Request, ask: Callable[[], Reply]) -> Response:
    """Return the reply of the service, or what kept it away, as JSON."""
    try:
        reply = ask()
    except ManybeamError as error:
        content, status = problem(error, request_id(request)), http_status(error)
        return JSONResponse(content, status, media_type=PROBLEM)
    media = None if reply.is_ok else PROBLEM
    return JSONResponse(
        reply.content, reply.status, media_type=media, headers={"cache-control": "no-store"}
    )

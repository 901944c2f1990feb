"""The pages `/live` and `/live/{instrument}`, and what their script asks."""

import hmac
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from manybeam.db.deployment import open_database
from manybeam.db.serving.sessions import Sessions
from manybeam.errors import (
    Busy,
    Conflict,
    ManybeamError,
    NotAllowed,
    NotFound,
    Unreachable,
    http_status,
    problem,
)
from manybeam.settings import settings
from manybeam.web.auth import Person, check_origin
from manybeam.web.pages.changes import read_fields
from manybeam.web.problems import PROBLEM, request_id
from manybeam.web.service import PredictionService
from manybeam.web.state import AppState

LONGEST_S = 5.0
WAITING = 20  # live pages that wait for a frame; other pages need threads too
SCOPE = "predict"  # who has it may ask with the token of the settings
# What is live before the first frame.
NOTHING: Mapping[str, Any] = {"number": 0, "frame": None, "trend": [], "picture": ""}
After = Annotated[int, Query(ge=0, le=10**17)]
WaitS = Annotated[float, Query(ge=0, le=LONGEST_S)]


def live_router(app_state: AppState) -> APIRouter:
    """Return the routes of live pages."""
    router = APIRouter(include_in_schema=False)
    service, waits = PredictionService(), threading.BoundedSemaphore(WAITING)

    @router.get("/live")
    def instruments(request: Request) -> Response:
        return list_page(app_state, request)

    @router.get("/live/{instrument}")
    def live(request: Request, instrument: str) -> Response:
        return live_page(app_state, service, request, instrument)

    @router.get("/live/{instrument}/next")
    def newest(
        request: Request, instrument: str, after: After = 0, wait_s: WaitS = 0.0
    ) -> Response:
        has_token = SCOPE in app_state.gatekeeper.who(request).scopes

        def waited() -> dict[str, Any]:
            if not waits.acquire(blocking=False):
                raise Busy(f"{WAITING} live pages are open", "each holds a thread", "close some")
            try:
                return service.live(instrument, after, wait_s, has_token=has_token)
            finally:
                waits.release()

        return _relayed(request, waited)

    @router.get("/live/{instrument}/session")
    def session(request: Request, instrument: str) -> Response:
        has_token = SCOPE in app_state.gatekeeper.who(request).scopes
        return _relayed(request, lambda: service.session(instrument, has_token=has_token))

    for verb, work in (("pin", pin), ("unpin", unpin), ("mark", mark)):
        _add_change(router, app_state, service, verb, work)
    return router


class Change(Protocol):
    """What a form of the page does."""

    def __call__(
        self, service: PredictionService, instrument: str, frame_id: str, *, has_token: bool
    ) -> dict[str, Any]:
        """Return what the service says."""


def _add_change(
    router: APIRouter, app_state: AppState, service: PredictionService, verb: str, work: Change
) -> None:
    """Add a form; the script of the page asks for JSON, a form without it for the page."""

    @router.post(f"/live/{{instrument}}/{verb}")
    async def change(request: Request, instrument: str) -> Response:
        fields = await read_fields(request)
        has_token = SCOPE in _own_page(app_state, request, fields).scopes
        frame_id = fields.get("frame_id", "")
        is_script = request.headers.get("accept", "").startswith("application/json")

        def done() -> Response:
            answer = _relayed(
                request, lambda: work(service, instrument, frame_id, has_token=has_token)
            )
            if is_script or answer.status_code >= 400:
                return answer
            return RedirectResponse(f"/live/{quote(instrument, safe='')}", 303)

        return await run_in_threadpool(done)


def pin(
    service: PredictionService, instrument: str, frame_id: str, *, has_token: bool
) -> dict[str, Any]:
    """Let the version and members that answer now answer until the session is changed."""
    del frame_id
    before = service.session(instrument, has_token=has_token)
    now = before["now"]
    if now is None:
        raise Conflict("no member has answered yet", "there is nobody to pin", "send a frame first")
    wanted = {"policy": "pinned", "ref": now["ref"], "members": now["members"]}
    return service.change_session(instrument, {**before, **wanted}, has_token=has_token)


def unpin(
    service: PredictionService, instrument: str, frame_id: str, *, has_token: bool
) -> dict[str, Any]:
    """Let the service select again, among all ensembles that serve."""
    del frame_id
    before = service.session(instrument, has_token=has_token)
    wanted = {"policy": "auto", "ref": "auto", "members": []}
    return service.change_session(instrument, {**before, **wanted}, has_token=has_token)


def mark(
    service: PredictionService, instrument: str, frame_id: str, *, has_token: bool
) -> dict[str, Any]:
    """Keep a frame for adaptation."""
    return service.mark(instrument, frame_id, has_token=has_token)


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


def live_page(
    app_state: AppState, service: PredictionService, request: Request, instrument: str
) -> Response:
    """Return the page of one instrument; without its script it shows the newest frame."""
    has_token = SCOPE in app_state.gatekeeper.who(request).scopes
    session, found, fault, state = None, NOTHING, None, "disconnected"
    try:
        session = service.session(instrument, has_token=has_token)
        found = service.live(instrument, 0, 0.0, has_token=has_token)
        state = _state(found)
    except NotFound:
        state = "empty"
    except ManybeamError as error:
        fault = problem(error, request_id(request))
    return app_state.pages.show(
        request,
        "live.html",
        instrument=instrument,
        session=session,
        live=found,
        fault=fault,
        service=service.url,
        state=state,
    )


def _state(found: Mapping[str, Any]) -> str:
    """Return the state of a page with a session, as its script knows it."""
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


def _relayed(request: Request, ask: Callable[[], dict[str, Any]]) -> Response:
    """Return what the service says, or why it does not, as JSON."""
    try:
        return JSONResponse(ask(), headers={"cache-control": "no-store"})
    except ManybeamError as error:
        content, status = problem(error, request_id(request)), http_status(error)
        return JSONResponse(content, status, media_type=PROBLEM)

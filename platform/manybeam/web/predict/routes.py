"""The addresses of /predict: the form, each result, its tiles, atoms and downloads."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from manybeam.data.io.file_readers import ALONE
from manybeam.errors import Busy, ManybeamError, NotAuthenticated, NotFound, TooSlow
from manybeam.settings import settings
from manybeam.web.auth import Person, check_asker
from manybeam.web.predict.downloads import ENSEMBLE, FILES, atoms_f32
from manybeam.web.predict.form import PredictForm, most_bytes, read_form
from manybeam.web.predict.results import Result
from manybeam.web.predict.tiles import TILE_PX, frame_tile, spread_tile, spread_top
from manybeam.web.predict.view import best_members, show, stem
from manybeam.web.service import PredictionService
from manybeam.web.state import AppState

SCOPE = "predict"
RECEIVED = 4  # uploads at once, because each is in memory
UPLOAD_S = 120.0  # for one
Percent = Annotated[float, Query(ge=0, le=100, allow_inf_nan=False)]
Gamma = Annotated[float, Query(ge=0.05, le=20, allow_inf_nan=False)]
MOST_OFFERED = 200  # references in the list of the form
# A result never changes, and its id is its own.
KEPT = {"cache-control": "private, max-age=86400, immutable"}


def predict_router(app_state: AppState) -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)
    places = threading.BoundedSemaphore(RECEIVED)

    @router.get("/predict")
    def start(request: Request, frameset: str = "", frame: int = 0, ref: str = "") -> Response:
        given = {"frameset": frameset, "frame": max(frame, 0), "ref": ref}
        return start_page(app_state, request, given)

    @router.post("/predict")
    async def ask(request: Request) -> Response:
        check_asker(request)
        async with _receiving(places):
            form = await read_form(request, settings().max_frame_px)
        return await asked(app_state, request, form)

    @router.get("/predict/{identity}")
    def result(request: Request, identity: str, *, ranking: bool = False) -> Response:
        return result_page(app_state, request, identity, is_ranked=ranking)

    _add_pictures(router, app_state)
    _add_files(router, app_state)
    return router


def _add_pictures(router: APIRouter, app_state: AppState) -> None:
    @router.get("/predict/{identity}/frame/{level}/{x}_{y}.jpg")
    def frame(
        identity: str,
        level: int,
        x: int,
        y: int,
        low: Percent = 1.0,
        high: Percent = 99.7,
        gamma: Gamma = 1.0,
    ) -> Response:
        pyramid = app_state.predicting.pyramid(identity, "frame")
        ends = pyramid.percentile(low), pyramid.percentile(high)
        picture = frame_tile(pyramid.tile(level, x, y), *ends, gamma)
        return Response(picture, media_type="image/jpeg", headers=KEPT)

    @router.get("/predict/{identity}/spread/{level}/{x}_{y}.png")
    def spread(identity: str, level: int, x: int, y: int) -> Response:
        pyramid = app_state.predicting.pyramid(identity, "std")
        picture = spread_tile(pyramid.tile(level, x, y), spread_top(pyramid))
        return Response(picture, media_type="image/png", headers=KEPT)


def _add_files(router: APIRouter, app_state: AppState) -> None:
    @router.get("/predict/{identity}/atoms.f32")
    def atoms(identity: str, member: int = ENSEMBLE) -> Response:
        content = atoms_f32(app_state.predicting.results.look(identity), member)
        return Response(content, media_type="application/octet-stream", headers=KEPT)

    @router.get("/predict/{identity}/{name}")
    def file(request: Request, identity: str, name: str, *, inline: bool = False) -> Response:
        check_asker(request)
        return download(app_state.predicting.results.look(identity), name, is_inline=inline)


def start_page(app_state: AppState, request: Request, given: dict[str, Any]) -> Response:
    """Return the form; it says at once if the service does not answer."""
    return app_state.pages.show(request, "predict.html", **_offer(app_state, request), given=given)


@asynccontextmanager
async def _receiving(places: threading.BoundedSemaphore) -> AsyncIterator[None]:
    """Hold one of the places for uploads.

    Raises:
        Busy: there is none.
        TooSlow: the upload takes too long.
    """
    if not places.acquire(blocking=False):
        raise Busy(f"{RECEIVED} other files are being sent", "", "the page tries again by itself")
    try:
        async with asyncio.timeout(UPLOAD_S):
            yield
    except TimeoutError as error:
        raise TooSlow(
            f"the file did not arrive within {UPLOAD_S:g} s", "", "crop the frame, or send it again"
        ) from error
    finally:
        places.release()


async def asked(app_state: AppState, request: Request, form: PredictForm) -> Response:
    """Answer a form: the page goes to its result, a script is told where that is."""
    person = await run_in_threadpool(_person, app_state, request, form.csrf)
    result = await run_in_threadpool(
        app_state.predicting.ask, form, app_state.framesets, has_token=SCOPE in person.scopes
    )
    address = f"/predict/{result.id}"
    if request.headers.get("accept", "").startswith("application/json"):
        return JSONResponse({"url": address, "error": dict(result.facts.error)})
    return RedirectResponse(address, 303)


def result_page(
    app_state: AppState, request: Request, identity: str, *, is_ranked: bool
) -> Response:
    """Return the page of a result: with the viewer, or with what is wrong and a form."""
    result = app_state.predicting.results.newest(identity)
    if result.id != identity:
        return RedirectResponse(f"/predict/{result.id}", 303)
    ranking, refused = result.ranking, None
    if is_ranked and ranking is None and not result.facts.error:
        check_asker(request)
        person = app_state.gatekeeper.who(request)
        try:
            ranking = app_state.predicting.rank(result, has_token=SCOPE in person.scopes)
        except ManybeamError as error:
            refused = error
    shown = show(result)
    return app_state.pages.show(
        request,
        "predict_result.html",
        result=result,
        facts=result.facts,
        error=result.facts.error,
        shown=shown,
        atoms=_first_atoms(result),
        best=best_members(ranking) if ranking else (),
        ranking=ranking,
        refused=refused,
        viewer=_viewer(result, shown.meta),
        given={"frameset": "", "frame": result.facts.frame or 0, "ref": result.facts.ref},
        **_offer(app_state, request),
    )


def download(result: Result, name: str, *, is_inline: bool) -> Response:
    """Return a file of a result.

    Raises:
        NotFound: there is no such file, or no answer.
    """
    if name not in FILES or (result.facts.error and name != "frame.npy"):
        raise NotFound(
            f"this result has no file {name[:80]!r}",
            f"there are {', '.join(FILES)} if the service answered",
            "go to the page of the result",
        )
    make, kind = FILES[name]
    told = (
        {}
        if is_inline
        else {"content-disposition": f'attachment; filename="{_name(result, name)}"'}
    )
    return Response(make(result), media_type=kind, headers=KEPT | told)


def _name(result: Result, name: str) -> str:
    return name if name == "frame.npy" else f"{stem(result.facts)}-{name}"


def _person(app_state: AppState, request: Request, csrf: str) -> Person:
    """Return who asks; the form of a session must be its own."""
    person = app_state.gatekeeper.who(request)
    return app_state.gatekeeper.allow(request, SCOPE, csrf) if person.csrf else person


def _first_atoms(result: Result) -> tuple[list[list[float]], int]:
    """Return the first atoms for a table, and how many there are."""
    if result.facts.error:
        return [], 0
    atoms = result.arrays("atoms")["atoms"]
    return atoms[:50].tolist(), len(atoms)


def _viewer(result: Result, meta: dict[str, Any] | Any) -> dict[str, Any]:
    """Return what the script of the viewer needs."""
    rows, columns = result.facts.shape
    size_pm = meta.get("pixel_size_pm") or result.facts.stated_pm or result.facts.file_size_pm
    members = [] if result.facts.error else [int(one) for one in meta["members"]]
    return {
        "base": f"/predict/{result.id}",
        "width": columns,
        "height": rows,
        "tile": TILE_PX,
        "pixelSizePm": size_pm,
        "members": members,
        "ref": meta.get("ref", ""),
        "hasAnswer": not result.facts.error,
        "isQuick": result.facts.is_quick,
        "elements": meta.get("elements", []),
    }


def _offer(app_state: AppState, request: Request) -> dict[str, Any]:
    """Return what the form offers: who can answer, and whether the service does."""
    try:
        person = app_state.gatekeeper.who(request)
        serving = PredictionService().ensembles(has_token=SCOPE in person.scopes)
        away = None
    except ManybeamError as error:
        serving, away = [], error
    refs = [one["ref"] for one in serving]
    known = [one for one in app_state.version_cache.refs() if one not in refs]
    return {
        "serving": refs,
        "others": known[:MOST_OFFERED],
        "away": away,
        "needs_login": isinstance(away, NotAuthenticated),
        "suffixes": ALONE,
        "most_bytes": most_bytes(settings().max_frame_px),
    }

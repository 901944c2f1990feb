"""The pages: the list, one version, comparisons, conditions and FrameSets.

Each page is complete HTML at its own address. The script of a page requests the same address and
uses the part that changed, so these routes do not depend on the script.
"""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from manybeam.errors import UnknownCondition
from manybeam.settings import settings
from manybeam.web.auth import check_asker, own_address
from manybeam.web.pages.comparing import make_comparison, read_ids
from manybeam.web.pages.examples import add_examples
from manybeam.web.pages.exports import FORMS, card_file, export_file
from manybeam.web.pages.listing import OFFERED, make_listing, read_query
from manybeam.web.pages.overview import make_overview
from manybeam.web.pages.reliability import make_curve, reliability_picture
from manybeam.web.pages.under_traffic import UnderTraffic
from manybeam.web.pages.version import describe_version
from manybeam.web.render import THEME_COOKIE, THEMES
from manybeam.web.state import AppState
from manybeam.zoo.catalogue import Query
from manybeam.zoo.matrix import SELECTED_F1

SCORES = ("f1", SELECTED_F1, "precision", "recall", "rmse_pm", "ece")
YEAR_S = 365 * 86400
OUTCOME_COOKIE = "manybeam-outcome"
# The message after a change, by its verb.
OUTCOMES = {
    "promote": "Promoted. The audit log has a record of it.",
    "rollback": "Serving was rolled back. The audit log has a record of it.",
    "archive": "Archived. Lists do not show it, and it cannot be promoted.",
    "unarchive": "Unarchived. Lists show it again.",
}


def pages_router(app_state: AppState) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def start() -> Response:
        return RedirectResponse("/zoo", 303)

    @router.get("/zoo")
    def zoo(request: Request) -> Response:
        return zoo_page(app_state, request)

    @router.get("/zoo/{ref:path}/card.{form}")
    def card(request: Request, ref: str, form: str) -> Response:
        check_asker(request)
        return card_file(app_state, ref, form)

    @router.get("/zoo/{ref:path}/export/{form}")
    def export(request: Request, ref: str, form: str) -> Response:
        check_asker(request)
        return export_file(app_state, ref, form)

    @router.get("/zoo/{ref:path}/reliability.svg")
    def reliability(ref: str, condition: str = "") -> Response:
        return reliability_picture(app_state, ref, condition)

    add_examples(router, app_state)

    @router.get("/zoo/{ref:path}")
    def version(request: Request, ref: str, score: str = "f1") -> Response:
        return version_page(app_state, request, ref, score)

    @router.get("/compare")
    def compare(request: Request) -> Response:
        return compare_page(app_state, request)

    _add_places(router, app_state)
    return router


def _add_places(router: APIRouter, app_state: AppState) -> None:
    @router.get("/conditions")
    def conditions(request: Request) -> Response:
        rows, described = app_state.catalogue.conditions(), app_state.described()
        return app_state.pages.show(request, "conditions.html", rows=rows, described=described)

    @router.get("/conditions/{name}")
    def condition(request: Request, name: str) -> Response:
        return condition_page(app_state, request, name)

    @router.get("/datasets")
    def datasets(request: Request, q: str = "", page: int = 1) -> Response:
        found = app_state.framesets.find(q.strip(), max(page, 1))
        described = app_state.described()
        return app_state.pages.show(
            request,
            "datasets.html",
            found=found,
            q=q,
            described=described,
            store=settings().store_url,
        )

    @router.get("/datasets/{path:path}/preview.png")
    def preview(path: str) -> Response:
        picture = app_state.framesets.preview(path)
        return Response(picture, media_type="image/png", headers={"cache-control": "max-age=60"})

    @router.get("/theme/{choice}")
    def theme(choice: str, back: str = "/zoo") -> Response:
        return theme_change(choice, back)

    @router.get("/docs")
    def docs(request: Request) -> Response:
        paths = request.app.openapi()["paths"]
        return app_state.pages.show(request, "docs.html", paths=paths)


def zoo_page(app_state: AppState, request: Request) -> Response:
    """Return the list of ensembles or members."""
    given = request.query_params.multi_items()
    question = read_query(given)
    if len(question.pairs) < len(given):  # a form also sends its empty fields
        query = dict.fromkeys(question.pairs)
        return RedirectResponse(f"/zoo?{urlencode(list(query))}" if query else "/zoo", 303)
    described = app_state.described()
    listing = make_listing(app_state.catalogue, question, described)
    return app_state.pages.show(
        request,
        "zoo.html",
        listing=listing,
        listing_query=question,
        query=question.query,
        described=described,
        offered=OFFERED,
        scores=SCORES,
        is_read=app_state.refresher.news.as_of is not None,
    )


def version_page(
    app_state: AppState, request: Request, ref: str, score: str = "f1", **more: Any
) -> Response:
    """Return the page of one version or member.

    Args:
        app_state: the parts of the control plane.
        request: the request.
        ref: the version or member.
        score: the score in its matrix.
        more: the result of a change or check: `refused`, `checks`, `tests`.
    """
    from manybeam.zoo.reports.cards import describe

    cached = app_state.version_cache.look(ref)
    whole = app_state.version_cache.look(cached.record.version_ref)
    status = more.pop("status", 200)
    outcome = "" if more else OUTCOMES.get(request.cookies.get(OUTCOME_COOKIE, ""), "")
    tried: dict[str, Any] = {"outcome": outcome, "refused": None, "checks": (), "tests": ()}
    described = describe(cached.record, cached.matrix)
    return app_state.pages.show(
        request,
        "version.html",
        status=status,
        cached=cached,
        record=cached.record,
        details=describe_version(cached, score),
        curve=make_curve(cached, request.query_params.get("reliability", "")),
        described=app_state.described(),
        overview=make_overview(cached, whole.matrix, app_state.described()),
        traffic=UnderTraffic.of(cached.record),
        use=described.use,
        limits=described.limits,
        forms=FORMS,
        **{**tried, **more},
    )


def compare_page(app_state: AppState, request: Request) -> Response:
    """Return the comparison of versions or members."""
    query = request.query_params
    refs, score = read_ids(query.getlist("ids")), query.get("score", "f1")
    only = query.get("only") == "differences"
    found = (
        make_comparison(app_state.version_cache, refs, score, only_differences=only)
        if refs
        else None
    )
    return app_state.pages.show(request, "compare.html", comparison=found, only=only, ids=refs)


def condition_page(app_state: AppState, request: Request, name: str) -> Response:
    """Return one condition: its numbers, the best versions, the number of unmeasured versions."""
    rows = [row for row in app_state.catalogue.conditions() if row.condition == name]
    condition = app_state.described().get(name)
    if not rows and condition is None:
        raise UnknownCondition(
            f"there is no condition {name!r}",
            "it is neither measured nor in the library",
            "/conditions lists all",
        )
    is_measured = any(row.version_count or row.member_count for row in rows)
    best = {
        kind: app_state.catalogue.best(name, kind=kind) if is_measured else ()
        for kind in ("ensembles", "members")
    }
    missing = app_state.catalogue.coverage(Query(condition=name, page_size=1)).missing.get(name, 0)
    return app_state.pages.show(
        request,
        "condition.html",
        name=name,
        rows=rows,
        condition=condition,
        quantities=_quantities(condition) if condition else (),
        best=best,
        missing=missing,
    )


def _quantities(condition: Any) -> list[tuple[str, str, float, str, str]]:
    """Return (group, name, value, unit, sentence) of every quantity that is known."""
    found = []
    for path, value in condition.quantities():
        group, _, name = path.rpartition(".")
        model = type(getattr(condition, group)) if group else type(condition)
        field = model.model_fields[name]
        if value is not None:
            sentence = (field.description or "").rpartition(" [")[0]
            found.append((group or "dose", name, value, field.json_schema_extra["unit"], sentence))
    return found


def theme_change(query: str, back: str) -> Response:
    """Store light or dark in a cookie and go back; any other value deletes the cookie."""
    response = RedirectResponse(own_address(back), 303)
    if query in THEMES:
        response.set_cookie(THEME_COOKIE, query, max_age=YEAR_S, samesite="lax")
    else:
        response.delete_cookie(THEME_COOKIE)
    return response

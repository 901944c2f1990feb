"""The HTTP interface for programs: the content of the pages, as JSON."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator

from manybeam import __version__
from manybeam.web.pages.comparing import make_comparison, read_ids
from manybeam.web.pages.listing import query_parameters, read_query
from manybeam.web.state import AppState
from manybeam.zoo.matrix import Score, member_label

PAGE_SIZE = 50
# Numbers beyond these mean the nearest one, however long they are.
PageNumber = Annotated[int, AfterValidator(lambda page: min(max(page, 1), 10**9))]
AuditLimit = Annotated[int, AfterValidator(lambda limit: min(max(limit, 0), 10_000))]


def api_router(app_state: AppState) -> APIRouter:
    """Return the routes that only read."""
    router = APIRouter()

    @router.get("/api/v1/zoo", openapi_extra={"parameters": query_parameters()})
    def find(request: Request) -> dict[str, Any]:
        """Find ensembles or members; the query is that of the page `/zoo`."""
        question = read_query(request.query_params.multi_items(), page_size=PAGE_SIZE)
        found = app_state.catalogue.find(question.shown)
        rows = [{**asdict(row), "coverage": row.coverage} for row in found.rows]
        page = {"page": question.query.page, "unreadable": dict(app_state.refresher.unreadable)}
        return {**asdict(found), "rows": rows, "basis": found.basis, **page, **_age(app_state)}

    @router.get("/api/v1/zoo/{ref:path}/matrix")
    def matrix(ref: str) -> dict[str, Any]:
        """Return every score of a version: members by conditions, newest last."""
        cached = app_state.version_cache.look(ref)
        return {
            "ref": cached.record.ref,
            "conditions": list(cached.matrix.conditions),
            "superseded": [list(pair) for pair in cached.matrix.superseded],
            "scores": [_score(row) for row in cached.matrix.rows],
            **_age(app_state),
        }

    @router.get("/api/v1/zoo/{ref:path}")
    def version(ref: str) -> dict[str, Any]:
        """Return one version or member: members, lineage, aliases, job."""
        cached = app_state.version_cache.look(ref)
        record = cached.record.to_json()
        return {**record, "children": list(cached.children), **_age(app_state)}

    _add_lists(router, app_state)
    return router


def _add_lists(router: APIRouter, app_state: AppState) -> None:
    @router.get("/api/v1/compare")
    def compare(
        ids: Annotated[list[str] | None, Query()] = None, score: str = "f1"
    ) -> dict[str, Any]:
        """Compare up to eight versions or members with the first: `ids=a,b`."""
        refs = read_ids(ids or [])
        return (
            make_comparison(app_state.version_cache, refs, score).to_json()
            if refs
            else {"refs": []}
        )

    @router.get("/api/v1/conditions")
    def conditions() -> dict[str, Any]:
        """List the conditions that were measured, and those of the library."""
        return {
            "conditions": [asdict(row) for row in app_state.catalogue.conditions()],
            **_age(app_state),
        }

    @router.get("/api/v1/datasets")
    def datasets(q: str = "", page: PageNumber = 1) -> dict[str, Any]:
        """List the FrameSets of the store."""
        return asdict(app_state.framesets.find(q.strip(), page))

    @router.get("/api/v1/audit")
    def audit(subject: str = "", limit: AuditLimit = 100) -> dict[str, Any]:
        """List who changed what and why, newest first."""
        from manybeam.zoo.older_objects import audit_log

        log, wanted = audit_log(), subject or None
        entries = log.entries(wanted, limit=limit)
        return {"total": log.count(wanted), "entries": [asdict(one) for one in entries]}

    @router.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Say that the process answers, and whether its data is up to date."""
        return {"status": "ok", "version": __version__, **_age(app_state)}


def _age(app_state: AppState) -> dict[str, Any]:
    """Return the age of the data, so that a program does not take old data for new."""
    news, trouble = app_state.refresher.news, app_state.refresher.trouble
    return {
        "as_of": news.as_of,
        "is_fresh": news.is_fresh,
        "trouble": trouble.what if trouble else "",
    }


def _score(row: Score) -> dict[str, Any]:
    return {**asdict(row), "label": member_label(row.member)}

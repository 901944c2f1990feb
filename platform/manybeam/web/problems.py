"""Answers for errors: problem+json for a program, a page with advice for a person.

Both contain the request id; so does the log.
"""

import logging
import uuid

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from manybeam.errors import (
    InvalidInput,
    ManybeamError,
    NotFound,
    WorkFailed,
    WrongMethod,
    problem,
)
from manybeam.web.render import Pages

logger = logging.getLogger(__name__)

PROBLEM = "application/problem+json"


def request_id(request: Request) -> str:
    """Return the id of a request: from the caller, or a new one."""
    if not hasattr(request.state, "request_id"):
        given = request.headers.get("x-request-id", "")
        is_plain = given.isascii() and given.isprintable()
        request.state.request_id = (given[:128] if is_plain else "") or uuid.uuid4().hex
    return str(request.state.request_id)


def add_problems(app: FastAPI, pages: Pages) -> None:
    """Answer every error of an application in the form its caller reads."""

    def answer(request: Request, error: ManybeamError) -> Response:
        found = problem(error, request_id(request))
        if is_program(request):
            return JSONResponse(found, found["status"], media_type=PROBLEM)
        return pages.show(
            request, "error.html", status=found["status"], error=error, title=found["title"]
        )

    def ours(request: Request, error: Exception) -> Response:
        return answer(request, error if isinstance(error, ManybeamError) else _fault(request))

    def unrouted(request: Request, error: Exception) -> Response:
        response = answer(request, _unrouted(request, error))
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    def invalid(request: Request, error: Exception) -> Response:
        return answer(request, _invalid(error))

    app.add_exception_handler(ManybeamError, ours)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, ours)


def is_program(request: Request) -> bool:
    """Return whether a request asks for JSON, not for a page."""
    is_asked_for = request.headers.get("accept", "").startswith("application/json")
    return is_asked_for or request.url.path.startswith(("/api/", "/healthz", "/openapi.json"))


def _fault(request: Request) -> WorkFailed:
    logger.error("request failed", extra={"request_id": request_id(request)})
    return WorkFailed(
        "internal error", "Manybeam did not foresee this", "report the request id below"
    )


def _unrouted(request: Request, error: Exception) -> ManybeamError:
    path, status = request.url.path[:200], getattr(error, "status_code", 404)
    if status == 405:
        return WrongMethod(
            f"{path!r} does not accept {request.method[:20]}",
            "each path accepts certain HTTP methods",
            "GET /docs lists all paths and methods",
        )
    if status == 404:
        return NotFound(
            f"there is no page {path!r}",
            "the address may have changed",
            "/zoo lists the ensembles, /docs the HTTP paths",
        )
    detail = str(getattr(error, "detail", ""))[:300]
    return InvalidInput(f"{path!r} was refused", detail, "GET /docs lists all paths")


def _invalid(error: Exception) -> InvalidInput:
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    listed = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in faults)
    return InvalidInput(
        f"the request cannot be read: {listed}",
        "each path accepts certain parameters",
        "GET /docs lists them",
    )

"""Login with the admin token, and logout."""

import logging

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from manybeam.web.auth import SESSION_COOKIE, SESSION_S, TOKEN_FILE, check_origin, own_address
from manybeam.web.pages.changes import read_fields
from manybeam.web.state import AppState

logger = logging.getLogger(__name__)


def login_router(app_state: AppState) -> APIRouter:
    """Return the routes of login and logout."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    def login(request: Request, back: str = "/zoo") -> Response:
        return _form(app_state, request, own_address(back))

    @router.post("/login")
    async def enter(request: Request) -> Response:
        check_origin(request)
        fields = await read_fields(request)
        back = own_address(fields.get("back", ""))
        if not app_state.gatekeeper.is_token(fields.get("token", "").strip()):
            logger.warning("login refused")
            fault = f"this token differs from the token in {TOKEN_FILE}"
            return _form(app_state, request, back, fault=fault)
        response = RedirectResponse(back, 303)
        response.set_cookie(
            SESSION_COOKIE,
            app_state.gatekeeper.session(),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @router.post("/logout")
    async def leave(request: Request) -> Response:
        check_origin(request)
        app_state.gatekeeper.end(request)
        response = RedirectResponse("/zoo", 303)
        response.delete_cookie(SESSION_COOKIE)
        return response

    return router


def _form(app_state: AppState, request: Request, back: str, fault: str = "") -> Response:
    status = 403 if fault else 200
    return app_state.pages.show(
        request, "login.html", status=status, back=back, fault=fault, file=TOKEN_FILE
    )

"""Changes of the zoo: promote, roll back, archive; and checks that take some seconds.

The form of a page and the HTTP interface use the same functions. Each change needs the scope
`zoo:promote`. The audit log records the person and the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from manybeam.errors import Conflict, InvalidInput, ManybeamError, NotFound, http_status
from manybeam.web.auth import Person
from manybeam.web.pages.routes import OUTCOME_COOKIE, version_page
from manybeam.web.render import page_of
from manybeam.web.state import AppState
from manybeam.zoo.records import Ref

Fields = Mapping[str, str]
Work = Callable[[AppState, str, Fields, Person], dict[str, Any]]

SCOPE = "zoo:promote"
FORM_BYTES = 20_000
OUTCOME_S = 10


def changes_router(app_state: AppState) -> APIRouter:
    """Return the routes that make changes, for programs and for the forms of pages."""
    router = APIRouter()
    for verb, work in WORK.items():
        _add(router, app_state, verb, work)
    for verb in CHECKS:
        _add_check(router, app_state, verb)
    return router


def _add(router: APIRouter, app_state: AppState, verb: str, work: Work) -> None:
    async def for_programs(request: Request, ref: str) -> dict[str, Any]:
        person = app_state.gatekeeper.allow(request, SCOPE, request.headers.get("x-csrf-token", ""))
        fields = await read_fields(request)
        done = await run_in_threadpool(work, app_state, ref, fields, person)
        await run_in_threadpool(app_state.refresher.refresh)
        return done

    async def for_pages(request: Request, ref: str) -> Response:
        fields = await read_fields(request)
        person = app_state.gatekeeper.allow(request, SCOPE, fields.get("csrf", ""))
        try:
            await run_in_threadpool(work, app_state, ref, fields, person)
        except (Conflict, InvalidInput, NotFound) as error:
            to = fields.get("to", "")
            return await run_in_threadpool(_refused, app_state, request, ref, verb, error, to)
        await run_in_threadpool(app_state.refresher.refresh)
        return _done(ref, verb)

    summary = (work.__doc__ or "").splitlines()[0]
    path = f"/api/v1/zoo/{{ref:path}}/{verb}"
    router.post(path, summary=summary, name=f"{verb} for programs", openapi_extra=_taken(verb))(
        for_programs
    )
    router.post(f"/zoo/{{ref:path}}/{verb}", include_in_schema=False)(for_pages)
    _add_way_back(router, verb)


def _add_check(router: APIRouter, app_state: AppState, verb: str) -> None:
    @router.post(f"/zoo/{{ref:path}}/{verb}", include_in_schema=False)
    async def check(request: Request, ref: str) -> Response:
        fields = await read_fields(request)
        app_state.gatekeeper.allow(request, SCOPE, fields.get("csrf", ""))
        return await run_in_threadpool(_checked, app_state, request, ref, verb)

    _add_way_back(router, verb)


def _add_way_back(router: APIRouter, verb: str) -> None:
    """Redirect a reload of the answer to a form to the page of the version."""

    @router.get(f"/zoo/{{ref:path}}/{verb}", include_in_schema=False)
    def back(request: Request, ref: str) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(page_of(ref) + query, 303)


def promote(app_state: AppState, ref: str, fields: Fields, person: Person) -> dict[str, Any]:
    """Point an alias at a version if every gate accepts it, or if a reason overrides the gates."""
    from manybeam.zoo.lifecycle import life

    done = life.promote(
        app_state.zoo,
        ref,
        to=fields.get("to") or "serving",
        who=person.name,
        force=fields.get("force", "") in ("1", "on", "true"),
        reason=fields.get("reason", "").strip(),
    )
    forced = "; gates were overridden" if done.is_forced else ""
    return {**asdict(done), "message": f"{done.ref} is now {done.alias}{forced}"}


def rollback(app_state: AppState, ref: str, fields: Fields, person: Person) -> dict[str, Any]:
    """Point serving back to the version before; refused if another version serves now."""
    from manybeam.zoo.lifecycle import life

    reason, asked = fields.get("reason", "").strip(), Ref.parse(ref)
    name = ref if asked.version is None or asked.member is not None else asked.name
    done = life.rollback(app_state.zoo, name, who=person.name, reason=reason, expect=asked.version)
    return {**asdict(done), "message": f"{done.ref} serves again, instead of {done.previous}"}


def archive(app_state: AppState, ref: str, fields: Fields, person: Person) -> dict[str, Any]:
    """Archive a version: lists do not show it, and it cannot be promoted."""
    from manybeam.zoo.lifecycle import life

    done = life.archive(
        app_state.zoo, ref, who=person.name, reason=fields.get("reason", "").strip()
    )
    return {"ref": done.ref, "archived": done.archived, "message": f"{done.ref} is archived"}


def unarchive(app_state: AppState, ref: str, fields: Fields, person: Person) -> dict[str, Any]:
    """Unarchive an archived version."""
    from manybeam.zoo.lifecycle import life

    done = life.unarchive(
        app_state.zoo, ref, who=person.name, reason=fields.get("reason", "").strip()
    )
    return {"ref": done.ref, "archived": None, "message": f"{done.ref} is no longer archived"}


WORK: dict[str, Work] = {
    "promote": promote,
    "rollback": rollback,
    "archive": archive,
    "unarchive": unarchive,
}
CHECKS = ("test", "verify")


async def read_fields(request: Request) -> dict[str, str]:
    """Return the fields of a form or of a JSON object.

    Raises:
        InvalidInput: the body is neither, or too long.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise InvalidInput(
                "the request is too long", f"at most {FORM_BYTES} bytes", "shorten the reason"
            )
    text, kind = bytes(body), request.headers.get("content-type", "").lower()
    try:
        fields = _from_json(text) if "json" in kind else _from_form(text)
        if "\0" in "".join(fields.values()):
            raise ValueError("a text has a character of code 0")
        "".join(fields.values()).encode()  # JSON may hold half of a pair of characters
        return fields
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            "the fields cannot be read", str(error)[:200], "send a form or a JSON object"
        ) from error


def _from_json(text: bytes) -> dict[str, str]:
    import json

    fields = json.loads(text) if text else {}
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    wrong = [key for key, value in fields.items() if not isinstance(value, str | bool | None)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: neither a text nor true or false")
    words = {True: "true", False: "false"}
    return {
        key: words[value] if isinstance(value, bool) else value
        for key, value in fields.items()
        if value is not None
    }


def _from_form(text: bytes) -> dict[str, str]:
    from urllib.parse import parse_qsl

    return dict(parse_qsl(text.decode(), strict_parsing=bool(text), max_num_fields=20))


def _taken(verb: str) -> dict[str, Any]:
    """Return the description of the body of a change for openapi.json."""
    fields: dict[str, Any] = {"reason": {"type": "string", "description": "for the audit log"}}
    if verb == "promote":
        fields["to"] = {"type": "string", "enum": ["serving", "candidate"], "default": "serving"}
        words = "override the gates; needs a reason"
        fields["force"] = {"type": "boolean", "default": False, "description": words}
    content = {"application/json": {"schema": {"type": "object", "properties": fields}}}
    return {"requestBody": {"required": False, "content": content}}


def _done(ref: str, verb: str) -> Response:
    """Redirect to the version; a cookie makes its page show the result once, to this person."""
    response, page = RedirectResponse(page_of(ref), 303), page_of(ref)
    response.set_cookie(
        OUTCOME_COOKIE, verb, max_age=OUTCOME_S, path=page, httponly=True, samesite="strict"
    )
    return response


def _refused(
    app_state: AppState, request: Request, ref: str, verb: str, error: ManybeamError, to: str = ""
) -> Response:
    """Show the page of the version with the refusal and its remedy at the top."""
    app_state.refresher.refresh()
    refused = {"verb": verb, "error": error, "to": to or "serving"}
    return version_page(app_state, request, ref, refused=refused, status=http_status(error))


def _checked(app_state: AppState, request: Request, ref: str, verb: str) -> Response:
    """Show the page of the version with the result of a check of its files or its members."""
    from manybeam.zoo.integrity.verify import verify

    try:
        if verb == "test":
            return version_page(app_state, request, ref, tests=app_state.zoo.test(ref))
        return version_page(app_state, request, ref, checks=verify(app_state.zoo, ref))
    except ManybeamError as error:
        return _refused(app_state, request, ref, verb, error)

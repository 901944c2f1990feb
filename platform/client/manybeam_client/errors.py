"""What went wrong with a frame, as a value and as an exception.

A loop at an instrument must not end because the network does. So a failure is a `Problem` in
`answer.error`, and `answer.raise_for_error()` makes an exception of it for who wants one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Mapping

# What a status of the service means. Any other one is `refused` below 500, else `failed`.
KINDS = {
    401: "not-allowed",
    403: "not-allowed",
    404: "not-found",
    408: "deadline",
    409: "conflict",
    429: "busy",
    502: "unavailable",
    503: "unavailable",
    504: "deadline",
}
# A proxy says this if no service is behind it; the service itself names what is away.
_NOBODY_BEHIND = "urn:manybeam:unreachable"


@dataclass(frozen=True)
class Problem:
    """Why a frame has no answer.

    Attributes:
        kind: `offline` (the service was away before), `connection`, `tls`, `deadline`, `busy`,
            `unavailable`, `not-allowed`, `not-found`, `conflict`, `refused`, `failed`,
            `unreadable` (what answered is no Manybeam), `taken-over`, `closed`.
        status: the HTTP status; None if there was no reply.
        what: what is wrong.
        why: what is allowed, or the cause; may be empty.
        hint: what to do now; may be empty.
        request_id: names the request in the log of the service; may be empty.
        is_away: whether nobody was reached who could answer. Such a frame may be spooled.
        retry_after_s: when to send it again, if the service said so.
    """

    kind: str
    what: str
    why: str = ""
    hint: str = ""
    status: int | None = None
    request_id: str = ""
    is_away: bool = False
    retry_after_s: float | None = None

    def __str__(self) -> str:
        """Return the problem as one line."""
        said = "; ".join(part for part in (self.what, self.why, self.hint) if part)
        status = "" if self.status is None else f" {self.status}"
        named = f" [request {self.request_id}]" if self.request_id else ""
        return " ".join(f"{self.kind}{status}: {said}{named}".split())


class Unanswered(RuntimeError):
    """A frame has no answer, and the caller asked for an exception.

    Args:
        problem: why.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))

    def __reduce__(self) -> tuple[type[Unanswered], tuple[Problem]]:
        """Pickle the problem, because the message is made of it."""
        return type(self), (self.problem,)


def problem_of(status: int, headers: Mapping[str, str], data: bytes) -> Problem:
    """Return the problem of a reply that is no answer.

    Args:
        status: the HTTP status.
        headers: of the reply; names in any case if the mapping allows that.
        data: the body: problem+json of the service, or any page of something in between.
    """
    document = _document(data)
    if document is None:
        return _of_stranger(status, headers, data)
    kind = KINDS.get(status, "refused" if status < 500 else "failed")
    return Problem(
        kind,
        what=str(document.get("detail") or document.get("title") or "no reason was given"),
        hint=str(document.get("hint") or ""),
        status=status,
        request_id=str(document.get("request_id") or ""),
        is_away=status in (502, 503, 504) and document.get("type") == _NOBODY_BEHIND,
        retry_after_s=_seconds(headers.get("retry-after")),
    )


def _of_stranger(status: int, headers: Mapping[str, str], data: bytes) -> Problem:
    """Return the problem of a reply that Manybeam did not write."""
    if status in (502, 503, 504):
        return Problem(
            "unavailable",
            "something between here and the service says that it is away",
            why=_excerpt(data),
            status=status,
            is_away=True,
            retry_after_s=_seconds(headers.get("retry-after")),
        )
    target = headers.get("location")
    return Problem(
        "unreadable",
        "what answered is no Manybeam service",
        why=f"it sends to {target[:120]}" if target else _excerpt(data),
        hint="check the URL; a login page of the network or a proxy may answer instead",
        status=status,
    )


def _document(data: bytes) -> dict[str, Any] | None:
    """Return a problem+json document of Manybeam; None if it is anything else."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(content, dict) and str(content.get("type", "")).startswith("urn:manybeam:")
    return content if is_ours else None


def _excerpt(data: bytes) -> str:
    text = " ".join(data[:400].decode("utf-8", "replace").split())
    return f"it says {text[:100]!r}" if text else "it says nothing"


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a Retry-After; None if it is a date or nonsense."""
    return float(text) if text and text.strip().isdigit() else None

"""The prediction service, asked over HTTP: its answer as it sent it, its refusals as our errors."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from manybeam import errors
from manybeam.cluster.identity import check_platform
from manybeam.errors import (
    Busy,
    DeadlineExceeded,
    ManybeamError,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    Unreachable,
    WorkFailed,
)
from manybeam.settings import settings

WANT = "atoms,mean,std,mi,members"
DEADLINE_S = 120.0
CONNECT_S = 3.0
LIST_S = 2.0
LIVE_S = 10.0
SESSION_S = 25.0  # the service waits for its database
CONNECTIONS = 64
NPZ, JSON, RAW, NPY = (
    "application/x-npz",
    "application/json",
    "application/octet-stream",
    "application/x-npy",
)


@dataclass(frozen=True)
class Sent:
    """A frame as it is sent to the service.

    Attributes:
        body: an instrument file, or an array as npy.
        filename: name of the file; "" if the body is an array.
        pixel_size_pm: edge of a pixel, if it is stated.
        condition: id of a condition in the library; "" for none.
        is_size_trusted: take the pixel size also if the frame contradicts.
        is_quick: without frame analysis.
    """

    body: bytes
    filename: str = ""
    pixel_size_pm: float | None = None
    condition: str = ""
    is_size_trusted: bool = False
    is_quick: bool = False

    @property
    def query(self) -> dict[str, str]:
        """The query that describes the body."""
        size = self.pixel_size_pm
        given = {
            "filename": self.filename,
            "pixel_size_pm": "" if size is None else f"{size:.9g}",
            "trust_pixel_size": "true" if self.is_size_trusted else "",
            "condition": self.condition,
            "quick": "true" if self.is_quick else "",
        }
        return {name: value for name, value in given.items() if value}


class PredictionService:
    """The service at one address; safe to use from several threads.

    Args:
        url: its address; that of the settings if left out.
    """

    def __init__(self, url: str = "") -> None:
        self.url = url or settings().service_url
        # Live pages wait for frames, each with a connection.
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, block=True, retries=False)

    def predict(self, ref: str, sent: Sent, *, has_token: bool) -> bytes:
        """Return the npz of an answer: atoms, maps and the atoms of each member.

        Args:
            ref: who answers.
            sent: the frame.
            has_token: send the token of the settings.

        Raises:
            Unreachable: the service does not answer.
            ManybeamError: it refuses, with its words.
        """
        return self._post(f"/v1/predict/{quote(ref, safe='@/')}", sent, has_token, want=WANT)

    def select(self, ref: str, sent: Sent, *, has_token: bool) -> dict[str, Any]:
        """Return the ranking of the members for a frame; raises as `predict`."""
        found = self._post("/v1/select", sent, has_token, accept=JSON, ensemble=ref)
        return dict(json.loads(found))

    def ensembles(self, *, has_token: bool) -> list[dict[str, Any]]:
        """Return what serves, one row for each ensemble; raises as `predict`."""
        found = self._ask("GET", "/v1/ensembles", b"", {}, LIST_S, has_token)
        return list(json.loads(found)["ensembles"])

    def live(
        self, instrument: str, after: int, wait_s: float, *, has_token: bool
    ) -> dict[str, Any]:
        """Return the newest frame of an instrument, when there is a newer one; raises as `predict`.

        Args:
            instrument: its id.
            after: number of the frame that is known.
            wait_s: how long to wait.
            has_token: send the token of the settings.
        """
        query = urlencode({"after": after, "wait_s": wait_s})
        path = f"{_of_instrument(instrument)}/live?{query}"
        return dict(json.loads(self._ask("GET", path, b"", {}, LIST_S + 8 + wait_s, has_token)))

    def session(self, instrument: str, *, has_token: bool) -> dict[str, Any]:
        """Return the session of an instrument; raises as `predict`."""
        path = f"{_of_instrument(instrument)}/session?frames=0"
        return dict(json.loads(self._ask("GET", path, b"", {}, SESSION_S, has_token)))

    def change_session(
        self, instrument: str, settings: Mapping[str, Any], *, has_token: bool
    ) -> dict[str, Any]:
        """Change the session of an instrument, and return it; raises as `predict`."""
        path, body = f"{_of_instrument(instrument)}/session", json.dumps(dict(settings)).encode()
        return dict(json.loads(self._ask("PUT", path, body, {}, SESSION_S, has_token)))

    def mark(self, instrument: str, frame_id: str, *, has_token: bool) -> dict[str, Any]:
        """Keep a frame that a live page showed, and return where; raises as `predict`."""
        path, body = f"{_of_instrument(instrument)}/marks", json.dumps({"frame_id": frame_id})
        found = self._ask("POST", path, body.encode(), {}, SESSION_S, has_token)
        return dict(json.loads(found))

    def _post(
        self,
        path: str,
        sent: Sent,
        has_token: bool,  # noqa: FBT001 - of this file only
        accept: str = NPZ,
        **query: str,
    ) -> bytes:
        asked = urlencode({**query, **sent.query, "deadline_ms": f"{DEADLINE_S * 1000:.0f}"})
        kinds = {"Content-Type": RAW if sent.filename else NPY, "Accept": accept}
        return self._ask("POST", f"{path}?{asked}", sent.body, kinds, DEADLINE_S + 5, has_token)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        wait_s: float,
        has_token: bool,  # noqa: FBT001 - of this file only
    ) -> bytes:
        own = settings().service_headers if has_token else {}
        wait = urllib3.Timeout(connect=CONNECT_S, read=wait_s)
        try:
            answer = self._pool.request(
                method,
                self.url + path,
                body=body or None,
                headers={**headers, **own},
                timeout=wait,
                pool_timeout=CONNECT_S,
                redirect=False,
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise DeadlineExceeded(
                f"the prediction service did not answer within {wait_s:.0f} s",
                "it is busy, or the frame is very large",
                "try again, or name one ensemble instead of all",
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(
                f"no prediction service answers at {self.url}",
                "it is not started, or the address is wrong",
                "manybeam serve up starts it; MANYBEAM_SERVICE_URL says where it is",
            ) from error
        check_platform(self.url, answer.headers)
        if answer.status == 401 and has_token:
            raise _no_token(is_set=bool(own))
        if answer.status != 200:
            raise refusal(answer.status, answer.data, answer.headers)
        return answer.data


def _of_instrument(instrument: str) -> str:
    if not instrument.strip("."):  # they would lead to another address
        raise NotFound(f"there is no instrument {instrument!r}")
    return f"/v1/instruments/{quote(instrument, safe='')}"


def _no_token(*, is_set: bool) -> NotAllowed:
    """Return the error for a person who may ask, by a server that may not."""
    return NotAllowed(
        "the server of these pages may not ask the prediction service",
        "the service answers only with a token, and MANYBEAM_TOKEN of this server "
        + ("is not one that it knows" if is_set else "is not set"),
        "an administrator makes one with manybeam instrument add pages, and starts the pages "
        "with MANYBEAM_TOKEN=TOKEN manybeam web",
    )


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> ManybeamError:
    """Return the refusal of the service as the error of ours that it was there.

    Example:
        >>> body = b'{"type": "urn:manybeam:unknown-ref", "detail": "no graphen", "hint": ""}'
        >>> refusal(404, body, {})
        UnknownRef('no graphen')
    """
    try:
        told = json.loads(body)
        what, hint, urn = str(told["detail"]), str(told.get("hint") or ""), str(told["type"])
    except (ValueError, KeyError, TypeError):
        return WorkFailed(
            f"the prediction service answered HTTP {status}",
            body[:200].decode(errors="replace"),
            "manybeam doctor looks for the reason",
        )
    if status == 401:
        return NotAuthenticated(
            what, "this service answers only with a token", "log in at /login, then try again"
        )
    if status == 429:
        wait = headers.get("retry-after", "1")
        return Busy(what, "", hint, retry_s=int(wait) if wait.isdigit() else 1)
    name = re.sub(r"(?:^|-)([a-z])", lambda one: one[1].upper(), urn.rpartition(":")[2])
    kind: type[ManybeamError] = getattr(errors, name, WorkFailed)
    return kind(what, "", hint) if issubclass(kind, ManybeamError) else WorkFailed(what, "", hint)

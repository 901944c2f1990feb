"""The service's session of an instrument: it is started if there is none, and never unpinned."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from manybeam_client.errors import Problem, problem_of
from manybeam_client.network.connection import NotReached

if TYPE_CHECKING:
    from manybeam_client.network.connection import Connection

logger = logging.getLogger("manybeam_client")

# What the service says of a session besides its settings.
_FACTS = (
    "id",
    "instrument",
    "revision",
    "started",
    "ended",
    "counts",
    "selection_ms_per_frame",
    "now",
    "watch",
    "events",
    "history",
)


class InstrumentSession:
    """The session of one instrument in the service.

    Args:
        connection: to the service.
        instrument: its id.
        ensemble: REF to select from; `auto` for any.
        pixel_size_pm: of all frames [pm]; None to leave it as it is.
    """

    def __init__(
        self,
        connection: Connection,
        instrument: str,
        ensemble: str = "auto",
        pixel_size_pm: float | None = None,
    ) -> None:
        self._connection = connection
        self.path = "/v1/instruments/{}/session".format(quote(instrument, safe=""))
        self.instrument, self.ensemble = instrument, ensemble
        self.pixel_size_pm = pixel_size_pm

    def ensure(self, patience_s: float = 10.0) -> Problem | None:
        """Have the session go on as asked for; return why that could not be done.

        One that goes on is left as it is, except for what was asked for and differs. A pinned one
        stays pinned, because a person did that.
        """
        due_s = time.monotonic() + patience_s
        found, problem = self._request("GET", due_s)
        if problem is not None and problem.status != 404:
            return problem
        settings = self._new() if found is None else self._changed(found)
        if settings is None:
            return None
        _, problem = self._request("PUT", due_s, settings)
        if problem is None:
            logger.info("session of %s %s", self.instrument, "changed" if found else "started")
        return problem

    def _new(self) -> dict[str, Any]:
        size = {} if self.pixel_size_pm is None else {"pixel_size_pm": float(self.pixel_size_pm)}
        return {"policy": "auto", "ref": self.ensemble, **size}

    def _changed(self, found: dict[str, Any]) -> dict[str, Any] | None:
        """Return the settings with what differs; None if nothing does."""
        settings = {name: value for name, value in found.items() if name not in _FACTS}
        asked: dict[str, Any] = {}
        if self.ensemble not in ("auto", settings.get("ref")):
            if settings.get("policy") == "pinned":
                pinned = settings.get("ref")
                logger.warning("%s is pinned to %s and stays so", self.instrument, pinned)
            else:
                asked["ref"] = self.ensemble
        if self.pixel_size_pm not in (None, settings.get("pixel_size_pm")):
            asked["pixel_size_pm"] = float(self.pixel_size_pm or 0)
        return {**settings, **asked} if asked else None

    def _request(
        self, method: str, due_s: float, settings: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any] | None, Problem | None]:
        """Return what the service says of the session, or the problem."""
        body = None if settings is None else json.dumps(settings).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            reply = self._connection.ask(method, self.path, due_s, body=body, headers=headers)
        except NotReached as error:
            return None, error.problem
        if reply.status != 200:
            return None, problem_of(reply.status, reply.headers, reply.data)
        try:
            content = json.loads(reply.data.decode("utf-8"))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            return None, problem_of(reply.status, reply.headers, reply.data)
        return content, None

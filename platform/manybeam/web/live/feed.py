"""What live pages get from the prediction service, as JSON."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from manybeam.errors import Unreachable
from manybeam.settings import settings
from manybeam.web.auth import Person

PAGES = 48  # connections to the service; further pages wait for one
CONNECT_S, READ_S = 2.0, 10.0
MOST_BYTES = 16 * 2**20


class LiveFeed:
    """Asks the service for a person; safe to use from several threads."""

    def __init__(self) -> None:
        self._pool = urllib3.PoolManager(num_pools=4, maxsize=PAGES, block=True, retries=False)

    def newest(self, person: Person, instrument: str, after: int, wait_s: float) -> "Reply":
        """Return the newest frame, when there is one with a larger number."""
        query = urlencode({"after": after, "wait_s": wait_s})
        return self._ask(person, "GET", instrument, f"live?{query}", wait_s=wait_s)

    def session(self, person: Person, instrument: str) -> "Reply":
        """Return the session of an instrument."""
        return self._ask(person, "GET", instrument, "session?frames=0")

    def put(self, person: Person, instrument: str, session: Mapping[str, Any]) -> "Reply":
        """Change the settings of a session."""
        return self._ask(person, "PUT", instrument, "session", session)

    def mark(self, person: Person, instrument: str, frame_id: str) -> "Reply":
        """Keep a frame that was shown."""
        return self._ask(person, "POST", instrument, "marks", {"frame_id": frame_id})

    def _ask(
        self,
        person: Person,
        method: str,
        instrument: str,
        path: str,
        content: Mapping[str, Any] | None = None,
        wait_s: float = 0.0,
    ) -> "Reply":
        here = settings()
        url = f"{here.service_url}/v1/instruments/{quote(instrument, safe='')}/{path}"
        # The token of this process is for people who may ask the service, not for every visitor.
        headers = dict(here.service_headers) if "predict" in person.scopes else {}
        body = None if content is None else json.dumps(content).encode()
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S + wait_s)
        try:
            answer = self._pool.request(
                method, url, body=body, headers=headers, timeout=timeout, redirect=False
            )
            return Reply(answer.status, answer.json())
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unreachable(
                f"the prediction service does not answer at {here.service_url}",
                str(error)[:300],
                "manybeam serve up starts it",
            ) from error


class Reply:
    """The reply of the service.

    Attributes:
        status: of HTTP.
        content: JSON data; the problem if the status is 400 or above.
    """

    def __init__(self, status: int, content: Any) -> None:
        self.status, self.content = status, content

    @property
    def is_ok(self) -> bool:
        """Whether it is no problem."""
        return self.status < 400

"""The copy of the sessions in a file, for a replica that starts while the database is away."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from manybeam.data.disk import write_files
from manybeam.db.serving.sessions import Session
from manybeam.errors import WriteFailed

logger = logging.getLogger(__name__)

RENEW_S = 600.0  # after which an equal copy is written again, so that its age is known
OLDEST_S = 24 * 3600.0  # an older copy is not used, as tokens are not: sessions ended since


class SessionCopy:
    """The sessions that a machine read last, with the time of the reading.

    Args:
        path: of the file.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._written: set[tuple[int, int]] | None = None  # id and revision of what is in the file
        self._written_s = 0.0
        self._is_logged = False

    def write(self, sessions: Sequence[Session]) -> None:
        """Write the copy if sessions began, changed or ended; their counts may be older in it.

        A write that fails is tried again with the next reading.
        """
        there, now_s = {(one.id, one.revision) for one in sessions}, self._clock()
        if there == self._written and abs(now_s - self._written_s) < RENEW_S:
            return
        content = {"read_s": now_s, "sessions": [asdict(one) for one in sessions]}
        try:
            write_files({self._path: json.dumps(content, default=datetime.isoformat).encode()})
        except WriteFailed as error:
            if not self._is_logged:
                logger.warning("the copy of the sessions was not written: %s", error)
            self._is_logged = True
            return
        self._written, self._written_s, self._is_logged = there, now_s, False

    def read(self) -> tuple[list[Session], float] | None:
        """Return the sessions and their age in seconds; None if there is no copy to use.

        A damaged copy counts as none, and so does one older than `OLDEST_S`.
        """
        try:
            content = json.loads(self._path.read_bytes())
            age_s = max(self._clock() - float(content["read_s"]), 0.0)
            sessions = [_session(one) for one in content["sessions"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.info("there is no copy of the sessions: %s", error)
            return None
        if not age_s <= OLDEST_S:
            logger.warning(
                "the copy of the sessions is not used: it is of %.0f h ago", age_s / 3600
            )
            return None
        return sessions, age_s


def _session(content: dict[str, Any]) -> Session:
    started = datetime.fromisoformat(content["started"])
    return Session(**{**content, "members": tuple(content["members"]), "started": started})

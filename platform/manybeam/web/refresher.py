"""Keeps the catalogue up to date in the background, and knows the age of its data.

Requests never wait for MLflow: they read the catalogue in its present state. If MLflow does not
answer, the last known state is kept, and `trouble` holds the error.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from manybeam.errors import ManybeamError, WorkFailed

if TYPE_CHECKING:
    from manybeam.web.version_cache import VersionCache
    from manybeam.zoo.catalogue import Catalogue

logger = logging.getLogger(__name__)

# A refresh may hang. Data is old after this number of pauses, plus this number of seconds.
OLD_PAUSES, OLD_S = 10, 10.0
MOST_NAMES = 3  # names in a message; if there are more, only their number is given


@dataclass(frozen=True)
class News:
    """The state of the catalogue for a page, and the last change in words.

    Attributes:
        state: changes whenever anything in the zoo changes.
        message: the last change, for a person; "" if there was none.
        is_fresh: whether MLflow confirmed the state to this process a short time ago.
        as_of: time of the last confirmation; None if there was none.
        number: grows when a refresh changes the state, starts to fail or stops to fail.
    """

    state: str
    message: str = ""
    is_fresh: bool = False
    as_of: datetime | None = None
    number: int = 0


class Refresher:
    """Refreshes one catalogue every few seconds on a separate thread.

    Args:
        catalogue: the catalogue that lists read.
        version_cache: the cache that pages of versions read.
        every_s: pause between two refreshes, in seconds.
    """

    def __init__(
        self, catalogue: "Catalogue", version_cache: "VersionCache", every_s: float = 3.0
    ) -> None:
        self.catalogue, self.version_cache, self.every_s = catalogue, version_cache, every_s
        self.trouble: ManybeamError | None = None
        self.is_closed = False
        self.unreadable: Mapping[str, str] = {}
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refresher", daemon=True)
        self._turn = threading.Lock()
        self._message, self._number, self._cached_state = "", 0, ""
        self._last: tuple[str, bool] | None = None
        self._is_confirmed = False  # data from an earlier run is not confirmed yet
        self._state, self._as_of = catalogue.state, catalogue.as_of

    @property
    def news(self) -> News:
        """The present state and the last change."""
        age_s = self.age_s
        is_recent = age_s is not None and age_s < OLD_PAUSES * self.every_s + OLD_S
        is_fresh = self._is_confirmed and self.trouble is None and is_recent
        return News(self._state, self._message, is_fresh, self._as_of, self._number)

    @property
    def age_s(self) -> float | None:
        """Seconds since MLflow confirmed the state; None if it never confirmed it."""
        if self._as_of is None:
            return None
        return max((datetime.now(UTC) - self._as_of).total_seconds(), 0.0)

    def start(self) -> None:
        """Start; the first refresh begins immediately."""
        self._thread.start()

    def close(self) -> None:
        """Ask streams and the thread to end, without waiting for them."""
        self.is_closed = True
        self._asked.set()

    def join(self) -> None:
        """Wait for the thread to end, but not for a refresh that waits for a dead server."""
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def refresh(self) -> None:
        """Refresh once, now; an error is kept in `trouble`, and the last state stays."""
        with self._turn:
            try:
                self.unreadable = self.catalogue.refresh().unreadable
                self._cache_versions(self.catalogue.state)
                self.trouble, self._is_confirmed = None, True
            except ManybeamError as error:
                self._report(error)
            except Exception as error:
                # The thread must survive any error; the error is logged, and pages show it.
                logger.exception("the catalogue could not be refreshed")
                fault = WorkFailed("the zoo cannot be read", str(error)[:300], "see the log")
                self._report(fault)
            self._state, self._as_of = self.catalogue.state, self.catalogue.as_of
            now = (self._state, self.trouble is None)
            self._number += now != self._last
            self._last = now

    def _cache_versions(self, state: str) -> None:
        """Read the listing again if the catalogue changed."""
        if self.version_cache.is_known and state == self._cached_state:
            return
        is_first = not self._cached_state
        changed, gone = self.version_cache.take()
        self._cached_state = state
        self._message = "" if is_first else in_words(changed, gone)

    def _report(self, error: ManybeamError) -> None:
        if self.trouble is None:
            logger.warning("the zoo cannot be read: %s", error)
        self.trouble = error

    def _run(self) -> None:
        while not self.is_closed:
            self._asked.clear()
            self.refresh()
            self._asked.wait(self.every_s)


def in_words(changed: tuple[str, ...], gone: tuple[str, ...]) -> str:
    """Return the changes that a refresh found, for a person.

    Example:
        >>> in_words(("graphene@3",), ())
        'graphene@3 is new or changed'
        >>> in_words((), ("a@1", "b@1", "c@1", "d@1"))
        '4 versions were removed'
    """
    parts = []
    for refs, one, many in (
        (changed, "is new or changed", "are new or changed"),
        (gone, "was removed", "were removed"),
    ):
        if len(refs) > MOST_NAMES:
            parts.append(f"{len(refs)} versions {many}")
        elif refs:
            parts.append(f"{', '.join(refs)} {many if len(refs) > 1 else one}")
    return "; ".join(parts)

"""The catalogue: a copy of the zoo that pages and commands search in milliseconds.

MLflow has the original data; the copy on this machine can be deleted at any time. If MLflow does
not answer, the catalogue answers from its last state and gives the time of that state.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from manybeam.db.catalogue_file import (
    CatalogueFile,
    CatalogueReader,
    CatalogueWriter,
    Place,
    VersionRows,
)
from manybeam.errors import Corrupt, NotAllowed, NotFound
from manybeam.settings import settings
from manybeam.spec import Library
from manybeam.zoo.catalogue.answers import Answers
from manybeam.zoo.catalogue.conditions import KnownConditions
from manybeam.zoo.catalogue.rows import (
    STATUSES,
    Bounds,
    ConditionRow,
    Coverage,
    Facet,
    Kind,
    Page,
    Query,
    Refreshed,
    Row,
)
from manybeam.zoo.catalogue.subjects import rows_of
from manybeam.zoo.catalogue.table import Table
from manybeam.zoo.integrity import trust
from manybeam.zoo.matrix import Score
from manybeam.zoo.records import Record, VersionEntry

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

_BATCH = 100  # versions in one transaction, so that a first refresh of a large zoo can be continued
_ALL = Query()

T = TypeVar("T")


class Catalogue:
    """A searchable copy of one zoo on this machine; any number of processes may share it.

    Only `refresh` calls MLflow; everything else uses the last state.

    Args:
        zoo: the original.
        path: its file; if left out, in the home of the settings.
        library: the library of conditions; if left out, that of the settings.
    """

    def __init__(
        self, zoo: "Zoo", path: Path | None = None, library: Library | None = None
    ) -> None:
        self._zoo = zoo
        self._file = CatalogueFile(path or settings().cache / "catalogue.db")
        self._known = KnownConditions(library or Library(settings().zoo))
        self._address = hashlib.sha256(zoo.address.encode()).hexdigest()[:16]
        self._kept: Table | None = None
        self._refreshing = threading.Lock()

    def refresh(self) -> Refreshed:
        """Copy what changed in MLflow since the last refresh.

        Versions are listed in two calls; only those with a changed entry are read. They are
        written in transactions of up to 100. If the process is killed, every version is old or
        new, and the next refresh continues.

        Raises:
            ZooUnreachable: MLflow does not answer; the last state stays.
            WriteFailed: the catalogue's file cannot be written.
        """
        with self._refreshing:
            started, now = time.perf_counter(), datetime.now(UTC)
            self._known = self._known.renewed()
            known, library = self._read(lambda db: (db.known_states(), db.fact("library")))
            is_read_anew = library != self._measure
            entries = {one.place: one for one in self._zoo.listing()}
            changed = [
                entry
                for place, entry in entries.items()
                if is_read_anew or known.get(place) != entry.state
            ]
            unreadable: dict[str, str] = {}
            rows = self._each(changed, unreadable)
            written: list[Place] = []
            while len(batch := list(islice(rows, _BATCH))) == _BATCH:
                written += self._take_over(batch, known)
            gone = known.keys() - entries.keys()
            written += self._take_over(batch, known, gone=gone, as_of=now)
        seconds = time.perf_counter() - started
        if written or gone:
            counts = {"changed": len(written), "gone": len(gone), "wall_s": round(seconds, 3)}
            logger.info("catalogue refreshed", extra=counts)
        return Refreshed(_refs(written), _refs(sorted(gone)), unreadable, seconds)

    @property
    def as_of(self) -> datetime | None:
        """Time at which MLflow last confirmed this state, in UTC; None before the first refresh."""
        found = self._read(lambda db: db.fact("as_of"))
        return datetime.fromisoformat(found) if found else None

    @property
    def state(self) -> str:
        """A text that changes if an answer may change; "" for an empty catalogue."""
        return self._read(lambda db: db.fact("state"))

    def find(self, query: Query = _ALL) -> Page:
        """Return one page of the requested ensembles or members, in the requested order."""
        return self._read(lambda db: self._answers(db).find(query))

    def facets(self, query: Query = _ALL) -> dict[str, list[Facet]]:
        """Return the values of each filter, each with its count under all other filters.

        The facets are name, status, network, recipe, policy and condition. The count of a
        condition is the number of found rows that were measured on it.
        """
        return self._read(lambda db: self._answers(db).facets(query))

    def conditions(self) -> list[ConditionRow]:
        """Return every measured condition and those of the library, also with old numbers."""
        return self._read(lambda db: self._answers(db).conditions())

    def coverage(self, query: Query = _ALL) -> Coverage:
        """Return which (row, condition) pairs of the requested ones were measured.

        A version counts as measured only if its ensemble was measured, not only its members.
        """
        return self._read(lambda db: self._answers(db).coverage(query))

    def best(
        self,
        condition: str = "",
        *,
        ranges: Bounds | None = None,
        score: str = "f1",
        limit: int = 10,
        kind: Kind = "ensembles",
    ) -> list[Row]:
        """Return the best on a condition, a glob or ranges of conditions, without archived ones.

        Rows that were not measured there are left out.
        """
        status = tuple(one for one in STATUSES if one != "archived")
        asked = Query(
            kind=kind,
            status=status,
            condition=condition,
            ranges=ranges or {},
            score=score,
            page_size=limit,
        )
        return [row for row in self.find(asked).rows if row.value is not None]

    def score_names(self) -> tuple[str, ...]:
        """Return the names of all scores, in alphabetical order."""
        return tuple(self._read(lambda db: db.score_names()))

    @property
    def _measure(self) -> str:
        """The state of library and trusted keys, on which the rows of versions depend."""
        return " ".join((self._known.digest, *trust.key_ids()))

    def _each(
        self, entries: Iterable[VersionEntry], unreadable: dict[str, str]
    ) -> Iterator[VersionRows]:
        """Yield the rows of each version; a damaged version is skipped."""
        for entry in entries:
            try:
                record, scores = self._zoo.record(entry), self._zoo.scores(entry)
            except (Corrupt, NotFound, NotAllowed) as error:
                unreadable[entry.ref] = why = str(error)
                logger.warning("%s is left out: %s", entry.ref, why)
                continue
            yield rows_of(entry, record, scores, self._known.words)

    def _take_over(
        self,
        versions: Sequence[VersionRows],
        known: dict[Place, str],
        *,
        gone: Iterable[Place] = (),
        as_of: datetime | None = None,
    ) -> list[Place]:
        """Write some versions in one transaction; `as_of` is given with the last ones."""

        def write(db: CatalogueWriter) -> list[Place]:
            written = db.write_versions(versions, known)
            now = db.known_states()
            db.drop_versions([place for place in gone if now.get(place) == known[place]])
            db.set_fact("zoo", self._address)
            if as_of is not None:
                db.set_fact("as_of", max(db.fact("as_of"), as_of.isoformat()))
                db.set_fact("library", self._measure)
            return written

        return self._file.write(write)

    def _write(
        self, versions: Iterable[tuple[VersionEntry, Record, Sequence[Score]]]
    ) -> list[Place]:
        """Write versions that were read."""
        known = self._read(lambda db: db.known_states())
        return self._take_over([rows_of(*one, self._known.words) for one in versions], known)

    def _read(self, action: Callable[[CatalogueReader], T]) -> T:
        """Return the result of a read; a catalogue of another zoo in the same home is emptied."""
        found = self._file.read(
            lambda db: (action(db),) if db.fact("zoo") in ("", self._address) else ()
        )
        if not found:
            self._file.write(lambda db: db.forget())
            return self._file.read(action)
        return found[0]

    def _answers(self, db: CatalogueReader) -> Answers:
        """Return the answers of this state; its rows are read once for each state."""
        kept = self._kept
        if kept is None or kept.state != db.fact("state"):
            self._kept = kept = Table(db, self._known.choose)
        return Answers(db, kept, self._known)


def _refs(places: Iterable[Place]) -> tuple[str, ...]:
    return tuple(f"{name}@{number}" for name, number in places)

"""Versions of one zoo, cached in memory."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from manybeam.addresses import without_password
from manybeam.errors import DatabaseUnreachable, NoCapacity, Unreachable
from manybeam.predictor.learned import performance_predictor
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.predictor.versions.ttl_cache import TTLCache

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.predictor.performance import PerformancePredictor
    from manybeam.zoo.records import Record, VersionEntry
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

FRESH_S = 10.0


class ZooVersions:
    """Versions of one zoo, loaded on demand; the most recently used ones stay in memory.

    Safe to call from several threads; one thread at a time loads. While the zoo is away, versions
    are loaded as this machine read them last, and their notes say so.

    Args:
        zoo: the zoo.
        refs: versions that are loaded now; `auto` selects among them. If empty, `auto` selects
            among all that serve.
        capacity: number of further ensembles in memory.
        fresh_s: time after which an alias is read from the zoo again.
        clock: monotonic seconds.

    Raises:
        UnknownRef: one of `refs` is not in the zoo.
        Corrupt: weights differ from those registered.
    """

    def __init__(
        self,
        zoo: "Zoo",
        refs: Sequence[str] = (),
        *,
        capacity: int = 4,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._zoo, self._clock, self._capacity = zoo, clock, capacity + len(refs)
        self._extra = 0
        self._records = TTLCache(
            zoo.resolve, fresh_s, clock, read_last=lambda ref: self._last.resolve(ref)
        )
        self._matrices = TTLCache(
            zoo.matrix, fresh_s, clock, read_last=lambda ref: self._last.matrix(ref)
        )
        self._performances = TTLCache(
            self._performance, fresh_s, clock, read_last=self._last_performance
        )
        self._loading, self._lock = threading.Lock(), threading.Lock()
        self._held: OrderedDict[str, tuple[Record, Ensemble]] = OrderedDict()
        self.refs = tuple(refs)
        for ref in self.refs:
            self.load(ref)

    @property
    def capacity(self) -> int:
        """The number of ensembles in memory."""
        return self._capacity + self._extra

    def make_room(self, count: int) -> None:
        """Keep so many ensembles in memory beside those that there is room for."""
        self._extra = count

    def serving(self) -> Sequence[str]:
        """Return the references that `auto` selects among.

        Raises:
            NoCapacity: there is none.
        """
        refs = self.refs or tuple(one.ref for one in self._listing() if "serving" in one.aliases)
        if not refs:
            raise NoCapacity(
                "the zoo serves no ensemble yet",
                f"auto selects among those that serve in {without_password(self._zoo.address)}",
                "manybeam train jobs/quickstart.yaml, or manybeam zoo promote REF; or set "
                "MANYBEAM_HOME to the folder of another zoo",
            )
        return refs

    def get(self, ref: str) -> LoadedVersion:
        """Return a version ready to answer.

        Raises:
            UnknownRef: there is no such version; the hint has the nearest names.
            Corrupt: its weights differ from those registered.
            ZooUnreachable: the zoo does not answer, and this version was not read before.
        """
        loaded = self.load(ref)
        assert loaded.record is not None  # noqa: S101 - the zoo knows it
        matrix, stale = self._matrices.get(loaded.record.ref)
        known, more = self._performances.get(loaded.record.ref)
        notes = tuple(dict.fromkeys((*loaded.notes, *stale, *more)))
        return replace(loaded, matrix=matrix, performance=known, notes=notes)

    def load(self, ref: str) -> LoadedVersion:
        """Return a version with its networks only; raises as `get` does."""
        record, notes = self._records.get(ref)
        ensemble = self._take(record)
        if ensemble is None:
            with self._loading:
                zoo = self._last if notes else self._zoo
                ensemble = self._take(record) or self._fetch(zoo, record)
        return LoadedVersion(ensemble, record=record, notes=notes)

    def held(self) -> "list[tuple[Record, Ensemble]]":
        """Return the ensembles in memory, the most recently used one last."""
        with self._lock:
            return list(self._held.values())

    @cached_property
    def _last(self) -> "Zoo":
        return self._zoo.read_last()

    def _listing(self) -> "list[VersionEntry]":
        try:
            return self._zoo.listing()
        except Unreachable as error:
            with suppress(Unreachable):
                return self._last.listing()
            raise error

    def _performance(self, ref: str) -> "PerformancePredictor | None":
        return performance_predictor(self._zoo, ref)

    def _last_performance(self, ref: str) -> "PerformancePredictor | None":
        try:
            return performance_predictor(self._last, ref)
        except DatabaseUnreachable:
            return performance_predictor(self._last, ref, with_preferences=False)

    def _take(self, record: "Record") -> "Ensemble | None":
        with self._lock:
            found = self._held.get(record.ref)
            if found is None:
                return None
            self._held[record.ref] = (record, found[1])
            self._held.move_to_end(record.ref)
        return found[1]

    def _fetch(self, zoo: "Zoo", record: "Record") -> "Ensemble":
        begun = self._clock()
        ensemble = zoo.ensemble(record.ref)
        took = {"ref": record.ref, "wall_s": round(self._clock() - begun, 3)}
        logger.info("ensemble loaded", extra=took)
        with self._lock:
            self._held[record.ref] = (record, ensemble)
            while len(self._held) > self.capacity:
                self._held.popitem(last=False)
        return ensemble

"""Versions as the last listing told them, so that a page of one needs no MLflow.

A listing is kept in a file too: after a restart, pages still show what was known. Manifests and
scores never change, so they come from the zoo's cache on this machine.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.data.disk import write_files
from manybeam.errors import ZooUnreachable
from manybeam.zoo.matrix import Matrix
from manybeam.zoo.records import Record, Ref, VersionEntry

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

Place = tuple[str, int]


@dataclass(frozen=True)
class CachedVersion:
    """One version as it is shown.

    Attributes:
        record: of the version, or of one member of it.
        matrix: its scores; those of the one member if one is meant.
        siblings: all versions of that ensemble, newest first.
        children: references of versions adapted from it, oldest first.
    """

    record: Record
    matrix: Matrix
    siblings: tuple[VersionEntry, ...]
    children: tuple[str, ...]

    @property
    def others(self) -> list[str]:
        """References of the other versions of the ensemble, newest first."""
        own = self.record.version
        return [one.ref for one in self.siblings if one.version != own]


@dataclass(frozen=True)
class _Known:
    """An entry that can be looked up: two of the same state are the same."""

    entry: VersionEntry

    def __hash__(self) -> int:
        return hash((self.entry.name, self.entry.version, self.entry.state))


class VersionCache:
    """The last listing of a zoo.

    Args:
        zoo: the zoo.
        path: where the listing is kept.
    """

    def __init__(self, zoo: "Zoo", path: Path) -> None:
        self.zoo, self._path = zoo, path
        self._entries: Mapping[Place, VersionEntry] | None = _read(path, zoo.address)
        self._opened = lru_cache(maxsize=128)(self._open)

    @property
    def is_known(self) -> bool:
        """Whether a listing was ever seen."""
        return self._entries is not None

    def take(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Read the listing anew and return references of (changed, gone) versions.

        Raises:
            ZooUnreachable: MLflow does not answer; the last listing stays.
        """
        before = self._entries or {}
        now = {one.place: one for one in self.zoo.listing()}
        changed = [
            place
            for place, one in now.items()
            if place not in before or one.state != before[place].state
        ]
        gone = [place for place in before if place not in now]
        if changed or gone or self._entries is None:
            _write(self._path, self.zoo.address, now.values())
        self._entries = now
        return _refs(changed), _refs(gone)

    def look(self, ref: str) -> CachedVersion:
        """Return what a reference means.

        Raises:
            UnknownRef: nothing is called that; the nearest names are in the hint.
            ZooUnreachable: the zoo was never read, or a file of it is not on this machine.
        """
        from manybeam.zoo.registration import PARENT_TAG

        wanted = Ref.parse(ref)
        entry = self.entry(wanted)
        record, matrix = self._opened(_Known(entry))
        children = [one for one in self._all() if one.tags.get(PARENT_TAG) == entry.ref]
        if wanted.member is not None:
            record = record.only(wanted.member)
            rows = [row for row in matrix.rows if row.member == wanted.member]
            matrix = Matrix(rows, [wanted.member])
        return CachedVersion(
            record, matrix, self._siblings(entry.name), _refs(one.place for one in children)
        )

    def entry(self, wanted: Ref) -> VersionEntry:
        """Return what the listing tells of a reference; raises as `look` does."""
        for one in self._siblings(wanted.name):
            if one.version == wanted.version or (wanted.alias and wanted.alias in one.aliases):
                return one
        raise wanted.unknown(self._all())

    def _open(self, known: "_Known") -> tuple[Record, Matrix]:
        record, scores = self.zoo.record(known.entry), self.zoo.scores(known.entry)
        return record, Matrix(scores, [one.index for one in record.members])

    def _siblings(self, name: str) -> tuple[VersionEntry, ...]:
        found = [one for one in self._all() if one.name == name]
        return tuple(sorted(found, key=lambda one: -one.version))

    def _all(self) -> Iterable[VersionEntry]:
        if self._entries is None:
            raise ZooUnreachable(
                "the zoo was not read yet",
                "the first reading is under way, or MLflow does not answer",
                "wait some seconds; manybeam doctor tells what answers",
            )
        return self._entries.values()


def _refs(places: Iterable[Place]) -> tuple[str, ...]:
    return tuple(f"{name}@{version}" for name, version in sorted(places))


def _read(path: Path, address: str) -> Mapping[Place, VersionEntry] | None:
    """Return a kept listing; None if there is none of this zoo that can be read."""
    try:
        told = json.loads(path.read_text())
        if told["zoo"] != address:
            return None
        kept = [
            VersionEntry(**{**one, "aliases": tuple(one["aliases"])}) for one in told["versions"]
        ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("the kept listing cannot be read: %s", error)
        return None
    return {one.place: one for one in kept}


def _write(path: Path, address: str, entries: Iterable[VersionEntry]) -> None:
    told = {"zoo": address, "versions": [asdict(one) for one in entries]}
    write_files({path: json.dumps(told).encode()})

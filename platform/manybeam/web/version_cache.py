"""The versions of the last listing, so that a page of a version needs no MLflow.

The listing is also kept in a file: after a restart, pages still show the last known state.
Manifests and scores never change, so they come from the cache of the zoo on this machine.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.addresses import without_password
from manybeam.data.disk import write_files
from manybeam.errors import ZooUnreachable
from manybeam.zoo.matrix import Matrix
from manybeam.zoo.records import Record, Ref, VersionEntry

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

VersionKey = tuple[str, int]


@dataclass(frozen=True)
class CachedVersion:
    """One version, ready for a page.

    Attributes:
        record: record of the version, or of one member.
        matrix: its scores.
        siblings: all versions of the ensemble, newest first.
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
class _EntryKey:
    """An entry as a key of the cache: two entries of the same state are equal."""

    entry: VersionEntry

    def __hash__(self) -> int:
        return hash((self.entry.name, self.entry.version, self.entry.state))


class VersionCache:
    """The last listing of a zoo.

    Args:
        zoo: the zoo.
        path: file of the listing.
    """

    def __init__(self, zoo: "Zoo", path: Path) -> None:
        self.zoo, self._path, self._address = zoo, path, without_password(zoo.address)
        self._entries: Mapping[VersionKey, VersionEntry] | None = _read(path, self._address)
        self._opened = lru_cache(maxsize=128)(self._open)

    @property
    def is_known(self) -> bool:
        """Whether a listing was ever read."""
        return self._entries is not None

    def refs(self) -> tuple[str, ...]:
        """Return the references of all versions of the last listing, by name; none if unread."""
        return _refs(self._entries or ())

    def take(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Read the listing again and return references of (changed, removed) versions.

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
            _write(self._path, self._address, now.values())
        self._entries = now
        return _refs(changed), _refs(gone)

    def look(self, ref: str) -> CachedVersion:
        """Return the version of a reference.

        Raises:
            UnknownRef: there is no such version; similar names are in the hint.
            ZooUnreachable: the zoo was never read, or a file of it is not on this machine.
        """
        from manybeam.zoo.registration import PARENT_TAG

        asked = Ref.parse(ref)
        entry = self.entry(asked)
        record, matrix = self._opened(_EntryKey(entry))
        children = [one for one in self._all() if one.tags.get(PARENT_TAG) == entry.ref]
        if asked.member is not None:
            record = record.only(asked.member)
            rows = [row for row in matrix.rows if row.member == asked.member]
            matrix = Matrix(rows, [asked.member])
        return CachedVersion(
            record, matrix, self._siblings(entry.name), _refs(one.place for one in children)
        )

    def entry(self, asked: Ref) -> VersionEntry:
        """Return the entry of a reference in the listing; raises as `look` does."""
        for one in self._siblings(asked.name):
            if one.version == asked.version or (asked.alias and asked.alias in one.aliases):
                return one
        raise asked.unknown(self._all())

    def _open(self, known: "_EntryKey") -> tuple[Record, Matrix]:
        record, scores = self.zoo.record(known.entry), self.zoo.scores(known.entry)
        return record, Matrix(scores, [one.index for one in record.members])

    def _siblings(self, name: str) -> tuple[VersionEntry, ...]:
        found = [one for one in self._all() if one.name == name]
        return tuple(sorted(found, key=lambda one: -one.version))

    def _all(self) -> Iterable[VersionEntry]:
        if self._entries is None:
            raise ZooUnreachable(
                "the zoo is not read yet",
                "the first reading takes some seconds, or MLflow does not answer",
                "wait some seconds, or run manybeam doctor",
            )
        return self._entries.values()


def _refs(places: Iterable[VersionKey]) -> tuple[str, ...]:
    return tuple(f"{name}@{version}" for name, version in sorted(places))


def _read(path: Path, address: str) -> Mapping[VersionKey, VersionEntry] | None:
    """Return the stored listing of this zoo; None if there is none that can be read."""
    try:
        stored = json.loads(path.read_text())
        if stored["zoo"] != address:
            return None
        kept = [
            VersionEntry(**{**one, "aliases": tuple(one["aliases"])}) for one in stored["versions"]
        ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("the stored listing cannot be read: %s", error)
        return None
    return {one.place: one for one in kept}


def _write(path: Path, address: str, entries: Iterable[VersionEntry]) -> None:
    content = {"zoo": address, "versions": [asdict(one) for one in entries]}
    write_files({path: json.dumps(content).encode()})

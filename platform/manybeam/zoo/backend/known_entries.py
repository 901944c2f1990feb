"""Entries of the zoo as this machine read them last, while its database has not changed since.

Reading an entry needs MLflow, and importing MLflow takes two seconds, which would be half of a
`manybeam predict`. A SQLite file counts its transactions in its header, so an entry that was read
at the same count is the same entry. Only the embedded zoo has such a file; a server is asked each
time. Another version of Manybeam may write other entries, so each version reads its own.

Source: sqlite.org/fileformat2.html, 1.3 "The Database Header", file change counter.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manybeam import __version__
from manybeam.addresses import SQLITE, sqlite_path
from manybeam.data.disk import write_files
from manybeam.errors import WriteFailed
from manybeam.zoo.records import VersionEntry

_LEGACY = 1  # write version of a file without a write-ahead log; only then the counter counts


@dataclass(frozen=True)
class KnownEntries:
    """Entries by the question that they answer, in one file of the cache.

    Args:
        uri: database of MLflow; of a server nothing is kept.
        folder: folder of the cache.
    """

    uri: str
    folder: Path

    def one(self, question: str, read: Callable[[], VersionEntry]) -> VersionEntry:
        """Return the entry that answers a question; `read` is called only if it is not known."""
        found = self.all(question, lambda: [read()])
        return found[0] if found else read()

    def all(self, question: str, read: Callable[[], list[VersionEntry]]) -> list[VersionEntry]:
        """Return the entries that answer a question; `read` is called only if they are unknown."""
        before = self._stamp()
        if before is None:
            return read()
        known = self._known(before)
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # a damaged entry
            return [_entry(one) for one in known[question]]
        found = read()
        if self._stamp() == before:
            known[question] = [asdict(one) for one in found]
            content = json.dumps({"stamp": before, "entries": known})
            with suppress(WriteFailed):  # the next command reads the entries again
                write_files({self._file: content.encode()})
        return found

    @property
    def _file(self) -> Path:
        return self.folder / "entries.json"

    def _known(self, stamp: str) -> dict[str, Any]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._file.read_bytes())
            if kept["stamp"] == stamp:
                return dict(kept["entries"])
        return {}

    def _stamp(self) -> str | None:
        """Return a text that differs after every change; None if there is no such text.

        A journal means a transaction that is not finished, or was interrupted.
        """
        if not self.uri.startswith(SQLITE):
            return None
        path = sqlite_path(self.uri)
        try:
            with path.open("rb") as file:
                header = file.read(100)
            status = path.stat()
        except OSError:
            return None
        if (
            len(header) < 100
            or header[18] != _LEGACY
            or path.with_name(f"{path.name}-journal").exists()
        ):
            return None
        place = f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
        return f"{__version__} {path} {place} {header[24:28].hex()}"


def _entry(kept: dict[str, Any]) -> VersionEntry:
    return VersionEntry(**{**kept, "aliases": tuple(kept["aliases"])})

"""Entries of the zoo as this machine read them last, while its database has not changed since.

Reading an entry needs MLflow, and importing MLflow takes two seconds, which would be half of a
`manybeam predict`. A SQLite file counts its transactions in its header, so an entry that was read
at the same count is the same entry. Only the embedded zoo has such a file; a server is asked each
time. Another version of Manybeam may write other entries, so each version reads its own.

Source: sqlite.org/fileformat2.html, 1.3 "The Database Header", file change counter.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manybeam import __version__
from manybeam.addresses import SQLITE, sqlite_path
from manybeam.data.disk import write_files
from manybeam.errors import WriteFailed, ZooUnreachable
from manybeam.zoo.records import VersionEntry

_LEGACY = 1  # write version of a file without a write-ahead log; only then the counter counts


@dataclass(frozen=True)
class KnownEntries:
    """Entries by the question that they answer, in one file of the cache.

    Args:
        uri: database of MLflow, or its server.
        folder: folder of the cache.
        is_away: ask nobody, and answer with what the server said last.
    """

    uri: str
    folder: Path
    is_away: bool = False

    def one(self, question: str, read: Callable[[], VersionEntry]) -> VersionEntry:
        """Return the entry that answers a question; `read` is called only if it is not known."""
        found = self.all(question, lambda: [read()])
        return found[0] if found else read()

    def all(self, question: str, read: Callable[[], list[VersionEntry]]) -> list[VersionEntry]:
        """Return the entries that answer a question; `read` is called only if they are unknown.

        Raises:
            ZooUnreachable: nobody may be asked, and a server never said this here.
        """
        if self.is_away:
            return self._said_last(question)
        if not self.uri.startswith(SQLITE):
            found = read()
            self._keep_said(question, found)
            return found
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

    def _said_last(self, question: str) -> list[VersionEntry]:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            return [_entry(one) for one in self._all_said()[question]]
        raise ZooUnreachable(
            "the zoo does not answer",
            f"this machine never read {question!r} of it",
            "start MLflow again; manybeam status",
        )

    def _keep_said(self, question: str, found: list[VersionEntry]) -> None:
        said = self._all_said()
        # As JSON gives it back, so that only what is new is written.
        entries = json.loads(json.dumps([asdict(one) for one in found]))
        if said.get(question) != entries:
            content = json.dumps({**said, question: entries})
            with suppress(WriteFailed):  # it is kept the next time
                write_files({self._file_of_server: content.encode()})

    def _all_said(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, TypeError):
            return dict(json.loads(self._file_of_server.read_bytes()))
        return {}

    @property
    def _file_of_server(self) -> Path:
        """Return the file of this server and this version of Manybeam; others have their own."""
        digest = hashlib.sha256(f"{__version__} {self.uri}".encode()).hexdigest()
        return self.folder / f"entries-{digest[:12]}.json"

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

"""Entries of the zoo as this machine read them last, while its database has not changed since.

Reading an entry needs MLflow, and importing MLflow takes two seconds, which would be half of a
`manybeam predict`. A SQLite file counts its transactions in its header, so an entry that was read
at the same count is the same entry. Only the embedded zoo has such a file; a server is asked each
time, and what it said last is kept for the time when it is away. Each question has its own file, so
that several processes never undo each other's work. Another version of Manybeam may write other
entries, so each version reads its own.

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
from manybeam.errors import NotFound, WriteFailed, ZooUnreachable
from manybeam.zoo.records import VersionEntry

_LEGACY = 1  # write version of a file without a write-ahead log; only then the counter counts


@dataclass(frozen=True)
class KnownEntries:
    """Entries by the question that they answer, in one folder of the cache.

    Args:
        uri: database of MLflow, or its server.
        cache: folder of the cache.
        is_away: ask nobody, and answer with what the server said last.
    """

    uri: str
    cache: Path
    is_away: bool = False

    def one(self, question: str, read: Callable[[], VersionEntry]) -> VersionEntry:
        """Return the entry that answers a question; `read` is called only if it is not known."""
        found = self.all(question, lambda: [read()])
        return found[0] if found else read()

    def all(
        self, question: str, read: Callable[[], list[VersionEntry]], *, is_whole: bool = False
    ) -> list[VersionEntry]:
        """Return the entries that answer a question; `read` is called only if they are unknown.

        Args:
            question: the question.
            read: asks MLflow.
            is_whole: whether the answer holds all entries that there are, so that others are gone.

        Raises:
            ZooUnreachable: nobody may be asked, and a server never said this here.
        """
        if self.is_away:
            return self._said_last(question)
        if not self.uri.startswith(SQLITE):
            return self._asked(question, read, is_whole=is_whole)
        before = self._stamp()
        if before is None:
            return read()
        known = self._kept(question, before)
        if known is not None:
            return known
        found = read()
        if self._stamp() == before:
            self._keep(question, found, before)
            for path in self._files():
                if not path.name.startswith(_digest(before)):  # of a state that is past
                    _remove(path)
        return found

    def _asked(
        self, question: str, read: Callable[[], list[VersionEntry]], *, is_whole: bool
    ) -> list[VersionEntry]:
        """Return what the server says; what is gone there will not answer while it is away."""
        try:
            found = read()
        except NotFound:
            _remove(self._file(question))
            raise
        # As JSON gives it back, so that only what is new is written.
        if self._kept(question) != found:
            self._keep(question, found)
            if is_whole:
                self._forget_all_but({one.ref for one in found})
        return found

    def _said_last(self, question: str) -> list[VersionEntry]:
        known = self._kept(question)
        if known is not None:
            return known
        raise ZooUnreachable(
            "the zoo does not answer",
            f"this machine never read {question!r} of it",
            "start MLflow again; manybeam status",
        )

    def _forget_all_but(self, refs: set[str]) -> None:
        """Remove what was kept of versions that are gone; nobody may ask for them again."""
        for path in self._files():
            known = _read(path)
            if known is None or any(one.ref not in refs for one in known):
                _remove(path)

    def _keep(self, question: str, found: list[VersionEntry], stamp: str = "") -> None:
        content = json.dumps({"question": question, "entries": [asdict(one) for one in found]})
        with suppress(WriteFailed):  # it is read again, or kept the next time
            write_files({self._file(question, stamp): content.encode()})

    def _kept(self, question: str, stamp: str = "") -> list[VersionEntry] | None:
        """Return what was kept; None if nothing was, or if it is damaged."""
        return _read(self._file(question, stamp))

    @property
    def _folder(self) -> Path:
        """Return the folder of this database or server and this version of Manybeam."""
        return self.cache / f"entries-{_digest(f'{__version__} {self.uri}')}"

    def _file(self, question: str, stamp: str = "") -> Path:
        return self._folder / f"{_digest(stamp)}-{_digest(question)}.json"

    def _files(self) -> list[Path]:
        return list(self._folder.glob("*.json"))

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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> list[VersionEntry] | None:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
        return [_entry(one) for one in json.loads(path.read_bytes())["entries"]]
    return None


def _remove(path: Path) -> None:
    with suppress(OSError):  # another process was first, or may write here and this one may not
        path.unlink()


def _entry(kept: dict[str, Any]) -> VersionEntry:
    return VersionEntry(**{**kept, "aliases": tuple(kept["aliases"])})

"""The conditions of the library by their numbers, for the catalogue.

A score contains the digest of the numbers of its condition, for simulated frames followed by the
version of the simulator (`<digest>-2`). Only the library has the numbers themselves.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from manybeam.errors import InvalidSpec
from manybeam.spec import Condition, Library
from manybeam.spec.files import yaml_files
from manybeam.zoo.catalogue.phrases import Phrase
from manybeam.zoo.catalogue.rows import numbers_of
from manybeam.zoo.catalogue.words import words_of_condition

logger = logging.getLogger(__name__)


def conditions_of(library: Library) -> Mapping[str, Condition]:
    """Return every condition of a library by id, as its files are now.

    There are none if a file is wrong, because the zoo can be browsed without them. They are read
    once for each state of the files, because this takes 70 ms.
    """
    return _read(library.folder, _state(library.folder))


class KnownConditions:
    """The conditions of a library as its files were at one time."""

    def __init__(self, library: Library) -> None:
        self._folder = library.folder
        self._files = _state(library.folder)

    def renewed(self) -> "KnownConditions":
        """Return these conditions, or new ones if a file has changed."""
        same = self._files == _state(self._folder)
        return self if same else KnownConditions(Library(self._folder))

    @cached_property
    def by_id(self) -> Mapping[str, Condition]:
        """Every condition by id; see `conditions_of`."""
        return _read(self._folder, self._files)

    @cached_property
    def digest(self) -> str:
        """A digest that changes when a condition does."""
        text = "\n".join(f"{name} {one.digest}" for name, one in sorted(self.by_id.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def numbers(self, digest: str) -> dict[str, float]:
        """Return the numbers of a digest; none if no condition has it."""
        found = self._by_digest.get(_physical(digest))
        return numbers_of(found) if found else {}

    def is_described(self, digest: str, phrases: Iterable[Phrase]) -> bool:
        """Return whether all phrases describe the condition of a digest; False if it is unknown."""
        found = self._by_digest.get(_physical(digest))
        if found is None:
            return False
        peers = self._of_sample[found.sample.structure]
        return all(phrase.fits(numbers_of(found), peers) for phrase in phrases)

    def relation(self, name: str, digest: str) -> Literal["same", "changed", ""]:
        """Return whether the library's condition of an id has the numbers of a digest."""
        if name not in self.by_id:
            return ""
        return "same" if self.by_id[name].digest == _physical(digest) else "changed"

    def words(self, name: str, digest: str) -> str:
        """Return the words of a condition for the search; only its id if it is unknown."""
        found = self._by_digest.get(_physical(digest)) or self.by_id.get(name)
        return f"{name} {words_of_condition(found) if found else ''}"

    def choose(self, name: str, digests: Sequence[str]) -> str:
        """Return the digest that is current: the library's, or else the newest score's.

        Args:
            name: id of the condition.
            digests: digests in its scores, that of the newest score last.
        """
        own = [one for one in digests if self.relation(name, one) == "same"]
        return [*digests, *own][-1]

    @cached_property
    def _of_sample(self) -> dict[str, list[dict[str, float]]]:
        """Structure of the sample -> the numbers of each of its conditions."""
        found: dict[str, list[dict[str, float]]] = {}
        for one in self.by_id.values():
            found.setdefault(one.sample.structure, []).append(numbers_of(one))
        return found

    @cached_property
    def _by_digest(self) -> dict[str, Condition]:
        return {one.digest: one for one in self.by_id.values()}


@lru_cache(maxsize=4)
def _read(folder: Path, files: tuple[tuple[str, int, int], ...]) -> Mapping[str, Condition]:
    """Read the conditions of a folder; `files` is the state they are read in."""
    try:
        found = Library(folder).conditions
    except InvalidSpec as error:
        logger.warning("conditions could not be read: %s", error)
        return {}
    logger.debug("conditions read", extra={"files": len(files)})
    return found


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = yaml_files(folder / "conditions")
    return tuple((one.name, *_stamp(one)) for one in found)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _physical(digest: str) -> str:
    """Return the digest of a condition's numbers, without the simulator's version."""
    return digest.partition("-")[0]

"""The facility's library of conditions and policies, kept in memory while no file changes."""

from functools import lru_cache
from pathlib import Path

from manybeam.settings import settings
from manybeam.spec import Library


def facility_library() -> Library:
    """Return the library of `MANYBEAM_ZOO`; read it again only if one of its files has changed."""
    folder = settings().zoo
    stamps = tuple(sorted((str(path), path.stat().st_mtime_ns) for path in folder.glob("*/*.y*ml")))
    return _read_library(folder, stamps)


@lru_cache(maxsize=4)
def _read_library(folder: Path, stamps: tuple[tuple[str, int], ...]) -> Library:
    del stamps  # only a key of the cache: other files give another library
    return Library(folder)

"""The facility's library of conditions and policies, kept in memory while no file changes."""

from functools import lru_cache
from pathlib import Path

from manybeam.settings import settings
from manybeam.spec import Library
from manybeam.spec.files import KINDS, yaml_files


def facility_library() -> Library:
    """Return the library of `MANYBEAM_ZOO`; read it again only if one of its files has changed."""
    folder = settings().zoo
    files = [path for kind in KINDS for path in yaml_files(folder / kind)]
    stamps = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    return _read_library(folder, stamps)


@lru_cache(maxsize=4)
def _read_library(folder: Path, stamps: tuple[tuple[str, int], ...]) -> Library:
    del stamps  # only a key of the cache: other files give another library
    return Library(folder)

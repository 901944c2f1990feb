"""Files on the disk of this machine: written whole or not at all, by one process at a time."""

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from manybeam.errors import WriteFailed


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together; a reader finds the old file or the new one, never a part.

    Old files stay until every new file is whole. The new files then appear in their order, so put
    the one that readers look for last. Missing folders are made.

    Args:
        files: content by path.

    Raises:
        WriteFailed: one of them cannot be written; no part of it stays.
    """
    # The name is short, so that it fits in any folder, and hidden, so that no list shows it.
    drafts = {path: path.with_name(f".{secrets.token_hex(8)}.part") for path in files}
    try:
        for path, draft in drafts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                file.write(files[path])
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> WriteFailed:
    """Return the error that says why a file was not written."""
    return WriteFailed(
        f"{path} cannot be written: {error.strerror or error}",
        "an older file there is unchanged",
        "choose a file in a folder that you may write to, on a disk with free space",
    )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process of this machine in at a time; if a process dies, its lock is free again.

    Raises:
        WriteFailed: the file of the lock cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise unwritten(path, error) from error
    with lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


SHORT = Path("/tmp")  # noqa: S108 - no path is shorter


def short_temporary(longest: int) -> Path:
    """Return a folder for temporary files with a path of at most so many characters.

    Unix sockets need one: their path has room for 107 characters. Batch systems set a long TMPDIR.

    Raises:
        WriteFailed: the folder for temporary files is longer, and `/tmp` cannot be written.
    """
    own = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).resolve()
    if len(str(own)) <= longest:
        return own
    if os.access(SHORT, os.W_OK | os.X_OK):
        return SHORT
    raise WriteFailed(
        f"the folder for temporary files, {own}, has {len(str(own))} characters",
        f"sockets in it need at most {longest}, and {SHORT} cannot be written",
        "make a folder with a short path, and set RAY_TMPDIR or TMPDIR to it",
    )

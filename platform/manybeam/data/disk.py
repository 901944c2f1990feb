"""Files on this machine's disk: written whole or not at all, by one process at a time."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from manybeam.errors import WriteFailed


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together; whoever reads one finds the old one or the new one.

    What was there stays until every new file is whole. They then appear in their order, so the
    one that is looked for comes last. Missing folders are made.

    Args:
        files: what each path is to hold.

    Raises:
        WriteFailed: one of them cannot be written; nothing is left behind.
    """
    # Short, so that it fits wherever the path does; hidden, so that no list shows it.
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
    """Return the error that tells why a file is not there."""
    return WriteFailed(
        f"{path} cannot be written: {error.strerror or error}",
        "what was there is untouched",
        "name a file in a folder that you may write to, on a disk with room",
    )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process of this machine in at a time; the lock of one that dies is free again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""A cache of files of the zoo on this machine. The name of a file is the SHA-256 of its bytes.

The cache never becomes outdated, because bytes with another digest are not used.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manybeam.data.disk import write_files
from manybeam.errors import Corrupt, WriteFailed

logger = logging.getLogger(__name__)


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of some bytes, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of files named by digest; any number of processes may share it."""

    folder: Path

    def get(self, sha256: str, download: Callable[[], bytes], what: str) -> bytes:
        """Return the bytes of one digest; download them only if they are not in the cache.

        The digest is computed at each call, also for cached bytes, because a disk can be damaged.

        Args:
            sha256: digest of the bytes.
            download: downloads the bytes; called at most once.
            what: name of the file, for the error message.

        Raises:
            Corrupt: the downloaded bytes have another digest.
        """
        kept = self._kept(sha256)
        if kept is not None:
            return kept
        content = download()
        found = sha256_of(content)
        if found != sha256:
            raise Corrupt(
                f"{what} are not the bytes that were registered: SHA-256 {found[:12]}...",
                f"recorded SHA-256: {sha256[:12]}...",
                "restore the artifact store from its backup: manybeam restore",
            )
        self.keep(sha256, content)
        return content

    def _kept(self, sha256: str) -> bytes | None:
        path = self.folder / sha256
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if sha256_of(content) == sha256:
            return content
        logger.warning("cached file was damaged; it is downloaded again", extra={"sha256": sha256})
        return None

    def keep(self, sha256: str, content: bytes) -> None:
        """Write one file, as a whole or not at all; a write error is only logged."""
        try:
            write_files({self.folder / sha256: content})
        except WriteFailed as error:
            logger.warning("cache cannot be written", extra={"why": error.what})

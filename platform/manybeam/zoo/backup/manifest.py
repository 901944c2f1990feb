"""The manifest of a backup: what is in it, and the digest of every file."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manybeam import __version__
from manybeam.errors import Corrupt, NotFound

NAME = "manifest.json"
PARTS = ("database", "zoo", "weights", "store", "keys")  # the folders of a backup


class File(BaseModel):
    """One file: its SHA-256 and its size."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class BackupManifest(BaseModel):
    """What a backup holds; written last, so that a folder without it is no backup.

    Attributes:
        format: of the backup.
        made: when.
        version: of the Manybeam that made it.
        step: of the database's tables.
        artifacts_url: where the embedded zoo kept its files; "" for that of a server.
        has_arrays: whether the frames of FrameSets are in it, or only their records.
        files: every file of it, by its path.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["manybeam-backup-1"] = "manybeam-backup-1"
    made: datetime = Field(default_factory=lambda: datetime.now(UTC))
    version: str = __version__
    step: str
    artifacts_url: str = ""
    has_arrays: bool
    files: dict[str, File]

    def rows(self) -> list[dict[str, object]]:
        """Return one row a part: how many files and how many bytes."""
        return [
            {"part": part, "files": len(own), "megabytes": sum(one.bytes for one in own) / 1e6}
            for part in PARTS
            for own in [[one for path, one in self.files.items() if path.startswith(f"{part}/")]]
        ]


def digests(folder: Path) -> dict[str, File]:
    """Return the digest of every file below a folder, by its path from there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in paths}


def read_manifest(folder: Path) -> BackupManifest:
    """Return the manifest of a backup all of whose files are as they were written.

    Raises:
        NotFound: there is no backup.
        Corrupt: files are missing, damaged, or of nobody's making; names them.
    """
    path = folder / NAME
    if not path.is_file():
        raise NotFound(f"{folder} is no backup", f"it has no {NAME}", "manybeam backup makes one")
    try:
        manifest = BackupManifest.model_validate_json(path.read_text())
    except ValidationError as error:
        raise Corrupt(f"{path} cannot be read", str(error), "use another backup") from error
    found = {name: one for name, one in digests(folder).items() if name != NAME}
    names = sorted(found.keys() | manifest.files.keys())
    bad = [name for name in names if found.get(name) != manifest.files.get(name)]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise Corrupt(
            f"the backup is damaged: {', '.join(bad[:3])}{more}",
            "these files are missing, changed or were added; nothing was restored",
            "use another backup",
        )
    return manifest


def _digest(path: Path) -> File:
    with path.open("rb") as file:
        return File(
            sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size
        )

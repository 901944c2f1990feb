"""The manifest of a backup: its content, and the digest of every file."""

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
    """The content of a backup; written last, so that a folder without it is no backup.

    Attributes:
        format: format of the backup.
        made: time of the backup.
        version: version of Manybeam that made it.
        step: step of the tables of the database.
        artifacts_url: place of the files of the embedded zoo; "" for a server.
        has_arrays: whether the frames of FrameSets are in it, or only their records.
        files: all files, by path.
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
        """Return one row for each part: numbers of files and bytes."""
        return [
            {"part": part, "files": len(own), "megabytes": sum(one.bytes for one in own) / 1e6}
            for part in PARTS
            for own in [[one for path, one in self.files.items() if path.startswith(f"{part}/")]]
        ]


def digests(folder: Path) -> dict[str, File]:
    """Return the digest of every file below a folder, by its relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in paths}


def read_manifest(folder: Path) -> BackupManifest:
    """Return the manifest of a backup, after a check of all its files.

    Raises:
        NotFound: there is no backup.
        Corrupt: files are missing, damaged or were added; the message names them.
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

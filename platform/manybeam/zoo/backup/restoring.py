"""Restoring a backup to an empty platform, or in place of an existing one."""

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manybeam.addresses import SQLITE, sqlite_path
from manybeam.data.store import open_store
from manybeam.db import copies
from manybeam.db.audit import AuditLog
from manybeam.db.deployment import open_database
from manybeam.errors import Conflict, Corrupt, NotFound
from manybeam.settings import settings
from manybeam.zoo.backend.tracking import Tracking
from manybeam.zoo.backup import parts
from manybeam.zoo.backup.manifest import BackupManifest, read_manifest


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        manifest: manifest of the backup.
        keys: paths of signing key and trusted keys; the settings must name them.
    """

    manifest: BackupManifest
    keys: tuple[Path, ...]


def restore(
    source: Path,
    *,
    who: str,
    replace: bool = False,
    zoo_database: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Restored:
    """Restore a backup to the platform of the settings.

    Every file is checked before anything is written. If it is interrupted, run it again with
    `replace`. Stop the programs of the platform first, because they cache old data.

    Args:
        source: the folder or file that `back_up` made.
        who: the person, for the audit log.
        replace: replace the content of database and zoo. Other objects of the store and other
            files stay.
        zoo_database: URL of MLflow's database, if MLflow is a server.
        progress: called with the name of each part at its beginning.

    Raises:
        NotFound: there is no backup.
        Corrupt: the backup is damaged; nothing was written.
        Conflict: the platform is not empty, or a newer Manybeam made the backup.
        InvalidInput: the backup is of another kind of platform.
    """
    with _unpacked(source) as folder:
        progress("check of every file")
        manifest = read_manifest(folder)
        database, zoo_url = open_database(), parts.zoo_database_url(zoo_database)
        if not replace:
            _check_empty()
        progress("zoo")
        parts.put_back_zoo(folder, zoo_url, manifest.artifacts_url)
        if any((folder / "weights").iterdir()):
            progress("weights")
            tracking = Tracking(settings().tracking_url, settings().artifacts_url)
            parts.put_back_weights(tracking, folder / "weights")
        progress("store")
        parts.put_back_store(folder / "store")
        progress("database")
        copies.read_rows(database, folder / "database", manifest.step)
        keys = parts.put_back_keys(folder / "keys")
        shutil.rmtree(settings().cache, ignore_errors=True)  # copies of another zoo
    made = f"backup of {manifest.made:%Y-%m-%d %H:%M} UTC by version {manifest.version}"
    AuditLog(database).append("restore done", "platform", who=who, reason=made)
    return Restored(manifest, tuple(keys))


def _check_empty() -> None:
    """Raise Conflict if the platform is not empty."""
    here, held = settings(), []
    if not copies.is_unused(open_database()):
        held.append("the database")
    is_embedded = here.tracking_url.startswith(SQLITE)
    is_new = is_embedded and not sqlite_path(here.tracking_url).exists()
    if not is_new and Tracking(here.tracking_url, here.artifacts_url).versions():
        held.append("the zoo")
    if open_store(here.store_url).folders():
        held.append("the store")
    if held:
        raise Conflict(
            f"{' and '.join(held)} hold something already",
            "a restore replaces database and zoo; nothing was changed",
            "restore to an empty platform, or add --yes to replace the present content",
        )


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """Give the folder of a backup; a file is unpacked beside home."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise NotFound(f"no backup at {source}", "", "give the folder or file of a backup")
    home = settings().home
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=home) as folder:
        try:
            with tarfile.open(source) as tar:
                tar.extractall(folder, filter="data")
        except tarfile.TarError as error:
            raise Corrupt(f"{source} cannot be unpacked", str(error), "") from error
        yield Path(folder)

"""Making a backup: all parts in one folder, which appears when complete, or in one file."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from manybeam.data.disk import unwritten
from manybeam.db.audit import AuditLog
from manybeam.db.deployment import open_database
from manybeam.db.locks import FILES_LOCK, Locks
from manybeam.errors import Conflict, ManybeamError
from manybeam.settings import settings
from manybeam.zoo.backend.tracking import Tracking
from manybeam.zoo.backup import parts
from manybeam.zoo.backup.manifest import NAME, PARTS, BackupManifest, digests

TAR = ".tar"


def back_up(
    target: Path,
    *,
    who: str,
    arrays: bool = True,
    zoo_database: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> BackupManifest:
    """Copy the database, the zoo, FrameSets, keys and the admin token; return what was copied.

    The platform may run meanwhile; only `manybeam zoo gc` waits. Data added meanwhile are in the
    backup as a whole or not at all.

    Args:
        target: a new folder, or a new file that ends in .tar.
        who: the person.
        arrays: whether the frames of FrameSets are copied, or only their records.
        zoo_database: URL of MLflow's database, if MLflow is a server.
        progress: called with the name of each part at its beginning.

    Raises:
        Conflict: the target exists, or files of the zoo are being removed.
        InvalidInput: MLflow's database is not known.
        Unreachable, WriteFailed: a part cannot be read or written; nothing is left behind.
    """
    if target.exists():
        raise Conflict(f"{target} is there already", "", "give a new folder or file")
    database, zoo_url = open_database(), parts.zoo_database_url(zoo_database)
    lock = Locks(database).keeping(FILES_LOCK, who=who, purpose="backup")
    with _appearing(target) as folder, lock:
        for part in PARTS:
            (folder / part).mkdir()
        progress("database and zoo")
        tracking = Tracking(settings().tracking_url, settings().artifacts_url)
        tracking.follow_moved()
        step = parts.copy_databases(database, folder, zoo_url)
        if any((folder / "zoo").iterdir()):
            progress("weights")
            parts.copy_weights(tracking, folder / "weights")
        progress("store")
        parts.copy_store(folder / "store", arrays=arrays)
        parts.copy_keys(folder / "keys")
        files = digests(folder)
        place = "" if tracking.is_server else tracking.artifacts
        manifest = BackupManifest(step=step, artifacts_url=place, has_arrays=arrays, files=files)
        (folder / NAME).write_text(manifest.model_dump_json(indent=1))
    AuditLog(database).append("backup made", "platform", who=who, details={"target": str(target)})
    return manifest


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes the target if the block succeeds, else it is removed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise unwritten(target, error) from error
    packed = folder.with_suffix(f"{folder.suffix}{TAR}")
    try:
        yield folder
        if target.suffix == TAR:
            _pack(folder, packed)
            packed.replace(target)
        else:
            folder.replace(target)
    except ManybeamError:
        raise  # of what is copied; some of ours are OSErrors too
    except OSError as error:
        raise unwritten(target, error) from error
    finally:
        packed.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _pack(folder: Path, packed: Path) -> None:
    """Write one file that only its owner can read, because it contains keys."""
    handle = os.open(packed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out, tarfile.open(fileobj=out, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder), recursive=False)

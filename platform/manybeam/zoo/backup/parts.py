"""The parts of a backup: each is copied into a folder, and restored from it."""

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from manybeam.addresses import SQLITE, sqlite_path, sqlite_url
from manybeam.data.store import Store, open_store
from manybeam.db import copies, places
from manybeam.db.database import Database
from manybeam.errors import Conflict, InvalidInput, NotFound
from manybeam.settings import Settings, settings
from manybeam.zoo.backend.refusals import speaking
from manybeam.zoo.backend.tracking import ModelFiles, Tracking

MLFLOW_FILE, MLFLOW_DUMP = "mlflow.db", "mlflow.dump"
ADMIN_TOKEN = "admin-token"  # noqa: S105 - the name of a file
_COPIERS = 16
_LEFT_OUT = ("runs/",)  # checkpoints of training, which a job makes again
_KEYS = "keys"


# -- the database and MLflow's --------------------------------------------------------------------
def copy_databases(database: Database, folder: Path, zoo_url: str) -> str:
    """Copy our database and MLflow's, both in one state; return the step of our tables.

    On SQLite, changes of the zoo wait meanwhile. In one PostgreSQL, both are read from one
    snapshot.

    Args:
        database: our database.
        folder: folder of the backup.
        zoo_url: URL of MLflow's database, see `zoo_database_url`.
    """
    with database.at_rest() as connection:
        step = copies.write_rows(connection, folder / "database")
        if zoo_url.startswith(SQLITE):
            path = sqlite_path(zoo_url)
            if path.exists():
                copies.copy_sqlite(path, folder / "zoo" / MLFLOW_FILE)
        else:
            is_ours = not database.is_sqlite and _same(zoo_url, database)
            state = copies.snapshot(connection) if is_ours else ""
            copies.dump_postgres(zoo_url, folder / "zoo" / MLFLOW_DUMP, state=state)
    return step


def put_back_zoo(folder: Path, zoo_url: str, artifacts_before: str) -> None:
    """Restore MLflow's database; the files of an embedded zoo are then below the present home.

    Raises:
        InvalidInput: the backup is of another kind of database.
    """
    file, dump = folder / "zoo" / MLFLOW_FILE, folder / "zoo" / MLFLOW_DUMP
    is_file = zoo_url.startswith(SQLITE)
    if (dump if is_file else file).exists():
        raise InvalidInput(
            f"the backup holds a {'PostgreSQL' if is_file else 'SQLite'} database of MLflow",
            f"here it is {'SQLite' if is_file else 'PostgreSQL'}",
            "restore it to a platform with this kind of database",
        )
    if dump.exists():
        copies.restore_postgres(zoo_url, dump)
    if file.exists():
        target = sqlite_path(zoo_url)
        target.parent.mkdir(parents=True, exist_ok=True)
        moved = target.with_name(f".{target.name}.restored")
        shutil.copy(file, moved)
        places.move_places(sqlite_url(moved), artifacts_before, settings().artifacts_url)
        copies.copy_sqlite(moved, target)
        moved.unlink()


def zoo_database_url(given: str) -> str:
    """Return the URL of the database in which MLflow keeps the zoo.

    A server does not report its database. It is the given one, or our own if this contains
    MLflow's tables.

    Raises:
        InvalidInput: the database is unknown.
    """
    here = settings()
    if given or not here.tracking_url.startswith("http"):
        return given or here.tracking_url
    if copies.holds_mlflow(here.database_address):
        return here.database_address
    raise InvalidInput(
        "the database of the MLflow server is not known",
        "a backup of the zoo needs it, and the server does not report it",
        "add --zoo-database postgresql://user@host/name, with the password in PGPASSWORD",
    )


def _same(url: str, database: Database) -> bool:
    one, other = Database(url).url, database.url
    return (one.host, one.port, one.database) == (other.host, other.port, other.database)


# -- weights and the other files of MLflow -------------------------------------------------------
def copy_weights(tracking: Tracking, folder: Path) -> None:
    """Copy the files of every LoggedModel, one folder for each model."""
    with ThreadPoolExecutor(_COPIERS) as pool:
        list(pool.map(lambda one: _copy_model(tracking.uri, one, folder), tracking.models()))


def put_back_weights(tracking: Tracking, folder: Path) -> None:
    """Restore the files of every LoggedModel of the zoo to their place."""
    known = [one for one in tracking.models() if (folder / one.id).is_dir()]
    with ThreadPoolExecutor(_COPIERS) as pool:
        list(pool.map(lambda one: _put_back_model(tracking.uri, one, folder), known))


@speaking()
def _copy_model(uri: str, model: ModelFiles, folder: Path) -> None:
    files: Any = get_artifact_repository(model.place, uri)
    if files.list_artifacts():
        (folder / model.id).mkdir()
        files.download_artifacts("", str(folder / model.id))


@speaking()
def _put_back_model(uri: str, model: ModelFiles, folder: Path) -> None:
    files: Any = get_artifact_repository(model.place, uri)
    files.log_artifacts(str(folder / model.id))


# -- the store ------------------------------------------------------------------------------------
def copy_store(folder: Path, *, arrays: bool) -> None:
    """Copy the objects of the store: FrameSets with their records, and answers.

    A record is written after its frames, so every listed FrameSet is complete. Checkpoints of
    training are left out.

    Args:
        folder: folder of the backup.
        arrays: whether the frames themselves are copied.

    Raises:
        Conflict: a FrameSet was replaced meanwhile.
    """
    store = open_store(settings().store_url)
    keys = [key for key in store.list() if _is_wanted(key, arrays=arrays)]
    gone = list(_copied(store, open_store(folder), keys))
    if gone:
        raise Conflict(
            f"{len(gone)} objects of the store were removed during the copy, such as {gone[0]}",
            "a FrameSet was replaced or removed meanwhile",
            "make the backup again",
        )


def put_back_store(folder: Path) -> None:
    """Restore the objects of a backup to the store; other objects stay."""
    source = open_store(folder)
    list(_copied(source, open_store(settings().store_url), source.list()))


def _is_wanted(key: str, *, arrays: bool) -> bool:
    if key.startswith(_LEFT_OUT) or "/claims/" in f"/{key}" or key.endswith(".probe"):
        return False
    return arrays or "/c/" not in f"/{key}"


def _copied(source: Store, target: Store, keys: Iterable[str]) -> Iterator[str]:
    """Copy objects and yield the keys of missing ones."""

    def copy(key: str) -> str:
        try:
            target.put(key, source.get(key))
        except NotFound:
            return key
        return ""

    with ThreadPoolExecutor(_COPIERS) as pool:
        yield from filter(None, pool.map(copy, keys))


# -- keys -----------------------------------------------------------------------------------------
def copy_keys(folder: Path) -> None:
    """Copy the admin token, the signing key and the trusted keys."""
    for name, path in _key_files(settings()):
        if path.is_file():
            _write_secret(folder / name, path.read_bytes())


def put_back_keys(folder: Path) -> list[Path]:
    """Restore the admin token, and the keys below home; return the paths of the keys."""
    home, keys = settings().home, []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = path.relative_to(folder)
        target = home / name if str(name) == ADMIN_TOKEN else home / _KEYS / name
        _write_secret(target, path.read_bytes())
        if target.parent != home:
            keys.append(target)
    return keys


def _key_files(here: Settings) -> Iterator[tuple[str, Path]]:
    yield ADMIN_TOKEN, here.home / ADMIN_TOKEN
    if here.signing_key:
        yield "signing-key.pem", Path(here.signing_key)
    trusted = Path(here.trusted_keys or os.devnull)
    for path in trusted.glob("*.pub") if trusted.is_dir() else [trusted]:
        yield f"trusted/{path.name}", path


def _write_secret(path: Path, content: bytes) -> None:
    """Write or replace a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    draft.replace(path)

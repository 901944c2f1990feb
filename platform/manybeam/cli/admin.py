"""`manybeam up | down | status | doctor`: the platform on this machine."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.errors import InvalidSetting, ManybeamError, WorkFailed


def up(
    *,
    cpus: Annotated[int, typer.Option(min=0, help="Cores for Ray; 0 for all.")] = 0,
    form: FormOption = Form.auto,
) -> None:
    """Start the platform on this machine: Ray on loopback, the zoo, the frame store.

    If MANYBEAM_RAY_ADDRESS is set, it joins that cluster and starts no Ray.

    Example: manybeam up && manybeam serve up graphene
    """
    from manybeam.cluster.head import start_head
    from manybeam.data.store import open_store
    from manybeam.settings import settings
    from manybeam.zoo.registry import Zoo

    where = settings()
    if not where.ray_address:
        start_head(where.home, cpus or None)
    open_store(where.store_url)
    Zoo().listing()
    emit(list(_parts()), form, title="Platform")


def down() -> None:
    """Stop the processes that `up` and `serve up` started on this machine; frames and zoo stay.

    Example: manybeam down
    """
    from manybeam.cluster.head import stop_head
    from manybeam.settings import settings

    stopped = stop_head(settings().home)
    say("stopped" if stopped else "nothing was running")


def status(*, form: FormOption = Form.auto) -> None:
    """Show which parts run, and where. The exit code is 3 if the store or the zoo does not answer.

    Example: manybeam status -o json
    """
    rows = list(_parts())
    emit(rows, form, title="Platform")
    if any(row["state"] == "unreachable" for row in rows):
        raise typer.Exit(3)


def doctor(*, form: FormOption = Form.auto) -> None:
    """Check this machine: versions, disk, shared memory, store, zoo; list remedies.

    Example: manybeam doctor
    """
    rows = [_checked(name, check) for name, check in _CHECKS.items()]
    emit(rows, form, title="Doctor")
    failed = [str(row["check"]) for row in rows if row["state"] == "failed"]
    if failed:
        raise WorkFailed(
            f"failed checks: {', '.join(failed)}",
            "the column `found` gives the reason",
            "the column `try` gives the remedy",
        )


def _parts() -> Iterator[dict[str, object]]:
    """Yield one row for each part of the platform: ray, store, zoo, service."""
    from manybeam.cluster.running import head
    from manybeam.settings import settings

    where = settings()
    running = head(where.home)
    address = where.ray_address or (running.address if running else "")
    yield {"part": "ray", "state": "up" if address else "not started", "where": address}
    yield _checked_part("store", where.store_url, _store_answers)
    yield _checked_part("zoo", where.tracking_url, _zoo_answers)
    yield _checked_part("database", _database_place(), _database_answers)
    yield {
        "part": "service",
        "state": _service_state(where.service_url),
        "where": where.service_url,
    }


def _checked_part(part: str, where: str, check: Callable[[], str]) -> dict[str, object]:
    try:
        check()
    except ManybeamError:
        return {"part": part, "state": "unreachable", "where": where}
    return {"part": part, "state": "up", "where": where}


def _service_state(url: str) -> str:
    import urllib3

    try:
        answer = urllib3.request("GET", f"{url}/readyz", timeout=2.0, retries=False)
    except urllib3.exceptions.HTTPError:
        return "not started"
    return "up" if answer.status == 200 else f"not ready (HTTP {answer.status})"


def _checked(name: str, check: Callable[[], str]) -> dict[str, object]:
    try:
        return {"check": name, "state": "ok", "found": check(), "try": ""}
    except ManybeamError as error:
        return {
            "check": name,
            "state": "failed",
            "found": f"{error.what} {error.why}",
            "try": error.hint,
        }


def _packages() -> str:
    python = sys.version.split()[0]
    names = ("torch", "ray", "mlflow", "zarr", "obstore")
    try:
        found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    except importlib.metadata.PackageNotFoundError as error:
        raise WorkFailed(
            f"the package {error.name} is not installed",
            "Manybeam needs it",
            "pip install manybeam",
        ) from error
    return ", ".join([f"python {python}", *found])


def _disk() -> str:
    from manybeam.settings import settings

    home = settings().home.resolve()
    folder = next(path for path in (home, *home.parents) if path.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < 2:
        raise WorkFailed(
            f"only {free_gb:.1f} GB free at {folder}",
            "at least 2 GB are needed",
            "delete files, or set MANYBEAM_HOME to another disk",
        )
    return f"{free_gb:.0f} GB free at {folder}"


def _shared_memory() -> str:
    folder = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects on Linux
    free_gb = shutil.disk_usage(folder).free / 1e9 if folder.is_dir() else float("inf")
    if free_gb < 0.2:
        raise WorkFailed(
            f"only {free_gb:.2f} GB of shared memory are free",
            "Ray keeps objects there and needs at least 0.2 GB",
            "make /dev/shm larger",
        )
    return f"{free_gb:.1f} GB"


def _store_answers() -> str:
    from manybeam.data.store import open_store
    from manybeam.settings import settings

    store = open_store(settings().store_url)
    key = f"doctor-{os.getpid()}"
    store.put(key, b"written by manybeam doctor")
    store.delete(key)
    return settings().store_url


def _zoo_answers() -> str:
    from manybeam.zoo.registry import Zoo

    return f"{len(Zoo().listing())} versions"


def _database_place() -> str:
    """Return the place of the database, without its password; or that none is set."""
    from manybeam.db.database import Database
    from manybeam.settings import settings

    try:
        return Database(settings().database_address).place
    except InvalidSetting as error:
        return error.what


def _database_answers() -> str:
    from manybeam.db.deployment import open_database
    from manybeam.db.migrate import REVISION

    return f"{open_database().place}, step {REVISION}"


def _library() -> str:
    from manybeam.settings import settings
    from manybeam.spec import Library

    library = Library(settings().zoo)
    found = (library.conditions, library.policies, library.recipes)
    conditions, policies, recipes = (len(kind) for kind in found)
    if not recipes:
        raise WorkFailed(
            f"there is no recipe in {settings().zoo}",
            "a zoo folder holds conditions, policies and recipes",
            "manybeam init DIR writes the project's own; or set MANYBEAM_ZOO",
        )
    return f"{conditions} conditions, {policies} policies, {recipes} recipes"


_CHECKS: dict[str, Callable[[], str]] = {
    "packages": _packages,
    "disk": _disk,
    "shared memory": _shared_memory,
    "zoo folder": _library,
    "frame store": _store_answers,
    "zoo": _zoo_answers,
    "database": _database_answers,
}

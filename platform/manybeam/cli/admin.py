"""`manybeam up | down | status | doctor`: the platform on this machine."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say, settled
from manybeam.cli.terminal.progress import Progress
from manybeam.errors import Conflict, InvalidSetting, ManybeamError, NotAllowed, WorkFailed


def up(
    *,
    cpus: Annotated[int, typer.Option(min=0, help="Cores for Ray; 0 for all.")] = 0,
    form: FormOption = Form.auto,
) -> None:
    """Start the platform on this machine: Ray on loopback, the zoo, the frame store.

    If MANYBEAM_RAY_ADDRESS is set, it joins that cluster and starts no Ray.

    Example: manybeam up && manybeam serve up graphene
    """
    with Progress("start the platform"):
        from manybeam.cluster.head import starting_head
        from manybeam.settings import settings

        where = settings()
        if where.ray_address:
            parts = list(_parts())
        else:
            with starting_head(where.home, cpus or None) as ready:
                others = list(_parts_beside_ray())  # while Ray starts
                ready()
            parts = [_checked_part("ray", _ray_place(), _ray_answers), *others]
    _show(parts, form)


def down() -> None:
    """Stop the processes that `up` and `serve up` started on this machine; frames and zoo stay.

    A job that runs there ends. If its command is run again, it continues with the finished work.

    Example: manybeam down
    """
    from manybeam.cluster.head import stop_head
    from manybeam.cluster.running import head
    from manybeam.serve.haproxy import forget_haproxy
    from manybeam.settings import settings

    with Progress("stop the platform"):
        home = settings().home
        running, stopped = head(home), stop_head(home)
        if running:
            forget_haproxy(running.address)
    say("stopped" if stopped else "nothing was running")


def status(*, form: FormOption = Form.auto) -> None:
    """Show which parts run, and where. The exit code is 3 if a part does not answer.

    Example: manybeam status -o json
    """
    with Progress("ask each part"):
        parts = list(_parts())
    _show(parts, form)


def doctor(*, form: FormOption = Form.auto) -> None:
    """Check this machine: versions, disk, shared memory, Ray, store, zoo; list remedies.

    It also lists what of the platform listens here: where, why, and what keeps others out.

    Example: manybeam doctor
    """
    with Progress("check this machine"):
        rows = [_checked(name, check) for name, check in _CHECKS.items()]
        listening = _listening_rows()
    if settled(form) is Form.table:
        emit(rows, form, title="Doctor")
        columns = ("address", "port", "state", "process", "what", "closed_by", "reason")
        empty = "nothing of this platform listens"
        emit(listening, form, title="Listens", columns=columns, empty=empty)
    else:
        emit([*rows, *listening], form)
    rows += listening
    failed = dict.fromkeys(str(row["check"]) for row in rows if row["state"] == "failed")
    if failed:
        raise WorkFailed(
            f"failed checks: {', '.join(failed)}",
            "the column `found` gives the reason",
            "the column `try` gives the remedy",
        )


def _listening_rows() -> list[dict[str, object]]:
    """Return a row for each listener; one that other machines reach without a reason has failed."""
    from manybeam.serve.listeners import listeners

    try:
        found = listeners()
    except ManybeamError:  # the check of the part that cannot be asked gives the reason
        return []
    return [
        {
            "check": "listens",
            "state": "ok" if one.is_allowed else "failed",
            "found": f"{one.what} on {one.address}, port {one.port}",
            "try": "" if one.is_allowed else f"close port {one.port} to other machines; report it",
            "address": one.address,
            "port": one.port,
            "process": f"{one.process} {one.pid}",
            "what": one.what,
            "reason": one.reason,
            "closed_by": one.closed_by,
        }
        for one in found
    ]


def _show(found: "Sequence[Part]", form: Form) -> None:
    """Print a row for each part; the reason for each that does not answer is on stderr."""
    rows = [{"part": one.name, "state": one.state, "where": one.where} for one in found]
    emit(rows, form, title="Platform")
    for one in found:
        if one.error:
            say(f"{one.name}: {one.error}")
    if any(one.error for one in found):
        raise typer.Exit(3)


@dataclass(frozen=True)
class Part:
    """A part of the platform: whether it answered, and where it was asked."""

    name: str
    state: str
    where: str
    error: ManybeamError | None = None


def _parts() -> Iterator[Part]:
    """Yield each part of the platform, after it was asked."""
    yield _checked_part("ray", _ray_place(), _ray_answers)
    yield from _parts_beside_ray()


def _parts_beside_ray() -> Iterator[Part]:
    from manybeam.addresses import without_password
    from manybeam.settings import settings

    where = settings()
    yield _checked_part("store", where.store_url, _store_answers)
    yield _checked_part("zoo", without_password(where.tracking_url), _zoo_answers)
    weights = where.tracking_url if where.is_server else where.artifacts_url
    yield _checked_part("weights", without_password(weights), _weights_answer)
    yield _checked_part("database", _database_place(), _database_answers)
    yield _server("service", where.service_url, "/readyz", "ensembles", where.service_headers)
    yield _server("pages", where.control_url, "/healthz", "is_fresh")


def _checked_part(name: str, where: str, check: Callable[[], str]) -> Part:
    try:
        return Part(name, "up" if check() else "not started", where)
    except NotAllowed as error:
        return Part(name, "refused", where, error)
    except ManybeamError as error:
        return Part(name, "unreachable", where, error)


def _server(
    name: str, url: str, path: str, field: str, headers: Mapping[str, str] | None = None
) -> Part:
    """Ask one of our web servers; if another answers at its address, it lacks the field."""
    import json

    import urllib3

    from manybeam.cluster.identity import check_platform

    try:
        answer = urllib3.request("GET", url + path, headers=headers, timeout=2.0, retries=False)
        check_platform(url, answer.headers)
        if answer.status != 200:  # ours, before it is ready; or it refuses this name of its host
            return Part(name, f"not ready (HTTP {answer.status})", url)
        is_ours = field in json.loads(answer.data)
    except urllib3.exceptions.HTTPError:
        return Part(name, "not started", url)
    except Conflict:
        return Part(name, "another platform answers", url)
    except (ValueError, TypeError):
        is_ours = False
    if is_ours:
        return Part(name, "up", url)
    return Part(name, f"another server answers (HTTP {answer.status})", url)


def _ray_place() -> str:
    """Return the address of the cluster; "" if there is none, or if it is not known."""
    from manybeam.cluster.joining import cluster_address

    try:
        return cluster_address()
    except ManybeamError:  # the check of this part gives the reason
        return ""


def _ray_answers() -> str:
    """Return the address of the cluster that answers; "" if none was started."""
    from manybeam.cluster.joining import check_token_is_needed, cluster_address, knock

    address = cluster_address()
    if address:
        knock(address)
        check_token_is_needed(address)
    return address


def _checked(name: str, check: Callable[[], str]) -> dict[str, object]:
    try:
        return {"check": name, "state": "ok", "found": check(), "try": ""}
    except ManybeamError as error:
        return {
            "check": name,
            "state": "failed",
            "found": "; ".join(part for part in (error.what, error.why) if part),
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


def _weights_answer() -> str:
    from manybeam.zoo.registry import Zoo

    Zoo().tracking.check_files()
    return "they can be listed"


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
    from manybeam.db.migrations import REVISION

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
    "ray": lambda: _ray_answers() or "not started: manybeam up starts it",
    "frame store": _store_answers,
    "zoo": _zoo_answers,
    "weights": _weights_answer,
    "database": _database_answers,
}

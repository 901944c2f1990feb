"""Migrations: the tables of a database are brought up to date, or back, step by step.

Each step is a module in `versions`. The table `manybeam_revision` of a database has its
last step. All steps of one upgrade are one transaction.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from manybeam.db.database import Database
from manybeam.db.migrations import REVISION, TABLE
from manybeam.errors import Conflict

if TYPE_CHECKING:
    from alembic.config import Config

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent


def bring_up_to_date(database: Database) -> None:
    """Give a database the newest tables; nothing is done if it has them.

    Raises:
        Conflict: a newer Manybeam made its tables.
    """
    if _is_new(database):
        found = ""
    else:
        with database.reading() as connection:
            found = revision(connection)
    if found != REVISION:
        move(database, "head")


def move(database: Database, to: str) -> None:
    """Bring a database's tables to a step, up or down; `head` is the newest, `base` before any.

    Raises:
        Conflict: a newer Manybeam made its tables, or the step is of a newer one.
    """
    from alembic import command

    steps = _steps()
    wanted = {"head": REVISION, "base": ""}.get(to, to)
    if wanted not in ("", *steps):
        raise Conflict(
            f"tables of step {wanted} are not known here",
            f"this Manybeam knows steps up to {REVISION}",
            "upgrade manybeam on this machine",
        )
    with database.changing_tables() as connection:
        found = revision(connection)  # once more: another process may just have done it
        if found not in ("", *steps):
            raise _newer(database.place, found)
        if found == wanted:
            return
        is_up = not found or (wanted in steps and steps.index(wanted) > steps.index(found))
        (command.upgrade if is_up else command.downgrade)(_config(connection), to)
    logger.info("database tables moved", extra={"before": found, "after": wanted})


def revision(connection: Connection) -> str:
    """Return the last step of a database; "" if there is none."""
    if not inspect(connection).has_table(TABLE):
        return ""
    found = connection.execute(text(f"SELECT version_num FROM {TABLE}"))  # noqa: S608 - ours
    return str(found.scalar() or "")


def _is_new(database: Database) -> bool:
    return database.path is not None and not database.path.exists()


def _steps() -> list[str]:
    """Return all steps, oldest first."""
    from alembic.script import ScriptDirectory

    walked = ScriptDirectory(str(FOLDER)).walk_revisions()
    return [one.revision for one in walked][::-1]


def _config(connection: Connection) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    return config


def _newer(place: str, found: str) -> Conflict:
    return Conflict(
        f"{place} has the tables of a newer Manybeam: step {found}",
        f"this one knows steps up to {REVISION}",
        "upgrade manybeam on this machine",
    )

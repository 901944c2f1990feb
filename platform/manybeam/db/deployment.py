"""The database of this deployment, opened once a process, with the newest tables."""

import threading

from manybeam.db.database import Database
from manybeam.db.migrations import migrate
from manybeam.db.owner import whoami
from manybeam.settings import settings

_opened: dict[str, Database] = {}
_opening = threading.Lock()


def open_database(url: str = "") -> Database:
    """Return the database of a URL; an older one is brought up to date first.

    Args:
        url: the settings' if left out.

    Raises:
        InvalidSetting: the URL cannot be used, or a shared zoo has no database of its own.
        Conflict: a newer Manybeam made its tables.
        DatabaseUnreachable, WriteFailed: it cannot be opened or brought up to date.
    """
    url = url or settings().database_address
    with _opening:
        if url not in _opened:
            database = Database(url)
            migrate.bring_up_to_date(database)
            _opened[url] = database
        return _opened[url]


def authenticated_name() -> str:
    """Return who uses this process, for the audit log: `ada@node7`.

    In PostgreSQL, the user who logged in to it comes first: `ada (ada@node7)`.
    """
    url = open_database().url
    user = url.username if url.get_backend_name() != "sqlite" else ""
    return f"{user} ({whoami()})" if user else whoami()


def close_databases() -> None:
    """Close the connections of every database of this process; they are opened again if needed."""
    with _opening:
        for database in _opened.values():
            database.close()

"""Records of the import of objects that older versions kept in the store; once for each kind."""

from sqlalchemy import Connection, insert, select

from manybeam.db.database import Database, now
from manybeam.db.tables import ImportRow


def is_imported(database: Database, kind: str) -> bool:
    """Whether the old objects of a kind were taken over, or there were none."""
    with database.reading() as connection:
        return is_marked(connection, kind)


def is_marked(connection: Connection, kind: str) -> bool:
    """Whether a kind is marked; asked again inside the block that would take it over."""
    found = connection.execute(select(ImportRow.kind).where(ImportRow.kind == kind))
    return found.scalar() is not None


def mark(connection: Connection, kind: str, place: str, *, count: int, unreadable: int) -> None:
    """Record that a kind was imported, in the same transaction.

    Args:
        connection: of that block.
        kind: of objects, as `audit`.
        place: the store they lay in.
        count: how many there were.
        unreadable: how many of them cannot be read.
    """
    row = {"kind": kind, "place": place, "count": count, "unreadable": unreadable}
    connection.execute(insert(ImportRow).values(row | {"done": now(connection)}))

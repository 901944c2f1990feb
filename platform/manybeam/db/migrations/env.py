"""What Alembic runs a step in; `migrate` hands it the connection."""

from alembic import context

from manybeam.db.migrations import TABLE
from manybeam.db.tables import DatabaseTable


def run() -> None:
    """Run the requested steps, on the connection and in the transaction of the caller."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=DatabaseTable.metadata,
        version_table=TABLE,
        render_as_batch=True,  # SQLite changes a table by making it anew
        compare_type=True,
    )
    context.run_migrations()


if __name__ == "env_py":  # the name under which Alembic runs it; other imports do nothing
    run()

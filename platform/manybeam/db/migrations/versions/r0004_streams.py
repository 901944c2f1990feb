"""The number of the newest stream of a session."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    """Bring the tables up."""
    op.add_column(
        "instrument_sessions",
        sa.Column("stream", sa.BigInteger(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    """Bring the tables back."""
    op.drop_column("instrument_sessions", "stream")

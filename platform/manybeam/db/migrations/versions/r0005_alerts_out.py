"""What became of the delivery of an alert."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0005", "0004"


def upgrade() -> None:
    """Bring the tables up."""
    for column in (
        sa.Column("delivered", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("next_try", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False, server_default=""),
    ):
        op.add_column("alerts", column)
    op.create_index(op.f("ix_alerts_next_try"), "alerts", ["next_try"], unique=False)


def downgrade() -> None:
    """Bring the tables back."""
    op.drop_index(op.f("ix_alerts_next_try"), table_name="alerts")
    for name in ("last_error", "next_try", "tries", "delivered"):
        op.drop_column("alerts", name)

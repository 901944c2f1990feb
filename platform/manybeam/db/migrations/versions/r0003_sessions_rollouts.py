"""Frames of sessions, weights of instruments, and versions under traffic."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Bring the tables up."""
    op.add_column(
        "instruments", sa.Column("weight", sa.Double(), nullable=False, server_default="1")
    )
    for name, kind, value in (
        ("settings", sa.JSON(), "{}"),
        ("state", sa.JSON(), "{}"),
        ("revision", sa.Integer(), "1"),
    ):
        column = sa.Column(name, kind, nullable=False, server_default=value)
        op.add_column("instrument_sessions", column)
    _make_session_frames()
    _make_rollouts()
    _make_rollout_comparisons()


def downgrade() -> None:
    """Bring the tables back."""
    op.drop_table("rollout_comparisons")
    op.drop_index(op.f("ix_rollouts_ensemble"), table_name="rollouts")
    op.drop_table("rollouts")
    op.drop_index("ix_session_frames_session_id_at", table_name="session_frames")
    op.drop_table("session_frames")
    for name in ("revision", "state", "settings"):
        op.drop_column("instrument_sessions", name)
    op.drop_column("instruments", "weight")


def _make_session_frames() -> None:
    op.create_table(
        "session_frames",
        sa.Column("session_id", sa.Integer(), nullable=False),
        sa.Column("frame_id", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("members", sa.JSON(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["instrument_sessions.id"],
            name=op.f("fk_session_frames_session_id"),
        ),
        sa.PrimaryKeyConstraint("session_id", "frame_id", name=op.f("pk_session_frames")),
    )
    op.create_index(
        "ix_session_frames_session_id_at", "session_frames", ["session_id", "at"], unique=False
    )


def _make_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ensemble", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("instruments", sa.JSON(), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_index(op.f("ix_rollouts_ensemble"), "rollouts", ["ensemble"], unique=False)


def _make_rollout_comparisons() -> None:
    op.create_table(
        "rollout_comparisons",
        sa.Column("rollout_id", sa.Integer(), nullable=False),
        sa.Column("instrument", sa.Text(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("sums", sa.JSON(), nullable=False),
        sa.Column("changed", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_rollout_comparisons_rollout_id")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "instrument", name=op.f("pk_rollout_comparisons")),
    )

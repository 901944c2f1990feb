"""The tables of the database, one class each.

Times are UTC. Tables for people and jobs are not used yet; they exist so that the next versions
need no new tables in a database that is in use.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Moment(TypeDecorator[datetime]):
    """A time in UTC on every database; SQLite does not store the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return what is stored; raises ValueError for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return a stored time with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class DatabaseTable(DeclarativeBase):
    """The base of all tables."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it
        datetime: Moment(),
        str: Text(),
        bytes: LargeBinary(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
        list[int]: JSON(),
    }


# -- kept since the first version ---------------------------------------------------------------
class AuditHead(DatabaseTable):
    """One row: the last record of the audit log. A writer locks it to append."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    sha256: Mapped[str]


class AuditRecord(DatabaseTable):
    """One record; digests are of `content`, the other columns are for searches."""

    __tablename__ = "audit_records"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[bytes]
    sha256: Mapped[str]
    ensemble: Mapped[str] = mapped_column(index=True)
    subject: Mapped[str]
    written: Mapped[datetime]  # by the database's clock


class LockRow(DatabaseTable):
    """One lock; free if `token` is empty. The row stays, so that `fence` only grows."""

    __tablename__ = "locks"

    name: Mapped[str] = mapped_column(primary_key=True)
    fence: Mapped[int]
    machine: Mapped[str]
    pid: Mapped[int]
    started: Mapped[float]
    token: Mapped[str]
    who: Mapped[str]
    purpose: Mapped[str]
    taken: Mapped[datetime]
    expires: Mapped[datetime]


class PreferenceRow(DatabaseTable):
    """A preference; one that was taken back keeps its row."""

    __tablename__ = "preferences"

    id: Mapped[str] = mapped_column(primary_key=True)
    ensemble: Mapped[str] = mapped_column(index=True)
    version: Mapped[int]
    made: Mapped[str]  # UTC, ISO 8601, by the clock of who chose
    content: Mapped[str]
    retracted_by: Mapped[str | None]
    retracted: Mapped[datetime | None]


class PredictionRow(DatabaseTable):
    """The URL of answers of a version."""

    __tablename__ = "predictions"

    id: Mapped[int] = mapped_column(primary_key=True)
    ref: Mapped[str] = mapped_column(index=True)
    url: Mapped[str]
    made: Mapped[datetime]


class ImportRow(DatabaseTable):
    """The import of the objects of an older version, once for each kind."""

    __tablename__ = "imports"

    kind: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[str]
    count: Mapped[int]
    unreadable: Mapped[int]
    done: Mapped[datetime]


# -- people, instruments and their tokens -------------------------------------------------------
class PersonRow(DatabaseTable):
    """A person who logs in; `issuer` and `subject` are those of their OIDC identity."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str]
    issuer: Mapped[str]
    subject: Mapped[str]
    created: Mapped[datetime]
    disabled: Mapped[datetime | None]


class RoleRow(DatabaseTable):
    """A role of a person: viewer, instrument, trainer, curator or admin."""

    __tablename__ = "roles"

    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    granted_by: Mapped[str]
    granted: Mapped[datetime]


class GroupRow(DatabaseTable):
    """A group of people that shares a quota."""

    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created: Mapped[datetime]


class MembershipRow(DatabaseTable):
    """Who belongs to a group."""

    __tablename__ = "memberships"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True, index=True)


class QuotaRow(DatabaseTable):
    """How much of a resource (`gpus`, `cpus`, `jobs`, `gpu_hours`) a group may use at once."""

    __tablename__ = "quotas"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id"), primary_key=True)
    resource: Mapped[str] = mapped_column(primary_key=True)
    most: Mapped[float]
    set_by: Mapped[str]
    changed: Mapped[datetime]


class InstrumentRow(DatabaseTable):
    """A microscope that asks for answers."""

    __tablename__ = "instruments"

    id: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    created: Mapped[datetime]
    retired: Mapped[datetime | None]
    weight: Mapped[float] = mapped_column(server_default="1")  # its share where several wait


class TokenRow(DatabaseTable):
    """A token; only the SHA-256 of its text is stored."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    person_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    instrument_id: Mapped[str | None] = mapped_column(ForeignKey("instruments.id"))
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    last_used: Mapped[datetime | None]


# -- jobs -----------------------------------------------------------------------------------------
class JobRow(DatabaseTable):
    """One job in the queue, at work or ended; `spec` is the job as it was submitted.

    `reason` says why it waits or failed, `engine_ref` names it in the engine that runs it.
    """

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str]
    spec: Mapped[dict[str, Any]]
    ensemble: Mapped[str]
    priority: Mapped[int]
    group_id: Mapped[int | None] = mapped_column(ForeignKey("groups.id"))
    submitted_by: Mapped[str]
    engine: Mapped[str]
    engine_ref: Mapped[str]
    attempt: Mapped[int]
    result: Mapped[str]
    submitted: Mapped[datetime]
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]


class JobEventRow(DatabaseTable):
    """One line of what happened to a job; `member` is None for the whole."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), index=True)
    at: Mapped[datetime]
    kind: Mapped[str]
    member: Mapped[int | None]
    text: Mapped[str]
    values: Mapped[dict[str, Any]]


# -- instruments at work -------------------------------------------------------------------------
class SessionRow(DatabaseTable):
    """A session of an instrument: the version and members that answer, and who chose them.

    `settings` are those that the caller gave, `state` is what the service chose since; `revision`
    grows with each change of either, so that no change is lost.
    """

    __tablename__ = "instrument_sessions"

    id: Mapped[int] = mapped_column(primary_key=True)
    instrument_id: Mapped[str] = mapped_column(ForeignKey("instruments.id"), index=True)
    policy: Mapped[str]  # auto or pinned
    ref: Mapped[str]
    members: Mapped[list[int]]
    budget_ms: Mapped[int | None]
    settings: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    state: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    revision: Mapped[int] = mapped_column(server_default="1")
    started: Mapped[datetime]
    ended: Mapped[datetime | None]
    # The number of its newest stream.
    stream: Mapped[int] = mapped_column(BigInteger, server_default="0")


class SessionFrameRow(DatabaseTable):
    """A frame that a session answered: who answered it, and why."""

    __tablename__ = "session_frames"
    __table_args__ = (Index("ix_session_frames_session_id_at", "session_id", "at"),)

    session_id: Mapped[int] = mapped_column(ForeignKey("instrument_sessions.id"), primary_key=True)
    frame_id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    digest: Mapped[str]  # of the request, so that no other one has the same name
    ref: Mapped[str]
    members: Mapped[list[int]]
    values: Mapped[dict[str, Any]]


class SessionEventRow(DatabaseTable):
    """A change of a session between two frames, and why."""

    __tablename__ = "session_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("instrument_sessions.id"), index=True)
    at: Mapped[datetime]
    kind: Mapped[str]
    frame_id: Mapped[str]
    ref: Mapped[str]
    members: Mapped[list[int]]
    why: Mapped[str]


class AlertRow(DatabaseTable):
    """Something a person should check; open until it is acknowledged.

    Its message is sent if `next_try` is set, and again until `delivered` is.
    """

    __tablename__ = "alerts"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    kind: Mapped[str]
    level: Mapped[str]
    subject: Mapped[str]
    instrument_id: Mapped[str | None] = mapped_column(ForeignKey("instruments.id"))
    session_id: Mapped[int | None] = mapped_column(ForeignKey("instrument_sessions.id"))
    text: Mapped[str]
    values: Mapped[dict[str, Any]]
    acknowledged_by: Mapped[str | None]
    acknowledged: Mapped[datetime | None]
    delivered: Mapped[datetime | None]
    tries: Mapped[int] = mapped_column(server_default="0")
    next_try: Mapped[datetime | None] = mapped_column(index=True)
    last_error: Mapped[str] = mapped_column(server_default="")


# -- versions under traffic ----------------------------------------------------------------------
class RolloutRow(DatabaseTable):
    """A version that runs beside the one that serves (shadow), or answers a share (canary)."""

    __tablename__ = "rollouts"

    id: Mapped[int] = mapped_column(primary_key=True)
    ensemble: Mapped[str] = mapped_column(index=True)
    ref: Mapped[str]  # the new version
    base: Mapped[str]  # the version that served at the start
    kind: Mapped[str]  # shadow or canary
    share: Mapped[float]
    instruments: Mapped[list[str]]  # all if empty
    started: Mapped[datetime]
    started_by: Mapped[str]
    ended: Mapped[datetime | None]
    ended_by: Mapped[str | None]
    outcome: Mapped[str]  # promoted, rolled back or "" while it goes on


class RolloutComparisonRow(DatabaseTable):
    """How the two versions of a rollout answered the frames of one instrument, as sums."""

    __tablename__ = "rollout_comparisons"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    instrument: Mapped[str] = mapped_column(primary_key=True)  # "" for callers without one
    frames: Mapped[int]
    sums: Mapped[dict[str, Any]]
    changed: Mapped[datetime]

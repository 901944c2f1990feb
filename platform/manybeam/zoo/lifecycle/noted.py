"""Records in the audit log of what was done to a version, beside the changes of its aliases.

A registration, an import, a measurement, a calibration and a signature cannot be undone by the
log, so they are recorded when they are done.
"""

from typing import TYPE_CHECKING, Any

from manybeam.db.deployment import authenticated_name
from manybeam.errors import ManybeamError
from manybeam.zoo.older_objects import audit_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manybeam.zoo.matrix import Score
    from manybeam.zoo.records import Record

REGISTERED, IMPORTED, MEASURED = "registered", "imported", "measured"
CALIBRATED, SIGNED = "calibrated", "signed"


def note(action: str, ref: str, *, who: str = "", reason: str = "", **details: Any) -> None:
    """Record what was done to a version.

    Args:
        action: what was done.
        ref: the version.
        who: the person; if left out, as the database or the system knows them.
        reason: what the person says about it.
        details: other facts, as plain data.

    Raises:
        ManybeamError: it was done, but the log could not be written.
    """
    try:
        name = who or authenticated_name()
        audit_log().append(action, ref, who=name, reason=reason, details=details)
    except ManybeamError as error:
        what = f"{ref}: done ({action}), but not in the audit log: {error.what}"
        raise type(error)(what, error.why, error.hint) from error


def note_registered(record: "Record", action: str = REGISTERED) -> None:
    """Record that a version was registered, or imported."""
    job = record.job
    origin = {key: job[key] for key in ("form", "source") if key in job}
    note(
        action,
        record.version_ref,
        job=str(job.get("kind", "")),
        members=record.member_count,
        parent=record.parent,
        sha256=record.sha256,
        **origin,
    )


def note_measured(record: "Record", scores: "Sequence[Score]") -> None:
    """Record on which conditions a version was measured."""
    conditions = list(dict.fromkeys(score.condition for score in scores))
    note(MEASURED, record.ref, conditions=conditions, scores=len(scores))

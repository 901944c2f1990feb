"""Calibration sets, attached to the versions they were measured with."""

from typing import TYPE_CHECKING

from manybeam.zoo.matrix import SELECTED, Score
from manybeam.zoo.registration import ATTACHED_TAG

if TYPE_CHECKING:
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.records import VersionEntry
    from manybeam.zoo.registration import Attachment
    from manybeam.zoo.registry import Zoo

KIND = "reference-table"  # the old name; versions of the zoo hold it


def digest_of(entry: "VersionEntry | None") -> str:
    """Return the digest of the calibration set of a version; "" if it was never calibrated."""
    _, _, rest = (entry.tags if entry else {}).get(ATTACHED_TAG + KIND, "").partition(" ")
    return rest.partition(" ")[0]


def is_current(score: Score, calibration: str) -> bool:
    """Return whether a score holds for a version with this calibration set.

    Another set selects other members, so an earlier score of the selected members says nothing
    any more. Scores that do not name their set count.
    """
    return score.member != SELECTED or score.calibration in ("", calibration)


def record_calibration_set(
    zoo: "Zoo", ref: str, table: "CalibrationSet", policies: tuple[str, ...]
) -> str:
    """Attach the calibration set of an ensemble to its version; return its digest."""
    one = attachment_of(table, policies)
    return zoo.attach(ref, one.kind, one.content, one.params)


def attachment_of(table: "CalibrationSet", policies: tuple[str, ...]) -> "Attachment":
    """Return a calibration set as an attachment of a version."""
    from manybeam.zoo.registration import Attachment

    params = {"frames": str(len(table)), "policies": ", ".join(policies)}
    return Attachment(KIND, table.to_bytes(), params)

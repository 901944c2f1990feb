"""Calibration sets, attached to the versions they were measured with."""

from typing import TYPE_CHECKING

from manybeam.zoo.registration import CALIBRATION_KIND

if TYPE_CHECKING:
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.registration import Attachment
    from manybeam.zoo.registry import Zoo

KIND = CALIBRATION_KIND


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

"""Scores of the selected members: they hold for one calibration set only."""

from manybeam.zoo.matrix import SELECTED, Score
from manybeam.zoo.records import VersionEntry
from manybeam.zoo.registration import ATTACHED_TAG, CALIBRATION_KIND


def digest_of(entry: VersionEntry | None) -> str:
    """Return the digest of the calibration set of a version; "" if it was never calibrated."""
    _, _, rest = (
        (entry.tags if entry else {}).get(ATTACHED_TAG + CALIBRATION_KIND, "").partition(" ")
    )
    return rest.partition(" ")[0]


def is_current(score: Score, calibration: str) -> bool:
    """Return whether a score holds for a version with this calibration set.

    Another set selects other members, so an earlier score of the selected members says nothing
    any more. Scores that do not name their set count.
    """
    return score.member != SELECTED or score.calibration in ("", calibration)

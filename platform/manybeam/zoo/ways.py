"""The ways to answer frames with an ensemble: all members, the selected ones, the best one."""

from collections.abc import Iterator
from dataclasses import dataclass

from manybeam.zoo.calibration_sets import KIND
from manybeam.zoo.matrix import ENSEMBLE, SELECTED, Matrix, is_simulated
from manybeam.zoo.records import Record, VersionEntry
from manybeam.zoo.registration import ATTACHED_TAG


@dataclass(frozen=True)
class Way:
    """One way to answer, and what it reaches.

    Attributes:
        name: its name.
        meaning: who answers, in a few words.
        f1: mean F1; None if it was not measured on every compared condition.
    """

    name: str
    meaning: str
    f1: float | None


def ways_of(record: Record, matrix: Matrix) -> Iterator[Way]:
    """Yield the ways to answer with a version; nothing for one member, or without scores."""
    if record.selected is not None or record.member_count < 2 or not len(matrix):
        return
    yield Way("All members", "they answer every frame together", matrix.mean(ENSEMBLE))
    yield Way("Selected", "the members chosen for each frame", matrix.mean(SELECTED))
    meaning = "of each condition, known only from its true atoms"
    yield Way("Best member", meaning, matrix.mean_of_best())


def commands_to_measure(entry: VersionEntry) -> tuple[str, ...]:
    """Return the commands that measure the selected members of a version.

    Selection is measured after a calibration only: without one it would rest on the very scores
    that it is measured with.
    """
    is_calibrated = f"{ATTACHED_TAG}{KIND}" in entry.tags
    evaluate = f"manybeam evaluate {entry.ref}"
    return (evaluate,) if is_calibrated else (f"manybeam calibrate {entry.ref}", evaluate)


def measured_on(matrix: Matrix) -> str:
    """Return the number of conditions of a mean, and whether their frames are simulated.

    Example:
        >>> from manybeam.zoo.matrix import Score
        >>> measured_on(Matrix([Score(0, "dim", "0a1b-3", {"f1": 0.9})]))
        'simulated frames of 1 condition'
    """
    names = matrix.conditions
    made, count = sum(is_simulated(matrix.condition_digest(name)) for name in names), len(names)
    conditions = f"{count} condition{'s' * (count != 1)}"
    if made == count:
        return f"simulated frames of {conditions}"
    if not made:
        return f"labelled frames of {conditions}"
    return f"{conditions}, {made} of simulated and {count - made} of labelled frames"

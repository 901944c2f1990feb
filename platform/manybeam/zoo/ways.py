"""The ways to answer frames with an ensemble: all members, the selected ones, the best one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from manybeam.zoo.matrix import ENSEMBLE, SELECTED, Matrix, is_simulated
from manybeam.zoo.records import Record, VersionEntry
from manybeam.zoo.selected_scores import digest_of


@dataclass(frozen=True)
class Way:
    """One way to answer, and what it reaches.

    Attributes:
        row: its row in a matrix; None for the best member, which differs between conditions.
        name: its name.
        meaning: who answers, in a few words.
        f1: mean F1; None if it was not measured on every condition of the means.
    """

    row: int | None
    name: str
    meaning: str
    f1: float | None


@dataclass(frozen=True)
class Ways:
    """The ways to answer with a version, compared.

    Attributes:
        each: the ways; empty for one member, or without scores.
        conditions: the conditions of the means.
        commands: commands that measure the selected members; empty if they were measured.
        note: on which conditions the selected members cannot be measured, and why; "" if on none.
    """

    each: tuple[Way, ...] = ()
    conditions: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    note: str = ""

    def f1_of(self, row: int) -> float | None:
        """Return the mean F1 of the way of a row; None if it is not known."""
        return next((way.f1 for way in self.each if way.row == row), None)


def ways_of(record: Record, matrix: Matrix, entry: VersionEntry | None) -> Ways:
    """Return the ways to answer with a version.

    Where members cannot be selected, no command helps. The means leave such conditions out, and
    the note names them.

    Args:
        record: the version.
        matrix: its scores.
        entry: the version in the listing of the zoo; without it, no command is given.
    """
    if record.selected is not None or record.member_count < 2 or not len(matrix):
        return Ways()
    compared = matrix.compared_on()
    lacking = [name for name in compared if matrix.value(SELECTED, name) is None]
    closed = [name for name in lacking if _is_closed(matrix, name, digest_of(entry))]
    names = tuple(name for name in compared if name not in closed) or compared
    each = (
        Way(
            ENSEMBLE,
            "All members",
            "they answer every frame together",
            matrix.mean(ENSEMBLE, among=names),
        ),
        Way(
            SELECTED,
            "Selected",
            "the members chosen for each frame",
            matrix.mean(SELECTED, among=names),
        ),
        Way(
            None,
            "Best member",
            "of each condition, known only from its true atoms",
            matrix.mean_of_best(among=names),
        ),
    )
    wanted = [name for name in lacking if name not in closed]
    commands = _commands(record, matrix, entry, wanted) if entry and wanted else ()
    return Ways(each, names, commands, _note(record, closed, names))


def _is_closed(matrix: Matrix, condition: str, calibration: str) -> bool:
    """Return whether the selected members cannot be measured on a condition.

    Either it was tried with the present calibration set, or its labelled frames are not known.
    """
    score = matrix.score(ENSEMBLE, condition)
    if calibration and score is not None and score.calibration == calibration:
        return True
    return not is_simulated(matrix.condition_digest(condition)) and not _frames(matrix, condition)


def _frames(matrix: Matrix, condition: str) -> tuple[str, ...]:
    """Return the URLs of the labelled frames of a condition."""
    score = matrix.score(ENSEMBLE, condition)
    known = score.test_set if score is not None else None
    return tuple(use.url for use in known.frame_sets) if known else ()


def _note(record: Record, closed: Sequence[str], names: Sequence[str]) -> str:
    if not closed:
        return ""
    others = len(names) if set(names).isdisjoint(closed) else 0
    means = f"; the means are over the other {others}" if others else ""
    return (
        f"members cannot be selected on {', '.join(closed)}{means}: the frames are under 48 px, "
        "without a pixel size, or not known any more, or the calibration set is of other members "
        f"(then: manybeam calibrate {record.version_ref})"
    )


def _commands(
    record: Record, matrix: Matrix, entry: VersionEntry, wanted: Sequence[str]
) -> tuple[str, ...]:
    """Return the commands that measure the selected members on some conditions.

    Selection is measured after a calibration only: without one it would rest on the very scores
    that it is measured with.
    """
    made = [name for name in wanted if is_simulated(matrix.condition_digest(name))]
    urls = dict.fromkeys(
        url for name in wanted if name not in made for url in _frames(matrix, name)
    )
    first = record.job.get("measure") or {}
    is_first = (
        len(wanted) == len(matrix.compared_on())
        and all(any(fnmatchcase(c, one) for one in first.get("conditions", ())) for c in made)
        and set(urls) <= set(first.get("frames", ()))
    )
    named = [f"--conditions {name}" for name in made] + [f"--frames '{url}'" for url in urls]
    counts = [len(one.counts) for name in made if (one := matrix.score(ENSEMBLE, name))]
    count = [f"--count {max(counts)}"] if any(counts) else []
    words = ["manybeam evaluate", entry.ref, *([] if is_first else named), *count]
    evaluate = " ".join(words)
    return (evaluate,) if digest_of(entry) else (f"manybeam calibrate {entry.ref}", evaluate)


def measured_on(matrix: Matrix, names: Iterable[str]) -> str:
    """Return the number of conditions of a mean, and whether their frames are simulated.

    Example:
        >>> from manybeam.zoo.matrix import Score
        >>> measured_on(Matrix([Score(0, "dim", "0a1b-3", {"f1": 0.9})]), ["dim"])
        'simulated frames of 1 condition'
    """
    is_made = [is_simulated(matrix.condition_digest(name)) for name in names]
    made, count = sum(is_made), len(is_made)
    conditions = f"{count} condition{'s' * (count != 1)}"
    if made == count:
        return f"simulated frames of {conditions}"
    if not made:
        return f"labelled frames of {conditions}"
    return f"{conditions}, {made} of simulated and {count - made} of labelled frames"

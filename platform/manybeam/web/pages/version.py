"""The content of the page of a version: members x conditions, and scores by condition."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from manybeam.errors import NotFound
from manybeam.web.colours import shade
from manybeam.web.render import page_of
from manybeam.web.version_cache import CachedVersion
from manybeam.zoo.matrix import (
    CLASSICAL,
    ENSEMBLE,
    SELECTED,
    Matrix,
    less_is_better,
    member_label,
)

# Ends of intervals; they are shown with their score and cannot be chosen.
_ENDS = ("_low", "_high")
_COUNTS = ("frames", "atoms", "seconds")
_BETWEEN_0_AND_1 = ("f1", "precision", "recall", "ece", "brier")


@dataclass(frozen=True)
class MatrixCell:
    """One score of the matrix.

    Attributes:
        value: the score; None if it was not measured.
        shade: class of its colour.
        is_best: whether no member is better on the condition.
        text: value, interval, frames and date in words.
        example: address of an example frame with its errors; "" if there is none.
    """

    value: float | None
    shade: str
    is_best: bool
    text: str
    example: str = ""


@dataclass(frozen=True)
class Line:
    """One row of the matrix: all members, the selected ones, a member or the classical detector.

    Attributes:
        label: its name on the page.
        kind: its name in scores; the index for a member.
        ref: reference of a member; "" for other rows.
        seed, policy: of a member.
        cells: one for each condition.
        mean: over the compared conditions; None if it was not measured on all of them.
    """

    label: str
    kind: str
    ref: str
    seed: int | None
    policy: str
    cells: tuple[MatrixCell, ...]
    mean: float | None


@dataclass(frozen=True)
class ConditionScores:
    """The scores of the ensemble, or of the one member shown, on one condition."""

    condition: str
    digest: str
    values: dict[str, float]
    taken: datetime | None
    scorer: str


@dataclass(frozen=True)
class Superseded:
    """Scores on a condition from before its numbers changed."""

    condition: str
    digest: str
    label: str
    value: float | None
    row_count: int
    taken: datetime | None


@dataclass(frozen=True)
class VersionPage:
    """All scores of a version, ready for its page.

    Attributes:
        key: the chosen score.
        keys: scores that can be chosen.
        conditions: columns of the matrix.
        lines: rows: all members, those selected, then the members, then the classical detector.
        spots: scores of the ensemble, by condition.
        superseded: old scores, which cannot be compared with the others.
        compared: the conditions of the means.
    """

    key: str
    keys: tuple[str, ...]
    conditions: tuple[str, ...]
    lines: tuple[Line, ...]
    spots: tuple[ConditionScores, ...]
    superseded: tuple[Superseded, ...]
    compared: tuple[str, ...] = ()

    @property
    def has_selected(self) -> bool:
        """Whether the selected members were measured on some condition."""
        own = [line for line in self.lines if line.kind == member_label(SELECTED)]
        return any(cell.value is not None for line in own for cell in line.cells)

    @property
    def plot(self) -> dict[str, Any]:
        """Data of the plot: the score of each row on each condition, and the interval."""
        low, high = ([spot.values.get(f"{self.key}{end}") for spot in self.spots] for end in _ENDS)
        named = [line for line in self.lines if line.seed is None]
        members = [line for line in self.lines if line.seed is not None]
        return {
            "key": self.key,
            "conditions": list(self.conditions),
            "low": low,
            "high": high,
            "lines": [
                {"label": line.kind, "values": [cell.value for cell in line.cells]}
                for line in (*members, *named)
                if any(cell.value is not None for cell in line.cells)
            ],
        }


def describe_version(cached: CachedVersion, key: str = "f1") -> VersionPage:
    """Return the content of the page of a version.

    Raises:
        NotFound: there is no score of that name.
    """
    matrix = cached.matrix
    keys = choosable(matrix.keys)
    if keys and key not in keys:
        raise NotFound(
            f"there is no score {key!r}",
            "a recorded score is needed",
            f"recorded: {', '.join(keys)}",
        )
    lines = tuple(_line(cached, member, key) for member in _order(cached))
    subject = cached.record.subject
    spots = tuple(_scores_on(matrix, subject, condition) for condition in matrix.conditions)
    old, compared = tuple(_superseded(matrix, key)), matrix.compared_on(key)
    return VersionPage(key, keys, matrix.conditions, lines, spots, old, compared)


def choosable(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the scores that can be chosen: F1 first, without ends of intervals and counts."""
    found = [key for key in keys if not key.endswith(_ENDS) and key not in _COUNTS]
    return tuple(sorted(found, key=lambda key: (key != "f1", key)))


def _order(cached: CachedVersion) -> tuple[int, ...]:
    """Return the rows from top to bottom; the first two are included even if not measured."""
    if cached.record.selected is not None:
        return (cached.record.selected,)
    classical = (CLASSICAL,) if CLASSICAL in cached.matrix.scored else ()
    selected = (SELECTED,) if cached.record.member_count > 1 else ()
    return (ENSEMBLE, *selected, *cached.matrix.members, *classical)


def _line(cached: CachedVersion, member: int, key: str) -> Line:
    matrix = cached.matrix
    low, high = scale(matrix, key)
    cells = tuple(
        MatrixCell(
            value := matrix.value(member, condition, key),
            shade(value, low, high),
            is_best=_is_best(matrix, member, condition, key),
            text=_text(matrix, member, condition, key),
            example=_example(cached, member, condition),
        )
        for condition in matrix.conditions
    )
    known = next((one for one in cached.record.members if one.index == member), None)
    ref = f"{cached.record.version_ref}/{member:02d}" if known else ""
    seed, policy = (known.seed, known.policy) if known else (None, "")
    label = "all members" if member == ENSEMBLE else member_label(member)
    return Line(label, member_label(member), ref, seed, policy, cells, matrix.mean(member, key))


def _is_best(matrix: Matrix, member: int, condition: str, key: str) -> bool:
    """Return whether no other member is better; equal members are all best."""
    best = matrix.best(condition, key)
    if len(matrix.members) < 2 or best is None or member not in matrix.members:
        return False
    return matrix.value(member, condition, key) == matrix.value(best, condition, key)


def _example(cached: CachedVersion, member: int, condition: str) -> str:
    """Return the address of an example frame; "" if there is none."""
    score = cached.matrix.score(member, condition)
    if score is None or not (score.counts or score.values.get("frames")):
        return ""
    if member == CLASSICAL and not score.detector:
        return ""
    page = f"{page_of(cached.record.version_ref)}/example/{quote(condition)}"
    return page if member == ENSEMBLE else f"{page}?member={member:02d}"


def scale(matrix: Matrix, key: str) -> tuple[float, float]:
    """Return the values of the darkest and the lightest colour; the lightest is the best."""
    if key in _BETWEEN_0_AND_1 and not less_is_better(key):
        return 0.0, 1.0
    seen = [v for m in matrix.scored for c in matrix.conditions if (v := matrix.value(m, c, key))]
    if not seen:
        return 0.0, 1.0
    return (max(seen), min(seen)) if less_is_better(key) else (min(seen), max(seen))


def _text(matrix: Matrix, member: int, condition: str, key: str) -> str:
    values, score = matrix.values(member, condition), matrix.score(member, condition)
    if key not in values:
        return f"{condition}: not measured"
    text = f"{condition}: {values[key]:.3f}"
    if f"{key}_low" in values and f"{key}_high" in values:
        text += f", 95 % interval {values[f'{key}_low']:.3f} to {values[f'{key}_high']:.3f}"
    if "frames" in values:
        text += f", {values['frames']:.0f} frames"
    return text + (f", {score.taken:%Y-%m-%d}" if score and score.taken else "")


def _scores_on(matrix: Matrix, member: int, condition: str) -> ConditionScores:
    score = matrix.score(member, condition)
    taken, scorer = (score.taken, score.scorer) if score else (None, "")
    digest, values = matrix.condition_digest(condition), matrix.values(member, condition)
    return ConditionScores(condition, digest, values, taken, scorer)


def _superseded(matrix: Matrix, key: str) -> Iterable[Superseded]:
    for condition, digest in matrix.superseded:
        then = matrix.at(condition, digest)
        member = _subject(then.scored)
        taken = max((row.taken for row in then.rows if row.taken), default=None)
        value, label = then.value(member, condition, key), member_label(member)
        measured = {row.member for row in then.rows}
        yield Superseded(condition, digest, label, value, len(measured), taken)


def _subject(scored: Sequence[int]) -> int:
    """Return the row that represents a version: the ensemble if it was measured."""
    return ENSEMBLE if ENSEMBLE in scored else scored[0]

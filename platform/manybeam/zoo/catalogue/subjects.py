"""The rows of a version in the catalogue: one for the ensemble and one for each member."""

from collections.abc import Callable, Iterable, Sequence

from manybeam.db.catalogue_file import FRAMES, TAKEN, SubjectRows, VersionRows
from manybeam.zoo.catalogue.words import words_of
from manybeam.zoo.matrix import BEST_F1, ENSEMBLE, SELECTED, SELECTED_F1, Matrix, Score
from manybeam.zoo.records import ALIASES, MemberRecord, Record, VersionEntry

Key = tuple[str, str]


def rows_of(
    entry: VersionEntry,
    record: Record,
    scores: Sequence[Score],
    words_of_key: Callable[[str, str], str],
) -> VersionRows:
    """Return the rows of one version.

    Args:
        entry: its entry in MLflow.
        record: its record.
        scores: all its scores, oldest first.
        words_of_key: returns the words for the search, from id and digest of a condition.
    """
    keys = dict.fromkeys((row.condition, row.condition_digest) for row in scores)
    job = (record.job.get("kind", ""), record.job.get("recipe", ""))
    own = (entry.ref, record.parent, *entry.aliases, *map(str, job))
    common = words_of([*own, *(words_of_key(*key) for key in keys)])
    groups = [(ENSEMBLE, record.members), *((one.index, (one,)) for one in record.members)]
    return VersionRows(
        entry.place,
        entry.state,
        status_of(record, entry.aliases),
        entry.aliases,
        record.created.timestamp(),
        tuple(_subject(index, members, scores, common) for index, members in groups),
    )


def status_of(record: Record, aliases: Iterable[str]) -> str:
    """Return the status of a version: that of its first alias, else `archived` or `none`."""
    own = [alias for alias in ALIASES if alias in aliases]
    return own[0] if own else "archived" if record.archived else "none"


def _subject(
    index: int, members: Sequence[MemberRecord], scores: Sequence[Score], common: str
) -> SubjectRows:
    facets = (
        _distinct(member.recipe for member in members),
        _distinct(str(member.network.get("name", "")) for member in members),
        _distinct(member.policy for member in members),
    )
    own = [score for score in scores if score.member == index]
    words = [common, *(value for values in facets for value in values)]
    if index != ENSEMBLE:
        words += [f"{index:02d}", members[0].parent]
    cells = _cells(own)
    if index == ENSEMBLE:
        cells |= _other_ways(scores, {(one.condition, one.condition_digest) for one in own})
    scorers = {(one.condition, one.condition_digest): one.scorer for one in own}
    return SubjectRows(index, facets, words_of(words), cells, scorers)


def _cells(scores: Iterable[Score]) -> dict[str, dict[Key, float]]:
    """Return every value by score and condition; a later score replaces an earlier one's values."""
    cells: dict[str, dict[Key, float]] = {}
    for one in scores:
        frames = float(len(one.counts)) if one.counts else one.values.get("frames")
        extra = {TAKEN: one.taken.timestamp() if one.taken else 0.0}
        if frames is not None:
            extra[FRAMES] = frames
        for name, value in {**one.values, **extra}.items():
            cells.setdefault(name, {})[one.condition, one.condition_digest] = value
    return cells


def _other_ways(scores: Sequence[Score], measured: set[Key]) -> dict[str, dict[Key, float]]:
    """Return F1 of the selected and of the best members, where all together were measured too."""
    rows: dict[Key, list[Score]] = {}
    for one in scores:
        if (one.condition, one.condition_digest) in measured:
            rows.setdefault((one.condition, one.condition_digest), []).append(one)
    found: dict[str, dict[Key, float]] = {SELECTED_F1: {}, BEST_F1: {}}
    for key, there in rows.items():
        matrix = Matrix(there)
        for score, row in ((SELECTED_F1, SELECTED), (BEST_F1, matrix.best(key[0]))):
            value = None if row is None else matrix.value(row, key[0])
            if value is not None:
                found[score][key] = value
    return {score: cells for score, cells in found.items() if cells}


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value}))

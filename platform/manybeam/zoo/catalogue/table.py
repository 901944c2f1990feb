"""The catalogue's rows as columns in memory, so that any filter and any order takes milliseconds.

Axis letters: s subject (a row: an ensemble's version or a member), p place of a condition in the
strips.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from manybeam.db.catalogue_file import TAKEN, CatalogueReader
from manybeam.zoo.catalogue.rows import FACETS, Facet, Query
from manybeam.zoo.catalogue.words import query_of
from manybeam.zoo.matrix import ENSEMBLE, less_is_better
from manybeam.zoo.ranking import Ranking

_CELLS_KEPT = 6  # scores kept in memory: 10,000 rows on 200 conditions take 16 MB each


@dataclass(frozen=True)
class Column:
    """One facet of all rows: a number for each row, and the values of each number."""

    codes_s: ndarray
    values: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Column":
        """Return the column of texts with one value in each line."""
        numbers: dict[str, int] = {}
        codes = [numbers.setdefault(text, len(numbers)) for text in texts]
        sets = tuple(frozenset(text.split("\n")) - {""} for text in numbers)
        return cls(np.array(codes, dtype=np.intp), sets)

    def has_any(self, query: Sequence[str]) -> ndarray:
        """Return which rows have one of the values."""
        among = frozenset(query)
        allowed = np.array([not among.isdisjoint(values) for values in self.values], dtype=bool)
        return np.asarray(allowed[self.codes_s])

    def counts(self, is_in_s: ndarray) -> dict[str, int]:
        """Return the number of rows with each value, without values of no row."""
        found: dict[str, int] = {}
        for code, count in enumerate(np.bincount(self.codes_s[is_in_s])):
            for value in self.values[code] if count else ():
                found[value] = found.get(value, 0) + int(count)
        return found

    def text(self, row: int) -> str:
        """Return the values of one row, separated by commas."""
        return ", ".join(sorted(self.values[self.codes_s[row]]))


@dataclass(frozen=True)
class Measured:
    """One condition in the strips: id, digest and place."""

    name: str
    digest: str
    place: int


class Table:
    """All rows of the catalogue in one state; scores are read at their first use.

    Rows are in order of name, newest version first, the ensemble before its members.

    Args:
        db: an open catalogue; later reads must be of the same state.
        choose: returns the current digest of a condition from the digests in its scores, that of
            the newest score last.
    """

    def __init__(self, db: CatalogueReader, choose: Callable[[str, list[str]], str]) -> None:
        self.state = db.fact("state")
        columns = list(zip(*db.rows(), strict=True)) or [()] * 10
        self.ids_s = np.array(columns[0], dtype=np.int64)
        self.members_s = np.array(columns[1], dtype=np.int64)
        self.names, self.versions, self.aliases = columns[5], columns[6], columns[8]
        self.version_s = np.cumsum(self.members_s == ENSEMBLE)  # the ensemble is the first row
        self.created_s = np.array(columns[9], dtype=np.float64)
        texts = (columns[5], columns[7], columns[3], columns[2], columns[4])
        self.facets = {name: Column.of(text) for name, text in zip(FACETS, texts, strict=True)}
        self._cells: dict[str, ndarray] = {}
        keys = [Measured(*key) for key in db.conditions()]
        self._width = len(keys)
        taken_sp = self.cells_sp(db, TAKEN)
        self.conditions = [key for key in keys if not np.isnan(taken_sp[:, key.place]).all()]
        self.current = _current(self.conditions, taken_sp, choose)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids_s)

    def cells_sp(self, db: CatalogueReader, score: str) -> ndarray:
        """Return one score of every row at every place; NaN if it was not measured."""
        found = self._cells.get(score)
        if found is None:
            found = self.strips_sp(db, score)
            self._cells = {**dict(list(self._cells.items())[1 - _CELLS_KEPT :]), score: found}
        return found

    def strips_sp(self, db: CatalogueReader, score: str, rows: ndarray | None = None) -> ndarray:
        """Read the strips of one score, of some rows or of all."""
        ids = self.ids_s if rows is None else self.ids_s[rows]
        found = db.strips(score, None if rows is None else ids.tolist())
        return _unpacked(found, ids, self._width)

    def of_kind(self, kind: str) -> ndarray:
        """Return which rows are ensembles, or members."""
        return np.asarray((self.members_s == ENSEMBLE) == (kind == "ensembles"))

    def is_asked(self, db: CatalogueReader, query: Query) -> ndarray:
        """Return which rows pass every filter, except those on conditions."""
        passed = [self._said(db, query), *self._passed(query).values()]
        return np.asarray(np.logical_and.reduce(passed))

    def facet_values(self, db: CatalogueReader, query: Query) -> dict[str, list[Facet]]:
        """Return the values of each facet with counts under all other filters, commonest first."""
        said_s, passed = self._said(db, query), self._passed(query)
        found = {}
        for name, column in self.facets.items():
            others = [is_in_s for other, is_in_s in passed.items() if other != name]
            counts = column.counts(np.logical_and.reduce([said_s, *others]))
            found[name] = _facet(counts, query.chosen(name))
        return found

    def ranked(self, rows: ndarray, compared: Ranking, query: Query) -> ndarray:
        """Return the places of rows in the requested order; those without a value are last."""
        what, is_reverse = query.order.removeprefix("-"), query.order.startswith("-")
        if what == "score":
            is_less_better = less_is_better(query.score)
            return compared.order(is_less_better=is_less_better, is_best_first=is_reverse)
        places = np.arange(len(rows))
        if what == "name":
            return places[::-1] if is_reverse else places
        by = {"created": self.created_s[rows], "measured": compared.measured_r}[what]
        return np.asarray(np.argsort(-by if is_reverse else by, kind="stable"))

    def _said(self, db: CatalogueReader, query: Query) -> ndarray:
        """Return which rows are of the kind and contain every word."""
        is_in_s, words = self.of_kind(query.kind), query_of(query.words)
        if not words:
            return is_in_s
        return is_in_s & np.isin(self.ids_s, np.array(db.holding(words), dtype=np.int64))

    def _passed(self, query: Query) -> dict[str, ndarray]:
        chosen = {name: query.chosen(name) for name in self.facets}
        return {name: self.facets[name].has_any(some) for name, some in chosen.items() if some}


def _unpacked(found: list[tuple[int, bytes]], ids: ndarray, width: int) -> ndarray:
    """Return strips as an array, one row for each id; missing places are NaN."""
    cells_sp = np.full((len(ids), width), np.nan)
    if not found:
        return cells_sp
    lengths = np.array([len(cells) // 8 for _, cells in found])
    order = np.argsort(ids)
    rows = order[np.searchsorted(ids, np.array([one for one, _ in found]), sorter=order)]
    starts = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    flat = np.frombuffer(b"".join(cells for _, cells in found))
    cells_sp[np.repeat(rows, lengths), places] = flat
    return cells_sp


def _current(
    keys: Iterable[Measured], taken_sp: ndarray, choose: Callable[[str, list[str]], str]
) -> tuple[Measured, ...]:
    """Return the one key of each condition that counts, in order of id."""
    by_name: dict[str, list[Measured]] = {}
    newest = {key.place: float(np.nanmax(taken_sp[:, key.place])) for key in keys}
    for key in sorted(keys, key=lambda key: (newest[key.place], key.place)):
        by_name.setdefault(key.name, []).append(key)
    found = []
    for name in sorted(by_name):
        digests = [key.digest for key in by_name[name]]
        digest = choose(name, digests) if len(digests) > 1 else digests[0]
        found.append(next(key for key in by_name[name] if key.digest == digest))
    return tuple(found)


def _facet(counts: dict[str, int], chosen: Sequence[str]) -> list[Facet]:
    counts = {**dict.fromkeys(chosen, 0), **counts}
    common = sorted(counts, key=lambda value: (-counts[value], value))
    return [Facet(value, counts[value], value in chosen) for value in common]

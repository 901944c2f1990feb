"""Answers of the catalogue, from its rows in memory and the strips of the page's rows.

Axis letters: r requested row, p place of a condition; s every row of the catalogue.
"""

import fnmatch
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy import ndarray

from manybeam.db.catalogue_file import FRAMES, SCORER, TAKEN, CatalogueReader
from manybeam.spec import Condition
from manybeam.zoo.catalogue.conditions import KnownConditions
from manybeam.zoo.catalogue.rows import (
    ConditionRow,
    Coverage,
    Facet,
    Page,
    Query,
    Row,
    numbers_of,
)
from manybeam.zoo.catalogue.table import Measured, Table
from manybeam.zoo.matrix import BEST_F1, ENSEMBLE, SELECTED_F1, is_simulated
from manybeam.zoo.ranking import Ranking, compare_rows


@dataclass(frozen=True)
class Answers:
    """One state of the catalogue, open for reading, with the library."""

    db: CatalogueReader
    table: Table
    known: KnownConditions

    def find(self, query: Query) -> Page:
        """Return one page of the result."""
        started = time.perf_counter()
        found = self._found(query)
        return Page(
            rows=tuple(self._page_rows(found, query)),
            total=len(found.rows),
            conditions=tuple(key.name for key in self.table.current),
            asked=tuple(key.name for key in found.asked),
            compared=tuple(found.names(found.compared.common_c)),
            compared_total=found.compared_total,
            seconds=time.perf_counter() - started,
            simulated=tuple(key.name for key in self.table.current if is_simulated(key.digest)),
        )

    def facets(self, query: Query) -> dict[str, list[Facet]]:
        """Return the values of each facet, and the conditions, with counts."""
        rows = np.flatnonzero(self.table.is_asked(self.db, query))
        taken_rp = self.table.cells_sp(self.db, TAKEN)[rows]
        chosen = self._asked(query) if query.condition or query.ranges or query.phrases else []
        conditions = [
            Facet(key.name, int((~np.isnan(taken_rp[:, key.place])).sum()), key in chosen)
            for key in self.table.current
        ]
        return {**self.table.facet_values(self.db, query), "condition": conditions}

    def coverage(self, query: Query) -> Coverage:
        """Return which pairs were measured."""
        found = self._found(query)
        asked, rows = found.asked, found.rows[found.order]
        taken_sp = self.table.cells_sp(self.db, TAKEN)
        is_measured_rp = ~np.isnan(taken_sp[np.ix_(rows, _places(asked))])
        first = (query.page - 1) * query.page_size
        shown = slice(first, first + query.page_size)
        missing = (~is_measured_rp).sum(axis=0).tolist()
        return Coverage(
            refs=tuple(self._ref(row) for row in rows[shown].tolist()),
            conditions=tuple(key.name for key in asked),
            is_measured=tuple(tuple(one) for one in is_measured_rp[shown].tolist()),
            total=len(rows),
            measured_count=int(is_measured_rp.sum()),
            missing_count=int(is_measured_rp.size - is_measured_rp.sum()),
            missing=dict(zip((key.name for key in asked), missing, strict=True)),
        )

    def conditions(self) -> list[ConditionRow]:
        """Return the measured conditions and those of the library, in order of id."""
        taken_sp, f1_sp = self.table.cells_sp(self.db, TAKEN), self.table.cells_sp(self.db, "f1")
        may_be_best = self.table.of_kind("ensembles")
        may_be_best &= ~self.table.facets["status"].has_any(["archived"])
        f1_sp = np.where(may_be_best[:, None], f1_sp, np.nan)
        found = [
            self._condition(key, taken_sp[:, key.place], f1_sp[:, key.place])
            for key in self.table.conditions
        ]
        measured = {row.condition for row in found if row.library == "same"}
        found += [
            _never_measured(condition)
            for name, condition in self.known.by_id.items()
            if name not in measured
        ]
        return sorted(found, key=lambda row: (row.condition, not row.is_current, row.digest))

    def _condition(self, key: Measured, taken_s: ndarray, f1_s: ndarray) -> ConditionRow:
        rows = np.flatnonzero(~np.isnan(taken_s))
        best = None if np.isnan(f1_s).all() else int(np.nanargmax(f1_s))
        return ConditionRow(
            condition=key.name,
            digest=key.digest,
            is_current=key in self.table.current,
            library=self.known.relation(key.name, key.digest),
            numbers=self.known.numbers(key.digest),
            version_count=len(np.unique(self.table.version_s[rows])),
            member_count=int((self.table.members_s[rows] != ENSEMBLE).sum()),
            best="" if best is None else self._ref(best),
            best_f1=None if best is None else float(f1_s[best]),
            taken=_date(np.max(taken_s[rows], initial=0.0)),
        )

    def _asked(self, query: Query) -> list[Measured]:
        """Return the current conditions that the filter names; all if it names none."""
        found = list(self.table.current)
        if query.condition:
            found = [key for key in found if fnmatch.fnmatchcase(key.name, query.condition)]
        if phrases := query.phrases:
            found = [key for key in found if self.known.is_described(key.digest, phrases)]
        for quantity, (low, high) in query.ranges.items():
            least, most = -math.inf if low is None else low, math.inf if high is None else high
            numbers = [(key, self.known.numbers(key.digest).get(quantity)) for key in found]
            found = [key for key, x in numbers if x is not None and least <= x <= most]
        return found

    def _found(self, query: Query) -> "_Found":
        """Return every row that passes the filters, compared and in the requested order."""
        rows, asked = np.flatnonzero(self.table.is_asked(self.db, query)), self._asked(query)
        cells_sp = self.table.cells_sp(self.db, query.score)
        compared = compare_rows(cells_sp[np.ix_(rows, _places(asked))])
        return _Found(rows, asked, compared, self.table.ranked(rows, compared, query))

    def _page_rows(self, found: "_Found", query: Query) -> list[Row]:
        """Return the rows of a page; a row's value is of the conditions it is compared on."""
        table, score, places = self.table, query.score, _places(found.asked)
        shown = found.order[(query.page - 1) * query.page_size :][: query.page_size]
        rows, compared = found.rows[shown], found.compared
        cells_rp = table.cells_sp(self.db, score)[rows]
        is_used_rc = compared.is_used_rc[shown]
        taken_rp, frames_rp, scorer_rp, low_rp, high_rp = (
            np.where(is_used_rc, table.strips_sp(self.db, name, rows)[:, places], np.nan)
            for name in (TAKEN, FRAMES, SCORER, f"{score}_low", f"{score}_high")
        )
        selected_r, best_r = self._other_ways(rows, places, is_used_rc, score)
        scorers = self.db.scorers()
        current, is_one = _places(table.current), len(found.asked) == 1
        return [
            Row(
                ref=self._ref(row),
                name=table.names[row],
                version=table.versions[row],
                member=None if table.members_s[row] == ENSEMBLE else int(table.members_s[row]),
                status=table.facets["status"].text(row),
                aliases=tuple(json.loads(table.aliases[row])),
                recipe=table.facets["recipe"].text(row),
                network=table.facets["network"].text(row),
                policy=table.facets["policy"].text(row),
                created=datetime.fromtimestamp(table.created_s[row], UTC),
                value=_number(compared.value_r[place]),
                low=_number(low_rp[i, 0]) if is_one else None,
                high=_number(high_rp[i, 0]) if is_one else None,
                frame_count=_sum(frames_rp[i]),
                taken=_date(np.nanmax(taken_rp[i], initial=0.0)),
                scorer=_only(scorer_rp[i], scorers),
                measured_count=int(compared.measured_r[place]),
                condition_count=found.condition_count,
                compared_count=int(is_used_rc[i].sum()),
                group=int(compared.group_r[place]),
                strip=tuple(_number(value) for value in cells_rp[i, current].tolist()),
                selected_f1=selected_r[i],
                best_member_f1=best_r[i],
            )
            for i, (place, row) in enumerate(zip(shown.tolist(), rows.tolist(), strict=True))
        ]

    def _other_ways(
        self, rows: ndarray, places: ndarray, is_used_rc: ndarray, score: str
    ) -> tuple[list[float | None], ...]:
        """Return F1 of the selected members and of the best ones, where all members have theirs."""
        if score != "f1":
            nothing: list[float | None] = [None] * len(rows)
            return nothing, nothing
        strips = (self.table.strips_sp(self.db, name, rows) for name in (SELECTED_F1, BEST_F1))
        return tuple(
            [
                _mean(cells_p[is_used_p])
                for cells_p, is_used_p in zip(cells, is_used_rc, strict=True)
            ]
            for cells in (strip_rp[:, places] for strip_rp in strips)
        )

    def _version(self, row: int) -> str:
        return f"{self.table.names[row]}@{self.table.versions[row]}"

    def _ref(self, row: int) -> str:
        member = int(self.table.members_s[row])
        return self._version(row) + (f"/{member:02d}" if member != ENSEMBLE else "")


@dataclass(frozen=True, eq=False)
class _Found:
    """The rows of a query: their places in the table, their comparison and their order."""

    rows: ndarray
    asked: list[Measured]
    compared: Ranking
    order: ndarray

    @property
    def condition_count(self) -> int:
        """The number of requested conditions on which some row was measured."""
        return int(self.compared.is_measured_rc.any(axis=0).sum())

    @property
    def compared_total(self) -> int:
        """The number of rows in the first group."""
        return int(((self.compared.group_r == 0) & ~np.isnan(self.compared.value_r)).sum())

    def names(self, is_in_c: ndarray) -> list[str]:
        """Return the names of some of the requested conditions."""
        return [key.name for key, is_in in zip(self.asked, is_in_c, strict=True) if is_in]


def _never_measured(condition: Condition) -> ConditionRow:
    return ConditionRow(
        condition=condition.id,
        digest=condition.digest,
        is_current=False,
        library="same",
        numbers=numbers_of(condition),
        version_count=0,
        member_count=0,
        best="",
        best_f1=None,
        taken=None,
    )


def _places(keys: Sequence[Measured]) -> ndarray:
    return np.array([key.place for key in keys], dtype=np.intp)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(cells_p: ndarray) -> float | None:
    """Return the mean; None if a cell was not measured, or if there are none."""
    return None if not len(cells_p) or np.isnan(cells_p).any() else float(cells_p.mean())


def _sum(cells_p: ndarray) -> int | None:
    return None if np.isnan(cells_p).all() else int(np.nansum(cells_p))


def _only(cells_p: ndarray, names: dict[int, str]) -> str:
    """Return the scorer of all measured cells; "" if there are several."""
    found = {names[int(cell)] for cell in cells_p.tolist() if not math.isnan(cell)}
    return found.pop() if len(found) == 1 else ""


def _date(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(float(seconds), UTC) if seconds else None

"""Queries and results of the catalogue: plain values for pages and tables."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Literal, get_args

from manybeam.errors import InvalidInput
from manybeam.spec.faults import CLOSE
from manybeam.spec.imaging import Condition
from manybeam.zoo.catalogue.phrases import Phrase, phrases_in

Kind = Literal["ensembles", "members"]
Status = Literal["serving", "candidate", "archived", "none"]
Bounds = Mapping[str, tuple[float | None, float | None]]

FACETS = ("name", "status", "network", "recipe", "policy")
ORDERS = ("score", "name", "created", "measured")
STATUSES: tuple[str, ...] = get_args(Status)
LARGEST_PAGE = 1000


@dataclass(frozen=True)
class Query:
    """A query: a row must pass every filter, with any one of the values of a filter.

    Args:
        text: words; each must be the beginning of a word of the row. Words that describe imaging,
            as "low dose", rank rows by their score on such conditions instead (`phrases`).
        kind: whether rows are ensembles (their versions) or members.
        name: names of ensembles.
        status: `serving`, `candidate`, `archived` or `none`; all of them if left out.
        network: names of networks.
        recipe: recipes with their version, as `quickstart@1`.
        policy: ids of policies; an ensemble has those of its members.
        condition: id of a condition, or a glob over ids: rows are ranked by their score there.
        ranges: quantity of a condition -> (low, high), either None: rows are ranked by their
            score on conditions known to lie in them.
        score: name of the score to rank by.
        order: `score`, `name`, `created` or `measured`; "-" in front reverses it. `-score` puts
            the best first, also if less is better. Rows are compared on conditions that all of
            them were measured on; rows that were not measured there come later.
        page: number of the page, from 1.
        page_size: rows of a page, 1 to 1000.

    Raises:
        InvalidInput: a value that is not allowed; all of them at once.
    """

    text: str = ""
    kind: Kind = "ensembles"
    name: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    condition: str = ""
    ranges: Bounds = field(default_factory=dict)
    score: str = "f1"
    order: str = "-score"
    page: int = 1
    page_size: int = 50

    def __post_init__(self) -> None:
        faults = [*self._faults(), *_faults_of_ranges(self.ranges)]
        if faults:
            raise InvalidInput("\n".join(faults), "", "correct these values")

    @property
    def words(self) -> str:
        """The text without the phrases."""
        return phrases_in(self.text)[0]

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        """The phrases of the text."""
        return phrases_in(self.text)[1]

    def chosen(self, facet: str) -> tuple[str, ...]:
        """Return the requested values of one facet; none means all."""
        return {
            "name": self.name,
            "status": self.status,
            "network": self.network,
            "recipe": self.recipe,
            "policy": self.policy,
        }[facet]

    def _faults(self) -> Iterable[str]:
        if self.kind not in get_args(Kind):
            yield f"kind: {self.kind!r} is none of {', '.join(get_args(Kind))}"
        if self.order.removeprefix("-") not in ORDERS:
            yield f"order: {self.order!r} is none of {', '.join(ORDERS)}, or one after '-'"
        for status in self.status:
            if status not in STATUSES:
                yield f"status: {status!r} is none of {', '.join(STATUSES)}"
        if not 1 <= self.page <= 10**9:
            yield f"page: {self.page} is not 1 or more"
        if not 1 <= self.page_size <= LARGEST_PAGE:
            yield f"page_size: {self.page_size} is not from 1 to {LARGEST_PAGE}"


@dataclass(frozen=True)
class Row:
    """A version of an ensemble or a member, with its score on the requested conditions.

    Attributes:
        ref: its reference.
        member: index of the member; None for an ensemble.
        recipe, network, policy: for an ensemble those of all members, separated by commas.
        value: the score, or its mean over the requested conditions on which all rows of its
            group were measured; None if it was measured on none of them.
        low, high: ends of the 95 % interval, if the score is of one condition and has one.
        frame_count: number of test frames of the value; None if it is unknown.
        taken: time of the newest measurement.
        scorer: version of the scorer; "" if several or unknown.
        measured_count: number of requested conditions on which it was measured.
        condition_count: number of requested conditions on which any row of the result was
            measured.
        compared_count: number of conditions in the value.
        group: rows of one group are compared on the same conditions; 0 comes first.
        strip: the score on each condition of the page; None if it was not measured.
        selected_f1: mean F1 of the members that selection chose for each frame, over the same
            conditions as the value; None if it was not measured on all of them, for a member, or
            if the score is not F1.
        best_member_f1: the same of the best member of each condition.
    """

    ref: str
    name: str
    version: int
    member: int | None
    status: str
    aliases: tuple[str, ...]
    recipe: str
    network: str
    policy: str
    created: datetime
    value: float | None
    low: float | None
    high: float | None
    frame_count: int | None
    taken: datetime | None
    scorer: str
    measured_count: int
    condition_count: int
    compared_count: int
    group: int
    strip: tuple[float | None, ...]
    selected_f1: float | None = None
    best_member_f1: float | None = None

    @property
    def coverage(self) -> str:
        """How many of the conditions it was measured on, in words."""
        if not self.condition_count:
            return "not measured"
        return f"{self.measured_count} of {self.condition_count}"


@dataclass(frozen=True)
class Page:
    """One page of rows.

    Attributes:
        rows: those of the page.
        total: rows of all pages.
        conditions: the columns of the strips: all measured conditions.
        asked: those that the filter names; all if it names none.
        compared: those on which the rows of the first group are compared.
        compared_total: number of rows in the first group.
        seconds: duration of the query.
        simulated: conditions of the columns whose scores are of simulated frames.
    """

    rows: tuple[Row, ...]
    total: int
    conditions: tuple[str, ...]
    asked: tuple[str, ...]
    compared: tuple[str, ...]
    compared_total: int
    seconds: float
    simulated: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """What the order is based on, in words; "" if every row has the same basis."""
        if self.compared_total in (0, self.total) or len(self.asked) < 2:
            return ""
        count = len(self.compared)
        where = f"the {count} conditions" if count > 1 else f"the condition {self.compared[0]}"
        return (
            f"compared on {where} that {self.compared_total} of {self.total} rows were measured "
            "on; the other rows come later: their values are of fewer or other conditions"
        )


@dataclass(frozen=True)
class Facet:
    """A value of a filter, and the number of rows with it under all other filters."""

    value: str
    count: int
    is_chosen: bool


@dataclass(frozen=True)
class ConditionRow:
    """One condition with the numbers of one digest.

    Attributes:
        condition: its id.
        digest: digest of its numbers in scores; that of the library if nothing was measured.
        is_current: whether means and rankings use scores with this digest.
        library: `same` if the library's condition of that id has these numbers, `changed` if
            it has others, "" if it has none.
        numbers: quantity -> value, if known; empty if the library has no such condition.
        version_count, member_count: numbers of measured versions and members.
        best: reference of the ensemble with the best F1, not archived; "" if there is none.
        best_f1: its F1, or None.
        taken: date of the newest score, or None.
    """

    condition: str
    digest: str
    is_current: bool
    library: Literal["same", "changed", ""]
    numbers: Mapping[str, float]
    version_count: int
    member_count: int
    best: str
    best_f1: float | None
    taken: datetime | None


@dataclass(frozen=True)
class Coverage:
    """Which (row, condition) pairs were measured.

    Attributes:
        refs: rows of the page.
        conditions: columns: measured conditions that the filter names.
        is_measured: one tuple for each row, one value for each condition.
        total: rows of all pages.
        measured_count: pairs of all pages that were measured.
        missing_count: those that were not.
        missing: condition -> rows of all pages that were not measured on it.
    """

    refs: tuple[str, ...]
    conditions: tuple[str, ...]
    is_measured: tuple[tuple[bool, ...], ...]
    total: int
    measured_count: int
    missing_count: int
    missing: Mapping[str, int]


@dataclass(frozen=True)
class Refreshed:
    """The result of a refresh.

    Attributes:
        changed: references of new and changed versions.
        gone: references of versions that MLflow no longer has.
        unreadable: reference -> why; the catalogue keeps the last state of these.
        seconds: its duration.
    """

    changed: tuple[str, ...]
    gone: tuple[str, ...]
    unreadable: Mapping[str, str]
    seconds: float


def numbers_of(condition: Condition) -> dict[str, float]:
    """Return the known quantities of a condition, by the name with their unit."""
    return {
        path.rpartition(".")[2]: value
        for path, value in condition.quantities()
        if isinstance(value, float)
    }


@lru_cache(maxsize=1)
def quantity_names() -> tuple[str, ...]:
    """Return the names of all quantities of conditions."""
    return tuple(path.rpartition(".")[2] for path, _ in Condition(id="any").quantities())


def _faults_of_ranges(ranges: Bounds) -> Iterable[str]:
    for name, (low, high) in ranges.items():
        if name not in quantity_names():
            near = difflib.get_close_matches(name, quantity_names(), n=3, cutoff=CLOSE)
            known = (
                f"nearest: {', '.join(near)}" if near else f"allowed: {', '.join(quantity_names())}"
            )
            yield f"ranges: no quantity {name!r}; {known}"
        if any(end is not None and not math.isfinite(end) for end in (low, high)):
            yield f"ranges.{name}: ({low}, {high}) are not numbers or None"
        elif low is not None and high is not None and low > high:
            yield f"ranges.{name}: {low:g} is above {high:g}"

"""What the catalogue is asked and what it answers: plain values for pages and tables."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Literal, get_args

from manybeam.errors import InvalidInput
from manybeam.spec.imaging import Condition

Kind = Literal["ensembles", "members"]
Status = Literal["serving", "candidate", "archived", "none"]
Bounds = Mapping[str, tuple[float | None, float | None]]

FACETS = ("name", "status", "network", "recipe", "policy")
ORDERS = ("score", "name", "created", "measured")
STATUSES: tuple[str, ...] = get_args(Status)
LARGEST_PAGE = 1000


@dataclass(frozen=True)
class Query:
    """What to look for in the zoo: every filter has to hold, of a filter's values any one.

    Args:
        text: words; each has to begin one of the row's words.
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
        order: `score`, `name`, `created` or `measured`; with "-" in front it is turned round,
            and `-score` puts the best first, whether more or less is better. Rows without a
            score come last either way.
        page: which page, from 1.
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
            raise InvalidInput("\n".join(faults), "", "mend what is named above")

    def chosen(self, facet: str) -> tuple[str, ...]:
        """Return the values of one facet that are asked for; none if all are."""
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
    """An ensemble's version or a member, and what it is worth where it was asked for.

    Attributes:
        ref: the reference that always means it.
        member: index of the member; None for an ensemble.
        recipe, network, policy: of an ensemble those of all its members, with commas between.
        value: the score: on the one condition asked for, or the mean over those asked for on
            which the row was measured; None if it was measured on none of them.
        low, high: ends of the 95 % interval, where the score is of one condition and has them.
        frame_count: test frames behind the value; None if there are none, or nobody counted.
        taken: when the newest of them was measured.
        scorer: version of the scorer; "" if several or unknown.
        measured_count: on how many of the conditions asked for the value rests.
        strip: the score on each of the page's conditions; None where it was not measured.
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
    strip: tuple[float | None, ...]


@dataclass(frozen=True)
class Page:
    """One page of rows.

    Attributes:
        rows: those of the page.
        total: rows of all pages.
        conditions: the columns of the strips: conditions anything was measured on.
        asked: those of them the filter names; all if it names none.
        seconds: how long the answer took.
    """

    rows: tuple[Row, ...]
    total: int
    conditions: tuple[str, ...]
    asked: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Facet:
    """A value one can filter by, and how many rows have it under all other filters."""

    value: str
    count: int
    is_chosen: bool


@dataclass(frozen=True)
class ConditionRow:
    """One condition as it was when its numbers had one digest.

    Attributes:
        condition: its id.
        digest: of its numbers, as scores name it; that of the library if nothing was measured.
        is_current: whether means and rankings use what was measured under this digest.
        library: `same` if the library's condition of that id has these numbers, `changed` if
            it has others, "" if it has none.
        numbers: quantity -> value, those known; empty if no condition of the library has these.
        version_count, member_count: how many ensembles' versions and members were measured.
        best: reference of the ensemble with the best F1, of those not archived; "" if none.
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
        conditions: columns: conditions anything was measured on and the filter names.
        is_measured: one tuple a row, one value a condition.
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
    """What a refresh found.

    Attributes:
        changed: references of versions that are new or not as they were.
        gone: references of versions MLflow has no more.
        unreadable: reference -> why; what was known of it before is kept.
        seconds: how long it took.
    """

    changed: tuple[str, ...]
    gone: tuple[str, ...]
    unreadable: Mapping[str, str]
    seconds: float


def numbers_of(condition: Condition) -> dict[str, float]:
    """Return the quantities of a condition that are known, by the name that carries their unit."""
    return {
        path.rpartition(".")[2]: value
        for path, value in condition.quantities()
        if isinstance(value, float)
    }


@lru_cache(maxsize=1)
def quantity_names() -> tuple[str, ...]:
    """Return the names of all quantities a condition can have."""
    return tuple(path.rpartition(".")[2] for path, _ in Condition(id="any").quantities())


def _faults_of_ranges(ranges: Bounds) -> Iterable[str]:
    for name, (low, high) in ranges.items():
        if name not in quantity_names():
            near = difflib.get_close_matches(name, quantity_names(), n=3, cutoff=0.4)
            yield f"ranges: no quantity {name!r}; nearest: {', '.join(near) or 'none'}"
        if any(end is not None and not math.isfinite(end) for end in (low, high)):
            yield f"ranges.{name}: ({low}, {high}) are not numbers or None"
        elif low is not None and high is not None and low > high:
            yield f"ranges.{name}: {low:g} is above {high:g}"

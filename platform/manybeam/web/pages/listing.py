"""The list of the zoo. All filters are in the address, so that a page can be shared."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from urllib.parse import urlencode

from manybeam.errors import InvalidInput, NotFound
from manybeam.spec.imaging import Condition
from manybeam.web.render import number
from manybeam.zoo.catalogue import (
    FACETS,
    STATUSES,
    Bounds,
    Catalogue,
    Facet,
    Kind,
    Page,
    Query,
    Row,
    quantity_names,
)
from manybeam.zoo.catalogue.phrases import without_phrase
from manybeam.zoo.matrix import BEST_F1, SELECTED_F1, less_is_better
from manybeam.zoo.records import Ref

Pairs = Sequence[tuple[str, str]]

PAGE_SIZE = 50
LONGEST_NUMBER = 9  # digits of the number of a page
# Ranges in the form of the page: quantity, label, unit. An address may use any quantity.
OFFERED = (
    ("dose_e_per_a2", "Dose", "e/Å²"),
    ("beam_kv", "Beam", "kV"),
    ("pixel_size_pm", "Pixel size", "pm"),
    ("defocus_nm", "Defocus", "nm"),
)
_SINGLE = ("q", "kind", "condition", "score", "order", "page", "baseline")
_LEFT_OUT = {("kind", "ensembles"), ("score", "f1"), ("order", "-score"), ("page", "1")}
_SHOWN_FACETS = ("status", "network", "recipe", "policy")


@dataclass(frozen=True)
class ListingQuery:
    """The query of an address.

    Attributes:
        query: the query for the catalogue.
        baseline: reference with which every row is compared; "" for none.
        pairs: the fields of the address, without empty and default ones.
    """

    query: Query
    baseline: str
    pairs: tuple[tuple[str, str], ...]

    def address(self, path: str = "/zoo", **changes: str | None) -> str:
        """Return the address with some fields changed; None removes a field.

        Any change except that of the page goes back to the first page.
        """
        gone = {*changes} | ({"page"} if "page" not in changes else set())
        kept = [pair for pair in self.pairs if pair[0] not in gone]
        kept += [(key, value) for key, value in changes.items() if value]
        return f"{path}?{urlencode(kept)}" if kept else path

    def _dropping(self, *keys: str) -> str:
        kept = [pair for pair in self.pairs if pair[0] not in (*keys, "page")]
        return f"/zoo?{urlencode(kept)}" if kept else "/zoo"

    def without(self, key: str, value: str) -> str:
        """Return the address without one value of a field."""
        kept = [pair for pair in self.pairs if pair != (key, value) and pair[0] != "page"]
        return f"/zoo?{urlencode(kept)}" if kept else "/zoo"

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The filters in words, each with the address that removes it."""
        found = [
            (f"{key}: {value}", self.without(key, value))
            for key, value in self.pairs
            if key in ("condition", *FACETS)
        ]
        if self.query.words:
            rest = " ".join(one.name for one in self.query.phrases)
            found.insert(0, (f"“{self.query.words}”", self.address(q=rest)))
        for phrase in self.query.phrases:
            rest = without_phrase(self.query.text, phrase)
            found.append((f"{phrase.name}: {phrase.meaning}", self.address(q=rest)))
        for name, (low, high) in self.query.ranges.items():
            ends = (f"{name}_min", f"{name}_max")
            found.append((range_in_words(name, low, high), self._dropping(*ends)))
        return found

    @property
    def shown(self) -> Query:
        """The query of the list: archived versions are shown only on request."""
        present = tuple(one for one in STATUSES if one != "archived")
        return self.query if self.query.status else replace(self.query, status=present)

    def facets(self, catalogue: Catalogue) -> dict[str, list[Facet]]:
        """Return the values of each filter, with their counts in the list."""
        found = catalogue.facets(self.shown)
        chosen = self.query.status
        marked = [replace(one, is_chosen=one.value in chosen) for one in found["status"]]
        found["status"] = [one for one in marked if one.count or one.is_chosen]
        return found

    @property
    def is_narrowed(self) -> bool:
        """Whether scores of some conditions only are asked for."""
        return bool(self.query.condition or self.query.ranges or self.query.phrases)

    @property
    def form_ranges(self) -> dict[str, tuple[str, str]]:
        """The ranges as texts, for the fields of the form."""
        given = dict(self.pairs)
        return {n: (given.get(f"{n}_min", ""), given.get(f"{n}_max", "")) for n, _, _ in OFFERED}


def range_in_words(name: str, low: float | None, high: float | None) -> str:
    """Return a range for a person.

    Example:
        >>> range_in_words("dose_e_per_a2", None, 300000.0), range_in_words("cs_um", 0.0, 2.0)
        ('Dose ≤ 300,000 e/Å²', '0 ≤ cs_um ≤ 2')
    """
    label, unit = next(((lb, f" {u}") for n, lb, u in OFFERED if n == name), (name, ""))
    below = "" if low is None else f"{number(low)} ≤ "
    above = "" if high is None else f" ≤ {number(high)}"
    return f"{below}{label}{above}{unit}"


def query_parameters() -> list[dict[str, Any]]:
    """Return the parameters of `read_query` for openapi.json."""
    found: dict[str, dict[str, Any]] = {name: {"type": "string"} for name in _SINGLE}
    found["page"] = {"type": "integer", "minimum": 1}
    found |= {name: {"type": "array", "items": {"type": "string"}} for name in FACETS}
    found["status"]["items"] = {"type": "string", "enum": list(STATUSES)}
    for name in quantity_names():
        found |= {f"{name}_min": {"type": "number"}, f"{name}_max": {"type": "number"}}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in found.items()]


def read_query(pairs: Iterable[tuple[str, str]], *, page_size: int = PAGE_SIZE) -> ListingQuery:
    """Read the query of an address.

    Raises:
        InvalidInput: a field is unknown or a value is not allowed; all are reported at once.
    """
    given = ((key, value.strip()) for key, value in pairs)
    kept = tuple(pair for pair in given if pair[1] and pair not in _LEFT_OUT)
    single = dict(kept)
    faults: list[str] = []
    ranges = _ranges(kept, faults)
    known = {*_SINGLE, *FACETS} | {f"{n}_{end}" for n in quantity_names() for end in ("min", "max")}
    faults += [f"{key}: there is no such field" for key, _ in kept if key not in known]
    page = single.get("page", "1")
    if not page.isascii() or not page.isdigit() or len(page) > LONGEST_NUMBER:
        faults.append(f"page: {page[:30]!r} is not a whole number")
    if faults:
        raise InvalidInput("; ".join(faults), f"fields: {', '.join((*_SINGLE, *FACETS))}", "/zoo")
    chosen = {facet: tuple(v for k, v in kept if k == facet) for facet in FACETS}
    query = Query(
        text=single.get("q", ""),
        kind=cast("Kind", single.get("kind", "ensembles")),
        condition=single.get("condition", ""),
        ranges=ranges,
        score=single.get("score", "f1"),
        order=single.get("order", "-score"),
        page=int(page),
        page_size=page_size,
        **chosen,
    )
    return ListingQuery(query, single.get("baseline", ""), kept)


def _ranges(pairs: Pairs, faults: list[str]) -> Bounds:
    found: dict[str, list[float | None]] = {}
    for key, value in pairs:
        name, _, end = key.rpartition("_")
        if end not in ("min", "max") or name not in quantity_names():
            continue
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            faults.append(f"{key}: {value[:30]!r} is not a number")
            continue
        found.setdefault(name, [None, None])[end == "max"] = bound
    return {name: (low, high) for name, (low, high) in found.items()}


@dataclass(frozen=True)
class Listing:
    """One page of the list, with its filters.

    Attributes:
        question: the query of the address.
        page: the rows found.
        facets: values of the filters.
        baseline: the row with which all others are compared; None if none is pinned.
        conditions: the conditions that can be chosen.
        described: conditions of the library, by id.
    """

    question: ListingQuery
    page: Page
    facets: Mapping[str, Sequence[Facet]]
    baseline: Row | None
    conditions: Sequence[Facet]
    described: Mapping[str, Condition]

    @property
    def page_count(self) -> int:
        """The number of pages; at least one."""
        return max(-(-self.page.total // self.question.query.page_size), 1)

    @property
    def first(self) -> int:
        """The number of the first row shown, from 1."""
        return (self.question.query.page - 1) * self.question.query.page_size + 1

    @property
    def where(self) -> str:
        """The conditions of the shown score, in words."""
        asked, query = self.page.asked, self.question.query
        if len(asked) == 1:
            return f"on {asked[0]}"
        if not self.question.is_narrowed:
            count = len(self.page.compared)
            return f"mean over {count} condition{'s' * (count != 1)}"
        if not asked:
            return "no measured condition"
        named = [f"like {query.condition}"] if query.condition else []
        named += [one.name for one in query.phrases]
        named += ["in these ranges"] if query.ranges else []
        return f"mean over {len(self.page.compared)} of {len(asked)} conditions: {', '.join(named)}"

    @property
    def frames_in_words(self) -> str:
        """What frames the scores are of."""
        made, count = len(self.page.simulated), len(self.page.conditions)
        if made == count:
            return "simulated frames, whose true atoms are known"
        if not made:
            return "recorded frames, whose atoms were labelled"
        return f"simulated frames of {made} conditions and labelled frames of {count - made}"

    @property
    def shows_ways(self) -> bool:
        """Whether F1 of the selected and of the best members is shown beside that of all."""
        return self.question.query.kind == "ensembles" and self.question.query.score == "f1"

    @property
    def archived_count(self) -> int:
        """The number of archived rows, which the list leaves out if nobody asks for them."""
        status = self.facets.get("status", ())
        return sum(one.count for one in status if one.value == "archived")

    @property
    def who_answers(self) -> str:
        """Whose score is shown, in words."""
        query = self.question.query
        if query.kind == "members":
            return "one member"
        others = {SELECTED_F1: "selected members", BEST_F1: "best member of each condition"}
        return others.get(query.score, "all members")

    @property
    def basis(self) -> str:
        """What the order is based on, in words; "" if every row has the same basis."""
        query = self.question.query
        return self.page.basis if query.order.endswith("score") else ""

    @property
    def scale(self) -> tuple[float, float]:
        """Values of the darkest and the lightest colour of the strips; the lightest is best."""
        if not less_is_better(self.question.query.score):
            return 0.0, 1.0
        seen = [v for row in self.page.rows for v in row.strip if v is not None]
        return (max(seen), min(seen)) if seen else (1.0, 0.0)

    def samples_of(self, row: Row) -> dict[str, str]:
        """Return the samples a row was measured on, each with its modalities."""
        found: dict[str, dict[str, None]] = {}
        for name, value in zip(self.page.conditions, row.strip, strict=True):
            one = self.described.get(name)
            if value is not None and one is not None:
                found.setdefault(_sample(one), {})[one.modality.upper()] = None
        return {sample: ", ".join(modalities) for sample, modalities in found.items()}

    @property
    def best(self) -> tuple[str, Row] | None:
        """The sample of all compared conditions and the best row for it; None without one.

        The order over conditions of several samples says nothing about one of them.
        """
        query, rows = self.question.query, self.page.rows
        described = [self.described.get(name) for name in self.page.compared]
        samples = {_sample(one) if one is not None else "" for one in described}
        is_best_first = query.page == 1 and query.order == "-score"
        if len(samples) != 1 or "" in samples or not is_best_first or not rows:
            return None
        return None if rows[0].value is None else (samples.pop(), rows[0])

    def shown_facets(self) -> list[tuple[str, Sequence[Facet]]]:
        """Return the filters in the form of the page, each with its values."""
        return [(name, self.facets.get(name, ())) for name in _SHOWN_FACETS]

    def difference(self, row: Row) -> float | None:
        """Return the score of a row minus that of the baseline, over their common conditions.

        It is None if both were measured on none of the conditions that the filters name.
        """
        if self.baseline is None:
            return None
        asked = [name in self.page.asked for name in self.page.conditions]
        sides = zip(row.strip, self.baseline.strip, asked, strict=True)
        found = [a - b for a, b, is_in in sides if is_in and a is not None and b is not None]
        return math.fsum(found) / len(found) if found else None

    def is_asked(self, condition: str) -> bool:
        """Return whether a filter selects some conditions, and this is one of them."""
        return self.question.is_narrowed and condition in self.page.asked


def _sample(condition: Condition) -> str:
    return condition.sample.material or condition.sample.structure


def make_listing(
    catalogue: Catalogue, question: ListingQuery, described: Mapping[str, Condition]
) -> Listing:
    """Return one page of the list.

    Args:
        catalogue: the zoo, as it was read last.
        question: the query of the address.
        described: conditions of the library, by id.

    Raises:
        InvalidInput: the text cannot be searched for.
        NotFound: there is no such page, or no such baseline.
    """
    page = catalogue.find(question.shown)
    if not page.rows and page.total and question.query.page > 1:
        raise NotFound(
            f"there is no page {question.query.page}", f"rows: {page.total}", "go to the first page"
        )
    facets = question.facets(catalogue)
    baseline = _baseline(catalogue, question) if question.baseline else None
    conditions = facets.get("condition", ())
    return Listing(question, page, facets, baseline, conditions, described)


def _baseline(catalogue: Catalogue, question: ListingQuery) -> Row:
    """Return the pinned row, with the same score as the other rows."""
    ref = Ref.parse(question.baseline)
    kind: Kind = "ensembles" if ref.member is None else "members"
    asked = replace(
        question.query,
        text="",
        kind=kind,
        name=(ref.name,),
        status=(),
        network=(),
        recipe=(),
        policy=(),
        page=1,
        page_size=1000,
    )
    for row in catalogue.find(asked).rows:
        is_version = row.version == ref.version or (ref.alias or "") in row.aliases
        if is_version and row.member == ref.member:
            return row
    raise NotFound(
        f"there is no baseline {question.baseline!r}",
        "a baseline is a row of the list",
        "remove it, or pin a row of the list",
    )

"""web.pages.listing: which row a page may call the best for a sample."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from manybeam.spec import Library
from manybeam.web.pages.listing import Listing, read_query
from manybeam.zoo.catalogue import Facet, Page, Row

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
NOMINAL, LOWDOSE, MOS2 = "graphene-60kv-nominal", "graphene-60kv-lowdose", "mos2-60kv-dirty"


def listing(compared: tuple[str, ...], query: str = "", value: float | None = 0.9) -> Listing:
    """Return a list whose rows were measured on all conditions, and compared on some."""
    empty: dict[str, Any] = dict.fromkeys(one.name for one in fields(Row))
    strip = (0.9, 0.9, 0.9)
    rows = tuple(
        Row(**{**empty, "ref": ref, "value": value, "strip": strip}) for ref in ("a@1", "b@1")
    )
    pairs = [tuple(pair.split("=", 1)) for pair in query.split("&") if pair]
    page = Page(rows, 2, (NOMINAL, LOWDOSE, MOS2), compared, compared, 2, 0.0)
    # Each pair has two parts, which the type of `split` does not say.
    return Listing(read_query(pairs), page, {}, None, (), LIBRARY.conditions)  # type: ignore[arg-type]


def test_the_first_row_is_the_best_for_the_one_sample_of_all_compared_conditions() -> None:
    best = listing((NOMINAL, LOWDOSE)).best
    assert best is not None
    assert (best[0], best[1].ref) == ("graphene", "a@1")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(listing((NOMINAL, MOS2)), id="two samples"),
        pytest.param(listing((NOMINAL, "renamed")), id="a condition without a description"),
        pytest.param(listing(()), id="nothing measured"),
        pytest.param(listing((NOMINAL,), value=None), id="no value"),
        pytest.param(listing((NOMINAL,), "order=score"), id="the worst first"),
        pytest.param(listing((NOMINAL,), "page=2"), id="a later page"),
    ],
)
def test_elsewhere_no_row_is_called_the_best(other: Listing) -> None:
    assert other.best is None


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "all members"),
        ("score=rmse_pm", "all members"),
        ("score=selected_f1", "selected members"),
        ("kind=members&score=rmse_pm", "one member"),
    ],
)
def test_the_best_row_says_whose_score_it_is(query: str, words: str) -> None:
    assert listing((NOMINAL,), query).who_answers == words


def test_archived_rows_are_counted_though_the_list_leaves_them_out() -> None:
    status = (Facet("serving", 1, is_chosen=False), Facet("archived", 2, is_chosen=False))
    assert replace(listing(()), facets={"status": status}).archived_count == 2
    assert listing(()).archived_count == 0

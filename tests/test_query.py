"""The query string of the service: what it may ask, and how its faults are told."""

import pytest

from manybeam.errors import InvalidInput
from manybeam.serve.query import PREDICT_NAMES, SELECT_NAMES, RequestQuery, read_query


def test_an_empty_query_asks_for_atoms_and_waits() -> None:
    empty = read_query([], PREDICT_NAMES)
    assert empty == RequestQuery()
    assert (empty.want, empty.deadline_ms, empty.pixel_size_pm) == (("atoms",), None, None)


def test_every_name_is_read_with_its_unit() -> None:
    pairs = [
        ("pixel_size_pm", "7.8"),
        ("want", "std, mi,atoms,std"),
        ("deadline_ms", "80"),
        ("instrument", "STEM-1"),
        ("frame_id", "scan_0142/17"),
        ("false_atoms", "0.05"),
    ]
    question = read_query(pairs, PREDICT_NAMES)
    assert question == RequestQuery(7.8, ("std", "mi", "atoms"), 80, "STEM-1", "scan_0142/17", 0.05)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        pytest.param("want", "atom", "did you mean 'atoms'", id="nearest-want"),
        pytest.param("want", "", "is none of atoms, mean", id="empty-want"),
        pytest.param("pixel_size", "8", "did you mean 'pixel_size_pm'", id="nearest-name"),
        pytest.param("pixel_size_pm", "0.0078", "picometres", id="pixel-size-in-micrometres"),
        pytest.param("pixel_size_pm", "nan", "is not finite", id="nan"),
        pytest.param("pixel_size_pm", "8pm", "is not a number", id="unit-in-number"),
        pytest.param("deadline_ms", "0", "from 1 to 600000 ms", id="no-time"),
        pytest.param("deadline_ms", "1e400", "is not finite", id="infinite-time"),
        pytest.param("instrument", "a\nb", "is not a name", id="line-break"),
        pytest.param("frame_id", "x" * 201, "is not a name", id="long-name"),
        pytest.param("false_atoms", "0", "not a share between 0 and 1", id="no-share"),
        pytest.param("false_atoms", "1", "not a share between 0 and 1", id="whole"),
        pytest.param("false_atoms", "-0.1", "not a share between 0 and 1", id="below-nothing"),
        pytest.param("false_atoms", "few", "is not a number", id="share-in-words"),
        pytest.param("false_atoms", "5%", "is not a number", id="per-cent"),
        pytest.param("ensemble", "graphene", "no such name", id="name-of-select-only"),
        pytest.param("💥", "1", "no such name", id="emoji"),
    ],
)
def test_a_query_that_cannot_be_used_is_refused(name: str, value: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        read_query([(name, value)], PREDICT_NAMES)


def test_selection_takes_no_bound_as_it_gives_no_atoms() -> None:
    with pytest.raises(InvalidInput, match="no such name"):
        read_query([("false_atoms", "0.05")], SELECT_NAMES)


def test_all_faults_of_a_query_are_told_at_once() -> None:
    with pytest.raises(InvalidInput) as told:
        read_query([("want", "x"), ("wnat", "y"), ("deadline_ms", "soon")], PREDICT_NAMES)
    assert all(word in told.value.what for word in ("want:", "'wnat'", "deadline_ms:"))


def test_a_name_given_twice_is_refused_as_neither_can_be_meant() -> None:
    with pytest.raises(InvalidInput, match="given twice"):
        read_query([("want", "atoms"), ("want", "mean")], PREDICT_NAMES)


def test_selection_may_be_limited_to_one_ensemble() -> None:
    assert read_query([("ensemble", "graphene@3")], SELECT_NAMES).ensemble == "graphene@3"

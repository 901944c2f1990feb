"""Errors: three parts, one status and one exit code each."""

import inspect
import pickle

import pytest

from manybeam import errors

OURS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ManybeamError)
]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_an_error_crosses_a_process_border_whole(kind: type[errors.ManybeamError]) -> None:
    error = kind("what", "why", "try")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.what, back.why, back.hint) == (kind, "what", "why", "try")


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_an_error_refines_a_built_in(kind: type[errors.ManybeamError]) -> None:
    assert kind is errors.ManybeamError or len(kind.__mro__) > 4


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        pytest.param(errors.InvalidFrame, 422, 2, id="frame"),
        pytest.param(errors.UnreadableFile, 400, 2, id="file"),
        pytest.param(errors.TooLarge, 413, 2, id="large"),
        pytest.param(errors.UnknownRef, 404, 4, id="ref"),
        pytest.param(errors.RefusedByGate, 409, 6, id="gate"),
        pytest.param(errors.StoreUnreachable, 503, 3, id="store"),
        pytest.param(errors.NotAllowed, 403, 5, id="denied"),
        pytest.param(errors.OutOfDistribution, 409, 7, id="drift"),
        pytest.param(errors.MemberDiverged, 500, 1, id="work"),
        pytest.param(KeyError, 500, 1, id="not-ours"),
    ],
)
def test_an_error_has_one_status_and_one_exit_code(
    kind: type[Exception], status: int, code: int
) -> None:
    assert (errors.http_status(kind("x")), errors.exit_code(kind("x"))) == (status, code)


def test_an_interrupt_exits_with_130() -> None:
    assert errors.exit_code(KeyboardInterrupt()) == 130


def test_empty_parts_leave_no_stray_punctuation() -> None:
    assert str(errors.NotFound("no such thing")) == "no such thing"

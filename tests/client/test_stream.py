"""Streams of frames over HTTP, against the real service; both policies, cuts and bad frames."""

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from manybeam_client import Session

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


def named(frame: Any, count: int) -> Iterator[Any]:
    for number in range(count):
        yield frame + number, {"frame_id": f"f{number}"}


def test_all_frames_are_answered_once_in_order_as_single_requests_are(url: str, frame: Any) -> None:
    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        expected = [session.predict(one).atoms for one, _ in named(frame, 12)]
        answers = list(session.stream(named(frame, 12), policy="all", in_flight=4))
    assert [one.frame_id for one in answers] == [f"f{number}" for number in range(12)]
    for answer, atoms in zip(answers, expected, strict=True):
        assert np.array_equal(answer.atoms, atoms, equal_nan=True)


def test_all_lets_the_source_wait_for_the_answers(url: str, frame: Any) -> None:
    read: list[int] = []

    def source() -> Iterator[Any]:
        for number in range(8):
            read.append(number)
            yield frame

    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        for taken, answer in enumerate(session.stream(source(), policy="all", in_flight=2)):
            assert answer
            assert len(read) <= taken + 1 + 2


def test_latest_never_lets_the_source_wait_and_drops_what_is_old(url: str, frame: Any) -> None:
    is_read, may_go = threading.Event(), threading.Event()

    def source() -> Iterator[Any]:
        yield from named(frame, 20)  # nobody takes an answer meanwhile
        is_read.set()
        may_go.wait(10)

    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        answers = session.stream(source(), policy="latest", in_flight=2)
        got = [next(answers).frame_id]
        assert is_read.wait(10)
        may_go.set()
        got += [one.frame_id for one in answers]
        assert got[-1] == "f19"
        assert len(got) + session.stats.dropped == 20
        assert session.stats.dropped > 0


def test_a_frame_that_is_none_has_an_error_in_its_place(url: str, frame: Any) -> None:
    source = [frame, np.zeros((2, 3, 4)), frame, (frame, {"colour": 1}), np.zeros((16, 16)), frame]
    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        answers = list(session.stream(source, policy="all"))
    assert [bool(one) for one in answers] == [True, False, True, False, False, True]
    assert {one.error.kind for one in answers if one.error} == {"refused"}


def test_an_error_of_the_source_comes_after_the_answers_before_it(url: str, frame: Any) -> None:
    def source() -> Iterator[Any]:
        yield from named(frame, 3)
        raise OSError("the camera is gone")

    answered = []
    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        with pytest.raises(OSError, match="camera"):
            answered.extend(bool(one) for one in session.stream(source(), policy="all"))
    assert answered == [True] * 3


def test_memory_of_the_source_may_be_used_again(url: str, frame: Any) -> None:
    def source() -> Iterator[Any]:
        own = np.empty_like(frame)
        for number in range(6):
            own[:] = frame[:, :: (-1) ** number]
            yield own

    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        expected = [session.predict(frame).atoms, session.predict(frame[:, ::-1]).atoms] * 3
        answers = list(session.stream(source(), policy="all", in_flight=3))
    for answer, atoms in zip(answers, expected, strict=True):
        assert np.array_equal(answer.atoms, atoms, equal_nan=True)


def test_the_loop_goes_on_through_a_cut(wire: Any, frame: Any, until: Callable[..., None]) -> None:
    with Session(wire.url, instrument=uuid.uuid4().hex, pixel_size_pm=16) as session:

        def source() -> Iterator[Any]:
            yield from named(frame, 3)
            until(lambda: session.stats.answered == 3)
            wire.cut()
            yield from [frame] * 20
            wire.mend()
            until(lambda: not session.is_offline)
            yield from [frame] * 3

        answers = list(session.stream(source(), policy="all", transport="http"))
    assert [bool(one) for one in answers] == [True] * 3 + [False] * 20 + [True] * 3


def test_a_closed_stream_ends_its_threads_and_its_source(
    url: str, frame: Any, no_threads_left: Callable[[], Any]
) -> None:
    is_closed = threading.Event()

    def source() -> Iterator[Any]:
        try:
            while True:
                yield frame
        finally:
            is_closed.set()

    with no_threads_left(), Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        answers = session.stream(source(), policy="all")
        assert next(answers)
        answers.close()
        assert is_closed.wait(10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"policy": "newest"}, "latest, all", id="policy"),
        pytest.param({"in_flight": 0}, "1 to 64", id="in-flight"),
        pytest.param({"transport": "websocket"}, "instrument", id="no-instrument"),
    ],
)
def test_arguments_that_cannot_be_used_raise_at_once(options: dict[str, Any], words: str) -> None:
    with Session("http://127.0.0.1:9") as session, pytest.raises(ValueError, match=words):
        session.stream([], **options)


def test_a_service_without_streams_is_asked_over_http(
    url: str, frame: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with Session(url, instrument=uuid.uuid4().hex, pixel_size_pm=16) as session:
        answers = list(session.stream(named(frame, 6), policy="all", in_flight=3))
    assert [one.frame_id for one in answers if one] == [f"f{number}" for number in range(6)]
    assert len([one for one in caplog.records if "uses HTTP" in one.message]) == 1

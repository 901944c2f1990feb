"""Streams of frames to the real service, by both transports: policies, cuts, bad frames."""

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import urllib3

from manybeam_client import Session

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


Streaming = Callable[..., Iterator[Any]]


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    made = Session(url, instrument=uuid.uuid4().hex, ensemble="graphene", pixel_size_pm=16)
    with made:
        yield made


@pytest.fixture(params=["http", "websocket"])
def stream(session: Session, request: pytest.FixtureRequest) -> Streaming:
    """Stream by one of the transports."""
    return lambda source, **more: session.stream(source, transport=request.param, **more)


def named(frame: Any, count: int) -> Iterator[Any]:
    for number in range(count):
        yield frame + number, {"frame_id": f"f{number}"}


def test_all_frames_are_answered_once_in_order_as_single_requests_are(
    session: Session, stream: Streaming, frame: Any
) -> None:
    expected = [session.predict(one).atoms for one, _ in named(frame, 12)]
    answers = list(stream(named(frame, 12), policy="all", in_flight=4))
    assert [one.frame_id for one in answers] == [f"f{number}" for number in range(12)]
    for answer, atoms in zip(answers, expected, strict=True):
        assert np.array_equal(answer.atoms, atoms, equal_nan=True)


def test_all_lets_the_source_wait_for_the_answers(
    session: Session, stream: Streaming, frame: Any
) -> None:
    read: list[int] = []

    def source() -> Iterator[Any]:
        for number in range(8):
            read.append(number)
            yield frame

    for taken, answer in enumerate(stream(source(), policy="all", in_flight=2)):
        assert answer
        assert len(read) <= taken + 1 + 2


def test_latest_never_lets_the_source_wait_and_drops_what_is_old(
    session: Session, stream: Streaming, frame: Any
) -> None:
    is_read, may_go = threading.Event(), threading.Event()

    def source() -> Iterator[Any]:
        yield from named(frame, 20)  # nobody takes an answer meanwhile
        is_read.set()
        may_go.wait(10)

    answers = stream(source(), policy="latest", in_flight=2)
    got = [next(answers).frame_id]
    assert is_read.wait(10)
    may_go.set()
    got += [one.frame_id for one in answers]
    assert got[-1] == "f19"
    assert len(got) + session.stats.dropped == 20
    assert session.stats.dropped > 0


def test_a_frame_that_is_none_has_an_error_in_its_place(
    session: Session, stream: Streaming, frame: Any
) -> None:
    source = [frame, np.zeros((2, 3, 4)), frame, (frame, {"colour": 1}), np.zeros((16, 16)), frame]
    answers = list(stream(source, policy="all"))
    assert [bool(one) for one in answers] == [True, False, True, False, False, True]
    assert {one.error.kind for one in answers if one.error} == {"refused"}


def test_an_error_of_the_source_comes_after_the_answers_before_it(
    session: Session, stream: Streaming, frame: Any
) -> None:
    def source() -> Iterator[Any]:
        yield from named(frame, 3)
        raise OSError("the camera is gone")

    answered = []
    with pytest.raises(OSError, match="camera"):
        answered.extend(bool(one) for one in stream(source(), policy="all"))
    assert answered == [True] * 3


def test_memory_of_the_source_may_be_used_again(
    session: Session, stream: Streaming, frame: Any
) -> None:
    def source() -> Iterator[Any]:
        own = np.empty_like(frame)
        for number in range(6):
            own[:] = frame[:, :: (-1) ** number]
            yield own

    expected = [session.predict(frame).atoms, session.predict(frame[:, ::-1]).atoms] * 3
    answers = list(stream(source(), policy="all", in_flight=3))
    for answer, atoms in zip(answers, expected, strict=True):
        assert np.array_equal(answer.atoms, atoms, equal_nan=True)


def test_the_loop_goes_on_through_a_cut(wire: Any, frame: Any, until: Callable[..., None]) -> None:
    answers: list[bool] = []

    def slow(count: int) -> Iterator[Any]:
        for end in range(len(answers) + 1, len(answers) + count + 1):
            yield frame
            until(lambda end=end: len(answers) == end)

    with Session(wire.url, instrument=uuid.uuid4().hex, pixel_size_pm=16) as session:

        def source() -> Iterator[Any]:
            yield from slow(3)
            wire.cut()
            yield from slow(20)
            wire.mend()
            until(lambda: not session.is_offline)
            yield from slow(3)

        answers.extend(map(bool, session.stream(source(), policy="latest", transport="http")))
    assert answers == [True] * 3 + [False] * 20 + [True] * 3


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_all_frames_are_answered_once_through_a_cut(wire: Any, frame: Any, transport: str) -> None:
    with Session(wire.url, instrument=uuid.uuid4().hex, pixel_size_pm=16) as session:

        def source() -> Iterator[Any]:
            for number, named_one in enumerate(named(frame, 30)):
                if number == 10:
                    wire.cut()
                    threading.Timer(1.0, wire.mend).start()
                yield named_one

        answers = list(session.stream(source(), policy="all", transport=transport))
    assert [one.frame_id for one in answers if one] == [f"f{number}" for number in range(30)]
    assert len(answers) == 30


def test_reconnections_lose_no_frame_and_record_none_twice(
    wire: Any, url: str, frame: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manybeam_client.stream.socket.jitter_s", lambda *_: 0.001)
    instrument, got = uuid.uuid4().hex, []
    with Session(wire.url, instrument=instrument, pixel_size_pm=16) as session:
        answers = session.stream(named(frame, 40), policy="all", transport="websocket")
        for number, answer in enumerate(answers):
            got.append(answer.meta["session"]["frame_ids"][0])
            if number % 2:
                wire.reset()
        assert session.stats.reconnections >= 15
    assert got == [f"f{number}" for number in range(40)]
    path = f"{url}/v1/instruments/{instrument}/session"
    told = urllib3.request("GET", path).json()
    assert told["counts"]["frames"] == 40


def test_a_newer_stream_of_the_instrument_ends_the_older_one(
    url: str, session: Session, frame: Any, until: Callable[..., None]
) -> None:
    first = session.stream([frame] * 10**6, policy="all", transport="websocket")
    assert next(first)
    with Session(url, instrument=session.instrument, pixel_size_pm=16) as other:
        newer = other.stream([frame] * 3, policy="all", transport="websocket")
        assert next(newer)
        *answered, last = first
        assert all(answered)
        assert last.error.kind == "taken-over"
        assert all(newer)


def test_a_session_that_a_person_ends_is_started_again(
    url: str, session: Session, frame: Any
) -> None:
    answers = session.stream([frame] * 10**6, policy="all", transport="websocket")
    before = next(answers).meta["session"]["id"]
    urllib3.request("DELETE", f"{url}/v1/instruments/{session.instrument}/session")
    after = next(one for one in answers if one and one.meta["session"]["id"] != before)
    assert after.meta["session"]["policy"] == "auto"
    answers.close()


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


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_stream_that_nobody_begins_starts_no_thread(
    session: Session, frame: Any, transport: str
) -> None:
    before = threading.active_count()
    answers = session.stream([frame], transport=transport)
    assert threading.active_count() <= before
    session.close()
    del answers


def test_the_end_of_a_session_ends_a_stream_that_is_suspended(
    session: Session, stream: Streaming, frame: Any, no_threads_left: Callable[[], Any]
) -> None:
    is_closed = threading.Event()

    def source() -> Iterator[Any]:
        try:
            while True:
                yield frame
        finally:
            is_closed.set()

    with no_threads_left():
        answers = stream(source(), policy="all")
        assert next(answers)
        session.close()
        assert is_closed.wait(10)
    assert list(answers) == []


def test_an_interpreter_ends_with_a_suspended_stream(url: str) -> None:
    program = (
        "import itertools, sys, numpy as np\n"
        "from manybeam_client import Session\n"
        "session = Session(sys.argv[1], instrument='exit-' + sys.argv[2], pixel_size_pm=16)\n"
        "session.__enter__()\n"
        "frames = itertools.repeat(np.random.default_rng(0).random((48, 56)))\n"
        "answers = session.stream(frames, transport=sys.argv[2].split('-')[0])\n"
        "print(bool(next(answers)), bool(next(answers)))\n"
    )
    kinds = [f"{transport}-{number}" for transport in ("http", "websocket") for number in range(2)]
    started = [
        subprocess.Popen([sys.executable, "-c", program, url, kind], stdout=subprocess.PIPE)
        for kind in kinds
    ]
    said = [one.communicate(timeout=25)[0].split() for one in started]
    assert said == [[b"True", b"True"]] * 4
    assert [one.returncode for one in started] == [0] * 4


class Camera:
    """Is its own iterator; a frame whose values cannot be had stands for one that must fail."""

    def __init__(self, frames: list[Any]) -> None:
        self._frames, self.is_closed = iter(frames), False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._frames)

    def close(self) -> None:
        self.is_closed = True


class OnAnotherDevice:
    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("copy it first")


def test_a_camera_is_not_closed_and_a_frame_that_cannot_be_read_keeps_its_name(
    session: Session, stream: Streaming, frame: Any
) -> None:
    camera = Camera([frame, (OnAnotherDevice(), {"frame_id": "mine"}), OnAnotherDevice(), frame])
    answers = list(stream(camera, policy="all"))
    assert [bool(one) for one in answers] == [True, False, False, True]
    assert answers[1].frame_id == "mine"
    assert "copy it first" in str(answers[2].error)
    assert not camera.is_closed


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

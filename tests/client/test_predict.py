"""One frame at a time with `Session.predict`, against the real service."""

import io
import json
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from manybeam_client import Session, Unanswered

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

RAMP = np.add.outer(np.arange(48), np.arange(56))


def ask(url: str, path: str, body: bytes | None = None, method: str = "POST") -> Any:
    request = urllib.request.Request(url + path, body, method=method)
    request.add_header("Content-Type", "application/x-npy")
    with urllib.request.urlopen(request) as reply:
        return reply.read()


def test_the_answer_is_that_of_the_service_bit_for_bit(url: str, frame: Any) -> None:
    stream = io.BytesIO()
    np.save(stream, frame)
    path = "/v1/predict/graphene?pixel_size_pm=16&want=atoms,mean"
    with Session(url, ensemble="graphene", pixel_size_pm=16, want=("atoms", "mean")) as session:
        answer = session.predict(frame)
    with np.load(io.BytesIO(ask(url, path, stream.getvalue()))) as own:
        assert np.array_equal(answer.atoms, own["atoms"], equal_nan=True)
        assert np.array_equal(answer.maps["mean"], own["mean"])
    assert (answer.version, answer.members, answer.ensemble) == (2, [0, 1, 2], "graphene")
    assert len(answer.spread) == len(answer.atoms) > 0
    assert np.allclose(answer.spread_pm, answer.spread * 16, equal_nan=True)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(RAMP.astype(">u2"), id="other-byte-order"),
        pytest.param(np.asfortranarray(RAMP.astype("f8")), id="fortran"),
        pytest.param(np.repeat(RAMP, 2, axis=1)[:, ::2].astype("i4"), id="integers"),
        pytest.param(np.repeat(RAMP, 2, axis=1).astype("f4")[:, ::2], id="strided"),
        pytest.param(RAMP.astype(np.longdouble), id="long-double"),
        pytest.param(RAMP.tolist(), id="lists"),
    ],
)
def test_frames_of_any_layout_have_the_same_answer(url: str, made: Any) -> None:
    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        expected = session.predict(RAMP.astype("f4"))
        answer = session.predict(made)
    assert answer.error is None
    assert np.array_equal(answer.atoms, expected.atoms, equal_nan=True)


@pytest.mark.parametrize(
    ("made", "error"),
    [
        pytest.param(np.zeros((2, 8, 8)), ValueError, id="stack"),
        pytest.param(np.zeros((0, 8)), ValueError, id="empty"),
        pytest.param(np.zeros((8, 8), complex), TypeError, id="complex"),
        pytest.param(np.array([["a"]]), TypeError, id="text"),
        pytest.param(None, TypeError, id="none"),
    ],
)
def test_what_is_no_frame_raises(url: str, made: Any, error: type[Exception]) -> None:
    with Session(url) as session, pytest.raises(error):
        session.predict(made)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"url": "manybeam.lab"}, "https://manybeam.lab", id="url"),
        pytest.param({"instrument": "a\nb"}, "instrument", id="instrument"),
        pytest.param({"deadline_ms": 0}, "deadline_ms", id="deadline"),
        pytest.param({"pixel_size_pm": 0.0078}, "picometres", id="pixel-size"),
        pytest.param({"ca": "/nowhere.pem"}, "there is no such file", id="authority"),
        pytest.param({"token": "a b"}, "token", id="token"),
    ],
)
def test_arguments_that_cannot_be_used_raise(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Session(**options)


@pytest.mark.parametrize(
    ("options", "kind", "status"),
    [
        pytest.param({"ensemble": "graphite"}, "not-found", 404, id="ensemble"),
        pytest.param({"want": ("atom",)}, "refused", 422, id="want"),
    ],
)
def test_a_refusal_is_in_the_answer(
    url: str, frame: Any, options: dict[str, Any], kind: str, status: int
) -> None:
    with Session(url, **options) as session:
        answer = session.predict(frame)
    assert answer.error is not None
    assert (bool(answer), answer.error.kind, answer.error.status) == (False, kind, status)
    assert answer.atoms.shape == (0, 7)
    assert answer.error.request_id in str(answer.error)
    assert "\n" not in str(answer.error)
    with pytest.raises(Unanswered, match=kind):
        answer.raise_for_error()


def test_a_session_of_the_instrument_is_started_and_answers(url: str, frame: Any) -> None:
    instrument = uuid.uuid4().hex
    with Session(url, instrument=instrument, pixel_size_pm=16) as session:
        answer = session.predict(frame, frame_id="scan:1/2")
    assert answer.meta["session"]["frame_ids"] == ["scan:1/2"]
    told = json.loads(ask(url, f"/v1/instruments/{instrument}/session", method="GET"))
    assert (told["policy"], told["ref"], told["pixel_size_pm"]) == ("auto", "auto", 16)


@pytest.mark.parametrize(
    ("options", "pixel_size_pm"),
    [
        pytest.param({}, None, id="left"),
        pytest.param({"ensemble": "graphene@1"}, None, id="other-ensemble"),
        pytest.param({"pixel_size_pm": 16}, 16, id="pixel-size"),
    ],
)
def test_a_pinned_session_stays_pinned(
    url: str, frame: Any, options: dict[str, Any], pixel_size_pm: float | None
) -> None:
    path = f"/v1/instruments/{uuid.uuid4().hex}/session"
    ask(url, path, b'{"policy": "pinned", "ref": "graphene@2", "members": [1]}', "PUT")
    with Session(url, instrument=path.split("/")[3], **options) as session:
        answer = session.predict(frame, pixel_size_pm=16)
    told = json.loads(ask(url, path, method="GET"))
    assert (told["policy"], told["members"], answer.members) == ("pinned", [1], [1])
    assert told["pixel_size_pm"] == pixel_size_pm


def test_the_same_frame_under_its_name_counts_once(url: str, frame: Any) -> None:
    with Session(url, instrument=uuid.uuid4().hex, pixel_size_pm=16) as session:
        first, again = (session.predict(frame, frame_id="a") for _ in range(2))
        other = session.predict(frame[::-1], frame_id="a")
    assert (first.meta["session"]["repeated"], again.meta["session"]["repeated"]) == ([], ["a"])
    assert other.error is not None
    assert other.error.kind == "conflict"


def test_a_closed_session_answers_that_it_is_closed(
    url: str, frame: Any, no_threads_left: Callable[[], Any]
) -> None:
    with no_threads_left(), Session(url, ensemble="graphene") as session:
        assert session.predict(frame, pixel_size_pm=16)
    closed = session.predict(frame).error
    assert closed is not None
    assert closed.kind == "closed"

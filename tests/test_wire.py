"""The forms on the wire: bodies read or refused, answers and problems written."""

import contextlib
import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manybeam.errors import (
    Busy,
    InvalidFrame,
    InvalidInput,
    ManybeamError,
    TooLarge,
    UnreadableFile,
    UnsupportedMedia,
    problem,
)
from manybeam.serve import wire

FRAME = np.arange(35, dtype=np.float32).reshape(5, 7)
NPY = {"content-type": wire.NPY}
LIMIT = 10_000


def npy(array: Any, **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


def raw(dtype: str, shape: str) -> dict[str, str]:
    return {"content-type": wire.RAW, "x-dtype": dtype, "x-shape": shape}


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", ">u2", ">f4", ">f8", "<f8", "float16", "int64", "bool"]
)
def test_a_frame_of_any_real_type_means_the_same_numbers(dtype: str) -> None:
    array = (FRAME % 2 if dtype == "bool" else FRAME).astype(dtype)
    from_npy = wire.read_frames(wire.read_body(npy(array), NPY), LIMIT)
    from_raw = wire.read_frames(wire.read_body(array.tobytes(), raw(dtype, "5,7")), LIMIT)
    assert np.array_equal(from_npy.frames[0], array.astype(np.float32))
    assert np.array_equal(from_raw.frames[0], from_npy.frames[0])
    assert from_npy.frames[0].dtype == np.float32


def test_a_stack_stays_a_stack_even_of_one_frame() -> None:
    frames = wire.read_frames(wire.read_body(npy(FRAME[None]), NPY), LIMIT)
    assert frames.is_stack
    assert len(frames.frames) == 1


@pytest.mark.parametrize(
    "shape", [(5, 7), (5, 7, 1), (1, 5, 7, 1), (1, 5, 7), (1, 1, 5, 7)], ids=str
)
def test_axes_of_length_one_do_not_make_other_frames(shape: tuple[int, ...]) -> None:
    frames = wire.read_frames(FRAME.reshape(shape), LIMIT)
    assert np.array_equal(frames.frames[0], FRAME)
    assert len(frames.frames) == 1
    assert frames.is_stack == (shape in {(1, 5, 7), (1, 1, 5, 7)})


@pytest.mark.parametrize("shape", [(96, 12, 2), (5, 7, 2), (96, 12, 3), (8, 12, 4)], ids=str)
def test_channels_last_are_refused_and_never_taken_for_narrow_frames(
    shape: tuple[int, ...],
) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with pytest.raises(InvalidFrame, match=rf"one frame with {shape[-1]} channels last"):
        wire.read_frames(array, LIMIT)


def test_channels_first_and_tiny_frames_are_stacks() -> None:
    for shape in ((2, 96, 12), (9, 4, 4), (3, 3, 3)):
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        assert len(wire.read_frames(array, LIMIT).frames) == shape[0]


def test_a_few_missing_pixels_are_filled_and_noted() -> None:
    array = FRAME.copy()
    array[0, 0] = np.nan
    frames = wire.read_frames(wire.read_body(npy(array), NPY), LIMIT)
    assert np.isfinite(frames.frames[0]).all()
    assert frames.notes


def test_a_body_without_a_type_is_known_by_its_first_bytes() -> None:
    assert np.array_equal(wire.read_body(npy(FRAME), {}), FRAME)


class Exploding:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


PICKLED = npy(np.array([Exploding()], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("body", "headers", "error", "told"),
    [
        pytest.param(b"", NPY, UnreadableFile, "empty", id="empty"),
        pytest.param(npy(FRAME)[:-1], NPY, UnreadableFile, "cut short", id="truncated"),
        pytest.param(npy(FRAME)[:20], NPY, UnreadableFile, "not an .npy", id="truncated-header"),
        pytest.param(npy(FRAME) + b"x", NPY, UnreadableFile, "141 bytes", id="too-long"),
        pytest.param(PICKLED, NPY, UnreadableFile, "pickled", id="object-array"),
        pytest.param(pickle.dumps(FRAME), NPY, UnreadableFile, "not an .npy", id="pickle"),
        pytest.param(b"PK\x03\x04abc", NPY, UnreadableFile, "not an .npy", id="npz"),
        pytest.param(npy(np.asfortranarray(FRAME)), NPY, UnreadableFile, "Fortran", id="fortran"),
        pytest.param(npy(FRAME * 1j), NPY, InvalidFrame, "complex|<c8", id="complex"),
        pytest.param(npy(np.array(["a"])), NPY, InvalidFrame, "not those of a frame", id="text"),
        pytest.param(
            npy(np.zeros(3, [("a", "f4")])), NPY, InvalidFrame, "not those of a frame", id="record"
        ),
        pytest.param(npy(FRAME.astype("g")), NPY, InvalidFrame, "64 bits", id="longdouble"),
        pytest.param(b"{}", {"content-type": wire.JSON}, UnsupportedMedia, "x-npy", id="json"),
        pytest.param(FRAME.tobytes(), {}, UnsupportedMedia, "X-Dtype", id="raw-unsaid"),
        pytest.param(
            npy(FRAME), {**NPY, "content-encoding": "gzip"}, UnsupportedMedia, "gzip", id="gzip"
        ),
        pytest.param(
            FRAME.tobytes(), raw("<f4", "5,8"), UnreadableFile, "140 bytes", id="wrong-shape"
        ),
        pytest.param(FRAME.tobytes(), raw("<f4", "5x7"), InvalidInput, "X-Shape", id="odd-shape"),
        pytest.param(FRAME.tobytes(), raw("<f4", "-5,-7"), InvalidInput, "X-Shape", id="negative"),
        pytest.param(FRAME.tobytes(), raw("O", "35"), InvalidInput, "X-Dtype", id="raw-object"),
        pytest.param(
            FRAME.tobytes(), raw("f4,f4", "5,7"), InvalidInput, "X-Dtype", id="raw-record"
        ),
        pytest.param(FRAME.tobytes(), raw("f3", "5,7"), InvalidInput, "X-Dtype", id="no-such-type"),
        pytest.param(FRAME.tobytes(), raw("", ""), InvalidInput, "X-Dtype", id="no-headers"),
        pytest.param(
            FRAME.tobytes(), raw("f4", "999999999,999999999"), UnreadableFile, "35|140", id="huge"
        ),
    ],
)
def test_a_body_that_is_no_array_is_refused(
    body: bytes, headers: dict[str, str], error: type[ManybeamError], told: str
) -> None:
    with pytest.raises(error, match=told):
        wire.read_body(body, headers)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        pytest.param(np.arange(9.0), InvalidFrame, id="1-D"),
        pytest.param(np.zeros((2, 2, 2, 2)), InvalidFrame, id="4-D"),
        pytest.param(np.float32(1), InvalidFrame, id="0-D"),
        pytest.param(np.zeros((0, 7)), InvalidFrame, id="no-rows"),
        pytest.param(np.zeros((0, 5, 7)), InvalidFrame, id="stack-of-none"),
        pytest.param(np.zeros((0, 5, 7, 1)), InvalidFrame, id="stack-of-none-channel-last"),
        pytest.param(np.zeros((1, 0, 5, 7)), InvalidFrame, id="stack-of-none-of-one"),
        pytest.param(np.ones((5, 7)), InvalidFrame, id="constant"),
        pytest.param(np.ones((1, 1)), InvalidFrame, id="one-pixel"),
        pytest.param(np.zeros((32, 32, 3), "u1"), InvalidFrame, id="colour-picture"),
        pytest.param(np.full((5, 7), np.nan), UnreadableFile, id="all-nan"),
        pytest.param(np.full((5, 7), -np.inf), UnreadableFile, id="all-infinite"),
        pytest.param(np.zeros((101, 100)), TooLarge, id="too-many-pixels"),
    ],
)
def test_an_array_that_is_no_frame_is_refused(array: Any, error: type[ManybeamError]) -> None:
    with pytest.raises(error):
        wire.read_frames(np.asarray(array), LIMIT)


def test_a_bad_frame_of_a_stack_is_named() -> None:
    stack = np.stack([FRAME, np.zeros_like(FRAME)])
    with pytest.raises(InvalidFrame, match="frame 1: "):
        wire.read_frames(stack, LIMIT)


@given(junk=st.binary(max_size=300), is_npy=st.booleans())
def test_no_bytes_whatever_bring_reading_down(junk: bytes, *, is_npy: bool) -> None:
    body = npy(FRAME)[:10] + junk if is_npy else junk
    try:
        wire.read_frames(wire.read_body(body, NPY), LIMIT)
    except ManybeamError:
        return
    pytest.fail("junk was taken for a frame")


@given(st.data())
def test_no_damage_to_a_header_brings_reading_down(data: st.DataObject) -> None:
    body = bytearray(npy(FRAME))
    for place in data.draw(st.lists(st.integers(0, 127), max_size=4)):
        body[place] = data.draw(st.sampled_from(b"'(){}[],:#\\\"\n\0 9Lx<f\xff"))
    cut = data.draw(st.integers(0, 128))
    body[cut : cut + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    with contextlib.suppress(ManybeamError):
        wire.read_frames(wire.read_body(bytes(body), NPY), LIMIT)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["x-dtype", "x-shape"]), st.text(max_size=30)))
def test_no_headers_whatever_bring_reading_down(headers: dict[str, str]) -> None:
    with pytest.raises(ManybeamError):
        wire.read_frames(wire.read_body(b"12345", {"content-type": wire.RAW, **headers}), LIMIT)


def test_a_header_that_claims_more_than_there_is_costs_no_memory() -> None:
    claim = npy(FRAME).replace(b"(5, 7), ", b"(9999999, 9999999), ", 1)
    with pytest.raises(UnreadableFile):
        wire.read_body(claim, NPY)


def test_a_length_is_refused_before_the_body_is_read() -> None:
    limit = wire.body_limit(LIMIT)
    wire.check_length(limit, limit)
    with pytest.raises(TooLarge, match=str(limit)):
        wire.check_length(limit + 1, limit)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", wire.NPZ),
        ("*/*", wire.NPZ),
        ("application/json", wire.JSON),
        ("application/json;q=0.9, text/html", wire.JSON),
        ("application/json, application/x-npz", wire.NPZ),
    ],
)
def test_the_answer_comes_as_npz_unless_json_is_asked_for(accept: str, form: str) -> None:
    assert wire.answer_form(accept, ("atoms",)) == form


def test_maps_are_not_sent_as_json_and_other_forms_not_at_all() -> None:
    with pytest.raises(InvalidInput, match="want=mean,std"):
        wire.answer_form(wire.JSON, ("mean", "std", "atoms"))
    with pytest.raises(UnsupportedMedia, match="image/png"):
        wire.answer_form("image/png", ("atoms",))


def test_an_answer_is_read_without_pickle_and_is_not_compressed() -> None:
    atoms = np.zeros((2, 7), np.float32)
    content = wire.write_npz({"atoms": atoms}, {"why": "µ"})
    with np.load(io.BytesIO(content), allow_pickle=False) as answer:
        assert np.array_equal(answer["atoms"], atoms)
        assert json.loads(answer["meta"].tobytes()) == {"why": "µ"}
    assert atoms.tobytes() in content


def test_json_says_null_where_a_spread_is_not_known() -> None:
    atoms = np.array([[1, 2, 6, 0.5, np.nan, np.nan, 0.25]], np.float32)
    frame_of = np.array([3], np.int32)
    content = wire.write_json({"atoms": atoms, "atoms_frame": frame_of}, {})
    atom = json.loads(content)["atoms"][0]
    assert (atom["x"], atom["spread_y_px"], atom["votes"], atom["frame"]) == (2.0, None, 0.25, 3)


def test_a_problem_says_what_is_wrong_what_to_do_and_which_request_it_was() -> None:
    assert problem(Busy("full", "32 at most", "come back"), "r-1") == {
        "type": "urn:manybeam:busy",
        "title": "Too many requests are waiting; send the same request again soon",
        "status": 429,
        "detail": "full; 32 at most",
        "hint": "come back",
        "request_id": "r-1",
    }

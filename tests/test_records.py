"""zoo.records: references as people type them, and the manifest that makes a version."""

import pytest

from manybeam.errors import Corrupt, InvalidInput, UnknownRef
from manybeam.spec import Job
from manybeam.zoo.records import MemberRecord, Ref, read_manifest, write_manifest

MEMBER = MemberRecord(
    index=3,
    seed=7,
    policy="broad",
    recipe="unet-small@1",
    network={"name": "unet"},
    parent="",
    data_digest="d" * 32,
    final_loss=0.25,
    wall_s=4.0,
    model_id="m-1",
    sha256="a" * 64,
    byte_count=10,
    card_sha256="b" * 64,
)


def manifest_of(job: dict[str, object]) -> bytes:
    return write_manifest(
        "graphene", [MEMBER], job=job, failed=["04: diverged"], parent="", code_version="1"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("graphene", ("graphene", "serving", None, None), id="name"),
        pytest.param("graphene@candidate", ("graphene", "candidate", None, None), id="alias"),
        pytest.param("graphene@3", ("graphene", None, 3, None), id="version"),
        pytest.param("graphene@3/07", ("graphene", None, 3, 7), id="member"),
        pytest.param("pt-nc.v2@12/0", ("pt-nc.v2", None, 12, 0), id="dots and dashes"),
    ],
)
def test_a_reference_is_read(text: str, expected: tuple[object, ...]) -> None:
    ref = Ref.parse(text)
    assert (ref.name, ref.alias, ref.version, ref.member) == expected


@pytest.mark.parametrize("text", ["", "@3", "a b", "Graphene", "graphene@", "graphene@3/", "g@3/x"])
def test_what_is_no_reference_is_refused_with_the_forms_allowed(text: str) -> None:
    with pytest.raises(UnknownRef, match="name@serving"):
        Ref.parse(text)


def test_a_manifest_reads_back_as_written() -> None:
    record = read_manifest(manifest_of({"kind": "train"}))
    assert record.members == (MEMBER,)
    assert (record.name, record.job, record.failed) == (
        "graphene", {"kind": "train"}, ("04: diverged",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "kind"),
    [
        pytest.param({"kind": "rehearse", "rehearsal": {"frame_count": 300}}, "calibrate", id="1"),
        pytest.param(
            {"kind": "iterate", "frames": ["a"], "adapt": {"policy": "p", "teacher": "twin"}},
            "adapt",
            id="2",
        ),
    ],
)
def test_a_recorded_job_in_old_words_still_loads(old: dict[str, object], kind: str) -> None:
    job = read_manifest(manifest_of({**old, "name": "g", "ensemble": "g"})).job
    assert Job.model_validate(job).kind == kind


def test_a_member_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UnknownRef, match="members: 03; failed: 04: diverged"):
        read_manifest(manifest_of({})).member(4)


def test_a_job_that_is_not_plain_data_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be written as JSON"):
        manifest_of({"loss": float("nan")})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xff", id="no text"),
        pytest.param(b"[]", id="no mapping"),
        pytest.param(b"{}", id="no fields"),
        pytest.param(b'{"format": "manybeam-ensemble-9"}', id="a later form"),
    ],
)
def test_what_is_no_manifest_is_corrupt(content: bytes) -> None:
    with pytest.raises(Corrupt, match="manifest of an ensemble cannot be read"):
        read_manifest(content)

"""zoo.lineage and zoo.sheets: where a version came from, what came of it, how it was measured."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from manybeam.data.store import open_store
from manybeam.errors import Corrupt, InvalidInput, NotFound, StoreUnreachable, UnknownRef
from manybeam.settings import settings
from manybeam.zoo.lineage import lineage, note_prediction, prediction_of, uses_of
from manybeam.zoo.matrix import ENSEMBLE, FrameSetUse, Score, TestSet
from manybeam.zoo.registry import Zoo
from manybeam.zoo.score_reports import read_report, write_report

pytestmark = pytest.mark.slow

FRAMES = FrameSetUse("s3://lab/frames/a", "1" * 32)
JOB = {"kind": "train"}


def test_a_version_tells_where_it_came_from_and_what_came_of_it(
    zoo: Zoo, name: str, tiny_members: Any
) -> None:
    members = tiny_members(1)
    zoo.register(name, members, job=JOB, inputs=[FRAMES])
    zoo.register(name, members, job={"kind": "iterate"}, parent=f"{name}@1")
    zoo.register(name, members, job={"kind": "iterate"}, parent=f"{name}@2")
    middle = lineage(zoo, f"{name}@2")
    assert [one.ref for one in middle.parents] == [f"{name}@1"]
    assert middle.children == (f"{name}@3",)
    assert [one.ref for one in lineage(zoo, f"{name}@3").parents] == [f"{name}@2", f"{name}@1"]
    rows = {(row["what"], row["which"]) for row in lineage(zoo, f"{name}@1").rows()}
    assert {("frame set", FRAMES.url), ("child", f"{name}@2"), ("job", "train")} <= rows
    assert ("member", f"{name}@1/00") in rows


@pytest.mark.parametrize("asked", [FRAMES.url, FRAMES.url + "/", FRAMES.digest])
def test_frames_tell_which_versions_were_trained_on_them(
    embedded: Zoo, tiny_members: Any, asked: str
) -> None:
    other = FrameSetUse("s3://lab/frames/b", "2" * 32)
    for inputs in ([FRAMES], [other], [other, FRAMES]):
        embedded.register("graphene", tiny_members(1), job=JOB, inputs=inputs)
    embedded.record_scores("graphene@2", [measured_on(FRAMES)])
    embedded.record_scores("graphene@3", [measured_on(FRAMES)])
    assert uses_of(embedded, asked) == (
        ("graphene@1", "trained on"),
        ("graphene@2", "measured on"),
        ("graphene@3", "trained on and measured on"),
    )
    with pytest.raises(NotFound, match="no version was trained on"):
        uses_of(embedded, "s3://lab/frames/c")


def measured_on(*uses: FrameSetUse) -> Score:
    return Score(ENSEMBLE, "dim-frames", "d" * 32, {"f1": 0.9}, test_set=TestSet(frame_sets=uses))


def test_frames_that_scores_were_measured_on_are_in_the_lineage_of_a_version(
    zoo: Zoo, name: str, tiny_members: Any
) -> None:
    copy, later = FrameSetUse("s3://lab/copy", FRAMES.digest), FrameSetUse("s3://lab/b", "2" * 32)
    zoo.register(name, tiny_members(1), job=JOB, inputs=[FRAMES], scores=[measured_on(FRAMES)])
    zoo.record_scores(f"{name}@1", [measured_on(copy, later)])
    rows = [row for row in lineage(zoo, f"{name}@1").rows() if row["what"] == "frame set"]
    assert [(row["which"], row["details"]) for row in rows] == [
        (FRAMES.url, f"trained on, digest {FRAMES.digest}"),
        (later.url, f"measured on, digest {later.digest}"),
        (copy.url, f"measured on, digest {copy.digest}"),
        (FRAMES.url, f"measured on, digest {FRAMES.digest}"),
    ]
    assert zoo.matrix(f"{name}@1").frame_sets == (FRAMES, copy, later)


def test_a_parent_that_is_gone_is_named(zoo: Zoo, name: str, tiny_members: Any) -> None:
    zoo.register(name, tiny_members(1), job=JOB, parent=f"{name}@77")
    assert lineage(zoo, f"{name}@1").missing == (f"{name}@77",)
    with pytest.raises(UnknownRef):
        lineage(zoo, f"{name}@2")


def test_answers_that_were_kept_tell_their_version_and_it_them(
    zoo: Zoo, name: str, tiny_members: Any
) -> None:
    import zarr

    zoo.register(name, tiny_members(1), job=JOB)
    url = f"{settings().store_url}/answers/scan-1"
    root = zarr.create_group(open_store(url).zarr())
    root.create_group("00000").attrs.update({"ensemble": f"{name}@1"})
    note_prediction(f"{name}@1", url)
    assert prediction_of(url) == f"{name}@1"
    assert prediction_of(f"{settings().store_url}/answers/none") == ""
    assert lineage(zoo, f"{name}@1").predictions == (url,)


def test_a_record_says_which_packages_it_was_made_with(
    zoo: Zoo, name: str, tiny_members: Any
) -> None:
    from importlib.metadata import version

    zoo.register(name, tiny_members(1), job=JOB, inputs=[FRAMES])
    record = Zoo(zoo.tracking.uri, zoo.tracking.artifacts).resolve(f"{name}@1")
    assert record.environment["torch"] == version("torch")
    assert record.inputs == (FRAMES,)
    assert json.loads(json.dumps(record.to_json()))["inputs"] == [
        {"url": FRAMES.url, "digest": FRAMES.digest}
    ]


# -- sheets -------------------------------------------------------------------------------------
def test_scores_come_back_with_their_counts_date_and_scorer(
    zoo: Zoo, name: str, tiny_members: Any
) -> None:
    zoo.register(name, tiny_members(1), job=JOB)
    given = Score(ENSEMBLE, "dim", "d" * 32, {"f1": 0.9, "frames": 2.0}, ((9, 1, 1), (8, 2, 0)))
    zoo.record_scores(f"{name}@1", [given])
    found = zoo.matrix(f"{name}@1").score(ENSEMBLE, "dim")
    assert found is not None
    assert found.counts == given.counts
    assert found.values == given.values
    assert found.scorer
    assert found.taken is not None
    assert abs((datetime.now(UTC) - found.taken).total_seconds()) < 60


def test_scores_under_other_numbers_of_a_condition_are_kept_apart(
    zoo: Zoo, name: str, tiny_members: Any
) -> None:
    zoo.register(name, tiny_members(1), job=JOB)
    for digest, f1 in (("a" * 32, 0.4), ("b" * 32, 0.8)):
        zoo.record_scores(f"{name}@1", [Score(0, "dim", digest, {"f1": f1})])
    matrix = zoo.matrix(f"{name}@1")
    assert (matrix.value(0, "dim"), matrix.superseded) == (0.8, (("dim", "a" * 32),))
    assert matrix.at("dim", "a" * 32).value(0, "dim") == 0.4


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"format": "x", "rows": []}', b'{"format": "manybeam-scores-1", "rows": [1]}'],
)
def test_bytes_that_are_no_score_report_are_refused(content: bytes) -> None:
    with pytest.raises(Corrupt, match="score report cannot be read"):
        read_report(content)


def test_a_sheet_says_when_rows_were_taken_only_if_they_do_not() -> None:
    taken = datetime(2026, 1, 2, tzinfo=UTC)
    rows = [Score(0, "dim", "d", {"f1": 0.5}, taken=taken, scorer="old"), Score(1, "dim", "d")]
    first, second = read_report(write_report(rows, now=datetime(2026, 2, 3, tzinfo=UTC)))
    assert (first.taken, first.scorer) == (taken, "old")
    assert second.taken == datetime(2026, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ("taken", '"0001-01-01T00:00:00"'),
        ("taken", '"9999-12-31T23:59:59-23:00"'),
        ("values", '{"f1": 1' + "0" * 400 + "}"),
        ("values", "[" * 100_000),
    ],
)
def test_a_sheet_of_impossible_values_is_refused(changed: str, to: str) -> None:
    sheet = write_report([Score(0, "dim", "d", {"f1": 0.5})]).decode()
    row = json.loads(sheet)["rows"][0]
    before = json.dumps(row[changed], separators=(",", ":"))
    with pytest.raises(Corrupt, match="score report cannot be read"):
        read_report(sheet.replace(f'"{changed}":{before}', f'"{changed}":{to}').encode())


@pytest.mark.parametrize(
    "row",
    [
        Score(0, "dim", "d", {"f1": 10.0}),
        Score(0, "dim", "d", {"recall": -0.1}),
        Score(0, "dim", "d", {"f1": 0.5}, counts=((-5, 1, 1),)),
        Score(0, "dim", "d", {"f1": 0.5}, taken=datetime(1, 1, 1, tzinfo=UTC)),
        Score(0, "dim", "d", {"f1": 0.5}, test_set=TestSet(seed=-1)),
        Score(0, "dim", "d", {"f1": 0.5}, test_set=TestSet(frame_sets=(FrameSetUse("a", "a b"),))),
    ],
)
def test_scores_out_of_range_are_not_kept(embedded: Zoo, tiny_members: Any, row: Score) -> None:
    embedded.register("graphene", tiny_members(1), job=JOB)
    with pytest.raises(InvalidInput):
        embedded.record_scores("graphene@1", [row])
    assert len(embedded.matrix("graphene@1")) == 0


def test_a_reference_to_one_member_takes_its_scores_only(embedded: Zoo, tiny_members: Any) -> None:
    embedded.register("graphene", tiny_members(2), job=JOB)
    with pytest.raises(
        InvalidInput, match="some scores belong to other members than graphene@1/01"
    ):
        embedded.record_scores("graphene@1/01", [Score(ENSEMBLE, "dim", "d", {"f1": 0.5})])
    embedded.record_scores("graphene@1/01", [Score(1, "dim", "d", {"f1": 0.5})])
    assert embedded.matrix("graphene@1").value(1, "dim") == 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"not JSON \xff",
        b"[" * 100_000,
        b'{"attributes": "ensemble"}',
        b'{"attributes": null}',
        b'{"attributes": {"ensemble": {"of": "others"}}}',
        b'{"attributes": {"ensemble": "no reference at all"}}',
    ],
)
def test_a_zarr_group_of_others_is_no_answer(tmp_path: Path, content: bytes) -> None:
    for folder in (tmp_path, tmp_path / "00000"):
        folder.mkdir(exist_ok=True)
        (folder / "zarr.json").write_bytes(content)
    assert prediction_of(str(tmp_path)) == ""


@pytest.mark.parametrize("place", ["/", "/proc", "/" + "x" * 300, "/etc/hostname", "memory://no"])
def test_what_is_no_zarr_group_is_no_answer_and_is_not_walked(place: str) -> None:
    assert prediction_of(place) == ""


def test_only_the_groups_on_top_are_looked_at(tmp_path: Path) -> None:
    deep = tmp_path / "00000" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "zarr.json").write_text("{}")
    (deep / "zarr.json").write_text('{"attributes": {"ensemble": "graphene@1"}}')
    assert prediction_of(str(tmp_path)) == ""
    assert prediction_of(str(deep)) == "graphene@1"


def test_a_store_that_does_not_answer_is_told(use_settings: Any) -> None:
    use_settings({"MANYBEAM_S3_ENDPOINT": "http://127.0.0.1:9", "MANYBEAM_S3_TIMEOUT_S": "1"})
    with pytest.raises(StoreUnreachable):
        prediction_of("s3://nobody/answers")

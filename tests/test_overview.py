"""web.pages.overview: what the page of a version says first."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from manybeam.spec import Library
from manybeam.web.pages.overview import Overview, make_overview
from manybeam.web.version_cache import CachedVersion
from manybeam.zoo.matrix import (
    CLASSICAL,
    ENSEMBLE,
    SELECTED,
    FrameSetUse,
    Matrix,
    Score,
    TestSet,
)
from manybeam.zoo.records import MemberRecord, Record, VersionEntry

CONDITIONS = Library(Path(__file__).parents[1] / "zoo").conditions
NOMINAL, DIRTY, FEW = "graphene-60kv-nominal", "graphene-60kv-dirty", "graphene-60kv-16k"
MOS2 = "mos2-60kv-nominal"


def scores(condition: str, all_: float, *members: float, classical: float = 0.1) -> list[Score]:
    """Return the scores of three frames, of which the first is worse and the last is better."""
    found = {ENSEMBLE: all_, CLASSICAL: classical, **dict(enumerate(members))}
    return [
        Score(
            row,
            condition,
            "d-2",
            {"f1": f1, "f1_low": f1 - 0.02, "f1_high": f1 + 0.02},
            counts=tuple((round(f1 * 50) + step, 10, 10) for step in (-5, 0, 5)),
        )
        for row, f1 in found.items()
    ]


def cached(rows: list[Score], count: int = 2, **more: Any) -> CachedVersion:
    members = tuple(
        MemberRecord(i, i, "graphene-nominal", "r@1", {}, "", "", 0.1, 1.0, "m", "", 1, "")
        for i in range(count)
    )
    record = Record("graphene", 1, members, datetime(2026, 1, 1, tzinfo=UTC), {}, **more)
    entry = VersionEntry("graphene", 1, "run", {}, record.aliases)
    return CachedVersion(record, Matrix(rows, range(count)), (entry,), ())


def overview(version: CachedVersion) -> Overview:
    return make_overview(version, version.matrix, CONDITIONS)


def advice(version: CachedVersion) -> str:
    return " ".join(overview(version).advice)


def test_it_says_what_it_is_for_and_on_what_it_was_measured() -> None:
    rows = scores(NOMINAL, 1.0, 1.0, 1.0) + scores(FEW, 0.9, 0.9, 0.9)
    found = overview(cached(rows))
    assert found.purpose == "2 networks that find atoms in HAADF frames of graphene."
    assert found.ranges[:2] == ("dose 16,000 to 1,200,000 e/Å²", "beam 60 kV")
    both = overview(cached(rows + scores(MOS2, 1.0, 1.0)))
    assert both.purpose.endswith("HAADF frames of graphene and V-doped MoS2.")


def test_best_and_worst_conditions_are_named_with_their_f1_and_none_twice() -> None:
    rows = scores(NOMINAL, 1.0, 1.0) + scores(FEW, 0.9, 0.9) + scores(DIRTY, 0.5, 0.5)
    found = overview(cached(rows))
    assert [(one.condition, one.f1) for one in found.best] == [(NOMINAL, 1.0)]
    assert [(one.condition, one.f1) for one in found.worst] == [(DIRTY, 0.5)]
    assert found.worst[0].title == "Contamination thicker than the sheet"
    assert [title for title, _ in found.places] == ["Where it works", "Where it fails"]
    assert "works on 1" in found.tally
    assert "fails on 1" in found.tally


@pytest.mark.parametrize(
    ("high", "low", "titles"),
    [
        pytest.param(1.0, 0.9, ["Where it works", "Where it is weakest"], id="fails nowhere"),
        pytest.param(0.9, 0.5, ["Where it is best", "Where it fails"], id="works nowhere"),
    ],
)
def test_headings_say_no_more_than_the_numbers(high: float, low: float, titles: list[str]) -> None:
    found = overview(cached(scores(NOMINAL, high, high) + scores(FEW, low, low)))
    assert [title for title, _ in found.samples] == titles


def test_the_sample_is_the_frame_with_the_middle_f1() -> None:
    found = overview(cached(scores(NOMINAL, 0.9, 0.9)))
    assert found.best[0].page == f"/zoo/graphene@1/example/{NOMINAL}?frame=1"
    assert found.best[0].picture == f"/zoo/graphene@1/example/{NOMINAL}/sample?frame=1"
    assert found.worst == ()


def test_where_a_member_is_better_than_all_selection_is_advised_with_the_numbers() -> None:
    rows = scores(NOMINAL, 1.0, 1.0, 1.0) + scores(DIRTY, 0.76, 0.6, 0.98)
    assert "on 1 of 2 conditions one member" in advice(cached(rows))
    assert f"most on {DIRTY} (member 01 0.98, all 0.76)" in advice(cached(rows))
    assert "Take all members together" in advice(cached(scores(NOMINAL, 0.9, 0.91, 0.8)))


@pytest.mark.parametrize(
    ("version", "told"),
    [
        pytest.param(
            cached(scores(DIRTY, 0.7, 0.7, classical=0.9)),
            f"is better than all members together on {DIRTY}",
            id="classical",
        ),
        pytest.param(
            cached([], archived=datetime(2026, 1, 1, tzinfo=UTC)), "archived", id="archived"
        ),
        pytest.param(cached([]), "not known", id="not measured"),
    ],
)
def test_the_advice_says_what_speaks_against_it(version: CachedVersion, told: str) -> None:
    assert told in advice(version)


# -- the ways to answer -------------------------------------------------------------------------
TAG = "manybeam.attached.reference-table"
CALIBRATED = {TAG: "m ab"}


def tagged(version: CachedVersion, tags: dict[str, str]) -> CachedVersion:
    return replace(version, siblings=(replace(version.siblings[0], tags=tags),))


def ways(version: CachedVersion) -> dict[str, float | None]:
    return {one.name: one.f1 for one in overview(version).ways.each}


def test_the_selected_members_stand_beside_all_and_the_best_of_each_condition() -> None:
    rows = scores(NOMINAL, 0.8, 1.0, 0.6) + scores(DIRTY, 0.6, 0.6, 0.98)
    chosen = [
        Score(SELECTED, name, "d-2", {"f1": f1}) for name, f1 in ((NOMINAL, 1.0), (DIRTY, 0.9))
    ]
    found = overview(cached(rows + chosen))
    means = {one.name: one.f1 and round(one.f1, 3) for one in found.ways.each}
    assert means == {"All members": 0.7, "Selected": 0.95, "Best member": 0.99}
    assert (found.ways.commands, found.ways.note) == ((), "")
    assert found.advice[0].startswith("Let Manybeam select members for each frame: mean F1 0.95")
    assert "those selected for each frame, it works on 1 of 2 and fails on 0" in found.tally


@pytest.mark.parametrize(
    ("tags", "commands"),
    [
        pytest.param({}, ("manybeam calibrate graphene@1",), id="new"),
        pytest.param(CALIBRATED, (), id="calibrated"),
    ],
)
@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        pytest.param([], f"--conditions {DIRTY} --conditions {NOMINAL}", id="nowhere"),
        pytest.param(
            [Score(SELECTED, NOMINAL, "d-2", {"f1": 1.0})], f"--conditions {DIRTY}", id="once"
        ),
    ],
)
def test_selection_that_was_not_measured_everywhere_has_no_number_but_a_command(
    tags: dict[str, str], commands: tuple[str, ...], chosen: list[Score], named: str
) -> None:
    version = cached(scores(NOMINAL, 0.8, 1.0, 0.6) + scores(DIRTY, 0.6, 0.6, 0.98) + chosen)
    found = overview(tagged(version, tags))
    assert {one.name: one.f1 for one in found.ways.each}["Selected"] is None
    assert found.ways.commands == (*commands, f"manybeam evaluate graphene@1 {named} --count 3")


def test_if_nothing_is_measured_the_command_of_the_first_measurement_is_enough() -> None:
    job = {"measure": {"conditions": ["graphene-*"], "frames": []}}
    version = cached(scores(NOMINAL, 0.8, 1.0, 0.6) + scores(DIRTY, 0.6, 0.6, 0.98))
    known = replace(version, record=replace(version.record, job=job))
    found = overview(tagged(known, CALIBRATED)).ways
    assert found.commands == ("manybeam evaluate graphene@1 --count 3",)


def test_labelled_frames_are_measured_again_by_their_address() -> None:
    use = TestSet(frame_sets=(FrameSetUse("file:///data/bench", "0a"),))
    rows = [replace(row, condition_digest="d", test_set=use) for row in scores(NOMINAL, 0.8, 1.0)]
    (command,) = overview(tagged(cached(rows), CALIBRATED)).ways.commands
    assert command == "manybeam evaluate graphene@1 --frames 'file:///data/bench'"


def test_where_members_cannot_be_selected_no_command_is_given_and_the_means_leave_it_out() -> None:
    chosen = Score(SELECTED, NOMINAL, "d-2", {"f1": 1.0}, calibration="ab")
    tried = [
        replace(row, calibration="ab") if row.member == ENSEMBLE else row
        for row in scores(DIRTY, 0.6, 0.6, 0.98)
    ]
    version = cached([*scores(NOMINAL, 0.8, 1.0, 0.6), *tried, chosen])
    found = overview(tagged(version, CALIBRATED))
    assert found.ways.commands == ()
    assert [one.f1 for one in found.ways.each] == [0.8, 1.0, 1.0]
    assert found.ways.note.startswith(
        f"members cannot be selected on {DIRTY}; the means are over the other 1:"
    )
    assert found.advice[0].startswith("Let Manybeam select members for each frame: mean F1 1.00")
    again = overview(tagged(version, {TAG: "m cd"}))  # calibrated again: it may be possible now
    assert DIRTY in again.ways.commands[0]


def test_only_conditions_of_the_row_are_counted() -> None:
    rows = [*scores(NOMINAL, 0.9, 0.9), Score(1, DIRTY, "d-2", {"f1": 0.5})]
    assert "Measured on simulated frames of 1 condition:" in overview(cached(rows)).tally


def test_selection_measured_later_does_not_change_the_means_of_others() -> None:
    rows = scores(NOMINAL, 0.8, 1.0, 0.6) + scores(DIRTY, 0.6, 0.6, 0.98)
    before = ways(cached(rows))
    after = ways(cached([*rows, Score(SELECTED, NOMINAL, "d-2", {"f1": 1.0})]))
    assert before == after


@pytest.mark.parametrize(
    ("digests", "words"),
    [
        pytest.param(["a-2", "b-2"], "Measured on simulated frames of 2 conditions", id="all"),
        pytest.param(["a", "b"], "Measured on labelled frames of 2 conditions", id="none"),
        pytest.param(["a-2", "b"], "2 conditions, 1 of simulated and 1 of labelled", id="some"),
    ],
)
def test_it_says_whether_frames_are_simulated(digests: list[str], words: str) -> None:
    rows = [
        replace(row, condition_digest=digest)
        for name, digest in zip((NOMINAL, DIRTY), digests, strict=True)
        for row in scores(name, 0.9, 0.9)
    ]
    found = overview(cached(rows))
    assert words in found.tally
    made = sum(one.is_simulated for one in (*found.best, *found.worst))
    assert made == sum("-" in digest for digest in digests)


def test_a_member_is_compared_with_the_others_of_its_version() -> None:
    rows = scores(NOMINAL, 1.0, 1.0, 0.9) + scores(DIRTY, 0.7, 0.6, 0.98)
    own = [row for row in rows if row.member == 1]
    member = cached(own, selected=1)
    told = " ".join(make_overview(member, Matrix(rows), CONDITIONS).advice)
    assert f"best member on {DIRTY}. Elsewhere take the whole ensemble" in told
    assert make_overview(member, Matrix(rows), CONDITIONS).best[0].f1 == 0.98


def test_a_version_beside_one_that_serves_names_it() -> None:
    version = cached(scores(NOMINAL, 1.0, 1.0, 1.0))
    serving = VersionEntry("graphene", 2, "run-2", {}, ("serving",))
    beside = replace(version, siblings=(serving, *version.siblings))
    assert "graphene@2 serves now" in advice(beside)


def test_a_version_of_unknown_conditions_still_opens() -> None:
    found = overview(cached(scores("elsewhere", 0.9, 0.9)))
    assert found.purpose == "2 networks that find atoms in microscope frames."
    assert found.ranges == ()
    assert found.best[0].title == ""


def test_nothing_measured_is_said_and_nothing_is_promised() -> None:
    found = overview(cached([]))
    assert found.tally.startswith("It was not measured")
    assert (found.best, found.worst, found.samples) == ((), (), ())

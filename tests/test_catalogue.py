"""zoo.catalogue: what is found is what MLflow holds, ranked by what was measured and only that.

Tests that take `zoo` run on the embedded zoo and on a real MLflow server with PostgreSQL and S3.
Those of questions alone write records straight into the catalogue, as a refresh does once it has
read them.
"""

import fnmatch
import itertools
import math
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from manybeam.data.simulation import SIMULATOR
from manybeam.errors import InvalidInput, WriteFailed, ZooUnreachable
from manybeam.spec import Library
from manybeam.zoo.catalogue import Catalogue, Query, Row, quantity_names
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Score
from manybeam.zoo.records import MemberRecord, Record, VersionEntry
from manybeam.zoo.registry import Zoo

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
NOMINAL, LOWDOSE, MOS2 = "graphene-60kv-nominal", "graphene-60kv-lowdose", "mos2-60kv-nominal"
DAY = datetime(2026, 3, 1, tzinfo=UTC)
Read = tuple[VersionEntry, Record, Sequence[Score]]


def digest(condition: str) -> str:
    """Return what scores call a condition's numbers: with the version of the simulator."""
    return f"{LIBRARY.conditions[condition].digest}-{SIMULATOR}"


def score(condition: str, f1: float, member: int = ENSEMBLE, **more: Any) -> Score:
    values = {"f1": f1, "f1_low": f1 - 0.02, "f1_high": f1 + 0.01, **more.pop("values", {})}
    known = {"condition_digest": digest(condition), "taken": DAY, "scorer": "1.0", **more}
    return Score(member, condition, values=values, counts=((9, 1, 2),) * 8, **known)


def version(
    name: str,
    number: int = 1,
    scores: Sequence[Score] = (),
    policies: Sequence[str] = ("graphene-nominal", "graphene-dirty"),
    **more: Any,
) -> Read:
    network, aliases = more.pop("network", "unet"), more.pop("aliases", ())
    members = tuple(
        MemberRecord(
            i, i, policy, "tiny@1", {"name": network}, "", "0", 0.1, 1.0, f"m-{i}", "0", 1, "0"
        )
        for i, policy in enumerate(policies)
    )
    made = {"created": DAY + timedelta(hours=number), "job": {"kind": "train"}, **more}
    entry = VersionEntry(name, number, f"{name}-{number}", {}, aliases)
    return entry, Record(name, number, members, aliases=aliases, **made), scores


def catalogue_at(path: Path, library: Library = LIBRARY) -> Catalogue:
    """Return a catalogue whose zoo is never asked: records are written into it."""
    return Catalogue(Zoo("sqlite:///nowhere.db", "file:///nowhere", path.parent), path, library)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return catalogue_at(tmp_path / "catalogue.db")


@pytest.fixture
def filled(catalogue: Catalogue) -> Catalogue:
    """Four versions of three ensembles, measured here and there."""
    catalogue._write(
        [
            version("sheet", 1, [score(NOMINAL, 0.8), score(LOWDOSE, 0.7)], aliases=("serving",)),
            version("sheet", 2, [score(NOMINAL, 0.9), score(LOWDOSE, 0.5, 0)]),
            version("layer", 1, [score(MOS2, 0.95)], ["mos2-general"], network="SegResNet"),
            version("fresh", 1, [], archived=DAY),
        ]
    )
    return catalogue


def refs(rows: Sequence[Row]) -> list[str]:
    return [row.ref for row in rows]


def test_without_a_filter_an_ensemble_is_worth_its_mean_over_what_was_measured(
    filled: Catalogue,
) -> None:
    found = {row.ref: (row.value, row.measured_count) for row in filled.find().rows}
    assert found["sheet@1"] == (0.75, 2)
    assert found["sheet@2"] == (0.9, 1)


def test_on_one_condition_rows_are_ranked_by_their_score_there(filled: Catalogue) -> None:
    page = filled.find(Query(condition=LOWDOSE))
    assert refs(page.rows)[0] == "sheet@1"
    assert page.asked == (LOWDOSE,)


def test_a_score_comes_with_interval_frames_date_and_scorer(filled: Catalogue) -> None:
    best = filled.find(Query(condition=NOMINAL)).rows[0]
    assert (best.ref, best.low, best.high) == ("sheet@2", 0.9 - 0.02, 0.9 + 0.01)
    assert (best.frame_count, best.taken, best.scorer) == (8, DAY, "1.0")


@pytest.mark.parametrize("order", ["-score", "score"])
def test_what_was_never_measured_comes_last_and_has_no_value(filled: Catalogue, order: str) -> None:
    rows = filled.find(Query(condition=LOWDOSE, order=order)).rows
    assert [row.value for row in rows] == [pytest.approx(0.7), None, None, None]
    assert {(row.frame_count, row.taken, row.measured_count) for row in rows[1:]} == {
        (None, None, 0)
    }


def test_the_best_come_first_where_less_is_better(catalogue: Catalogue) -> None:
    rows = [version(f"e{x}", 1, [score(NOMINAL, 0.5, values={"rmse_pm": x})]) for x in (9, 3, 5)]
    catalogue._write(rows)
    assert refs(catalogue.find(Query(score="rmse_pm")).rows) == ["e3@1", "e5@1", "e9@1"]


def test_a_strip_holds_a_value_for_each_condition_of_the_page(filled: Catalogue) -> None:
    page = filled.find(Query(condition=LOWDOSE))
    assert page.conditions == (LOWDOSE, NOMINAL, MOS2)
    assert page.rows[0].strip == (0.7, 0.8, None)


def test_members_are_rows_of_their_own(filled: Catalogue) -> None:
    page = filled.find(Query(kind="members", condition="graphene-*"))
    assert (page.rows[0].ref, page.rows[0].member, page.rows[0].policy) == (
        "sheet@2/00",
        0,
        "graphene-nominal",
    )
    assert page.total == 7


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param(Query(text="sheet"), {"sheet@1", "sheet@2"}, id="a name"),
        pytest.param(Query(text="she"), {"sheet@1", "sheet@2"}, id="the beginning of a name"),
        pytest.param(Query(text="GRAPHENE haadf 60 kV"), {"sheet@1", "sheet@2"}, id="a sample"),
        pytest.param(Query(text='"low dose"'), {"sheet@1", "sheet@2"}, id="two words for one"),
        pytest.param(Query(text="mos2 60kv"), {"layer@1"}, id="a voltage as one word"),
        pytest.param(Query(text="graphene 80 kV"), set(), id="a voltage nothing was measured at"),
        pytest.param(Query(text="sheet@1"), {"sheet@1"}, id="a reference"),
        pytest.param(Query(text="serving"), {"sheet@1"}, id="an alias"),
        pytest.param(Query(text="segres"), {"layer@1"}, id="a network"),
        pytest.param(Query(text="mos2-general"), {"layer@1"}, id="a policy"),
        pytest.param(Query(text="sheet mos2"), set(), id="every word has to match"),
        pytest.param(Query(name=("sheet", "layer")), {"sheet@1", "sheet@2", "layer@1"}, id="name"),
        pytest.param(Query(status=("archived",)), {"fresh@1"}, id="archived"),
        pytest.param(Query(status=("none", "serving"), name=("sheet",)), {"sheet@1", "sheet@2"},
                     id="either status"),
        pytest.param(Query(policy=("graphene-dirty",)), {"sheet@1", "sheet@2", "fresh@1"},
                     id="a policy of one of its members"),
        pytest.param(Query(network=("unet",), status=("serving",)), {"sheet@1"}, id="both"),
        pytest.param(Query(recipe=("no-such",)), set(), id="a recipe nobody used"),
    ],
)  # fmt: skip
def test_filters(filled: Catalogue, query: Query, expected: set[str]) -> None:
    assert set(refs(filled.find(query).rows)) == expected


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        pytest.param("low dose", {LOWDOSE}, id="by dose"),
        pytest.param("LOW-DOSE sheet", {LOWDOSE}, id="with other words"),
        pytest.param("high dose", {NOMINAL, MOS2}, id="of each sample its own"),
        pytest.param("low kV", {LOWDOSE, NOMINAL, MOS2}, id="by voltage"),
        pytest.param("high voltage", set(), id="a voltage nothing was measured at"),
        pytest.param("noisy", {LOWDOSE}, id="by electrons in a pixel"),
        pytest.param("low dose, dirty", set(), id="both"),
        pytest.param("graphene-60kv-lowdose", {LOWDOSE, NOMINAL, MOS2}, id="a name is no phrase"),
        pytest.param('"low dose"', {LOWDOSE, NOMINAL, MOS2}, id="in quotation marks"),
    ],
)
def test_words_that_describe_imaging_rank_by_such_conditions(
    filled: Catalogue, text: str, asked: set[str]
) -> None:
    assert set(filled.find(Query(text=text)).asked) == asked


def test_low_dose_ranks_by_the_score_there_and_hides_nothing(filled: Catalogue) -> None:
    rows = filled.find(Query(text="low dose")).rows
    assert refs(rows)[0] == "sheet@1"
    assert [row.value for row in rows] == [pytest.approx(0.7), None, None, None]
    assert refs(filled.find(Query(text="high dose graphene")).rows)[0] == "sheet@2"


@pytest.mark.parametrize(
    ("ranges", "asked"),
    [
        pytest.param({"dose_e_per_a2": (None, 5e5)}, (LOWDOSE, MOS2), id="low dose"),
        pytest.param({"dose_e_per_a2": (1e5, None)}, (LOWDOSE, NOMINAL), id="not too low"),
        pytest.param({"beam_kv": (60, 60), "pixel_size_pm": (None, 15.5)}, (MOS2,), id="two"),
        pytest.param({"thickness_nm": (0, 500)}, (), id="a quantity none of them has"),
    ],
)
def test_ranges_choose_conditions_by_their_numbers(
    filled: Catalogue, ranges: dict[str, tuple[float | None, float | None]], asked: tuple[str, ...]
) -> None:
    assert filled.find(Query(ranges=ranges)).asked == asked


def test_pages_hold_every_row_once(filled: Catalogue) -> None:
    pages = [filled.find(Query(page=n, page_size=3)).rows for n in (1, 2, 3)]
    assert [len(rows) for rows in pages] == [3, 1, 0]
    assert len({row.ref for rows in pages for row in rows}) == 4


@pytest.mark.parametrize(
    ("order", "first"),
    [
        pytest.param("name", "fresh@1", id="name"),
        pytest.param("-name", "sheet@1", id="from z to a"),
        pytest.param("-created", "sheet@2", id="newest"),
        pytest.param("-measured", "sheet@1", id="measured most"),
    ],
)
def test_orders(filled: Catalogue, order: str, first: str) -> None:
    assert filled.find(Query(order=order)).rows[0].ref == first


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        pytest.param({"order": "best"}, "order: 'best'", id="an order there is not"),
        pytest.param({"kind": "people"}, "kind: 'people'", id="a kind there is not"),
        pytest.param({"status": ("live",)}, "status: 'live'", id="a status there is not"),
        pytest.param({"page": 0}, "page: 0", id="page 0"),
        pytest.param({"page_size": 10**6}, "page_size", id="a page of a million"),
        pytest.param({"ranges": {"dose": (1, 2)}}, "dose_e_per_a2", id="a quantity misnamed"),
        pytest.param({"ranges": {"beam_kv": (9, 2)}}, "9 is above 2", id="a range turned round"),
        pytest.param({"ranges": {"beam_kv": (float("nan"), 2)}}, "beam_kv", id="no number"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Query(**asked)


def test_every_quantity_has_a_name_of_its_own() -> None:
    assert len(set(quantity_names())) == len(quantity_names())


@effort(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
@pytest.mark.slow
def test_no_text_breaks_the_search(filled: Catalogue, text: str) -> None:
    assert filled.find(Query(text=text)).total <= 4


@pytest.mark.parametrize(
    "text", ['"', "a AND", "NEAR(", "x* -y", "名前", "A\u030angstrom", "\0", "'"]
)
def test_text_with_a_meaning_in_sql_or_full_text_search_is_only_text(
    catalogue: Catalogue, text: str
) -> None:
    catalogue._write([version("one", job={"kind": text})])
    assert catalogue.find(Query(text=text)).total == 1


def test_facets_count_under_all_other_filters(filled: Catalogue) -> None:
    found = filled.facets(Query(name=("sheet",), status=("serving",)))
    assert [(one.value, one.count, one.is_chosen) for one in found["status"]] == [
        ("none", 1, False),
        ("serving", 1, True),
    ]
    assert [(one.value, one.count) for one in found["policy"]] == [
        ("graphene-dirty", 1),
        ("graphene-nominal", 1),
    ]
    assert {one.value: one.count for one in found["condition"]} == {NOMINAL: 1, LOWDOSE: 1, MOS2: 0}


def test_a_value_that_was_chosen_stays_among_the_facets_even_if_nothing_has_it(
    filled: Catalogue,
) -> None:
    found = filled.facets(Query(text="layer", policy=("graphene-dirty",)))
    assert [one.value for one in found["policy"] if one.is_chosen] == ["graphene-dirty"]


def test_facets_agree_with_what_is_found(filled: Catalogue) -> None:
    for facet in ("name", "status", "network", "recipe", "policy"):
        for one in filled.facets(Query(kind="members"))[facet]:
            query = Query(kind="members", **{facet: (one.value,)})  # type: ignore[arg-type]
            assert filled.find(query).total == one.count


OLD, NEW = "a" * 32, "b" * 32


def test_scores_under_numbers_a_condition_no_longer_has_are_kept_apart(
    catalogue: Catalogue,
) -> None:
    later = DAY + timedelta(days=1)
    old = Score(ENSEMBLE, "mine", OLD, {"f1": 0.9}, taken=DAY)
    new = Score(ENSEMBLE, "mine", NEW, {"f1": 0.6}, taken=later)
    catalogue._write([version("one", 1, [old, new]), version("two", 1, [old])])
    assert [row.value for row in catalogue.find(Query(condition="mine")).rows] == [0.6, None]
    found = [row for row in catalogue.conditions() if row.condition == "mine"]
    assert [(one.digest, one.is_current, one.version_count, one.best) for one in found] == [
        (NEW, True, 1, "one@1"),
        (OLD, False, 2, "one@1"),
    ]


def test_the_numbers_of_the_library_are_current_even_if_others_were_measured_later(
    catalogue: Catalogue,
) -> None:
    later = Score(ENSEMBLE, NOMINAL, OLD, {"f1": 0.1}, taken=DAY + timedelta(days=1))
    catalogue._write([version("one", 1, [score(NOMINAL, 0.8), later])])
    assert catalogue.find().rows[0].value == 0.8
    library = {row.digest: row.library for row in catalogue.conditions() if row.taken}
    assert library == {digest(NOMINAL): "same", OLD: "changed"}


def test_of_two_simulators_the_one_measured_with_last_is_current(catalogue: Catalogue) -> None:
    newer = f"{LIBRARY.conditions[NOMINAL].digest}-{SIMULATOR + 1}"
    later = score(NOMINAL, 0.7, condition_digest=newer, taken=DAY + timedelta(days=1))
    catalogue._write([version("one", 1, [later, score(NOMINAL, 0.8)])])
    assert catalogue.find().rows[0].value == 0.7


def test_a_later_score_replaces_an_earlier_one_value_by_value(catalogue: Catalogue) -> None:
    early = score(NOMINAL, 0.5, values={"ece": 0.1})
    catalogue._write([version("one", 1, [early, score(NOMINAL, 0.6)])])
    found = [catalogue.find(Query(score=key)).rows[0].value for key in ("f1", "ece")]
    assert found == [0.6, 0.1]


def test_conditions_tell_their_numbers_who_was_measured_and_who_is_best(filled: Catalogue) -> None:
    found = {row.condition: row for row in filled.conditions()}
    low = found[LOWDOSE]
    assert low.numbers["dose_e_per_a2"] == 2e5
    assert (low.version_count, low.member_count, low.best, low.best_f1) == (2, 1, "sheet@1", 0.7)
    never = found["gold-300kv-boundary"]
    assert (never.version_count, never.is_current, never.taken) == (0, False, None)


def test_coverage_tells_which_pairs_were_measured(filled: Catalogue) -> None:
    found = filled.coverage(Query(name=("sheet",), order="name", condition="graphene-*"))
    assert found.refs == ("sheet@2", "sheet@1")
    assert found.is_measured == ((False, True), (True, True))
    assert (found.measured_count, found.missing_count) == (3, 1)
    assert found.missing == {LOWDOSE: 1, NOMINAL: 0}


def test_the_best_are_neither_archived_nor_unmeasured(filled: Catalogue) -> None:
    filled._write([version("gone", 1, [score(NOMINAL, 0.99)], archived=DAY)])
    assert refs(filled.best(NOMINAL)) == ["sheet@2", "sheet@1"]
    assert refs(filled.best(ranges={"dose_e_per_a2": (None, 1e5)})) == ["layer@1"]


def test_the_classical_detector_is_no_member(catalogue: Catalogue) -> None:
    catalogue._write([version("one", 1, [score(NOMINAL, 0.9, CLASSICAL)])])
    assert catalogue.find().rows[0].value is None


@effort(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_what_is_found_is_what_a_plain_loop_finds(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    catalogue = catalogue_at(tmp_path / f"{seed}.db")
    names = rng.sample(sorted(LIBRARY.conditions), 5)
    truth = {f"e{i}": {c: rng.random() for c in names if rng.random() < 0.6} for i in range(12)}
    catalogue._write(
        [version(name, 1, [score(c, v) for c, v in own.items()]) for name, own in truth.items()]
    )
    asked = rng.sample(names, 2)
    pattern = rng.choice([*asked, "graphene-*", "*"])
    page = catalogue.find(Query(condition=pattern))
    measured = {f"{name}@1": {c: v for c, v in own.items() if fnmatch.fnmatchcase(c, pattern)}
                for name, own in truth.items()}  # fmt: skip
    for row in page.rows:
        own = measured[row.ref]
        common = set.intersection(
            *(set(measured[x.ref]) for x in page.rows if x.group == row.group)
        )
        means = [math.fsum(own[c] for c in some) / len(some)
                 for count in range(1, len(common) + 1)
                 for some in itertools.combinations(sorted(common), count)]  # fmt: skip
        assert row.measured_count == len(own)
        assert row.value in map(pytest.approx, means) if own else row.value is None
        if row.group == 0 and own:
            there = [own[c] for c in page.compared]
            assert row.value == pytest.approx(math.fsum(there) / len(there))
    order = [(row.value is None, row.group, -(row.value or 0)) for row in page.rows]
    assert order == sorted(order)


# -- the file ---------------------------------------------------------------------------------
def test_a_name_of_a_hundred_letters_and_two_hundred_conditions_fit(catalogue: Catalogue) -> None:
    own = [Score(ENSEMBLE, f"c{i}", NEW, {"f1": i / 200}) for i in range(200)]
    catalogue._write([version("n" * 100, 1, own)])
    row = catalogue.find(Query(text="n" * 99)).rows[0]
    assert row.measured_count == 200
    assert len(row.strip) == 200


def damage_head(path: Path) -> None:
    path.write_bytes(b"no database" + path.read_bytes()[11:])


def damage_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def run_sql(statement: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        db = sqlite3.connect(path)
        db.executescript(statement)
        db.close()

    return run


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage_head, id="its head is not SQLite's"),
        pytest.param(damage_middle, id="its pages are garbage"),
        pytest.param(cut_off, id="it is cut off"),
        pytest.param(empty, id="it is empty"),
        pytest.param(run_sql("DROP TABLE strip"), id="a table is gone"),
        pytest.param(run_sql("PRAGMA user_version = 77"), id="another schema"),
        pytest.param(Path.unlink, id="it was deleted"),
    ],
)
def test_a_file_that_cannot_be_used_is_made_anew(
    filled: Catalogue, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "catalogue.db")
    again = catalogue_at(tmp_path / "catalogue.db")
    assert again.find().total == 0
    assert again.as_of is None
    again._write([version("one", 1, [score(NOMINAL, 0.9)])])
    assert refs(again.find().rows) == ["one@1"]


def test_one_that_is_open_sees_that_the_file_was_made_anew(
    filled: Catalogue, tmp_path: Path
) -> None:
    assert filled.find().total == 4
    damage_head(tmp_path / "catalogue.db")
    assert filled.find().total == 0


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = catalogue_at(tmp_path / "file" / "c.db")
    with pytest.raises(WriteFailed, match="catalogue"):
        broken.find()


GENERATIONS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_catalogue import NOMINAL, catalogue_at, score, version
catalogue = catalogue_at(Path({path!r}))
print("ready", flush=True)
for generation in range(10**6):
    value = generation / 10**6
    catalogue._write([version(f"e{{i}}", 1, [score(NOMINAL, value)]) for i in range(150)])
"""


@pytest.mark.parametrize("wait_s", [0.2, 0.47, 0.83])
@pytest.mark.slow
def test_a_kill_in_the_middle_of_writing_leaves_a_whole_state(
    tmp_path: Path, wait_s: float
) -> None:
    path = tmp_path / "catalogue.db"
    script = GENERATIONS.format(tests=str(Path(__file__).parent), path=str(path))
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    time.sleep(wait_s)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    catalogue = catalogue_at(path)
    rows = catalogue.find(Query(page_size=1000)).rows
    assert len(rows) in (0, 150)
    assert len({row.value for row in rows}) <= 1


def test_readers_see_whole_states_while_another_writes(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.db"
    stop, seen = threading.Event(), []

    def read() -> None:
        own = catalogue_at(path)
        while not stop.is_set():
            seen.append({row.value for row in own.find().rows})

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    writer = catalogue_at(path)
    for generation in range(20):
        own = [score(NOMINAL, generation / 20)]
        writer._write([version(f"e{i}", 1, own) for i in range(20)])
    stop.set()
    for reader in readers:
        reader.join()
    assert len(seen) > 5
    assert all(len(values) <= 1 for values in seen)


# -- the zoo behind it ------------------------------------------------------------------------
@pytest.fixture
def live(zoo: Any, tmp_path: Path) -> Catalogue:
    return Catalogue(zoo, tmp_path / "catalogue.db", LIBRARY)


def register(zoo: Any, name: str, members: Sequence[Any], *rows: Score, **more: Any) -> Record:
    made: Record = zoo.register(name, members, job={"kind": "train"}, scores=rows, **more)
    return made


def test_what_was_registered_is_found_after_a_refresh(
    zoo: Any, live: Catalogue, name: str, tiny_members: Any
) -> None:
    register(zoo, name, tiny_members(2), score(NOMINAL, 0.9), score(NOMINAL, 0.7, 1))
    before = datetime.now(UTC)
    assert live.find(Query(name=(name,))).total == 0
    assert f"{name}@1" in live.refresh().changed
    assert live.find(Query(name=(name,))).rows[0].value == 0.9
    assert live.find(Query(name=(name,), kind="members")).rows[0].ref == f"{name}@1/01"
    assert live.as_of is not None
    assert live.as_of >= before


def test_a_second_refresh_reads_nothing_and_changes_no_state(
    zoo: Any, live: Catalogue, name: str, tiny_members: Any
) -> None:
    register(zoo, name, tiny_members(1))
    live.refresh()
    state, as_of = live.state, live.as_of
    again = live.refresh()
    assert (again.changed, again.gone, live.state) == ((), (), state)
    assert as_of is not None
    assert live.as_of is not None
    assert live.as_of > as_of


def test_only_what_changed_is_read_again(
    zoo: Any, live: Catalogue, name: str, tiny_members: Any
) -> None:
    register(zoo, name, tiny_members(1), alias="serving")
    register(zoo, name, tiny_members(1))
    register(zoo, name, tiny_members(1))
    live.refresh()
    state = live.state
    zoo.record_scores(f"{name}@2", [score(NOMINAL, 0.6)])
    assert live.refresh().changed == (f"{name}@2",)
    assert live.state != state
    zoo.set_alias(name, "serving", 3)
    assert sorted(live.refresh().changed) == [f"{name}@1", f"{name}@3"]
    assert refs(live.find(Query(name=(name,), status=("serving",))).rows) == [f"{name}@3"]


def test_a_version_that_mlflow_has_no_more_is_dropped(
    zoo: Any, live: Catalogue, name: str, tiny_members: Any
) -> None:
    register(zoo, name, tiny_members(2), score(NOMINAL, 0.9))
    register(zoo, name, tiny_members(2))
    live.refresh()
    zoo.tracking.client.delete_model_version(name, "1")
    assert live.refresh().gone == (f"{name}@1",)
    assert refs(live.find(Query(text=name)).rows) == [f"{name}@2"]
    assert live.find(Query(name=(name,), kind="members")).total == 2


def test_one_thrown_away_is_made_again_with_the_same_answers(
    zoo: Any, live: Catalogue, name: str, tiny_members: Any, tmp_path: Path
) -> None:
    register(zoo, name, tiny_members(2), score(NOMINAL, 0.9), score(LOWDOSE, 0.7, 1))
    live.refresh()
    query = Query(name=(name,), kind="members", condition=LOWDOSE)
    before = live.find(query)
    (tmp_path / "catalogue.db").unlink()
    assert f"{name}@1" in live.refresh().changed
    assert live.find(query).rows == before.rows


@pytest.mark.slow
def test_two_that_refresh_at_once_leave_one_whole_catalogue(
    zoo: Any, name: str, tiny_members: Any, tmp_path: Path
) -> None:
    for _ in range(4):
        register(zoo, name, tiny_members(2), score(NOMINAL, 0.9))
    both = [Catalogue(zoo, tmp_path / "catalogue.db", LIBRARY) for _ in range(2)]
    threads = [threading.Thread(target=one.refresh) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in both:
        assert one.find(Query(name=(name,))).total == 4
        assert one.find(Query(name=(name,), kind="members")).total == 8
    assert both[0].refresh().changed == ()


def test_the_last_state_answers_while_mlflow_is_away(tmp_path: Path) -> None:
    nobody = Zoo("http://127.0.0.1:9", "", tmp_path)
    away = Catalogue(nobody, tmp_path / "catalogue.db", LIBRARY)
    away._write([version("one", 1, [score(NOMINAL, 0.9)])])
    state = away.state
    with pytest.raises(ZooUnreachable):
        away.refresh()
    assert refs(away.find().rows) == ["one@1"]
    assert (away.state, away.as_of) == (state, None)


def test_what_another_zoo_left_in_the_same_home_is_not_shown(
    filled: Catalogue, tmp_path: Path
) -> None:
    other = Catalogue(Zoo("http://127.0.0.1:9", "", tmp_path), tmp_path / "catalogue.db", LIBRARY)
    with pytest.raises(ZooUnreachable):
        other.refresh()
    assert (other.find().total, other.as_of) == (0, None)


def test_a_version_that_cannot_be_read_is_named_and_stops_no_other(
    embedded: Any, tmp_path: Path, tiny_members: Any
) -> None:
    for name in ("sound", "torn"):
        register(embedded, name, tiny_members(1))
    catalogue = Catalogue(embedded, tmp_path / "catalogue.db", LIBRARY)
    catalogue.refresh()
    for name in ("sound", "torn"):
        embedded.tag(f"{name}@1", "manybeam.note", "so that it is read again")
    sha256 = embedded.resolve("torn@1").sha256
    (tmp_path / "cache" / "zoo" / sha256).unlink()
    for path in (tmp_path / "weights").rglob("manifest.json"):
        if '"torn"' in path.read_text():
            path.write_text("{}")
    found = catalogue.refresh()
    assert "SHA-256" in found.unreadable["torn@1"]
    assert found.changed == ("sound@1",)
    assert refs(catalogue.find(Query(order="name")).rows) == ["sound@1", "torn@1"]


def test_a_condition_whose_numbers_changed_in_the_library_is_found_by_its_new_ones(
    embedded: Any, tmp_path: Path, tiny_members: Any
) -> None:
    folder = tmp_path / "library" / "conditions"
    folder.mkdir(parents=True)
    path = folder / "mine.yaml"
    path.write_text(yaml.dump({"id": "mine", "optics": {"beam_kv": 60}}))
    library = Library(tmp_path / "library")
    own = Score(ENSEMBLE, "mine", library.conditions["mine"].digest, {"f1": 0.5})
    register(embedded, "one", tiny_members(1), own)
    catalogue = Catalogue(embedded, tmp_path / "catalogue.db", library)
    catalogue.refresh()
    assert catalogue.find(Query(text="60 kV")).total == 1
    path.write_text(yaml.dump({"id": "mine", "optics": {"beam_kv": 200}}))
    catalogue.refresh()
    assert [catalogue.find(Query(text=text)).total for text in ("60 kV", "200 kV")] == [0, 1]
    rows = {row.digest: (row.library, row.is_current) for row in catalogue.conditions()}
    assert sorted(rows.values()) == [("changed", True), ("same", False)]


def test_a_library_with_a_fault_in_it_takes_no_search_away(
    filled: Catalogue, tmp_path: Path
) -> None:
    folder = tmp_path / "library" / "conditions"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text("id: [")
    other = catalogue_at(tmp_path / "catalogue.db", Library(folder.parent))
    assert other.find(Query(text="graphene")).total == 3

"""zoo.compare and `manybeam zoo diff`: a difference is called one only if the frames say so."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.random import Generator
from typer.testing import CliRunner

from manybeam.cli.zoo import compare as zoo_compare
from manybeam.errors import InvalidInput, NotFound, UnknownRef, WriteFailed
from manybeam.zoo.compare import (
    NO_COUNTS,
    NOT_MEASURED,
    NUMBERS_CHANGED,
    OTHER_FRAMES,
    TOO_FEW,
    UNKNOWN_FRAMES,
    Difference,
    compare,
    compare_members,
    tally,
)
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED, FrameSetUse, Matrix, Score, TestSet
from manybeam.zoo.registry import Zoo

FIRST = TestSet(seed=0)
Counts = list[tuple[int, int, int]]
ROOT = Path(__file__).parents[1]


def frames_of(rng: Generator, frame_count: int, *gains: float) -> list[Counts]:
    """Counts of several networks on the same frames: a hard frame is hard for all of them.

    Each network finds the share of atoms that the frame allows, more by its gain, and something
    of its own.
    """
    ease_n = rng.beta(18, 2, frame_count)
    atoms_n = 1 + rng.poisson(60, frame_count)
    found = []
    for gain in gains:
        share_n = np.clip(ease_n + gain + rng.normal(0, 0.02, frame_count), 0.01, 0.999)
        hits_n = rng.binomial(atoms_n, share_n)
        false_n = rng.poisson(atoms_n * (1 - share_n) / 2)
        table_n3 = np.stack([hits_n, false_n, atoms_n - hits_n], axis=1)
        found.append([(int(a), int(b), int(c)) for a, b, c in table_n3])
    return found


def f1_of(counts: Sequence[tuple[int, int, int]]) -> float:
    hits, false, missed = np.array(counts).sum(axis=0)
    return float(2 * hits / (2 * hits + false + missed))


def score_of(
    counts: Counts,
    condition: str = "nominal",
    digest: str = "d" * 32,
    member: int = ENSEMBLE,
    test_set: TestSet | None = FIRST,
) -> Score:
    hits, false, _ = np.array(counts).sum(axis=0)
    values = {"f1": f1_of(counts), "precision": hits / (hits + false), "rmse_pm": 9.0}
    return Score(member, condition, digest, values, tuple(counts), test_set=test_set)


def only(old: Score, new: Score, **changes: Any) -> Difference:
    found = compare(Matrix([old]), Matrix([new]), **changes)
    assert len(found) == 1
    return found[0]


# -- what is significant ------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("frame_count", [8, 24, 64])
def test_of_equals_about_one_in_twenty_is_called_different(frame_count: int) -> None:
    rng, test_sets = np.random.default_rng(frame_count), 600
    flagged = sum(
        bool(only(*map(score_of, frames_of(rng, frame_count, 0, 0))).is_significant)
        for _ in range(test_sets)
    )
    # 5 % +- 4 standard errors; of 8 frames the interval is known to be a little narrow.
    assert 0.015 < flagged / test_sets < (0.10 if frame_count == 8 else 0.086)


@pytest.mark.slow
def test_the_interval_holds_the_true_difference_nineteen_times_of_twenty() -> None:
    rng, test_sets, gain, inside = np.random.default_rng(3), 400, 0.03, 0
    far_better, far_old = (f1_of(one) for one in frames_of(rng, 60_000, gain, 0))
    for _ in range(test_sets):
        one = only(*map(score_of, frames_of(rng, 24, 0, gain)))
        assert one.low is not None
        assert one.high is not None
        inside += one.low <= far_better - far_old <= one.high
    assert 0.90 < inside / test_sets < 0.98


@pytest.mark.slow
def test_of_twelve_conditions_without_difference_few_survive_being_tested_together() -> None:
    rng, test_sets, alone, together = np.random.default_rng(7), 150, 0, 0
    for _ in range(test_sets):
        pairs = [frames_of(rng, 24, 0, 0) for _ in range(12)]
        old, new = (
            Matrix([score_of(pair[i], f"c{place}") for place, pair in enumerate(pairs)])
            for i in (0, 1)
        )
        found = compare(old, new)
        alone += any(one.is_significant for one in found)
        together += any(one.holds_together for one in found)
    assert alone / test_sets > 0.3
    assert together / test_sets < 0.12


def test_a_large_difference_among_thirty_equal_conditions_is_found_together() -> None:
    rng = np.random.default_rng(0)
    pairs = [frames_of(rng, 24, 0, -0.1 if place == 4 else 0) for place in range(30)]
    old, new = (
        Matrix([score_of(pair[i], f"c{place}") for place, pair in enumerate(pairs)]) for i in (0, 1)
    )
    assert [one.condition for one in compare(old, new) if one.holds_together] == ["c4"]


def test_the_same_frames_tell_more_than_other_frames() -> None:
    old, new = frames_of(np.random.default_rng(5), 40, 0, 0.02)
    paired, unpaired = only(score_of(old), score_of(new)), only(score_of(old), score_of(new[::-1]))
    assert paired.reason == ""
    assert unpaired.reason == OTHER_FRAMES
    assert paired.low is not None
    assert paired.high is not None
    assert unpaired.low is not None
    assert unpaired.high is not None
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize(
    ("test_set", "told"),
    [
        pytest.param(TestSet(seed=7), "other frames: seed 0 and seed 7", id="seed"),
        pytest.param(
            TestSet(frame_sets=(FrameSetUse("lab", "1" * 32),)),
            "other frames: other FrameSets",
            id="recorded",
        ),
    ],
)
def test_frames_of_another_seed_are_not_paired_though_each_holds_as_many_atoms(
    test_set: TestSet, told: str
) -> None:
    old, new = frames_of(np.random.default_rng(5), 40, 0, 0.02)
    paired, apart = (only(score_of(old), score_of(new, test_set=one)) for one in (FIRST, test_set))
    assert (paired.reason, apart.reason) == ("", told)
    assert apart.words.endswith(f"({told})")
    assert None not in (paired.low, paired.high, apart.low, apart.high)
    # All four are numbers, as the line above has it.
    assert paired.high - paired.low < 0.7 * (apart.high - apart.low)  # type: ignore[operator]


@pytest.mark.parametrize("test_sets", [(None, FIRST), (FIRST, None), (None, None)])
def test_scores_of_before_their_frames_were_kept_are_paired_by_their_atoms_and_say_so(
    test_sets: tuple[TestSet | None, TestSet | None],
) -> None:
    old, new = frames_of(np.random.default_rng(5), 40, 0, 0.02)
    known = only(score_of(old), score_of(new))
    one = only(*(score_of(c, test_set=t) for c, t in zip((old, new), test_sets, strict=True)))
    assert (one.low, one.high, one.reason) == (known.low, known.high, UNKNOWN_FRAMES)
    other = only(score_of(old, test_set=None), score_of(new[::-1], test_set=None))
    assert other.reason == OTHER_FRAMES


def test_recorded_frames_are_the_same_if_their_digests_are_wherever_they_lie() -> None:
    old, new = frames_of(np.random.default_rng(5), 40, 0, 0.02)
    here, there, other = (
        TestSet(frame_sets=(FrameSetUse(url, digit * 32),))
        for url, digit in (("lab", "1"), ("copy", "1"), ("lab", "2"))
    )
    assert only(score_of(old, test_set=here), score_of(new, test_set=there)).reason == ""
    apart = only(score_of(old, test_set=here), score_of(new, test_set=other))
    assert apart.reason.startswith(OTHER_FRAMES)


def test_one_version_against_itself_differs_by_nothing() -> None:
    counts = score_of(frames_of(np.random.default_rng(1), 16, 0)[0])
    one = only(counts, counts)
    assert (one.difference, one.low, one.high, one.is_significant, one.p_value) == (
        0,
        0,
        0,
        False,
        1,
    )
    assert one.words == "no clear difference"


def test_turning_a_comparison_round_turns_its_interval_round() -> None:
    old, new = map(score_of, frames_of(np.random.default_rng(2), 24, 0, 0.04))
    there, back = only(old, new), only(new, old)
    assert (there.is_better, back.is_better) == (True, False)
    assert there.low is not None
    assert there.high is not None
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert there.p_value == pytest.approx(back.p_value)


def test_a_difference_on_every_frame_alike_is_significant_without_scatter() -> None:
    one = only(score_of([(50, 10, 10)] * 8), score_of([(60, 0, 0)] * 8))
    assert one.is_significant
    assert one.p_value == 0


def test_the_difference_lies_in_its_interval() -> None:
    old, new = frames_of(np.random.default_rng(4), 24, 0, 0.01)
    one = only(score_of(old), score_of(new))
    assert one.difference == pytest.approx(f1_of(new) - f1_of(old))
    assert one.low is not None
    assert one.high is not None
    assert one.difference is not None
    assert one.low < one.difference < one.high


def test_precision_is_tested_as_f1_is() -> None:
    few, many = [(60, 2, 5)] * 4 + [(60, 3, 5)] * 4, [(60, 12, 5)] * 4 + [(60, 14, 5)] * 4
    one = only(score_of(few), score_of(many), key="precision")
    assert one.is_better is False


# -- where there is no test ---------------------------------------------------------------------
GOOD: Counts = [(60, 1, 2)] * 8


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        pytest.param(score_of(GOOD, "other"), NOT_MEASURED, id="nobody measured it there"),
        pytest.param(score_of(GOOD, member=0), NOT_MEASURED, id="only a member was measured"),
        pytest.param(score_of(GOOD, digest="e" * 32), NUMBERS_CHANGED, id="numbers changed"),
        pytest.param(Score(-1, "nominal", "d" * 32, {"f1": 0.9}), NO_COUNTS, id="only the value"),
        pytest.param(score_of(GOOD[:3]), TOO_FEW, id="three frames"),
    ],
)
def test_what_cannot_be_tested_says_why(new: Score, reason: str) -> None:
    one = {d.condition: d for d in compare(Matrix([score_of(GOOD)]), Matrix([new]))}["nominal"]
    assert one.reason == one.words == reason
    assert (one.low, one.high, one.is_significant, one.is_better) == (None, None, None, None)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        pytest.param(score_of(GOOD, digest="e" * 32), None, id="under other numbers: none"),
        pytest.param(Score(-1, "nominal", "d" * 32, {"f1": 0.5}), 0.5 - f1_of(GOOD), id="values"),
    ],
)
def test_a_difference_without_a_test_is_told_if_it_means_something(
    new: Score, expected: float | None
) -> None:
    assert only(score_of(GOOD), new).difference == (
        None if expected is None else pytest.approx(expected)
    )


def test_a_score_without_counts_has_values_only() -> None:
    one = only(score_of(GOOD), score_of(GOOD), key="rmse_pm")
    assert (one.difference, one.reason) == (0.0, NO_COUNTS)


def test_scores_under_older_numbers_do_not_enter() -> None:
    old = Matrix([score_of(GOOD, digest="a" * 32), score_of(GOOD)])
    assert compare(old, Matrix([score_of(GOOD)]))[0].reason == ""


def test_nothing_measured_on_either_gives_nothing() -> None:
    assert compare(Matrix(), Matrix()) == []


def test_the_tally_counts_every_condition_once() -> None:
    old_counts, better, worse = frames_of(np.random.default_rng(9), 32, 0, 0.06, -0.06)
    old = Matrix([score_of(old_counts, c) for c in ("a", "b", "c", "d", "e")])
    new = Matrix(
        [
            score_of(better, "a"),
            score_of(worse, "b"),
            score_of(old_counts, "c"),
            score_of(old_counts[:2], "d"),
        ]
    )
    found = tally(compare(old, new))
    assert (found.better, found.worse, found.unclear, found.untested, found.unmeasured) == (
        1, 1, 1, 1, 1,
    )  # fmt: skip


def test_two_rows_of_one_matrix_can_be_compared() -> None:
    by_hand, ensemble = frames_of(np.random.default_rng(6), 32, 0, 0.08)
    matrix = Matrix([score_of(by_hand, member=CLASSICAL), score_of(ensemble)])
    assert compare(matrix, matrix, member=CLASSICAL, new_member=ENSEMBLE)[0].is_better


def test_members_are_compared_by_index() -> None:
    a, b, c = frames_of(np.random.default_rng(8), 16, 0, 0, 0)
    old = Matrix([score_of(a, member=0), score_of(b, member=1), score_of(a)])
    new = Matrix([score_of(c, member=1), score_of(a), score_of(a, member=2)])
    assert [(one.member, one.reason) for one in compare_members(old, new)] == [
        (1, ""),
        (ENSEMBLE, ""),
    ]


def test_whether_selection_was_measured_does_not_change_the_significance_of_others() -> None:
    a, b, c = frames_of(np.random.default_rng(8), 16, 0, 0.02, 0)
    old, new = Matrix([score_of(a, member=0)]), Matrix([score_of(b, member=0)])
    (alone,) = compare_members(old, new)
    chosen = score_of(c, member=SELECTED)
    beside, selected = compare_members(old.with_rows([chosen]), new.with_rows([chosen]))
    assert beside == alone
    assert (selected.member, selected.p_adjusted) == (SELECTED, selected.p_value)


# -- through the zoo and the command line -------------------------------------------------------
app = typer.Typer()
app.command("diff")(zoo_compare.diff)
app.command("card")(zoo_compare.card)


def run(*words: str) -> tuple[list[dict[str, Any]], str]:
    done = CliRunner().invoke(app, ["diff", *words, "-o", "jsonl"], catch_exceptions=False)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def register_two(zoo: Zoo, name: str, members: list[Any]) -> str:
    """`@1` serves, `@2` is the candidate: better on one condition, worse on one, blind on one."""
    old, better, worse = frames_of(np.random.default_rng(11), 24, 0, 0.05, -0.07)
    conditions = ("dirty", "fine", "lowdose", "nominal")
    first = [score_of(old, c) for c in conditions] + [score_of(old, "nominal", member=0)]
    second = [
        score_of(worse, "fine"),
        score_of(old, "lowdose"),
        score_of(better, "nominal"),
        score_of(better, "nominal", member=0),
    ]
    zoo.register(name, members, job={"kind": "train"}, alias="serving", scores=first)
    zoo.register(name, members, job={"kind": "train"}, alias="candidate", scores=second)
    return name


@pytest.fixture
def two_versions(zoo: Zoo, name: str, tiny_members: Callable[[int], list[Any]]) -> str:
    return register_two(zoo, name, tiny_members(2))


@pytest.fixture
def two_here(
    embedded: Zoo,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    tiny_members: Callable[[int], list[Any]],
) -> str:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    return register_two(embedded, "graphene", tiny_members(2))


def test_an_engineer_reads_where_the_candidate_is_better_and_where_worse(two_versions: str) -> None:
    rows, talk = run(f"{two_versions}@serving", f"{two_versions}@candidate")
    assert {row["condition"]: row["verdict"] for row in rows} == {
        "dirty": "not measured",
        "fine": "worse",
        "lowdose": "no clear difference",
        "nominal": "better",
    }
    assert "1 better, 1 worse, 1 without a clear difference, 1 not measured" in talk
    assert f"manybeam evaluate {two_versions}@2 --conditions 'dirty'" in talk


def test_members_are_compared_beside_the_ensemble(two_versions: str) -> None:
    rows, _ = run(f"{two_versions}@1", f"{two_versions}@2", "--members")
    assert {(row["member"], row["condition"], row["verdict"]) for row in rows} >= {
        ("00", "nominal", "better"),
        ("ensemble", "fine", "worse"),
        ("01", "nominal", "not measured"),
    }


def test_single_members_of_any_index_can_be_compared(two_here: str) -> None:
    rows, _ = run(f"{two_here}@1/00", f"{two_here}@2/01")
    assert {row["verdict"] for row in rows} == {"not measured"}


def test_the_table_names_old_and_new(two_here: str) -> None:
    words = ["diff", two_here, f"{two_here}@candidate", "-o", "table"]
    shown = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).stdout
    assert f"{two_here}@1 (old), {two_here}@2 (new)" in " ".join(shown.split())
    assert "+0." in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(("{0}@1", "{0}@9"), UnknownRef, id="a version that is not there"),
        pytest.param(("{0}@1", "{0}@2", "--score", "beauty"), NotFound, id="a score nobody took"),
        pytest.param(("{0}@1", "{0}@2", "--png", "a.txt"), InvalidInput, id="no form of picture"),
        pytest.param(("{0}@1", "{0}@2", "--png", "/proc/a.png"), WriteFailed, id="/proc"),
        pytest.param(("{0}@1", "{0}@2", "--png", f"{'x' * 300}.png"), WriteFailed, id="long"),
    ],
)
def test_a_diff_that_cannot_be_made_is_refused(
    two_here: str, words: tuple[str, ...], expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        run(*(word.format(two_here) for word in words))


def test_the_differences_can_be_drawn(two_here: str, tmp_path: Path) -> None:
    path = tmp_path / "diff.png"
    run(f"{two_here}@1", f"{two_here}@2", "--png", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_versions_really_measured_are_compared_on_the_same_frames(
    zoo: Zoo, name: str, tiny_members: Callable[[int], list[Any]]
) -> None:
    from manybeam.jobs.evaluate import evaluate
    from manybeam.spec import Library
    from manybeam.spec.job import Measure

    measure = Measure(conditions=("graphene-60kv-nominal",), frames_per_condition=8)
    members, library = tiny_members(4), Library(ROOT / "zoo")
    for number, part in enumerate((members[:2], members[2:]), 1):
        zoo.register(name, part, job={"kind": "train"})
        scores = evaluate(part, measure, library, executor="local")
        zoo.record_scores(f"{name}@{number}", scores)
    matrices = zoo.matrix(f"{name}@1"), zoo.matrix(f"{name}@2")
    ours, by_hand = compare(*matrices)[0], compare(*matrices, member=CLASSICAL)[0]
    assert (ours.reason, ours.frame_count) == ("", 8)
    assert (by_hand.difference, by_hand.is_significant) == (0.0, False)

"""zoo.gates: what stands against a version, condition by condition, and what is only noise."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.spec.job import Gates
from manybeam.zoo import registration
from manybeam.zoo.lifecycle.gates import Verdict, check_gates
from manybeam.zoo.matrix import ENSEMBLE, Score, TestSet
from manybeam.zoo.records import write_manifest
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

FRAMES, ATOMS = 24, 100


def score(
    condition: str, found: float, *, digest: str = "d", counts: bool = True, **more: float
) -> Score:
    """The ensemble's score if it finds a share of 100 atoms in each of 24 frames of one kind."""
    rng = np.random.default_rng(sum(condition.encode()))
    hardness_n = rng.normal(0, 0.03, FRAMES)  # of a frame, for whoever looks at it
    hits_n = np.clip(np.round((found + hardness_n) * ATOMS), 0, ATOMS).astype(int)
    rows = tuple((int(hits), 0, int(ATOMS - hits)) for hits in hits_n)
    hits = sum(row[0] for row in rows)
    values = {"f1": 2 * hits / (hits + FRAMES * ATOMS), **more}
    return Score(ENSEMBLE, condition, digest, values, rows if counts else ())


@pytest.fixture
def verdicts_of(
    embedded: Zoo, tiny_members: Callable[[int], list[Any]]
) -> Callable[..., tuple[Verdict, ...]]:
    """Check a version with some scores against one with others."""

    def check(old: Sequence[Score], new: Sequence[Score], gates: Gates | None = None) -> Any:
        members = tiny_members(1)
        before = embedded.register("graphene", members, job={}, scores=old)
        after = embedded.register("graphene", members, job={"gates": {"max_regression": 0.01}})
        embedded.record_scores(after.ref, new)
        return check_gates(embedded, before.ref, after, gates)

    return check


def against(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    return [(one.gate, one.condition) for one in verdicts if not one.passed]


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        pytest.param([score("low", 0.9)], [score("low", 0.9)], [], id="the same"),
        pytest.param([score("low", 0.9)], [score("low", 0.95)], [], id="better"),
        pytest.param([score("low", 0.9)], [score("low", 0.87)], ["low"], id="worse"),
        pytest.param(
            [score("low", 0.9), score("nominal", 0.8)],
            [score("low", 0.86), score("nominal", 0.95)],
            ["low"],
            id="worse on one and better on another",
        ),
        pytest.param([score("low", 0.9)], [], ["low"], id="not measured"),
        pytest.param([], [score("low", 0.1)], [], id="the old one was measured on nothing"),
        pytest.param(
            [score("low", 0.9)], [score("low", 0.9, digest="e")], ["low"], id="numbers changed"
        ),
        pytest.param(
            [score("low", 0.9)], [score("low", 0.9), score("new", 0.1)], [], id="a new condition"
        ),
    ],
)
def test_a_condition_that_regresses_or_is_not_measured_stands_against_a_version(
    verdicts_of: Callable[..., Any], old: list[Score], new: list[Score], refused: list[str]
) -> None:
    assert against(verdicts_of(old, new)) == [("regression", condition) for condition in refused]


def test_a_loss_that_is_certain_but_allowed_passes(verdicts_of: Callable[..., Any]) -> None:
    old, new = [score("low", 0.9)], [score("low", 0.88)]
    assert against(verdicts_of(old, new, Gates(max_regression=0.005))) == [("regression", "low")]
    assert against(verdicts_of(old, new, Gates(max_regression=0.05))) == []


def test_the_job_of_a_version_sets_its_gates(verdicts_of: Callable[..., Any]) -> None:
    old, new = [score("low", 0.9)], [score("low", 0.884)]  # F1 falls by .0085, for certain
    assert against(verdicts_of(old, new)) == []  # the job allows .01
    assert against(verdicts_of(old, new, Gates())) == [("regression", "low")]


def test_scores_on_frames_of_another_seed_are_not_paired_and_the_verdict_says_so(
    verdicts_of: Callable[..., Any],
) -> None:
    old, new = (
        replace(score("low", 0.9, ece=0.01), test_set=TestSet(seed=seed)) for seed in (0, 7)
    )
    verdicts = {one.gate: one for one in verdicts_of([old], [new])}
    assert "other frames: seed 0 and seed 7" in verdicts["regression"].what
    assert verdicts["calibration"].what.endswith("1 of them on other frames")
    same = {one.gate: one.what for one in verdicts_of([old], [replace(new, test_set=old.test_set)])}
    assert "frames)" in same["regression"]
    assert "other frames" not in same["calibration"]


def test_a_loss_within_noise_passes(verdicts_of: Callable[..., Any]) -> None:
    few = score("low", 0.9)
    noisy = tuple((90 + (-1) ** i * 6, 0, 10 - (-1) ** i * 6) for i in range(8))
    rotated = tuple(
        (row[0] - 3 * (-1) ** (i // 2), 0, row[2] + 3 * (-1) ** (i // 2))
        for i, row in enumerate(noisy)
    )
    old = Score(ENSEMBLE, "low", "d", {"f1": few.values["f1"]}, noisy)
    new = Score(ENSEMBLE, "low", "d", {"f1": few.values["f1"] - 0.02}, rotated)
    assert against(verdicts_of([old], [new], Gates())) == []


@pytest.mark.parametrize(
    ("half", "refused"),
    [
        pytest.param(0.03, [], id="wide intervals"),
        pytest.param(0.01, ["low"], id="narrow intervals"),
        pytest.param(None, ["low"], id="no intervals"),
    ],
)
def test_without_counts_by_frame_the_two_intervals_tell_what_is_noise(
    verdicts_of: Callable[..., Any], half: float | None, refused: list[str]
) -> None:
    def score_of(f1: float) -> Score:
        ends = {} if half is None else {"f1_low": f1 - half, "f1_high": f1 + half}
        return Score(ENSEMBLE, "low", "d", {"f1": f1, **ends})

    verdicts = verdicts_of([score_of(0.9)], [score_of(0.87)])
    assert against(verdicts) == [("regression", condition) for condition in refused]


def test_a_verdict_contains_the_numbers(verdicts_of: Callable[..., Any]) -> None:
    worse = next(
        one for one in verdicts_of([score("low", 0.9)], [score("low", 0.8)]) if not one.passed
    )
    assert worse.words.startswith("regression on low: F1 0.9")
    assert "-0.05" in worse.what
    assert "24 frames" in worse.what


@pytest.mark.parametrize(
    ("increases", "refused"),
    [
        pytest.param([0.01, 0.02], [], id="within what is allowed"),
        pytest.param([0.01, 0.05], [("calibration", "")], id="beyond"),
        pytest.param([-0.1, 0.05], [], id="worse on one, better on the whole"),
    ],
)
def test_a_worse_calibration_stands_against_a_version(
    verdicts_of: Callable[..., Any], increases: list[float], refused: list[tuple[str, str]]
) -> None:
    old = [score(f"c{i}", 0.9, ece=0.2) for i in range(2)]
    new = [score(f"c{i}", 0.9, ece=0.2 + more) for i, more in enumerate(increases)]
    assert against(verdicts_of(old, new)) == refused


# -- is it what was registered ------------------------------------------------------------------
def test_a_version_that_replaces_nothing_need_only_be_whole(
    zoo: Zoo, name: str, tiny_members: Callable[[int], list[Any]]
) -> None:
    record = zoo.register(name, tiny_members(2), job={})
    verdicts = check_gates(zoo, "", record)
    assert [(one.gate, one.passed) for one in verdicts] == [
        ("status", True), ("bytes", True), ("self-test", True),
    ]  # fmt: skip


def test_weights_gone_from_the_store_are_named_though_this_machine_keeps_them(
    embedded: Zoo, tmp_path: Path, tiny_members: Callable[[int], list[Any]]
) -> None:
    record = embedded.register("graphene", tiny_members(2), job={})
    embedded.members(record.ref)
    shutil.rmtree(next(tmp_path.rglob(f"*{record.member(1).model_id}")))
    refused = [one for one in check_gates(embedded, "", record) if not one.passed]
    assert [one.gate for one in refused] == ["bytes"]
    assert "weights of member 01" in refused[0].what


def test_a_version_of_before_self_tests_is_refused(
    embedded: Zoo, monkeypatch: pytest.MonkeyPatch, tiny_members: Callable[[int], list[Any]]
) -> None:
    def as_it_was(*given: Any, **more: Any) -> bytes:
        return write_manifest(*given, **{**more, "self_test": ""})

    monkeypatch.setattr(registration, "write_manifest", as_it_was)
    record = embedded.register("graphene", tiny_members(1), job={})
    assert against(check_gates(embedded, "", record)) == [("self-test", "")]


def test_scores_of_the_old_version_that_cannot_be_read_are_named(
    embedded: Zoo, tmp_path: Path, tiny_members: Callable[[int], list[Any]]
) -> None:
    old = embedded.register("graphene", tiny_members(1), job={}, scores=[score("low", 0.9)])
    new = embedded.register("graphene", tiny_members(1), job={}, scores=[score("low", 0.9)])
    sheet = next(tag for tag in embedded.entry(old.ref).tags if tag.startswith("manybeam.scores."))
    shutil.rmtree(next(tmp_path.rglob(f"*{sheet.removeprefix('manybeam.scores.')}")))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert against(check_gates(embedded, old.ref, new)) == [("regression", "")]


def test_measuring_one_member_under_new_numbers_takes_no_condition_from_the_gate(
    verdicts_of: Callable[..., Any],
) -> None:
    old = [score("low", 0.9), Score(0, "low", "changed", {"f1": 0.9})]
    assert against(verdicts_of(old, [score("low", 0.5)], Gates())) == [("regression", "low")]

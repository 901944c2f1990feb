"""Forecasts: what members and sub-ensembles are promised on frames nobody labelled, and how truly.

`rehearsed` gives three small members that were really trained, and a table of 132 frames: a fifth
of what a facility makes. The frames asked about are drawn as those of the table, by another seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from manybeam.data.simulation.simulate import simulate
from manybeam.errors import InvalidFrame, InvalidInput
from manybeam.learn.analysis.fitness import LATTICES, SCORES
from manybeam.learn.analysis.frame_analysis import WINDOW_PX, FrameAnalysis, analyse
from manybeam.learn.scoring.scores import f1_of, match_frame
from manybeam.predictor.f1.index import F1Index
from manybeam.predictor.f1.predicted import PredictedF1
from manybeam.predictor.performance import PerformancePredictor, PreferredMembers
from manybeam.spec import Library

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
GRAPHENE = LATTICES["graphene"]
ALONE = [{0: 1.0}, {1: 1.0}, {2: 1.0}]
ALL = {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}
HELD_OUT = 30
SIDE = 128
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Asked:
    """Frames the table does not hold: forecasts and truth of three members and of all (n, q)."""

    looks: list[FrameAnalysis]
    f1_nq: np.ndarray
    low_nq: np.ndarray
    high_nq: np.ndarray
    true_nq: np.ndarray


def preferred(seen: FrameAnalysis, member: int) -> PreferredMembers:
    return PreferredMembers(seen.summary_cs.mean(axis=0), seen.score_mf, (member,))


@pytest.fixture(scope="module")
def known(rehearsed: Any) -> PerformancePredictor:
    return PerformancePredictor(rehearsed.table)


@pytest.fixture(scope="module")
def asked(rehearsed: Any, known: PerformancePredictor) -> Asked:
    looks, told, true = [], [], []
    for number in range(HELD_OUT):
        made = rehearsed.drawn(number)
        frame, size = made.frames_nyx[0], float(made.pixel_size_pm[0])
        seen = analyse(rehearsed.ensemble, frame, size, GRAPHENE)
        found = [*seen.prediction.member_atoms, seen.prediction.atoms]
        counts = [match_frame(atoms, made.truth[0], size, frame.shape).counts for atoms in found]
        looks.append(seen)
        told.append([(f.f1, f.low, f.high) for f in known.predict_f1(seen, [*ALONE, ALL])])
        true.append(f1_of(np.array(counts)))
    return Asked(looks, *np.moveaxis(np.array(told), 2, 0), np.array(true))


@pytest.fixture(scope="module")
def seen_as(rehearsed: Any) -> Callable[..., FrameAnalysis]:
    """Look at a frame at the members' own pixel size, unless told otherwise."""

    def see(frame_yx: np.ndarray, pixel_size_pm: float | None = 20.0, **more: Any) -> FrameAnalysis:
        given = {"lattice": GRAPHENE, **more}
        return analyse(rehearsed.ensemble, frame_yx.astype(np.float32), pixel_size_pm, **given)

    return see


def clean(side: int = SIDE, seed: int = 5) -> np.ndarray:
    """Return a nominal frame at 16 pm a pixel."""
    condition = LIBRARY.conditions["graphene-60kv-nominal"]
    return np.asarray(simulate(condition, 1, seed=seed, shape=(side, side)).frames_nyx[0])


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SIDE, SIDE))


def buildings() -> np.ndarray:
    """Return what a photograph has and no frame: edges, planes, and hardly any noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    walls = 2.0 * ((x > 40) & (y < 90)) + 1.0 * (y > 64) + 0.3 * ((x // 9 + y // 11) % 2)
    return gaussian_filter(walls, 0.6) + 0.01 * noise()


def test_what_is_promised_orders_answers_as_their_true_f1_does(asked: Asked) -> None:
    assert spearmanr(asked.f1_nq.ravel(), asked.true_nq.ravel())[0] >= 0.7
    for place in range(4):
        assert spearmanr(asked.f1_nq[:, place], asked.true_nq[:, place])[0] >= 0.6


def test_what_is_promised_is_near_the_truth_for_members_and_for_all(asked: Asked) -> None:
    assert (np.abs(asked.f1_nq - asked.true_nq).mean(axis=0) < 0.06).all()


def test_the_interval_holds_the_truth_nearly_as_often_as_promised(asked: Asked) -> None:
    """Nine in ten; what 30 frames with all their members in common leave to chance is allowed."""
    inside = (asked.true_nq >= asked.low_nq) & (asked.true_nq <= asked.high_nq)
    assert inside.mean() >= 0.8
    assert (asked.high_nq - asked.low_nq).mean() < 0.25


@pytest.mark.parametrize("count", [60, 200, 600])
def test_nine_truths_in_ten_lie_within_the_interval_however_few_were_learnt_from(
    count: int,
) -> None:
    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        part_n = rng.uniform(0, 1, count)
        return part_n[:, None], (0.2 + 0.7 * part_n + rng.normal(0, 0.1, count)).clip(0, 1)

    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        known = F1Index(*drawn(count), np.arange(count))
        part_ni, f1_n = drawn(200)
        _, low_n, high_n, *_ = known.predict_f1(part_ni).T
        inside.append(np.mean((low_n <= f1_n) & (f1_n <= high_n)))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


def test_the_interval_of_the_chosen_answer_holds_too_and_the_usual_one_does_not() -> None:
    """The highest of six predictions is too high more often than one of them is."""

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        f1_nm = rng.uniform(0.4, 0.8, (count, 1)) + rng.normal(0, 0.05, (count, 6))
        return (f1_nm + rng.normal(0, 0.1, (count, 6))).reshape(-1, 1), f1_nm.ravel()

    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        known = F1Index(*drawn(300), np.repeat(np.arange(300), 6))
        part_ni, f1_n = drawn(200)
        highest_n = np.arange(0, 1200, 6) + part_ni.reshape(200, 6).argmax(axis=1)
        _, low_n, high_n, chosen_low_n, chosen_high_n = known.predict_f1(part_ni[highest_n]).T
        holds_n = (low_n <= f1_n[highest_n]) & (f1_n[highest_n] <= high_n)
        chosen_n = (chosen_low_n <= f1_n[highest_n]) & (f1_n[highest_n] <= chosen_high_n)
        inside.append((holds_n.mean(), chosen_n.mean()))
    usual, chosen = np.mean(inside, axis=0)
    assert usual < 0.87
    assert chosen == pytest.approx(0.9, abs=0.02)


def test_the_interval_holds_the_forecast_and_all_are_shares(asked: Asked) -> None:
    assert (asked.low_nq >= 0).all()
    assert (asked.low_nq <= asked.f1_nq).all()
    assert (asked.f1_nq <= asked.high_nq).all()
    assert (asked.high_nq <= 1).all()


def test_members_that_were_never_wrong_are_promised_no_more_than_all(
    rehearsed: Any, asked: Asked
) -> None:
    perfect = replace(
        rehearsed.table, count_nm3=np.ones_like(rehearsed.table.count_nm3) * (9, 0, 0)
    )
    for one in PerformancePredictor(perfect).predict_f1(asked.looks[0], ALONE):
        assert 1 - 1e-5 < one.low <= one.f1 <= one.high <= 1


def test_no_part_of_the_index_weighs_less_than_nothing(known: PerformancePredictor) -> None:
    assert set(known.weights) == {"simulated", "resembled", "forward", "lattice"}
    assert min(known.weights.values()) >= 0
    assert max(known.weights.values()) > 0


def test_every_part_is_named_where_it_applies(known: PerformancePredictor, asked: Asked) -> None:
    parts = known.predict_f1(asked.looks[0], ALONE)[0].parts
    assert set(parts) == {"simulated", "resembled", *SCORES}
    assert np.isfinite(list(parts.values())).all()


@pytest.mark.parametrize("made", [noise, buildings], ids=lambda one: one.__name__)
def test_a_frame_without_atoms_is_promised_less_than_a_good_one(
    known: PerformancePredictor,
    seen_as: Callable[..., FrameAnalysis],
    made: Callable[[], np.ndarray],
) -> None:
    good = known.predict_f1(seen_as(clean(), 16.0), [*ALONE, ALL])
    bad = known.predict_f1(seen_as(made()), [*ALONE, ALL])
    for one, other in zip(bad, good, strict=True):
        assert one.f1 < other.f1 - 0.15


def test_a_constant_frame_is_refused(seen_as: Callable[..., FrameAnalysis]) -> None:
    with pytest.raises(InvalidFrame, match="needs contrast"):
        seen_as(np.ones((SIDE, SIDE)))


def test_frames_like_the_tables_are_near_it_and_a_photograph_is_far(
    known: PerformancePredictor, asked: Asked, seen_as: Callable[..., FrameAnalysis]
) -> None:
    usual_n = np.array([known.distance(seen) for seen in asked.looks])
    assert np.quantile(usual_n, 0.9) < 1.5
    assert known.distance(seen_as(buildings())) > max(1.5, usual_n.max())


def test_a_frame_far_from_the_table_is_told_in_a_wider_interval(
    known: PerformancePredictor, asked: Asked, seen_as: Callable[..., FrameAnalysis]
) -> None:
    far = known.predict_f1(seen_as(buildings()), ALONE)
    assert min(one.high - one.low for one in far) > (asked.high_nq - asked.low_nq).mean()


def gap(told: list[PredictedF1], one: int, other: int) -> float:
    return told[one].f1 - told[other].f1


def test_preferences_raise_the_members_chosen_on_that_frame_and_on_frames_like_it(
    rehearsed: Any, known: PerformancePredictor, seen_as: Callable[..., FrameAnalysis]
) -> None:
    """On faint and dirty frames member 1 is best; people who want something else are heard."""
    condition = LIBRARY.conditions["graphene-60kv-dirty"]
    made = simulate(condition, 5, seed=8, shape=(SIDE, SIDE))
    looks = [seen_as(frame, float(made.pixel_size_pm[0])) for frame in made.frames_nyx]
    before = [known.predict_f1(seen, ALONE) for seen in looks]
    best = int(np.argmax([one.f1 for one in before[0]]))
    other = (best + 1) % 3
    taught = PerformancePredictor(rehearsed.table, [preferred(seen, other) for seen in looks[:4]])
    after = [taught.predict_f1(seen, ALONE) for seen in looks]
    for was, now in zip(before, after, strict=True):
        assert gap(now, other, best) > gap(was, other, best)
    assert gap(after[0], other, best) > gap(before[0], other, best) + 0.02


def test_with_preferences_the_threshold_of_none_fits_is_still_the_tables(
    rehearsed: Any, known: PerformancePredictor, asked: Asked
) -> None:
    taught = PerformancePredictor(rehearsed.table, [preferred(asked.looks[0], 2)])
    assert taught.poor_f1 == pytest.approx(known.poor_f1, abs=0.05)
    assert len(taught.nearest(asked.looks[0], 500)) == len(rehearsed.table)


def test_without_preferences_a_performance_predictor_is_as_before(
    rehearsed: Any, known: PerformancePredictor, asked: Asked
) -> None:
    again = PerformancePredictor(rehearsed.table, [])
    assert again.predict_f1(asked.looks[3], ALONE) == known.predict_f1(asked.looks[3], ALONE)


def test_one_member_alone_is_forecast_too(rehearsed: Any) -> None:
    made = rehearsed.drawn(0)
    frame, size = made.frames_nyx[0], float(made.pixel_size_pm[0])
    seen = analyse(rehearsed.ensemble.subset([2]), frame, size, GRAPHENE)
    found = PerformancePredictor(rehearsed.table.only(2)).predict_f1(seen, [{2: 1.0}])[0]
    atoms = seen.prediction.member_atoms[0]
    true = f1_of(np.array([match_frame(atoms, made.truth[0], size, frame.shape).counts]))[0]
    assert found.f1 == pytest.approx(true, abs=0.15)
    assert "agreement" not in found.parts


def test_members_looked_at_in_another_order_are_promised_the_same(
    rehearsed: Any, known: PerformancePredictor, asked: Asked
) -> None:
    made = rehearsed.drawn(1)
    turned = analyse(
        rehearsed.ensemble.subset([2, 0, 1]),
        made.frames_nyx[0],
        float(made.pixel_size_pm[0]),
        GRAPHENE,
    )
    ahead = known.predict_f1(asked.looks[1], ALONE)
    assert [one.f1 for one in known.predict_f1(turned, ALONE)] == pytest.approx(
        [one.f1 for one in ahead], abs=1e-6
    )
    np.testing.assert_array_equal(known.nearest(turned, 20), known.nearest(asked.looks[1], 20))


def test_a_table_of_other_members_is_refused_in_words(
    rehearsed: Any, asked: Asked, known: PerformancePredictor
) -> None:
    fewer = PerformancePredictor(rehearsed.table.only(1))
    for ask in (
        lambda: fewer.predict_f1(asked.looks[0], ALONE),
        lambda: fewer.nearest(asked.looks[0], 5),
        lambda: fewer.alike(asked.looks[0], {1: 1.0}, 5),
    ):
        with pytest.raises(InvalidInput, match="calibrated with members 1;"):
            ask()


def test_the_frames_alike_are_of_the_table_and_each_is_named_once(
    known: PerformancePredictor, asked: Asked
) -> None:
    alike = known.alike(asked.looks[0], ALL, 40)
    assert len(set(alike.tolist())) == len(alike) == 40
    assert 0 <= min(alike) <= max(alike) < len(known.table)


def test_a_good_frame_has_frames_alike_on_which_the_answer_was_right(
    known: PerformancePredictor, seen_as: Callable[..., FrameAnalysis]
) -> None:
    alike = known.alike(seen_as(clean(), 16.0), ALL, 20)
    assert known.table.f1(ALL)[alike].mean() > known.table.f1(ALL).mean() + 0.05


def test_an_unknown_pixel_size_and_a_sample_without_a_lattice_are_survived(
    known: PerformancePredictor, seen_as: Callable[..., FrameAnalysis]
) -> None:
    sized = known.predict_f1(seen_as(clean(), 16.0), ALONE)
    for seen in (seen_as(clean(), None), seen_as(clean(), 16.0, lattice=None)):
        told = known.predict_f1(seen, [*ALONE, ALL])
        assert all(np.isfinite([one.f1, one.low, one.high]).all() for one in told)
        assert told[0].f1 == pytest.approx(sized[0].f1, abs=0.25)


@pytest.mark.parametrize("side", [48, 64])
def test_a_small_frame_is_answered(
    known: PerformancePredictor, seen_as: Callable[..., FrameAnalysis], side: int
) -> None:
    told = known.predict_f1(seen_as(clean()[:side, :side], 16.0), [*ALONE, ALL])
    assert all(0 <= one.low <= one.f1 <= one.high <= 1 for one in told)


@pytest.mark.parametrize("shape", [(47, 128), (20, 20), (4, 64, 64)], ids=str)
def test_a_frame_too_small_to_be_told_from_others_is_refused_in_words(
    seen_as: Callable[..., FrameAnalysis], shape: tuple[int, ...]
) -> None:
    with pytest.raises(InvalidFrame, match="too small to select members"):
        seen_as(np.random.default_rng(0).random(shape))


def test_of_a_large_frame_the_middle_is_looked_at(
    known: PerformancePredictor, seen_as: Callable[..., FrameAnalysis]
) -> None:
    seen = seen_as(clean(1024), 16.0)
    side = int(WINDOW_PX * 20 / 16)  # the members see 20 pm a pixel
    first = (1024 - side) // 2
    assert seen.window == (slice(first, first + side),) * 2
    assert known.predict_f1(seen, [ALL])[0].f1 > 0.9


def test_a_large_frame_that_is_empty_in_the_middle_is_looked_at_as_a_whole(
    seen_as: Callable[..., FrameAnalysis],
) -> None:
    frame = np.tile(clean(), (4, 4))
    frame[40:-40, 40:-40] = 0
    assert seen_as(frame, 20.0).window == (slice(0, 512), slice(0, 512))

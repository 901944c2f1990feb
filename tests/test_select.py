"""Selection: which members suit a frame, how well they should do, and why, in words.

By rule of thumb where an ensemble was never rehearsed, by its calibration set where it was; the
table and its three members, really trained, are of the fixture `rehearsed`.
"""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.io.frame import Frame
from manybeam.data.simulation.simulate import simulate
from manybeam.errors import InvalidFrame, InvalidInput
from manybeam.learn.analysis.fitness import LATTICES, scores
from manybeam.learn.analysis.frame_analysis import FrameAnalysis
from manybeam.learn.nets.prediction import Prediction
from manybeam.learn.scoring.calibration import calibrated
from manybeam.predictor.condition_distance import Near
from manybeam.predictor.f1.predicted import PredictedF1
from manybeam.predictor.performance import PerformancePredictor
from manybeam.predictor.reasons import Outlook
from manybeam.predictor.selection import Answerer, Selection
from manybeam.predictor.selection import select as rank
from manybeam.predictor.uncalibrated import rule_of_thumb, within_noise
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.spec import Condition, Library
from manybeam.zoo.matrix import Matrix, Score
from manybeam.zoo.records import MemberRecord, Record

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
POLICIES = ("graphene-nominal", "graphene-dirty", "graphene-coarse")
NOMINAL, COARSE, DIRTY = (f"graphene-60kv-{name}" for name in ("nominal", "coarse", "dirty"))
GRAPHENE = LATTICES["graphene"]
SIDE = 128
pytestmark = pytest.mark.usefixtures("one_thread")


def record() -> Record:
    members = tuple(
        MemberRecord(index, 1, policy, "small@1", {}, "", "", 0.1, 1.0, "", "", 0, "")
        for index, policy in enumerate(POLICIES)
    )
    return Record("graphene", 1, members, datetime.now(UTC), {})


def matrix(f1: dict[str, tuple[float, ...]]) -> Matrix:
    return Matrix(
        [
            Score(member, name, "d", {"f1": value, "f1_low": value - 0.02, "f1_high": value + 0.02})
            for name, values in f1.items()
            for member, value in enumerate(values)
        ],
        members=range(3),
    )


MEASURED = matrix({NOMINAL: (0.99, 0.98, 0.97), DIRTY: (0.6, 0.97, 0.7), COARSE: (0.7, 0.72, 0.98)})
ONLY_NOMINAL = matrix({NOMINAL: (0.99, 0.98, 0.97)})
UNMEASURED = Matrix(members=range(3))
TWO_KINDS = matrix({NOMINAL: (0.9, 0.9, 0.9), "mos2-60kv-nominal": (0.1, 0.1, 0.1)})


def select(
    record: Record,
    matrix: Matrix,
    ensemble: Any,
    frame_yx: np.ndarray,
    pixel_size_pm: float | None,
    condition: Condition | None = None,
    *,
    known: PerformancePredictor | None = None,
    answering: dict[int, float] | None = None,
    **more: Any,
) -> Selection:
    """Return the ranking of a version made of these parts."""
    version = LoadedVersion(ensemble, matrix, known, record)
    return rank(version, Frame(frame_yx, pixel_size_pm, condition), asked=answering, **more)


def frame_of(name: str, side: int = SIDE) -> tuple[np.ndarray, np.ndarray, float]:
    made = simulate(LIBRARY.conditions[name], 1, seed=5, shape=(side, side))
    return made.frames_nyx[0], made.truth[0], float(made.pixel_size_pm[0])


# -- by rule of thumb, on answers made by hand -----------------------------------------------------
def worse(truth: np.ndarray, missed: float = 0.0, false: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return the true atoms with a share of them missing and a share of false ones added."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, truth[:, :2].max(), (int(false * len(truth)), 2))
    extra = np.column_stack([places, np.zeros(len(places))])
    return np.concatenate([truth[rng.random(len(truth)) >= missed], extra])


def seen_of(name: str, found: list[dict[str, float]], lattice: Any = GRAPHENE) -> FrameAnalysis:
    """Return a look at a frame on which each member found these atoms."""
    frame, truth, size = frame_of(name)
    atoms = [worse(truth, seed=index, **one) for index, one in enumerate(found)]
    atoms = [np.column_stack([one, np.ones(len(one))]).astype(np.float32) for one in atoms]
    steady = [1 - one.get("missed", 0.0) for one in found]
    model, score_mf = scores(frame, atoms, size, lattice, steady)
    members = tuple(range(len(atoms)))
    prediction = Prediction(np.empty((0, 7), np.float32), atoms, members, frame.shape, size)
    window = (slice(0, SIDE), slice(0, SIDE))
    return FrameAnalysis(prediction, score_mf, np.zeros((1, 3)), window, size, lattice, model)


def at(name: str, distance: float = 0.5) -> Near:
    return Near(distance, {name: 1.0}, ((name, distance),))


def thumbed(name: str, found: list[dict[str, float]], measured: Matrix) -> list[Outlook]:
    return rule_of_thumb(seen_of(name, found), measured, at(name))


GOOD, POOR = {"missed": 0.01}, {"missed": 0.5, "false": 0.5}


def test_the_member_that_was_measured_best_there_and_fits_the_frame_comes_first() -> None:
    ranked = thumbed(COARSE, [{"missed": 0.4}, {"missed": 0.3}, GOOD], MEASURED)
    assert ranked[0].member == 2
    assert within_noise(ranked) == (2,)


def test_equal_atoms_are_ranked_by_the_matrix_and_equal_measures_by_the_atoms() -> None:
    assert thumbed(DIRTY, [GOOD, GOOD, GOOD], MEASURED)[0].member == 1
    flat = matrix({NOMINAL: (0.9, 0.9, 0.9)})
    assert thumbed(NOMINAL, [POOR, POOR, GOOD], flat)[0].member == 2


def test_the_frame_overrules_a_matrix_that_was_measured_elsewhere() -> None:
    elsewhere = matrix({NOMINAL: (0.99, 0.8, 0.8)})
    seen = seen_of(DIRTY, [POOR, GOOD, {"missed": 0.5}])
    assert rule_of_thumb(seen, elsewhere, at(NOMINAL, 5.0))[0].member == 1


def test_members_that_cannot_be_told_apart_are_all_chosen() -> None:
    equal = matrix({NOMINAL: (0.97, 0.97, 0.97)})
    assert within_noise(thumbed(NOMINAL, [{}, {}, {}], equal)) == (0, 1, 2)


def test_the_interval_holds_the_prediction_and_widens_away_from_what_was_measured() -> None:
    seen = seen_of(NOMINAL, [GOOD] * 3)
    near, far = (rule_of_thumb(seen, MEASURED, at(NOMINAL, away))[0] for away in (0.5, 6.0))
    for one in (near, far):
        assert 0 <= one.low <= one.predicted_f1 <= one.high <= 1
    assert far.high - far.low > near.high - near.low


def test_a_sample_without_a_lattice_is_judged_without_one_and_less_surely() -> None:
    with_one, without = (
        rule_of_thumb(seen_of(NOMINAL, [GOOD] * 3, lattice), UNMEASURED, Near(np.inf))[0]
        for lattice in (GRAPHENE, None)
    )
    assert "lattice" in with_one.components
    assert "lattice" not in without.components
    assert without.high - without.low > with_one.high - with_one.low


def test_an_ensemble_that_was_never_measured_is_ranked_by_the_frame_alone() -> None:
    seen = seen_of(NOMINAL, [{"missed": 0.5}, GOOD, {"missed": 0.5}])
    ranked = rule_of_thumb(seen, UNMEASURED, Near(np.inf))
    assert ranked[0].member == 1
    assert all("matrix" not in one.components for one in ranked)


# -- an ensemble that was never rehearsed ----------------------------------------------------------
def ranked(rehearsed: Any, name: str, measured: Matrix = MEASURED, **more: Any) -> Selection:
    frame, _, size = frame_of(name)
    given = {"library": LIBRARY, **more}
    return select(record(), measured, rehearsed.ensemble, frame, size, **given)


def test_every_component_is_returned_by_name(rehearsed: Any) -> None:
    found = ranked(rehearsed, NOMINAL)
    assert len(found.candidates) == 3
    assert set(found.candidates[0].components) == {
        "matrix", "forward", "lattice", "agreement", "consistency", "confidence", "fitness",
        "distance",
    }  # fmt: skip


def test_without_a_rehearsal_nothing_is_called_calibrated(rehearsed: Any) -> None:
    found = ranked(rehearsed, NOMINAL)
    assert not found.is_calibrated
    assert found.transferred is None
    assert found.answerers == ()
    assert np.isnan(found.distance)
    assert "not calibrated: run manybeam calibrate" in found.why


def test_those_chosen_without_a_rehearsal_answer_alike_and_as_they_are(rehearsed: Any) -> None:
    frame, _, size = frame_of(NOMINAL)
    found = ranked(rehearsed, NOMINAL)
    assert found.weights == pytest.approx({m: 1 / len(found.chosen) for m in found.chosen})
    own = rehearsed.ensemble.predict(frame, size)
    np.testing.assert_array_equal(found.answer(own).atoms, own.subset(found.chosen).atoms)


def test_a_condition_like_the_frames_is_named_the_nearest(rehearsed: Any) -> None:
    found = ranked(rehearsed, COARSE)
    assert found.nearest[0][0] == COARSE
    assert f"nearest measured condition: '{COARSE}'" in found.why


def test_a_frame_unlike_anything_measured_is_out_of_distribution_but_still_answered(
    rehearsed: Any,
) -> None:
    three = matrix(dict.fromkeys((NOMINAL, COARSE, "graphene-60kv-fine"), (0.9, 0.9, 0.9)))
    far = ranked(rehearsed, DIRTY, three)
    assert far.verdict == "out-of-distribution"
    assert far.chosen
    assert "the distance is above 2.5 to each of 3 measured conditions" in far.why
    near = ranked(rehearsed, NOMINAL, three)
    assert near.verdict == "ok"
    assert "out of distribution" not in near.why
    assert near.reasons[-1] == "verdict ok by 3 measured conditions and the members' own scores"


def test_one_or_two_measured_conditions_are_too_few_to_call_a_frame_far(rehearsed: Any) -> None:
    far = ranked(rehearsed, DIRTY, ONLY_NOMINAL)
    assert (far.verdict, far.is_drifted) == ("unknown", None)
    assert "drift is unknown: only 1 measured condition can be compared" in far.why
    assert "manybeam evaluate" in far.why
    near = ranked(rehearsed, NOMINAL, ONLY_NOMINAL)
    assert (near.verdict, near.is_drifted) == ("ok", False)


def test_of_two_ensembles_the_one_that_knows_the_frame_answers(rehearsed: Any) -> None:
    easy = ranked(rehearsed, DIRTY, ONLY_NOMINAL)
    there = ranked(rehearsed, DIRTY, matrix({DIRTY: (0.8, 0.8, 0.8)}))
    assert there.rank_key > easy.rank_key > replace(easy, verdict="out-of-distribution").rank_key


def test_members_that_all_fail_are_out_of_distribution_and_the_reason_says_so(
    rehearsed: Any,
) -> None:
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    poor = matrix({NOMINAL: (0.3, 0.3, 0.3)})
    found = select(record(), poor, rehearsed.ensemble, noise, 16.0, library=LIBRARY)
    assert found.verdict == "out-of-distribution"
    assert "no member has a predicted F1 of 0.60" in found.why


def test_the_reason_names_what_a_policy_never_saw(rehearsed: Any) -> None:
    found = ranked(rehearsed, COARSE, matrix({COARSE: (0.5, 0.55, 0.99)}))
    reasons = {one.member: one.why for one in found.candidates}
    assert "pixel size 24 pm is outside what 'graphene-nominal' saw (14.5 to 17.5)" in reasons[0]
    assert "outside what 'graphene-" in found.why
    assert "'graphene-coarse' covers it" in found.why
    assert "its atoms, drawn again, explain" in found.why


def test_what_the_instrument_told_enters_the_reason(rehearsed: Any) -> None:
    low = Condition(id="told", dose_e_per_a2=2e4, origin="measured")
    reasons = [one.why for one in ranked(rehearsed, NOMINAL, condition=low).candidates]
    assert any("dose 2e+04 e/A^2 is outside what 'graphene-nominal' saw" in why for why in reasons)


def test_single_atoms_on_a_support_are_not_judged_by_a_lattice(rehearsed: Any) -> None:
    single = LIBRARY.conditions["ptnc-hpai"]
    for known in (None, PerformancePredictor(rehearsed.table)):
        found = ranked(rehearsed, NOMINAL, condition=single, known=known)
        assert all("lattice" not in one.components for one in found.candidates)


def test_what_was_never_measured_is_said_to_be_so(rehearsed: Any) -> None:
    found = ranked(rehearsed, NOMINAL, UNMEASURED)
    assert all("matrix" not in one.components for one in found.candidates)
    assert "no measured condition can be compared" in found.why
    assert found.verdict == "unknown"


def test_conditions_that_the_library_lost_still_count_by_their_scores(
    rehearsed: Any, tmp_path: Path
) -> None:
    lost = matrix({"lost": (0.5, 0.5, 0.99)})
    found = ranked(rehearsed, NOMINAL, lost, library=Library(tmp_path))
    assert found.candidates[0].member == 2
    assert all(np.isfinite(list(one.components.values())).all() for one in found.candidates)


def test_an_unknown_pixel_size_is_survived(rehearsed: Any) -> None:
    frame, _, _ = frame_of(NOMINAL)
    for known in (None, PerformancePredictor(rehearsed.table)):
        found = select(
            record(), UNMEASURED, rehearsed.ensemble, frame, None, known=known, library=LIBRARY
        )
        assert found.candidates[0].predicted_f1 > 0.7


def test_a_recorded_condition_of_unknown_structure_has_scores_and_no_likeness(
    rehearsed: Any, tmp_path: Path
) -> None:
    (tmp_path / "conditions").mkdir()
    (tmp_path / "conditions" / "scope.yaml").write_text("{id: scope, origin: measured}")
    recorded = matrix({"scope": (0.5, 0.6, 0.99)})
    found = ranked(rehearsed, NOMINAL, recorded, library=Library(tmp_path))
    assert found.nearest == ()
    assert {one.member: one.components["matrix"] for one in found.candidates} == pytest.approx(
        {0: 0.5, 1: 0.6, 2: 0.99}
    )


def test_scores_that_cannot_be_placed_are_not_said_to_be_of_conditions_like_this(
    rehearsed: Any, tmp_path: Path
) -> None:
    found = ranked(rehearsed, NOMINAL, library=Library(tmp_path))
    assert all("on all conditions" in one.why for one in found.candidates)
    assert "set MANYBEAM_ZOO to the library" in found.why
    placed = ranked(rehearsed, NOMINAL)
    assert all("on conditions like this" in one.why for one in placed.candidates)


# -- an ensemble that was rehearsed ----------------------------------------------------------------
@pytest.fixture(scope="module")
def known(rehearsed: Any) -> PerformancePredictor:
    return PerformancePredictor(rehearsed.table)


@pytest.mark.parametrize(
    "measured",
    [
        pytest.param(UNMEASURED, id="nothing was measured"),
        pytest.param(TWO_KINDS, id="two kinds of sample"),
    ],
)
def test_what_is_promised_does_not_hang_on_what_was_measured_or_is_in_the_library(
    rehearsed: Any, known: PerformancePredictor, measured: Matrix, tmp_path: Path
) -> None:
    usual = ranked(rehearsed, NOMINAL, known=known)
    for library in (LIBRARY, Library(tmp_path)):
        found = ranked(rehearsed, NOMINAL, measured, known=known, library=library)
        assert [one.predicted_f1 for one in found.candidates] == pytest.approx(
            [one.predicted_f1 for one in usual.candidates]
        )


def test_a_frame_said_to_be_of_another_sample_than_rehearsed_is_flagged(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    other = Condition(id="told", sample={"structure": "mos2"}, origin="measured")
    found = ranked(rehearsed, NOMINAL, known=known, condition=other)
    assert found.verdict == "out-of-distribution"
    assert "the frame shows mos2, the calibration set graphene" in found.why
    assert ranked(rehearsed, NOMINAL, known=known).verdict == "ok"


def test_the_answers_compared_are_the_best_sub_ensembles_and_all(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    found = ranked(rehearsed, DIRTY, known=known)
    names = {one.name for one in found.answerers}
    assert {"best", "best 2", "all"} <= names <= {"best", "best 2", "all", "weighted"}
    for one in found.answerers:
        assert sum(one.weights.values()) == pytest.approx(1)
        assert 0 <= one.low <= one.predicted_f1 <= one.high <= 1
    assert found.is_calibrated
    assert found.weights == found.answerers[0].weights
    assert set(found.chosen) == set(found.weights)


def test_members_that_are_named_have_the_predicted_f1_of_their_own_shares() -> None:
    equal, other = dict.fromkeys(range(3), 1 / 3), {0: 0.5, 1: 0.3, 2: 0.2}
    answerers = (
        Answerer("weighted", other, 0.9, 0.8, 1.0),
        Answerer("all", equal, 0.7, 0.6, 0.8),
    )
    found = Selection("ok", (), (0, 1, 2), (), answerers=answerers, asked=equal)
    assert found.predicted([2, 1, 0]) == PredictedF1(0.7, 0.6, 0.8, {})


def test_the_answer_chosen_promises_as_much_as_any_or_tells_its_spread(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    for name in (NOMINAL, DIRTY, COARSE):
        found = ranked(rehearsed, name, known=known)
        most = max(one.predicted_f1 for one in found.answerers)
        assert found.answerers[0].predicted_f1 >= most - 0.002


def test_on_dirt_the_member_trained_on_it_comes_first(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    found = ranked(rehearsed, DIRTY, UNMEASURED, known=known)
    assert found.candidates[0].member == 1
    assert "on simulated frames that look like it" in found.candidates[0].why
    assert "best: member 01 (graphene-dirty), predicted F1" in found.why


def test_a_good_frame_is_fitted_and_noise_promised_less(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    good = ranked(rehearsed, NOMINAL, known=known)
    assert good.verdict == "ok"
    assert good.distance < 1.5
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    bad = select(record(), MEASURED, rehearsed.ensemble, noise, 16.0, known=known, library=LIBRARY)
    assert bad.answerers[0].predicted_f1 < good.answerers[0].predicted_f1 - 0.15


def test_none_fits_where_no_answer_promises_enough(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    found = ranked(rehearsed, "graphene-60kv-extreme", known=known)
    assert found.answerers[0].predicted_f1 < known.poor_f1
    assert found.verdict == "out-of-distribution"
    assert "out of distribution: no answer has a predicted F1 of" in found.why
    assert found.chosen


def test_a_structured_frame_that_is_no_micrograph_is_out_of_distribution(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    rings = np.sin(np.hypot(y, x) / 2.5) + 0.05 * np.random.default_rng(0).normal(size=y.shape)
    found = select(
        record(), MEASURED, rehearsed.ensemble, rings.astype(np.float32), 16.0, known=known,
        library=LIBRARY,
    )  # fmt: skip
    assert found.verdict == "out-of-distribution"
    assert found.distance > 2
    assert "(limit 2)" in found.why


def test_the_chosen_answer_has_the_probabilities_of_its_own_calibration(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    frame, _, size = frame_of(DIRTY)
    found = ranked(rehearsed, DIRTY, known=known)
    whole = rehearsed.ensemble.predict(frame, size)
    told = found.answer(whole)
    part = whole.subset(list(found.weights), list(found.weights.values()))
    assert found.transferred is not None
    assert told.members == tuple(found.weights)
    np.testing.assert_array_equal(told.atoms[:, :3], part.atoms[:, :3])
    expected = calibrated(part.atoms[:, 3], found.transferred.temperature, found.transferred.shift)
    np.testing.assert_allclose(told.atoms[:, 3], expected, rtol=1e-5)
    assert found.transferred.position_pm > 0


def test_an_answer_that_is_settled_is_the_one_calibrated(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    everyone = {0: 1.0, 1: 1.0, 2: 1.0}
    alone, together = (
        ranked(rehearsed, DIRTY, known=known, answering=who).transferred
        for who in ({0: 1.0}, everyone)
    )
    assert alone is not None
    assert together is not None
    assert (alone.temperature, alone.shift) != (together.temperature, together.shift)


def test_a_bound_on_false_atoms_leaves_out_the_unsure_or_says_why_not(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    frame, _, size = frame_of(NOMINAL)
    found = ranked(rehearsed, NOMINAL, known=known, false_atoms=0.2)
    assert found.transferred is not None
    whole = rehearsed.ensemble.predict(frame, size)
    free = replace(found, transferred=replace(found.transferred, threshold=None)).answer(whole)
    if found.transferred.threshold is None:
        assert "cannot be kept" in found.transferred.notes[0]
    else:
        assert len(found.answer(whole).atoms) <= len(free.atoms)
    strict = ranked(rehearsed, NOMINAL, known=known, false_atoms=1e-4).transferred
    assert strict is not None
    assert strict.threshold is None
    assert "the bound of 0.0001 false atoms cannot be kept" in strict.notes[0]


def test_no_bound_is_promised_for_an_ensemble_that_was_never_rehearsed(rehearsed: Any) -> None:
    with pytest.raises(InvalidInput, match="graphene@1 cannot keep a bound"):
        ranked(rehearsed, NOMINAL, false_atoms=0.05)


def test_of_two_ensembles_one_that_fits_answers_and_a_calibrated_promise_before_a_rule_of_thumb(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    sure = matrix({NOMINAL: (1.0, 1.0, 1.0)})
    thumb, told = ranked(rehearsed, NOMINAL, sure), ranked(rehearsed, NOMINAL, known=known)
    assert thumb.verdict == told.verdict == "ok"
    assert told.rank_key > thumb.rank_key
    assert thumb.rank_key > replace(told, verdict="out-of-distribution").rank_key
    less = [replace(one, predicted_f1=one.predicted_f1 - 0.1) for one in told.answerers]
    assert told.rank_key > replace(told, answerers=tuple(less)).rank_key


def test_members_of_a_sub_ensemble_are_not_said_to_be_as_good_as_the_best(
    rehearsed: Any,
) -> None:
    # Each member misses other atoms, and no two of them find all: which members are best together
    # must not depend on how a processor rounds.
    table, member_m = rehearsed.table, np.arange(3)
    missed_k = np.arange(len(table.frame_k)) % 3
    finds_km = table.is_true_k[:, None] & (missed_k[:, None] != member_m)
    known = PerformancePredictor(replace(table, belief_km=np.float16(0.9) * finds_km))
    found = ranked(rehearsed, COARSE, known=known)
    assert sorted(found.chosen) == [0, 1, 2]
    assert "with member" in found.why
    assert "within noise" not in found.why


def test_one_member_is_a_selection_too(rehearsed: Any) -> None:
    frame, _, size = frame_of(NOMINAL)
    alone = rehearsed.ensemble.subset([2])
    known = PerformancePredictor(rehearsed.table.only(2))
    found = select(record().only(2), MEASURED, alone, frame, size, known=known, library=LIBRARY)
    assert [one.name for one in found.answerers] == ["best"]
    assert found.weights == {2: 1.0}
    assert found.chosen == (2,)
    assert "together" not in found.why


@pytest.mark.parametrize("is_rehearsed", [False, True])
def test_the_order_of_the_members_does_not_change_the_ranking(
    rehearsed: Any, known: PerformancePredictor, *, is_rehearsed: bool
) -> None:
    frame, _, size = frame_of(DIRTY)
    more = {"known": known if is_rehearsed else None, "library": LIBRARY}
    ahead, turned = (
        select(record(), MEASURED, rehearsed.ensemble.subset(order), frame, size, **more)
        for order in ((0, 1, 2), (2, 0, 1))
    )
    assert [one.member for one in ahead.candidates] == [one.member for one in turned.candidates]
    assert [one.predicted_f1 for one in ahead.candidates] == pytest.approx(
        [one.predicted_f1 for one in turned.candidates], abs=1e-6
    )


@pytest.mark.parametrize("side", [8, 40])
def test_a_frame_too_small_to_select_for_is_refused_in_words(rehearsed: Any, side: int) -> None:
    frame, _, size = frame_of(NOMINAL)
    with pytest.raises(InvalidFrame, match="too small to select members"):
        select(record(), MEASURED, rehearsed.ensemble, frame[:side], size, library=LIBRARY)


def test_a_512_px_frame_is_ranked_in_less_than_two_seconds_of_one_core(
    rehearsed: Any, known: PerformancePredictor
) -> None:
    frame, _, size = frame_of(NOMINAL, side=512)
    given = (record(), MEASURED, rehearsed.ensemble, frame, size)
    select(*given, known=known, library=LIBRARY)
    start = time.process_time()
    select(*given, known=known, library=LIBRARY)
    assert time.process_time() - start < 2.0


@pytest.mark.real
def test_a_real_frame_of_single_atoms_is_out_of_distribution_for_graphene(
    rehearsed: Any, shared_data: Path
) -> None:
    from manybeam.data.io.reading import read_frames

    read = read_frames(shared_data / "frames/ptnc/021.tif", pixel_size_pm=29.3)
    found = select(record(), MEASURED, rehearsed.ensemble, read.frame, 29.3, library=LIBRARY)
    assert found.verdict == "out-of-distribution"

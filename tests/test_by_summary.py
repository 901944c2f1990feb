"""predictor.f1.by_summary: F1 from the summary of a frame, and members dropped by it."""

from typing import Any

import numpy as np
import pytest

from manybeam.learn.analysis.calibration_set import BELIEVED, CalibrationSet
from manybeam.learn.analysis.frame_analysis import analyse, summary_of
from manybeam.predictor.f1 import by_summary as module
from manybeam.predictor.f1.by_summary import SummaryPredictor
from manybeam.predictor.performance import PerformancePredictor

ALONE = [{0: 1.0}, {1: 1.0}, {2: 1.0}]
ALL = dict.fromkeys((0, 1, 2), 1 / 3)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def known_set(rehearsed: Any) -> SummaryPredictor:
    return SummaryPredictor(rehearsed.table)


@pytest.fixture(scope="module")
def unseen(rehearsed: Any) -> CalibrationSet:
    """Frames with truth that it does not know, of the same policies."""
    from manybeam.learn.analysis.calibration_set import measure_calibration_set

    return measure_calibration_set(rehearsed.ensemble, rehearsed.policies, 0, 36, seed=9_001)


def test_f1_of_several_answerers_is_that_of_each(rehearsed: Any) -> None:
    answerers = [*ALONE, ALL, {0: 0.7, 2: 0.3}, {1: 3.0, 2: 1.0}]
    together = rehearsed.table.f1_of_each(answerers)
    for column, one in zip(together.T, answerers, strict=True):
        # A mean at the threshold itself is decided by how a processor rounds.
        at_k = np.abs(rehearsed.table.belief(one) - BELIEVED) < 1e-6
        sure = np.setdiff1d(np.arange(len(column)), rehearsed.table.frame_k[at_k])
        assert len(sure) > 0.9 * len(column)
        np.testing.assert_allclose(column[sure], rehearsed.table.f1(one)[sure], atol=1e-12)


def test_the_summary_is_the_one_of_frame_analysis(rehearsed: Any) -> None:
    frame = rehearsed.drawn(0).frames_nyx[0]
    seen = analyse(rehearsed.ensemble, frame, 16.0, None)
    own = summary_of(rehearsed.ensemble, frame, 16.0)
    np.testing.assert_array_equal(own, seen.summary_cs.mean(axis=0))


def test_predictions_on_unseen_frames_are_better_than_the_mean_and_intervals_hold(
    known_set: SummaryPredictor, unseen: CalibrationSet
) -> None:
    errors, plain, inside = [], [], []
    means = known_set.table.f1_nm.mean(axis=0)
    for summary_s, f1_m in zip(unseen.summary_ns, unseen.f1_nm, strict=True):
        for known, f1, mean in zip(
            known_set.predict_f1(summary_s, ALONE), f1_m, means, strict=True
        ):
            assert 0 <= known.low <= known.f1 <= known.high <= 1
            errors.append(known.f1 - f1)
            plain.append(mean - f1)
            inside.append(known.low - 1e-9 <= f1 <= known.high + 1e-9)
    assert np.mean(np.square(errors)) < 0.6 * np.mean(np.square(plain))
    assert np.mean(inside) >= 0.75  # 108 of 36 frames, so that 0.9 has an error of about 0.07


def test_an_answerer_is_predicted_the_same_alone_and_among_others(
    known_set: SummaryPredictor,
) -> None:
    summary_s = known_set.table.summary_ns[3]
    together = known_set.predict_f1(summary_s, [*ALONE, ALL])
    for one, known in zip([*ALONE, ALL], together, strict=True):
        assert known_set.predict_f1(summary_s, [one])[0].f1 == pytest.approx(known.f1)


def test_far_from_the_set_the_interval_covers_what_is_usual(known_set: SummaryPredictor) -> None:
    near = known_set.table.summary_ns[0]
    far = near + 50 * np.nanstd(known_set.table.summary_ns, axis=0)
    assert known_set.distance(near) < 1e-6
    assert known_set.distance(far) > module.FAR
    low, high = np.quantile(known_set.table.f1_nm, [0.05, 0.95])
    (known,) = known_set.predict_f1(far, [ALL])
    assert known.low <= low + 1e-9
    assert known.high >= high - 1e-9


def test_the_members_that_stay_are_those_of_the_highest_predicted_f1(
    known_set: SummaryPredictor,
) -> None:
    for summary_s in known_set.table.summary_ns[:12]:
        (one,) = known_set.fewer(summary_s, ALL, 1)
        two = known_set.fewer(summary_s, ALL, 2)
        assert one in two
        pairs = [{a: 0.5, b: 0.5} for a, b in ((0, 1), (0, 2), (1, 2))]
        best = max(pairs, key=lambda pair: known_set.predict_f1(summary_s, [pair])[0].f1)
        assert set(two) == set(best)
        assert sum(two.values()) == pytest.approx(1)
    assert known_set.fewer(summary_s, ALL, 3) == ALL
    assert known_set.fewer(summary_s, {1: 1.0}, 0) == {1: 1.0}


def test_shares_of_those_that_stay_keep_their_ratio(known_set: SummaryPredictor) -> None:
    left = known_set.fewer(known_set.table.summary_ns[0], {0: 0.6, 1: 0.3, 2: 0.1}, 2)
    kept = list(left)
    ratio = {0: 0.6, 1: 0.3, 2: 0.1}
    assert left[kept[0]] / left[kept[1]] == pytest.approx(ratio[kept[0]] / ratio[kept[1]])


def test_fits_are_kept_and_their_number_is_bounded(
    rehearsed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 4)
    known_set, summary_s = SummaryPredictor(rehearsed.table), rehearsed.table.summary_ns[0]
    expected = [known_set.predict_f1(summary_s, [one])[0].f1 for one in [*ALONE, ALL]]
    for share in (0.1, 0.2, 0.3, 0.4):
        known_set.predict_f1(summary_s, [{0: share, 1: 1 - share}])
        assert len(known_set._view._fits) <= 5
    assert [known_set.predict_f1(summary_s, [one])[0].f1 for one in [*ALONE, ALL]] == expected


def test_frames_on_which_an_answerer_is_as_often_right_come_from_the_nearest(
    known_set: SummaryPredictor,
) -> None:
    summary_s = known_set.table.summary_ns[5]
    alike = known_set.alike(summary_s, ALL, 12)
    assert len(set(alike.tolist())) == 12
    assert set(alike.tolist()) <= set(known_set.nearest(summary_s, 36).tolist())


def test_a_prepared_predictor_answers_as_before(rehearsed: Any) -> None:
    plain, ready = PerformancePredictor(rehearsed.table), PerformancePredictor(rehearsed.table)
    ready.prepare()
    seen = analyse(rehearsed.ensemble, rehearsed.drawn(1).frames_nyx[0], 16.0, None)
    assert plain.predict_f1(seen, ALONE) == ready.predict_f1(seen, ALONE)
    assert ready.by_summary is ready.by_summary

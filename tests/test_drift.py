"""Drift watch: no alarm in control, few frames to detection, the onset, and what changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.simulation.simulate import simulate
from manybeam.data.simulation.typical import filled
from manybeam.errors import Corrupt, InvalidFrame, InvalidInput
from manybeam.learn.analysis.condition_inference import draw
from manybeam.learn.analysis.summaries import summaries
from manybeam.predictor.stream.advice import WANDER, WATCHED_WANDER, wandering
from manybeam.predictor.stream.drift import CAUSES, LOOKS, DriftWatch, frame_features
from manybeam.spec import Condition, Library

pytestmark = pytest.mark.slow

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
SHAPE = (96, 96)


def drawn(seed: int) -> Condition:
    """Return a condition drawn from the broadest policy, nearly in focus."""
    one = draw(LIBRARY.policies["graphene-general"], np.random.default_rng(seed))
    one = one.model_copy(update={"optics": one.optics.model_copy(update={"defocus_nm": 0.5})})
    return Condition.model_validate(filled(one).model_dump() | {"origin": "simulated"})


def changed(condition: Condition, path: str, value: float) -> Condition:
    group, _, name = path.rpartition(".")
    numbers = condition.model_dump()
    (numbers[group] if group else numbers)[name] = value
    return Condition.model_validate(numbers)


def frames_of(condition: Condition, count: int, seed: int) -> np.ndarray:
    return simulate(condition, count, seed=seed, shape=SHAPE).frames_nyx


def session(condition: Condition, blocks: int, seed: int, share: float = WANDER) -> np.ndarray:
    """Return frames that wander about a condition, ten at each place."""
    rng, about = np.random.default_rng(seed), wandering(condition, share)
    return np.concatenate(
        [frames_of(draw(about, rng), 10, seed=1000 * seed + block) for block in range(blocks)]
    )


def features(frames_nyx: np.ndarray, size_pm: float | None) -> np.ndarray:
    return np.stack([frame_features(frame, size_pm) for frame in frames_nyx])


BASE = drawn(5)  # a draw with room for drift on every side: sharp, clean, a medium dose
SIZE_PM = BASE.scan.pixel_size_pm


@pytest.fixture(scope="module")
def known_frames() -> np.ndarray:
    return session(BASE, 24, 1, WATCHED_WANDER)


@pytest.fixture(scope="module")
def state(known_frames: np.ndarray) -> str:
    """A watch of 240 frames of one drawn condition, as its state: each test restores its own."""
    return DriftWatch(features(known_frames, SIZE_PM)).state()


@pytest.fixture(scope="module")
def fine() -> np.ndarray:
    """Features of 250 other frames of the same session."""
    return features(session(BASE, 25, seed=2), SIZE_PM)


def alarms(watch: DriftWatch, rows: np.ndarray) -> list[Any]:
    return [alarm for row in rows if (alarm := watch.see(row)) is not None]


def test_frames_in_control_raise_no_alarm(state, fine):
    assert alarms(DriftWatch.restore(state), fine) == []


@pytest.mark.parametrize(
    ("path", "factor", "step"),
    [
        ("dose_e_per_a2", 1 / 6, 0.0),
        ("optics.defocus_nm", 1, 6.0),
        ("state.contamination", 1, 0.9),
        ("detector.afterglow_px", 1, 1.2),
        ("scan.pixel_size_pm", 1.3, 0.0),
    ],
)
def test_a_drift_is_found_within_ten_frames_and_its_onset_within_three(
    path, factor, step, state, fine
):
    value = dict(BASE.quantities())[path] * factor + step
    after = changed(BASE, path, value)
    size_pm = after.scan.pixel_size_pm
    rows = np.concatenate([fine[:35], features(frames_of(after, 10, seed=77), size_pm)])
    found = alarms(DriftWatch.restore(state), rows)
    assert len(found) == 1
    assert 35 <= found[0].frame < 45
    assert abs(found[0].since - 35) <= 3
    assert found[0].score > 1


def test_a_changed_pixel_size_is_named_and_its_words_say_by_how_much(state, fine):
    other = features(frames_of(BASE, 6, seed=5), 1.4 * SIZE_PM)
    (alarm,) = alarms(DriftWatch.restore(state), np.concatenate([fine[:12], other]))
    assert alarm.changes[0].look == "pixel size"
    assert alarm.words.startswith("pixel size (as in the file) by ")
    assert {one.look for one in alarm.changes} == set(CAUSES)


def test_each_change_raises_one_alarm_and_the_watch_is_armed_again_once_frames_are_back(
    state, fine
):
    dirty = features(frames_of(changed(BASE, "state.contamination", 1.5), 30, seed=6), SIZE_PM)
    watch = DriftWatch.restore(state)
    assert len(alarms(watch, np.concatenate([fine[:20], dirty[:20]]))) == 1
    assert watch.is_drifted
    assert alarms(watch, fine[20:60]) == []
    assert not watch.is_drifted
    assert len(alarms(watch, dirty[20:])) == 1


def test_a_single_odd_frame_raises_no_alarm(state, fine):
    odd = features(frames_of(changed(BASE, "state.contamination", 3.0), 1, seed=8), SIZE_PM)
    rows = np.concatenate([fine[:20], odd, fine[20:40]])
    assert alarms(DriftWatch.restore(state), rows) == []


def test_going_from_one_known_condition_to_another_is_no_drift(known_frames):
    other = changed(BASE, "state.contamination", BASE.state.contamination + 1.0)
    both = features(
        np.concatenate([known_frames[:100], session(other, 10, 3, WATCHED_WANDER)]), SIZE_PM
    )
    watch = DriftWatch(both, [0] * 100 + [1] * 100)
    here, there = (features(session(one, 2, seed=9), SIZE_PM) for one in (BASE, other))
    assert alarms(watch, np.concatenate([here, there, here])) == []
    outside = changed(BASE, "dose_e_per_a2", BASE.dose_e_per_a2 / 20)
    assert len(alarms(watch, features(frames_of(outside, 10, seed=4), SIZE_PM))) == 1


def test_frames_without_a_pixel_size_are_watched_too(known_frames):
    watch = DriftWatch(features(known_frames[:160], None))
    assert alarms(watch, features(known_frames[160:200], None)) == []
    dirty = frames_of(changed(BASE, "state.contamination", 1.5), 10, seed=6)
    assert alarms(watch, features(dirty, None))[0].since >= 38
    with pytest.raises(InvalidInput, match="without a pixel size, this frame with"):
        watch.see(frame_features(dirty[0], SIZE_PM))


@pytest.mark.parametrize("cut", [3, 37])
def test_a_watch_restored_from_its_state_goes_on_exactly_as_it_would_have(cut, state, fine):
    dirty = features(frames_of(changed(BASE, "state.contamination", 1.0), 8, seed=6), SIZE_PM)
    rows = np.concatenate([fine[:35], dirty])
    whole, scores = DriftWatch.restore(state), []
    parts, resumed = DriftWatch.restore(state), []
    for number, row in enumerate(rows):
        if number == cut:
            parts = DriftWatch.restore(parts.state())
        scores.append((whole.see(row), whole.score))
        resumed.append((parts.see(row), parts.score))
    assert scores == resumed
    assert whole.state() == parts.state()
    assert any(alarm for alarm, _ in scores)


def test_false_alarms_are_fewer_than_one_in_a_thousand_frames_of_pure_chance():
    rng = np.random.default_rng(12)
    watch = DriftWatch(rng.standard_t(5, size=(300, 20)))
    # 4 are allowed in 4,000 frames; the threshold is set for 2 and raised.
    assert len(alarms(watch, rng.standard_t(5, size=(4000, 20)))) <= 2


def test_a_state_is_json_with_null_for_what_is_missing(state):
    assert json.loads(state)["format"] == "manybeam-drift-1"
    assert "NaN" not in state
    for broken in ("{}", "no json", '{"format": "other"}'):
        with pytest.raises(Corrupt, match="no state of a drift watch"):
            DriftWatch.restore(broken)


def test_every_number_of_a_summary_belongs_to_one_side_of_the_look():
    count = summaries(np.random.default_rng(0).normal(size=(1, 64, 64)), 16.0).shape[1]
    assert sum(many for _, many in LOOKS) == count
    assert {name for name, _ in LOOKS} == set(CAUSES)


def test_a_large_frame_is_seen_in_crops_of_the_usual_size():
    frame = simulate(BASE, 1, seed=3, shape=(300, 260)).frames_nyx[0]
    crops = [frame[top : top + 128, left : left + 128] for top in (0, 128) for left in (0, 128)]
    np.testing.assert_allclose(
        frame_features(frame, SIZE_PM), np.mean([frame_features(c, SIZE_PM) for c in crops], axis=0)
    )


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (np.ones((64, 64)), "constant"),
        (np.full((64, 64), np.nan), "not finite"),
        (np.eye(40), r"shape \(40, 40\)"),
        (np.ones((2, 64, 64)), "shape"),
    ],
    ids=["constant", "nan", "small", "stack"],
)
def test_what_tells_nothing_of_drift_is_refused(frame, word):
    with pytest.raises(InvalidFrame, match=word):
        frame_features(frame, 16.0)


@pytest.mark.parametrize(
    ("known", "conditions", "word"),
    [
        (np.zeros((39, 5)), None, "39 in-control frames of a condition are too few"),
        (np.zeros((90, 5)), [0] * 80 + [1] * 10, "10 in-control frames"),
        (np.zeros((90, 5)), [0] * 80, "for 80 frames"),
        (np.zeros(90), None, "features of shape"),
        (np.full((90, 5), np.nan), None, "has no number"),
    ],
    ids=["few", "few of one", "mismatch", "one axis", "nan"],
)
def test_in_control_frames_that_cannot_be_watched_by_are_refused(known, conditions, word):
    with pytest.raises(InvalidInput, match=word):
        DriftWatch(known, conditions)


def test_features_that_are_not_a_frames_are_refused(state):
    watch = DriftWatch.restore(state)
    for wrong in (np.zeros(3), np.full(len(json.loads(state)["known"]["whiten_ss"]), np.nan)):
        with pytest.raises(InvalidInput, match="are not those of a frame"):
            watch.see(wrong)
    assert watch.seen == 0

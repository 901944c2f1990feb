"""Were these frames recorded under one condition?"""

from pathlib import Path

import numpy as np
import pytest

from manybeam.data.simulation.simulate import simulate
from manybeam.errors import InvalidFrame, InvalidInput
from manybeam.learn.analysis.condition_inference import draw, fixed_pixel_size
from manybeam.learn.analysis.one_condition import (
    FAR,
    check_one_condition,
    distances_between,
    groups,
)
from manybeam.spec import Library, Policy

pytestmark = pytest.mark.slow

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
GENERAL = fixed_pixel_size(LIBRARY.policy("graphene-general"), 16.0)
NOMINAL = fixed_pixel_size(LIBRARY.policy("graphene-nominal"), 16.0)


def frames_of(policy: Policy, count: int, seed: int) -> np.ndarray:
    return simulate(policy, count, seed=seed, shape=(128, 128)).frames_nyx


def changed(policy: Policy, how: str) -> Policy:
    if how == "dose":
        return policy.model_copy(update={"dose_e_per_a2": policy.dose_e_per_a2 / 10})
    dirt = {"contamination": 1.2, "background": 1.0}
    return policy.model_copy(update={"state": policy.state.model_copy(update=dirt)})


def test_sets_of_one_condition_are_hardly_ever_refused():
    rng, refused, sets = np.random.default_rng(11), 0, 0
    for seed in range(40):
        frames = frames_of(draw(GENERAL, rng), 16, seed)
        for count in (2, 5, 16):
            refused += len(groups(frames[:count], 16.0, GENERAL)) > 1
            sets += 1
    assert refused <= 0.02 * sets


@pytest.mark.parametrize("how", ["dose", "dirt"])
@pytest.mark.parametrize(("first", "others"), [(1, 1), (4, 4), (7, 1)])
def test_two_conditions_are_always_parted_and_their_frames_named(how, first, others):
    rng = np.random.default_rng(12)
    for seed in range(5):
        nominal = draw(NOMINAL, rng)
        one = frames_of(nominal, first, 100 + seed)
        two = frames_of(changed(nominal, how), others, 200 + seed)
        found = groups(np.concatenate([one, two]), 16.0, GENERAL)
        assert not [g for g in found if {i < first for i in g} == {True, False}], found
        assert len(found) >= 2


def test_the_refusal_names_the_frames_that_go_together():
    nominal = draw(NOMINAL, np.random.default_rng(1))
    dirty = frames_of(changed(nominal, "dirt"), 1, 6)
    frames = np.concatenate([frames_of(nominal, 2, 5), dirty])
    with pytest.raises(InvalidInput, match=r"of 2 conditions; their indices: 0, 1 \| 2;"):
        check_one_condition(frames, 16.0, GENERAL)


def test_the_distance_does_not_depend_on_gain_and_offset():
    frames = frames_of(draw(NOMINAL, np.random.default_rng(2)), 2, 8)
    both = np.concatenate([frames, 3 * frames + 100])
    step = distances_between(both, 16.0, GENERAL)
    np.testing.assert_allclose(step[:2, :2], step[2:, 2:], atol=0.05)
    assert step[0, 2] < 0.05 * FAR


def test_one_frame_and_frames_too_small_to_compare_pass():
    check_one_condition(frames_of(NOMINAL, 1, 0), 16.0, GENERAL)
    check_one_condition(np.random.default_rng(0).normal(size=(3, 32, 32)), 16.0, GENERAL)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param(7.0, "frame 1 is constant", id="empty"),
        pytest.param(np.nan, "frame 1 has values that are not numbers", id="nan"),
    ],
)
def test_a_frame_without_content_is_refused_and_named(value, said):
    frames = frames_of(NOMINAL, 2, 0).copy()
    frames[1] = value
    with pytest.raises(InvalidFrame, match=said):
        check_one_condition(frames, 16.0, GENERAL)

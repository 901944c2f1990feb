"""Inference of an imaging condition from frames alone."""

import numpy as np
import pytest

from manybeam.data.simulate import simulate
from manybeam.errors import InvalidInput
from manybeam.learn.infer import draw, fixed_pixel_size, infer
from manybeam.spec import Condition, Policy, Range

GRAPHENE = {"structure": "graphene"}
WIDE = Policy(
    id="wide",
    sample=GRAPHENE,
    scan={"pixel_size_pm": [14, 18], "row_jitter_pm": [2, 20]},
    state={"contamination": [0.03, 1.5], "background": [0.1, 1]},
    dose_e_per_a2=[1e4, 2e6],
)


def frames_at(dose: float, contamination: float = 0.1) -> np.ndarray:
    condition = Condition(
        id="true",
        sample=GRAPHENE,
        scan={"pixel_size_pm": 16, "row_jitter_pm": 5},
        state={"contamination": contamination, "background": 0.3},
        dose_e_per_a2=dose,
    )
    return simulate(condition, 2, seed=11, shape=(128, 128)).frames_nyx


@pytest.mark.parametrize("dose", [2e4, 1e6])
def test_the_dose_of_frames_is_found_within_a_factor_of_three(dose):
    found = infer(frames_at(dose), 16.0, WIDE, seed=0, draws=(64, 48)).policy.dose_e_per_a2
    assert isinstance(found, Range)
    assert found.low / 3 < dose < found.high * 3
    assert found.high / found.low < 2e6 / 1e4 / 3


def test_dirty_frames_are_told_from_clean_ones():
    clean, dirty = (
        infer(frames_at(1e6, amount), 16.0, WIDE, seed=0, draws=(64, 48)).policy.state.contamination
        for amount in (0.05, 1.4)
    )
    assert clean.low + clean.high < dirty.low + dirty.high


def test_the_answer_stays_inside_the_policy_and_at_the_known_pixel_size():
    found = infer(frames_at(1e5), 16.0, WIDE, seed=0, draws=(24, 12)).policy
    assert found.scan.pixel_size_pm == 16.0
    assert WIDE.scan.row_jitter_pm.low <= found.scan.row_jitter_pm.low
    assert found.scan.row_jitter_pm.high <= WIDE.scan.row_jitter_pm.high


def test_the_same_seed_infers_the_same_condition():
    one, two = (infer(frames_at(1e5), 16.0, WIDE, seed=4, draws=(16, 8)) for _ in range(2))
    assert one == two


def test_a_draw_has_a_number_for_every_range_and_inside_it():
    rng = np.random.default_rng(0)
    drawn = dict(draw(WIDE, rng).quantities())
    for path, value in WIDE.quantities():
        if isinstance(value, Range):
            assert value.low <= drawn[path] <= value.high


def test_fixing_the_pixel_size_leaves_all_else():
    fixed = fixed_pixel_size(WIDE, 24.0)
    assert fixed.scan.pixel_size_pm == 24.0
    assert fixed.state == WIDE.state


def test_no_frames_are_refused():
    with pytest.raises(InvalidInput, match="no frames"):
        infer(np.empty((0, 64, 64)), 16.0, WIDE, seed=0)

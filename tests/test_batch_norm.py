"""A member whose batch norms know new frames."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from manybeam.data.simulation.simulate import simulate
from manybeam.data.tiles import Tiles
from manybeam.errors import InvalidInput
from manybeam.learn.adaptation.acceptance import f1_on
from manybeam.learn.adaptation.batch_norm import re_estimated
from manybeam.learn.adaptation.pseudo_labels import simulated_tiles
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.learn.training.member import train_member
from manybeam.spec import Condition, Policy, Recipe

pytestmark = pytest.mark.slow

RECIPE = Recipe(
    id="small",
    network={"filters": 8, "levels": 4},
    training={"steps": 150, "batch": 8, "learning_rate": 4e-3},
    tiles={"tile_px": 48, "pixel_size_pm": 20, "mask_radius_pm": 45},
    members=[{"seed": 1, "policy": "careful"}],
)
GRAPHENE = {"structure": "graphene"}
CAREFUL = Policy(
    id="careful",
    sample=GRAPHENE,
    scan={"pixel_size_pm": 20},
    state={"contamination": [0.02, 0.1], "background": 0.3},
    dose_e_per_a2=[8e5, 2e6],
)
FAINT = Condition(
    id="faint",
    sample=GRAPHENE,
    scan={"pixel_size_pm": 20},
    state={"contamination": 0.4, "background": 0.3},
    dose_e_per_a2=6e4,
)


@pytest.fixture(scope="module")
def member(one_thread) -> Member:
    """A small member that knows nothing but careful sessions."""
    inputs, targets = simulated_tiles(CAREFUL, RECIPE.tiles, count=64, seed=1)
    known = Tiles(inputs, targets, ("careful",), "careful")
    return train_member(RECIPE, RECIPE.members[0], 0, known)


@pytest.fixture(scope="module")
def faint():
    return simulate(FAINT, 8, seed=600, shape=(128, 128))


def test_new_statistics_lift_f1_on_frames_of_another_dose(member, faint):
    child = re_estimated(member, faint.frames_nyx[:1], 20.0)
    rest = dataclasses.replace(
        faint, frames_nyx=faint.frames_nyx[1:], truth=faint.truth[1:],
        pixel_size_pm=faint.pixel_size_pm[1:],
    )  # fmt: skip
    before, after = f1_on(Ensemble([member]), rest), f1_on(Ensemble([child]), rest)
    assert after > before + 0.02


def test_only_running_statistics_change_and_the_parent_stays(member, faint):
    kept = {name: value.clone() for name, value in member.weights.items()}
    child = re_estimated(member, faint.frames_nyx, 20.0)
    moved = {name for name in kept if not torch.equal(kept[name], child.weights[name])}
    assert moved
    assert all(name.endswith(("running_mean", "running_var")) for name in moved)
    assert all(torch.equal(kept[name], value) for name, value in member.weights.items())


def test_the_statistics_of_the_first_layer_are_those_of_the_frames(member, faint):
    frame = faint.frames_nyx[:1]
    whole, half = (re_estimated(member, frame, 20.0, share=share) for share in (1.0, 0.5))
    name = "down.0.1.running_mean"
    middle = (member.weights[name] + whole.weights[name]) / 2
    torch.testing.assert_close(half.weights[name], middle, atol=1e-5, rtol=1e-4)
    twice = re_estimated(whole, frame, 20.0, share=1.0)
    torch.testing.assert_close(twice.weights[name], whole.weights[name], atol=1e-5, rtol=1e-4)


def test_a_frame_turned_on_its_side_gives_the_same_statistics(member, faint):
    frame = faint.frames_nyx[:1]
    one, two = (re_estimated(member, f, 20.0) for f in (frame, np.rot90(frame, axes=(1, 2)).copy()))
    name = "head.weight"
    assert torch.equal(one.weights[name], two.weights[name])
    for name in one.weights:
        torch.testing.assert_close(one.weights[name], two.weights[name], atol=1e-4, rtol=1e-3)


def test_no_share_and_no_batch_norm_change_nothing(member, faint):
    assert re_estimated(member, faint.frames_nyx, 20.0, share=0.0) is member
    recipe = RECIPE.model_copy(
        update={"network": RECIPE.network.model_copy(update={"name": "BasicUNet", "levels": 3})}
    )
    other = dataclasses.replace(member, recipe=recipe, weights=build(recipe.network).state_dict())
    assert re_estimated(other, faint.frames_nyx, 20.0) is other


def test_one_small_frame_takes_less_than_half_a_second(member, faint):
    start = time.thread_time()
    re_estimated(member, faint.frames_nyx[:1], 20.0)
    assert time.thread_time() - start < 0.5


def test_large_and_oblong_frames_are_taken_in_part(member):
    wide = np.random.default_rng(0).normal(size=(2, 300, 900)).astype(np.float32)
    assert torch.isfinite(re_estimated(member, wide, 20.0).weights["down.0.1.running_var"]).all()


@pytest.mark.parametrize(
    ("frames", "share", "said"),
    [
        pytest.param(np.empty((0, 64, 64)), 0.5, "at least one frame", id="no frames"),
        pytest.param(np.zeros((64, 64)), 0.5, "at least one frame", id="one bare frame"),
        pytest.param(np.zeros((1, 64, 64)), 1.5, "share 1.5", id="share"),
    ],
)
def test_what_cannot_be_estimated_on_is_refused(member, frames, share, said):
    with pytest.raises(InvalidInput, match=said):
        re_estimated(member, frames, 20.0, share=share)

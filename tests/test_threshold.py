"""A member's threshold, moved to 0.5."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from manybeam.data.simulation.simulate import simulate
from manybeam.data.tiles import Tiles, draw_mask, normalise
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build, shifted
from manybeam.learn.scoring.scores import score_frames
from manybeam.learn.training.member import train_member
from manybeam.learn.training.threshold import best_logit, centred
from manybeam.spec import Condition, Recipe
from manybeam.spec.recipe import MemberPlan, Network

pytestmark = pytest.mark.slow

PIXEL_PM = 16.0
SHEET = Condition.model_validate(
    {"id": "sheet", "sample": {"structure": "graphene"}, "scan": {"pixel_size_pm": PIXEL_PM}}
)
PLAN = MemberPlan(seed=1, policy="sheet")


def labelled(seed: int, count: int = 4) -> list[tuple[np.ndarray, np.ndarray, float]]:
    made = simulate(SHEET, count, seed=seed, shape=(64, 64))
    return [(f, t, PIXEL_PM) for f, t in zip(made.frames_nyx, made.truth, strict=True)]


@pytest.fixture(scope="module")
def member(one_thread: None) -> Member:
    recipe = Recipe.model_validate(
        {
            "id": "small",
            "network": {"filters": 4, "levels": 3},
            "training": {"steps": 120, "batch": 8},
            "tiles": {"tile_px": 64},
            "members": [PLAN],
        }
    )
    pairs = labelled(1, 32)
    masks = [draw_mask(truth, (64, 64), 42 / PIXEL_PM) for _, truth, _ in pairs]
    frames = normalise(np.stack([frame for frame, _, _ in pairs]), "frame", 1.0)
    return train_member(recipe, PLAN, 0, Tiles(frames, np.stack(masks), ("sheet",), "sheet"))


def f1(member: Member) -> float:
    pairs = labelled(3)
    found = [Ensemble([member]).predict(frame, size).atoms for frame, _, size in pairs]
    truth, sizes = [t for _, t, _ in pairs], [s for _, _, s in pairs]
    return score_frames(found, truth, sizes, None, [(64, 64)] * len(pairs)).f1


@pytest.mark.parametrize("by", [-3.0, 3.0, 5.0], ids=["too careful", "too bold", "far too bold"])
def test_a_member_whose_threshold_is_off_is_mended(member: Member, by: float) -> None:
    spoilt = replace(member, weights=shifted(member.weights, by))
    twice = centred(centred(spoilt, labelled(2)), labelled(2))
    assert f1(twice) >= f1(centred(member, labelled(2))) - 0.01


def test_the_shift_found_is_the_one_that_was_made(member: Member) -> None:
    before = best_logit(member, labelled(2))
    after = best_logit(replace(member, weights=shifted(member.weights, -1.0)), labelled(2))
    assert after == pytest.approx(before - 1.0, abs=0.3)


def test_where_nothing_is_found_nothing_is_moved(member: Member) -> None:
    blind = replace(member, weights=shifted(member.weights, -50.0))
    assert centred(blind, labelled(2)) is blind
    assert centred(member, []) is member


@pytest.mark.parametrize("name", ["unet", "BasicUNet"])
def test_a_shift_raises_every_logit_by_as_much(name: str) -> None:
    network = build(Network(name=name, filters=4, levels=3)).eval()
    frames = torch.randn(1, 1, 64, 64)
    before = network(frames)
    network.load_state_dict(shifted(network.state_dict(), 1.5))
    assert torch.allclose(network(frames), before + 1.5, atol=1e-5)

"""learn.policy: each member draws its own augmentation; tile and mask stay together."""

import pytest
import torch
from torch import Generator, Tensor

from manybeam.learn.training.augmentation import Strength, augment, turn

STILL = Strength(gamma=0, gain=0, offset=0, noise=0, blur=0)


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def tiles_nyx() -> Tensor:
    return torch.randn((64, 12, 12), generator=generator(5))


def test_the_same_seed_gives_the_same_tiles(tiles_nyx: Tensor) -> None:
    first, _ = augment(tiles_nyx, tiles_nyx[None], generator(1))
    again, _ = augment(tiles_nyx, tiles_nyx[None], generator(1))
    assert torch.equal(first, again)


def test_two_members_see_different_tiles(tiles_nyx: Tensor) -> None:
    first, _ = augment(tiles_nyx, tiles_nyx[None], generator(1))
    other, _ = augment(tiles_nyx, tiles_nyx[None], generator(2))
    assert (first != other).flatten(1).any(dim=1).all()


def test_one_member_sees_a_tile_differently_each_time(tiles_nyx: Tensor) -> None:
    own = generator(1)
    first, _ = augment(tiles_nyx, tiles_nyx[None], own)
    later, _ = augment(tiles_nyx, tiles_nyx[None], own)
    assert (first != later).flatten(1).any(dim=1).all()


def test_the_global_generator_is_left_alone(tiles_nyx: Tensor) -> None:
    before = torch.get_rng_state()
    augment(tiles_nyx, tiles_nyx[None], generator(1))
    assert torch.equal(before, torch.get_rng_state())


def test_maps_move_with_their_tile(tiles_nyx: Tensor) -> None:
    maps = torch.stack([tiles_nyx, 2 * tiles_nyx])
    moved, moved_maps = turn(tiles_nyx, maps, generator(3))
    assert torch.equal(moved_maps, torch.stack([moved, 2 * moved]))


def test_all_eight_positions_of_a_square_occur() -> None:
    corner = torch.arange(9.0).reshape(1, 3, 3).repeat(200, 1, 1)
    turned, _ = turn(corner, corner[None], generator(0))
    assert len({tuple(tile.flatten().tolist()) for tile in turned}) == 8


def test_without_strength_values_only_move(tiles_nyx: Tensor) -> None:
    changed, maps = augment(tiles_nyx, tiles_nyx[None], generator(4), STILL)
    assert torch.allclose(changed, maps[0], atol=1e-4)


def test_gamma_keeps_the_mean_deviation_and_order_of_the_values(tiles_nyx: Tensor) -> None:
    changed, maps = augment(
        tiles_nyx,
        tiles_nyx[None],
        generator(4),
        Strength(gamma=1, gain=0, offset=0, noise=0, blur=0),
    )
    assert torch.allclose(changed.mean((1, 2)), maps[0].mean((1, 2)), atol=1e-4)
    assert torch.allclose(changed.std((1, 2)), maps[0].std((1, 2)), atol=1e-4)
    assert torch.equal(changed.flatten(1).argsort(1), maps[0].flatten(1).argsort(1))


def test_a_constant_tile_stays_finite() -> None:
    changed, _ = augment(torch.zeros(4, 8, 8), torch.zeros(1, 4, 8, 8), generator(0))
    assert changed.isfinite().all()

"""learn.member: recipe, seed and tiles alone decide a member, however often it is stopped."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from manybeam.data.tiles import Tiles
from manybeam.errors import Corrupt, InvalidInput, InvalidSpec, MemberDiverged
from manybeam.learn.nets.member import Member, load_weights, save_weights
from manybeam.learn.training.loss import pixel_loss
from manybeam.learn.training.member import Checkpoint, computes_in_bfloat16, one_cycle, train_member
from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec, Training

PLAN = MemberPlan(seed=3, policy="nominal")


def recipe_of(**training: object) -> Recipe:
    settings = {"steps": 12, "batch": 4, "checkpoint_every": 5, **training}
    return Recipe(
        id="small",
        network=Network(filters=4, levels=2, dropout=0.1),
        training=Training.model_validate(settings),
        members=(PLAN,),
    )


def draw_tiles(count: int = 10, side: int = 32, seed: int = 0) -> Tiles:
    """Bright discs at known places in noise, and their masks."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centres = random.uniform(4, side - 4, (count, 5, 2))
    distance = np.hypot(y - centres[..., 0, None, None], x - centres[..., 1, None, None]).min(
        axis=1
    )
    mask_nyx = (distance < 3).astype(np.uint8)
    tiles_nyx = 2 * np.exp(-(distance**2) / 8) + random.normal(0, 0.5, mask_nyx.shape)
    tiles_nyx = (tiles_nyx - tiles_nyx.mean()) / tiles_nyx.std()
    return Tiles(tiles_nyx.astype(np.float32), mask_nyx, ("drawn",), f"drawn-{seed}-{count}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def are_equal(first: Member, second: Member) -> bool:
    assert first.weights.keys() == second.weights.keys()
    return all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)


def test_the_same_seed_gives_bit_equal_weights() -> None:
    first, second = (train_member(recipe_of(), PLAN, 0, draw_tiles()) for _ in range(2))
    assert are_equal(first, second)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [0, 1], ids=["first checkpoint", "second checkpoint"])
def test_a_member_resumed_from_a_checkpoint_equals_one_never_stopped(
    stop: int, precision: str
) -> None:
    recipe = recipe_of(precision=precision)
    kept: list[Checkpoint] = []
    whole = train_member(recipe, PLAN, 0, draw_tiles(), on_checkpoint=kept.append)
    through_bytes = load_weights(save_weights(kept[stop]))
    resumed = train_member(recipe, PLAN, 0, draw_tiles(), checkpoint=through_bytes)
    assert are_equal(whole, resumed)
    assert whole.losses == resumed.losses


def test_checkpoints_are_not_changed_by_later_steps() -> None:
    kept: list[Checkpoint] = []
    train_member(recipe_of(), PLAN, 0, draw_tiles(), on_checkpoint=kept.append)
    assert len(kept) == 2
    assert not torch.equal(kept[0]["network.head.weight"], kept[1]["network.head.weight"])


def test_two_seeds_start_and_go_on_differently() -> None:
    first = train_member(recipe_of(steps=1), PLAN, 0, draw_tiles())
    other = train_member(recipe_of(steps=1), MemberPlan(seed=4, policy="nominal"), 1, draw_tiles())
    assert not torch.allclose(first.weights["head.weight"], other.weights["head.weight"])


def test_seeds_alone_decide_not_what_else_drew_from_the_global_generator() -> None:
    torch.manual_seed(1)
    first = train_member(recipe_of(steps=2), PLAN, 0, draw_tiles())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert are_equal(first, train_member(recipe_of(steps=2), PLAN, 0, draw_tiles()))
    assert torch.equal(before, torch.get_rng_state())


def test_every_tile_is_dealt_once_before_any_comes_again() -> None:
    from manybeam.learn.training.member import _Deck

    deck = _Deck(10, seed=0)
    dealt = torch.cat([deck.deal(4) for _ in range(5)])
    assert sorted(dealt[:10].tolist()) == sorted(dealt[10:].tolist()) == list(range(10))
    assert not torch.equal(dealt[:10], dealt[10:])


def test_fewer_tiles_than_a_batch_are_dealt_again_within_it() -> None:
    member = train_member(recipe_of(batch=8, steps=2), PLAN, 0, draw_tiles(count=3))
    assert len(member.losses) == 2


@pytest.mark.slow
def test_a_trained_member_marks_the_atoms_of_tiles_it_never_saw() -> None:
    recipe = recipe_of(steps=120, batch=8)
    member = train_member(recipe, PLAN, 0, draw_tiles(count=64))
    unseen = draw_tiles(count=8, seed=9)
    with torch.no_grad():
        marked = member.network()(torch.from_numpy(unseen.input_nyx)[:, None])[:, 0] > 0
    truth = torch.from_numpy(unseen.target_nyx) > 0
    overlap = (marked & truth).sum() / (marked | truth).sum()
    assert overlap > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "focal", "dice", "bce+dice"])
def test_every_loss_of_a_recipe_falls(loss: str) -> None:
    member = train_member(recipe_of(loss=loss, steps=60), PLAN, 0, draw_tiles())
    assert np.mean(member.losses[-10:]) < 0.9 * np.mean(member.losses[:10])


@pytest.mark.parametrize("loss", ["bce", "focal", "dice", "bce+dice"])
def test_pixels_of_weight_zero_do_not_count(loss: str) -> None:
    logits, target = torch.randn(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    weight = torch.ones(2, 1, 4, 4)
    weight[..., 2:] = 0
    changed = logits.clone()
    changed[..., 2:] += 5
    assert pixel_loss(loss, logits, target, weight) == pixel_loss(loss, changed, target, weight)


@pytest.mark.slow
def test_two_kinds_of_atom_are_told_apart() -> None:
    tiles = draw_tiles(count=32)
    kinds = tiles.target_nyx * (1 + (np.arange(32) % 2)[:, None, None]).astype(np.uint8)
    signs = np.where(np.arange(32) % 2, -1, 1)[:, None, None].astype(np.float32)
    two = Tiles(signs * tiles.input_nyx, kinds, (), "two")
    recipe = Recipe(
        id="two",
        network=Network(filters=6, levels=2, classes=2),
        training=Training(steps=80, batch=8),
        tiles=TileSpec(elements=(6, 14)),
        members=(PLAN,),
    )
    network = train_member(recipe, PLAN, 0, two).network()
    with torch.no_grad():
        share = network(torch.from_numpy(two.input_nyx)[:, None]).sigmoid()
    bright = torch.from_numpy(kinds == 1)
    assert share[:, 0][bright].mean() > 0.5 > share[:, 1][bright].mean()


def test_a_loss_that_is_no_number_fails_the_member_and_tells_where() -> None:
    tiles = draw_tiles()
    broken = Tiles(tiles.input_nyx.copy(), tiles.target_nyx, (), "broken")
    broken.input_nyx[4] = np.nan
    with pytest.raises(MemberDiverged, match=r"member 5 diverged: loss nan at step [0-2];"):
        train_member(recipe_of(), PLAN, 5, broken)


def test_the_last_finite_loss_is_told() -> None:
    with pytest.raises(MemberDiverged, match=r"last finite loss was \d"):
        train_member(recipe_of(learning_rate=1.0, steps=3), PLAN, 0, exploding_tiles())


def exploding_tiles() -> Tiles:
    """Tiles whose third batch cannot be summed in float32."""
    tiles = draw_tiles(count=12)
    deck = torch.randperm(12, generator=order_generator())
    tiles.input_nyx[deck[8:12]] = np.float32(3e38)
    return tiles


def order_generator() -> torch.Generator:
    from manybeam.learn.training.member import _stream

    return torch.Generator().manual_seed(_stream(PLAN.seed, "order"))


def test_fine_tuning_starts_from_the_weights_given() -> None:
    parent = train_member(recipe_of(steps=60), PLAN, 0, draw_tiles())
    child = train_member(recipe_of(steps=1), PLAN, 0, draw_tiles(), initial=parent.weights)
    assert child.losses[0] < 0.8 * parent.losses[0]


def test_progress_is_told_after_each_step() -> None:
    told: list[tuple[int, float]] = []
    member = train_member(
        recipe_of(steps=3), PLAN, 0, draw_tiles(), on_step=lambda *event: told.append(event)
    )
    assert told == list(zip([1, 2, 3], member.losses, strict=True))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((recipe_of(batch=5), PLAN, 0), id="another recipe"),
        pytest.param((recipe_of(), MemberPlan(seed=9, policy="nominal"), 0), id="another seed"),
        pytest.param((recipe_of(), PLAN, 1), id="other tiles"),
    ],
)
def test_a_checkpoint_of_another_member_is_refused(other: tuple[Recipe, MemberPlan, int]) -> None:
    kept: list[Checkpoint] = []
    train_member(recipe_of(), PLAN, 0, draw_tiles(), on_checkpoint=kept.append)
    recipe, plan, seed = other
    with pytest.raises(InvalidInput, match="another member"):
        train_member(recipe, plan, 0, draw_tiles(seed=seed), checkpoint=kept[0])


def test_no_tiles_are_refused() -> None:
    empty = np.zeros((0, 32, 32), np.uint8)
    with pytest.raises(InvalidInput, match="no tiles"):
        train_member(recipe_of(), PLAN, 0, Tiles(empty.astype(np.float32), empty, (), "empty"))


def test_a_strategy_that_cannot_be_trained_is_refused() -> None:
    recipe = recipe_of().model_copy(update={"strategy": "swag"})
    with pytest.raises(InvalidSpec, match="swag"):
        train_member(recipe, PLAN, 0, draw_tiles())


def test_weights_that_do_not_fit_the_recipe_are_refused() -> None:
    member = Member(0, 0, "nominal", recipe_of(), {"head.weight": torch.ones(1)}, (), 0.0, "")
    with pytest.raises(Corrupt, match="do not fit"):
        member.network()


def test_bytes_that_are_no_safetensors_are_refused() -> None:
    with pytest.raises(Corrupt, match="not a safetensors file"):
        load_weights(b"PK\x03\x04 something else")


def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    rates = [one_cycle(step, 400, 2e-3) for step in range(400)]
    assert max(rates) == pytest.approx(2e-3, rel=1e-3)
    assert rates[0] == pytest.approx(8e-5)
    assert rates[-1] < 1e-7


@pytest.mark.parametrize(("precision", "answer"), [("float32", False), ("bfloat16", True)])
def test_a_precision_that_is_named_is_taken(precision: str, answer: object) -> None:
    assert computes_in_bfloat16(precision, torch.device("cpu")) is answer

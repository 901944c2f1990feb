"""learn.ensemble and learn.tiled: members that answer together, on any frame.

The members here are not trained: one kind answers "bright" by hand-set weights, so that the truth
is known; the other has drawn weights and batch norms, so that every pixel of its answer differs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manybeam.data.tiles import normalise
from manybeam.errors import InvalidFrame, InvalidInput, MemberCountError, NotFound, TooLarge
from manybeam.learn.nets import ensemble as module
from manybeam.learn.nets.answer import entropy
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.tiled import TILE_PX, probabilities
from manybeam.learn.nets.inference.torch_network import TorchNetwork, prepare
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.learn.nets.prediction import Prediction
from manybeam.learn.nets.shapes import reach_px, side_multiple
from manybeam.learn.scoring.scores import match
from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec

Frame = NDArray[np.float32]
CPU = torch.device("cpu")


def recipe_of(network: Network, pixel_size_pm: float = 16.0) -> Recipe:
    return Recipe(
        id="test",
        network=network,
        tiles=TileSpec(
            pixel_size_pm=pixel_size_pm,
            elements=(6, 14, 7)[: network.classes] if network.classes > 1 else (),
        ),
        members=(MemberPlan(seed=0, policy="any"),),
    )


def member_of(index: int, recipe: Recipe, weights: dict[str, torch.Tensor]) -> Member:
    return Member(index, index, "any", recipe, weights, (), 0.0, "")


def bright(index: int, pixel_size_pm: float = 16.0, level: float = 1.0) -> Member:
    """Return a member that calls atom what is brighter than `level` deviations."""
    recipe = recipe_of(Network(levels=1, filters=2), pixel_size_pm)
    weights = build(recipe.network).state_dict()
    kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
    weights["down.0.0.weight"] = kernel.expand(2, 1, 3, 3).clone()
    weights["head.weight"] = torch.full((1, 2, 1, 1), 2.0)
    weights["head.bias"] = torch.tensor([-4.0 * level])
    return member_of(index, recipe, weights)


def drawn(index: int, levels: int = 3, classes: int = 1, **size: float) -> Member:
    """Return a member of drawn weights, its batch norms far from doing nothing."""
    recipe = recipe_of(Network(levels=levels, filters=4, classes=classes), **size)
    with torch.random.fork_rng():
        torch.manual_seed(index)
        network = build(recipe.network)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return member_of(index, recipe, network.state_dict())


def atoms_at(position_n2: NDArray[np.floating], shape: tuple[int, int], width_px: float) -> Frame:
    """Return a frame of Gaussian atoms."""
    y, x = np.indices(shape)
    frame = np.zeros(shape)
    for cy, cx in position_n2:
        frame += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width_px**2))
    return frame.astype(np.float32)


def lattice(pixel_size_pm: float, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return positions some 220 pm apart, none on a pixel's centre."""
    step = 220 / pixel_size_pm
    rows, columns = (np.arange(step * 0.6, side - step * 0.5, step) for side in shape)
    place = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    return place + np.random.default_rng(0).uniform(-0.5, 0.5, place.shape)


def noise(shape: tuple[int, ...], seed: int = 0) -> Frame:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_equal(one: Prediction, other: Prediction) -> None:
    np.testing.assert_array_equal(one.mean_yx, other.mean_yx)
    np.testing.assert_array_equal(one.std_yx, other.std_yx)
    np.testing.assert_array_equal(one.atoms, other.atoms)


@pytest.mark.parametrize("pixel_size_pm", [8.0, 12.3, 16.0, 21.7, 29.3])
def test_atoms_lie_where_they_are_whatever_the_pixel_size(pixel_size_pm: float) -> None:
    shape = (97, 121)
    truth = lattice(pixel_size_pm, shape)
    frame = atoms_at(truth, shape, 45 / pixel_size_pm)
    found = Ensemble([bright(0), bright(1, level=1.3)]).predict(frame, pixel_size_pm).atoms
    pairs = match(found, truth, 60 / pixel_size_pm)
    shift = found[pairs.found_index, :2] - truth[pairs.truth_index]
    inside = np.all((truth > 4) & (truth < np.array(shape) - 5), axis=1)[pairs.truth_index]
    assert len(pairs) == len(truth) == len(found)
    assert np.abs(shift[inside].mean(axis=0)).max() < 0.05
    assert np.sqrt((shift[inside] ** 2).mean()) < 0.2


@pytest.mark.parametrize("pixel_size_pm", [8.0, 16.0, 29.3])
def test_maps_show_the_atoms_in_the_frames_own_pixels(pixel_size_pm: float) -> None:
    shape = (90, 110)
    truth = lattice(pixel_size_pm, shape)
    frame = atoms_at(truth, shape, 45 / pixel_size_pm)
    mean_yx = Ensemble([bright(0)]).predict(frame, pixel_size_pm).mean_yx
    y, x = np.rint(truth).astype(int).T
    assert mean_yx.shape == shape
    assert mean_yx[y, x].min() > 0.5 > np.median(mean_yx)
    assert np.corrcoef(mean_yx.ravel(), frame.ravel())[0, 1] > 0.85


@pytest.mark.parametrize(
    "shape",
    [(1, 2), (1, 50), (50, 1), (3, 2), (31, 33), (64, 64), (97, 130)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("pixel_size_pm", [None, 16.0, 30.0])
def test_any_frame_size_is_answered(shape: tuple[int, int], pixel_size_pm: float | None) -> None:
    answer = Ensemble([drawn(0), drawn(1)]).predict(noise(shape), pixel_size_pm)
    assert answer.mean_yx.shape == answer.std_yx.shape == shape
    assert np.isfinite(answer.mean_yx).all()
    assert (answer.mean_yx.min() >= 0, answer.mean_yx.max() <= 1) == (True, True)
    assert (answer.atoms[:, :2] >= 0).all()
    assert (answer.atoms[:, :2] <= np.array(shape) - 1).all()


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int32", ">f4", "float64", "float16", "bool"])
def test_any_real_dtype_is_answered(dtype: str) -> None:
    frame = (noise((40, 40)) > 1).astype(dtype)
    assert_equal(
        Ensemble([drawn(0)]).predict(frame, 16.0),
        Ensemble([drawn(0)]).predict(frame.astype(np.float32), 16.0),
    )


LOCAL = [
    *(Network(levels=levels, filters=4) for levels in (1, 2, 3, 4, 5)),
    *(
        Network(name=f"atomai{kind}", filters=4, levels=4)
        for kind in ("1223bilinearNorm", "1111nearest", "2312bilinear", "1223bilinearDilated")
    ),
]


def named(network: Network) -> str:
    return f"{network.name}-{network.levels}"


def drawn_run(network: Network) -> TorchNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TorchNetwork(build(network), CPU)


@pytest.mark.parametrize("network", LOCAL, ids=named)
@pytest.mark.parametrize("shape", [(563, 561), (130, 2501), (701, 903)], ids=str)
def test_a_tiled_answer_equals_the_answer_in_one_piece(
    network: Network, shape: tuple[int, int]
) -> None:
    runs, input_yx = [drawn_run(network)], noise(shape)
    tiled, whole = (probabilities(runs, input_yx, network, side) for side in (560, 2000))
    assert whole.std() > 1e-4
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=2e-6)


def test_a_band_pass_gets_more_in_one_piece_because_it_needs_less_memory() -> None:
    network = Network(name="bandpass")
    runs, input_yx = [drawn_run(network)], noise((400, 500))
    tiled, whole = (probabilities(runs, input_yx, network, side) for side in (256, 1000))
    np.testing.assert_array_equal(tiled, whole)  # its scatter is that of the whole frame


def test_a_band_pass_in_tiles_measures_the_scatter_of_each() -> None:
    network = Network(name="bandpass")
    runs, input_yx = [drawn_run(network)], noise((600, 500))
    tiled, whole = (probabilities(runs, input_yx, network, side) for side in (256, 1000))
    assert 0 < np.abs(tiled - whole).max() < 0.01


@settings(max_examples=60)
@given(
    network=st.sampled_from([*LOCAL, Network(name="bandpass"), Network(name="BasicUNet")]),
    rows=st.integers(1, 900),
    columns=st.integers(1, 3000),
    tile_px=st.sampled_from([64, 256, 1024]),
)
def test_tiles_of_one_bounded_shape_make_up_any_frame(
    network: Network, rows: int, columns: int, tile_px: int
) -> None:
    shapes = set()

    def echo(tile_yx: Frame) -> Frame:
        shapes.add(tile_yx.shape)
        return tile_yx[None].repeat(network.classes, axis=0)

    frame = np.random.default_rng(0).random((rows, columns), np.float32)
    (prob_cyx,) = probabilities([echo], frame, network, tile_px)
    np.testing.assert_allclose(prob_cyx[0], frame, rtol=0, atol=1e-6)
    ((tall, wide),) = shapes  # all have one
    assert tall % side_multiple(network) == wide % side_multiple(network) == 0
    margin = 16 << (network.levels - 1)
    assert tall * wide <= max(tile_px * (1 + (network.name == "bandpass")), 4 * margin, 128) ** 2


@pytest.mark.parametrize(
    ("shape", "most"),
    [((1032, 1032), 1.15), ((1536, 1536), 1.2), ((2048, 2048), 1.2), ((3000, 3000), 1.25)],
    ids=str,
)
def test_networks_see_little_more_than_a_large_frame(shape: tuple[int, int], most: float) -> None:
    seen = []

    def echo(tile_yx: Frame) -> Frame:
        seen.append(tile_yx.size)
        return tile_yx[None]

    probabilities([echo], np.zeros(shape, np.float32), Network(levels=4), TILE_PX)
    assert sum(seen) < most * shape[0] * shape[1]


def test_tiles_of_a_constant_answer_add_up_without_a_seam() -> None:
    member = bright(0, level=100.0)
    member.weights["head.bias"].zero_()
    networks = [TorchNetwork(member.network(), CPU)]
    answer = probabilities(networks, np.zeros((400, 131), np.float32), member.recipe.network, 128)
    np.testing.assert_allclose(answer, 0.5, rtol=0, atol=1e-6)


def test_folding_batch_norm_changes_nothing() -> None:
    member = drawn(5)
    input_yx = normalise(noise((64, 96)), "frame", 1.0)
    with torch.inference_mode():
        plain = member.network()(torch.from_numpy(input_yx)[None, None]).sigmoid()[0]
    folded = prepare(member.network(), CPU)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    networks = [TorchNetwork(member.network(), CPU)]
    fast = probabilities(networks, input_yx, member.recipe.network, 1024)
    np.testing.assert_allclose(fast[0], plain.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_any_number_of_members_answers(count: int) -> None:
    frame = atoms_at(lattice(16.0, (80, 80)), (80, 80), 2.8)
    answer = Ensemble([bright(index) for index in range(count)]).predict(frame, 16.0)
    assert answer.members == tuple(range(count))
    assert len(answer.member_atoms) == count
    assert answer.atoms.shape == (len(lattice(16.0, (80, 80))), 7)
    assert (answer.atoms[:, 6] == 1).all()


def test_one_member_has_no_spread() -> None:
    answer = Ensemble([drawn(0)]).predict(noise((64, 64)), 16.0)
    assert (answer.std_yx == 0).all()
    assert np.isnan(answer.atoms[:, 4:6]).all()
    assert len(answer.atoms)


def test_equal_members_have_no_spread_and_the_answer_of_one() -> None:
    frame = atoms_at(lattice(16.0, (80, 80)), (80, 80), 2.8)
    one = Ensemble([bright(0)]).predict(frame, 16.0)
    three = Ensemble([bright(index) for index in range(3)]).predict(frame, 16.0)
    np.testing.assert_allclose(three.mean_yx, one.mean_yx, rtol=0, atol=1e-6)
    np.testing.assert_allclose(three.atoms[:, :4], one.atoms[:, :4], rtol=0, atol=1e-4)
    assert three.std_yx.max() < 1e-6
    assert np.abs(three.atoms[:, 4:6]).max() < 1e-4


def test_mean_and_spread_are_those_of_the_members_maps() -> None:
    ensemble = Ensemble([drawn(index) for index in range(4)])
    answer = ensemble.predict(noise((70, 90)), 20.0)
    np.testing.assert_allclose(answer.mean_yx, answer.prob_myx.mean(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(answer.std_yx, answer.prob_myx.std(axis=0, ddof=1), atol=1e-6)


def mixed() -> Ensemble:
    """Return members of several pixel sizes and depths."""
    return Ensemble([drawn(0), drawn(4, levels=2), drawn(5, pixel_size_pm=22.0), bright(7)])


def test_mutual_information_is_entropy_of_the_mean_less_mean_entropy() -> None:
    answer = mixed().predict(noise((70, 90)), 18.0)
    assert answer.mi_yx is not None
    p = answer.prob_myx.astype(float)
    expected = bits(p.mean(axis=0)) - bits(p).mean(axis=0)
    np.testing.assert_allclose(answer.mi_yx, expected, rtol=0, atol=1e-6)
    assert answer.mi_yx.max() > 0.05
    assert answer.mi_yx.min() >= 0


def bits(prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of two outcomes in nats, from its definition."""
    two = np.stack([prob, 1 - prob])
    return np.asarray(-np.where(two > 0, two * np.log(np.where(two > 0, two, 1)), 0).sum(axis=0))


@pytest.mark.parametrize("count", [1, 3])
def test_members_that_hesitate_alike_contradict_nobody(count: int) -> None:
    answer = Ensemble([bright(index) for index in range(count)]).predict(noise((40, 40)), 16.0)
    assert answer.mi_yx is not None
    assert entropy(answer.mean_yx).max() > 0.6
    assert answer.mi_yx.max() < 1e-6


@pytest.mark.parametrize("members", [[0], [7, 4], [0, 4, 5, 7], [5, 5, 0]])
def test_regrouped_answers_are_those_of_the_members_asked(members: list[int]) -> None:
    ensemble, frame = mixed(), noise((70, 90))
    regrouped = ensemble.predict(frame, 18.0, threshold=0.4).subset(members)
    asked = ensemble.predict(frame, 18.0, members=members, threshold=0.4)
    assert regrouped.members == asked.members
    for name in ("mean_yx", "std_yx", "mi_yx"):
        one, other = getattr(regrouped, name), getattr(asked, name)
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-3)
    np.testing.assert_array_equal(regrouped.prob_myx, asked.prob_myx)
    np.testing.assert_array_equal(regrouped.atoms, asked.atoms)
    assert len(regrouped.atoms)
    for one, other in zip(regrouped.member_atoms, asked.member_atoms, strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_weights_are_no_weights() -> None:
    answer = mixed().predict(noise((70, 90)), 18.0)
    assert_equal(answer.subset([0, 4, 7], [1 / 3] * 3), answer.subset([0, 4, 7]))


def test_a_member_of_no_weight_is_not_asked() -> None:
    answer = mixed().predict(noise((70, 90)), 18.0)
    weighted = answer.subset([0, 4, 7], [0.5, 0.0, 0.5])
    assert weighted.members == (0, 7)
    assert_equal(weighted, answer.subset([0, 7]))


def test_weights_enter_maps_and_atoms() -> None:
    members = [bright(0), bright(1, level=1.6), drawn(2)]
    frame = atoms_at(lattice(16.0, (80, 80)), (80, 80), 2.8)
    answer = Ensemble(members).predict(frame, 16.0)
    weighted = answer.subset([0, 1, 2], [0.7, 0.2, 0.1])
    p, w = answer.prob_myx.astype(float), np.array([0.7, 0.2, 0.1])
    mean = np.tensordot(w, p, 1)
    variance = np.tensordot(w, (p - mean) ** 2, 1) / (1 - (w**2).sum())
    mutual = bits(mean) - np.tensordot(w, bits(p), 1)
    np.testing.assert_allclose(weighted.mean_yx, mean, rtol=0, atol=1e-3)
    np.testing.assert_allclose(weighted.std_yx, np.sqrt(variance), rtol=0, atol=2e-3)
    assert weighted.mi_yx is not None
    np.testing.assert_allclose(weighted.mi_yx, mutual, rtol=0, atol=2e-3)
    assert not np.allclose(weighted.atoms[:, 3], answer.atoms[: len(weighted.atoms), 3], atol=0.05)


def test_copies_of_a_member_weigh_what_one_of_their_weight_does() -> None:
    frame = atoms_at(lattice(16.0, (80, 80)), (80, 80), 2.8) + 0.3 * noise((80, 80))
    two, one = bright(1, level=1.4), bright(0)
    copies = Ensemble([one, two, bright(2, level=1.4)]).predict(frame, 16.0)
    weighted = Ensemble([one, two]).predict(frame, 16.0).subset([0, 1], [1 / 3, 2 / 3])
    np.testing.assert_allclose(weighted.mean_yx, copies.mean_yx, rtol=0, atol=1e-3)
    assert weighted.mi_yx is not None
    assert copies.mi_yx is not None
    np.testing.assert_allclose(weighted.mi_yx, copies.mi_yx, rtol=0, atol=2e-3)
    np.testing.assert_allclose(weighted.atoms[:, :4], copies.atoms[:, :4], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("members", "weights", "told"),
    [
        pytest.param([0, 4], [1.0], "one for each", id="too few"),
        pytest.param([0, 0], [0.5, 0.5], "no member twice", id="twice"),
        pytest.param([0, 4], [0.5, 0.6], "sum 1", id="sum"),
        pytest.param([0, 4], [1.5, -0.5], "each >= 0", id="negative"),
        pytest.param([0, 4], [float("nan"), 1.0], "each >= 0", id="nan"),
        pytest.param([], [], "sum 1", id="none"),
    ],
)
def test_weights_that_are_none_are_refused(
    members: list[int], weights: list[float], told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        mixed().predict(noise((40, 40)), 16.0).subset(members, weights)


def test_only_members_that_answered_can_be_regrouped() -> None:
    answer = mixed().predict(noise((40, 40)), 16.0, members=[0, 4])
    with pytest.raises(NotFound, match="no member 5 in this ensemble; it holds 0, 4"):
        answer.subset([5])
    with pytest.raises(MemberCountError):
        answer.subset([])
    with pytest.raises(InvalidInput, match="has no maps"):
        answer.without_maps().subset([0])


def test_kept_maps_of_a_large_frame_take_two_bytes_a_pixel_and_their_mean_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble, frame = Ensemble([drawn(index) for index in range(20)]), noise((96, 128))
    exact = ensemble.predict(frame, 16.0)
    monkeypatch.setattr(module, "EXACT_PX", 20 * 96 * 128 - 1)
    monkeypatch.setattr(module, "AT_ONCE_PX", 3 * 96 * 128)
    large = ensemble.predict(frame, 16.0)
    assert sum(one.prob_yx.nbytes for one in large._answers) == 20 * 96 * 128 * 2
    np.testing.assert_array_equal(large.mean_yx, exact.mean_yx)
    np.testing.assert_array_equal(large.std_yx, exact.std_yx)
    np.testing.assert_array_equal(large.mi_yx, exact.mi_yx)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_order_of_members_does_not_matter(order: list[int]) -> None:
    members = [drawn(0), drawn(1), drawn(2, pixel_size_pm=20.0), drawn(3, levels=2)]
    frame = noise((70, 90))
    first = Ensemble(members).predict(frame, 18.0)
    again = Ensemble([members[place] for place in order]).predict(frame, 18.0)
    np.testing.assert_array_equal(first.mean_yx, again.mean_yx)
    np.testing.assert_array_equal(first.std_yx, again.std_yx)
    np.testing.assert_allclose(first.atoms, again.atoms, rtol=0, atol=1e-5)


def test_members_of_other_pixel_sizes_answer_about_the_same_atoms() -> None:
    shape = (128, 128)
    truth = lattice(20.0, shape)
    members = [bright(index, size) for index, size in enumerate((12.0, 16.0, 25.0))]
    atoms = Ensemble(members).predict(atoms_at(truth, shape, 2.2), 20.0).atoms
    assert len(match(atoms, truth, 2.0)) == len(truth) == len(atoms)
    assert (atoms[:, 6] == 1).all()
    assert np.median(atoms[:, 4:6]) < 0.15


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), turns=st.integers(1, 3))
def test_a_turned_frame_has_the_turned_atoms(seed: int, turns: int) -> None:
    side = 96
    place = 8.0 + 16 * np.argwhere(np.ones((6, 6)))
    place += np.random.default_rng(seed).uniform(-1, 1, place.shape)
    frame = atoms_at(place, (side, side), 2.8)
    ensemble = Ensemble([bright(0), bright(1, level=1.5)])
    still = ensemble.predict(frame, 16.0).atoms
    turned = ensemble.predict(np.rot90(frame, turns), 16.0).atoms[:, :2]
    for _ in range(turns):
        turned = np.column_stack([turned[:, 1], side - 1 - turned[:, 0]])
    assert len(match(turned, still, 0.02)) == len(still) == len(turned)


@settings(max_examples=5)
@given(gain=st.floats(0.01, 1e4), offset=st.floats(-100, 1e4))
def test_gain_and_offset_of_the_detector_do_not_matter(gain: float, offset: float) -> None:
    frame = noise((64, 64))
    ensemble = Ensemble([drawn(0)])
    answer = ensemble.predict(frame * gain + offset, 16.0)
    tolerance = 1e-4 + 1e-5 * abs(offset) / gain
    np.testing.assert_allclose(
        answer.mean_yx, ensemble.predict(frame, 16.0).mean_yx, rtol=0, atol=tolerance
    )


def test_a_bright_neighbour_in_the_stack_changes_nothing() -> None:
    stack = noise((3, 50, 60))
    stack[1] *= 1000
    ensemble = Ensemble([drawn(0), drawn(1)])
    for frame, answer in zip(stack, ensemble.predict_stack(stack, 14.0), strict=True):
        assert_equal(answer, ensemble.predict(frame, 14.0))


def test_frames_of_a_stack_may_have_pixel_sizes_of_their_own() -> None:
    stack = noise((2, 50, 60))
    ensemble = Ensemble([drawn(0)])
    answers = ensemble.predict_stack(stack, [14.0, 20.0])
    assert_equal(answers[1], ensemble.predict(stack[1], 20.0))


def test_a_second_call_of_another_size_works() -> None:
    ensemble = Ensemble([drawn(0), drawn(1)])
    first = ensemble.predict(noise((64, 64)), 16.0)
    ensemble.predict(noise((41, 77)), 16.0)
    assert_equal(first, ensemble.predict(noise((64, 64)), 16.0))


def test_threads_get_the_answers_they_would_get_alone() -> None:
    ensemble = Ensemble([drawn(0), drawn(1)])
    frames = noise((8, 60, 70))
    alone = ensemble.predict_stack(frames, 16.0)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda frame: ensemble.predict(frame, 16.0), frames))
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


def test_asking_some_members_is_asking_the_ensemble_of_them() -> None:
    ensemble = Ensemble([drawn(3), drawn(7), drawn(9)])
    frame = noise((50, 60))
    asked = ensemble.predict(frame, 16.0, members=[9, 3])
    part = ensemble.subset([9, 3])
    assert asked.members == part.indices == (9, 3)
    assert part.member_count == 2
    assert_equal(asked, part.predict(frame, 16.0))


def test_a_member_that_half_believes_still_counts() -> None:
    frame = atoms_at(np.array([[20.0, 20.0], [44.0, 44.0]]), (64, 64), 2.8)
    frame[:32, :32] *= 0.4
    probability = Ensemble([bright(0)]).predict(frame, 16.0).mean_yx[20, 20]
    brightness = 1 + np.log(probability / (1 - probability)) / 4
    doubting = bright(2, level=brightness + 0.1)
    atoms = Ensemble([bright(0), bright(1), doubting]).predict(frame, 16.0).atoms
    assert atoms[:, 6].tolist() == pytest.approx([1, 2 / 3])
    assert atoms[1, 3] == pytest.approx((2 * probability + 1 / (1 + np.exp(0.4))) / 3, abs=0.02)


def test_a_lower_threshold_finds_no_fewer_atoms() -> None:
    ensemble = Ensemble([bright(0), bright(1, level=1.4)])
    frame = atoms_at(lattice(16.0, (80, 80)), (80, 80), 2.8) + 0.2 * noise((80, 80))
    counts = [len(ensemble.predict(frame, 16.0, threshold=t).atoms) for t in (0.9, 0.6, 0.3)]
    assert counts == sorted(counts)
    assert (ensemble.predict(frame, 16.0, threshold=0.6).atoms[:, 3] >= 0.6).all()


def test_a_network_of_several_kinds_tells_them_by_number() -> None:
    answer = Ensemble([drawn(2, classes=3)]).predict(noise((64, 64)), 16.0)
    assert answer.mean_yx.shape == (64, 64)
    assert set(answer.atoms[:, 2].tolist()) <= {1.0, 2.0, 3.0}


def test_an_unknown_pixel_size_means_as_it_is() -> None:
    ensemble = Ensemble([drawn(0)])
    assert_equal(ensemble.predict(noise((50, 50)), None), ensemble.predict(noise((50, 50)), 16.0))


def test_an_ensemble_needs_a_member() -> None:
    with pytest.raises(MemberCountError, match="no members"):
        Ensemble([])
    with pytest.raises(MemberCountError, match="no member was given"):
        Ensemble([drawn(0)]).predict(noise((40, 40)), 16.0, members=[])


def test_two_members_of_one_index_are_refused() -> None:
    with pytest.raises(InvalidInput, match="index 4 given twice"):
        Ensemble([drawn(4), drawn(4)])


def test_an_unknown_member_is_named_with_those_that_are_there() -> None:
    with pytest.raises(NotFound, match="no member 5 in this ensemble; it holds 0, 2"):
        Ensemble([drawn(0), drawn(2)]).predict(noise((40, 40)), 16.0, members=[0, 5])


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(np.ones(10), id="1-D"),
        pytest.param(np.ones((2, 2, 2, 2)), id="4-D"),
        pytest.param(np.ones((0, 5)), id="empty"),
        pytest.param(np.full((5, 5), np.nan), id="all NaN"),
        pytest.param(np.ones((5, 5)), id="constant"),
        pytest.param(np.ones((5, 5)) * 1j, id="complex"),
    ],
)
def test_what_is_not_a_frame_is_refused(frame: NDArray[np.generic]) -> None:
    with pytest.raises(InvalidFrame):
        Ensemble([drawn(0)]).predict(frame, 16.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("pixel_size_pm", [0.0, -1.0, 0.016, 16_000.0, float("nan")])
def test_a_pixel_size_in_another_unit_is_refused(pixel_size_pm: float) -> None:
    with pytest.raises(InvalidInput, match="1 to 500 pm"):
        Ensemble([drawn(0)]).predict(noise((40, 40)), pixel_size_pm)


def test_a_frame_narrower_than_a_pixel_of_the_network_is_refused() -> None:
    with pytest.raises(InvalidFrame, match="less than one pixel"):
        Ensemble([drawn(0)]).predict(noise((1, 40)), 11.0)


def test_a_prediction_without_member_maps_has_a_window_but_no_members() -> None:
    frame = noise((80, 96))
    (lean,) = Ensemble([drawn(0), drawn(1)]).predict_stack(frame[None], None)
    window = (slice(8, 40), slice(16, 64))
    np.testing.assert_array_equal(lean.inside(window).mean_yx, lean.mean_yx[window])
    np.testing.assert_array_equal(lean.inside(window).mi_yx, lean.mi_yx[window])
    for ask in (lambda: lean.radius_px, lambda: lean.belief(np.zeros((1, 2)))):
        with pytest.raises(InvalidInput, match="no maps of single members"):
            ask()
    with pytest.raises(InvalidInput, match="no maps of single members"):
        lean.atoms_only().mean_yx  # noqa: B018 - it raises


def test_more_work_than_allowed_is_refused_before_it_begins(
    use_settings: Callable[[dict[str, str]], None],
) -> None:
    use_settings({"MANYBEAM_MAX_WORK_PX": "20000"})
    ensemble = Ensemble([bright(0), bright(1), bright(2, pixel_size_pm=8.0)])
    ensemble.predict(noise((50, 60)), 16.0)  # 2 x 3,000 + 12,000 px
    with pytest.raises(TooLarge, match="max_work_px"):
        ensemble.predict(noise((60, 60)), 16.0)
    ensemble.predict(noise((60, 60)), 16.0, members=[0, 2])


@pytest.mark.parametrize("shape", [(64, 64), (700, 300)], ids=["whole", "tiles"])
def test_work_ends_before_the_next_network_or_tile(shape: tuple[int, int]) -> None:
    ensemble, asked = Ensemble([drawn(index) for index in range(3)], tile_px=256), []

    class Gone(Exception):
        pass

    def check() -> None:
        asked.append(len(asked))
        if len(asked) == 3:
            raise Gone

    with pytest.raises(Gone):
        ensemble.predict(noise(shape), None, check=check)
    assert len(asked) == 3


def test_a_frame_that_would_grow_past_the_limit_is_refused() -> None:
    with pytest.raises(TooLarge, match="max_frame_px"):
        Ensemble([drawn(0)]).predict(noise((2000, 2000)), 500.0)


@pytest.mark.slow
def test_a_frame_of_5000_x_3000_is_answered_whole() -> None:
    truth = 20.0 + 120 * np.argwhere(np.ones((41, 24)))
    frame = np.zeros((5000, 3000), np.float32)
    spot = atoms_at(np.array([[10.0, 10.0]]), (21, 21), 2.8)
    for y, x in truth.astype(int):
        frame[y - 10 : y + 11, x - 10 : x + 11] = spot
    answer = Ensemble([bright(0)]).predict(frame, 16.0)
    pairs = match(answer.atoms, truth, 1.0)
    assert answer.mean_yx.shape == (5000, 3000)
    assert len(pairs) == len(truth) == len(answer.atoms)
    assert pairs.distance_px.max() < 0.05


def test_the_answer_for_a_window_is_that_of_the_whole_frame() -> None:
    members = [bright(0), bright(1, 24.0, 0.8), drawn(2), drawn(3, levels=4, classes=2)]
    members[3].weights["head.weight"] *= 100  # else its maps are flat, and the last bit decides
    for name in ("bandpass", "atomai1223bilinearNorm", "atomai1223nearestDilated", "BasicUNet"):
        recipe = recipe_of(Network(name=name, filters=4))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            members.append(member_of(len(members), recipe, build(recipe.network).state_dict()))
    pixel_size_pm, shape, window = 13.3, (377, 340), (slice(151, 222), slice(100, 163))
    rng = np.random.default_rng(5)
    frame = atoms_at(rng.uniform(0, shape, (700, 2)), shape, 2.0)
    frame += rng.normal(0, 0.05, shape).astype(np.float32)
    ensemble = Ensemble(members)
    whole = ensemble.predict(frame, pixel_size_pm).inside(window)
    part = ensemble.predict(frame, pixel_size_pm, window=window).inside(window)
    assert len(whole.atoms) > 10
    for one, other in zip(
        [whole.atoms, *whole.member_atoms], [part.atoms, *part.member_atoms], strict=True
    ):
        # The most probable comes first; that of two equals is decided by the last bit.
        by_place = [atoms[np.lexsort(atoms[:, :2].round(2).T)] for atoms in (one, other)]
        np.testing.assert_allclose(*by_place, atol=1e-3)
    np.testing.assert_allclose(whole.mean_yx, part.mean_yx, atol=1e-6)
    np.testing.assert_allclose(whole.mi_yx, part.mi_yx, atol=1e-5)


def test_networks_do_not_run_on_what_has_no_effect_on_a_window() -> None:
    ensemble, seen = Ensemble([bright(0)]), []
    (run,) = ensemble._engine.networks

    def noted(part_yx: Frame) -> Frame:
        seen.append(part_yx.shape)
        return np.asarray(run(part_yx))

    ensemble._engine.networks = (noted,)
    frame = np.random.default_rng(0).normal(size=(1500, 1500)).astype(np.float32)
    ensemble.predict(frame, 16.0, window=(slice(700, 800), slice(0, 100)))
    more = 16 + 1  # in which atoms compete, and the reach of a network of one level
    assert seen == [(2 + 100 + 2 * more, 1 + 100 + more)]  # from an even row, to even sides


@pytest.mark.parametrize("network", LOCAL, ids=named)
def test_a_cut_edge_has_no_effect_beyond_the_reach_of_a_network(network: Network) -> None:
    cut = 256
    with torch.random.fork_rng():
        torch.manual_seed(network.levels)
        run = build(network).eval().double()
        row, other = torch.randn(2, 1, 1, 16, 512, dtype=torch.float64)
    reaches = []
    for place in range(cut, cut + 2**network.levels):  # poolings begin at each of these
        left = torch.cat([other[..., :place], row[..., place:]], dim=-1)
        right = torch.cat([row[..., :place], other[..., place:]], dim=-1)
        with torch.inference_mode():
            from_left, from_right = (
                (run(row) != run(one)).any(dim=2).flatten().nonzero() for one in (left, right)
            )
        reaches += [int(from_left[-1]) - place + 1, place - int(from_right[0])]
    assert max(reaches) == reach_px(network)

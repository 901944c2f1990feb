"""learn.nets: networks by name, and what they promise about sizes."""

import pytest
import torch

from manybeam.errors import InvalidSpec
from manybeam.learn.nets.networks import UNet, build, count_parameters
from manybeam.learn.nets.shapes import side_multiple
from manybeam.spec.recipe import Network


@pytest.mark.parametrize("sides", [(1, 1), (16, 16), (37, 50), (96, 96)])
def test_a_unet_gives_logits_of_the_frames_own_sides(sides: tuple[int, int]) -> None:
    network = build(Network(filters=4, levels=4)).eval()
    assert network(torch.randn(2, 1, *sides)).shape == (2, 1, *sides)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_number_of_levels_and_classes_can_be_built(levels: int) -> None:
    network = build(Network(filters=3, levels=levels, classes=3, dropout=0.1)).eval()
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)


def test_convolutions_before_batch_norm_have_no_bias() -> None:
    network = build(Network())
    biased = [
        name
        for name, part in network.named_modules()
        if isinstance(part, torch.nn.Conv2d) and part.bias is not None
    ]
    assert biased == ["head"]


def test_padding_a_frame_to_the_side_multiple_leaves_its_middle_as_it_was() -> None:
    spec = Network(filters=4, levels=3)
    network = build(spec).eval()
    frame = torch.randn(1, 1, 64, 64)
    shifted = frame.roll((side_multiple(spec),) * 2, dims=(2, 3))
    moved = network(shifted).roll((-side_multiple(spec),) * 2, dims=(2, 3))
    assert torch.allclose(network(frame)[..., 24:40, 24:40], moved[..., 24:40, 24:40], atol=1e-5)


def test_eight_filters_on_four_levels_are_about_the_size_of_the_pilots() -> None:
    assert 100_000 < count_parameters(build(Network(filters=8, levels=4))) < 130_000


def test_only_weights_that_training_changes_are_counted() -> None:
    network = build(Network())
    before = count_parameters(network)
    head = network.get_submodule("head")
    head.requires_grad_(requires_grad=False)
    assert count_parameters(network) == before - 13


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MONAI imports what others have deprecated
@pytest.mark.parametrize("name", ["UNet", "AttentionUnet", "BasicUNet", "SegResNet"])
def test_a_network_of_monai_is_built_by_its_class_name(name: str) -> None:
    network = build(Network(name=name, filters=8, levels=3)).eval()
    assert not isinstance(network, UNet)
    assert network(torch.randn(1, 1, 40, 50)).shape == (1, 1, 40, 50)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("Unett", "is not a network", id="no such class"),
        pytest.param("Sequence", "is not a network", id="not a network"),
        pytest.param("DynUNet", "also needs", id="needs what a recipe does not have"),
    ],
)
def test_a_name_that_cannot_be_built_is_refused(name: str, said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        build(Network(name=name))

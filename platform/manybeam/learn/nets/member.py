"""One member: a trained network, where it came from, and its weights as safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from manybeam.errors import Corrupt
from manybeam.learn.nets.networks import build
from manybeam.spec.recipe import Recipe


@dataclass(frozen=True)
class Member:
    """One trained network and where it came from."""

    index: int
    seed: int
    policy: str
    recipe: Recipe
    weights: dict[str, Tensor]
    losses: tuple[float, ...]
    wall_s: float
    data_digest: str
    parent: str = ""

    def network(self) -> nn.Module:
        """Return the network with its weights, on the CPU and in evaluation mode.

        Raises:
            Corrupt: the weights are not those of the recipe's network.
        """
        network = build(self.recipe.network)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise Corrupt(
                f"weights of member {self.index} do not fit its recipe {self.recipe.id!r}",
                str(error).splitlines()[-1].strip(),
                "train the member again, or restore the zoo from its backup",
            ) from error
        return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def save_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Return weights, or a checkpoint, as the bytes of a safetensors file."""
    return save({name: tensor.contiguous() for name, tensor in weights.items()})


def load_weights(data: bytes) -> dict[str, Tensor]:
    """Return the weights that `save_weights` wrote; raises Corrupt for any other bytes."""
    try:
        return load(data)
    except safetensors.SafetensorError as error:
        raise Corrupt(
            f"{len(data)} bytes are not a safetensors file: {error}",
            "weights and checkpoints are stored in that form only",
            "restore the object from a backup, or train the member again",
        ) from error

"""One member: a trained network, where it came from, and its weights as safetensors.

Torch is imported when a network or its weights are used: a member that answers by its compiled
graph needs neither.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from manybeam.errors import Corrupt
from manybeam.spec.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """One trained network and where it came from."""

    index: int
    seed: int
    policy: str
    recipe: Recipe
    weights: "Mapping[str, Tensor]"
    losses: tuple[float, ...]
    wall_s: float
    data_digest: str
    parent: str = ""

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights as a file."""
        stored = self.weights
        content = stored.content if isinstance(stored, StoredWeights) else save_weights(stored)
        return hashlib.sha256(content).hexdigest()

    def network(self) -> "nn.Module":
        """Return the network with its weights, on the CPU and in evaluation mode.

        Raises:
            Corrupt: the weights are not those of the recipe's network.
        """
        import torch

        from manybeam.learn.nets.networks import build

        network = build(self.recipe.network)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise Corrupt(
                f"weights of member {self.index} do not fit its recipe {self.recipe.id!r}",
                str(error).splitlines()[-1].strip(),
                "train the member again, or restore the zoo from its backup",
            ) from error
        # Torch's types do not know this form of `to`.
        return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, eq=False)
class StoredWeights(Mapping[str, "Tensor"]):
    """Weights as the bytes of their file, which is read at the first use.

    Raises:
        Corrupt: at the first use, if the bytes are not a safetensors file.
    """

    content: bytes

    @cached_property
    def _tensors(self) -> "dict[str, Tensor]":
        return load_weights(self.content)

    def __getitem__(self, name: str) -> "Tensor":
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __reduce__(self) -> "tuple[type[StoredWeights], tuple[bytes]]":
        """Pickle the bytes alone."""
        return type(self), (self.content,)


def save_weights(weights: "Mapping[str, Tensor]") -> bytes:
    """Return weights, or a checkpoint, as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in weights.items()})


def load_weights(data: bytes) -> "dict[str, Tensor]":
    """Return the weights that `save_weights` wrote; raises Corrupt for any other bytes."""
    import safetensors
    from safetensors.torch import load

    try:
        return load(data)
    except safetensors.SafetensorError as error:
        raise Corrupt(
            f"{len(data)} bytes are not a safetensors file: {error}",
            "weights and checkpoints are stored in that form only",
            "restore the object from a backup, or train the member again",
        ) from error

"""One member, trained from its recipe, seed and tiles; the result is bit-equal after any stop.

A checkpoint is a flat mapping of names to tensors, which safetensors can store: weights, moments of
the optimiser, both generators, the tiles that are left, and the identity of the member.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy import ndarray
from torch import Generator, Tensor

from manybeam.data.tiles import Tiles
from manybeam.errors import InvalidInput, InvalidSpec, MemberDiverged
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.learn.training.augmentation import augment
from manybeam.learn.training.loss import pixel_loss
from manybeam.spec.recipe import MemberPlan, Recipe

Checkpoint = dict[str, Tensor]


def train_member(
    recipe: Recipe,
    plan: MemberPlan,
    index: int,
    tiles: Tiles,
    *,
    checkpoint: Mapping[str, Tensor] | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    initial: Mapping[str, Tensor] | None = None,
    weight_nyx: ndarray | None = None,
) -> Member:
    """Return one trained member; equal arguments on one machine give bit-equal weights.

    Args:
        recipe: network, loss, optimiser and length.
        plan: seed of initialisation, order and augmentation; the policy is only recorded.
        index: number of the member in its ensemble.
        tiles: normalised tiles and masks; a mask of k marks an atom of kind k, 0 no atom.
        checkpoint: what an earlier call gave to `on_checkpoint`; training continues from there.
        on_checkpoint: called with a checkpoint every `training.checkpoint_every` steps.
        on_step: called with (steps done, loss) after each step.
        initial: weights to start from instead of drawn ones (fine-tuning).
        weight_nyx: weight of each pixel in the loss; 0 leaves it out.

    Raises:
        MemberDiverged: the loss is NaN or infinite.
        InvalidInput: there are no tiles, or the checkpoint is of another member.
        InvalidSpec: this machine or version cannot do what the recipe needs.
    """
    _check_arguments(recipe, tiles, weight_nyx, initial)
    run = _Run(recipe, plan, tiles, initial, weight_nyx)
    if checkpoint is not None:
        run.restore(checkpoint)
    steps, every = recipe.training.steps, recipe.training.checkpoint_every
    while run.step < steps:
        loss = run.advance(index)
        if on_step:
            on_step(run.step, loss)
        if on_checkpoint and run.step % every == 0 and run.step < steps:
            on_checkpoint(run.checkpoint())
    return Member(
        index=index,
        seed=plan.seed,
        policy=plan.policy,
        recipe=recipe,
        weights=_to_cpu(run.network.state_dict()),
        losses=tuple(run.losses),
        wall_s=run.wall_s,
        data_digest=tiles.digest,
    )


def training_device() -> torch.device:
    """Return the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether the forward pass runs in bfloat16.

    `auto` uses it if the hardware multiplies bfloat16; else it would be emulated and slower.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("arm_bf16"))


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of one step: it rises for 0.3 of the steps, then falls to almost 0.

    It is a formula, not a scheduler object, so that checkpoints need not store it.

    Source:
        Smith & Topin, 2018, "Super-convergence"; cosine arms and end points as in PyTorch.

    Example:
        >>> [round(one_cycle(step, 101, 1.0), 2) for step in (0, 30, 65, 100)]
        [0.04, 1.0, 0.5, 0.0]
    """
    top = 0.3 * (steps - 1)
    if step < top:
        return _cosine(peak / 25, peak, step / top)
    return _cosine(peak, peak / 2.5e5, (step - top) / max(steps - 1 - top, 1))


class _Run:
    """A training in progress: everything that changes from step to step."""

    def __init__(
        self,
        recipe: Recipe,
        plan: MemberPlan,
        tiles: Tiles,
        initial: Mapping[str, Tensor] | None,
        weight_nyx: ndarray | None,
    ) -> None:
        self.recipe, self.training = recipe, recipe.training
        self.tiles, self.weight_nyx = tiles, weight_nyx
        self.seed, self.step, self.wall_s = plan.seed, 0, 0.0
        self.losses: list[float] = []
        self.identity = _identity(recipe, plan, tiles.digest)
        self.device = training_device()
        self.dtype = (
            torch.bfloat16
            if computes_in_bfloat16(self.training.precision, self.device)
            else torch.float32
        )
        with _drawing_from(_stream(plan.seed, "weights")):
            network = build(recipe.network)
        if initial is not None:
            network.load_state_dict(initial)
        self.network = network.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.training.learning_rate,
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        self.deck = _Deck(len(tiles.input_nyx), _stream(plan.seed, "order"))
        self.augmenting = Generator().manual_seed(_stream(plan.seed, "augment"))

    def advance(self, index: int) -> float:
        """Do one step and return its loss."""
        start = time.perf_counter()
        tiles, target, weight = self._batch()
        for group in self.optimiser.param_groups:
            group["lr"] = one_cycle(self.step, self.training.steps, self.training.learning_rate)
        # Dropout draws from torch's own generator: seeded by the step, it needs no checkpoint.
        with (
            _drawing_from(_stream(self.seed, f"step {self.step}")),
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype is torch.bfloat16),
        ):
            logits = self.network(tiles)
        loss = pixel_loss(self.training.loss, logits.float(), target, weight)
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(index, self.step, value, self.losses)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.losses.append(value)
        self.step += 1
        self.wall_s += time.perf_counter() - start
        return value

    def checkpoint(self) -> Checkpoint:
        """Return all that is needed to continue from here."""
        state = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                state[f"optimiser.{name}.{key}"] = value
        state["deck.left"] = self.deck.left
        state["deck.generator"] = self.deck.generator.get_state()
        state["augment.generator"] = self.augmenting.get_state()
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state["wall_s"] = torch.tensor(self.wall_s, dtype=torch.float64)
        state["identity"] = self.identity
        return _to_cpu(state)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        if not torch.equal(state.get("identity", torch.empty(0)), self.identity):
            raise InvalidInput(
                "the checkpoint is of another member",
                "recipe, seed, policy and tiles must be those of the checkpoint",
                "train the member without the checkpoint, from its first step",
            )
        self.network.load_state_dict(_under("network.", state))
        for name, parameter in self.network.named_parameters():
            moments = _under(f"optimiser.{name}.", state)
            # Moments have the memory format of their parameter, as AdamW makes them.
            self.optimiser.state[parameter] = {
                key: torch.empty_like(parameter).copy_(value) if value.ndim else value.clone()
                for key, value in moments.items()
            }
        self.deck.left = state["deck.left"].clone()
        self.deck.generator.set_state(state["deck.generator"])
        self.augmenting.set_state(state["augment.generator"])
        self.losses = state["losses"].tolist()
        self.step, self.wall_s = len(self.losses), float(state["wall_s"])

    def _batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return tiles (n, 1, y, x), targets (n, class, y, x) and weights of pixels, or None."""
        which = self.deck.deal(self.training.batch).numpy()
        maps = [self.tiles.target_nyx[which]]
        if self.weight_nyx is not None:
            maps.append(self.weight_nyx[which])
        maps_knyx = torch.from_numpy(np.stack(maps).astype(np.float32))
        tiles_nyx = torch.from_numpy(self.tiles.input_nyx[which].astype(np.float32, copy=False))
        tiles_nyx, maps_knyx = augment(tiles_nyx, maps_knyx, self.augmenting)
        kinds = torch.arange(1, self.recipe.network.classes + 1).view(1, -1, 1, 1)
        target = maps_knyx[0, :, None]
        target = (target > 0 if kinds.numel() == 1 else target == kinds).float()
        weight = maps_knyx[1, :, None].to(self.device) if len(maps) > 1 else None
        batch = tiles_nyx[:, None].to(self.device, memory_format=torch.channels_last)
        return batch, target.to(self.device), weight


class _Deck:
    """Tile numbers in random order, shuffled anew when all were used."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.generator = Generator().manual_seed(seed)
        self.left = torch.empty(0, dtype=torch.int64)

    def deal(self, size: int) -> Tensor:
        while len(self.left) < size:
            fresh = torch.randperm(self.count, generator=self.generator)
            self.left = torch.cat([self.left, fresh])
        dealt, self.left = self.left[:size], self.left[size:]
        return dealt


def _check_arguments(
    recipe: Recipe,
    tiles: Tiles,
    weight_nyx: ndarray | None,
    initial: Mapping[str, Tensor] | None,
) -> None:
    if not len(tiles.input_nyx):
        raise InvalidInput(
            "there are no tiles to train on", "at least one", "give frames with labelled atoms"
        )
    if weight_nyx is not None and weight_nyx.shape != tiles.target_nyx.shape:
        raise InvalidInput(
            f"weights of shape {weight_nyx.shape} for masks of {tiles.target_nyx.shape}",
            "one weight for each pixel of each mask",
        )
    if recipe.strategy == "swag" or (recipe.strategy == "baseline" and initial is None):
        raise InvalidSpec(
            f"strategy: {recipe.strategy!r} cannot be trained here",
            "'scratch', or 'baseline' with weights to start from",
            "set strategy: scratch in the recipe",
        )


def _stream(seed: int, purpose: str) -> int:
    """Return the seed of one stream; streams of one or of several members are independent."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8]) >> 1


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Seed the generator of torch inside the block and restore its state after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _identity(recipe: Recipe, plan: MemberPlan, data_digest: str) -> Tensor:
    content = recipe.model_dump(mode="json", include={"network", "training", "tiles", "strategy"})
    text = json.dumps([content, plan.model_dump(mode="json"), data_digest], sort_keys=True)
    digest = hashlib.sha256(text.encode()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def _diverged(index: int, step: int, value: float, losses: list[float]) -> MemberDiverged:
    last = f"the last finite loss was {losses[-1]:.4g}" if losses else "no loss was finite before"
    return MemberDiverged(
        f"member {index} diverged: loss {value} at step {step}",
        last,
        "lower training.learning_rate, or set training.precision: float32",
    )


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _to_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU that later steps do not change."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}

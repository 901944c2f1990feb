"""One training in the store: its inputs, and the state of each member.

    <store>/runs/<digest>/member-03.ckpt     partly trained: safetensors, replaced as a whole
                          member-03.done     weights and card: safetensors
                          member-03.failed   the error, as JSON

The digest covers recipe, policies, seeds and frames. So the same job finds its run again, and
another job never does. Each file belongs to one member. The one rank that trains this member
writes it, as a whole or not at all. So nothing has to be merged, and a killed worker loses at most
`training.checkpoint_every` steps of each member in work. The checkpoints of Ray Train would put
the files of all members into one folder that is complete only when every rank has reported: ranks
would wait for each other, and a killed rank would undo the checkpoint of all.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from manybeam import __version__
from manybeam.data.disk import alone
from manybeam.data.frames import FrameSet
from manybeam.data.simulation import SIMULATOR
from manybeam.data.simulation.simulate import simulate
from manybeam.data.store import Store, open_store
from manybeam.data.tiles import Tiles, stage_tiles
from manybeam.errors import Corrupt, MemberDiverged
from manybeam.jobs.mailbox import Event, OnEvent
from manybeam.learn.nets.card import MemberCard
from manybeam.learn.nets.member import Member, load_weights, save_weights
from manybeam.learn.nets.shapes import BANDPASS
from manybeam.learn.training.fitted import fit_bandpass
from manybeam.learn.training.member import Checkpoint, train_member
from manybeam.learn.training.threshold import Labelled, centred
from manybeam.settings import settings
from manybeam.spec import Policy, Recipe

logger = logging.getLogger(__name__)

# Increased whenever the same recipe, seeds and frames give other members than before.
TRAINING = 3
CENTRING_FRAMES = 32  # new simulated frames; one number is fitted on them


@dataclass(frozen=True)
class Run:
    """A training that any process with the same store can continue.

    Args:
        recipe: the recipe.
        seed: seed of the job; it decides how tiles are cut.
        frames: URLs of the training FrameSets, by policy.
        store_url: the store of the run.
        digest: name of the run; see `name_run`.
        policies: policies whose frames are simulated. Thresholds are fitted only for members of
            these policies.
    """

    recipe: Recipe
    seed: int
    frames: dict[str, tuple[str, ...]]
    store_url: str
    digest: str
    policies: dict[str, Policy] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """Leave the open store out: a worker opens it again, with the settings it received."""
        return {name: value for name, value in vars(self).items() if name != "store"}

    @property
    def url(self) -> str:
        """URL of the run in the store."""
        return f"{self.store_url.rstrip('/')}/runs/{self.digest}"

    @cached_property
    def store(self) -> Store:
        """The part of the store that belongs to the run."""
        return open_store(self.url)

    def started(self) -> dict[int, str]:
        """Return `done`, `failed` or `ckpt` for each member that was started."""
        found: dict[int, str] = {}
        for key in self.store.list():
            name, _, state = key.partition(".")
            if name.startswith("member-") and found.get(int(name[7:])) != "done":
                found[int(name[7:])] = state
        return found

    def member(self, index: int) -> Member:
        """Return a finished member; raises NotFound, or Corrupt if its file is damaged."""
        state = load_weights(self.store.get(_key(index, "done")))
        card = json.loads(bytes(state["record"].numpy()))
        if "losses" in state:  # Versions before cards stored only what the plan does not say.
            plan = self.recipe.members[index]
            planned = {"seed": plan.seed, "policy": plan.policy, "recipe": self.recipe.of(plan)}
            card = {"index": index, **planned, **card, "losses": state["losses"].tolist()}
        weights = {
            key.removeprefix("weights."): value
            for key, value in state.items()
            if key.startswith("weights.")
        }
        return MemberCard.read(card).to_member(weights)

    def failure(self, index: int) -> MemberDiverged:
        """Return why a member failed; raises NotFound if it did not."""
        return MemberDiverged(*json.loads(self.store.get(_key(index, "failed"))))

    def train(self, index: int, report: OnEvent) -> None:
        """Train one member from its checkpoint to the end, or record why it failed.

        Raises:
            ManybeamError: any error except divergence. Divergence is recorded: the same seed
                would diverge again.
        """
        try:
            member = self._learn(index, report)
        except MemberDiverged as error:
            text = json.dumps([error.what, error.why, error.hint])
            self.store.put(_key(index, "failed"), text.encode())
            logger.warning("member failed", extra={"member": index, "why": str(error)})
        else:
            member = centred(member, self._held_out(member.policy))
            self.store.put(_key(index, "done"), _pack(member))
            extra = {"member": index, "loss": member.losses[-1], "wall_s": round(member.wall_s, 1)}
            logger.info("member trained", extra=extra)
        self.store.delete(_key(index, "ckpt"))

    def _learn(self, index: int, report: OnEvent) -> Member:
        """Return a member, trained or fitted on the frames of its policy."""
        plan = self.recipe.members[index]
        recipe = self.recipe.of(plan)
        tiles, steps = self.tiles(plan.policy), recipe.training.steps
        if recipe.network.name == BANDPASS:
            member = fit_bandpass(recipe, plan, index, self._labelled(plan.policy), tiles.digest)
            report(Event(index, steps, steps, member.losses[-1]))
            return member
        return train_member(
            recipe,
            plan,
            index,
            tiles,
            checkpoint=self._checkpoint(index),
            on_checkpoint=lambda state: self.store.put(_key(index, "ckpt"), save_weights(state)),
            on_step=lambda step, loss: report(Event(index, step, steps, loss)),
        )

    def _labelled(self, policy: str) -> list[Labelled]:
        """Return the training frames of a policy, with truth and pixel size."""
        framesets = [FrameSet.open(url) for url in self.frames[policy]]
        return [
            (one.frame(i), one.truth(i), one.pixel_size_pm(i))
            for one in framesets
            for i in range(len(one))
        ]

    def tiles(self, policy: str) -> Tiles:
        """Return the tiles of one policy; all ranks of this node share one copy on disk."""
        framesets = [FrameSet.open(url) for url in self.frames[policy]]
        cache = settings().cache / "tiles"
        with alone(cache / f"{self.digest}-{policy}.lock"):
            return stage_tiles(framesets, self.recipe.tiles, cache, seed=self.seed)

    def _held_out(self, policy: str) -> Iterator[Labelled]:
        """Yield frames of a policy that are not training frames."""
        if policy not in self.policies:
            return
        seed = seed_of("centre", self.seed, self.policies[policy].digest)
        made = simulate(self.policies[policy], CENTRING_FRAMES, seed=seed)
        yield from zip(made.frames_nyx, made.truth, map(float, made.pixel_size_pm), strict=True)

    def _checkpoint(self, index: int) -> Checkpoint | None:
        key = _key(index, "ckpt")
        if not self.store.exists(key):
            return None
        try:
            return load_weights(self.store.get(key))
        except Corrupt as error:
            extra = {"member": index, "why": str(error)}
            logger.warning("checkpoint was damaged; member starts again", extra=extra)
            return None


def name_run(recipe: Recipe, seed: int, frames: dict[str, tuple[str, ...]]) -> str:
    """Return the digest of all inputs that decide the result of a training, 32 hex digits.

    It covers the content of the frames, not their URLs. It covers the versions of this package,
    of the simulator and of the training, because other versions may train differently.
    """
    content = {
        "version": __version__,
        "simulator": SIMULATOR,
        "training": TRAINING,
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "frames": {
            policy: [FrameSet.open(url).digest for url in urls]
            for policy, urls in sorted(frames.items())
        },
    }
    return digest_of(content)


def digest_of(content: object) -> str:
    """Return the digest of plain data, 32 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def seed_of(*parts: object) -> int:
    """Return a seed of 31 bits for one purpose; seeds of other purposes are independent of it."""
    return int(digest_of([str(part) for part in parts])[:8], 16) >> 1


def _key(index: int, state: str) -> str:
    return f"member-{index:02d}.{state}"


def _pack(member: Member) -> bytes:
    card = MemberCard.of(member).to_json()
    state = {f"weights.{key}": value for key, value in member.weights.items()}
    state["record"] = torch.from_numpy(np.frombuffer(card, np.uint8).copy())
    return save_weights(state)

"""One training as it lies in the store: what it was planned from, and how far each member is.

    <store>/runs/<digest>/member-03.ckpt     part-trained: safetensors, replaced whole
                          member-03.done     weights, losses and record: safetensors
                          member-03.failed   the error, as JSON

The digest names recipe, policies, seeds and frames, so the same job finds its own run again and
another job never does. Each file belongs to one member and is written by the one rank that trains
it, whole or not at all. So there is nothing to merge and a killed worker costs at most
`training.checkpoint_every` steps of each member in work. Ray Train's own checkpoints would put all
members' files into one folder that is complete only when *every* rank has reported, a barrier at
which ranks wait for each other and which a kill takes back for all of them.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from manybeam import __version__
from manybeam.data.disk import alone
from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import SIMULATOR, simulate
from manybeam.data.store import Store, open_store
from manybeam.data.tiles import Tiles, stage_tiles
from manybeam.errors import Corrupt, MemberDiverged
from manybeam.learn.nets.bandpass import NAME as BANDPASS
from manybeam.learn.nets.member import Member, load_weights, save_weights
from manybeam.learn.training.fitted import fit_bandpass
from manybeam.learn.training.member import Checkpoint, train_member
from manybeam.learn.training.threshold import Labelled, centred
from manybeam.settings import settings
from manybeam.spec import Policy, Recipe

logger = logging.getLogger(__name__)

# Raised whenever the same recipe, seeds and frames come out as other members than before.
TRAINING = 2
CENTRING_FRAMES = 32  # simulated anew: one number is fitted on them


@dataclass(frozen=True)
class Event:
    """How far one member is: steps done of all, and the last loss."""

    member: int
    step: int
    steps: int
    loss: float


Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Run:
    """A training that any process with the same store can take up.

    Args:
        recipe: what is trained.
        seed: of the job; decides how tiles are cut.
        frames: URLs of the FrameSets each policy's members learn from.
        store_url: the store that holds the run.
        digest: name of the run; see `name_run`.
        policies: those whose frames are simulated; the thresholds of others' members stay.
    """

    recipe: Recipe
    seed: int
    frames: dict[str, tuple[str, ...]]
    store_url: str
    digest: str
    policies: dict[str, Policy] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """Leave the open store behind: a worker opens its own once it has the settings."""
        return {name: value for name, value in vars(self).items() if name != "store"}

    @property
    def url(self) -> str:
        """Where the run lies."""
        return f"{self.store_url.rstrip('/')}/runs/{self.digest}"

    @cached_property
    def store(self) -> Store:
        """The run's own part of the store."""
        return open_store(self.url)

    def started(self) -> dict[int, str]:
        """Return `done`, `failed` or `ckpt` for each member that has got anywhere."""
        found: dict[int, str] = {}
        for key in self.store.list():
            name, _, state = key.partition(".")
            if name.startswith("member-") and found.get(int(name[7:])) != "done":
                found[int(name[7:])] = state
        return found

    def member(self, index: int) -> Member:
        """Return a finished member; raises NotFound, or Corrupt where its file is damaged."""
        state = load_weights(self.store.get(_key(index, "done")))
        record = json.loads(bytes(state["record"].numpy()))
        plan = self.recipe.members[index]
        return Member(
            index=index,
            seed=plan.seed,
            policy=plan.policy,
            recipe=self.recipe.of(plan),
            weights={
                key.removeprefix("weights."): value
                for key, value in state.items()
                if key.startswith("weights.")
            },
            losses=tuple(state["losses"].tolist()),
            wall_s=record["wall_s"],
            data_digest=record["data_digest"],
        )

    def failure(self, index: int) -> MemberDiverged:
        """Return why a member failed; raises NotFound if it did not."""
        return MemberDiverged(*json.loads(self.store.get(_key(index, "failed"))))

    def train(self, index: int, tell: Tell) -> None:
        """Train one member from where it is to its end, or to the record of its failure.

        Raises:
            ManybeamError: anything but divergence: that is a finding about this member, and
                the same seed would find it again.
        """
        try:
            member = self._learn(index, tell)
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

    def _learn(self, index: int, tell: Tell) -> Member:
        """Return a member trained, or fitted, on its policy's frames."""
        plan = self.recipe.members[index]
        recipe = self.recipe.of(plan)
        tiles, steps = self.tiles(plan.policy), recipe.training.steps
        if recipe.network.name == BANDPASS:
            member = fit_bandpass(recipe, plan, index, self._labelled(plan.policy), tiles.digest)
            tell(Event(index, steps, steps, member.losses[-1]))
            return member
        return train_member(
            recipe,
            plan,
            index,
            tiles,
            checkpoint=self._checkpoint(index),
            on_checkpoint=lambda state: self.store.put(_key(index, "ckpt"), save_weights(state)),
            on_step=lambda step, loss: tell(Event(index, step, steps, loss)),
        )

    def _labelled(self, policy: str) -> list[Labelled]:
        """Return the frames that members of a policy learn from, with truth and pixel size."""
        framesets = [FrameSet.open(url) for url in self.frames[policy]]
        return [
            (one.frame(i), one.truth(i), one.pixel_size_pm(i))
            for one in framesets
            for i in range(len(one))
        ]

    def tiles(self, policy: str) -> Tiles:
        """Return the tiles of one policy, staged once on this node however many ranks ask."""
        framesets = [FrameSet.open(url) for url in self.frames[policy]]
        cache = settings().home / "cache" / "tiles"
        with alone(cache / f"{self.digest}-{policy}.lock"):
            return stage_tiles(framesets, self.recipe.tiles, cache, seed=self.seed)

    def _held_out(self, policy: str) -> Iterator[Labelled]:
        """Yield frames of a policy that are not among those its members learn from."""
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
            logger.warning("checkpoint was damaged; member starts anew", extra=extra)
            return None


def name_run(recipe: Recipe, seed: int, frames: dict[str, tuple[str, ...]]) -> str:
    """Return the digest of all that decides a training's outcome, 32 hex digits.

    Frames enter by their content, not by their place; so do the versions of this package, of its
    simulator and of its training, as others might train otherwise.
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
    """Return 32 hex digits that name plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def seed_of(*parts: object) -> int:
    """Return a seed of 31 bits for one purpose: other purposes get unrelated ones."""
    return int(digest_of([str(part) for part in parts])[:8], 16) >> 1


def _key(index: int, state: str) -> str:
    return f"member-{index:02d}.{state}"


def _pack(member: Member) -> bytes:
    record = json.dumps({"wall_s": member.wall_s, "data_digest": member.data_digest}).encode()
    state = {f"weights.{key}": value for key, value in member.weights.items()}
    state["losses"] = torch.tensor(member.losses, dtype=torch.float64)
    state["record"] = torch.from_numpy(np.frombuffer(record, np.uint8).copy())
    return save_weights(state)

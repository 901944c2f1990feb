"""The card of a member: one form wherever a member is stored, and the forms before it are read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manybeam.errors import Corrupt
from manybeam.jobs.run import Run
from manybeam.learn.adaptation.acceptance import Assessment
from manybeam.learn.adaptation.step_checkpoint import Attempt, Step, pack, unpack
from manybeam.learn.nets.card import MemberCard
from manybeam.learn.nets.member import Member, save_weights
from manybeam.spec.recipe import MemberPlan, Network, Recipe

RECIPE = Recipe(
    id="tiny",
    network=Network(filters=2, levels=1),
    members=(
        MemberPlan(seed=5, policy="broad"),
        MemberPlan(seed=7, policy="dirty", network=Network(filters=3, levels=1)),
    ),
)
LOSSES = (0.7, 0.1 + 0.2)
MEMBER = Member(
    index=1,
    seed=7,
    policy="dirty",
    recipe=RECIPE.of(RECIPE.members[1]),
    weights={"head.weight": torch.arange(3.0)},
    losses=LOSSES,
    wall_s=1.5,
    data_digest="d" * 32,
)
# As Manybeam 0.1.0 wrote it into the zoo, and into packages without the line breaks.
OLD_CARD = """{
 "index": 3,
 "seed": 7,
 "policy": "broad",
 "parent": "graphene@1/03",
 "data_digest": "dddddddddddddddddddddddddddddddd",
 "wall_s": 1.5,
 "losses": [
  0.7,
  0.30000000000000004
 ],
 "code_version": "0.1.0",
 "recipe": {
  "id": "tiny", "version": 1, "title": "",
  "network": {"name": "unet", "filters": 12, "levels": 3, "classes": 1, "dropout": 0.0},
  "training": {
   "loss": "bce+dice", "learning_rate": 0.003, "weight_decay": 0.0001, "steps": 400,
   "batch": 16, "precision": "auto", "checkpoint_every": 100
  },
  "tiles": {
   "tile_px": 96, "pixel_size_pm": 16.0, "mask_radius_pm": 42.0, "normalise": "frame",
   "local_nm": 1.5, "elements": [], "frames_per_policy": 128
  },
  "strategy": "scratch",
  "members": [{"seed": 7, "policy": "broad", "network": null}]
 }
}"""


def is_same(first: Member | None, second: Member | None) -> bool:
    assert first is not None
    assert second is not None
    bare = [dataclasses.replace(one, weights={}) for one in (first, second)]
    weights = [{name: value.tolist() for name, value in m.weights.items()} for m in (first, second)]
    return bare[0] == bare[1] and weights[0] == weights[1]


def bytes_of(record: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(json.dumps(record).encode(), np.uint8).copy())


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(MEMBER, id="trained"),
        pytest.param(dataclasses.replace(MEMBER, parent="graphene@1/01"), id="adapted"),
        pytest.param(dataclasses.replace(MEMBER, losses=()), id="without losses"),
    ],
)
def test_a_member_comes_back_from_its_card_and_its_weights(member: Member) -> None:
    card = MemberCard.read(MemberCard.of(member).to_json())
    assert is_same(card.to_member(member.weights), member)


def test_a_card_of_the_zoo_before_cards_were_a_model_is_read() -> None:
    member = MemberCard.read(OLD_CARD.encode()).to_member({})
    assert (member.index, member.seed, member.policy) == (3, 7, "broad")
    assert (member.parent, member.losses, member.wall_s) == ("graphene@1/03", LOSSES, 1.5)
    assert member.recipe.network.filters == 12


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="a list"),
        pytest.param(OLD_CARD.replace('"seed": 7,\n', "", 1).encode(), id="no seed"),
        pytest.param(OLD_CARD.replace("1.5", "-1").encode(), id="a negative time"),
        pytest.param(OLD_CARD.replace('"index"', '"x": 1, "index"').encode(), id="unknown field"),
    ],
)
def test_what_is_no_card_is_refused(card: bytes) -> None:
    with pytest.raises(Corrupt, match="card"):
        MemberCard.read(card)


# -- a run --------------------------------------------------------------------------------------
def test_a_member_that_a_run_stored_before_cards_is_read(tmp_path: Path) -> None:
    run = Run(RECIPE, seed=0, frames={}, store_url=str(tmp_path), digest="0" * 32)
    old = {
        "weights.head.weight": MEMBER.weights["head.weight"],
        "losses": torch.tensor(MEMBER.losses, dtype=torch.float64),
        "record": bytes_of({"wall_s": 1.5, "data_digest": "d" * 32}),
    }
    run.store.put("member-01.done", save_weights(old))
    assert is_same(run.member(1), MEMBER)


# -- a step of a round --------------------------------------------------------------------------
STEP = Step(
    member=1,
    accepted=True,
    before=Assessment(0.5, 0.6),
    after=Assessment(0.6, 0.7, held={"a": (0.7, 0.1)}),
    why="adapted",
)
TUNED = dataclasses.replace(MEMBER, weights={"head.weight": torch.ones(2)}, losses=(0.1,))


@pytest.mark.parametrize(
    ("child", "tuned"),
    [
        pytest.param(TUNED, TUNED, id="tuned"),
        pytest.param(dataclasses.replace(MEMBER, data_digest="e" * 32), TUNED, id="not tuned"),
        pytest.param(None, TUNED, id="refused"),
        pytest.param(None, None, id="diverged"),
    ],
)
def test_a_step_comes_back_as_it_was_stored(child: Member | None, tuned: Member | None) -> None:
    attempt = unpack(pack(Attempt(STEP, child, tuned)), MEMBER)
    assert attempt.step == STEP
    for found, given in ((attempt.child, child), (attempt.tuned, tuned)):
        assert (found is given is None) or is_same(found, given)
    assert (attempt.child is attempt.tuned) == (child is tuned)


def test_a_step_that_was_stored_before_cards_is_read() -> None:
    card = {
        "recipe": TUNED.recipe.model_dump(mode="json"),
        "wall_s": TUNED.wall_s,
        "data_digest": TUNED.data_digest,
    }
    record = {"step": dataclasses.asdict(STEP), "is_same": True, "child": card}
    old = {
        "child.head.weight": TUNED.weights["head.weight"],
        "child losses": torch.tensor(TUNED.losses, dtype=torch.float64),
        "record": bytes_of(record),
    }
    start = dataclasses.replace(MEMBER, parent="graphene@1/01")
    attempt = unpack(save_weights(old), start)
    assert attempt.step == STEP
    assert attempt.child is attempt.tuned
    assert is_same(attempt.child, dataclasses.replace(TUNED, parent="graphene@1/01"))

"""A finished step of a round as bytes, so that a round that was stopped goes on where it was.

One safetensors file holds the decision and the networks it left: nothing in it is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from manybeam.learn.adaptation.acceptance import Assessment
from manybeam.learn.nets.member import Member, load_weights, save_weights
from manybeam.spec.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """What a round did with one member.

    Attributes:
        member: index of the member.
        accepted: whether what came out passed the gate.
        before: where it stood when the round began.
        after: where it stands; None where tuning diverged and nothing else passed.
        why: the decision in words.
        round: number of the round, from 1.
    """

    member: int
    accepted: bool
    before: Assessment
    after: Assessment | None
    why: str
    round: int = 1


@dataclass(frozen=True)
class Attempt:
    """A step and the networks it left.

    Attributes:
        step: what was decided.
        child: the adapted member, if one passed.
        tuned: the tuned member, passed or not; None where it diverged.
    """

    step: Step
    child: Member | None
    tuned: Member | None


class StepStore(Protocol):
    """Where finished steps are kept under a name."""

    def get(self, key: str) -> bytes | None:
        """Return what was put there, whole, or None."""

    def put(self, key: str, data: bytes) -> None:
        """Keep data, whole or not at all."""


def pack(attempt: Attempt) -> bytes:
    """Return a finished step as the bytes of a safetensors file."""
    state: dict[str, Tensor] = {}
    record: dict[str, Any] = {"step": asdict(attempt.step)}
    is_same = attempt.child is attempt.tuned
    record["is_same"] = is_same
    for role, member in (("child", attempt.child), ("tuned", None if is_same else attempt.tuned)):
        if member is not None:
            record[role] = _card(member)
            state |= {f"{role}.{name}": value for name, value in member.weights.items()}
            state[f"{role} losses"] = torch.tensor(member.losses, dtype=torch.float64)
    text = json.dumps(record).encode()
    state["record"] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
    return save_weights(state)


def unpack(data: bytes, start: Member) -> Attempt:
    """Return the step that `pack` was given.

    Args:
        data: what it returned.
        start: the member the step began with.

    Raises:
        Corrupt: the bytes are not that.
    """
    state = load_weights(data)
    record = json.loads(bytes(state["record"].numpy()))
    child = _member("child", record, state, start)
    tuned = child if record["is_same"] else _member("tuned", record, state, start)
    return Attempt(_step(record["step"]), child, tuned)


def _card(member: Member) -> dict[str, Any]:
    return {
        "recipe": member.recipe.model_dump(mode="json"),
        "wall_s": member.wall_s,
        "data_digest": member.data_digest,
    }


def _member(
    role: str, record: Mapping[str, Any], state: Mapping[str, Tensor], start: Member
) -> Member | None:
    if role not in record:
        return None
    card, prefix = record[role], f"{role}."
    return replace(
        start,
        recipe=Recipe.model_validate(card["recipe"]),
        weights={
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        },
        losses=tuple(state[f"{role} losses"].tolist()),
        wall_s=card["wall_s"],
        data_digest=card["data_digest"],
    )


def _step(plain: Mapping[str, Any]) -> Step:
    after = plain["after"]
    assessments = {"before": _standing(plain["before"]), "after": after and _standing(after)}
    return Step(**{**plain, **assessments})


def _standing(plain: Mapping[str, Any]) -> Assessment:
    """Return a standing; JSON has made lists of the pairs."""
    held = {name: (pair[0], pair[1]) for name, pair in plain["held"].items()}
    return Assessment(**{**plain, "held": held})

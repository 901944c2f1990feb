"""A finished step of a round as bytes, so that a stopped round continues where it was.

One safetensors file holds the decision and the networks. Nothing in it is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from manybeam.learn.adaptation.acceptance import Assessment
from manybeam.learn.nets.card import MemberCard
from manybeam.learn.nets.member import Member, load_weights, save_weights


@dataclass(frozen=True)
class Step:
    """The result of a round for one member.

    Attributes:
        member: index of the member.
        accepted: whether the result passed the gate.
        before: its scores when the round began.
        after: its scores at the end; None if fine-tuning diverged and nothing else passed.
        why: the reason of the decision, as text.
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
    """A step and its networks.

    Attributes:
        step: the decision.
        child: the adapted member; None if none passed.
        tuned: the fine-tuned member, passed or not; None if it diverged.
    """

    step: Step
    child: Member | None
    tuned: Member | None


class StepStore(Protocol):
    """Where finished steps are stored by name."""

    def get(self, key: str) -> bytes | None:
        """Return the stored data, or None."""

    def put(self, key: str, data: bytes) -> None:
        """Store data, whole or not at all."""


def pack(attempt: Attempt) -> bytes:
    """Return a finished step as the bytes of a safetensors file."""
    state: dict[str, Tensor] = {}
    record: dict[str, Any] = {"step": asdict(attempt.step)}
    is_same = attempt.child is attempt.tuned
    record["is_same"] = is_same
    for role, member in (("child", attempt.child), ("tuned", None if is_same else attempt.tuned)):
        if member is not None:
            record[role] = MemberCard.of(member).model_dump(mode="json")
            state |= {f"{role}.{name}": value for name, value in member.weights.items()}
    text = json.dumps(record).encode()
    state["record"] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
    return save_weights(state)


def unpack(data: bytes, start: Member) -> Attempt:
    """Return the step that `pack` made bytes of.

    Args:
        data: the bytes.
        start: the member that the step began with.

    Raises:
        Corrupt: the bytes are no step.
    """
    state = load_weights(data)
    record = json.loads(bytes(state["record"].numpy()))
    child = _member("child", record, state, start)
    tuned = child if record["is_same"] else _member("tuned", record, state, start)
    return Attempt(_step(record["step"]), child, tuned)


def _member(
    role: str, record: Mapping[str, Any], state: Mapping[str, Tensor], start: Member
) -> Member | None:
    if role not in record:
        return None
    card, prefix = record[role], f"{role}."
    if "losses" not in card:  # Versions before cards stored only what the step had changed.
        losses = state[f"{role} losses"].tolist()
        card = {**MemberCard.of(start).model_dump(), **card, "losses": losses}
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    return MemberCard.read(card).to_member(weights)


def _step(plain: Mapping[str, Any]) -> Step:
    after = plain["after"]
    assessments = {"before": _assessment(plain["before"]), "after": after and _assessment(after)}
    return Step(**{**plain, **assessments})


def _assessment(plain: Mapping[str, Any]) -> Assessment:
    """Return an assessment from JSON, in which pairs are lists."""
    held = {name: (pair[0], pair[1]) for name, pair in plain["held"].items()}
    return Assessment(**{**plain, "held": held})

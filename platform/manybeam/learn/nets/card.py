"""The card of a member: everything but the weights, as one JSON document.

Each place that stores a member stores its weights and this card: a run, a step checkpoint, the
zoo and a package.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError

from manybeam import __version__
from manybeam.errors import Corrupt
from manybeam.spec.imaging import Model
from manybeam.spec.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from manybeam.learn.nets.member import Member


class MemberCard(Model):
    """What makes a member again: its recipe, seed and policy; and how its training went.

    The limits hold for cards of strangers too.

    Attributes:
        index: number of the member in its ensemble.
        seed: of initialisation, order and augmentation.
        policy: id of the policy its frames were drawn from.
        parent: reference of the member it was adapted from; "" if trained from scratch.
        data_digest: digest of the tiles it was trained on.
        wall_s: time its training took, in seconds.
        losses: loss of each step.
        code_version: version of Manybeam that wrote the card.
        recipe: architecture and settings of the training.
    """

    index: int = Field(ge=0, le=999_999)
    seed: int
    policy: str = Field(max_length=100)
    parent: str = Field("", max_length=400)
    data_digest: str = Field(max_length=200)
    wall_s: float = Field(ge=0)
    losses: tuple[float, ...] = ()
    code_version: str = Field("", max_length=100)
    recipe: Recipe

    @classmethod
    def of(cls, member: "Member") -> Self:
        """Return the card of a member, written by this version."""
        return cls(
            index=member.index,
            seed=member.seed,
            policy=member.policy,
            parent=member.parent,
            data_digest=member.data_digest,
            wall_s=member.wall_s,
            losses=tuple(map(float, member.losses)),
            code_version=__version__,
            recipe=member.recipe,
        )

    @classmethod
    def read(cls, card: bytes | Mapping[str, Any]) -> Self:
        """Return the card that a JSON document holds.

        Args:
            card: the document, or what it was parsed into.

        Raises:
            Corrupt: it is no card, or has a field that this version does not know.
        """
        try:
            if isinstance(card, bytes):
                return cls.model_validate_json(card)
            return cls.model_validate(card)
        except ValidationError as error:
            raise Corrupt(
                f"the card of a member cannot be read: {error.errors()[0]['msg']}",
                f"{error.error_count()} of its fields are wrong",
                "update Manybeam if a newer one wrote it; else restore it from a backup",
            ) from error

    def to_json(self) -> bytes:
        """Return the card as a JSON document; `read` returns the same card."""
        return self.model_dump_json(indent=1).encode()

    def to_member(self, weights: "Mapping[str, Tensor]") -> "Member":
        """Return the member that has this card and these weights."""
        from manybeam.learn.nets.member import Member

        return Member(
            index=self.index,
            seed=self.seed,
            policy=self.policy,
            recipe=self.recipe,
            weights=weights,
            losses=self.losses,
            wall_s=self.wall_s,
            data_digest=self.data_digest,
            parent=self.parent,
        )

"""A version that is to take an alias: what the gates say of it, and what came of it."""

from dataclasses import dataclass

from manybeam.zoo.lifecycle.gates import Verdict
from manybeam.zoo.records import Record


@dataclass(frozen=True)
class Proposal:
    """A version, the one it would replace, and what the gates say.

    Attributes:
        new: the version.
        old: reference of the version the alias points at now; "" if at none.
        alias: `serving` or `candidate`.
        verdicts: of every gate; empty if the alias points at the version already.
    """

    new: Record
    old: str
    alias: str
    verdicts: tuple[Verdict, ...] = ()

    @property
    def refusals(self) -> tuple[Verdict, ...]:
        """The verdicts that stand against it."""
        return tuple(one for one in self.verdicts if not one.passed)

    @property
    def is_there(self) -> bool:
        """Whether the alias points at the version already."""
        return self.old == self.new.ref


@dataclass(frozen=True)
class Promotion:
    """An alias that was moved.

    Attributes:
        ref: the version it points at now, as `graphene@3`.
        alias: `serving` or `candidate`.
        previous: the version it pointed at before; "" if at none.
        verdicts: what the gates said.
        is_forced: whether any of them was overridden.
        number: of its record in the audit log; 0 if the alias was there already.
    """

    ref: str
    alias: str
    previous: str
    verdicts: tuple[Verdict, ...] = ()
    is_forced: bool = False
    number: int = 0

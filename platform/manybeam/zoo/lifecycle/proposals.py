"""The proposal to give a version an alias, with the results of the gates; and its outcome."""

from dataclasses import dataclass

from manybeam.zoo.lifecycle.gates import Verdict
from manybeam.zoo.records import Record


@dataclass(frozen=True)
class PromotionProposal:
    """A version, the version it would replace, and the results of the gates.

    Attributes:
        new: the version.
        old: reference of the version of the alias now; "" if there is none.
        alias: `serving` or `candidate`.
        verdicts: results of all gates; empty if the version has the alias already.
    """

    new: Record
    old: str
    alias: str
    verdicts: tuple[Verdict, ...] = ()

    @property
    def refusals(self) -> tuple[Verdict, ...]:
        """The results of the gates that refuse it."""
        return tuple(one for one in self.verdicts if not one.passed)

    @property
    def is_there(self) -> bool:
        """Whether the version has the alias already."""
        return self.old == self.new.ref


@dataclass(frozen=True)
class Promotion:
    """An alias that was moved.

    Attributes:
        ref: the version of the alias now, as `graphene@3`.
        alias: `serving` or `candidate`.
        previous: the version of the alias before; "" if there was none.
        verdicts: results of the gates.
        is_forced: whether a gate was overridden.
        number: number of the record in the audit log; 0 if the alias was not moved.
    """

    ref: str
    alias: str
    previous: str
    verdicts: tuple[Verdict, ...] = ()
    is_forced: bool = False
    number: int = 0

"""A version in memory, and the source of versions of a predictor."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from manybeam.zoo.matrix import Matrix

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.predictor.performance import PerformancePredictor
    from manybeam.zoo.records import Record


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """One version that can answer.

    Attributes:
        ensemble: its members.
        matrix: its members x conditions scores; may be empty.
        performance: its performance predictor; None if it was never calibrated.
        record: its record in the zoo; None for members that are in no zoo.
        notes: what is out of date, because the zoo did not answer.
    """

    ensemble: "Ensemble"
    matrix: Matrix = field(default_factory=Matrix)
    performance: "PerformancePredictor | None" = None
    record: "Record | None" = None
    notes: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """Its reference, as `graphene@3`; "" if it is in no zoo."""
        return self.record.ref if self.record else ""


class Versions(Protocol):
    """The source of versions of a predictor."""

    def serving(self) -> Sequence[str]:
        """Return the references that `auto` selects among; raises NoCapacity if there are none."""

    def get(self, ref: str) -> LoadedVersion:
        """Return a version by its reference; raises UnknownRef or Corrupt."""


@dataclass(frozen=True)
class OneVersion:
    """A single version, for every reference."""

    version: LoadedVersion

    def serving(self) -> Sequence[str]:
        """Return its reference."""
        return (self.version.ref,)

    def get(self, ref: str) -> LoadedVersion:  # noqa: ARG002 - there is no other
        """Return it."""
        return self.version

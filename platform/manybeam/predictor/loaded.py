"""A version ready to answer, and where a predictor takes versions from."""

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
        performance: what its calibration set shows; None if it was never calibrated.
        record: what the zoo keeps of it; None of members that are in no zoo.
        notes: what is out of date in it, because the zoo did not answer.
    """

    ensemble: "Ensemble"
    matrix: Matrix = field(default_factory=Matrix)
    performance: "PerformancePredictor | None" = None
    record: "Record | None" = None
    notes: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """The reference that always means it; "" of members that are in no zoo."""
        return self.record.ref if self.record else ""


class Versions(Protocol):
    """Where a predictor takes versions from."""

    def serving(self) -> Sequence[str]:
        """Return the references that `auto` selects among; raises NoCapacity if there are none."""

    def get(self, ref: str) -> LoadedVersion:
        """Return a version by its reference; raises UnknownRef or Corrupt."""


@dataclass(frozen=True)
class OneVersion:
    """A single version, by whatever name it is asked for."""

    version: LoadedVersion

    def serving(self) -> Sequence[str]:
        """Return its reference."""
        return (self.version.ref,)

    def get(self, ref: str) -> LoadedVersion:  # noqa: ARG002 - there is no other
        """Return it."""
        return self.version

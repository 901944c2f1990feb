"""The predicted F1 of one answerer, with its interval."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

Weights = Mapping[int, float]  # index of a member -> its share in an answer


@dataclass(frozen=True)
class PredictedF1:
    """The predicted F1 of one answerer.

    Attributes:
        f1: expected F1, 0 to 1.
        low: lower end of the 90 % interval.
        high: upper end of the 90 % interval.
        parts: the values it was predicted from, by name: those of `SCORES` that apply,
            `simulated`, `resembled`.
        if_chosen: the 90 % interval if this answerer was chosen because its prediction is the
            highest. It usually reaches lower, because the highest of several predictions is more
            often too high.
    """

    f1: float
    low: float
    high: float
    parts: Mapping[str, float]
    if_chosen: tuple[float, float] = (0.0, 1.0)

    @property
    def chosen(self) -> "PredictedF1":
        """The same for an answerer that was chosen for its prediction."""
        return replace(self, low=self.if_chosen[0], high=self.if_chosen[1])

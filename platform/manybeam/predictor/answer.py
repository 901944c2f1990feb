"""What is asked about a frame, and what is said: atoms and maps, who answered, how sure, and why.

Axis letters: y row, x column.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from manybeam.data.io.frame import Frame
    from manybeam.learn.nets.ensemble import Prediction
    from manybeam.predictor.performance import PredictedF1
    from manybeam.predictor.selection import Selection
    from manybeam.predictor.transferred_calibration import TransferredCalibration
    from manybeam.zoo.records import Record


AUTO = "auto"  # any ensemble that serves


@dataclass(frozen=True)
class Question:
    """What is asked about a frame.

    Attributes:
        ref: who may answer: a REF, whose members then answer together, or `auto`: any ensemble
            that serves, with the members that selection chooses.
        members: indices of the members of REF that answer; all if left out.
        false_atoms: bound on the share of an answer's atoms that may be false; 0 for none.
        is_selecting: selection decides which members of REF answer; of `auto` it always does.
        is_raw: the members' own answer is wanted: no calibration, predicted F1 or drift. What
            members are measured by is this.
    """

    ref: str = AUTO
    members: tuple[int, ...] = ()
    false_atoms: float = 0.0
    is_selecting: bool = False
    is_raw: bool = False

    @property
    def is_auto(self) -> bool:
        """Whether selection decides who answers."""
        return self.ref == AUTO


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one question about one frame.

    Attributes:
        frame: what was asked about.
        question: what was asked.
        record: the version that answered; None of members that are in no zoo.
        prediction: what its members say: atoms with calibrated probabilities where the version
            was calibrated, and maps as the networks give them.
        selection: the members ranked for this frame; None of a raw answer, or if the frame is too
            small to tell what it looks like.
        whole: what all members said, with the map of each.
        notes: what limits this answer, a sentence each.
        seconds: time spent in each stage.
    """

    frame: "Frame"
    question: Question
    record: "Record | None"
    prediction: "Prediction"
    selection: "Selection | None"
    whole: "Prediction" = field(repr=False)
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def atoms(self) -> NDArray[np.float32]:
        """Float32 (atoms, 7): y, x, class, probability, spread_y_px, spread_x_px, votes."""
        return self.prediction.atoms

    @property
    def mean_yx(self) -> NDArray[np.float32]:
        """Mean over the members of the probability of an atom."""
        return self.prediction.mean_yx

    @property
    def std_yx(self) -> NDArray[np.float32]:
        """Standard deviation over the members."""
        return self.prediction.std_yx

    @property
    def mi_yx(self) -> "NDArray[np.float32] | None":
        """Mutual information of members and "an atom or none", in nats."""
        return self.prediction.mi_yx

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the members that answered."""
        return self.prediction.members

    @property
    def ref(self) -> str:
        """The reference that always means the version that answered."""
        return self.record.ref if self.record else ""

    @property
    def verdict(self) -> str:
        """`ok`, `out-of-distribution`, or "" if it is unknown."""
        return self.selection.verdict if self.selection else ""

    @property
    def is_drifted(self) -> bool | None:
        """Whether the frame is out of distribution; None if it was not asked."""
        return self.selection.verdict != "ok" if self.selection else None

    @property
    def drift_score(self) -> float | None:
        """Distance of the frame from what is known, 1 being usual; None if unknown."""
        return self.selection.drift_score if self.selection else None

    @property
    def predicted_f1(self) -> "PredictedF1 | None":
        """Expected F1 of this answer with its 90 % interval; None if unknown.

        Under a bound that leaves atoms out it is unknown: it was learned with all atoms.
        """
        if self.selection is None:
            return None
        calibration = self.selection.transferred
        if calibration is not None and calibration.kept < 1:
            return None
        return self.selection.predicted(self.members)

    @property
    def calibration(self) -> "TransferredCalibration | None":
        """What is behind the probabilities; None if they are the networks' own."""
        return self.selection.transferred if self.selection else None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why these members answered, a short sentence each."""
        return self.selection.reasons if self.selection else ()

    @property
    def why(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons)

    def _repr_html_(self) -> str:
        return self.prediction._repr_html_()

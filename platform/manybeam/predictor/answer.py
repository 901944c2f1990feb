"""A question about a frame, and its answer: atoms, maps, members, predicted F1 and reasons.

Axis letters: y row, x column.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manybeam.data.markup import facts_html
from manybeam.spec.elements import symbols_of

if TYPE_CHECKING:
    from manybeam.data.io.frame import Frame
    from manybeam.learn.nets.prediction import Prediction
    from manybeam.predictor.f1.predicted import PredictedF1
    from manybeam.predictor.selection import Selection
    from manybeam.predictor.transferred_calibration import TransferredCalibration
    from manybeam.zoo.records import Record


AUTO = "auto"  # any ensemble that serves


@dataclass(frozen=True)
class Question:
    """A question about a frame.

    Attributes:
        ref: a REF, or `auto`. The members of a REF answer together; for `auto`, selection chooses
            an ensemble that serves, and its members.
        members: indices of the members of REF that answer; all if left out.
        false_atoms: bound on the share of false atoms in the answer; 0 for none.
        is_selecting: selection chooses among the members of REF; for `auto` it always does.
        is_raw: the answer has no calibration, predicted F1 or drift. Members are measured by
            raw answers.
        is_size_trusted: the stated pixel size is not compared with the frame.
        shares: the share of each of `members` in the answer; equal if left out.
        is_quick: only the networks that answer run. Calibration, predicted F1 and drift rest on
            the summary of the frame (`predictor.f1.by_summary`), and so does the choice for `auto`.
        why: why these members were named, for the reasons.
        keeps_members: a quick answer leaves none of them out, even if it will be late.
    """

    ref: str = AUTO
    members: tuple[int, ...] = ()
    false_atoms: float = 0.0
    is_selecting: bool = False
    is_raw: bool = False
    is_size_trusted: bool = False
    shares: tuple[float, ...] = ()
    is_quick: bool = False
    why: str = ""
    keeps_members: bool = False

    @property
    def is_auto(self) -> bool:
        """Whether selection chooses the ensemble."""
        return self.ref == AUTO


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one question about one frame.

    Attributes:
        frame: the frame.
        question: the question.
        record: the version that answered; None for members that are in no zoo.
        prediction: the answer of its members: atoms, with calibrated probabilities if the version
            was calibrated, and maps as the networks give them.
        selection: the members ranked for this frame; None for a raw answer, or if the frame is
            too small for frame analysis.
        whole: the answer of all members that ran, with the map of each.
        notes: the limits of this answer, a sentence each.
        seconds: time spent in each stage.
        dropped: members that were left out to be in time.
        is_quick: whether only the networks that answered ran; see `Question.is_quick`.
    """

    frame: "Frame"
    question: Question
    record: "Record | None"
    prediction: "Prediction"
    selection: "Selection | None"
    whole: "Prediction" = field(repr=False)
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    dropped: tuple[int, ...] = ()
    is_quick: bool = False

    def lean(self, *, has_maps: bool = True) -> "Answer":
        """Return the answer without the maps of single members, where many answers are kept.

        Args:
            has_maps: whether mean, spread and mutual information of the answer stay.
        """
        own = self.prediction
        own = own.without_maps() if has_maps else own.atoms_only()
        return replace(self, prediction=own, whole=self.whole.atoms_only())

    @property
    def atoms(self) -> NDArray[np.float32]:
        """Float32 (atoms, 7): y, x, class, probability, spread_y_px, spread_x_px, votes."""
        return self.prediction.atoms

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbol of the element of each atom, as `Mo`; "" where members distinguish none."""
        return symbols_of(self.atoms[:, 2], self.prediction.elements)

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
        """The reference of the version that answered, as `graphene@3`; "" if it is in no zoo."""
        return self.record.ref if self.record else ""

    @property
    def verdict(self) -> str:
        """`ok`, `out-of-distribution`, `unknown`, or "" if the frame was not analysed."""
        return self.selection.verdict if self.selection else ""

    @property
    def is_drifted(self) -> bool | None:
        """Whether the frame is out of distribution; None if it is unknown."""
        return self.selection.is_drifted if self.selection else None

    @property
    def verdict_reasons(self) -> tuple[str, ...]:
        """Why the frame is out of distribution; none if it is not."""
        start = "out of distribution: "
        return tuple(one.removeprefix(start) for one in self.reasons if one.startswith(start))

    @property
    def drift_score(self) -> float | None:
        """Distance of the frame from known frames; 1 is usual, None unknown."""
        return self.selection.drift_score if self.selection else None

    @property
    def predicted_f1(self) -> "PredictedF1 | None":
        """Expected F1 of this answer with its 90 % interval; None if unknown.

        It was learned with all atoms, so it is unknown if a bound leaves atoms out.
        """
        if self.selection is None:
            return None
        calibration = self.selection.transferred
        if calibration is not None and calibration.kept < 1:
            return None
        return self.selection.predicted(self.members)

    @property
    def calibration(self) -> "TransferredCalibration | None":
        """The calibration of the probabilities; None if they are the networks' own."""
        return self.selection.transferred if self.selection else None

    @property
    def is_calibrated(self) -> bool:
        """Whether the predicted F1 comes from a calibration set."""
        return self.selection is not None and self.selection.is_calibrated

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why these members answered, a short sentence each."""
        return self.selection.reasons if self.selection else ()

    @property
    def why(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons)

    def _repr_html_(self) -> str:
        predicted = self.predicted_f1
        interval = "unknown"
        if predicted is not None:
            interval = f"{predicted.f1:.2f} ({predicted.low:.2f} to {predicted.high:.2f})"
        facts = [
            ("verdict", self.verdict or "unknown"),
            ("predicted F1", interval),
        ]
        return facts_html("Answer", facts, self.prediction._repr_html_())

"""An answer of the service as the command line has it, so that both write the same files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.frame import Frame
from manybeam.learn.nets.prediction import Prediction
from manybeam.predictor.answer import Answer, Question
from manybeam.predictor.f1.predicted import PredictedF1
from manybeam.predictor.transferred_calibration import TransferredCalibration
from manybeam.spec.elements import atomic_number_of
from manybeam.web.predict.results import Result

MAPS = ("mean", "std", "mi")


@dataclass(frozen=True, eq=False)
class ServedAnswer(Answer):
    """An answer that came over HTTP: its facts are those of `meta`; nothing is computed again."""

    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Result) -> "ServedAnswer":
        """Return the answer of a result."""
        meta, facts, arrays = result.meta, result.facts, result.arrays("atoms", "members", *MAPS)
        size_pm, error_pm = meta["pixel_size_pm"], meta["pixel_size_error_pm"]
        frame = Frame(
            result.frame_yx,
            size_pm,
            None,
            facts.name,
            facts.frame,
            error_pm,
            facts.notes,
        )
        prediction = _prediction(arrays, meta, facts.shape)
        question = Question(facts.ref, is_size_trusted=facts.is_size_trusted)
        return cls(frame, question, None, prediction, None, prediction, meta=meta)

    @property
    def ref(self) -> str:
        """The reference of the version that answered."""
        return str(self.meta["ref"])

    @property
    def verdict(self) -> str:
        """`ok`, `out-of-distribution`, `unknown`, or ""."""
        return str(self.meta["verdict"] or "")

    @property
    def is_drifted(self) -> bool | None:
        """Whether the frame is out of distribution; None if it is unknown."""
        flag: bool | None = self.meta["drift"]["flag"]
        return flag

    @property
    def predicted_f1(self) -> PredictedF1 | None:
        """Expected F1 with its 90 % interval; None if unknown."""
        told = self.meta["predicted_f1"]
        return PredictedF1(told["f1"], told["low"], told["high"], {}) if told else None

    @property
    def calibration(self) -> TransferredCalibration | None:
        """The calibration of the probabilities; None if they are the networks' own."""
        told = self.meta["calibration"]
        if told is None:
            return None
        values: dict[str, Any] = dict(told)
        if values["position_pm"] is None:  # JSON has no NaN
            values["position_pm"] = math.nan
        return TransferredCalibration(**values)

    @property
    def is_calibrated(self) -> bool:
        """Whether the predicted F1 comes from a calibration set; only such versions have one."""
        return self.meta["calibration"] is not None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why these members answered."""
        return tuple(self.meta["reasons"])


def _prediction(
    arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], shape: tuple[int, int]
) -> Prediction:
    rows, members = arrays["members"], tuple(meta["members"])
    numbers = (atomic_number_of(symbol) for symbol in meta["elements"])
    mean_yx, std_yx, mi_yx = (arrays[name].astype(np.float32) for name in MAPS)
    return Prediction(
        arrays["atoms"],
        [rows[rows[:, 0] == member, 1:] for member in members],
        members,
        shape,
        meta["pixel_size_pm"],
        tuple(number for number in numbers if number),
        _known=(mean_yx, std_yx, mi_yx),
    )

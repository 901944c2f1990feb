"""Answers of the service: frames of a request in, arrays and JSON out.

No Ray and no web here: what a replica answers is what this class answers in any process. Who
answers, calibrated how, is decided by `predictor.predictor.Predictor` alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.frame import Frame, stack_of
from manybeam.predictor.answer import Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions import ZooVersions
from manybeam.serve.content import answer_meta, arrays, selection_content
from manybeam.serve.query import RequestQuery
from manybeam.serve.wire import Frames
from manybeam.spec.facility import facility_library

if TYPE_CHECKING:
    from manybeam.spec import Condition


@dataclass(frozen=True)
class WireAnswer:
    """What a prediction gives back.

    Args:
        arrays: by the names of `query.WANTS`; of a stack also `atoms_frame`, `members_frame`.
        meta: who answered and why, as JSON holds it.
        seconds: time each stage took.
        is_drifted: whether a frame is out of distribution; None if that is unknown.
    """

    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    seconds: dict[str, float]
    is_drifted: bool | None = None


class Service:
    """Answers requests with the versions of one zoo; safe to use from several threads.

    Args:
        versions: who may answer.
    """

    def __init__(self, versions: ZooVersions) -> None:
        self.versions, self._predictor = versions, Predictor(versions)

    def listing(self) -> list[dict[str, Any]]:
        """Return one row for each ensemble held, as a table or JSON shows it."""
        return [
            {
                "ref": record.ref,
                "name": record.name,
                "version": record.version,
                "aliases": list(record.aliases),
                "members": list(ensemble.indices),
                "failed": list(record.failed),
                "created": record.created.isoformat(),
            }
            for record, ensemble in self.versions.held()
        ]

    def predict(
        self, ref: str, frames: Frames, query: RequestQuery, deadline: Deadline | None = None
    ) -> WireAnswer:
        """Return the answer to one request; each frame of a stack is answered by itself.

        Args:
            ref: REF of the contract, or `auto`: then selection decides for each frame.
            frames: what to look at.
            query: what to say about it.
            deadline: times the stages; it is kept between frames.

        Raises:
            DeadlineExceeded: the time is up.
            NotFound: no such ensemble, member or condition.
        """
        deadline = deadline or Deadline()
        question = Question(ref, query.members, query.false_atoms)
        asked = _frames(frames, query)
        found = list(self._predictor.answers(asked, question, deadline))
        wanted = arrays(found, query.want, is_stack=frames.is_stack)
        meta = answer_meta(found, frames, query)
        return WireAnswer(wanted, meta, deadline.seconds, meta["drift"]["flag"])

    def select(
        self, frames: Frames, query: RequestQuery, deadline: Deadline | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Return the members ranked for the first frame as JSON holds it, and whether it drifted.

        Candidates of all ensembles selected among are in one ranking, best first.
        """
        question = Question(query.ensemble, is_selecting=True)
        frame = _frames(frames, query)[0]
        ranked = self._predictor.rank(frame, question, deadline or Deadline())
        return selection_content(ranked, frames, query)


def _frames(frames: Frames, query: RequestQuery) -> tuple[Frame, ...]:
    """Return the frames of a request with what its query says of the recording."""
    condition: Condition | None = None
    if query.condition:
        condition = facility_library().condition(query.condition)
    pixels_nyx: list[NDArray[np.float32]] = list(frames.frames)
    return stack_of(
        pixels_nyx, query.pixel_size_pm, condition, origin="request", is_stack=frames.is_stack
    )

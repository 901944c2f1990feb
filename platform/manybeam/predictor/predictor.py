"""The predictor: command line, service, pages, notebook and jobs get their answers here.

A named ensemble and `auto` differ only in the versions that may answer. Every network runs once on
the frame; ranking, calibration and answer use the same output.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from manybeam.data.io.frame import Frame
from manybeam.errors import (
    Corrupt,
    DoubtfulPixelSize,
    InvalidFrame,
    InvalidInput,
    MissingPixelSize,
    UnknownRef,
)
from manybeam.learn.analysis.frame_analysis import check_size
from manybeam.predictor.answer import Answer, Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.performance import Weights
from manybeam.predictor.pixel_size import check_pixel_size, with_inferred_size
from manybeam.predictor.selection import Selection, check_bound, part_of, select
from manybeam.predictor.versions.loaded import LoadedVersion, Versions
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.spec.facility import facility_library

if TYPE_CHECKING:
    from manybeam.learn.nets.prediction import Prediction
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Ranked:
    """One version with the answer of its members and their ranking.

    Attributes:
        frame: the frame, with its pixel size as it was used.
        version: the version.
        whole: the answer of all its members.
        selection: their ranking; None if they were not ranked.
        notes: the limits of its answer.
    """

    frame: Frame
    version: LoadedVersion
    whole: "Prediction"
    selection: Selection | None
    notes: tuple[str, ...] = ()


class Predictor:
    """Answers questions about frames; safe to use from several threads.

    Args:
        versions: the versions that may answer.
        library: conditions and policies by id; the facility's (`MANYBEAM_ZOO`) if left out.
    """

    def __init__(self, versions: Versions, library: "Library | None" = None) -> None:
        self.versions, self._library = versions, library

    @classmethod
    def of_zoo(cls, zoo: "Zoo") -> "Predictor":
        """Return a predictor of all versions of a zoo."""
        return cls(ZooVersions(zoo))

    def answer(
        self, frame: Frame, question: Question | None = None, deadline: Deadline | None = None
    ) -> Answer:
        """Return the answer to a question about a frame.

        Args:
            frame: the frame.
            question: the question; `auto` if left out.
            deadline: times the stages; after it, no stage, network or tile begins.

        Raises:
            UnknownRef: no such version or member.
            NoCapacity: `auto`, and nothing serves.
            InvalidFrame: the frame is too small for `auto`, or for a bound on false atoms.
            InvalidInput: no version that may answer can keep the bound.
            DoubtfulPixelSize: the pixel size contradicts the frame or the training.
            Corrupt: the weights differ from those registered.
            DeadlineExceeded: the time is up.
        """
        question, deadline = question or Question(), deadline or Deadline()
        (sized,) = self._sized((frame,), question, deadline)
        return self._answer(sized, question, deadline)

    def _answer(self, frame: Frame, question: Question, deadline: Deadline) -> Answer:
        best = self._rank(frame, question, deadline)[0]
        if best.selection is not None:
            prediction = best.selection.answer(best.whole)
        else:
            prediction = part_of(best.whole, _named(best.version, question))
        return Answer(
            best.frame,
            question,
            best.version.record,
            prediction,
            best.selection,
            best.whole,
            best.notes,
            dict(deadline.seconds),
        )

    def answers(
        self,
        frames: Sequence[Frame],
        question: Question | None = None,
        deadline: Deadline | None = None,
    ) -> Iterator[Answer]:
        """Yield the answer for each frame, as `answer` gives it.

        A missing pixel size is inferred once for all frames: they are of one recording.
        """
        question = question or Question()
        for frame in self._sized(frames, question, deadline or Deadline()):
            yield self._answer(frame, question, deadline or Deadline())

    def rank(
        self, frame: Frame, question: Question | None = None, deadline: Deadline | None = None
    ) -> list[Ranked]:
        """Return every version that may answer with its ranking; the first one answers.

        For `auto`, a version with damaged files, or for other pixel sizes, is left out, and the
        notes name it. Raises as `answer` does.
        """
        question, deadline = question or Question(), deadline or Deadline()
        (sized,) = self._sized((frame,), question, deadline)
        return self._rank(sized, question, deadline)

    def _rank(self, frame: Frame, question: Question, deadline: Deadline) -> list[Ranked]:
        if not question.is_auto:
            with deadline.stage("load"):
                version = self.versions.get(question.ref)
            return [self._ranked(version, frame, question, deadline)]
        return self._best_of(self.versions.serving(), frame, question, deadline)

    def sized(self, frames: Sequence[Frame], question: Question | None = None) -> tuple[Frame, ...]:
        """Return the frames of one recording; a missing pixel size is inferred from a lattice.

        The crystal is that of the frames' condition, else the one that the named version was made
        for. For `auto` only the condition counts, because lattices of one symmetry look alike.

        Raises:
            MissingPixelSize: no crystal is known, or its lattice does not show.
            UnknownRef: no such version.
        """
        if all(one.pixel_size_pm is not None for one in frames):
            return tuple(frames)
        question = question or Question()
        version = None if question.is_auto else self.versions.get(question.ref)
        return with_inferred_size(frames, version, self._facility)

    @property
    def _facility(self) -> "Library":
        return self._library or facility_library()

    def _sized(
        self, frames: Sequence[Frame], question: Question, deadline: Deadline
    ) -> tuple[Frame, ...]:
        """Return the frames with the pixel size of `sized`, or without one if there is none."""
        if question.is_raw or all(one.pixel_size_pm is not None for one in frames):
            return tuple(frames)
        try:
            with deadline.stage("size"):
                return self.sized(frames, question)
        except (MissingPixelSize, Corrupt):
            return tuple(frames)

    def _best_of(
        self, refs: Sequence[str], frame: Frame, question: Question, deadline: Deadline
    ) -> list[Ranked]:
        ranked: list[Ranked] = []
        refused: dict[str, Corrupt | DoubtfulPixelSize] = {}
        for ref in refs:
            try:
                with deadline.stage("load"):
                    version = self.versions.get(ref)
            except Corrupt as error:
                logger.warning("%s is left out: %s", ref, error)
                refused[ref] = error
                continue
            if question.false_atoms and version.performance is None and len(refs) > 1:
                continue  # it cannot keep a bound; another version may
            try:
                ranked.append(self._ranked(version, frame, question, deadline))
            except DoubtfulPixelSize as error:
                refused[ref] = error
        if refused and not ranked:
            raise next(iter(refused.values()))
        if not ranked:
            raise InvalidInput(
                "no ensemble that serves can keep a bound on false atoms",
                "none of them was calibrated",
                f"manybeam calibrate {refs[0]}",
            )
        ranked.sort(key=_rank_key, reverse=True)
        left_out = [f"{ref} is left out: {error.what}" for ref, error in refused.items()]
        return [replace(one, notes=(*one.notes, *left_out)) for one in ranked]

    def _ranked(
        self, version: LoadedVersion, frame: Frame, question: Question, deadline: Deadline
    ) -> Ranked:
        """Return the answer of a version's members, and their ranking."""
        is_free = question.is_auto or question.is_selecting
        asked = None if is_free else _named(version, question)
        check_bound(version, question.false_atoms)
        if not (question.is_raw or question.is_size_trusted):
            check_pixel_size(frame, version, self._facility)
        too_small = _too_small(frame, question)
        limits = (*version.notes, *too_small, *_unsized(frame))
        with deadline.stage("predict"):
            whole = version.ensemble.predict(
                frame.pixels_yx, frame.pixel_size_pm, check=deadline.check
            )
        if question.is_raw or too_small:
            return Ranked(frame, version, whole, None, limits)
        with deadline.stage("select"):
            selection = select(
                version,
                frame,
                prediction=whole,
                asked=asked,
                false_atoms=question.false_atoms,
                library=self._library,
                check=deadline.check,
            )
        limits += selection.transferred.notes if selection.transferred else ()
        return Ranked(frame, version, whole, selection, limits)


def _rank_key(one: Ranked) -> tuple[int, bool, float]:
    return one.selection.rank_key if one.selection else (-1, False, 0.0)


def _named(version: LoadedVersion, question: Question) -> Weights:
    """Return the named members with equal weights; raises UnknownRef for an unknown one."""
    there = version.ensemble.indices
    members = question.members or there
    if missing := [one for one in members if one not in there]:
        raise UnknownRef(
            f"{version.ref or 'this ensemble'} has no member "
            f"{', '.join(f'{one:02d}' for one in missing)}",
            f"it has {', '.join(f'{one:02d}' for one in there)}",
            f"manybeam zoo show {version.ref}",
        )
    return dict.fromkeys(members, 1 / len(members))


def _unsized(frame: Frame) -> tuple[str, ...]:
    """Return what an unknown pixel size means for the answer."""
    if frame.pixel_size_pm is not None:
        return ()
    return ("no pixel_size_pm: the frame is assumed to have the pixel size of the training",)


def _too_small(frame: Frame, question: Question) -> tuple[str, ...]:
    """Return why members cannot be ranked; raises if the question needs the ranking."""
    try:
        check_size(frame.pixels_yx)
    except InvalidFrame as error:
        if question.is_auto or question.is_selecting or question.false_atoms:
            raise
        return (f"no drift, calibration or predicted F1: {error.what}",)
    return ()

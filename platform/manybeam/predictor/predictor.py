"""The predictor: command line, service, pages, notebook and jobs get their answers here.

A named ensemble and `auto` differ only in the versions that may answer. Every network runs once on
the frame; ranking, calibration and answer use the same output.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from manybeam.data.io.frame import Frame
from manybeam.errors import (
    Corrupt,
    DeadlineExceeded,
    DoubtfulPixelSize,
    InvalidFrame,
    InvalidInput,
    ManybeamError,
    MissingPixelSize,
    UnknownRef,
    Unreachable,
)
from manybeam.learn.analysis.frame_analysis import check_size, predict_window
from manybeam.predictor.answer import AUTO, Answer, Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.f1.predicted import Weights
from manybeam.predictor.pace import Pace, Work
from manybeam.predictor.pixel_size import check_pixel_size, with_inferred_size
from manybeam.predictor.quick import SummarisedFrame, dropped_words, fewer
from manybeam.predictor.selection import Selection, check_bound, part_of, select
from manybeam.predictor.versions.loaded import LoadedVersion, Versions
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.spec.facility import facility_library

if TYPE_CHECKING:
    from manybeam.learn.nets.prediction import Prediction
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

UNKNOWN_S = 1.0  # taken for the time of an analysis that was never timed


@dataclass(frozen=True, eq=False)
class Ranked:
    """One version with the answer of its members and their ranking.

    Attributes:
        frame: the frame, with its pixel size as it was used.
        version: the version.
        whole: the answer of all its members; if only a ranking was asked for, in the analysed
            window of the frame.
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
        self.versions, self._library, self.pace = versions, library, Pace()
        self._left_out: dict[str, str] = {}  # what the log was told of versions left out

    @classmethod
    def of_zoo(cls, zoo: "Zoo") -> "Predictor":
        """Return a predictor of all versions of a zoo."""
        return cls(ZooVersions(zoo))

    def among(self, versions: Versions) -> "Predictor":
        """Return a predictor of other versions that shares what was learned of the pace."""
        other = Predictor(versions, self._library)
        other.pace, other._left_out = self.pace, self._left_out
        return other

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
        (sized,) = self.sized_or_not((frame,), question, deadline)
        return self.answer_sized(sized, question, deadline)

    def answer_sized(self, frame: Frame, question: Question, deadline: Deadline) -> Answer:
        """Return the answer for a frame of `sized_or_not`; raises as `answer` does."""
        if question.is_quick or (not question.is_raw and self._is_short(frame, question, deadline)):
            return self._quick(frame, question, deadline)
        best = self._rank(frame, question, deadline, has_answer=True)[0]
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

    def _is_short(self, frame: Frame, question: Question, deadline: Deadline) -> bool:
        """Return whether there is no time to analyse the frame.

        Nothing is known of the first frames of a size; they are analysed if there is a second.
        """
        left_s = deadline.left_s
        if left_s is None:
            return False
        total = 0.0
        for version in self.loadable(question.ref, deadline):
            work = _work(version, frame, is_full=True)
            seconds = self.pace.seconds(work, version.ensemble.member_count)
            total += UNKNOWN_S if seconds is None else seconds
        return total > left_s

    def _quick(self, frame: Frame, question: Question, deadline: Deadline) -> Answer:
        """Return an answer without frame analysis, of as many members as there is time for."""
        left_out: dict[str, ManybeamError] = {}
        version, summary = self._quick_version(frame, question, deadline, left_out)
        if question.is_auto or question.is_selecting:
            everyone = summary.best[0] if summary else _named(version, question)
            why = f"members {', '.join(f'{one:02d}' for one in everyone)} suit its summary best"
        else:
            everyone, why = _named(version, question), question.why
        check_bound(version, question.false_atoms)
        if not question.is_size_trusted:
            check_pixel_size(frame, version, self._facility)
        work = _work(version, frame)
        weights, notes = self._in_time(question, version, summary, work, everyone, deadline)
        with self.pace.timing(work, len(weights), deadline.seconds):
            with deadline.stage("predict"):
                whole = version.ensemble.predict(
                    frame.pixels_yx,
                    frame.pixel_size_pm,
                    members=list(weights),
                    check=deadline.check,
                )
            with deadline.stage("calibrate"):
                bound = question.false_atoms
                selection = summary.selection(weights, bound, why) if summary else None
                prediction = selection.answer(whole) if selection else part_of(whole, weights)
        if selection is None:
            notes.append("no drift, calibration or predicted F1: the frame was not analysed")
        elif selection.transferred:
            notes += selection.transferred.notes
        return Answer(
            frame,
            question,
            version.record,
            prediction,
            selection,
            whole,
            (*version.notes, *_unsized(frame), *notes, *_left_out_words(left_out)),
            dict(deadline.seconds),
            dropped=tuple(one for one in everyone if one not in weights),
            is_quick=True,
        )

    def _quick_version(
        self,
        frame: Frame,
        question: Question,
        deadline: Deadline,
        left_out: dict[str, ManybeamError],
    ) -> tuple[LoadedVersion, SummarisedFrame | None]:
        """Return the version that answers, and the summary of the frame for it."""
        found = []
        for version in self.loadable(question.ref, deadline, left_out):
            with deadline.stage("summarise"):
                found.append((version, SummarisedFrame.of(version, frame)))
        return max(found, key=lambda one: (True, *one[1].rank_key) if one[1] else (False,))

    def _in_time(
        self,
        question: Question,
        version: LoadedVersion,
        summary: SummarisedFrame | None,
        work: Work,
        everyone: Weights,
        deadline: Deadline,
    ) -> tuple[Weights, list[str]]:
        """Return the members that can answer in time, and what is said if they are not all."""
        left_s = deadline.left_s
        if left_s is None or question.keeps_members:
            return everyone, []
        count = self.pace.members_within(work, len(everyone), left_s)
        if count == 0:
            self._check_hopeless(work, deadline)
        weights = fewer(version, summary, everyone, max(count, 1))
        if len(weights) == len(everyone):
            return weights, []
        seconds = self.pace.seconds(work, len(everyone))
        return weights, [dropped_words(summary, everyone, weights, seconds, left_s)]

    def _check_hopeless(self, work: Work, deadline: Deadline) -> None:
        """Refuse an answer that one member alone would not give before the deadline."""
        least_s, left_s = self.pace.seconds(work, 1) or 0.0, deadline.due_left_s
        if left_s is not None and least_s > left_s:
            many = deadline.frames_left > 1
            each = f" for each of {deadline.frames_left} frames" if many else ""
            raise DeadlineExceeded(
                f"an answer takes about {1000 * least_s:.0f} ms",
                f"{max(1000 * left_s, 0):.0f} ms were left{each} when it could begin",
                "raise deadline_ms, send a smaller frame, or send fewer at once",
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
        sized = self.sized_or_not(frames, question, deadline or Deadline())
        for number, frame in enumerate(sized):
            own = deadline or Deadline()
            own.frames_left = len(sized) - number  # else the first frame would take all the time
            yield self.answer_sized(frame, question, own)

    def rank(
        self,
        frame: Frame,
        question: Question | None = None,
        deadline: Deadline | None = None,
        *,
        has_answer: bool = False,
    ) -> list[Ranked]:
        """Return every version that may answer with its ranking; the first one answers.

        For `auto`, a version with damaged files, or for other pixel sizes, is left out, and the
        notes name it. Raises as `answer` does.

        Args:
            frame: the frame; of a large one the middle is analysed.
            question: the question; `auto` if left out.
            deadline: as that of `answer`.
            has_answer: whether `whole` is for the whole frame; else networks run on the analysed
                window only, with the same ranking.
        """
        question, deadline = question or Question(), deadline or Deadline()
        (sized,) = self.sized_or_not((frame,), question, deadline)
        return self._rank(sized, question, deadline, has_answer=has_answer)

    def _rank(
        self, frame: Frame, question: Question, deadline: Deadline, *, has_answer: bool
    ) -> list[Ranked]:
        if not question.is_auto:
            (version,) = self.loadable(question.ref, deadline)
            return [self._ranked(version, frame, question, deadline, has_answer=has_answer)]
        return self._best_of(frame, question, deadline, has_answer=has_answer)

    def loadable(
        self,
        ref: str,
        deadline: Deadline | None = None,
        left_out: dict[str, ManybeamError] | None = None,
    ) -> Iterator[LoadedVersion]:
        """Yield the versions that may answer: the one named, or for `auto` those that serve.

        For `auto`, a version that is damaged, away or removed must not keep the others from
        answering. It is left out; if that leaves none, the first error is raised.

        Args:
            ref: a REF or `auto`.
            deadline: times the loading.
            left_out: gets the error of each version that is left out, by its reference.
        """
        deadline, refused = deadline or Deadline(), {} if left_out is None else left_out
        is_auto, is_any = ref == AUTO, False
        for one in self.versions.serving() if is_auto else (ref,):
            with deadline.stage("load"):
                try:
                    version = self.versions.get(one)
                except (Corrupt, Unreachable, UnknownRef) as error:
                    if not is_auto:
                        raise
                    refused[one] = error
                    self._log_left_out(one, str(error))
                    continue
            self._left_out.pop(one, None)
            is_any = True
            yield version
        if not is_any and refused:
            raise next(iter(refused.values()))

    def _log_left_out(self, ref: str, why: str) -> None:
        """Tell the log once why a version is left out, until that changes: frames are many."""
        if self._left_out.get(ref) != why:
            logger.warning("%s is left out: %s", ref, why)
            self._left_out[ref] = why

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

    def sized_or_not(
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
        self, frame: Frame, question: Question, deadline: Deadline, *, has_answer: bool
    ) -> list[Ranked]:
        ranked: list[Ranked] = []
        refused: dict[str, ManybeamError] = {}
        refs = self.versions.serving()
        for version in self.loadable(AUTO, deadline, refused):
            if question.false_atoms and version.performance is None and len(refs) > 1:
                continue  # it cannot keep a bound; another version may
            try:
                one = self._ranked(version, frame, question, deadline, has_answer=has_answer)
                ranked.append(one)
            except DoubtfulPixelSize as error:
                refused[version.ref] = error
        if refused and not ranked:
            raise next(iter(refused.values()))
        if not ranked:
            raise InvalidInput(
                "no ensemble that serves can keep a bound on false atoms",
                "none of them was calibrated",
                f"manybeam calibrate {refs[0]}",
            )
        ranked.sort(key=_rank_key, reverse=True)
        left_out = _left_out_words(refused)
        return [replace(one, notes=(*one.notes, *left_out)) for one in ranked]

    def _ranked(
        self,
        version: LoadedVersion,
        frame: Frame,
        question: Question,
        deadline: Deadline,
        *,
        has_answer: bool,
    ) -> Ranked:
        """Return the answer of a version's members, and their ranking."""
        is_free = question.is_auto or question.is_selecting
        asked = None if is_free else _named(version, question)
        check_bound(version, question.false_atoms)
        if not (question.is_raw or question.is_size_trusted):
            check_pixel_size(frame, version, self._facility)
        too_small = _too_small(frame, question)
        limits = (*version.notes, *too_small, *_unsized(frame))
        work = _work(version, frame, is_full=not (question.is_raw or too_small))
        count = version.ensemble.member_count
        is_whole = has_answer or not work.is_full
        timing = (
            self.pace.timing(work, count, deadline.seconds) if is_whole else self.pace.at_work()
        )
        with timing:
            with deadline.stage("predict"):
                run = (
                    version.ensemble.predict
                    if is_whole
                    else partial(predict_window, version.ensemble)
                )
                whole = run(frame.pixels_yx, frame.pixel_size_pm, check=deadline.check)
            if not work.is_full:
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


def _left_out_words(left_out: Mapping[str, ManybeamError]) -> list[str]:
    return [f"{ref} is left out: {error.what}" for ref, error in left_out.items()]


def _rank_key(one: Ranked) -> tuple[int, bool, float]:
    return one.selection.rank_key if one.selection else (-1, False, 0.0)


def check_members(version: LoadedVersion, members: Sequence[int]) -> None:
    """Refuse members that a version does not have; raises UnknownRef."""
    there = version.ensemble.indices
    if missing := [one for one in members if one not in there]:
        raise UnknownRef(
            f"{version.ref or 'this ensemble'} has no member "
            f"{', '.join(f'{one:02d}' for one in missing)}",
            f"it has {', '.join(f'{one:02d}' for one in there)}",
            f"manybeam zoo show {version.ref}",
        )


def _named(version: LoadedVersion, question: Question) -> Weights:
    """Return the named members with their shares; raises UnknownRef for an unknown one."""
    members = question.members or version.ensemble.indices
    check_members(version, members)
    if question.shares:
        total = sum(question.shares)
        return {one: share / total for one, share in zip(members, question.shares, strict=True)}
    return dict.fromkeys(members, 1 / len(members))


def _work(version: LoadedVersion, frame: Frame, *, is_full: bool = False) -> Work:
    """Return what an answer is for; its pixels are those that the finest network sees."""
    own_pm = min(member.recipe.tiles.pixel_size_pm for member in version.ensemble.members)
    scale = 1.0 if frame.pixel_size_pm is None else frame.pixel_size_pm / own_pm
    return Work(version.ref, frame.pixels_yx.size * scale**2, is_full)


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

"""Answers of the service: ensembles held ready, frames in, atoms with their reasons out.

No Ray and no web here: what a replica answers is what this class answers in any process.
Axis letters: n frame, m member, y row, x column.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manybeam.errors import Corrupt, DeadlineExceeded, InvalidInput, NoCapacity
from manybeam.serve.content import (
    answerer_row,
    arrays,
    by_the_first,
    calibration,
    candidate_row,
    doubts,
    drift,
    meta,
    unpromised,
)
from manybeam.serve.query import Question
from manybeam.serve.ttl_cache import TTLCache
from manybeam.serve.wire import Frames, plain

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Ensemble, Prediction
    from manybeam.predictor.performance import PerformancePredictor, Weights
    from manybeam.predictor.selection import Selection
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

AUTO = "auto"
FRESH_S = 10.0


@dataclass(frozen=True)
class Loaded:
    """One version of an ensemble, ready to answer."""

    record: "Record"
    ensemble: "Ensemble"


@dataclass(frozen=True)
class Answer:
    """What a prediction gives back.

    Args:
        arrays: by the names of `query.WANTS`; of a stack also `atoms_frame`, `members_frame`.
        meta: who answered and why, as JSON holds it.
        seconds: time each stage took.
        is_drifted: whether selection called the frame out of distribution; None if not asked.
    """

    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    seconds: dict[str, float]
    is_drifted: bool | None = None


@dataclass
class Watch:
    """Times the stages of one request and keeps its deadline.

    Args:
        deadline_s: when the answer is worthless, by the same clock; None for never.
        clock: monotonic seconds.
    """

    deadline_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; does not begin it after the deadline.

        Raises:
            DeadlineExceeded: the time is up.
        """
        begun = self.clock()
        if self.deadline_s is not None and begun >= self.deadline_s:
            raise DeadlineExceeded(
                f"the deadline passed before {name}", "", "raise deadline_ms, or want less"
            )
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - begun


class Service:
    """Ensembles of one zoo, loaded when named and kept until others are asked for more.

    Safe to call from several threads: loading is done by one at a time, answering by all.

    Args:
        zoo: where ensembles come from.
        refs: loaded now; what `auto` selects among. If empty, `auto` selects
            among all that the zoo serves.
        capacity: how many further ensembles are kept, those used last.
        fresh_s: how long an alias is trusted before the zoo is asked again.
        clock: monotonic seconds.

    Raises:
        UnknownRef: one of `refs` is not in the zoo.
        Corrupt: weights differ from those registered.
    """

    def __init__(
        self,
        zoo: "Zoo",
        refs: Sequence[str] = (),
        *,
        capacity: int = 4,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._zoo, self._clock, self._capacity = zoo, clock, capacity + len(refs)
        self._records = TTLCache(zoo.resolve, fresh_s, clock)
        self._matrices = TTLCache(zoo.matrix, fresh_s, clock)
        self._predictors = TTLCache(self._learnt, fresh_s, clock)
        self._loading, self._lock = threading.Lock(), threading.Lock()
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self.refs = tuple(refs)
        for ref in self.refs:
            self.load(ref)

    def load(self, ref: str) -> tuple[Loaded, tuple[str, ...]]:
        """Return an ensemble, and what is wrong with the answer it will give, in words.

        Raises:
            UnknownRef: nothing is called that; the nearest names are in the hint.
            ZooUnreachable: the zoo does not answer and the reference was never seen.
        """
        record, notes = self._records.get(ref)
        found = self._held(record)
        if found is None:
            with self._loading:
                found = self._held(record) or self._fetch(record)
        return found, notes

    def served(self) -> tuple[str, ...]:
        """Return the references `auto` selects among.

        Raises:
            NoCapacity: there is none.
        """
        refs = self.refs or tuple(
            one.ref for one in self._zoo.listing() if "serving" in one.aliases
        )
        if not refs:
            raise NoCapacity(
                "no ensemble is served", "auto selects among those served", "manybeam zoo ls"
            )
        return refs

    def listing(self) -> list[dict[str, Any]]:
        """Return one row for each ensemble held, as a table or JSON shows it."""
        with self._lock:
            held = list(self._loaded.values())
        return [
            {
                "ref": one.record.ref,
                "name": one.record.name,
                "version": one.record.version,
                "aliases": list(one.record.aliases),
                "members": list(one.ensemble.indices),
                "failed": list(one.record.failed),
                "created": one.record.created.isoformat(),
            }
            for one in held
        ]

    def predict(
        self, ref: str, frames: Frames, question: Question, watch: Watch | None = None
    ) -> Answer:
        """Return the answer to one request.

        Args:
            ref: REF of the contract, or `auto`: then the members are selected by the first frame.
            frames: what to look at. Under a bound on false atoms each is judged by itself, for
                what holds on one frame need not hold on the next.
            question: what to say about it.
            watch: times the stages; a deadline in it is kept between frames.

        Raises:
            DeadlineExceeded: the time is up.
            NotFound: no such ensemble or member.
        """
        watch = watch or Watch(clock=self._clock)
        loaded, notes, selection = self._who(ref, frames.frames[0], question, watch)
        weights = dict.fromkeys(loaded.ensemble.indices, 1.0)
        if selection is not None and ref == AUTO:
            weights = dict(selection.weights)
        found, asked = [], [selection]
        for number, frame_yx in enumerate(frames.frames):
            if number and question.false_atoms:
                asked.append(self._selection(loaded, frame_yx, question, weights, watch)[0])
            with watch.stage("predict"):
                found.append(_answer(loaded, frame_yx, question, asked[-1], weights))
        told = meta(loaded.record, found[0].members, frames, question)
        told["notes"] += by_the_first(frames, asked)
        told["why"] = f"all members of {ref}, as asked for"
        if selection is not None and ref == AUTO:
            told["why"] = selection.why
        told |= {"drift": drift(asked), "calibration": calibration(selection)}
        if len(asked) > 1:
            told["calibrations"] = [calibration(one) for one in asked]
        told["degraded"] = [*notes, *doubts(loaded, question), *unpromised(asked)]
        wanted = arrays(found, question.want, is_stack=frames.is_stack)
        return Answer(wanted, told, watch.seconds, told["drift"]["flag"])

    def select(
        self, frames: Frames, question: Question, watch: Watch | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Return the members ranked for the first frame as JSON holds it, and whether it drifted.

        Candidates of all ensembles selected among stand in one ranking, best first.
        """
        watch = watch or Watch(clock=self._clock)
        ranked = self._rankings(frames.frames[0], question, watch)
        best, notes, selection = ranked[0]
        rows = [
            candidate_row(loaded, one, candidate, is_chosen=place == 0)
            for place, (loaded, _, one) in enumerate(ranked)
            for candidate in one.candidates
        ]
        rows.sort(key=lambda row: -row["predicted_f1"])
        told = meta(best.record, selection.chosen, frames, question)
        content = {
            "verdict": selection.verdict,
            "why": selection.why,
            "ref": best.record.ref,
            "chosen": list(selection.chosen),
            "calibrated": selection.is_calibrated,
            "answerers": [answerer_row(one) for one in selection.answerers],
            "candidates": rows,
            "nearest": [list(pair) for pair in selection.nearest],
            "meta": told | {"degraded": [*notes, *doubts(best, question)]},
        }
        return plain(content), selection.verdict != "ok"

    def _who(
        self, ref: str, frame_yx: NDArray[np.float32], question: Question, watch: Watch
    ) -> "tuple[Loaded, tuple[str, ...], Selection | None]":
        """Return the ensemble that answers, what is wrong with it, and its ranking if asked for.

        One that was named answers with all its members; it is looked at closer only for a bound.
        """
        if ref == AUTO:
            return self._rankings(frame_yx, replace(question, ensemble=AUTO), watch)[0]
        if question.false_atoms:
            return self._rankings(frame_yx, replace(question, ensemble=ref), watch)[0]
        with watch.stage("load"):
            return *self.load(ref), None

    def _learnt(self, ref: str) -> "PerformancePredictor | None":
        from manybeam.predictor.learned import performance_predictor

        return performance_predictor(self._zoo, ref)

    def _rankings(
        self, frame_yx: NDArray[np.float32], question: Question, watch: Watch
    ) -> "list[tuple[Loaded, tuple[str, ...], Selection]]":
        """Return every ensemble selected among with its ranking, the most promising first.

        One whose files are damaged is left out, and said to be; another may answer.
        """
        refs = self.served() if question.ensemble == AUTO else (question.ensemble,)
        ranked, damaged = [], []
        for ref in refs:
            try:
                with watch.stage("load"):
                    loaded, notes = self.load(ref)
                    known, _ = self._predictors.get(loaded.record.ref)
            except Corrupt as error:
                logger.warning("%s is left out: %s", ref, error)
                damaged.append((ref, error))
                continue
            if question.false_atoms and known is None and len(refs) > 1:
                continue  # it can promise no bound; another may
            even = dict.fromkeys(loaded.ensemble.indices, 1.0)
            answering = None if question.ensemble == AUTO else even
            selection, more = self._selection(loaded, frame_yx, question, answering, watch)
            ranked.append((loaded, (*notes, *more), selection))
        if damaged and not ranked:
            raise damaged[0][1]
        if not ranked:
            raise InvalidInput(
                "no ensemble that is served can promise a bound on false atoms",
                "none of them was rehearsed",
                f"manybeam rehearse {refs[0]}",
            )
        ranked.sort(key=lambda one: one[2].standing, reverse=True)
        left_out = [f"{ref} is left out: {error.what}" for ref, error in damaged]
        return [(loaded, (*notes, *left_out), one) for loaded, notes, one in ranked]

    def _selection(
        self,
        loaded: Loaded,
        frame_yx: NDArray[np.float32],
        question: Question,
        answering: "Weights | None",
        watch: Watch,
    ) -> "tuple[Selection, tuple[str, ...]]":
        """Return one ensemble's ranking on one frame, and what is stale in it, in words."""
        from manybeam.predictor.selection import select

        with watch.stage("load"):
            matrix, more = self._matrices.get(loaded.record.ref)
            known, stale = self._predictors.get(loaded.record.ref)
        with watch.stage("select"):
            selection = select(
                loaded.record,
                matrix,
                loaded.ensemble,
                frame_yx,
                question.pixel_size_pm,
                known=known,
                answering=answering,
                false_atoms=question.false_atoms,
            )
        return selection, (*more, *stale)

    def _held(self, record: "Record") -> Loaded | None:
        with self._lock:
            found = self._loaded.get(record.ref)
            if found is not None:
                self._loaded.move_to_end(record.ref)
        return found and Loaded(record, found.ensemble)

    def _fetch(self, record: "Record") -> Loaded:
        begun = self._clock()
        found = Loaded(record, self._zoo.ensemble(record.ref))
        took = {"ref": record.ref, "wall_s": round(self._clock() - begun, 3)}
        logger.info("ensemble loaded", extra=took)
        with self._lock:
            self._loaded[record.ref] = found
            while len(self._loaded) > self._capacity:
                self._loaded.popitem(last=False)
        return found


def _answer(
    loaded: Loaded,
    frame_yx: NDArray[np.float32],
    question: Question,
    selection: "Selection | None",
    weights: "Weights",
) -> "Prediction":
    """Return what these members say of one frame, calibrated where selection was asked."""
    size, members = question.pixel_size_pm, tuple(weights)
    said = loaded.ensemble.predict(frame_yx, size, members=members)
    if selection is not None:
        said = selection.answer(said, weights)
    return said.without_maps()

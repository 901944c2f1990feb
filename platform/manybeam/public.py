"""The zoo as Python holds it: what `manybeam.zoo()`, `simulate` and `predict` give."""

import html
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from manybeam.data.markup import table_html
from manybeam.errors import Unreachable
from manybeam.settings import settings
from manybeam.zoo.matrix import Matrix, less_is_better, member_label
from manybeam.zoo.registry import Zoo
from manybeam.zoo.reports.notebook import record_html

if TYPE_CHECKING:
    import pandas as pd
    from numpy import ndarray

    from manybeam.data.frames import FrameSet
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.predictor.answer import Answer, Question
    from manybeam.predictor.predictor import Predictor
    from manybeam.spec import Condition, Policy
    from manybeam.zoo.catalogue import Row
    from manybeam.zoo.compare import Difference
    from manybeam.zoo.records import Record

logger = logging.getLogger(__name__)

MOST_ROWS = 60


class OutOfDistributionWarning(UserWarning):
    """No member suits a frame: do not rely on the atoms of the answer."""


ORDERS = ("name", "created", "measured")


class OpenZoo(Zoo):
    """The zoo as a person holds it: `find` what suits, take it by its reference.

    Example: `manybeam.zoo()["graphene@serving"].matrix()`.
    """

    def find(
        self,
        text: str = "",
        *,
        condition: str = "",
        order: str = "-f1",
        kind: str = "ensembles",
        limit: int = 50,
    ) -> "Found":
        """Return what fits, in order; what was never measured comes last.

        Rows are compared on conditions that all of them were measured on. Rows that were not
        measured there come later; `Found.basis` says so.

        What is known on this machine is brought up to date first. While the zoo is away the last
        state answers, and `Found.as_of` says of when it is.

        Args:
            text: words; each has to begin one of the row's words.
            condition: id of a condition, or a glob: rows are ranked by their score there.
            order: name of a score, or `name`, `created`, `measured`; from high to low with "-".
            kind: `ensembles` (their versions) or `members`.
            limit: largest number of rows, 1 to 1000.

        Raises:
            InvalidInput: a value that is not allowed.
            ZooUnreachable: the zoo does not answer, and was never read on this machine.
        """
        from manybeam.zoo.catalogue import Catalogue, Query

        score, direction = _ordered(order)
        asked: dict[str, Any] = {"kind": kind, "page_size": limit, "condition": condition}
        query = Query(text=text, score=score, order=direction, **asked)
        catalogue = Catalogue(self)
        try:
            catalogue.refresh()
        except Unreachable as error:
            if catalogue.as_of is None:
                raise
            logger.warning("zoo did not answer", extra={"why": error.what})
        page = catalogue.find(query)
        basis = page.basis if direction.endswith("score") else ""
        return Found(self, page.rows, page.total, score, condition, catalogue.as_of, basis)

    def __getitem__(self, ref: str) -> "Version":
        """Return a version, or one member of it, by its reference; raises as `resolve` does."""
        return Version(self, self.resolve(ref))

    def __iter__(self) -> Iterator["Version"]:
        return iter(self.find())

    def _repr_html_(self) -> str:
        return self.find()._repr_html_()


@dataclass(frozen=True)
class Version:
    """One version of an ensemble, or one member of it, with what can be done with it.

    Attributes:
        zoo: where it is kept.
        record: what it is.
    """

    zoo: Zoo
    record: "Record"

    @property
    def ref(self) -> str:
        """The reference that always means this version."""
        return self.record.ref

    def matrix(self) -> Matrix:
        """Return its scores, members x conditions."""
        return self.zoo.matrix(self.ref)

    def ensemble(self) -> "Ensemble":
        """Return its members ready to answer; the networks of the last few stay in memory.

        Raises:
            Corrupt: weights are not those that were registered.
        """
        return _predictor(self.zoo).versions.get(self.ref).ensemble

    def predict(
        self,
        frame_yx: "ndarray",
        *,
        pixel_size_pm: float | None = None,
        trust_pixel_size: bool = False,
        condition: str = "",
        false_atoms: float = 0.0,
    ) -> "Answer":
        """Return the answer of its members about one frame; see `predict`."""
        from manybeam.predictor.answer import Question

        question = Question(self.ref, false_atoms=false_atoms, is_size_trusted=trust_pixel_size)
        return _answer(self.zoo, question, frame_yx, pixel_size_pm, condition)

    def compare(self, other: str, *, key: str = "f1") -> "list[Difference]":
        """Return where another version is better or worse than this; see `zoo.compare`."""
        from manybeam.zoo.compare import compare

        return compare(self.matrix(), self.zoo.matrix(other), key=key)

    def card(self) -> str:
        """Return its model card, as Markdown."""
        from manybeam.zoo.reports.cards import card_markdown, note_for

        matrix = self.matrix()
        note = note_for(self.record, settings().zoo, matrix.conditions)
        return card_markdown(self.record, matrix, note=note)

    def _repr_html_(self) -> str:
        return record_html(self.record)


class Found(Sequence[Version]):
    """What `find` found, in order: versions by place, and the scores they were ranked by.

    Attributes:
        rows: reference, score with its interval, frames and date of each.
        total: how many fit, shown or not.
        score: name of the score.
        condition: where the score was taken; "" for the mean over all conditions.
        as_of: when the zoo last confirmed this, in UTC.
        basis: the conditions on which the rows are compared, in words; "" if all have the same.
    """

    def __init__(
        self,
        zoo: Zoo,
        rows: "Sequence[Row]",
        total: int,
        score: str,
        condition: str,
        as_of: datetime | None,
        basis: str = "",
    ) -> None:
        self._zoo, self.rows, self.total = zoo, tuple(rows), total
        self.score, self.condition, self.as_of, self.basis = score, condition, as_of, basis

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Version: ...
    @overload
    def __getitem__(self, place: slice) -> "Found": ...
    def __getitem__(self, place: "int | slice") -> "Version | Found":
        if isinstance(place, slice):
            same = (self.total, self.score, self.condition, self.as_of, self.basis)
            return Found(self._zoo, self.rows[place], *same)
        return Version(self._zoo, self._zoo.resolve(self.rows[place].ref))

    def __repr__(self) -> str:
        return f"Found({', '.join(row.ref for row in self.rows)})"

    def to_pandas(self) -> "pd.DataFrame":
        """Return one line a row, indexed by reference; NaN where it was not measured."""
        import pandas as pd

        ends = ("low", "high")
        facts = ("frames", "coverage", "measured", "status", "members")
        columns = ("ref", self.score, *ends, *facts)
        table = pd.DataFrame([self._cells(row) for row in self.rows], columns=list(columns))
        return table.set_index("ref").astype({self.score: float, "low": float, "high": float})

    def _cells(self, row: "Row") -> tuple[Any, ...]:
        what = "ensemble" if row.member is None else member_label(row.member)
        known = (row.ref, row.value, row.low, row.high, row.frame_count, row.coverage)
        return (*known, row.taken, row.status, what)

    @cached_property
    def _where(self) -> str:
        return f"{self.score} on {self.condition}" if self.condition else f"mean {self.score}"

    def _repr_html_(self) -> str:
        facts = ("frames", "conditions", "measured", "status")
        columns = ("reference", self._where, "95 % interval", *facts)
        rows = [
            (
                row.ref,
                row.value,
                "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}",
                "" if row.frame_count is None else str(row.frame_count),
                row.coverage,
                f"{row.taken:%Y-%m-%d}" if row.taken else "",
                row.status,
            )
            for row in self.rows[:MOST_ROWS]
        ]
        when = f", as of {self.as_of:%Y-%m-%d %H:%M} UTC" if self.as_of else ""
        count = f"{len(rows)} of {self.total}{when}" + (f"; {self.basis}" if self.basis else "")
        return f"<div>{table_html(columns, rows)}<p>{html.escape(count)}</p></div>"


def simulate(
    name: str, *, out: str | Path, count: int = 64, seed: int = 0, overwrite: bool = False
) -> "FrameSet":
    """Simulate frames with known truth into a FrameSet and return it.

    Args:
        name: id of a condition or a policy of the zoo folder (`MANYBEAM_ZOO`).
        out: a folder or `s3://` URL.
        count: frames, at least 1.
        seed: same seed, same frames.
        overwrite: replace a FrameSet that is there.

    Raises:
        UnknownCondition: neither a condition nor a policy has that id.
        Conflict: there is a FrameSet, and it must not be overwritten.
    """
    from manybeam.data.simulation.simulate import simulate_into
    from manybeam.spec import Library

    library = Library(settings().zoo)
    imaging: Condition | Policy = library.policies.get(name) or library.condition(name)
    return simulate_into(str(out), imaging, count, seed=seed, overwrite=overwrite)


def predict(
    frame_yx: "ndarray",
    ref: str = "auto",
    *,
    pixel_size_pm: float | None = None,
    trust_pixel_size: bool = False,
    condition: str = "",
    false_atoms: float = 0.0,
) -> "Answer":
    """Return the answer to a frame: atoms, mean, spread, predicted F1, and why.

    It is the answer that the command line and the service give. The networks of the last few
    references stay in memory.

    Args:
        frame_yx: one frame of any size and real dtype.
        ref: `graphene`, `graphene@candidate`, `graphene@3` or `graphene@3/07`, whose members
            answer together; or `auto`: then selection decides who answers.
        pixel_size_pm: edge of a pixel, in pm. If left out, it is inferred from the lattice if the
            crystal is known; if not, that of the training is assumed. `answer.frame` has the
            size, and its notes or those of the answer say where it is from.
        trust_pixel_size: take it also if it contradicts the frame or the training.
        condition: id of the condition of the recording, in the library of the facility.
        false_atoms: bound on the share of false atoms, 0 to 1; 0 for none.

    Raises:
        UnknownRef: nothing has this name.
        UnknownCondition: no condition has this id.
        InvalidFrame: the array is not a frame.
        DoubtfulPixelSize: the pixel size contradicts the frame or the training.
        InvalidInput: a bound, and the version was never calibrated.
        ZooUnreachable: the zoo does not answer.
    """
    from manybeam.predictor.answer import Question

    question = Question(ref, false_atoms=false_atoms, is_size_trusted=trust_pixel_size)
    return _answer(OpenZoo(), question, frame_yx, pixel_size_pm, condition)


def _answer(
    zoo: Zoo,
    question: "Question",
    frame_yx: "ndarray",
    pixel_size_pm: float | None,
    condition: str,
) -> "Answer":
    from manybeam.data.io.frame import frame_of
    from manybeam.spec.facility import facility_library

    known = facility_library().condition(condition) if condition else None
    frame = frame_of(frame_yx, pixel_size_pm, known)
    answer = _predictor(zoo).answer(frame, question)
    if answer.is_drifted:
        words = f"out of distribution: {'; '.join(answer.verdict_reasons)}"
        warnings.warn(words, OutOfDistributionWarning, stacklevel=3)
    return answer


def _predictor(zoo: Zoo) -> "Predictor":
    """Return the predictor of one zoo; it is cached, because it holds the networks."""
    from manybeam.predictor.predictor import Predictor
    from manybeam.predictor.versions.of_zoo import ZooVersions

    key = (zoo.address, str(settings().home))
    with _LOCK:
        if key not in _PREDICTORS:
            # Aliases are not cached, so that a notebook sees a promotion at once.
            _PREDICTORS[key] = Predictor(ZooVersions(zoo, fresh_s=0.0))
        return _PREDICTORS[key]


_PREDICTORS: "dict[tuple[str, str], Predictor]" = {}
_LOCK = threading.Lock()


def _ordered(order: str) -> tuple[str, str]:
    """Return the score to rank by, and the catalogue's word for the order.

    To the catalogue `-score` is the best first; to a person `-f1` is from high to low.
    """
    name, is_falling = order.removeprefix("-"), order.startswith("-")
    if name in ORDERS:
        return "f1", order
    return name, "-score" if is_falling != less_is_better(name) else "score"

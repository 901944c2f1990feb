"""From a form to a kept result: reads the frame, asks the service, keeps what it says."""

import io
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.frames import FrameSet
from manybeam.data.io.file_readers import FileReaders
from manybeam.data.io.reading import READERS, frames_in, inspect_frame, settled
from manybeam.errors import Busy, InvalidInput, ManybeamError, http_status, problem
from manybeam.settings import settings
from manybeam.spec.facility import facility_library
from manybeam.spec.imaging import quantity_bounds
from manybeam.web.predict.form import PredictForm
from manybeam.web.predict.results import Facts, Result, Results
from manybeam.web.predict.tiles import Pyramid
from manybeam.web.service import PredictionService, Sent

if TYPE_CHECKING:
    from manybeam.web.pages.framesets import FrameSets

AT_ONCE = 4  # files that are read and asked about at the same time
PYRAMIDS = 6  # in memory; that of a 4096 px frame takes 90 MB


@dataclass(frozen=True, eq=False)
class Source:
    """A frame as it was read, with what is sent to the service.

    Attributes:
        facts: what is known of it.
        frame_yx: the frame.
        file: the file that it comes from; nothing for a stored frame.
    """

    facts: Facts
    frame_yx: NDArray[np.float32]
    file: bytes = b""

    def sent(self) -> Sent:
        """Return the body of a request.

        A file with one frame is sent as it is, so that the service reads from it what the command
        line reads. Of several frames, only the chosen one is sent, with its pixel size.
        """
        facts = self.facts
        if facts.is_sent_whole:
            size_pm, trust = facts.stated_pm, facts.is_size_trusted
            return Sent(
                self.file, facts.name, size_pm, is_size_trusted=trust, is_quick=facts.is_quick
            )
        size_pm = facts.stated_pm or facts.file_size_pm
        return Sent(
            npy(self.frame_yx),
            pixel_size_pm=size_pm,
            condition=facts.condition,
            is_size_trusted=facts.is_size_trusted,
            is_quick=facts.is_quick,
        )


class Predicting:
    """Reads frames, asks the service about them and keeps the results.

    Args:
        folder: where results lie; in the cache of the settings if left out.
    """

    def __init__(self, folder: Path | None = None) -> None:
        here = settings()
        self.results = Results(folder or here.cache / "answers")
        self._most_px = here.max_frame_px
        self._readers = FileReaders(here.max_frame_px)
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._pyramid = lru_cache(maxsize=PYRAMIDS)(self._made_pyramid)
        self._drawing = threading.Lock()  # a page asks for several tiles of a new one at once

    def ask(self, form: PredictForm, framesets: "FrameSets", *, has_token: bool) -> Result:
        """Return the result for a form; it says why if the service gave no answer.

        Raises:
            Busy: too many frames are under way.
            InvalidInput, NotFound: the frame cannot be read.
        """
        with self._slot():
            begun_s = time.monotonic()
            source = self._source(form, framesets)
            read_s = time.monotonic() - begun_s
            answer, error = b"", dict[str, Any]()
            try:
                service = PredictionService()
                answer = service.predict(source.facts.ref, source.sent(), has_token=has_token)
            except ManybeamError as refused:
                error = _told(refused)
            seconds = {"read": read_s, "service": time.monotonic() - begun_s - read_s}
            facts = replace(source.facts, error=error, seconds=seconds)
            result = self.results.keep(facts, source.frame_yx, source.file, answer)
            if form.is_same and not error:
                self.results.follow(form.again, result.id)
            return result

    def rank(self, result: Result, *, has_token: bool) -> dict[str, Any]:
        """Return the ranking of the members for the frame of a result; it is asked for once."""
        if (known := result.ranking) is not None:
            return known
        with self._slot():
            source = Source(replace(result.facts, is_quick=False), result.frame_yx, result.source)
            service = PredictionService()
            found = service.select(result.facts.ref, source.sent(), has_token=has_token)
        result.keep_ranking(found)
        return found

    def pyramid(self, identity: str, name: str) -> Pyramid:
        """Return the pyramid of `frame` or `std` of a result, from memory if it is there."""
        self.results.look(identity)
        with self._drawing:
            return self._pyramid(identity, name)

    def close(self) -> None:
        """End the processes that read files."""
        self._readers.close()

    def _made_pyramid(self, identity: str, name: str) -> Pyramid:
        result = self.results.look(identity)
        return Pyramid.of(result.frame_yx if name == "frame" else result.arrays(name)[name])

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            raise Busy(
                f"{AT_ONCE} other frames are under way",
                "the server reads so many at once",
                "the page tries again by itself",
            )
        try:
            yield
        finally:
            self._slots.release()

    def _source(self, form: PredictForm, framesets: "FrameSets") -> Source:
        if form.again:
            before = self.results.look(form.again)
            if before.facts.is_stored:
                form = replace(form, frameset=before.facts.name)
            else:
                form = replace(form, name=before.facts.name, content=before.source)
            if form.frame is None:
                form = replace(form, frame=before.facts.frame)
            if form.is_same:
                form = _same_question(form, before.facts)
        if form.frameset:
            return _stored(form, framesets)
        if not form.name:
            raise InvalidInput(
                "no file was chosen",
                "a file of an instrument, or a frame of a FrameSet",
                "drop a file on the page, or choose one with the button",
            )
        return self._of_file(form)

    def _of_file(self, form: PredictForm) -> Source:
        """Read a file in a process that a damaged file may crash."""
        raw = self._readers.read(form.name, form.content)
        read = settled(raw, Path(form.name), None, None)
        frames = frames_in(raw.array)
        is_stack = frames.ndim == 3
        count = len(frames) if is_stack else 1
        number = _chosen(form, count) if is_stack else None
        frame_yx, notes = inspect_frame(frames if number is None else frames[number])
        facts = Facts(
            form.name,
            is_stored=False,
            frame=number,
            frame_count=count,
            shape=_sides(frame_yx),
            ref=form.ref,
            file_size_pm=read.pixel_size_pm,
            stated_pm=form.pixel_size_pm,
            is_size_trusted=form.is_size_trusted,
            format=READERS[Path(form.name).suffix.lower()][0],
            recorded=_usable(raw.values),
            notes=(*read.notes, *notes),
            is_sent_whole=not is_stack and raw.array.ndim == 2,
            is_quick=form.is_quick,
        )
        return Source(facts, frame_yx, form.content)


def _stored(form: PredictForm, framesets: "FrameSets") -> Source:
    """Read a frame of the store."""
    frames: FrameSet = framesets.open(form.frameset)
    number = _chosen(form, len(frames))
    frame_yx, notes = inspect_frame(frames.frame(number))
    facts = Facts(
        form.frameset,
        is_stored=True,
        frame=number,
        frame_count=len(frames),
        shape=_sides(frame_yx),
        ref=form.ref,
        file_size_pm=frames.pixel_size_pm(number),
        stated_pm=form.pixel_size_pm,
        is_size_trusted=form.is_size_trusted,
        condition=_known_condition(frames),
        format="FrameSet",
        notes=notes,
        is_quick=form.is_quick,
    )
    return Source(facts, frame_yx)


def _same_question(form: PredictForm, facts: Facts) -> PredictForm:
    """Return the form that asks what was asked before, with frame analysis."""
    return replace(
        form,
        frame=facts.frame,
        ref=facts.ref,
        pixel_size_pm=facts.stated_pm,
        is_size_trusted=facts.is_size_trusted,
        is_quick=False,
    )


def _known_condition(frames: FrameSet) -> str:
    """Return the id of the condition of a FrameSet if the library has the same; else ""."""
    own = frames.condition
    known = facility_library().conditions.get(own.id)
    return own.id if known is not None and known.digest == own.digest else ""


def _usable(values: Mapping[str, float]) -> dict[str, float]:
    """Return what a file says within the bounds of each quantity; a note tells of the others."""
    bounds = quantity_bounds()
    return {
        name: float(value)
        for name, value in values.items()
        if bounds[name][0] <= value <= bounds[name][1]
    }


def _chosen(form: PredictForm, count: int) -> int:
    """Return the number of the frame that was asked for; the first if none was."""
    number = form.frame or 0
    if number >= count:
        raise InvalidInput(
            f"there is no frame {number}",
            f"{form.name or form.frameset} holds {count}, from 0 to {count - 1}",
            "choose one of these",
        )
    return number


def _sides(frame_yx: NDArray[np.float32]) -> tuple[int, int]:
    rows, columns = frame_yx.shape
    return int(rows), int(columns)


def _told(error: ManybeamError) -> dict[str, Any]:
    """Return a refusal as the result keeps it."""
    return {
        "type": problem(error, "")["type"].rpartition(":")[2],
        "what": error.what,
        "why": error.why,
        "hint": error.hint,
        "status": http_status(error),
        "retry_s": error.retry_s if isinstance(error, Busy) else None,
    }


def npy(frame_yx: NDArray[np.float32]) -> bytes:
    """Return a frame as an .npy file."""
    file = io.BytesIO()
    np.save(file, frame_yx, allow_pickle=False)
    return file.getvalue()

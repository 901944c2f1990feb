"""`manybeam watch`: find the frame at which a session left the known conditions; give advice."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.targets import check_empty
from manybeam.data.disk import write_files
from manybeam.errors import Corrupt, InvalidFrame, InvalidInput, OutOfDistribution

if TYPE_CHECKING:
    import numpy as np

    from manybeam.cli.terminal.progress import Progress
    from manybeam.data.frames import FrameSet
    from manybeam.data.io.frame import Frame
    from manybeam.predictor.stream.advice import Advice
    from manybeam.predictor.stream.drift import Alarm, DriftWatch
    from manybeam.spec import Condition, Library, Policy
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

    Array = np.ndarray[Any, Any]

AT_ONCE = 32  # frames of a FrameSet read together
KEPT = 16  # frames since the change that --keep writes; a round of adaptation uses as many
KEPT_URL = "frames/drifted"


def watch(
    frames: Annotated[
        list[str], typer.Argument(help="A FrameSet, or instrument files in their order.")
    ],
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF that serves.")],
    first: Annotated[
        int,
        typer.Option(min=0, help="Number of first frames that are taken as known, at least 40."),
    ] = 0,
    policy: Annotated[str, typer.Option(help="Policy in which a new condition is inferred.")] = "",
    pixel_size_pm: Annotated[
        float | None,
        typer.Option(help="Edge of a pixel, if the files do not give it [pm]."),
    ] = None,
    keep: Annotated[str, typer.Option(help="FrameSet for frames since the last alarm.")] = "",
    state: Annotated[
        Path | None,
        typer.Option(help="JSON file with the state of the watch: read if it exists, and written."),
    ] = None,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit with code 7 if the frames drifted.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Find the frame at which a session left the known conditions, and advise what to do.

    The known conditions are those with a measured F1 of 0.9 or more, or the first frames. Drift is
    not a failure: members may be as good as before. So the predicted F1 on the drifted frames is
    reported too. Frames are numbered from 0 within FRAMES.

    Example: manybeam watch frames/today -e graphene --first 100 --keep frames/drifted
    """
    from manybeam.cli.terminal.progress import Progress
    from manybeam.settings import settings
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

    check_empty(keep, "frames")
    _check_first(first)
    again = [
        "manybeam",
        "watch",
        *frames,
        "-e",
        ensemble,
        *(["--first", str(first)] if first else []),
    ]
    with Progress("read the frames") as bars:
        zoo, library = Zoo(), Library(settings().zoo)
        record = zoo.resolve(ensemble)
        searched = library.policy(policy) if policy else None
        movie = _movie(frames, pixel_size_pm, record.ref)
        advisor = _Advisor(zoo, record, library, searched, movie, keep, again)
        drift = _begun(state, first) or _new(zoo, record, library, movie, first, bars)
        start = 0 if state is not None and state.is_file() else first
        rows = list(_rows(drift, movie, start, advisor, bars))
    _leave(state, drift)
    if rows and keep:
        movie.write(keep, int(rows[-1]["since"]))
    emit(rows, form, title=f"Drift against {record.ref}")
    say(f"{len(movie) - start} frames watched, {len(rows)} alarms")
    if rows and fail_on_drift:
        raise OutOfDistribution(f"drift since frame {rows[0]['since']}", rows[0]["why"], "")


@dataclass
class _Movie:
    """Frames in the order of their recording.

    Attributes:
        shape: rows and columns.
        sizes: edge of a pixel of each frame, or None.
        condition: their stated condition, for frames that are written.
        stated: the condition from an instrument, for selection. It is None for a FrameSet, because
            the condition of a FrameSet is not that of drifted frames.
        read: returns the frames of a range of numbers.
    """

    shape: tuple[int, int]
    sizes: list[float | None]
    condition: "Condition | Policy"
    stated: "Condition | None"
    read: Callable[[int, int], "Array"] = field(repr=False)

    def __len__(self) -> int:
        return len(self.sizes)

    def frames(self, start: int, stop: int) -> Iterator[tuple[int, "Array"]]:
        """Yield (number, frame)."""
        for low in range(start, stop, AT_ONCE):
            part = self.read(low, min(low + AT_ONCE, stop))
            yield from enumerate(part, start=low)

    def frame(self, number: int) -> "Frame":
        """Return one frame with the condition from its instrument."""
        from manybeam.data.io.frame import Frame

        pixels_yx = self.read(number, number + 1)[0]
        return Frame(pixels_yx, self.sizes[number], self.stated, f"frame {number}")

    def write(self, url: str, since: int) -> None:
        """Write frames since the change to a new FrameSet."""
        import numpy as np

        from manybeam.data.frames import FrameSet

        stop = min(since + KEPT, len(self))
        sizes = np.array([np.nan if one is None else one for one in self.sizes[since:stop]])
        part = (self.read(since, stop), None, sizes)
        made = FrameSet.write(url, self.condition, self.shape, [part])
        say(f"{stop - since} frames since {since} are in {made.url}")


@dataclass(frozen=True)
class _Advisor:
    """Gives advice after an alarm; the networks are loaded at the first one."""

    zoo: "Zoo"
    record: "Record"
    library: "Library"
    policy: "Policy | None"
    movie: _Movie
    keep: str
    again: list[str]

    def propose(self, numbers: list[int]) -> "Advice":
        from manybeam.predictor.predictor import Predictor
        from manybeam.predictor.stream.advice import propose
        from manybeam.predictor.versions.of_zoo import ZooVersions

        return propose(
            Predictor(ZooVersions(self.zoo), self.library),
            self.record.ref,
            # Without the frames that the watch left out (blank, too small).
            [self.movie.frame(number) for number in numbers],
            policy=self.policy,
            library=self.library,
            frames_url=shlex.quote(self.keep or KEPT_URL),
        )

    def command(self, proposal: "Advice") -> str:
        """Return the command to run; if frames were not kept, it first keeps them."""
        if not proposal.command or self.keep:
            return proposal.command
        return f"{shlex.join([*self.again, '--keep', KEPT_URL])} && {proposal.command}"


def _check_first(first: int) -> None:
    """Refuse too few known frames before any of them is read."""
    from manybeam.predictor.stream.in_control import LEAST_KNOWN

    if 0 < first < LEAST_KNOWN:
        raise InvalidInput(
            f"--first {first}: too few frames to know how they vary",
            f"at least {LEAST_KNOWN}; without --first, the measured conditions are the known ones",
            f"--first {LEAST_KNOWN}",
        )


def _movie(frames: list[str], pixel_size_pm: float | None, ref: str) -> _Movie:
    if len(frames) > 1 or Path(frames[0]).is_file():
        return _of_files([Path(one) for one in frames], pixel_size_pm, ref)
    from manybeam.data.frames import FrameSet

    found = FrameSet.open(frames[0])
    if pixel_size_pm is not None:
        raise InvalidInput(
            f"--pixel-size-pm for {frames[0]}", "a FrameSet already has pixel sizes", ""
        )
    sizes = [found.pixel_size_pm(index) for index in range(len(found))]
    return _Movie(found.shape, sizes, found.condition, None, _reader(found))


def _reader(found: "FrameSet") -> Callable[[int, int], "Array"]:
    return lambda low, high: found.frames(slice(low, high))


def _of_files(files: list[Path], pixel_size_pm: float | None, ref: str) -> _Movie:
    import numpy as np

    from manybeam.cli.terminal.sizing import all_sized, read_files

    records = all_sized(read_files(files, pixel_size_pm, None))
    stacks = [one.frame if one.frame.ndim == 3 else one.frame[None] for one in records]
    shapes = {stack.shape[1:] for stack in stacks}
    if len(shapes) > 1:
        raise InvalidInput(
            f"frames of different shapes: {sorted(shapes)}",
            "a session has one shape",
            "watch each shape separately",
        )
    whole, first = np.concatenate(stacks), records[0].condition
    sizes = [
        one.pixel_size_pm for one, stack in zip(records, stacks, strict=True) for _ in stack
    ]  # fmt: skip
    if None in sizes:
        inferred = _inferred(whole[sizes.index(None)], first, ref)
        sizes = [inferred if one is None else one for one in sizes]
    rows, columns = whole.shape[1:]
    return _Movie((rows, columns), sizes, first, first, lambda low, high: whole[low:high])


def _inferred(frame_yx: "Array", condition: "Condition", ref: str) -> float | None:
    """Return the pixel size that the lattice of a frame shows, or None; print which, or why."""
    from manybeam.data.io.frame import Frame
    from manybeam.errors import MissingPixelSize
    from manybeam.predictor.answer import Question
    from manybeam.predictor.predictor import Predictor
    from manybeam.zoo.registry import Zoo

    first = Frame(frame_yx, None, condition, "frame 0")
    try:
        (sized,) = Predictor.of_zoo(Zoo()).sized([first], Question(ref))
    except MissingPixelSize as error:
        say(error.what)
        return None
    say("; ".join(sized.notes))
    return sized.pixel_size_pm


def _begun(state: Path | None, first: int) -> "DriftWatch | None":
    """Return the watch in a state file, if there is one."""
    if state is None or not state.is_file():
        return None
    if first:
        raise InvalidInput(
            f"--first with {state}", "the state already has known frames", "give one of the two"
        )
    from manybeam.predictor.stream.drift import DriftWatch

    try:
        return DriftWatch.restore(state.read_text(encoding="utf-8", errors="replace"))
    except Corrupt as error:
        raise Corrupt(f"{state}: {error.what}", error.why, error.hint) from error


def _new(
    zoo: "Zoo", record: "Record", library: "Library", movie: _Movie, first: int, bars: "Progress"
) -> "DriftWatch":
    import numpy as np

    from manybeam.predictor.stream.advice import known_frames
    from manybeam.predictor.stream.drift import DriftWatch, frame_features

    if first:
        rows = []
        for number, frame in movie.frames(0, min(first, len(movie))):
            rows.append(frame_features(frame, movie.sizes[number]))
            bars.update("known frames", number + 1, first)
        return DriftWatch(np.stack(rows) if rows else np.empty((0, 0)))
    known = known_frames(
        zoo.matrix(record.ref),
        library,
        movie.shape,
        has_pixel_size=bool(movie.sizes) and movie.sizes[0] is not None,
        progress=lambda done, total: bars.update("known frames", done, total),
    )
    say(f"known: {', '.join(known.conditions)}")
    return DriftWatch(known.features_ns, known.condition_n.tolist())


def _rows(
    drift: "DriftWatch", movie: _Movie, start: int, advisor: _Advisor, bars: "Progress"
) -> Iterator[dict[str, Any]]:
    """Yield one row for each alarm."""
    from manybeam.predictor.stream.drift import frame_features

    before, numbers = drift.seen, []
    for number, frame in movie.frames(start, len(movie)):
        bars.update("frames", number + 1 - start, len(movie) - start)
        try:
            features = frame_features(frame, movie.sizes[number])
        except InvalidFrame as error:
            say(f"frame {number}: {error.what}: left out")
            continue
        numbers.append(number)
        alarm = drift.see(features)
        if alarm is not None:
            yield _row(alarm, numbers[max(alarm.since - before, 0) :], advisor)


def _row(alarm: "Alarm", numbers: list[int], advisor: _Advisor) -> dict[str, Any]:
    """Return the row of an alarm; `numbers` are the frames since the change."""
    since, found = numbers[0], numbers[-1]
    proposal = advisor.propose(numbers)
    return {
        "frame": found,
        "since": since,
        "score": alarm.score,
        "changes": alarm.words,
        "proposal": proposal.action,
        "members": [f"{one:02d}" for one in proposal.members],
        "predicted_f1": proposal.predicted_f1,
        "command": advisor.command(proposal),
        "why": proposal.why,
    }


def _leave(state: Path | None, drift: "DriftWatch") -> None:
    if state is not None:
        write_files({state: drift.state().encode()})

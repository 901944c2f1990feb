"""`manybeam predict` and `manybeam select`: atoms in files, and the members that suit a frame.

Both use `predictor.predictor.Predictor` in this process, as the service does, so the answers are
the same.
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.sizing import check_sized, read_files, stated_condition
from manybeam.cli.terminal.targets import check_empty, check_target
from manybeam.errors import InvalidInput, OutOfDistribution

if TYPE_CHECKING:
    from manybeam.data.io.frame import Frame
    from manybeam.predictor.answer import Answer, Question
    from manybeam.predictor.predictor import Predictor, Ranked
    from manybeam.predictor.selection import Selection
    from manybeam.zoo.records import Record

TABLE_COLUMNS = ("member", "chosen", "predicted_f1", "low", "high", "why")
FilesArgument = Annotated[list[Path], typer.Argument(help="Instrument files.")]
PixelOption = Annotated[
    float | None, typer.Option(help="Edge of a pixel, if the file does not give it [pm].")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-pixel-size", help="Take the pixel size also if the frame contradicts."),
]
ConditionOption = Annotated[
    str, typer.Option(help="Condition of the frames: an id of the zoo folder, or a YAML file.")
]


def predict(
    files: FilesArgument,
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF, or auto.")] = "auto",
    members: Annotated[str, typer.Option(help="Only these members of REF: 00,02.")] = "",
    pixel_size_pm: PixelOption = None,
    trust_pixel_size: TrustOption = False,
    condition: ConditionOption = "",
    atoms: Annotated[Path | None, typer.Option(help="CSV file of all atoms.")] = None,
    zarr: Annotated[str, typer.Option(help="Zarr group of frames, maps and atoms.")] = "",
    png: Annotated[Path | None, typer.Option(help="Folder for pictures of the answers.")] = None,
    false_atoms: Annotated[
        float, typer.Option(min=0, max=0.99, help="Largest share of false atoms; 0 for no bound.")
    ] = 0.0,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit 7 if a frame is out of distribution.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="On a terminal, also members and reasons.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Find the atoms in frames, with probability and spread.

    If a file has no pixel size, it is inferred from the lattice of the crystal and printed with
    its error. A frame is out of distribution if no member suits it: do not rely on its atoms.

    Example: manybeam predict scan_0142.dm4 -e graphene --atoms atoms.csv --png pictures
    """
    from manybeam.cli import answers
    from manybeam.predictor.answer import Question
    from manybeam.predictor.answer_files import frame_name, row

    _check_targets(atoms, zarr, png)
    named = read_members("--members", members)
    question = Question(ensemble, named, false_atoms, is_size_trusted=trust_pixel_size)
    predictor = _predictor()
    frames = _frames(predictor, question, files, pixel_size_pm, condition)
    found = [
        answer.lean(has_maps=bool(png or zarr)) for answer in _answers(predictor, frames, question)
    ]
    answers.write_atoms(atoms, found)
    answers.write_pictures(png, found)
    answers.write_zarr(zarr, found)
    shown = [line for one in found for line in answers.lines(one, is_verbose=verbose)]
    emit([row(one) for one in found], form, title="Predictions", lines=shown)
    drifted = [one for one in found if one.is_drifted]
    if drifted and fail_on_drift:
        raise OutOfDistribution(
            f"no member of {drifted[0].ref} suits {', '.join(map(frame_name, drifted))}",
            "; ".join(drifted[0].verdict_reasons),
            f"manybeam select {shlex.quote(drifted[0].frame.origin)} shows the members and why",
        )
    answers.warn(found)


def select(
    file: Annotated[Path | None, typer.Argument(help="An instrument file.")] = None,
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF, or auto.")] = "auto",
    pixel_size_pm: PixelOption = None,
    trust_pixel_size: TrustOption = False,
    condition: ConditionOption = "",
    show: Annotated[bool, typer.Option("--show", help="Draw the members side by side.")] = False,
    png: Annotated[
        Path | None,
        typer.Option(help="File of the picture; if left out, FILE-members.png. Implies --show."),
    ] = None,
    pick: Annotated[str, typer.Option(help="Record that you chose these members: 03,05.")] = "",
    who: Annotated[str | None, typer.Option(help="Your name; if left out, the login name.")] = None,
    note: Annotated[str, typer.Option(help="Your reason; kept with the preference.")] = "",
    picks: Annotated[bool, typer.Option("--picks", help="List the preferences.")] = False,
    retract: Annotated[str, typer.Option(help="Take back the preference of this id.")] = "",
    form: FormOption = Form.auto,
) -> None:
    """Rank the members that suit this frame, with predicted F1, its interval and the reason.

    --show draws what each member finds and what it misses. --pick records your own choice as a
    preference, with who, when, frame and condition. Selection learns from it.

    Example: manybeam select scan_0142.dm4 -e graphene --show
    """
    from manybeam.cli.preferences import list_preferences, picture_path, undo
    from manybeam.predictor.answer import Question

    if retract:
        undo(retract, who)
    if picks:
        list_preferences(ensemble, form)
    if file is None:
        if not retract and not picks:
            raise InvalidInput(
                "no frame to select for", "", "manybeam select FILE, or manybeam select --picks"
            )
        return
    preferred, path = read_members("--pick", pick), picture_path(file, png)
    question = Question(ensemble, is_selecting=True, is_size_trusted=trust_pixel_size)
    predictor = _predictor()
    frames = _frames(predictor, question, [file], pixel_size_pm, condition)
    if len(frames) > 1:
        say(f"{file.name}: the first of {len(frames)} frames; predict answers for each")
    best = predictor.rank(frames[0], question, has_answer=bool(show or png))[0]
    rows, verdict = _ranked(best, preferred, who, note, path if show or png else None)
    emit(rows, form, title=f"{file.name}: {verdict}", columns=TABLE_COLUMNS)


def _ranked(
    best: "Ranked",
    preferred: Sequence[int],
    who: str | None,
    note: str,
    picture: Path | None,
) -> tuple[list[dict[str, Any]], str]:
    """Return a row for each member and the verdict; record the preference and draw, if asked to."""
    from manybeam.cli.preferences import draw, keep
    from manybeam.predictor.answer_files import verdict_words

    selection, record = best.selection, best.version.record
    assert selection is not None and record is not None  # noqa: S101, PT018 - large enough, of a zoo
    for note_ in best.notes:
        say(note_)
    verdict = verdict_words(selection.verdict)
    say(f"{'warning: ' if selection.is_drifted else ''}{verdict}:")
    for reason in selection.reasons:
        say(f" - {reason}")
    for one in selection.answerers:
        say(f"   {one.name}: predicted F1 {one.predicted_f1:.3f} ({one.low:.3f} to {one.high:.3f})")
    if preferred:
        keep(best.frame, best, preferred, who, note)
    if picture is not None:
        draw(best.frame, best, picture, preferred)
    return _candidate_rows(record, selection, preferred), verdict


def _candidate_rows(
    record: "Record", selection: "Selection", preferred: Sequence[int]
) -> list[dict[str, Any]]:
    rows = [
        {
            "member": f"{record.version_ref}/{candidate.member:02d}",
            "chosen": candidate.member in selection.chosen,
            "predicted_f1": candidate.predicted_f1,
            "low": candidate.low,
            "high": candidate.high,
            **candidate.components,
            "why": candidate.why,
            "verdict": selection.verdict,
        }
        for candidate in selection.candidates
    ]
    members = [candidate.member for candidate in selection.candidates]
    marks = [{"preferred": member in preferred} if preferred else {} for member in members]
    return [{**row, **mark} for row, mark in zip(rows, marks, strict=True)]


def read_members(option: str, text: str) -> tuple[int, ...]:
    """Return the member indices of a text such as `03,05`; none for "".

    Raises:
        InvalidInput: a part of the text is no index.
    """
    words = [word.strip() for word in text.split(",")] if text else []
    strange = [word for word in words if not (word.isascii() and word.isdigit())]
    if strange:
        raise InvalidInput(
            f"{option} {text}: {strange[0]!r} is no member", "indices with commas, as 03,05", ""
        )
    return tuple(dict.fromkeys(int(word) for word in words))


def _frames(
    predictor: "Predictor",
    question: "Question",
    files: Sequence[Path],
    pixel_size_pm: float | None,
    condition: str,
) -> "list[Frame]":
    """Return the frames of all files, read and with a pixel size before the first network runs."""
    from dataclasses import replace

    from manybeam.data.io.frame import frames_of
    from manybeam.errors import MissingPixelSize

    read = read_files(files, pixel_size_pm, stated_condition(condition))
    recordings: list[Frame] = []
    for one in read:
        frames = [replace(frame, origin=str(one.source)) for frame in frames_of(one)]
        try:
            sized = predictor.sized(frames, question)
        except MissingPixelSize as error:
            way = "; with -e REF its crystal is assumed" if question.is_auto else ""
            say(f"{one.source.name}: {error.what}{way}")
            continue
        for note in sized[0].notes[len(one.notes) :]:
            say(f"{one.source.name}: {note}")
        recordings += sized
    check_sized(read, {frame.origin for frame in recordings})
    return recordings


def _answers(
    predictor: "Predictor", frames: "Sequence[Frame]", question: "Question"
) -> "Iterator[Answer]":
    """Yield one answer for each frame; an error names its file."""
    for frame in frames:
        name = Path(frame.origin).name
        try:
            answer = predictor.answer(frame, question)
        except InvalidInput as error:
            raise type(error)(f"{name}: {error.what}", error.why, error.hint) from error
        for note in answer.notes:
            say(f"{name}: {note}")
        yield answer


def _predictor() -> "Predictor":
    from manybeam.predictor.predictor import Predictor
    from manybeam.zoo.registry import Zoo

    return Predictor.of_zoo(Zoo())


def _check_targets(atoms: Path | None, zarr: str, png: Path | None) -> None:
    """Refuse targets that cannot be written to, before the first network runs."""
    check_target(atoms)
    if png is not None and png.exists() and not png.is_dir():
        raise InvalidInput(
            f"--png {png} is a file", "there is one picture for each frame", "give a folder"
        )
    check_empty(zarr, "answers")

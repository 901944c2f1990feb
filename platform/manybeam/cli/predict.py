"""`manybeam predict` and `manybeam select`: atoms in files, and the members that suit a frame.

Both use `predictor.predictor.Predictor` in this process, as the service does, so the answers are
the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.sizing import check_sized, sized
from manybeam.cli.terminal.targets import check_target
from manybeam.data.disk import write_files
from manybeam.errors import InvalidInput, ManybeamError, OutOfDistribution

if TYPE_CHECKING:
    import numpy as np

    from manybeam.data.io.frame import Frame
    from manybeam.predictor.answer import Answer, Question
    from manybeam.predictor.predictor import Predictor
    from manybeam.predictor.selection import Selection
    from manybeam.predictor.transferred_calibration import TransferredCalibration
    from manybeam.zoo.records import Record

TABLE_COLUMNS = ("member", "chosen", "predicted_f1", "low", "high", "why")
ATOM_COLUMNS = ("y", "x", "class", "probability", "spread_y_px", "spread_x_px", "votes")
FilesArgument = Annotated[list[Path], typer.Argument(help="Instrument files.")]
PixelOption = Annotated[
    float | None, typer.Option(min=0.01, help="Edge of a pixel, if the file does not give it [pm].")
]
ConditionOption = Annotated[str, typer.Option(help="Id of the condition of the frames.")]


def predict(
    files: FilesArgument,
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF, or auto.")] = "auto",
    members: Annotated[str, typer.Option(help="Only these members of REF: 00,02.")] = "",
    pixel_size_pm: PixelOption = None,
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
    form: FormOption = Form.auto,
) -> None:
    """Find the atoms in frames, with probability and spread.

    Example: manybeam predict scan_0142.dm4 -e graphene --atoms atoms.csv --png pictures
    """
    from manybeam.predictor.answer import Question

    _check_targets(atoms, zarr)
    question = Question(ensemble, read_members("--members", members), false_atoms)
    frames = _frames(files, pixel_size_pm, condition)
    answers = [_lean(answer) for answer in _answers(frames, question)]
    drifted = [one.frame.origin for one in answers if one.is_drifted]
    _write_atoms(atoms, answers)
    _write_pictures(png, answers)
    _write_zarr(zarr, answers)
    emit([_summary(answer) for answer in answers], form, title="Predictions")
    if drifted and fail_on_drift:
        raise OutOfDistribution(
            f"no member of {ensemble} fits {', '.join(drifted)}",
            "",
            f"manybeam select {drifted[0]} shows the members and why",
        )


def select(
    file: Annotated[Path | None, typer.Argument(help="An instrument file.")] = None,
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF, or auto.")] = "auto",
    pixel_size_pm: PixelOption = None,
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
    frames = _frames([file], pixel_size_pm, condition)
    if len(frames) > 1:
        say(f"{file.name}: the first of {len(frames)} frames; predict answers for each")
    rows, verdict = _ranked(
        frames[0], ensemble, preferred, who, note, path if show or png else None
    )
    emit(rows, form, title=f"{file.name}: {verdict}", columns=TABLE_COLUMNS)


def _ranked(
    frame: "Frame",
    ref: str,
    preferred: Sequence[int],
    who: str | None,
    note: str,
    picture: Path | None,
) -> tuple[list[dict[str, Any]], str]:
    """Return a row for each member and the verdict; record the preference and draw, if asked to."""
    from manybeam.cli.preferences import draw, keep
    from manybeam.predictor.answer import Question

    best = _predictor().rank(frame, Question(ref, is_selecting=True))[0]
    selection, record = best.selection, best.version.record
    assert selection is not None and record is not None  # noqa: S101, PT018 - large enough, of a zoo
    for note_ in best.notes:
        say(note_)
    say(f"{selection.verdict}:")
    for reason in selection.reasons:
        say(f" - {reason}")
    for one in selection.answerers:
        say(f"   {one.name}: predicted F1 {one.predicted_f1:.3f} ({one.low:.3f} to {one.high:.3f})")
    if preferred:
        keep(frame, best, preferred, who, note)
    if picture is not None:
        draw(frame, best, picture, preferred)
    return _candidate_rows(record, selection, preferred), selection.verdict


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


def _frames(files: Sequence[Path], pixel_size_pm: float | None, condition: str) -> "list[Frame]":
    """Return the frames of all files, read before the first network runs."""
    from dataclasses import replace

    from manybeam.data.io.frame import frames_of
    from manybeam.data.io.reading import read_frames
    from manybeam.spec.facility import facility_library

    stated = facility_library().condition(condition) if condition else None
    read = [
        sized(read_frames(path, pixel_size_pm=pixel_size_pm, condition=stated)) for path in files
    ]
    for one in read:
        for note in one.notes:
            say(f"{one.source.name}: {note}")
    check_sized(read)
    return [replace(frame, origin=str(one.source)) for one in read for frame in frames_of(one)]


def _answers(frames: "Sequence[Frame]", question: "Question") -> "Iterator[Answer]":
    """Yield one answer for each frame; an error names its file."""
    predictor = _predictor()
    for frame in frames:
        name = Path(frame.origin).name
        try:
            answer = predictor.answer(frame, question)
        except ManybeamError as error:
            raise type(error)(f"{name}: {error.what}", error.why, error.hint) from error
        for note in answer.notes:
            say(f"{name}: {note}")
        yield answer


def _predictor() -> "Predictor":
    from manybeam.predictor.predictor import Predictor
    from manybeam.zoo.registry import Zoo

    return Predictor.of_zoo(Zoo())


def _lean(answer: "Answer") -> "Answer":
    """Return an answer without the maps of single members, to save memory."""
    from dataclasses import replace

    return replace(answer, whole=answer.whole.without_maps())


def _summary(answer: "Answer") -> dict[str, Any]:
    predicted, calibration = answer.predicted_f1, answer.calibration
    return {
        "file": answer.frame.origin,
        "frame": answer.frame.index or 0,
        "atoms": len(answer.atoms),
        "verdict": answer.verdict,
        "predicted_f1": predicted.f1 if predicted else None,
        "low": predicted.low if predicted else None,
        "high": predicted.high if predicted else None,
        "members": [f"{m:02d}" for m in answer.members],
        "ensemble": answer.ref,
        "pixel_size_pm": answer.frame.pixel_size_pm,
        "mean_spread_px": _mean(answer.atoms[:, 4:6]),
        "position_90_pm": _finite(calibration.position_pm if calibration else None),
        **_bounded(calibration),
        "why": answer.why,
    }


def _bounded(calibration: "TransferredCalibration | None") -> dict[str, Any]:
    """Return the result of a bound on false atoms; nothing if there is no bound."""
    if calibration is None or not calibration.false_atoms:
        return {}
    return {
        "false_atoms": calibration.false_atoms,
        "is_kept": calibration.threshold is not None,
        "kept": calibration.kept,
        "doubts": "; ".join(calibration.notes),
    }


def _finite(value: float | None) -> float | None:
    """Return a number for JSON."""
    import math

    return value if value is not None and math.isfinite(value) else None


def _mean(values: "np.ndarray[Any, Any]") -> float | None:
    import numpy as np

    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _check_targets(atoms: Path | None, zarr: str) -> None:
    """Refuse targets that cannot be written to, before the first network runs."""
    check_target(atoms)
    if zarr:
        from manybeam.data.store import open_store

        if open_store(zarr).list(""):
            raise InvalidInput(
                f"{zarr} is not empty", "answers do not overwrite files", "choose another --zarr"
            )


def _write_atoms(path: Path | None, answers: "Sequence[Answer]") -> None:
    """Write one CSV of all atoms; positions are also in nm if the pixel size is known."""
    if path is None:
        return
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("file", "frame", *ATOM_COLUMNS, "y_nm", "x_nm"))
    for answer in answers:
        nm = (answer.frame.pixel_size_pm or float("nan")) / 1000
        for atom in answer.atoms.tolist():
            place = (atom[0] * nm, atom[1] * nm)
            writer.writerow((answer.frame.origin, answer.frame.index or 0, *atom, *place))
    write_files({path: text.getvalue().encode()})


def _write_pictures(folder: Path | None, answers: "Sequence[Answer]") -> None:
    if folder is None:
        return
    from manybeam.cli.terminal.figures import answer_figure
    from manybeam.zoo.reports.plots import png

    for number, answer in enumerate(answers):
        frame = answer.frame
        name = f"{number:03d}-{Path(frame.origin).stem}-{frame.index or 0:03d}.png"
        figure = answer_figure(frame.pixels_yx, answer.prediction, answer.why)
        write_files({folder / name: png(figure)})


def _write_zarr(url: str, answers: "Sequence[Answer]") -> None:
    """Write one Zarr group with a sub-group for each frame: frame, mean, std, mi, atoms."""
    if not url:
        return
    import zarr

    from manybeam.data.store import open_store
    from manybeam.zoo.lineage import note_prediction

    store = open_store(url)
    try:
        with store.writing() as place:
            root = zarr.create_group(place)
            for number, answer in enumerate(answers):
                group = root.create_group(f"{number:05d}")
                arrays = {name: getattr(answer, f"{name}_yx") for name in ("mean", "std", "mi")}
                arrays |= {"frame": answer.frame.pixels_yx, "atoms": answer.atoms}
                for name, array in arrays.items():
                    group.create_array(name, data=array)
                group.attrs.update({**_summary(answer), "atom_columns": list(ATOM_COLUMNS)})
    except BaseException:  # the group was empty before; a part of an answer is none
        store.delete("")
        raise
    for ref in dict.fromkeys(answer.ref for answer in answers):
        note_prediction(ref, store.url)

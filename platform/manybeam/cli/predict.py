"""`manybeam predict` and `manybeam select`: atoms in files, and which members suit a frame.

Both work in this process on the zoo's weights. The service answers over HTTP; it calibrates what
`auto` answers and what a bound is asked for, here every answer of a rehearsed ensemble is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.sizing import check_sized, sized
from manybeam.cli.terminal.targets import check_target
from manybeam.data.disk import write_files
from manybeam.errors import (
    Corrupt,
    InvalidInput,
    ManybeamError,
    NotFound,
    OutOfDistribution,
)

if TYPE_CHECKING:
    import numpy as np

    from manybeam.data.io.reading import Record as Frames
    from manybeam.learn.nets.ensemble import Ensemble, Prediction
    from manybeam.predictor.performance import PerformancePredictor
    from manybeam.predictor.selection import Selection
    from manybeam.predictor.transferred_calibration import TransferredCalibration
    from manybeam.zoo.matrix import Matrix
    from manybeam.zoo.records import Record

AUTO = "auto"
TABLE_COLUMNS = ("member", "chosen", "predicted_f1", "low", "high", "why")
ATOM_COLUMNS = ("y", "x", "class", "probability", "spread_y_px", "spread_x_px", "votes")
FilesArgument = Annotated[list[Path], typer.Argument(help="Instrument files.")]
PixelOption = Annotated[
    float | None, typer.Option(min=0.01, help="Edge of a pixel, where the file lacks it [pm].")
]


class _Loaded(NamedTuple):
    """One version that may answer."""

    record: "Record"
    ensemble: "Ensemble"
    matrix: "Matrix"
    known: "PerformancePredictor | None"


def predict(
    files: FilesArgument,
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF, or auto.")] = "auto",
    pixel_size_pm: PixelOption = None,
    atoms: Annotated[Path | None, typer.Option(help="CSV file of all atoms.")] = None,
    zarr: Annotated[str, typer.Option(help="Zarr group of frames, maps and atoms.")] = "",
    png: Annotated[Path | None, typer.Option(help="Folder of pictures to look at.")] = None,
    false_atoms: Annotated[
        float, typer.Option(min=0, max=0.99, help="Largest share of false atoms; 0 for no bound.")
    ] = 0.0,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit 7 if no member fits a frame.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Find the atoms in frames, with probability and spread.

    Example: manybeam predict scan_0142.dm4 -e graphene --atoms atoms.csv --png pictures
    """
    _check_targets(atoms, zarr)
    found = _answers(files, ensemble, pixel_size_pm, false_atoms)
    answers = [_lean(answer) for answer in found]
    drifted = [a["file"] for a in answers if a["selection"].verdict != "ok"]
    _write_atoms(atoms, answers)
    _write_pictures(png, answers)
    _write_zarr(zarr, answers)
    emit([_summary(answer) for answer in answers], form, title="Predictions")
    if drifted and fail_on_drift:
        raise OutOfDistribution(
            f"no member of {ensemble} fits {', '.join(map(str, drifted))}",
            "",
            f"manybeam select {drifted[0]} shows the members and why",
        )


def select(
    file: Annotated[Path | None, typer.Argument(help="An instrument file.")] = None,
    *,
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="REF, or auto.")] = "auto",
    pixel_size_pm: PixelOption = None,
    show: Annotated[bool, typer.Option("--show", help="Draw the members side by side.")] = False,
    png: Annotated[
        Path | None, typer.Option(help="Where to, in place of FILE-members.png; implies --show.")
    ] = None,
    pick: Annotated[str, typer.Option(help="Record that you chose these members: 03,05.")] = "",
    who: Annotated[str | None, typer.Option(help="Who picks; the login name if left out.")] = None,
    note: Annotated[str, typer.Option(help="Why, in your words; kept with the pick.")] = "",
    picks: Annotated[bool, typer.Option("--picks", help="List what people picked.")] = False,
    retract: Annotated[str, typer.Option(help="Take back the pick of this id.")] = "",
    form: FormOption = Form.auto,
) -> None:
    """Rank the members that suit this frame, with predicted F1, its interval and the reason.

    With --show you see what each member found and what it misses; with --pick your own choice is
    kept with who, when, frame and condition, for the combined model to learn from.

    Example: manybeam select scan_0142.dm4 -e graphene --show
    """
    from manybeam.cli.preferences import draw, keep, list_picks, picture_path, read_members, undo

    if retract:
        undo(retract, who)
    if picks:
        list_picks(ensemble, form)
    if file is None:
        if not retract and not picks:
            raise InvalidInput(
                "no frame to select for", "", "manybeam select FILE, or manybeam select --picks"
            )
        return
    picked, path = read_members(pick), picture_path(file, png)
    answer = next(_answers([file], ensemble, pixel_size_pm))
    selection: Selection = answer["selection"]
    if answer["frame_count"] > 1:
        say(f"{file.name}: the first of {answer['frame_count']} frames; predict judges each")
    say(f"{selection.verdict}: {selection.why}")
    for one in selection.answerers:
        say(f"   {one.name}: F1 {one.predicted_f1:.3f} ({one.low:.3f} to {one.high:.3f})")
    if picked:
        keep(answer, picked, who, note)
    if show or png is not None:
        draw(answer, path, picked)
    rows, title = _candidate_rows(answer, picked), f"{file.name}: {selection.verdict}"
    emit(rows, form, title=title, columns=TABLE_COLUMNS)


def _candidate_rows(answer: dict[str, Any], picked: Sequence[int]) -> list[dict[str, Any]]:
    selection: Selection = answer["selection"]
    record: Record = answer["record"]
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
    marks = [{"picked": member in picked} if picked else {} for member in members]
    return [{**row, **mark} for row, mark in zip(rows, marks, strict=True)]


def _answers(
    files: Sequence[Path], ref: str, pixel_size_pm: float | None, false_atoms: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Yield one answer a frame, reading every file before the first network runs."""
    from manybeam.data.io.reading import read_frames

    frames = [sized(read_frames(path, pixel_size_pm=pixel_size_pm)) for path in files]
    for read in frames:
        for note in read.notes:
            say(f"{read.source.name}: {note}")
    check_sized(frames)
    candidates = _ensembles(ref)
    for read in frames:
        stack = read.frame if read.frame.ndim == 3 else read.frame[None]
        for index, frame in enumerate(stack):
            try:
                answer = _best_answer(candidates, read, frame, index, ref, false_atoms)
                yield {**answer, "frame_count": len(stack)}
            except ManybeamError as error:
                named = f"{read.source.name}: {error.what}"
                raise type(error)(named, error.why, error.hint) from error


def _ensembles(ref: str) -> "list[_Loaded]":
    """Return one ensemble, or for `auto` every one that serves and is not damaged."""
    from manybeam.predictor.learned import performance_predictor
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    if ref == AUTO:
        records = [zoo.record(one) for one in zoo.listing() if "serving" in one.aliases]
    else:
        records = [zoo.resolve(ref)]
    if not records:
        raise NotFound("the zoo serves no ensemble yet", "", "manybeam train jobs/quickstart.yaml")
    loaded, damaged = [], []
    for one in records:
        try:
            ensemble = zoo.ensemble(one.ref)
        except Corrupt as error:
            say(f"{one.ref} is left out: {error.what}")
            damaged.append(error)
            continue
        loaded.append(
            _Loaded(one, ensemble, zoo.matrix(one.ref), performance_predictor(zoo, one.ref))
        )
    if not loaded:
        raise damaged[0]
    return loaded


def _best_answer(
    candidates: "list[_Loaded]",
    read: "Frames",
    frame: "np.ndarray[Any, Any]",
    index: int,
    ref: str,
    false_atoms: float,
) -> dict[str, Any]:
    """Answer with each ensemble and return the answer that stands best, `Selection.standing`.

    An ensemble named by the caller answers with all its members; `auto` with those selected.
    """
    from manybeam.predictor.selection import select as rank

    size, answers = read.pixel_size_pm, []
    if false_atoms and any(one.known for one in candidates):  # the others can promise no bound
        candidates = [one for one in candidates if one.known]
    for one in candidates:
        even = dict.fromkeys(one.ensemble.indices, 1.0)
        selection = rank(
            one.record,
            one.matrix,
            one.ensemble,
            frame,
            size,
            read.condition,
            known=one.known,
            answering=None if ref == AUTO else even,
            false_atoms=false_atoms,
        )
        answers.append((selection, one, None if ref == AUTO else even))
    selection, best, weights = max(answers, key=lambda one: one[0].standing)
    whole = best.ensemble.predict(frame, size)
    for note in selection.transferred.notes if selection.transferred and false_atoms else ():
        say(f"{read.source.name}: {note}")
    return {
        "file": read.source,
        "index": index,
        "frame": frame,
        "pixel_size_pm": size,
        "condition": read.condition,
        "record": best.record,
        "ref": best.record.ref,
        "selection": selection,
        "whole": whole,
        "prediction": selection.answer(whole, weights),
    }


def _lean(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without the members' own maps: there may be many frames."""
    lean = {**answer, "prediction": answer["prediction"].without_maps()}
    del lean["whole"]
    return lean


def _summary(answer: dict[str, Any]) -> dict[str, Any]:
    prediction: Prediction = answer["prediction"]
    selection: Selection = answer["selection"]
    spread_px = prediction.atoms[:, 4:6]
    promise = selection.promised(prediction.members) or (None, None, None)
    transferred = selection.transferred
    if transferred is not None and transferred.kept < 1:  # it was of the atoms left out, too
        promise = (None, None, None)
    return {
        "file": str(answer["file"]),
        "frame": answer["index"],
        "atoms": len(prediction.atoms),
        "verdict": selection.verdict,
        **dict(zip(("predicted_f1", "low", "high"), promise, strict=True)),
        "members": [f"{m:02d}" for m in prediction.members],
        "ensemble": answer["ref"],
        "pixel_size_pm": answer["pixel_size_pm"],
        "mean_spread_px": _mean(spread_px),
        "position_90_pm": _finite(transferred.position_pm if transferred else None),
        **_bounded(transferred),
        "why": selection.why,
    }


def _bounded(transferred: "TransferredCalibration | None") -> dict[str, Any]:
    """Return what became of a bound on false atoms; nothing where none was asked for."""
    if transferred is None or not transferred.false_atoms:
        return {}
    return {
        "false_atoms": transferred.false_atoms,
        "is_promised": transferred.threshold is not None,
        "kept": transferred.kept,
        "doubts": "; ".join(transferred.notes),
    }


def _finite(value: float | None) -> float | None:
    """Return a number JSON can hold."""
    import math

    return value if value is not None and math.isfinite(value) else None


def _mean(values: "np.ndarray[Any, Any]") -> float | None:
    import numpy as np

    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _check_targets(atoms: Path | None, zarr: str) -> None:
    """Refuse what cannot be written to, before the first network runs."""
    check_target(atoms)
    if zarr:
        from manybeam.data.store import open_store

        if open_store(zarr).list(""):
            raise InvalidInput(
                f"{zarr} is not empty", "an answer never overwrites", "choose another --zarr"
            )


def _write_atoms(path: Path | None, answers: Sequence[dict[str, Any]]) -> None:
    """Write one CSV of all atoms, positions also in nm where the pixel size is known."""
    if path is None:
        return
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("file", "frame", *ATOM_COLUMNS, "y_nm", "x_nm"))
    for answer in answers:
        nm = (answer["pixel_size_pm"] or float("nan")) / 1000
        for atom in answer["prediction"].atoms.tolist():
            place = (atom[0] * nm, atom[1] * nm)
            writer.writerow((answer["file"], answer["index"], *atom, *place))
    write_files({path: text.getvalue().encode()})


def _write_pictures(folder: Path | None, answers: Sequence[dict[str, Any]]) -> None:
    if folder is None:
        return
    from manybeam.cli.terminal.figures import answer_figure
    from manybeam.zoo.reports.plots import png

    for number, answer in enumerate(answers):
        name = f"{number:03d}-{Path(answer['file']).stem}-{answer['index']:03d}.png"
        figure = answer_figure(answer["frame"], answer["prediction"], answer["selection"].why)
        write_files({folder / name: png(figure)})


def _write_zarr(url: str, answers: Sequence[dict[str, Any]]) -> None:
    """Write one Zarr group with a sub-group for each frame: frame, mean, std, mi, atoms."""
    if not url:
        return
    import zarr

    from manybeam.data.store import open_store
    from manybeam.zoo.lineage import note_prediction

    root = zarr.create_group(open_store(url).zarr())
    for number, answer in enumerate(answers):
        group = root.create_group(f"{number:05d}")
        prediction: Prediction = answer["prediction"]
        arrays = {name: getattr(prediction, f"{name}_yx") for name in ("mean", "std", "mi")}
        arrays |= {"frame": answer["frame"], "atoms": prediction.atoms}
        for name, array in arrays.items():
            group.create_array(name, data=array)
        group.attrs.update({**_summary(answer), "atom_columns": list(ATOM_COLUMNS)})
    for ref in dict.fromkeys(answer["ref"] for answer in answers):
        note_prediction(ref, open_store(url).url)

"""`manybeam data`: make FrameSets of instrument files or simulated frames, and show them."""

import contextlib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from manybeam.cli.terminal.output import UNKNOWN, Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress
from manybeam.cli.terminal.sizing import (
    all_sized,
    check_sized,
    read_files,
    sized,
    stated_condition,
)
from manybeam.errors import InvalidInput, InvalidSpec, NotFound, UnknownCondition

if TYPE_CHECKING:
    import numpy as np

    from manybeam.data.frames import FrameSet
    from manybeam.data.io.reading import FrameFile
    from manybeam.spec import Condition, Policy, Range
    from manybeam.spec.imaging import Imaging

    Array = np.ndarray[Any, Any]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Frames: simulate them, import them, list them.\n\n"
    "Example: manybeam data simulate graphene-60kv-nominal --count 32 --out frames/nominal",
)


class Truth(StrEnum):
    """Where the truth of imported frames is."""

    none = "none"
    csv = "csv"


@app.command()
def simulate(
    condition: Annotated[
        str, typer.Argument(help="Id of a condition or policy of the zoo folder, or a YAML file.")
    ],
    *,
    out: Annotated[str, typer.Option(help="FrameSet to write: a folder or s3:// URL.")],
    count: Annotated[int, typer.Option(min=1, help="Frames to simulate.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same frames.")] = 0,
    side_px: Annotated[
        int, typer.Option(min=0, help="Edge of a frame; 0: that of the condition.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the FrameSet that is there.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Simulate frames with known truth.

    Example: manybeam data simulate graphene-60kv-nominal --count 32 --out frames/nominal
    """
    with Progress(f"start simulating {condition}") as progress:
        from manybeam.data.simulation.simulate import simulate_into
        from manybeam.data.simulation.typical import filled

        imaging = _imaging(condition)
        _warn(filled(imaging))
        if not overwrite:
            _check_free(out)
        frames = simulate_into(
            out,
            imaging,
            count,
            seed=seed,
            shape=(side_px, side_px) if side_px else None,
            progress=lambda done, total: progress.update("simulate", done, total),
            overwrite=overwrite,
        )
    emit([_facts(frames)], form)


def _check_free(url: str) -> None:
    """Refuse to write over a FrameSet."""
    from manybeam.data.frames import FrameSet
    from manybeam.errors import UnknownFrameSet

    try:
        FrameSet.open(url)
    except UnknownFrameSet:
        return
    raise InvalidInput(
        f"there is already a FrameSet at {url}", "", "choose another --out, or add --overwrite"
    )


@app.command("import")
def import_files(
    files: Annotated[list[Path], typer.Argument(help="Instrument files, in order.")],
    *,
    out: Annotated[str, typer.Option(help="FrameSet to write: a folder or s3:// URL.")],
    truth: Annotated[Truth, typer.Option(help="csv: FILE.csv beside each file, columns X,Y.")] = (
        Truth.none
    ),
    pixel_size_pm: Annotated[
        float | None, typer.Option(help="Edge of a pixel if the files have none [pm].")
    ] = None,
    condition: Annotated[str, typer.Option(help="Id of the condition of the recording.")] = "",
    append: Annotated[bool, typer.Option("--append", help="Add to the FrameSet at --out.")] = False,
    form: FormOption = Form.auto,
) -> None:
    """Read instrument files into a FrameSet. If one file cannot be read, nothing is written.

    If the pixel size is not in the files, the option or the condition, it is inferred from the
    lattice of the sample and printed with its error. Without a known lattice, pass
    --pixel-size-pm.

    Example: manybeam data import scan_*.dm4 --out frames/scan --condition graphene-60kv-nominal
    """
    with Progress(f"import {len(files)} files"):
        from manybeam.data.frames import FrameSet
        from manybeam.data.io.measured import check_one_condition

        records = all_sized(read_files(files, pixel_size_pm, stated_condition(condition)))
        truths = _truths(files) if truth is Truth.csv else None
        part = _stacked(records, truths)
        before = FrameSet.open(out) if append else None
        there = {str(before): before.condition} if before else {}
        check_one_condition({**there, **_conditions(records)})
        if before is None:
            shape = part[0].shape[1:]
            frames = FrameSet.write(out, records[0].condition, shape, [part])
        else:
            frames = before
            frames.append(*part)
    emit([_facts(frames)], form)


@app.command("ls")
def list_all(
    url: Annotated[
        str, typer.Argument(help="Where to search; if left out, the store of the platform.")
    ] = "",
    *,
    form: FormOption = Form.auto,
) -> None:
    """List the FrameSets under a folder or URL.

    Example: manybeam data ls s3://lab/frames
    """
    from manybeam.data.frames import FrameSet, list_framesets
    from manybeam.settings import settings

    found = list_framesets(url or settings().store_url)
    empty = "no FrameSet yet; to make one: manybeam data simulate, or manybeam data import"
    emit([_facts(FrameSet.open(name)) for name in found], form, title="FrameSets", empty=empty)


@app.command()
def show(
    url: Annotated[str, typer.Argument(help="A FrameSet, or an instrument file.")],
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all frames and check their digests.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Show the contents and the condition of a FrameSet or an instrument file.

    For a file, this shows the settings of the microscope and contradictions in the file. If the
    file has no pixel size, it is inferred from a known lattice.

    Example: manybeam data show frames/nominal
    """
    from manybeam.data.io.reading import READERS

    path = Path(url)
    if path.is_file() or (path.suffix.lower() in READERS and not path.is_dir()):
        record = sized(read_files([path], None, None)[0])
        row, imaging = _file_facts(record), cast("Imaging", record.condition)
    else:
        from manybeam.data.frames import FrameSet

        frames = FrameSet.open(url)
        if verify:
            frames.verify()
            say("every frame has its recorded digest")
        row, imaging = _facts(frames), frames.condition
    _warn(imaging)
    known = {name: value for name, value in imaging.quantities() if value is not None}
    row.update({name: _quantity_words(value) for name, value in known.items()})
    emit(
        [{"field": name, "value": value} for name, value in row.items()],
        form,
        title=url,
        missing=UNKNOWN,
    )


@app.command()
def infer(
    files: Annotated[list[Path], typer.Argument(help="Instrument files of one condition.")],
    *,
    policy: Annotated[str, typer.Option(help="Id of the policy to search in.")],
    pixel_size_pm: Annotated[
        float | None, typer.Option(help="Edge of a pixel if the files have none [pm].")
    ] = None,
    draws: Annotated[int, typer.Option(min=64, help="Number of frames to simulate.")] = 448,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    form: FormOption = Form.auto,
) -> None:
    """Infer the condition of frames from the frames alone, with 90 % intervals.

    If the width is near 1, the frames do not determine the quantity. Its interval is then that of
    the policy.

    Example: manybeam data infer scan_0142.dm4 --policy graphene-general -o json
    """
    with Progress("read the frames") as bars:
        from manybeam.learn.analysis.condition_inference import as_stated
        from manybeam.learn.analysis.condition_inference import infer as infer_condition
        from manybeam.settings import settings
        from manybeam.spec import Library

        records = read_files(files, pixel_size_pm, None)
        frames_nyx, size = _alike(records)
        imaging, notes = as_stated(Library(settings().zoo).policy(policy), _stated(records))
        for note in notes:
            say(note)
        found = infer_condition(
            frames_nyx,
            size,
            imaging,
            seed=seed,
            draws=draws,
            progress=lambda done, total: bars.update("simulate", done, total, "frames"),
        )
    say(
        f"{found.draw_count} draws; the nearest has {found.distance:.2f} times the usual distance"
        + (f". The policy {policy} rarely produces such frames." if found.distance > 1 else "")
    )
    rows = [
        {
            "quantity": path + (" (magnitude)" if one.is_magnitude else ""),
            "median": one.median,
            "low": one.low,
            "high": one.high,
            "width": round(one.width, 3),
            "determined": one.is_determined,
        }
        for path, one in found.posterior.items()
    ]
    emit(rows, form, title=f"inferred within {policy}")


def _imaging(name: str) -> "Condition | Policy":
    """Return the condition or policy of an id or of a YAML file."""
    from difflib import get_close_matches

    from manybeam.settings import settings
    from manybeam.spec import Library, load_condition, load_policy
    from manybeam.spec.faults import CLOSE
    from manybeam.spec.files import YAML

    path = Path(name)
    if path.suffix.lower() not in YAML:
        library = Library(settings().zoo)
        both = {**library.policies, **library.conditions}
        if name not in both:
            near = get_close_matches(name, both, n=3, cutoff=CLOSE)
            raise UnknownCondition(
                f"there is no condition or policy {name!r}",
                f"searched in {library.folder}",
                f"similar names: {', '.join(near)}"
                if near
                else "manybeam conditions ls and manybeam policies ls list all names",
            )
        return library.policies.get(name) or library.conditions[name]
    if not path.is_file():
        raise NotFound(f"no file {name}", "", "give an id of the zoo folder, or a YAML file")
    try:
        return load_condition(path)
    except InvalidSpec as error:
        with contextlib.suppress(InvalidSpec):
            return load_policy(path)
        raise InvalidSpec(error.what, "a condition or a policy is needed", error.hint) from error


def _warn(imaging: "Imaging") -> None:
    """Print warnings about values that are physically doubtful."""
    from manybeam.data.simulation.physics import warnings_for

    for sentence in warnings_for(imaging):
        say(f"warning: {sentence}")


def _conditions(records: "Sequence[FrameFile]") -> "dict[str, Imaging]":
    return {str(one.source): one.condition for one in records}


def _stated(records: "Sequence[FrameFile]") -> dict[str, float]:
    """Return every quantity in the files, by its dotted path; files must not differ."""
    from manybeam.data.io.measured import check_one_condition

    check_one_condition(_conditions(records))
    every = (pair for one in records for pair in one.condition.quantities())
    return {path: value for path, value in every if isinstance(value, float)}


def _alike(records: "Sequence[FrameFile]") -> "tuple[Array, float | None]":
    """Return the frames of all files as one stack, and their pixel size if the files have one."""
    import numpy as np

    stacks = [one.frame if one.frame.ndim == 3 else one.frame[None] for one in records]
    shapes, sizes = {stack.shape[1:] for stack in stacks}, {one.pixel_size_pm for one in records}
    if len(shapes) > 1 or len(sizes) > 1:
        raise InvalidInput(
            f"frames of shapes {sorted(shapes)} and pixel sizes {sorted(map(str, sizes))} pm",
            "one condition has one shape and one pixel size",
            "infer the condition of each kind separately",
        )
    return np.concatenate(stacks), sizes.pop()


def _quantity_words(value: "float | Range") -> str:
    if isinstance(value, float):
        return str(value)
    return f"{value.low:g} to {value.high:g}"


def _file_facts(record: "FrameFile") -> dict[str, object]:
    return {
        "file": str(record.source),
        "shape": "x".join(map(str, record.frame.shape)),
        "pixel_size_pm": record.pixel_size_pm,
        "modality": record.condition.modality,
        "material": record.condition.sample.material or None,
    }


def _facts(frames: "FrameSet") -> dict[str, object]:
    return {
        "url": frames.url,
        "frames": len(frames),
        "shape": "x".join(map(str, frames.shape)),
        "pixel_size_pm": frames.pixel_size_pm(0) if len(frames) else None,
        "truth": frames.has_truth,
        "condition": frames.condition.id,
        "digest": frames.digest,
    }


def _truths(files: Sequence[Path]) -> "list[Array]":
    import numpy as np

    from manybeam.data.io.reading import read_truth_csv

    missing = [
        str(path.with_suffix(".csv")) for path in files if not path.with_suffix(".csv").is_file()
    ]
    if missing:
        raise NotFound(
            f"no truth file {', '.join(missing)}",
            "--truth csv needs FILE.csv beside each file",
            "add these files, or leave --truth out",
        )
    with np.errstate(over="ignore"):  # a number too large for float32 is refused with its file
        return [read_truth_csv(path.with_suffix(".csv")) for path in files]


def _stacked(
    records: "Sequence[FrameFile]", truths: "list[Array] | None"
) -> "tuple[Array, list[Array] | None, Array]":
    """Return (frames, truths, pixel sizes) for one append; all frames must have one shape."""
    import numpy as np

    stacks = [one.frame if one.frame.ndim == 3 else one.frame[None] for one in records]
    shapes = {stack.shape[1:] for stack in stacks}
    if len(shapes) > 1:
        raise InvalidInput(
            f"frames of different shapes: {sorted(shapes)}",
            "a FrameSet holds frames of one shape",
            "import each shape into another FrameSet",
        )
    if truths is not None and any(len(stack) > 1 for stack in stacks):
        raise InvalidInput(
            "a stack of several frames has one truth file", "one CSV belongs to one frame", ""
        )
    for one, truth in zip(records, truths or [], strict=False):
        _check_truth(truth, one.frame.shape[-2:], one.source)
    check_sized(records)
    sizes = [
        np.full(len(stack), one.pixel_size_pm) for stack, one in zip(stacks, records, strict=True)
    ]
    return np.concatenate(stacks), truths, np.concatenate(sizes)


def _check_truth(truth: "Array", shape: tuple[int, ...], source: Path) -> None:
    """Refuse atoms outside the frame: columns are swapped, or the file is of another frame."""
    import numpy as np

    if not np.isfinite(truth).all():
        raise InvalidInput(
            f"{source.with_suffix('.csv')}: has a number too large for float32",
            "X and Y in pixels, class an atomic number",
            "correct the file",
        )
    outside = ((truth[:, :2] < -1) | (truth[:, :2] > (shape[0], shape[1]))).any(axis=1)
    if outside.any():
        raise InvalidInput(
            f"{source.with_suffix('.csv')}: {outside.sum()} of {len(truth)} atoms lie outside the "
            f"frame of {shape[0]} x {shape[1]} px",
            "X is the column, Y the row, both in pixels from the top left",
            "check that the file belongs to this frame",
        )

"""What `manybeam select` does with a person's eye: members side by side, picks made and undone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.cli.terminal.output import Form, emit, say
from manybeam.cli.terminal.targets import PICTURES, check_target
from manybeam.data.disk import write_files

if TYPE_CHECKING:
    from manybeam.data.io.frame import Frame
    from manybeam.predictor.predictor import Ranked
    from manybeam.predictor.preferences import Pick

PICTURE_DPI = 120


def picture_path(file: Path, path: Path | None) -> Path:
    """Return where the picture of a frame's members goes.

    Raises:
        InvalidInput: there is no such folder, or the suffix is not one of a picture.
    """
    path = path or Path(f"{file.stem}-members.png")
    check_target(path, PICTURES)
    return path


def draw(frame: "Frame", best: "Ranked", path: Path, picked: Sequence[int]) -> None:
    """Write the picture of all members side by side, and say where."""
    from manybeam.cli.terminal.figures import members_figure
    from manybeam.zoo.reports.plots import drawn

    assert best.selection is not None  # noqa: S101 - it was ranked
    figure = members_figure(
        frame.pixels_yx,
        best.whole,
        best.selection,
        picked=tuple(picked),
        title=f"{Path(frame.origin).name}, {best.version.ref}, ",
    )
    write_files({path: drawn(figure, path.suffix[1:].lower(), PICTURE_DPI)})
    say(f"members side by side: {path}")


def keep(
    frame: "Frame", best: "Ranked", members: Sequence[int], who: str | None, note: str
) -> "Pick":
    """Record a pick, and say how to undo it."""
    from manybeam.predictor.preferences import record_pick

    record, selection = best.version.record, best.selection
    assert record is not None and selection is not None  # noqa: S101, PT018 - ranked, of a zoo
    pick = record_pick(
        record,
        selection,
        members,
        frame_yx=frame.pixels_yx,
        file=frame.origin,
        pixel_size_pm=frame.pixel_size_pm,
        condition=frame.condition,
        who=who,
        note=note,
    )
    names = ", ".join(f"{member:02d}" for member in pick.members)
    agreed = "as proposed" if pick.is_as_proposed else "not as proposed"
    say(f"{pick.who} picked {names} of {pick.ref} ({agreed}); recorded as {pick.id}")
    say(f"to undo: manybeam select --retract {pick.id}")
    return pick


def list_picks(ref: str, form: Form) -> None:
    """Print the picks of one ensemble or version, or of all for `auto`."""
    from manybeam.predictor.preferences import picks
    from manybeam.zoo.records import Ref

    wanted = None if ref == "auto" else Ref.parse(ref)
    found = picks(wanted.name if wanted else None)
    if wanted is not None and wanted.version is not None:
        found = [pick for pick in found if pick.version == wanted.version]
    emit([_row(pick) for pick in found], form, title="Picks")


def undo(pick_id: str, who: str | None) -> None:
    """Take a pick back, and say so."""
    from manybeam.predictor.preferences import retract

    retract(pick_id, who)
    say(f"pick {pick_id} is taken back; it stays in the store but counts no more")


def _row(pick: "Pick") -> dict[str, object]:
    return {
        "pick": pick.id,
        "who": pick.who,
        "when": pick.when,
        "ref": pick.ref,
        "members": [f"{member:02d}" for member in pick.members],
        "proposed": [f"{member:02d}" for member in pick.proposed],
        "file": pick.file,
        "frame": pick.frame_digest[:12],
        "note": pick.note,
    }

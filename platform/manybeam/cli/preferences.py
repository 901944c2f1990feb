"""What `manybeam select` does with a person's eye: members side by side, picks made and undone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.cli.terminal.output import Form, emit, say
from manybeam.cli.terminal.targets import PICTURES, check_target
from manybeam.data.disk import write_files
from manybeam.errors import InvalidInput

if TYPE_CHECKING:
    from manybeam.predictor.preferences import Pick

PICTURE_DPI = 120


def read_members(text: str) -> tuple[int, ...]:
    """Return the member indices of words such as `03,05`; of none, none.

    Raises:
        InvalidInput: something between the commas is no index.
    """
    words = [word.strip() for word in text.split(",")] if text else []
    strange = [word for word in words if not (word.isascii() and word.isdigit())]
    if strange:
        raise InvalidInput(
            f"--pick {text}: {strange[0]!r} is no member", "indices with commas, as 03,05", ""
        )
    return tuple(dict.fromkeys(int(word) for word in words))


def picture_path(file: Path, path: Path | None) -> Path:
    """Return where the picture of a frame's members goes.

    Raises:
        InvalidInput: there is no such folder, or the suffix is not one of a picture.
    """
    path = path or Path(f"{file.stem}-members.png")
    check_target(path, PICTURES)
    return path


def draw(answer: dict[str, Any], path: Path, picked: tuple[int, ...]) -> None:
    """Write the picture of all members side by side, and say where."""
    from manybeam.cli.terminal.figures import members_figure
    from manybeam.zoo.reports.plots import drawn

    figure = members_figure(
        answer["frame"],
        answer["whole"],
        answer["selection"],
        picked=picked,
        title=f"{Path(answer['file']).name}, {answer['ref']}, ",
    )
    write_files({path: drawn(figure, path.suffix[1:].lower(), PICTURE_DPI)})
    say(f"members side by side: {path}")


def keep(answer: dict[str, Any], members: tuple[int, ...], who: str | None, note: str) -> "Pick":
    """Record a pick, and say how to undo it."""
    from manybeam.predictor.preferences import record_pick

    pick = record_pick(
        answer["record"],
        answer["selection"],
        members,
        frame_yx=answer["frame"],
        file=str(answer["file"]),
        pixel_size_pm=answer["pixel_size_pm"],
        condition=answer["condition"],
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

"""Pictures and preferences for `manybeam select`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.cli.terminal.output import Form, emit, say
from manybeam.cli.terminal.targets import PICTURES, check_target
from manybeam.data.disk import write_files

if TYPE_CHECKING:
    from manybeam.data.io.frame import Frame
    from manybeam.db.preference import Preference
    from manybeam.predictor.predictor import Ranked

PICTURE_DPI = 120


def picture_path(file: Path, path: Path | None) -> Path:
    """Return the file for the picture of a frame's members.

    Raises:
        InvalidInput: there is no such folder, or the suffix is not one of a picture.
    """
    path = path or Path(f"{file.stem}-members.png")
    check_target(path, PICTURES)
    return path


def draw(frame: "Frame", best: "Ranked", path: Path, preferred: Sequence[int]) -> None:
    """Write the picture of all members side by side, and print its path."""
    from manybeam.cli.terminal.figures import members_figure
    from manybeam.zoo.reports.plots import drawn

    assert best.selection is not None  # noqa: S101 - it was ranked
    figure = members_figure(
        frame.pixels_yx,
        best.whole,
        best.selection,
        preferred=tuple(preferred),
        title=f"{Path(frame.origin).name}, {best.version.ref}, ",
    )
    write_files({path: drawn(figure, path.suffix[1:].lower(), PICTURE_DPI)})
    say(f"members side by side: {path}")


def keep(
    frame: "Frame", best: "Ranked", members: Sequence[int], who: str | None, note: str
) -> "Preference":
    """Record a preference, and print how to undo it."""
    from manybeam.predictor.preferences import record_preference

    record, selection = best.version.record, best.selection
    assert record is not None and selection is not None  # noqa: S101, PT018 - ranked, of a zoo
    made = record_preference(
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
    names = ", ".join(f"{member:02d}" for member in made.members)
    agreed = "as proposed" if made.is_as_proposed else "not as proposed"
    say(f"{made.who} prefers {names} of {made.ref} ({agreed}); recorded as {made.id}")
    say(f"to undo: manybeam select --retract {made.id}")
    return made


def list_preferences(ref: str, form: Form) -> None:
    """Print the preferences of one ensemble or version, or of all for `auto`."""
    from manybeam.predictor.preferences import preferences
    from manybeam.zoo.records import Ref

    wanted = None if ref == "auto" else Ref.parse(ref)
    found = preferences(wanted.name if wanted else None)
    if wanted is not None and wanted.version is not None:
        found = [one for one in found if one.version == wanted.version]
    empty = "no preference yet; to record one: manybeam select FILE --pick 03,05"
    emit([_row(one) for one in found], form, title="Preferences", empty=empty)


def undo(preference_id: str, who: str | None) -> None:
    """Take a preference back, and print this."""
    from manybeam.predictor.preferences import retract

    retract(preference_id, who)
    say(f"preference {preference_id} is taken back; its record stays, but it no longer counts")


def _row(made: "Preference") -> dict[str, object]:
    return {
        "preference": made.id,
        "who": made.who,
        "when": made.when,
        "ref": made.ref,
        "members": [f"{member:02d}" for member in made.members],
        "proposed": [f"{member:02d}" for member in made.proposed],
        "file": made.file,
        "frame": made.frame_digest[:12],
        "note": made.note,
    }

"""Output files of a command: a path that cannot be written is refused before the work begins."""

from pathlib import Path

from manybeam.data.disk import unwritten
from manybeam.errors import InvalidInput

PICTURES = (".png", ".svg", ".pdf")


def check_target(path: Path | None, forms: tuple[str, ...] = ()) -> None:
    """Refuse a path that no file can be written to.

    Args:
        path: of the file; None if no file is written.
        forms: allowed suffixes; any if left out.

    Raises:
        InvalidInput: the suffix is not allowed, it is a folder, or its folder does not exist.
        WriteFailed: the disk refuses the name or the access.
    """
    if path is None:
        return
    if forms and path.suffix.lower() not in forms:
        raise InvalidInput(
            f"{path} has a suffix that cannot be written", f"allowed: {', '.join(forms)}", ""
        )
    try:
        is_folder, has_folder = path.is_dir(), path.resolve().parent.is_dir()
    except OSError as error:  # the disk refuses the name, or the folder cannot be read
        raise unwritten(path, error) from error
    if is_folder:
        raise InvalidInput(
            f"{path} is a folder", "the output is one file", "give the name of a file in it"
        )
    if not has_folder:
        raise InvalidInput(f"there is no folder {path.parent}", "", f"mkdir -p {path.parent}")


def check_empty(url: str, what: str) -> None:
    """Refuse a target in a store that holds something already; "" is no target.

    Args:
        url: URL of a FrameSet or an answer.
        what: what is to be written there, for the reason.
    """
    if not url:
        return
    from manybeam.data.store import open_store

    if open_store(url).list(""):
        raise InvalidInput(
            f"{url} is not empty", f"{what} do not overwrite files", "choose another URL"
        )

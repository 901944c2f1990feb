"""Files a command is told to write: what cannot be is refused before the work begins."""

from pathlib import Path

from manybeam.data.disk import unwritten
from manybeam.errors import InvalidInput

PICTURES = (".png", ".svg", ".pdf")


def check_target(path: Path | None, forms: tuple[str, ...] = ()) -> None:
    """Refuse a path that no file can be written to.

    Args:
        path: where the file is to go; None if none is written.
        forms: suffixes it may have; any if none are given.

    Raises:
        InvalidInput: it has another suffix, is a folder, or its folder is not there.
        WriteFailed: the disk takes no such name, or nobody may look there.
    """
    if path is None:
        return
    if forms and path.suffix.lower() not in forms:
        raise InvalidInput(f"{path} has no form we write", f"allowed: {', '.join(forms)}", "")
    try:
        is_folder, has_folder = path.is_dir(), path.resolve().parent.is_dir()
    except OSError as error:  # a name that no disk takes, or folders nobody may look into
        raise unwritten(path, error) from error
    if is_folder:
        raise InvalidInput(f"{path} is a folder", "what is written is a file", "name a file in it")
    if not has_folder:
        raise InvalidInput(f"no folder {path.parent}", "", f"mkdir -p {path.parent}")
